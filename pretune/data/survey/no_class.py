"""Values and colours of masks that look like no class: borders between classes, and pixels without a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

REACH = 3  # px to each side: a line up to twice as wide has no inner pixel
LOOKED_AT = 512  # px that the shorter side of a mask is brought to at most, by leaving out pixels
INNER = 0.02  # share of inner pixels up to which a value is thin
BETWEEN = 0.9  # share of a border's pixels that have two other values near
VOC_BORDER = 0xE0E0C0  # the colour of index 255 in VOC's palette, which annotation tools use too
FEWEST = 4  # colours from which on a rare black may mean "no label"


def no_class(shares: Mapping[int, float], in_color: bool, masks: Iterable[NDArray[np.int32]]) -> tuple[int, str] | None:
    """The value that looks least like a class, and why; None if all look like one.

    Args:
        shares: value -> its share of all pixels; colours as one number each, 0xRRGGBB.
        masks: some of them (H, W), which are read only if there are three values or more.
    """
    if len(shares) < 3:
        return None
    if in_color and VOC_BORDER in shares:
        return VOC_BORDER, "is VOC's colour of borders and pixels without a label"
    if borders := thin_borders(masks):
        return max(borders, key=lambda value: shares.get(value, 0.0)), "is only a thin line between others"
    if in_color and len(shares) >= FEWEST and 0 < shares.get(0, 0.0) < 1 / len(shares):
        return 0, "is black, which often means pixels without a label"
    return None


def thin_borders(masks: Iterable[NDArray[np.int32]]) -> set[int]:
    """Values of (H, W) masks that only stand as thin lines between two others."""
    pixels, inner, between = Counter[int](), Counter[int](), Counter[int]()
    for full in masks:
        stride = max(1, min(full.shape) // LOOKED_AT)
        mask = full[::stride, ::stride]
        pixels.update(_counts(mask))
        inner.update(_counts(mask[_uniform(mask)]))
        between.update(_between(mask))
    return {
        value for value, count in pixels.items() if inner[value] <= INNER * count and between[value] >= BETWEEN * count
    }


def _counts(values: NDArray[np.int32]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _uniform(mask: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(H, W): pixels around which all others have their value."""
    from scipy import ndimage  # takes long to import

    side = 2 * REACH + 1
    same: NDArray[np.bool_] = ndimage.maximum_filter(mask, side) == ndimage.minimum_filter(mask, side)
    return same


def _between(mask: NDArray[np.int32]) -> dict[int, int]:
    """Value -> its pixels that have two different other values no further away than a thin line is wide."""
    from scipy import ndimage

    side, limits, found = 2 * (2 * REACH + 1) + 1, np.iinfo(np.int32), {}
    for value in np.unique(mask).tolist():
        here = mask == value
        lowest = ndimage.minimum_filter(np.where(here, limits.max, mask), side)[here]
        highest = ndimage.maximum_filter(np.where(here, limits.min, mask), side)[here]
        found[value] = int((lowest < highest).sum())
    return found
