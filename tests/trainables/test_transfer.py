"""What is handed from a pretraining to a fine-tuning, what stays frozen, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables import checkpoints, loop
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.files import STATE, WEIGHTS
from pretune.trainables.finetune import Freezing, finetune, levels_of
from pretune.trainables.models.table import build_encoder, build_unet
from pretune.trainables.pretrain import pretrain

MODEL = schema.UNet(widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4, "labels": 5}
SPLIT = Split(train=np.arange(16), val=np.arange(16, 20), test=np.arange(20, 24))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    settings = schema.Scenes(dataset="scenes", images=24, cache_size=16)
    return load_images(settings, None, tmp_path_factory.mktemp("cache"))


def pretrained(data: ImageSet, out: Path, parent: Path | None = None, init: int = 1, **method: Any) -> Path:
    out.mkdir()
    body = {"data": "scenes", "method": {"name": "mae"} | method, "views": {"size": 16}, "batch_size": 8}
    settings = schema.Pretrain.model_validate(body | {"steps": 2})
    pretrain(settings, MODEL, data, SPLIT, STREAMS | {"init": init}, loop.RunContext(out, CPU, parent))
    return out / WEIGHTS


def finetuned(
    data: ImageSet, out: Path, parent: Path | None, model: schema.Model = MODEL, resume: Path | None = None, **how: Any
) -> dict[str, Tensor]:
    out.mkdir()
    settings = schema.Finetune.model_validate({"data": "scenes", "size": 16, "batch_size": 8, "epochs": 1} | how)
    context = loop.RunContext(out, CPU, parent, resume, checkpoint_seconds=0.0)
    finetune(settings, model, data, SPLIT, STREAMS, context, on_test=False)
    return load_file(out / WEIGHTS)


def moved(before: dict[str, Tensor], after: dict[str, Tensor], part: str) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(f"{part}."))


STILL = {"name": "sgd", "lr": 1e-12, "momentum": 0.0}  # so small that weights stay, to the last bit or nearly


@pytest.mark.parametrize("transfer", ["encoder", "encoder+decoder"])
def test_a_decoder_is_transferred_if_asked_for(data: ImageSet, tmp_path: Path, transfer: str) -> None:
    file = pretrained(data, tmp_path / "a")
    after = finetuned(data, tmp_path / "b", file, transfer=transfer, optimizer=STILL)
    given = load_file(file)
    names = [name for name in given if name.startswith("decoder.") and name.endswith("up.weight")]
    assert names
    same = all(torch.allclose(given[name], after[name], atol=1e-6) for name in names)
    assert same == (transfer == "encoder+decoder")


def test_a_decoder_trained_with_skips_is_refused_by_one_without(data: ImageSet, tmp_path: Path) -> None:
    file = pretrained(data, tmp_path / "a")
    without = schema.UNet(widths=(4, 8), skip_connections=False)
    with pytest.raises(RuntimeError, match="skip connections does not fit"):
        finetuned(data, tmp_path / "b", file, without, transfer="encoder+decoder")


def test_the_next_pretraining_of_a_chain_starts_from_the_decoder_too(data: ImageSet, tmp_path: Path) -> None:
    first = pretrained(data, tmp_path / "a")
    assert checkpoints.has_part(first, "decoder")
    assert not checkpoints.has_part(first, "decode")
    second = load_file(pretrained(data, tmp_path / "b", parent=first, init=9, name="segmentation"))
    fresh = load_file(pretrained(data, tmp_path / "c", init=9, name="segmentation"))
    given = load_file(first)
    name = "decoder.blocks.0.up.weight"  # two steps of Adam at 0.001 move a weight by at most 0.0021
    assert float((second[name] - given[name]).abs().max()) < 0.0021
    assert float((fresh[name] - given[name]).abs().max()) > 0.01


FREEZINGS: dict[str, tuple[dict[str, Any], int]] = {  # three steps to an epoch -> frozen steps of twelve
    "not frozen": ({}, 0),
    "frozen": ({"freeze": "encoder"}, 12),
    "frozen until epoch 2": ({"freeze": "encoder", "unfreeze_epoch": 2}, 6),
    "frozen until after the end": ({"freeze": "encoder", "unfreeze_epoch": 9}, 12),
}


@pytest.mark.parametrize("name", FREEZINGS)
def test_frozen_steps_have_no_encoder_gradients_and_its_batch_norm_in_eval_mode(name: str) -> None:
    """All parameters but a frozen encoder's are trainable at every step."""
    changes, frozen_steps = FREEZINGS[name]
    freezing, network = freezing_of(**changes), build_unet(MODEL, 3)
    for step in range(12):
        freezing.apply(network.eval(), step)  # a validation came before
        trained = step >= frozen_steps
        assert freezing.frozen_at(step) != trained
        assert {p.requires_grad for p in network.encoder.parameters()} == {trained}
        assert {m.training for m in network.encoder.modules()} == {trained}
        assert all(m.training for m in network.decoder.modules())
        assert all(p.requires_grad for p in [*network.decoder.parameters(), *network.head.parameters()])


@pytest.mark.parametrize("name", FREEZINGS)
def test_the_optimiser_has_the_encoder_unless_it_is_frozen_for_good(name: str) -> None:
    """With `unfreeze_epoch` it has it from the start, since a state must fit before and after."""
    changes, _ = FREEZINGS[name]
    network = build_unet(MODEL, 3)
    encoder = [id(p) for p in network.encoder.parameters()]
    others = [id(p) for n, p in network.named_parameters() if not n.startswith("encoder.")]
    found = [id(p) for p in freezing_of(**changes).trained_parameters(network)]
    assert sorted(found) == sorted(others + ([] if changes == {"freeze": "encoder"} else encoder))


