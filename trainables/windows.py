"""Overlapping windows over a whole image: where they lie, how their logits are weighted, and the mean of these.

The rule of nnU-Net (Isensee et al. 2021) and MONAI's `sliding_window_inference`: windows of one size lie evenly along
each side, neighbours share at least `overlap` of one, and a pixel's logits are the weighted mean of those that all
windows over it give. A pixel is scored once, however many windows see it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.views.joint import evaluation_batch

SIGMA = 1 / 8  # of a window's side: standard deviation of the Gaussian (nnU-Net, MONAI)
LEAST = 1e-3  # weight of any pixel, beside 1 in the centre (MONAI)

Segment = Callable[[Tensor], Tensor]  # uint8 windows (n, S, S, C) -> logits (n, classes, S, S)


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows of `window` px along a side, evenly spread from one end to the other.

    Raises ValueError unless 1 <= window <= length and 0 <= overlap < 1.
    """
    if not 1 <= window <= length or not 0 <= overlap < 1:
        raise ValueError(f"need 1 <= tile <= {length} and 0 <= overlap < 1, got tile {window} and overlap {overlap}")
    step = max(1, window - round(window * overlap))
    count = 1 + -(-(length - window) // step)
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


@functools.lru_cache(maxsize=16)
def importance(size: int, weights: str) -> Tensor:
    """(S, S) float32, 1 in the centre: the weight of each pixel of a window."""
    if weights == "uniform":
        return torch.ones(size, size)
    distance = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    along = torch.exp(-0.5 * (distance / (SIGMA * size)) ** 2)
    return torch.outer(along, along).clamp(min=LEAST).float()


def slide(image: Tensor, size: int, settings: schema.Evaluate, segment: Segment, at_once: int) -> Tensor:
    """Logits (classes, H, W) of an image (H, W, C) uint8, both sides of which are at least `size` px.

    `segment` takes at most `at_once` windows.
    """
    return torch.cat(list(bands(image, size, settings, segment, at_once)), dim=1)


def bands(image: Tensor, size: int, settings: schema.Evaluate, segment: Segment, at_once: int) -> Iterator[Tensor]:
    """The same from top to bottom, as rows (classes, h, W) that no later window changes."""
    height, width = image.shape[:2]
    columns, rows = starts(width, size, settings.overlap), starts(height, size, settings.overlap)
    weight = importance(size, settings.weights).to(image.device)
    share = torch.zeros(size, width, device=image.device)
    total = share[None]
    for y, below in pairwise([*rows, height]):
        for part in (columns[first : first + at_once] for first in range(0, len(columns), at_once)):
            logits = segment(torch.stack([image[y : y + size, x : x + size] for x in part])).float()
            total = total if len(total) == logits.shape[1] else logits.new_zeros(logits.shape[1], size, width)
            for x, own in zip(part, logits, strict=True):
                total[:, :, x : x + size] += own * weight
                share[:, x : x + size] += weight
        ready = below - y
        yield total[:, :ready] / share[:ready]
        total, share = (F.pad(held[..., ready:, :], (0, 0, 0, ready)) for held in (total, share))


def segmenting(network: nn.Module) -> Segment:
    """The network on windows."""

    def segment(windows: Tensor) -> Tensor:
        empty = torch.zeros(windows.shape[:3], dtype=torch.uint8, device=windows.device)
        logits: Tensor = network(evaluation_batch(windows, empty, windows.shape[1])[0])
        return logits

    return segment
