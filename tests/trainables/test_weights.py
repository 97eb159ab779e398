"""Ready-made weights: found whatever their prefix, folded inputs against normalised ones, sentences where they lack."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from pretune.search_spaces import schema
from pretune.search_spaces.identities import fingerprint, weights_identity
from pretune.trainables import loop
from pretune.trainables.files import WEIGHTS
from pretune.trainables.methods import weights
from pretune.trainables.models.resnet import Encoder
from pretune.trainables.models.table import build_encoder

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
    with pytest.raises(weights.WeightsError, match=r"120 of 120 tensors are missing, such as 'conv1.weight'.*stem"):
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
    with pytest.raises(weights.WeightsError, match="needs a ResNet or timm encoder; set inputs: unit"):
        weights.take_unit_inputs(build_encoder(schema.UNet(widths=(4, 8))))


def test_a_missing_file_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"no file nowhere.pt; give a .safetensors"):
        schema.Weights(name="weights", source="nowhere.pt")


def test_only_weights_go_without_a_length(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    method = {"name": "weights", "source": str(tmp_path / "w.pt")}
    assert schema.Pretrain.model_validate({"data": "d", "method": method}).epochs is None
    with pytest.raises(ValueError, match="give exactly one of epochs and steps"):
        schema.Pretrain.model_validate({"data": "d", "method": {"name": "simclr"}})


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    prints = []
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
        method = schema.Weights(name="weights", source=str(tmp_path / name))
        prints.append(fingerprint(weights_identity(method, MODEL)))
    assert prints[0] == prints[1] != prints[2]
