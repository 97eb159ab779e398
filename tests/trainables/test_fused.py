"""Fused replicates equal separate training: the real loop, in float64 so that rounding does not hide a mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split, label_subset
from pretune.trainables.finetune import finetune
from pretune.trainables.fused import Fused, Replicate, train
from pretune.trainables.loop import RunContext, build_encoder, build_unet
from pretune.trainables.models.unet import UNet
from pretune.trainables.views import joint

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
SPLIT = schema.Split(test=0.25, val=0.2, seed=0)
STEPS = 7  # two epochs of three steps, the last of each of 6 images, and one more


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 scenes of 32 px: training 22."""
    chosen = schema.Scenes(dataset="scenes", images=40, cache_size=32, split=SPLIT)
    return load_images(chosen, None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Networks and pixels in float64."""

    def precise(cut: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        def wrapped(*arguments: Any) -> tuple[Tensor, Tensor]:
            torch.set_default_dtype(torch.float32)  # in which pixels are cut
            pixels, target = cut(*arguments)
            torch.set_default_dtype(torch.float64)
            return pixels.double(), target

        return wrapped

    batch = precise(joint.fine_tune_batch)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with (
        mock.patch("pretune.trainables.finetune.fine_tune_batch", batch),
        mock.patch("pretune.trainables.fused.fine_tune_batch", batch),
        mock.patch("pretune.trainables.finetune.evaluation_batch", precise(joint.evaluation_batch)),
    ):
        yield
    torch.set_default_dtype(torch.float32)


def settings(**changes: Any) -> schema.Finetune:
    plain = {"data": "d", "size": 32, "batch_size": 8, "steps": STEPS, "optimizer": {"lr": 0.02}}
    return schema.Finetune.model_validate(plain | changes)


def streams(k: int) -> dict[str, int]:
    return {"init": 10 + k, "order": 20 + k, "augmentation": 30 + k, "labels": 40 + k, "split": 50 + k}


def alone(chosen: schema.Finetune, data: ImageSet, k: int, out: Path, parent: Path | None) -> dict[str, Tensor]:
    """The weights after the real loop."""
    out.mkdir()
    split = draw_split(len(data.images), SPLIT, streams(k)["split"], None)
    finetune(chosen, MODEL, data, split, streams(k), RunContext(out, CPU, parent), lambda values: None, on_test=False)
    return checkpoints.load_file(out / checkpoints.WEIGHTS)


def start(data: ImageSet, k: int, parent: Path | None) -> UNet:
    """What the loop starts from."""
    torch.manual_seed(streams(k)["init"])
    network = build_unet(MODEL, len(data.classes))
    if parent is not None:
        checkpoints.load_part(network.encoder, parent, "encoder")
    return network


def replicate(data: ImageSet, chosen: schema.Finetune, k: int) -> Replicate:
    split = draw_split(len(data.images), SPLIT, streams(k)["split"], None)
    return Replicate(label_subset(split.train, chosen.labels, streams(k)["labels"]), streams(k))


def parents(folder: Path, count: int) -> list[Path]:
    """Pretrained encoders, their batch norm statistics unlike the initial ones."""
    paths = []
    for k in range(count):
        torch.manual_seed(70 + k)
        encoder = build_encoder(MODEL)
        with torch.no_grad():
            encoder(torch.rand(4, 3, 16, 16))
        paths.append(folder / f"parent{k}.safetensors")
        checkpoints.save_weights(nn.ModuleDict({"encoder": encoder}), paths[k])
    return paths


CASES = {
    "adam": {},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}},
    "lars, whose norms are of one replicate": {"optimizer": {"name": "lars", "lr": 0.5, "weight_decay": 1e-3}},
    "frozen encoder": {"freeze": "encoder"},
    "augmentation": {"augment": {"flip": 0.5, "crop": [0.3, 1.0]}},
    "schedule and both losses": {"schedule": {"name": "cosine"}, "loss": "dice+cross-entropy"},
    "few labels": {"labels": 3},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_each_replicate_equals_its_separate_training(changes: dict[str, Any], data: ImageSet, tmp_path: Path) -> None:
    """Weights, batch norm statistics and counts of three replicates, each with seeds and a parent of its own."""
    chosen, paths = settings(**changes), parents(tmp_path, 3)
    expected = [alone(chosen, data, k, tmp_path / str(k), paths[k]) for k in range(3)]
    networks = [start(data, k, paths[k]) for k in range(3)]
    train(chosen, networks, data, [replicate(data, chosen, k) for k in range(3)], STEPS, CPU)
    for network, theirs in zip(networks, expected, strict=True):
        found = network.state_dict()
        assert found.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert not torch.equal(networks[0].head.weight, networks[1].head.weight)


def test_clipping_takes_each_replicate_by_its_own_norm(data: ImageSet) -> None:
    """With K = 1 there is only its own norm: each of three equals its training in a stack of one."""
    chosen = settings(optimizer={"name": "sgd", "lr": 0.05})
    together = [start(data, k, None) for k in range(3)]
    every = [replicate(data, chosen, k) for k in range(3)]
    losses = train(chosen, together, data, every, STEPS, CPU, clip_norm=0.05)
    assert np.array(losses).shape == (STEPS, 3)
    unclipped = [start(data, k, None) for k in range(3)]
    train(chosen, unclipped, data, every, STEPS, CPU)
    for k in range(3):
        single = [start(data, k, None)]
        train(chosen, single, data, [every[k]], STEPS, CPU, clip_norm=0.05)
        torch.testing.assert_close(together[k].head.weight, single[0].head.weight, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(together[k].head.weight, unclipped[k].head.weight, rtol=1e-3)


def test_the_networks_are_left_alone_until_they_are_written_back() -> None:
    networks = [nn.Linear(2, 1), nn.Linear(2, 1)]
    before = [network.weight.detach().clone() for network in networks]
    fused = Fused(networks)
    x = torch.rand(2, 5, 2)
    torch.testing.assert_close(fused(x), torch.stack([network(row) for network, row in zip(networks, x, strict=True)]))
    with torch.no_grad():
        fused.replicas[1][0].add_(1.0)
    assert torch.equal(networks[1].weight, before[1])
    fused.unstack(networks)
    assert torch.equal(networks[0].weight, before[0])
    assert torch.equal(networks[1].weight, before[1] + 1.0)


def test_what_cannot_be_fused_is_refused(data: ImageSet) -> None:
    chosen = settings()
    networks = [start(data, k, None) for k in range(2)]
    uneven = [Replicate(np.arange(4), streams(0)), Replicate(np.arange(5), streams(1))]
    with pytest.raises(ValueError, match=r"as many labelled images each, got \[4, 5\]"):
        train(chosen, networks, data, uneven, 1, CPU)
    alike = [Replicate(np.arange(4), streams(0))] * 2
    decaying = {"name": "adamw", "weight_decay_end": 0.4}
    for name, changes in {
        "unfreeze_epoch": {"freeze": "encoder", "unfreeze_epoch": 1},
        "patience, checkpoint: best": {"patience": 1, "checkpoint": "best", "validate_every": 1},
        "precision: bfloat16": {"precision": "bfloat16"},
        "compile": {"compile": True},
        "weight_decay_end": {"optimizer": decaying},
    }.items():
        with pytest.raises(ValueError, match=f"do not know {name}: leave out"):
            train(settings(**changes), networks, data, alike, 1, CPU)
