"""Images much larger than those of the study, in tiles: the overlap-tile strategy of the U-Net.

Ronneberger, Fischer, Brox: "U-Net", MICCAI 2015, Figure 2: neighbouring tiles overlap, and each pixel is taken from the
tile in which it lies further from the edge. Nothing but the mask is kept whole, so memory does not grow with classes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pretune.model.predict import Mask, Model, logits_of, mask_of, prepare
from pretune.model.spans import bands_of, spans, stacked
from pretune.trainables.data.decode import Bands

_BATCH = 16  # tiles put through the network together


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
        cut = [bands_of(pixels[y.start : y.start + tile, x.start : x.start + tile], model.reading) for y, x in part]
        logits = logits_of(model, [prepare(model, square) for square in cut])
        for (y, x), scores in zip(part, logits, strict=True):
            own = mask_of(model, scores, (tile, tile))
            mask[y.first : y.end, x.first : x.end] = own[
                y.first - y.start : y.end - y.start, x.first - x.start : x.end - x.start
            ]
    return mask[:height, :width]
