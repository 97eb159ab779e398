"""Region views: every view of an image is cut from one random region of it (P4's SAMCLR).

P4 keeps SAM's coarsest regions, drops small ones, multiplies height and width of a region's box by 1.3 and draws both
views inside one random region. How "coarsest" is decided, and that an image without a region that is large enough
falls back to the whole image, is this project's choice: P4 has no public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.views.random import FloatArray

Windows = NDArray[np.int64]  # (B, 4): top, left, height, width in px


def uses_regions(recipes: Sequence[schema.Views]) -> bool:
    """Whether any view is to be cut from a region."""
    return any(recipe.within == "region" for recipe in recipes)


def region_table(regions: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Boxes and areas of all regions: maps (N, H, W), 0 no region, 1..K -> (N, K, 5) top, left, height, width, area.

    A row of zeros stands where an image has no such region. K is the largest number in the maps, at least 1.
    """
    return _padded([_boxes_of(image) for image in regions])


def _padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int32]:
    table = np.zeros((len(rows), max([1, *map(len, rows)]), 5), np.int32)
    for row, boxes in zip(table, rows, strict=True):
        row[: len(boxes)] = boxes
    return table


class RegionBoxes:
    """Hands out rows of `region_table`; an image's own are computed when it is first asked for, and kept."""

    def __init__(self, regions: NDArray[np.integer[Any]]) -> None:
        self._regions = regions  # (N, H, W), memory-mapped
        self._known: dict[int, NDArray[np.int64]] = {}

    def __call__(self, indices: NDArray[np.integer[Any]]) -> Tensor:
        """(B,) image indices -> (B, K, 5) int32 on the CPU, K the largest region number of the batch, at least 1."""
        for i in indices.tolist():
            if i not in self._known:
                self._known[i] = _boxes_of(self._regions[i])
        return torch.from_numpy(_padded([self._known[i] for i in indices.tolist()]))


def _boxes_of(regions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """One map (H, W) -> (K, 5)."""
    from scipy.ndimage import find_objects  # takes long to import, and few studies have regions

    areas = np.bincount(regions.ravel())
    boxes = np.zeros((len(areas) - 1, 5), np.int64)
    for number, found in enumerate(find_objects(regions.astype(np.int32))):
        if found is not None:
            (top, bottom), (left, right) = ((part.start, part.stop) for part in found)
            boxes[number] = top, left, bottom - top, right - left, areas[number + 1]
    return boxes


def draw_windows(
    table: NDArray[np.integer[Any]], draws: FloatArray, height: int, width: int, settings: schema.Views
) -> Windows:
    """One random region's box of each image, enlarged and cut to the image.

    Args:
        table: rows of `region_table`, (B, K, 5).
        draws: (B,) in [0, 1): which of the regions that are large enough.
        height, width: of the images, px.
        settings: `region_min_area` in px of the source image, whose size `region_source_area` gives.

    Returns:
        (B, 4); the whole image where no region is large enough.
    """
    large = large_enough(table, height, width, settings)
    wanted = np.floor(draws * large.sum(axis=1)).astype(np.int64)  # the how-manieth of the large ones
    chosen = (large & (large.cumsum(axis=1) == wanted[:, None] + 1)).argmax(axis=1)
    boxes = table[np.arange(len(table)), chosen, :4].astype(np.int64)
    whole = np.array((0, 0, height, width))
    some = large.any(axis=1, keepdims=True)
    return np.where(some, enlarged(boxes, settings.region_enlarge, height, width), whole)


def large_enough(table: NDArray[np.integer[Any]], height: int, width: int, settings: schema.Views) -> NDArray[np.bool_]:
    """(B, K) which rows of `region_table` are regions that views may lie in, of images of height x width px."""
    scale = (settings.region_source_area or height * width) / (height * width)
    large: NDArray[np.bool_] = (table[..., 4] > 0) & (table[..., 4] * scale >= settings.region_min_area)
    return large


def enlarged(boxes: NDArray[np.int64], factor: float, height: int, width: int) -> Windows:
    """Boxes (B, 4) with height and width times `factor` about their centres, cut to the image."""
    start, length = boxes[:, :2], boxes[:, 2:]
    grow = (factor - 1) / 2 * length
    low = np.rint(start - grow).clip(min=0).astype(np.int64)
    high = np.minimum(np.rint(start + length + grow), (height, width)).astype(np.int64)
    return np.concatenate((low, high - low), axis=1)
