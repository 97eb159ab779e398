"""Fitting of decoded images and masks to a square of pixels, by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.constants import IGNORE

Fit = Literal["squash", "pad", "crop", "tile"]  # a tile is a square already

SHRUNK = "pretune:shrunk"  # in an image's info: its size (width, height), and by what it was divided while decoded


def size_of(image: Image.Image) -> tuple[int, int]:
    """Width and height (px) of the image in its file, which `read_image` may have decoded smaller."""
    size: tuple[int, int] = image.info.get(SHRUNK, (image.size, 1))[0]
    return size


def shrink(image: Image.Image, size: int, fit: Fit, turned: bool) -> int:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size where that is still larger than what is wanted: by how much.

    Leaves the scaling to libjpeg, which computes the smaller blocks alone, and an antialiased resize to follow.
    """
    short, long = sorted(image.size)
    room = (long if fit == "pad" else short) / (size + 1)
    by = next((by for by in (8, 4, 2) if room >= by), 1)
    if by == 1 or image.format != "JPEG":
        return 1
    if turned and any(side % by for side in image.size):  # the part of a pixel too much would lie at the wrong end
        return 1
    width, height = image.size
    drafted = image.draft(None, (max(1, width // by), max(1, height // by)))
    return 1 if drafted is None else round(width / drafted[1][2])


def fit_bands(bands: Sequence[Image.Image], size: int, fit: Fit) -> NDArray[np.uint8]:
    """(size, size, 3) of one image of three colours, (size, size, C) of grey ones; each as `fit_image`."""
    fitted = [np.asarray(fit_image(band, size, fit)) for band in bands]
    return fitted[0] if fitted[0].ndim == 3 else np.stack(fitted, axis=-1)


def fit_image(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """To size x size, antialiased. squash: both sides; pad: the rest black; crop: the centre square."""
    return _fit(image, size, fit, Image.Resampling.BILINEAR, padding=0)


def fit_mask(mask: Image.Image, size: int, fit: Fit) -> Image.Image:
    """As `fit_image`, by nearest neighbour; padding becomes IGNORE."""
    return _fit(mask, size, fit, Image.Resampling.NEAREST, padding=IGNORE)


def without_padding(mask: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """The part (H, W) of a fitted mask (S, S) that shows its image; all of a mask that is IGNORE everywhere.

    Ignored lines of the image itself that touch the padding are taken for padding.
    """
    held = mask != IGNORE
    rows, columns = (np.flatnonzero(held.any(axis=axis)) for axis in (1, 0))
    if fit not in ("pad", "tile") or not len(rows):
        return mask
    if fit == "tile":  # padded below and on the right
        return mask[: rows[-1] + 1, : columns[-1] + 1]
    size = len(mask)
    above, left = (min(seen[0], size - 1 - seen[-1]) for seen in (rows, columns))
    if above >= left:  # an image is padded on two opposite sides, with a line more on the second of them at most
        return mask[above : max(rows[-1] + 1, size - above - 1)]
    return mask[:, left : max(columns[-1] + 1, size - left - 1)]


def _fit(image: Image.Image, size: int, fit: Fit, resample: Image.Resampling, padding: int) -> Image.Image:
    if fit == "pad":
        return _pad(image, size, resample, padding)
    whole, by = image.info.get(SHRUNK, (image.size, 1))
    width, height = whole
    short = min(whole)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    return image.resize((size, size), resample, box=_divided(box, by), reducing_gap=3.0)


def _pad(image: Image.Image, size: int, resample: Image.Resampling, padding: int) -> Image.Image:
    whole, by = image.info.get(SHRUNK, (image.size, 1))
    scale = size / max(whole)
    width, height = (max(1, round(side * scale)) for side in whole)
    square = Image.new(image.mode, (size, size), (padding, padding, padding) if image.mode == "RGB" else padding)
    fitted = image.resize((width, height), resample, box=_divided((0.0, 0.0, *whole), by), reducing_gap=3.0)
    square.paste(fitted, ((size - width) // 2, (size - height) // 2))
    return square


def _divided(box: tuple[float, float, float, float], by: int) -> tuple[float, float, float, float]:
    """The same part of an image that was decoded at 1 / `by` of its size."""
    left, top, right, bottom = box
    return left / by, top / by, right / by, bottom / by
