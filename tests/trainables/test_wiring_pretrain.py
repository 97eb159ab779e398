"""Pretraining's loop against a plain one, step by step: rates, decays, clipping, frozen layers, momentum.

Twenty-two images in batches of eight are two steps to an epoch, and six images that it leaves out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from cases import OPTIMIZERS, SCHEDULES, STREAMS
from recorded import assert_alike, no_steps_by_rounding, recorded, resumed
from test_contract_methods import METHOD_SETTINGS
from workers import in_double_precision

from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.loop import RunContext
from pretune.trainables.pretrain import pretrain

CPU = torch.device("cpu")
SPLIT = Split(train=np.arange(29, 7, -1), val=np.arange(8), test=np.arange(30, 32))
MODEL = schema.UNet(widths=(4, 8))
SOLID = schema.GenesisUNet(name="genesis-unet", widths=(2, 4))
STEPS = 7  # three epochs and a half

CLIPS: dict[str, dict[str, Any]] = {
    "unclipped": {},
    "together": {"clip_norm": 0.05},
    "one by one": {"clip_norm": 0.02, "clip": "parameter"},
}
SMALL = {"hidden": 6, "dim": 4}
CROPS = {"local_views": 1, "local_size": 8}
CASES: dict[str, dict[str, Any]] = METHOD_SETTINGS | {
    "simclr": SMALL,
    "moco": SMALL | {"queue": 20, "bn_splits": 2, "momentum": 0.8, "momentum_end": 0.9},
    "moco-v3": SMALL | {"momentum": 0.8},
    "byol": SMALL | {"momentum": 0.8},
    "dino": CROPS | {"hidden": 6, "bottleneck": 4, "prototypes": 5, "momentum": 0.8, "freeze_last_epochs": 2},
    "swav": CROPS | SMALL | {"prototypes": 5, "queue": 16, "queue_from_epoch": 1},  # prototypes still for an epoch
    "samclr": SMALL,
    "pixelcl": SMALL | {"momentum": 0.8},
    "pixelcl++": SMALL | {"momentum": 0.8},
    "mae": {"patch": 5},
    "genesis": {"shuffle_blocks": 4},
    "reconstruction": {"tasks": ["reconstruction", "mask-location"]},
    "conrec": SMALL | {"tasks": ["reconstruction", "original-colors"]},
    "segmentation": {},
    "classification": {},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """32 scenes of 16 px with masks, regions and depth, and classes invented for the method that needs some."""
    settings = schema.Scenes(dataset="scenes", images=32, cache_size=16)
    return dataclasses.replace(load_images(settings, None, tmp_path_factory.mktemp("cache")), labels=np.arange(32) % 3)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    settings = schema.Volumes(dataset="volumes", images=32, cache_size=8, slices=4)
    return load_images(settings, None, tmp_path_factory.mktemp("cache"))


def stage(name: str, **changes: Any) -> schema.Pretrain:
    body = {"data": "d", "batch_size": 8, "steps": STEPS, "views": {"size": 16}}
    return schema.Pretrain.model_validate(body | {"method": CASES[name] | {"name": name}} | changes)


def both(
    settings: schema.Pretrain, data: ImageSet, out: Path, model: schema.Model = MODEL, **how: Any
) -> tuple[list[plain.Moment], list[plain.Moment]]:
    """The engine's moments and the plain loop's."""
    context = RunContext(out, CPU, checkpoint_seconds=0.0, **how)
    with in_double_precision(), no_steps_by_rounding():
        with recorded() as engine:
            train(settings, data, context, model)
        return engine, plain.pretrain(settings, model, data, SPLIT.train, STREAMS, context)


def train(
    settings: schema.Pretrain, data: ImageSet, context: RunContext, model: schema.Model = MODEL
) -> dict[str, float]:
    return pretrain(settings, model, data, SPLIT, STREAMS, context)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_each_step_its_rate(schedule: str, data: ImageSet, tmp_path: Path) -> None:
    settings = stage("mae", schedule=SCHEDULES[schedule], optimizer=OPTIMIZERS["sgd"])
    assert_alike(*both(settings, data, tmp_path))


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [*((name, "together") for name in OPTIMIZERS), ("sgd", "unclipped"), ("sgd", "one by one"), ("lars", "one by one")],
)
def test_every_optimizer_takes_the_steps_of_the_plain_one(
    optimizer: str, clip: str, data: ImageSet, tmp_path: Path
) -> None:
    """With a rate, and where it has one a weight decay, of its own for every step."""
    changes = {"optimizer": OPTIMIZERS[optimizer], "schedule": SCHEDULES["cosine after a warm-up"]} | CLIPS[clip]
    assert_alike(*both(stage("mae", **changes), data, tmp_path))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw on weights"])
@pytest.mark.parametrize("method", CASES)
def test_every_method_is_trained_as_by_the_plain_loop(
    method: str, optimizer: str, data: ImageSet, tmp_path: Path
) -> None:
    """Momentum networks, queues and centres too, which are buffers; layers that are held still and then thaw."""
    clip = {"sgd": "together", "adamw on weights": "one by one"}[optimizer]
    changes = {"optimizer": OPTIMIZERS[optimizer], "schedule": SCHEDULES["cosine after a warm-up"]} | CLIPS[clip]
    assert_alike(*both(stage(method, **changes), data, tmp_path))


def test_volumes_are_trained_on_as_by_the_plain_loop(volumes: ImageSet, tmp_path: Path) -> None:
    settings = stage("genesis", optimizer=OPTIMIZERS["sgd"], views={"size": 8})
    assert_alike(*both(settings, volumes, tmp_path, SOLID))


@pytest.mark.parametrize("method", ["dino", "swav"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains_through_the_thaw_of_a_layer_and_resumes_through_it(
    optimizer: str, method: str, data: ImageSet, tmp_path: Path
) -> None:
    """Still for an epoch of two steps, as by default, then moving; resumed in the epoch before the thaw and at it."""
    held = {"dino": {"freeze_last_epochs": 1}, "swav": {}}[method]
    chosen = CASES[method] | held | {"name": method}
    settings = stage(method, method=chosen, optimizer=OPTIMIZERS[optimizer], steps=3)
    layer = plain.FROZEN_LAYER[method]
    engine, expected = both(settings, data, tmp_path)
    assert_alike(engine, expected)
    values = [moment.weights[layer] for moment in engine]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-15)  # SwAV's return to length 1 after every step
    assert (values[1] - values[2]).abs().max() > 1e-5
    for step in (1, 2):
        assert_alike(resumed(lambda context: train(settings, data, context), tmp_path, step), expected[step:])
