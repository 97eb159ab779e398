"""One entry of a listing -> its image and its mask as squares of one size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.constants import IGNORE
from pretune.trainables.data.decode.fitting import Fit, fit_bands, fit_mask, size_of
from pretune.trainables.data.decode.images import TRANSPARENT, Bands, read_bands
from pretune.trainables.data.decode.masks import read_color_mask, read_mask, read_threshold_mask
from pretune.trainables.data.decode.opening import TURNED, Source
from pretune.trainables.data.decode.palettes import PALETTE, Palette
from pretune.trainables.data.errors import BadFileError
from pretune.trainables.data.listing import Box, Entry, Listing, Member, Pack, Reading, file_of, relative_name

Read = TypeVar("Read")
Unpack = Callable[[Path], Pack]

REMEMBERED = 4  # whole images and masks while their tiles are cut


class Decoded(NamedTuple):
    """(S, S, 3) and (S, S) uint8; or, where `problems` is not empty, nothing to be used."""

    image: NDArray[np.uint8] | None
    mask: NDArray[np.uint8] | None
    problems: tuple[str, ...]
    transparent: bool = False  # whether part of the image was laid over black
    palette: Palette | None = None  # of the mask's file: the indices that occur


def decode(entry: Entry, listing: Listing, unpack: Unpack | None, size: int, fit: Fit) -> Decoded:
    """Read an entry's files and fit them to `size` px. Problems are returned, named relative to the listing's root.

    `unpack` opens the files that hold many images; it may remember them.
    """
    problems: list[str] = []
    wanted = (size, fit) if entry.box is None else None
    tile = entry.box is not None and fit == "tile"
    read: Callable[[], Bands] = partial(_image, entry.image, unpack, wanted, listing.reading)
    bands = _attempt(
        partial(_remembered, (*_stamp(entry.image), listing.reading), read) if tile else read,
        entry.image,
        listing.root,
        problems,
    )
    image = None if bands is None else bands[0]
    mask = None
    if entry.mask is not None:
        read_it: Callable[[], Image.Image] = partial(_mask, entry.mask, listing, unpack)
        if tile:
            read_it = partial(_remembered, (*_stamp(entry.mask), *_meaning(listing)), read_it)
        mask = _attempt(read_it, entry.mask, listing.root, problems)
    if image is not None and mask is not None and size_of(image) != mask.size:
        problems.append(f"{relative_name(entry.mask, listing.root)}: {_sizes(mask, image)}")
    elif image is not None and mask is not None and _ambiguous(image):
        problems.append(
            f"{relative_name(entry.image, listing.root)}: turned by EXIF orientation {image.info[TURNED]}, and nothing "
            "shows whether its mask was drawn on the turned image; save the image upright"
        )
    if bands is None or image is None or problems:
        return Decoded(None, None, tuple(problems))
    fitted = None if mask is None else np.asarray(fit_mask(_cut_mask(mask, entry.box), size, fit))
    palette = None if mask is None else mask.info.get(PALETTE)
    pixels = fit_bands([_cut(band, entry.box) for band in bands], size, fit)
    return Decoded(pixels, fitted, (), TRANSPARENT in image.info, palette)


def _attempt(read: Callable[[], Read], source: Path | Member, root: Path, problems: list[str]) -> Read | None:
    try:
        return read()
    except BadFileError as error:
        problems.append(error.of(relative_name(source, root)))
        return None


def _sizes(mask: Image.Image, image: Image.Image) -> str:
    width, height = size_of(image)
    return (
        f"the mask is {mask.width}x{mask.height}, its image {width}x{height}; "
        "they must have equal size (after EXIF orientation)"
    )


def _ambiguous(image: Image.Image) -> bool:
    """Whether the image was turned in a way that leaves its size as it was, so that a mask's size tells nothing."""
    orientation = image.info.get(TURNED, 1)
    width, height = size_of(image)
    return orientation in (2, 3, 4) or (orientation > 4 and width == height)


_HELD: dict[Any, Any] = {}  # whole images and masks, of which tiles are cut one after the other
_LOCK = threading.Lock()


def _remembered(key: Any, read: Callable[[], Read]) -> Read:
    """Read once for all tiles of an image: they come in turn, on several threads."""
    with _LOCK:
        if key not in _HELD:
            while len(_HELD) >= REMEMBERED:
                _HELD.pop(next(iter(_HELD)))
            _HELD[key] = read()
        found: Read = _HELD[key]
        return found


def _stamp(source: Path | Member) -> tuple[Any, ...]:
    """A file and its state: one that was changed is read anew."""
    try:
        return source, file_of(source).stat().st_mtime_ns
    except OSError:
        return source, 0


def _meaning(listing: Listing) -> tuple[Any, ...]:
    """Return what decides how a mask is read."""
    values = tuple(sorted((listing.mask_values or {}).items()))
    return values, listing.mask_colors, listing.mask_threshold, listing.reading.page


def _image(source: Path | Member, unpack: Unpack | None, wanted: tuple[int, Fit] | None, reading: Reading) -> Bands:
    return read_bands(_source(source, unpack, False), wanted, reading)


def _mask(source: Path | Member, listing: Listing, unpack: Unpack | None) -> Image.Image:
    read, page = _source(source, unpack, True), listing.reading.page
    if listing.mask_colors is not None:
        return read_color_mask(read, listing.mask_colors, page)
    if listing.mask_threshold is not None:
        return read_threshold_mask(read, listing.mask_threshold, page)
    return read_mask(read, listing.mask_values or {}, page)


def _source(source: Path | Member, unpack: Unpack | None, mask: bool) -> Source:
    if not isinstance(source, Member):
        return source
    if unpack is None:
        raise BadFileError("no reader for files that hold many images")
    pack = unpack(source.file)
    rows = pack.masks if mask else pack.images
    if rows is None:
        raise BadFileError("the file holds no masks")
    return rows[source.row]


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    """The part in the box; black where that is beyond the image."""
    return image if box is None else image.crop(box)


def _cut_mask(mask: Image.Image, box: Box | None) -> Image.Image:
    """The part in the box; IGNORE where that is beyond the mask."""
    if box is None:
        return mask
    left, top, right, bottom = box
    cut = Image.new("L", (right - left, bottom - top), IGNORE)
    cut.paste(mask.crop((left, top, min(right, mask.width), min(bottom, mask.height))))
    return cut
