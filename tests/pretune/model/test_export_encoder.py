"""Encoders of untrained models, loaded by the libraries whose tensor names they were given."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.cli import main
from pretune.errors import ModelError
from pretune.model.export_encoder import export_encoder
from pretune.model.predict import load_model
from pretune.search_spaces import schema
from pretune.trainables.models.table import build_encoder, build_unet

CARD: dict[str, Any] = {
    "study": "s", "cell": "a=x", "seed": 1, "fingerprint": "f", "question": "Which?", "target": "test/dice",
    "data": {"dataset": "oxford-iiit-pet", "cache_size": 64, "fit": "squash", "limit": 600},
    "data_digest": "d", "pretraining": [{"method": {"name": "simclr"}}], "finetune": {"size": 64}, "chosen": {},
    "pretraining_data": [{"dataset": "camvid"}],
    "classes": ["background", "one", "two"], "input": {"size": 64}, "test": [], "scores": {"test/jaccard": 0.75},
}  # fmt: skip


def study_of(folder: Path, **model: Any) -> Path:
    """A folder with untrained weights, whose batch norms have seen something."""
    settings = TypeAdapter(schema.Model).validate_python(model)
    torch.manual_seed(0)
    network = build_unet(settings, 3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    (folder / "best").mkdir(parents=True)
    save_file(dict(network.state_dict()), folder / "best" / "model.safetensors")
    card = copy.deepcopy(CARD) | {"model": settings.model_dump(mode="json")}
    (folder / "best" / "model.json").write_text(json.dumps(card))
    return folder


def features_of(study: Path, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found: list[Tensor] = load_model(study).network.encoder(images)  # type: ignore[operator]
    return found


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "resnet-unet", "depth": 18},
        {"name": "resnet-unet", "depth": 50},
        {"name": "resnet-head", "depth": 34},
    ],
)
def test_torchvisions_own_resnet_loads_it_strictly_and_pools_the_same_features(
    model: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    study = study_of(tmp_path / "study", **model)
    exported = export_encoder(study, tmp_path / "out", "torchvision", tmp_path)
    assert f"checked: resnet{model['depth']} gives the same features" in exported.checked
    library = torchvision.models.get_model(f"resnet{model['depth']}", weights=None)
    library.fc = nn.Identity()
    library.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"), strict=True)
    with torch.no_grad():
        pooled = library.eval()(images)
    assert torch.allclose(pooled, features_of(study, images)[-1].mean(dim=(2, 3)), atol=1e-5)


def test_timms_own_resnet_loads_it_strictly_and_gives_the_same_features(images: Tensor, tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", name="resnet-unet", depth=18)
    export_encoder(study, tmp_path / "out", "timm", tmp_path)
    library = timm.create_model("resnet18", num_classes=0).eval()
    library.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"), strict=True)
    with torch.no_grad():
        found = library.forward_features(images)
    assert torch.allclose(found, features_of(study, images)[-1], atol=1e-5)


@pytest.mark.parametrize("backbone", ["convnext_atto", "mobilenetv3_small_050", "resnet10t"])
def test_a_timm_backbone_goes_back_to_timm(backbone: str, images: Tensor, tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", name="timm-unet", backbone=backbone)
    export_encoder(study, tmp_path / "out", "timm", tmp_path)
    library: Any = timm.create_model(backbone, num_classes=0).eval()
    found = library.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"), strict=False)
    assert found.unexpected_keys == []
    assert all(name.startswith(("head", "conv_head", "norm_head")) for name in found.missing_keys)
    with torch.no_grad():
        maps = library.forward_intermediates(images, intermediates_only=True)
    ours = features_of(study, images)[-1]
    assert torch.allclose(maps[-1], ours, atol=1e-4 * float(ours.abs().max()))


def test_own_names_build_the_encoder_again(images: Tensor, tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", name="unet", widths=[4, 8])
    export_encoder(study, tmp_path / "out", "own", tmp_path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    encoder = build_encoder(TypeAdapter(schema.Model).validate_python(config["encoder"])).eval()
    encoder.load_state_dict(load_file(tmp_path / "out" / "encoder.safetensors"))
    with torch.no_grad():
        assert torch.equal(encoder(images)[-1], features_of(study, images)[-1])


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({"name": "unet", "widths": [4, 8]}, (3, 24, 40)),  # not the size of training
        ({"name": "genesis-unet", "widths": [2, 4]}, (1, 8, 64, 64)),  # volumes, of that size alone
    ],
    ids=["images", "volumes"],
)
def test_an_encoder_of_any_model_runs_without_pretune(
    model: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    study = study_of(tmp_path / "study", **model)
    if len(shape) == 4:
        card = json.loads((study / "best" / "model.json").read_text())
        card["data"] |= {"dataset": "volumes", "slices": shape[1]}
        (study / "best" / "model.json").write_text(json.dumps(card))
    export_encoder(study, tmp_path / "out", "own", tmp_path)
    used = runpy.run_path(str(tmp_path / "out" / "network.py"))
    inputs = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = used["network"](load_file(tmp_path / "out" / "encoder.safetensors"), inputs)
    assert isinstance(found, list)
    for ours, theirs in zip(features_of(study, inputs), found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ({"name": "unet", "widths": [4, 8]}, "torchvision"),
        ({"name": "unet", "widths": [4, 8]}, "timm"),
        ({"name": "resnet-unet", "depth": 18, "stem": "cifar"}, "torchvision"),
        ({"name": "timm-unet", "backbone": "convnext_atto"}, "torchvision"),
    ],
)
def test_an_encoder_that_the_library_does_not_have_is_one_sentence(
    model: dict[str, Any], keys: str, tmp_path: Path
) -> None:
    study = study_of(tmp_path / "study", **model)
    with pytest.raises(ModelError, match=rf"{keys} has no model like this encoder .*; use --keys own"):
        export_encoder(study, tmp_path / "out", keys, tmp_path)
    assert not (tmp_path / "out").exists()


def test_features_that_differ_are_an_error_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretune.model import export_encoder as exporting

    def wrong(encoder: nn.Module, state: dict[str, Tensor]) -> exporting.Named:
        return exporting.NAMERS["own"](encoder, state)._replace(name="wrong", features=lambda x: -encoder(x)[-1])

    monkeypatch.setitem(exporting.NAMERS, "timm", wrong)
    with pytest.raises(ModelError, match="wrong computes other features"):
        export_encoder(study_of(tmp_path / "study", name="unet", widths=[4, 8]), tmp_path / "out", "timm", tmp_path)
    assert not (tmp_path / "out" / "encoder.safetensors").exists()


def test_the_card_has_the_lines_to_load_it_and_the_licences_of_all_data(tmp_path: Path) -> None:
    study = study_of(tmp_path / "study", name="resnet-unet", depth=18)
    export_encoder(study, tmp_path / "out", "timm", tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'timm.create_model("resnet18", num_classes=0)' in card
    assert "in [0, 1], with no further normalisation" in card
    assert "| pretraining data | camvid |" in card
    assert "| data | oxford-iiit-pet (at most 600 images) |" in card
    assert "oxford-iiit-pet: CC BY-SA 4.0; camvid: " in card


# ------------------------------------------------------------------------------------------------- the command line


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pretune", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_verb_writes_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    study = study_of(tmp_path / "study", name="resnet-unet", depth=18)
    assert called(monkeypatch, "export", study, "--encoder-only", "--keys", "torchvision") == 0
    out = capsys.readouterr().out
    assert "the same features" in out
    for name in ("encoder.safetensors", "config.json", "README.md"):
        assert (study / "export-encoder-torchvision" / name).is_file()
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--keys", "timm"], "add --encoder-only"),
        (["--encoder-only", "--format", "onnx"], "remove --format onnx"),
        (["--encoder-only", "--keys", "keras"], "'keras' is not one of"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert called(monkeypatch, "export", tmp_path, *arguments) == 2
    assert expected in capsys.readouterr().err
