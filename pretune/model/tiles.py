"""Images much larger than those of the study, in tiles: the overlap-tile strategy of the U-Net.

Ronneberger, Fischer, Brox: "U-Net", MICCAI 2015, Figure 2: neighbouring tiles overlap, and each pixel is taken from the
tile in which it lies further from the edge. Nothing but the mask is kept whole, so memory does not grow with classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretune.model.predict import Mask, Model, logits_of, mask_of, prepare, resized_logits
from pretune.model.spans import Span, bands_of, spans, stacked
from pretune.trainables.data.decode import Bands

_BATCH = 16  # tiles put through the network together


def tiled_mask(model: Model, image: Image.Image | Bands, tile: int, overlap: float) -> Mask:
    """Class indices (height, width) of an image, each tile segmented as if it were an image of its own.

    An image smaller than a tile is continued by its mirror image, so that all things keep their size.
    """
    width, height = image.size if isinstance(image, Image.Image) else image[0].size
    mask = np.zeros((max(height, tile), max(width, tile)), np.uint8)
    for y, x, logits in _segmented(model, image, tile, overlap):
        own = mask_of(model, logits, (tile, tile))
        mask[y.first : y.end, x.first : x.end] = own[_own(y), _own(x)]
    return mask[:height, :width]


def tiled_logits(model: Model, bands: Bands, tile: int, overlap: float) -> Tensor:
    """The same as logits (classes, height, width), all of which are in memory."""
    width, height = bands[0].size
    whole = torch.zeros(len(model.classes), max(height, tile), max(width, tile))
    for y, x, logits in _segmented(model, bands, tile, overlap):
        own = resized_logits(model, logits, (tile, tile))
        whole[:, y.first : y.end, x.first : x.end] = own[:, _own(y), _own(x)].cpu()
    return whole[:, :height, :width]


def _own(span: Span) -> slice:
    """The pixels within a tile that are its own."""
    return slice(span.first - span.start, span.end - span.start)


def _segmented(
    model: Model, image: Image.Image | Bands, tile: int, overlap: float
) -> Iterator[tuple[Span, Span, Tensor]]:
    """Every tile's rows, columns and logits (classes, S, S)."""
    pixels = np.asarray(image) if isinstance(image, Image.Image) else stacked(image)
    height, width = pixels.shape[:2]
    missing = [(0, max(0, tile - height)), (0, max(0, tile - width)), (0, 0)]
    pixels = np.pad(pixels, missing, mode="symmetric")
    places = [(y, x) for y in spans(pixels.shape[0], tile, overlap) for x in spans(pixels.shape[1], tile, overlap)]
    for first in range(0, len(places), _BATCH):
        part = places[first : first + _BATCH]
        cut = [bands_of(pixels[y.start : y.start + tile, x.start : x.start + tile], model.reading) for y, x in part]
        logits = logits_of(model, [prepare(model, square) for square in cut])
        yield from ((y, x, scores) for (y, x), scores in zip(part, logits, strict=True))
