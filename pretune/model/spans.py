"""Places of overlapping tiles along the sides of an image, and an image as one array to cut them from."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.decode.images import Bands
from pretune.trainables.data.listing import Reading
from pretune.trainables.windows import starts


class Span(NamedTuple):
    """A tile along one side of an image: it begins at `start`, and pixels `first` to `end` (exclusive) are its own."""

    start: int
    first: int
    end: int

    @property
    def own(self) -> slice:
        """Its own pixels, in the image."""
        return slice(self.first, self.end)

    @property
    def inside(self) -> slice:
        """The same in the tile."""
        return slice(self.first - self.start, self.end - self.start)


def spans(length: int, tile: int, overlap: float) -> list[Span]:
    """Evenly spread tiles of `tile` px, neighbours sharing at least `overlap` of one; borders halve what is shared.

    Raises ValueError unless 1 <= tile <= length and 0 <= overlap < 1.
    """
    first = starts(length, tile, overlap)
    borders = [(left + tile + right) // 2 for left, right in pairwise(first)]
    return [Span(*span) for span in zip(first, [0, *borders], [*borders, length], strict=True)]


def stacked(bands: Bands) -> NDArray[np.uint8]:
    """(H, W, 3) of one image of three colours, (H, W, C) of grey ones."""
    return np.asarray(bands[0]) if bands[0].mode == "RGB" else np.stack([np.asarray(band) for band in bands], axis=-1)


def bands_of(pixels: NDArray[np.uint8], reading: Reading) -> Bands:
    """The reverse, as images were read."""
    if reading.channels is None:
        return (Image.fromarray(pixels),)
    return tuple(Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, -1, 0))
