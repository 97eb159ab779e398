"""Fine-tuning's loop against a plain one, step by step: rates, decays, frozen encoders, momentum, uneven last batches.

Twenty-two labelled images in batches of eight are three steps to an epoch, the last of six images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from cases import OPTIMIZERS, SCHEDULES, STREAMS
from recorded import assert_alike, no_steps_by_rounding, recorded, resumed
from workers import in_double_precision

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split, label_subset
from pretune.trainables.finetune import Freezing, finetune
from pretune.trainables.loop import RunContext, build_optimizer
from pretune.trainables.losses import LOSSES
from pretune.trainables.models.table import build_unet

CPU = torch.device("cpu")
SPLIT = Split(train=np.arange(29, 7, -1), val=np.arange(8), test=np.arange(30, 32))
MODEL = schema.UNet(widths=(4, 8))
SOLID = schema.GenesisUNet(name="genesis-unet", widths=(2, 4))
STEPS = 8  # two epochs and two steps

FREEZINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "encoder": {"freeze": "encoder"},
    "encoder for an epoch": {"freeze": "encoder", "unfreeze_epoch": 1},
    "encoder for two": {"freeze": "encoder", "unfreeze_epoch": 2},
    "level by level": {"freeze": "encoder", "unfreeze_epoch": 1, "unfreeze_every": 1},
    "none, encoder slower": {"encoder_lr_mult": 0.1},
    "encoder for an epoch, then slower": {"freeze": "encoder", "unfreeze_epoch": 1, "encoder_lr_mult": 0.1},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """32 scenes of 16 px."""
    settings = schema.Scenes(dataset="scenes", images=32, cache_size=16)
    return load_images(settings, None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    settings = schema.Volumes(dataset="volumes", images=32, cache_size=8, slices=4)
    return load_images(settings, None, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Another network, whole: its batch norm statistics are unlike the initial ones."""
    torch.manual_seed(77)
    network = build_unet(MODEL, 3)
    with torch.no_grad():
        network(torch.rand(4, 3, 16, 16))
    checkpoints.save_weights(network, tmp_path / "parent.safetensors")
    return tmp_path / "parent.safetensors"


def stage(**changes: Any) -> schema.Finetune:
    body: dict[str, Any] = {"data": "d", "size": 16, "batch_size": 8, "steps": STEPS}
    return schema.Finetune.model_validate(body | changes)


def both(
    settings: schema.Finetune, data: ImageSet, out: Path, model: schema.Model = MODEL, **how: Any
) -> tuple[list[plain.Moment], list[plain.Moment]]:
    """The engine's moments and the plain loop's."""
    context = RunContext(out, CPU, checkpoint_seconds=0.0, **how)
    labelled = label_subset(SPLIT.train, settings.labels, STREAMS["labels"])
    with in_double_precision(), no_steps_by_rounding():
        with recorded() as engine:
            train(settings, data, context, model)
        return engine, plain.finetune(settings, model, data, labelled, STREAMS, context)


def train(
    settings: schema.Finetune, data: ImageSet, context: RunContext, model: schema.Model = MODEL
) -> dict[str, float]:
    return finetune(settings, model, data, SPLIT, STREAMS, context, on_test=False)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_each_step_its_rate(schedule: str, data: ImageSet, tmp_path: Path) -> None:
    settings = stage(schedule=SCHEDULES[schedule], optimizer=OPTIMIZERS["sgd"])
    assert_alike(*both(settings, data, tmp_path))


@pytest.mark.parametrize("freezing", FREEZINGS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_takes_the_steps_of_the_plain_one_through_every_freezing(
    optimizer: str, freezing: str, data: ImageSet, tmp_path: Path
) -> None:
    """Validated after every epoch, which leaves it in eval mode; resumed before a thaw and at it."""
    changes = {"optimizer": OPTIMIZERS[optimizer], "schedule": SCHEDULES["cosine after a warm-up"]}
    settings = stage(validate_every=1, **changes, **FREEZINGS[freezing])
    engine, expected = both(settings, data, tmp_path)
    assert_alike(engine, expected)
    thaw = settings.unfreeze_epoch
    for step in () if thaw is None else (3 * thaw - 1, 3 * thaw):
        left = resumed(lambda context: train(settings, data, context), tmp_path, step)
        assert_alike(left, expected[step:])


@pytest.mark.parametrize("freezing", [name for name, how in FREEZINGS.items() if "freeze" in how])
def test_a_frozen_encoder_moves_from_the_step_after_its_thaw_on_and_not_before(
    freezing: str, data: ImageSet, tmp_path: Path
) -> None:
    """Its batch norm statistics too. Three steps are an epoch."""
    settings = stage(optimizer=OPTIMIZERS["sgd"], **FREEZINGS[freezing])
    engine, _ = both(settings, data, tmp_path)
    first = STEPS if settings.unfreeze_epoch is None else 3 * settings.unfreeze_epoch
    names = [name for name in engine[0].weights if name.startswith("encoder.")]
    assert any("running_mean" in name for name in names)
    for step in range(1, STEPS):
        still = all(torch.equal(engine[step - 1].weights[name], engine[step].weights[name]) for name in names)
        assert still == (step < first), step


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_descended(loss: str, data: ImageSet, tmp_path: Path) -> None:
    assert_alike(*both(stage(loss=loss, optimizer=OPTIMIZERS["sgd"]), data, tmp_path))


@pytest.mark.parametrize("transfer", ["none", "encoder", "encoder+decoder"])
def test_training_starts_from_what_is_transferred(transfer: str, data: ImageSet, tmp_path: Path, parent: Path) -> None:
    """Where the study has no transfer, the engine gives the loop no parent."""
    settings = stage(transfer=transfer, optimizer=OPTIMIZERS["adamw"])
    assert_alike(*both(settings, data, tmp_path, parent=None if transfer == "none" else parent))


@pytest.mark.parametrize("labels", [5, 0.5, 1.0])
def test_the_labelled_images_are_those_of_the_labels_stream(labels: Any, data: ImageSet, tmp_path: Path) -> None:
    """Five are fewer than a batch, eleven a batch and three; flips and crops are drawn by the image and the epoch."""
    augment = {"flip": 0.5, "crop": [0.5, 1.0]}
    settings = stage(labels=labels, augment=augment, optimizer=OPTIMIZERS["sgd"], epochs=3, steps=None)
    assert_alike(*both(settings, data, tmp_path))


def test_volumes_are_trained_on_as_by_the_plain_loop(volumes: ImageSet, tmp_path: Path) -> None:
    assert_alike(*both(stage(size=8, optimizer=OPTIMIZERS["sgd"]), volumes, tmp_path, SOLID))


@pytest.mark.parametrize("freezing", FREEZINGS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_has_the_same_parameters_before_and_after_the_encoder_is_frozen(
    optimizer: str, freezing: str
) -> None:
    """Built after the freezing it would leave out for good what is to thaw."""
    settings = stage(optimizer=OPTIMIZERS[optimizer], **FREEZINGS[freezing])
    network = build_unet(MODEL, 3)
    held = []
    for step in (None, 0, STEPS - 1):
        plan = Freezing(settings, 3)
        if step is not None:
            plan.apply(network, step)
        made = build_optimizer(settings.optimizer, plan.trained_parameters(network))
        held.append({id(p) for group in made.param_groups for p in group["params"]})
    encoder = {id(parameter) for parameter in network.encoder.parameters()}
    assert held[0] == held[1] == held[2]
    assert encoder.isdisjoint(held[0]) == (freezing == "encoder")
    assert {id(p) for p in network.parameters()} - held[0] == (encoder if freezing == "encoder" else set())