def freezing_of(**changes: Any) -> Freezing:
    return Freezing(schema.Finetune.model_validate({"data": "x", "epochs": 4} | changes), steps_per_epoch=3)


def test_unfreezing_needs_freezing() -> None:
    with pytest.raises(ValueError, match="unfreeze_epoch needs freeze: encoder"):
        schema.Finetune.model_validate({"data": "x", "epochs": 4, "unfreeze_epoch": 2})


@pytest.mark.parametrize(("epochs", "trained"), [(2, False), (3, True)])
def test_a_frozen_encoder_moves_from_its_epoch_on(data: ImageSet, tmp_path: Path, epochs: int, trained: bool) -> None:
    """Its batch norm statistics are among what must not move before."""
    file = pretrained(data, tmp_path / "a")
    after = finetuned(data, tmp_path / "b", file, epochs=epochs, freeze="encoder", unfreeze_epoch=2)
    assert moved(load_file(file), after, "encoder") == trained


@pytest.mark.parametrize("stopped", [3, 4, 5])
def test_a_run_resumed_around_the_unfreezing_is_bit_identical(
    data: ImageSet, tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps to an epoch: the encoder is unfrozen before the step after step 4."""
    file, save = pretrained(data, tmp_path / "a"), checkpoints.save_state
    kept = tmp_path / "kept.pt"

    def save_and_keep(state: dict[str, Any], folder: Path) -> None:
        save(state, folder)
        if state["step"] == stopped:
            kept.write_bytes((folder / STATE).read_bytes())

    monkeypatch.setattr(checkpoints, "save_state", save_and_keep)
    how = {"epochs": 4, "freeze": "encoder", "unfreeze_epoch": 2}
    whole = finetuned(data, tmp_path / "b", file, **how)
    resumed = finetuned(data, tmp_path / "c", file, resume=kept, **how)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# ------------------------------------------------------------------------------------------------ gradual unfreezing

GRADUAL = {"freeze": "encoder", "unfreeze_epoch": 1, "unfreeze_every": 2}
DEEP = schema.UNet(widths=(4, 8, 8))


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (DEEP, 16, {"levels.0": 0, "levels.1": 1, "levels.2": 2}),
        (
            schema.ResNetUNet(name="resnet-unet", depth=18),
            32,
            {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4},
        ),
        (
            schema.TimmUNet(name="timm-unet", backbone="test_resnet"),
            64,
            {"body.conv1": 0, "body.layer1": 1, "body.layer2": 2, "body.layer3": 3, "body.layer4": 4},
        ),
    ],
    ids=["unet", "resnet", "timm"],
)
def test_a_parameter_belongs_to_the_finest_map_that_it_has_a_part_in(
    model: schema.Model, size: int, expected: dict[str, int]
) -> None:
    encoder = build_encoder(model).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = levels_of(encoder, torch.rand(1, 3, size, size))
    for beginning, level in expected.items():
        assert {value for name, value in found.items() if name.startswith(f"{beginning}.")} == {level}, beginning
    assert found.keys() == {name for name, _ in encoder.named_parameters()}
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_levels_are_unfrozen_one_after_the_other_the_coarsest_first() -> None:
    """Three steps to an epoch: level 2 from epoch 1, level 1 from epoch 3, level 0 from epoch 5."""
    network = build_unet(DEEP, 3)
    levels = levels_of(network.encoder, torch.rand(1, 3, 16, 16))
    settings = schema.Finetune.model_validate({"data": "x", "epochs": 7} | GRADUAL)
    freezing = Freezing(settings, 3, levels)
    assert freezing.unfreeze_steps == {3, 9, 15}
    for step in range(21):
        freezing.apply(network.eval(), step)
        for level, first in ((2, 3), (1, 9), (0, 15)):
            part = network.encoder.levels[level]
            norms = [module for module in part.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            assert {p.requires_grad for p in part.parameters()} == {step >= first}
            assert {norm.training for norm in norms} == {step >= first}
        assert all(p.requires_grad for p in network.decoder.parameters())


def test_a_gradual_unfreezing_resumes_to_the_same_bits(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 7, in the epoch in which level 1 begins (two steps to an epoch)."""
    save, kept = checkpoints.save_state, tmp_path / "kept.pt"

    def save_and_keep(state: dict[str, Any], folder: Path) -> None:
        save(state, folder)
        if state["step"] == 7:
            kept.write_bytes((folder / STATE).read_bytes())

    monkeypatch.setattr(checkpoints, "save_state", save_and_keep)
    how: dict[str, Any] = {"epochs": 6, "transfer": "none", **GRADUAL}
    whole = finetuned(data, tmp_path / "a", None, DEEP, **how)
    resumed = finetuned(data, tmp_path / "b", None, DEEP, resume=kept, **how)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_gradual_unfreezing_needs_the_epoch_at_which_it_begins() -> None:
    with pytest.raises(ValueError, match="unfreeze_every needs unfreeze_epoch"):
        schema.Finetune.model_validate({"data": "x", "epochs": 4, "freeze": "encoder", "unfreeze_every": 2})
