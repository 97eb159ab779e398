"""Parameters of a view, drawn on the host before any pixel is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class View(NamedTuple):
    """One view of a batch."""

    pixels: Tensor  # (B, C, size, size), C 3 for colours, float32 in [0, 1], channels_last
    boxes: Tensor  # (B, 4) float32: top, left, height, width of the crop as fractions of the image
    flipped: Tensor  # (B,) bool: the crop was mirrored left to right


class Step(NamedTuple):
    """One transform of a view, and for which samples."""

    name: str
    transform: Callable[[Tensor, Tensor], Tensor]  # (b, 3, S, S), (b, P) -> (b, 3, S, S)
    chosen: NDArray[np.bool_]  # (B,)
    parameters: NDArray[np.float32]  # (B, P)
    unchanged: float | tuple[float, ...]  # parameters that leave a sample as it is, to rounding


class Drawn(NamedTuple):
    """One view of each image of a batch."""

    boxes: NDArray[np.int64]  # (B, 4) px
    flipped: NDArray[np.bool_]  # (B,)
    steps: list[Step]  # in this order


def blur_kernel(size: int) -> int:
    """A tenth of the view (SimCLR), made odd, at least 3 px."""
    return max(size // 10 | 1, 3)
