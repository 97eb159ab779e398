"""Images that an exported network is checked on: the study's test images where the cache has them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretune.model.predict import Model
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.views.joint import evaluation_batch

COUNT = 8


class CheckImages(NamedTuple):
    """Images that both networks are shown."""

    images: Tensor  # float32 (COUNT or fewer, *model.shape) in [0, 1]
    what: str  # in words


def check_images(model: Model, cache: Path) -> CheckImages:
    """Test images from all over the list, or generated ones where `cache` (`ROOT/cache`) does not hold them."""
    try:
        data = open_cached(str(model.card["data_digest"]), cache)
    except DataError:
        data = None
    test = model.card["test"]
    if data is None or not test:
        return CheckImages(generated_images(model, COUNT), f"{COUNT} generated images (study images not in the cache)")
    chosen = [int(test[place]) for place in np.linspace(0, len(test) - 1, min(COUNT, len(test))).round().astype(int)]
    squares = torch.from_numpy(np.stack([data.images[index] for index in chosen]))
    pixels, _ = evaluation_batch(squares, torch.zeros(squares.shape[:-1], dtype=torch.uint8), model.size)
    return CheckImages(pixels, f"{len(chosen)} of the study's {len(test)} test images")


def generated_images(model: Model, count: int) -> Tensor:
    """float32 (count, *model.shape) in [0, 1], always the same: a ball before blobs, from dark to bright."""
    generator = torch.Generator().manual_seed(0)
    channels, *space = model.shape
    blobs, mode = torch.zeros(count, *model.shape), "bilinear" if len(space) == 2 else "trilinear"
    for cells in (2, 4, 8, 16):
        noise = torch.rand(count, channels, *[cells] * len(space), generator=generator)
        blobs += torch.nn.functional.interpolate(noise, space, mode=mode) / 4
    axes = torch.meshgrid(*[torch.linspace(-1, 1, side) for side in space], indexing="ij")
    inside = torch.stack(axes).square().sum(dim=0) < 0.3
    color = torch.rand(count, channels, *[1] * len(space), generator=generator)
    light = torch.linspace(0.15, 1.0, count).view(-1, *[1] * len(model.shape))
    return light * torch.where(inside, color, blobs)
