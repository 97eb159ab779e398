"""Backbones of timm: their own numbers, timm's weights from a file, and one sentence where one cannot serve."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.data.backbones import check_backbones
from pretune.errors import ModelError
from pretune.search_spaces import schema
from pretune.search_spaces.identities import encoder_of
from pretune.search_spaces.resolve import from_dict
from pretune.trainables import checkpoints, loop
from pretune.trainables.files import WEIGHTS
from pretune.trainables.methods import weights
from pretune.trainables.models import timm_unet
from pretune.trainables.models.table import build_encoder, build_unet

BACKBONES = ("test_resnet", "test_convnext", "mobilenetv3_small_050", "test_vit")
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def model_of(backbone: str, **changes: Any) -> schema.TimmUNet:
    return schema.TimmUNet.model_validate({"name": "timm-unet", "backbone": backbone} | changes)


def whole(backbone: str) -> nn.Module:
    """timm's classifier with random weights, and statistics that are not those of a new one."""
    torch.manual_seed(0)
    size = {"dynamic_img_size": True} if "vit" in backbone else {}
    network: nn.Module = timm.create_model(backbone, pretrained=False, **size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def imported(backbone: str, source: Path, out: Path, **changes: Any) -> timm_unet.Encoder:
    """The encoder as a stage that follows the weights loads it."""
    out.mkdir()
    settings = schema.Weights.model_validate({"name": "weights", "source": str(source)} | changes)
    weights.import_weights(settings, model_of(backbone), loop.RunContext(out, torch.device("cpu")))
    encoder = build_encoder(model_of(backbone))
    checkpoints.load_part(encoder, out / WEIGHTS, "encoder")
    assert isinstance(encoder, timm_unet.Encoder)
    return encoder.eval()


@every_backbone
@pytest.mark.parametrize("inputs", ["unit", "imagenet"])
def test_weights_of_timms_whole_model_give_its_features(backbone: str, inputs: str, tmp_path: Path) -> None:
    """On images normalised as timm's configuration says; `forward_intermediates` is timm's independent way there."""
    network = whole(backbone)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = imported(backbone, tmp_path / "w.safetensors", tmp_path / "out", inputs=inputs)
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    trained = timm.get_pretrained_cfg(backbone)
    mean, std = (trained.mean, trained.std) if inputs == "imagenet" else ((0, 0, 0), (1, 1, 1))
    normalised = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected: list[Tensor] = network.forward_intermediates(normalised, intermediates_only=True)
        found = encoder(x)
    for one in found:
        assert any(one.shape == e.shape and torch.allclose(one, e, rtol=1e-4, atol=1e-5) for e in expected)
    assert (encoder.mean.tolist() == [0, 0, 0]) == (mean == (0, 0, 0) or inputs == "unit")


def test_another_backbones_weights_are_refused(tmp_path: Path) -> None:
    save_file(whole("test_convnext").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(weights.WeightsError, match="does not fit this model's encoder"):
        imported("test_resnet", tmp_path / "w.safetensors", tmp_path / "out")


def test_offline_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise FileNotFoundError("cannot find the requested files in the local cache\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    with pytest.raises(
        weights.WeightsError,
        match=r"timm:resnet10t.c3_in1k could not be downloaded .*huggingface.co/timm/resnet10t.c3_in1k",
    ):
        weights.read("timm:resnet10t.c3_in1k")
    with pytest.raises(weights.WeightsError, match="timm has no model 'resnet19'"):
        weights.read("timm:resnet19")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet19", r"timm has no model 'resnet19'"),
        (
            "mixer_b16_224",
            r"timm:mixer_b16_224 does not take images of any multiple of 16 px, its stride .*tied to one size",
        ),
        ("inception_v3", r"timm:inception_v3 (gives maps that no decoder here can use|does not take images)"),
    ],
)
def test_a_backbone_that_cannot_serve_is_refused_before_anything_starts(backbone: str, message: str) -> None:
    study: dict[str, Any] = {
        "study": "s",
        "data": {"d": {"dataset": "scenes"}},
        "model": {"name": "timm-unet", "backbone": {"choice": ["test_resnet", backbone]}},
        "finetune": {"data": "d", "size": 64, "epochs": 1},
    }
    with pytest.raises(ModelError, match=rf"model\.backbone: {message}"):
        check_backbones(from_dict(study))
    study["model"] = {"name": "timm-unet", "backbone": "test_resnet"}
    check_backbones(from_dict(study))


@every_backbone
def test_looking_a_backbone_up_draws_no_random_numbers(backbone: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    timm_unet.levels.cache_clear()
    timm_unet.levels(timm_unet.Backbone(backbone))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "test_convnext"])
def test_training_draws_no_random_numbers(backbone: str) -> None:
    """Stochastic depth and dropout would make a resumed run differ from an uninterrupted one."""
    network = build_unet(model_of(backbone), 2).train()
    before = torch.get_rng_state()
    network(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_decoder_widths_follow_the_number_of_maps() -> None:
    """Four maps use the first four widths, vgg's six repeat the last; the output is as large as the image."""
    for backbone, maps, width in (("test_convnext", 4, 32), ("test_resnet", 5, 16), ("vgg11", 6, 16)):
        assert len(timm_unet.levels(timm_unet.Backbone(backbone)).widths) == maps
        decoder = timm_unet.decoder(timm_unet.Backbone(backbone), (256, 128, 64, 32, 16), skip_connections=True)
        assert decoder.width == width


def test_an_encoders_identity_holds_no_decoder() -> None:
    plain, other = model_of("test_resnet"), model_of("test_resnet", skip_connections=False, decoder_widths=[8] * 5)
    assert encoder_of(plain) == encoder_of(other) == {"name": "timm-unet", "backbone": "test_resnet"}
    assert encoder_of(plain) != encoder_of(model_of("test_convnext"))


def test_weights_are_stored_with_their_normalisation(tmp_path: Path) -> None:
    save_file(whole("test_resnet").state_dict(), tmp_path / "w.safetensors")
    imported("test_resnet", tmp_path / "w.safetensors", tmp_path / "out")
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert stored["encoder.mean"].tolist() == list(timm.get_pretrained_cfg("test_resnet").mean)


def test_timms_notes_are_not_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timm_unet.levels.cache_clear()
        timm_unet.levels(timm_unet.Backbone("test_resnet"))
