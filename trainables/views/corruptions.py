"""ConRec's corruptions, batched: pixels shuffled in small blocks, blocks painted over, or all but a few windows.

Dippel et al. 2021 and their public code (contrastive-reconstruction, `augmentations/masking.py`), after Models Genesis
(Zhou et al. 2019). Every image gets one of the three, a third each; counts, sides and chances are that code's. Its
bounds exclude the upper end, as here. Sides are shares of the view's; where a view is too small to leave 3 px around a
block, the block may touch the edge.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.trainables.upload import upload
from pretune.trainables.views.random import Draw, DrawHere, FloatArray, IntArray

SHARES = (0.33, 0.66)  # below the first: shuffle; below the second: in-paint; above: out-paint
SHUFFLE_BLOCKS, SHUFFLE_SIDE, SHUFFLE_ON = 15, 0.2, 0.99  # ON: the chance to go on to the next block
PAINT_BLOCKS, PAINT_SIDES, PAINT_ON = 5, (0.14, 0.2), 0.95
MARGIN = 3  # px


class Corrupted(NamedTuple):
    pixels: Tensor  # (B, 3, S, S)
    mask: Tensor  # (B, 1, S, S) bool: where the corruption is, whatever the pixels there came to be


class Blocks(NamedTuple):
    """Up to n rectangles of each image, in px; all arrays (B, n)."""

    top: IntArray
    left: IntArray
    height: IntArray
    width: IntArray
    used: NDArray[np.bool_]


def corrupt(x: Tensor, draw: Draw, here: DrawHere | None = None) -> Corrupted:
    """One of the three corruptions for each image of (B, 3, S, S) in [0, 1]; what it is depends on its own draws.

    `here` draws what an accelerator needs in numbers, on it.
    """
    kind = np.searchsorted(SHARES, draw("kind", 1)[:, 0], side="right")
    pixels, mask = x.clone(), torch.zeros_like(x[:, :1], dtype=torch.bool)
    for number, corruption in enumerate((shuffle_pixels, in_paint, out_paint)):
        if len(rows := np.flatnonzero(kind == number)):
            where = upload(rows, x.device)
            if corruption is shuffle_pixels and here is not None and x.device.type != "cpu":
                orders = here("shuffle/order", _keys_of_shuffling(x.shape[-1]))[where]
                pixels[where], mask[where] = shuffle_on_device(x[where], _of_rows(draw, rows), orders)
            else:
                pixels[where], mask[where] = corruption(x[where], _of_rows(draw, rows))
    return Corrupted(pixels, mask)


def _of_rows(draw: Draw, rows: IntArray) -> Draw:
    return lambda name, count: draw(name, count)[rows]


def shuffle_pixels(x: Tensor, draw: Draw) -> Corrupted:
    """Permutes the pixels of small blocks; a later block takes its pixels from the original too."""
    size = x.shape[-1]
    blocks = _shuffled_blocks(draw, size)
    keys = draw("shuffle/order", _keys_of_shuffling(size)).reshape(len(x), SHUFFLE_BLOCKS, -1)
    source = upload(shuffled_sources(blocks, keys, size), x.device)  # B, S * S
    return Corrupted(_taken(x, source), covered(blocks, size, x.device).any(dim=1, keepdim=True))


def shuffle_on_device(x: Tensor, draw: Draw, orders: Tensor) -> Corrupted:
    """The same with the keys (B, SHUFFLE_BLOCKS * P) of the order within blocks on the device of x."""
    size = x.shape[-1]
    blocks = _shuffled_blocks(draw, size)
    source = sources_on_device(blocks, orders.view(len(x), SHUFFLE_BLOCKS, -1), size)
    return Corrupted(_taken(x, source), covered(blocks, size, x.device).any(dim=1, keepdim=True))


def _longest_shuffled(size: int) -> int:
    return max(2, int(size * SHUFFLE_SIDE)) - 1


def _keys_of_shuffling(size: int) -> int:
    return SHUFFLE_BLOCKS * _longest_shuffled(size) ** 2


def _shuffled_blocks(draw: Draw, size: int) -> Blocks:
    sides = (1, _longest_shuffled(size) + 1)
    return draw_blocks(draw, "shuffle", SHUFFLE_BLOCKS, sides, size, margin=0, go_on=SHUFFLE_ON)


def _taken(x: Tensor, source: Tensor) -> Tensor:
    """Each pixel of x (B, C, S, S) from the place that source (B, S^2) names."""
    return x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1)).view(x.shape)


def sources_on_device(blocks: Blocks, keys: Tensor, size: int) -> Tensor:
    """`shuffled_sources` where the keys (B, n, P) are, all blocks at once: of each pixel the last that covers it."""
    places, device = keys.shape[-1], keys.device
    placed = _placed(blocks, device)
    top, left, height, width, _ = placed.unbind(-1)  # B, n
    inside = torch.arange(places, device=device) < (height * width)[..., None]
    order = keys.masked_fill(~inside, math.inf).argsort(dim=-1, stable=True)  # B, n, P
    numbers = torch.arange(1, keys.shape[1] + 1, device=device)[:, None, None]
    last = (_covered(placed, size) * numbers).amax(dim=1).flatten(1) - 1  # B, S^2; -1: none
    which, pixel = last.clamp(min=0), torch.arange(size * size, device=device)
    top, left, width = (part.gather(1, which) for part in (top, left, width))
    within = (pixel // size - top) * width + pixel % size - left
    origin = order.flatten(1).gather(1, which * places + within.clamp(0, places - 1))
    return torch.where(last < 0, pixel, (top + origin // width) * size + left + origin % width)


def shuffled_sources(blocks: Blocks, keys: FloatArray, size: int) -> IntArray:
    """From which pixel (row * size + column) each pixel comes, (B, size^2).

    `keys` (B, n, P) give the order within each block: its first height * width entries, sorted.
    """
    count, n, places = keys.shape
    source = np.tile(np.arange(size * size, dtype=np.int64), (count, 1))
    place = np.arange(places)
    for k in range(n):
        top, left, height, width, used = (part[:, k, None] for part in blocks)  # each (B, 1)
        inside = place < height * width  # B, P
        order = np.argsort(np.where(inside, keys[:, k], np.inf), axis=1, kind="stable")
        to, origin = ((top + i // width) * size + left + i % width for i in (place, order))
        rows, columns = np.nonzero(inside & used)
        source[rows, to[rows, columns]] = origin[rows, columns]
    return source


def in_paint(x: Tensor, draw: Draw) -> Corrupted:
    """Paints a few blocks over, each in a random colour, a later one over an earlier."""
    size = x.shape[-1]
    sides = (int(size * PAINT_SIDES[0]), int(size * PAINT_SIDES[1]))
    blocks = draw_blocks(draw, "in-paint", PAINT_BLOCKS, (max(1, sides[0]), sides[1]), size, MARGIN, PAINT_ON)
    inside = covered(blocks, size, x.device)  # B, n, S, S
    channels = x.shape[1]
    colors = upload(draw("in-paint/colors", PAINT_BLOCKS * channels), x.device).to(x.dtype)
    colors = colors.view(len(x), PAINT_BLOCKS, channels, 1, 1)
    for k in range(PAINT_BLOCKS):
        x = torch.where(inside[:, k, None], colors[:, k], x)
    return Corrupted(x, inside.any(dim=1, keepdim=True))


def out_paint(x: Tensor, draw: Draw) -> Corrupted:
    """Keeps a few windows of 4/7 to 5/7 of the side, at least one, and paints the rest in one random colour."""
    size = x.shape[-1]
    sides = (size - 3 * size // 7 + 1, size - 2 * size // 7 + 1)  # S - i for i in [2S/7, 3S/7)
    blocks = draw_blocks(draw, "out-paint", PAINT_BLOCKS, sides, size, MARGIN, PAINT_ON, always_first=True)
    kept = covered(blocks, size, x.device).any(dim=1, keepdim=True)
    color = upload(draw("out-paint/color", x.shape[1]), x.device).to(x.dtype).view(len(x), -1, 1, 1)
    return Corrupted(torch.where(kept, x, color), ~kept)


def draw_blocks(
    draw: Draw,
    name: str,
    count: int,
    sides: tuple[int, int],
    size: int,
    margin: int,
    go_on: float,
    always_first: bool = False,
) -> Blocks:
    """Blocks with sides in [sides[0], sides[1]), placed `margin` px from the edges where there is room.

    A block is used if the chance `go_on` came true for it and for all before it (`always_first`: not asked of the
    first).
    """
    draws = draw(f"{name}/blocks", 5 * count).reshape(-1, count, 5)
    height, width = (integers(draws[..., i], *sides) for i in (0, 1))
    top, left = (_position(draws[..., 2 + i], size - side, margin) for i, side in enumerate((height, width)))
    goes_on = draws[..., 4] < go_on
    goes_on[:, 0] |= always_first
    return Blocks(top, left, height, width, np.logical_and.accumulate(goes_on, axis=1))


def _position(draws: FloatArray, room: IntArray, margin: int) -> IntArray:
    low = np.minimum(margin, room // 2)
    return integers(draws, low, room - low)


def integers(draws: FloatArray, low: IntArray | int, high: IntArray | int) -> IntArray:
    """Whole numbers in [low, high) from draws in [0, 1); where that is empty, low."""
    return (low + np.floor(draws * np.maximum(np.subtract(high, low), 1))).astype(np.int64)


def covered(blocks: Blocks, size: int, device: torch.device) -> Tensor:
    """Return the pixels that each used block covers, (B, n, size, size) bool."""
    return _covered(_placed(blocks, device), size)


def _placed(blocks: Blocks, device: torch.device) -> Tensor:
    """The blocks as one tensor, (B, n, 5) int64."""
    return upload(np.stack(blocks, axis=-1).astype(np.int64), device)


def _covered(placed: Tensor, size: int) -> Tensor:
    top, left, height, width, used = placed[..., None].unbind(-2)  # each B, n, 1
    place = torch.arange(size, device=placed.device)
    rows = (place >= top) & (place < top + height) & (used > 0)  # B, n, S
    columns = (place >= left) & (place < left + width)
    return rows[..., :, None] & columns[..., None, :]
