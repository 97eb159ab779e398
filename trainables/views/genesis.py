"""The corruptions of Models Genesis, of images (B, C, H, W) or volumes (B, C, D, H, W) in [0, 1].

Zhou et al.: "Models Genesis: generic autodidactic models for 3D medical image analysis", MICCAI 2019, section 2, and
their public code (`utils.py`, `config.py`): local shuffling, then a non-linear change of intensity, then painting, each
with its own chance. Counts, sides and chances are that code's; its bounds include both ends, as here. Where a side is
too short to leave MARGIN around a block, the block may touch the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.trainables.upload import upload
from pretune.trainables.views.random import BoolArray, Draw, IntArray

Shape = tuple[int, ...]  # of space alone: (H, W) or (D, H, W)

MARGIN = 3
PAINT_ON = 0.95  # the chance to go on to the next block
IN_PAINT_BLOCKS, OUT_PAINT_WINDOWS = 5, 5  # at most; the first window of out-painting is always there
CURVE_POINTS = 4096  # at which the Bezier curve is taken, with straight lines between


class Rates(NamedTuple):
    """Chances of the corruptions, and the number of shuffled blocks."""

    shuffle: float
    blocks: int
    intensity: float
    paint: float
    in_paint: float  # of those that are painted; the others are out-painted


def corrupt(x: Tensor, draw: Draw, rates: Rates) -> Tensor:
    """Return the images corrupted, each by its own draws alone."""
    shape = tuple(x.shape[2:])
    x = x.clone()
    generators = _generators(draw, "shuffle")
    if len(rows := np.flatnonzero(draw("shuffle?", 1)[:, 0] < rates.shuffle)):
        sources = np.stack([shuffled_sources(shape, rates.blocks, generators(b)) for b in rows.tolist()])
        where, source = upload(rows, x.device), upload(sources, x.device)[:, None].expand(-1, x.shape[1], -1)
        x[where] = x[where].flatten(2).gather(2, source).view(len(rows), *x.shape[1:])
    if len(rows := np.flatnonzero(draw("intensity?", 1)[:, 0] < rates.intensity)):
        where, points = upload(rows, x.device), draw("intensity", 5)[rows]
        x[where] = change_intensity(x[where], points[:, :4], points[:, 4] < 0.5)
    generators, inside = _generators(draw, "paint"), draw("in-paint?", 1)[:, 0] < rates.in_paint
    if len(rows := np.flatnonzero(draw("paint?", 1)[:, 0] < rates.paint)):
        drawn = [_painting(tuple(x.shape[1:]), generators(b), bool(inside[b])) for b in rows.tolist()]
        where, painted, noise = (upload(part, x.device) for part in (rows, *map(np.stack, zip(*drawn, strict=True))))
        x[where] = torch.where(painted[:, None], noise.to(x.dtype), x[where])
    return x


def _painting(shape: Shape, generator: np.random.Generator, inside: bool) -> tuple[BoolArray, NDArray[np.float32]]:
    """Return where an image of `shape` (C, ...) is painted over, (...), and the noise, (C, ...)."""
    painted = in_painted(shape[1:], generator) if inside else out_painted(shape[1:], generator)
    return painted, generator.random(shape, np.float32)


def _generators(draw: Draw, name: str) -> Callable[[int], np.random.Generator]:
    """A stream of numbers for each image, begun by its first draw."""
    seeds = draw(f"{name}/seed", 1)[:, 0]
    return lambda b: np.random.default_rng(int(seeds[b] * 2**53))


# --------------------------------------------------------------------------------------------------------- shuffling


def shuffled_sources(shape: Shape, blocks: int, rng: np.random.Generator) -> IntArray:
    """From which voxel (flat index) each voxel comes, (prod(shape),): small blocks whose voxels change places.

    Sides of a block: 1 to a tenth of the volume's. Every block takes its voxels from the original, and a later one
    overwrites what an earlier one put there.
    """
    sides = np.stack([rng.integers(1, max(1, n // 10) + 1, blocks) for n in shape], axis=1)  # blocks, axes
    starts = rng.integers(0, np.array(shape) - sides + 1)
    places, block = flat_places(shape, starts, sides)
    order = np.argsort(block + rng.random(len(block)), kind="stable")  # within each block, since they stand in order
    source = np.arange(int(np.prod(shape)), dtype=np.int64)
    source[places] = places[order]  # of equal places the last one holds
    return source


def flat_places(shape: Shape, starts: IntArray, sides: IntArray) -> tuple[IntArray, IntArray]:
    """Flat indices of all voxels of all blocks, one block after the other, and the block of each."""
    counts = sides.prod(axis=1)
    block = np.repeat(np.arange(len(sides)), counts)
    rest = np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts)  # number within its block
    places, stride = np.zeros(len(block), np.int64), 1
    for axis in reversed(range(len(shape))):
        rest, offset = np.divmod(rest, sides[block, axis])
        places += (starts[block, axis] + offset) * stride
        stride *= shape[axis]
    return places, block


# --------------------------------------------------------------------------------------------------------- intensity


def change_intensity(x: Tensor, points: NDArray[np.float64], falling: BoolArray) -> Tensor:
    """Every value of x (B, ...) in [0, 1] through a monotone curve of its sample's own.

    A cubic Bezier curve from (0, 0) to (1, 1) with control points (x1, y1), (x2, y2) of `points` (B, 4); `falling` ones
    run from (0, 1) to (1, 0): the y of s is that of 1 - s.
    """
    s = np.linspace(0, 1, CURVE_POINTS)
    weights = np.stack((3 * (1 - s) ** 2 * s, 3 * (1 - s) * s**2))  # of the two inner points; the outer are 0 and 1
    curves = points.reshape(-1, 2, 2).transpose(0, 2, 1) @ weights + s**3  # B, (x, y), CURVE_POINTS
    curves[falling, 1] = curves[falling, 1, ::-1]
    across, up = (part.contiguous() for part in upload(curves, x.device).unbind(1))
    values = x.flatten(1).double()
    right = torch.searchsorted(across, values, right=True).clamp(1, CURVE_POINTS - 1)
    x0, x1, y0, y1 = (curve.gather(1, right - back) for curve in (across, up) for back in (1, 0))
    share = ((values - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(y0, y1, share).view_as(x).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------- painting


def in_painted(shape: Shape, rng: np.random.Generator) -> BoolArray:
    """Return the places of up to five blocks, with sides of a sixth to a third: what is in them becomes noise."""
    count = going_on(IN_PAINT_BLOCKS, rng)
    return covered(shape, [(n // 6, n // 3) for n in shape], count, rng)


def out_painted(shape: Shape, rng: np.random.Generator) -> BoolArray:
    """Return the places outside of one to five windows, with sides of 3/7 to 4/7: these become noise."""
    count = 1 + going_on(OUT_PAINT_WINDOWS - 1, rng)
    return ~covered(shape, [(n - 4 * n // 7, n - 3 * n // 7) for n in shape], count, rng)


def going_on(most: int, rng: np.random.Generator) -> int:
    """Draw the number of blocks: another one while the chance PAINT_ON comes true, up to `most`."""
    return int(np.logical_and.accumulate(rng.random(most) < PAINT_ON).sum())


def covered(shape: Shape, sides: list[tuple[int, int]], count: int, rng: np.random.Generator) -> BoolArray:
    """Return the voxels in any of `count` blocks whose sides are drawn from `sides` (both ends included)."""
    inside = np.zeros(shape, np.bool_)
    for _ in range(count):
        block = []
        for n, (low, high) in zip(shape, sides, strict=True):
            side = int(rng.integers(low, high + 1))
            margin = min(MARGIN, (n - side) // 2)
            start = int(rng.integers(margin, n - side - margin + 1))
            block.append(slice(start, start + side))
        inside[tuple(block)] = True
    return inside
