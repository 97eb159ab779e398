"""A training step of a stage on made-up images: to be timed, or to be measured for its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.data.checks.requirements import StageSettings
from pretune.trainables.loop import DataFeed, Lookup
from pretune.trainables.losses import LOSSES
from pretune.trainables.memory import StepMemory, step_memory
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder, build_unet
from pretune.trainables.pretrain import make_batch
from pretune.trainables.views.regions import RegionBoxes

CPU = torch.device("cpu")
MEASURED = 4  # images of a step that is measured for its memory


class Sample(NamedTuple):
    """A step of `batch` images: forward and backward pass."""

    whole: nn.Module  # all that is trained or averaged
    scored: nn.Module  # what scores images
    pixels: Tensor  # (batch, ...) that it takes
    step: Callable[[], object]
    batch: int


def size_of(settings: StageSettings) -> int:
    """Side in px of the images that a stage takes."""
    return settings.views.size if isinstance(settings, schema.Pretrain) else settings.size


def sample_step(settings: StageSettings, model: schema.Model, slices: int | None, batch: int) -> Sample:
    """The step on a CPU. `settings` are not those of imported weights."""
    size = size_of(settings)
    space, channels = (size, size) if slices is None else (slices, size, size), schema.channels_of(model)
    pixels = torch.rand(batch, *space, channels).movedim(-1, 1)
    if not isinstance(settings, schema.Pretrain):
        unet, target = build_unet(model, 3), torch.zeros(batch, *space, dtype=torch.int64)
        return Sample(unet, unet, pixels, lambda: LOSSES["dice"](unet(pixels), target).backward(), batch)  # type: ignore[no-untyped-call]
    parts = Parts(build_encoder(model), lambda: build_decoder(model), mask_classes=3, image_classes=10)
    method = build_method(settings.method, settings.views, parts)
    assert isinstance(method, nn.Module)
    feeds = _feeds(batch, space, channels)

    def step() -> None:
        method(make_batch(method, feeds, np.arange(batch), 0, 0), 0.0)[0].backward()  # type: ignore[no-untyped-call]

    return Sample(method, method.encoder, pixels, step, batch)


def _feeds(batch: int, space: tuple[int, ...], channels: int) -> dict[str, Lookup]:
    planes = np.zeros((batch, *space), np.uint8)
    regions = planes.astype(np.uint16)
    feeds: dict[str, Lookup] = {
        "images": DataFeed(np.zeros((*planes.shape, channels), np.uint8), CPU),
        "labels": DataFeed(np.zeros(batch, np.int64), CPU),
        "masks": DataFeed(planes, CPU),
        "regions": DataFeed(regions, CPU),
        "depth": DataFeed(planes.astype(np.float16), CPU),
    }
    return feeds if len(space) == 3 else feeds | {"region boxes": RegionBoxes(regions)}


def memory_of(settings: StageSettings, model: schema.Model, slices: int | None) -> StepMemory:
    """Memory of a training step of the stage in float32, from one of few images on this CPU.

    Raises whatever building the stage raises.
    """
    parts = schema.batch_parts(settings.method) if isinstance(settings, schema.Pretrain) else 1
    sample = sample_step(settings, model, slices, max(MEASURED, 2 * parts))
    return step_memory(sample.whole, optimizer_of(settings), sample.step, sample.batch)


def optimizer_of(settings: StageSettings) -> schema.Optimizer | None:
    """None for what trains nothing."""
    return settings.optimizer if isinstance(settings, schema.Pretrain | schema.Finetune) else None
