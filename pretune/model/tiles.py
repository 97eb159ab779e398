"""Images much larger than those of the study, in tiles: the overlap-tile strategy of the U-Net.

Ronneberger, Fischer, Brox: "U-Net", MICCAI 2015, Figure 2: neighbouring tiles overlap, and each pixel is taken from the
tile in which it lies further from the edge. Nothing but the mask is kept whole, so memory does not grow with classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from pretune.model.predict import Mask, Model, logits_of, mask_of, prepare
from pretune.trainables.data.decode import Bands

_BATCH = 16  # tiles put through the network together


class Span(NamedTuple):
    """A tile along one side of an image: it begins at `start`, and pixels `first` to `end` (exclusive) are its own."""

    start: int
    first: int
    end: int


def spans(length: int, tile: int, overlap: float) -> list[Span]:
    """Evenly spread tiles of `tile` px, neighbours sharing at least `overlap` of one; borders halve what is shared.

    Raises ValueError unless 1 <= tile <= length and 0 <= overlap < 1.
    """
    if not 1 <= tile <= length or not 0 <= overlap < 1:
        raise ValueError(f"need 1 <= tile <= {length} and 0 <= overlap < 1, got tile {tile} and overlap {overlap}")
    step = max(1, tile - round(tile * overlap))
    count = 1 + -(-(length - tile) // step)
    starts = [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]
    borders = [(left + tile + right) // 2 for left, right in pairwise(starts)]
    return [Span(*span) for span in zip(starts, [0, *borders], [*borders, length], strict=True)]


def tiled_mask(model: Model, image: Image.Image | Bands, tile: int, overlap: float) -> Mask:
    """Class indices (height, width) of an image, each tile segmented as if it were an image of its own.

    An image smaller than a tile is continued by its mirror image, so that all things keep their size.
    """
    pixels = np.asarray(image) if isinstance(image, Image.Image) else stacked(image)
    height, width = pixels.shape[:2]
    missing = [(0, max(0, tile - height)), (0, max(0, tile - width)), (0, 0)]
    pixels = np.pad(pixels, missing, mode="symmetric")
    mask = np.zeros(pixels.shape[:2], np.uint8)
    places = [(y, x) for y in spans(pixels.shape[0], tile, overlap) for x in spans(pixels.shape[1], tile, overlap)]
    for first in range(0, len(places), _BATCH):
        part = places[first : first + _BATCH]
        cut = [bands_of(pixels[y.start : y.start + tile, x.start : x.start + tile], model) for y, x in part]
        logits = logits_of(model, [prepare(model, square) for square in cut])
        for (y, x), scores in zip(part, logits, strict=True):
            own = mask_of(model, scores, (tile, tile))
            mask[y.first : y.end, x.first : x.end] = own[
                y.first - y.start : y.end - y.start, x.first - x.start : x.end - x.start
            ]
    return mask[:height, :width]


def stacked(bands: Bands) -> Mask:
    """(H, W, 3) of one image of three colours, (H, W, C) of grey ones."""
    return np.asarray(bands[0]) if bands[0].mode == "RGB" else np.stack([np.asarray(band) for band in bands], axis=-1)


def bands_of(pixels: Mask, model: Model) -> Bands:
    """The reverse, as the model's images were read."""
    if model.reading.channels is None:
        return (Image.fromarray(pixels),)
    return tuple(Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, -1, 0))
