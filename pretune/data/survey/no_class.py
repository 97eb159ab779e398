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
# Of a trimap's border, which is wider, and keeps the others from touching. Pets at 128 px: 0.08, 0.86, 0.
WIDE_INNER, WIDE_BETWEEN, TOUCHING = 0.3, 0.6, 0.02
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
    if borders := borders_among(masks):
        return max(borders, key=lambda value: shares.get(value, 0.0)), "forms only borders between other values"
    if in_color and len(shares) >= FEWEST and 0 < shares.get(0, 0.0) < 1 / len(shares):
        return 0, "is black, which often means pixels without a label"
    return None


def borders_among(masks: Iterable[NDArray[np.int32]]) -> set[int]:
    """Values of (H, W) masks that stand as thin lines between two others, or as wider ones that part all others."""
    pixels, inner, between, edges, at_edges = Counter[int](), Counter[int](), Counter[int](), 0, Counter[int]()
    for full in masks:
        stride = max(1, min(full.shape) // LOOKED_AT)
        mask = full[::stride, ::stride]
        pixels.update(_counts(mask))
        inner.update(_counts(mask[_uniform(mask)]))
        between.update(_between(mask))
        unlike = _unlike_neighbours(mask)
        edges += len(unlike)
        at_edges.update(_counts(unlike))

    def thin(value: int, most_inner: float, least_between: float) -> bool:
        return inner[value] <= most_inner * pixels[value] and between[value] >= least_between * pixels[value]

    return {
        value
        for value in pixels
        if thin(value, INNER, BETWEEN)
        or (thin(value, WIDE_INNER, WIDE_BETWEEN) and at_edges[value] >= (1 - TOUCHING) * edges)
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


def _unlike_neighbours(mask: NDArray[np.int32]) -> NDArray[np.int32]:
    """(E, 2): values of each pair of neighbours, in a row or a column, that differ."""
    sides = ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]))
    pairs = np.concatenate([np.stack([one.ravel(), other.ravel()], axis=1) for one, other in sides])
    unlike: NDArray[np.int32] = pairs[pairs[:, 0] != pairs[:, 1]]
    return unlike


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
