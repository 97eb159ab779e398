"""Exchanges of several workers: how many a step makes, and that losses averaged later are the same to the last bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_contract_methods import METHOD_SETTINGS
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import loop
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.distributed import World
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import DivergedError, LossMeter, RunContext
from pretune.trainables.pretrain import pretrain

MODEL = schema.UNet(widths=(4, 8))
SPLIT = Split(train=np.arange(24), val=np.arange(24, 28), test=np.arange(28, 32))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4, "labels": 5}
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclasses.dataclass(frozen=True)
class Twins(World):
    """The first of two workers, the other of which has the same rows; notes its exchanges in forward passes."""

    size: int = 2
    made: list[str] = dataclasses.field(default_factory=list)

    def sum(self, x: Tensor) -> Tensor:
        self.made.append("sum")
        return x + x

    def gather(self, x: Tensor) -> Tensor:
        self.made.append("gather")
        return torch.cat([x, x])

    def parallel(self, module: nn.Module) -> nn.Module:
        return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    scenes = load_images(schema.Scenes(dataset="scenes", images=32, cache_size=32), None, tmp_path_factory.mktemp("c"))
    return dataclasses.replace(scenes, labels=np.arange(32) % 3)


def exchanges(stage: schema.Pretrain | schema.Finetune, data: ImageSet, out: Path) -> list[int]:
    """Exchanges of each of six steps, three to an epoch."""
    world, after = Twins(), [0]
    context = RunContext(out, torch.device("cpu"), world=world, batch_norm="local", checkpoint_seconds=1e9)
    saved = loop.Progress.save_if_due

    def save_if_due(progress: loop.Progress, step: int) -> None:
        saved(progress, step)
        after.append(len(world.made))

    with mock.patch.object(loop, "EXCHANGE_SECONDS", 1e9), mock.patch.object(loop.Progress, "save_if_due", save_if_due):
        if isinstance(stage, schema.Pretrain):
            pretrain(stage, MODEL, data, SPLIT, STREAMS, context)
        else:
            finetune(stage, MODEL, data, SPLIT, STREAMS, context, on_test=False)
    return np.diff(after).tolist()


def pretraining(name: str) -> schema.Pretrain:
    method = METHOD_SETTINGS[name] | {"name": name}
    body: dict[str, Any] = {"data": "d", "batch_size": 8, "steps": 6, "method": method, "views": {"size": 16}}
    return schema.Pretrain.model_validate(body)


STEP = {  # exchanges of a step: one of running statistics, the others of the loss
    "barlow-twins": 3,
    "byol": 1,
    "classification": 1,
    "conrec": 4,
    "dino": 2,
    "genesis": 1,
    "mae": 1,
    "moco": 4,
    "moco-v3": 3,
    "pixelcl": 1,
    "pixelcl++": 1,
    "reconstruction": 1,
    "samclr": 3,
    "segmentation": 2,
    "simclr": 3,
    "swav": 9,
    "vicreg": 5,
}
QUEUES = {"swav": 2}  # more exchanges from the second epoch on, whose rows join the queues


@pytest.mark.parametrize("name", sorted(METHOD_SETTINGS))
def test_a_step_of_a_pretraining_exchanges_what_its_loss_needs(name: str, data: ImageSet, tmp_path: Path) -> None:
    """Losses and diagnostics are exchanged where an epoch ends; the first step also asks who is preempted."""
    found, step, queued = exchanges(pretraining(name), data, tmp_path), STEP[name], QUEUES.get(name, 0)
    assert found[:2] == [step + 1, step]
    assert found[3:5] == [step + queued] * 2
    assert min(found[2], found[5] - queued) > step + 1


def test_a_step_of_a_fine_tuning_exchanges_the_sums_of_its_loss(data: ImageSet, tmp_path: Path) -> None:
    stage = schema.Finetune(data="d", size=16, batch_size=8, steps=6, freeze="none")
    assert exchanges(stage, data, tmp_path) == [3, 2, 3, 2, 2, 3]


@dataclasses.dataclass(frozen=True)
class Both(World):
    """One of two workers whose other one holds `others`, from the first loss that is not averaged yet."""

    size: int = 2
    others: list[float] = dataclasses.field(default_factory=list)

    def sum(self, x: Tensor) -> Tensor:
        taken = [self.others.pop(0) for _ in x.view(-1)]
        return x + torch.tensor(taken).view_as(x)


LOSSES = st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2), min_size=1, max_size=20)


@given(losses=LOSSES, states=st.sets(st.integers(0, 19)))
def test_losses_averaged_over_workers_late_are_those_averaged_at_each_step(
    losses: list[tuple[float, float]], states: set[int]
) -> None:
    """To the last bit, and in whatever steps a state asked for them before."""
    meter = LossMeter("loss", world=Both(others=[other for _, other in losses]))
    for step, (own, _) in enumerate(losses):
        meter.add(torch.tensor(own))
        if step in states:
            meter.of_whole_batches()
    at_once = [Both(others=[other]).mean(torch.tensor(own)) for own, other in losses]
    assert torch.equal(torch.stack(meter.of_whole_batches()), torch.stack(at_once))
    assert meter.mean() == float(torch.stack(at_once).double().mean())


@pytest.mark.parametrize("state_after", [None, 0, 1, 2])
@pytest.mark.parametrize("of", ["own", "other"])
def test_a_loss_that_is_not_finite_on_one_worker_is_found_by_all(of: str, state_after: int | None) -> None:
    """Each names the same step, so that no worker goes on alone."""
    good, bad = [1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]
    own, others = (bad, good) if of == "own" else (good, bad)
    meter = LossMeter("loss", 10, world=Both(others=list(others)))
    for step, loss in enumerate(own):
        meter.add(torch.tensor(loss))
        if step == state_after:
            meter.of_whole_batches()
    with pytest.raises(DivergedError, match=r"^loss is nan at step 11$"):
        meter.mean()
