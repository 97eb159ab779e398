"""Images much larger than those of the study, in tiles: the overlap-tile strategy of the U-Net.

Ronneberger, Fischer, Brox: "U-Net", MICCAI 2015, Figure 2: neighbouring tiles overlap, and each pixel is taken from the
tile in which it lies further from the edge. Nothing but the mask is kept whole, so memory does not grow with classes.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pretune.model.predict import Mask, Model, logits_of_tiles, mask_of, windowed_logits
from pretune.model.spans import stacked
from pretune.trainables.data.decode.images import Bands


def tiled_mask(model: Model, image: Image.Image | Bands, tile: int, overlap: float) -> Mask:
    """Class indices (height, width) of an image, by `logits_of_tiles`."""
    pixels = np.asarray(image) if isinstance(image, Image.Image) else stacked(image)
    height, width = pixels.shape[:2]
    mask = np.zeros((max(height, tile), max(width, tile)), np.uint8)
    for y, x, logits in logits_of_tiles(model, pixels, tile, overlap):
        mask[y.own, x.own] = mask_of(model, logits, (tile, tile))[y.inside, x.inside]
    return mask[:height, :width]


def windowed_mask(model: Model, image: Bands) -> Mask:
    """Class indices (height, width) of an image, by `windowed_logits`."""
    rows = [logits.argmax(dim=0).to(torch.uint8).numpy() for logits in windowed_logits(model, image)]
    return np.concatenate(rows)
