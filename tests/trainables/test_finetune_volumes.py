"""Fine-tuning on volumes: the same loop, masks of three dimensions, and the scores of P3's Table 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints, loop
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.files import STATE, WEIGHTS
from pretune.trainables.finetune import finetune
from pretune.trainables.models.table import build_unet
from pretune.trainables.pretrain import pretrain
from pretune.trainables.views.joint import evaluation_batch, fine_tune_batch
from pretune.trainables.views.random import uniforms

MODEL = schema.GenesisUNet(name="genesis-unet", widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4, "labels": 5}
SPLIT = Split(train=np.arange(12), val=np.arange(12, 16), test=np.arange(16, 20))
CPU = torch.device("cpu")


def volumes(cache: Path, classes: int = 2) -> ImageSet:
    settings = schema.Volumes(dataset="volumes", images=20, cache_size=16, slices=8, classes=classes)
    return load_images(settings, None, cache)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return volumes(tmp_path_factory.mktemp("cache"))


def finetuned(data: ImageSet, out: Path, **how: Any) -> dict[str, float]:
    out.mkdir()
    context = loop.RunContext(out, CPU, how.pop("parent", None), how.pop("resume", None), checkpoint_seconds=0.0)
    body = {"data": "volumes", "size": 16, "batch_size": 4, "epochs": 3, "loss": "foreground-dice"}
    settings = schema.Finetune.model_validate(body | {"threshold_scores": True} | how)
    return finetune(settings, MODEL, data, SPLIT, STREAMS, context, on_test=True)


def test_all_scores_are_there_and_better_than_at_the_start(data: ImageSet, tmp_path: Path) -> None:
    how = {"optimizer": {"lr": 0.01}, "augment": {"flip": 0.5}}
    short, long = (finetuned(data, tmp_path / str(n), epochs=n, **how) for n in (1, 12))
    assert {"test/soft_dice", "test/jaccard_thresholds", "test/dice/body", "val/jaccard"} <= long.keys()
    assert long["train/loss"] < short["train/loss"]
    assert long["test/soft_dice"] > short["test/soft_dice"]


def test_a_resumed_run_is_bit_identical(data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps to an epoch; the state after step 4 is in the middle of the second."""
    save, kept = checkpoints.save_state, tmp_path / "kept.pt"

    def save_and_keep(state: dict[str, Any], folder: Path) -> None:
        save(state, folder)
        if state["step"] == 4:
            kept.write_bytes((folder / STATE).read_bytes())

    monkeypatch.setattr(checkpoints, "save_state", save_and_keep)
    whole = finetuned(data, tmp_path / "whole", augment={"flip": 0.5})
    resumed = finetuned(data, tmp_path / "resumed", augment={"flip": 0.5}, resume=kept)
    assert whole == resumed
    a, b = (load_file(tmp_path / out / WEIGHTS) for out in ("whole", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("transfer", ["encoder", "encoder+decoder"])
def test_the_rows_of_table_3_start_from_genesis(data: ImageSet, tmp_path: Path, transfer: str) -> None:
    """With a rate so small that nothing moves, the weights that come out are those that went in."""
    (tmp_path / "pretrained").mkdir()
    body = {"data": "volumes", "method": {"name": "genesis", "shuffle_blocks": 40}, "views": {"size": 16}}
    settings = schema.Pretrain.model_validate(body | {"batch_size": 4, "steps": 2})
    pretrain(settings, MODEL, data, SPLIT, STREAMS, loop.RunContext(tmp_path / "pretrained", CPU))
    parent = tmp_path / "pretrained" / WEIGHTS
    still = {"name": "sgd", "lr": 1e-12, "momentum": 0.0}
    finetuned(data, tmp_path / "out", parent=parent, transfer=transfer, optimizer=still)
    given, after = load_file(parent), load_file(tmp_path / "out" / WEIGHTS)
    for part, transferred in (("encoder", True), ("decoder", transfer == "encoder+decoder")):
        names = [name for name in after if name.startswith(f"{part}.") and name.endswith("0.weight")]
        assert names
        assert all(torch.allclose(given[name], after[name], atol=1e-6) for name in names) == transferred


def test_more_than_two_classes_have_no_foreground_probability(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threshold_scores needs two classes.* 3"):
        finetuned(volumes(tmp_path / "cache", classes=3), tmp_path / "out")


def test_batches_are_the_volumes_themselves_mirrored_with_their_masks(data: ImageSet) -> None:
    assert data.masks is not None
    indices = np.arange(6)
    pixels, masks = (torch.from_numpy(array[indices]) for array in (data.images, data.masks))
    x, y = evaluation_batch(pixels, masks, 16)
    assert torch.equal(x, pixels.permute(0, 4, 1, 2, 3).float() / 255)
    assert torch.equal(y, masks.long())
    flipped_x, flipped_y = fine_tune_batch(pixels, masks, indices, 16, schema.Augment(flip=0.5), 7, 3)
    draws = uniforms(7, "joint/flip", 3, indices, 0, 3) < 0.5
    assert 0 < draws.sum() < draws.size
    for b in range(6):
        axes = [int(axis) for axis in np.flatnonzero(draws[b])]
        assert torch.equal(flipped_x[b, 0], x[b, 0].flip(axes))
        assert torch.equal(flipped_y[b], y[b].flip(axes))


def test_weights_lie_channels_last_in_their_own_number_of_dimensions() -> None:
    assert loop.layout(build_unet(MODEL, 2)) == torch.channels_last_3d
    assert loop.layout(build_unet(schema.UNet(widths=(4, 8)), 2)) == torch.channels_last
    assert loop.layout(nn.Identity()) == torch.channels_last
