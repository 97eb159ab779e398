"""Palettes of masks: the colours of their indices, and whether two files disagree about one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.decode.opening import Source, open_image
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing, relative_name

Palette = Mapping[int, tuple[int, ...]]  # index -> red, green, blue

PALETTE = "pretune:palette"  # in a mask's info: the colours of the indices that occur in its file


def palette_of(source: Source) -> Palette:
    """The colours of the indices that occur in a palette image; {} of others. Raises BadFileError."""
    image = open_image(source)
    return palette_in(image, np.asarray(image)) if image.mode == "P" else {}


def palette_in(image: Image.Image, indices: NDArray[np.uint8]) -> Palette:
    """The colours of the `indices` (H, W) that occur, as far as the image's palette has them."""
    colors = image.getpalette("RGB") or []
    held = np.flatnonzero(np.bincount(indices.ravel())).tolist()
    return {index: tuple(colors[3 * index : 3 * index + 3]) for index in held if 3 * index + 3 <= len(colors)}


class Palettes:
    """The colours of mask indices in one file after another: where two files differ, no index says what it means."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._first: dict[int, tuple[tuple[int, ...], str]] = {}  # index -> colour, and the file that has it

    def check(self, entry: Entry, palette: Palette | None) -> None:
        """Raises DataError naming two masks that give one index two colours."""
        if not self._listing.palettes or palette is None:
            return
        name = relative_name(entry.mask, self._listing.root)
        for index, color in palette.items():
            before, other = self._first.setdefault(index, (color, name))
            if before != color:
                raise DataError(
                    f"{self._listing.root}: index {index} is colour {list(before)} in the palette of {other}, and "
                    f"{list(color)} in that of {name}, so that an index is no class; say which colour is which class "
                    "by `mask_colors:`, or, where the indices are right whatever their colours, name them by "
                    "`mask_values:`"
                )
