"""One file -> one square array: RGB images of any kind, masks as class indices, both fitted the same way."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pretune.trainables.constants import IGNORE
from pretune.trainables.data.channels import (
    LEAST_DEEP,
    array_header,
    channels_last,
    deep_to_eight_bit,
    eight_bit,
    is_numpy,
    raw_channels,
    read_channels,
    read_numpy,
    tiff_header,
)
from pretune.trainables.data.errors import BadFileError, DataError, UnopenedFileError
from pretune.trainables.data.image_files import NOT_A_FILE, is_file
from pretune.trainables.data.listing import PLAIN, Box, Colors, Entry, Listing, Member, Pack, Reading, file_of

Source = Path | bytes | NDArray[Any] | Image.Image  # a file, its content, or decoded pixels
Bands = tuple[Image.Image, ...]  # one image of three colours, or a grey one for each channel
Read = TypeVar("Read")
Unpack = Callable[[Path], Pack]
Fit = Literal["squash", "pad", "crop", "tile"]  # a tile is a square already

DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
MASK_MODES = frozenset({"1", "L", "P"}) | DEEP_MODES


ORIENTATION = 0x0112  # EXIF's tag
TURNED = "pretune:turned"  # in an image's info: the orientation that it was stored in
SHRUNK = "pretune:shrunk"  # in an image's info: its size (width, height), and by what it was divided while decoded
LARGEST = 1_000_000_000  # px; with three colours such an image takes 4 GB of memory while it is decoded
TRANSPARENT = "pretune:transparent"  # in an image's info: that some of it was laid over black
PALETTE = "pretune:palette"  # in a mask's info: the colours of the indices that occur in its file
REMEMBERED = 4  # whole images and masks while their tiles are cut
SUBFILE, SAMPLES = 254, 277  # TIFF's tags: kind of a page (1: smaller copy, 4: mask), channels in the file

Image.MAX_IMAGE_PIXELS = None  # Pillow refuses above 179 million; `_refuse_unfit` has our limit


Palette = Mapping[int, tuple[int, ...]]  # index -> red, green, blue


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
        problems.append(f"{_relative(entry.mask, listing.root)}: {_sizes(mask, image)}")
    elif image is not None and mask is not None and _ambiguous(image):
        problems.append(
            f"{_relative(entry.image, listing.root)}: turned by EXIF orientation {image.info[TURNED]}, and nothing "
            "shows whether its mask was drawn on the turned image; save the image upright"
        )
    if bands is None or image is None or problems:
        return Decoded(None, None, tuple(problems))
    fitted = None if mask is None else np.asarray(fit_mask(_cut_mask(mask, entry.box), size, fit))
    palette = None if mask is None else mask.info.get(PALETTE)
    pixels = fit_bands([_cut(band, entry.box) for band in bands], size, fit)
    return Decoded(pixels, fitted, (), TRANSPARENT in image.info, palette)


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


class Palettes:
    """The colours of mask indices in one file after another: where two files differ, no index says what it means."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._first: dict[int, tuple[tuple[int, ...], str]] = {}  # index -> colour, and the file that has it

    def check(self, entry: Entry, palette: Palette | None) -> None:
        """Raises DataError naming two masks that give one index two colours."""
        if not self._listing.palettes or palette is None:
            return
        name = _relative(entry.mask, self._listing.root)
        for index, color in palette.items():
            before, other = self._first.setdefault(index, (color, name))
            if before != color:
                raise DataError(
                    f"{self._listing.root}: index {index} is colour {list(before)} in the palette of {other}, and "
                    f"{list(color)} in that of {name}, so that an index is no class; say which colour is which class "
                    "by `mask_colors:`, or, where the indices are right whatever their colours, name them by "
                    "`mask_values:`"
                )


def read_bands(source: Source, wanted: tuple[int, Fit] | None = None, reading: Reading = PLAIN) -> Bands:
    """One image of three colours as `read_image` has it; where `reading` names channels, a grey image for each.

    Raises BadFileError.
    """
    if reading.channels is None:
        return (read_image(source, wanted, reading),)
    if isinstance(source, np.ndarray | Image.Image):
        pixels = eight_bit(channels_last(np.asarray(source), reading.channels), reading)
    else:
        data = _content(source)
        pixels = read_channels(data, reading, lambda: _open(data, page=reading.page))
    if pixels.shape[0] * pixels.shape[1] > LARGEST:
        raise BadFileError(f"{pixels.shape[1]}x{pixels.shape[0]} px are too many; cut it into smaller images")
    return tuple(Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0))


def read_raw_channels(path: Path, channels: int) -> NDArray[Any]:
    """(H, W, C) with the file's own numbers. Raises BadFileError."""
    data = _content(path)
    return raw_channels(data, Reading(channels=channels), lambda: _open(data))


def in_color(bands: Sequence[Image.Image]) -> Image.Image:
    """RGB image that people are shown: the first three channels as red, green and blue, one or two as grey."""
    if len(bands) == 1:
        return bands[0].convert("RGB")
    return Image.merge("RGB", bands[:3]) if len(bands) > 2 else Image.merge("RGB", (bands[0],) * 3)


def read_image(source: Source, wanted: tuple[int, Fit] | None = None, reading: Reading = PLAIN) -> Image.Image:
    """The image as 8-bit RGB, upright. 16-bit grey is scaled (65535 -> 255), transparency laid over black, unless
    `reading` says otherwise.

    Args:
        wanted: what the image will be fitted to, if it is: a JPEG far larger than that is decoded at a half, a quarter
            or an eighth of its size (see `size_of`).

    Raises BadFileError.
    """
    image = _open(source, wanted, reading.page)
    rgb = _rgb(_in_range(image, reading), reading.background)
    rgb.info |= {key: image.info[key] for key in (TURNED, SHRUNK) if key in image.info}
    return rgb


def _in_range(image: Image.Image, reading: Reading) -> Image.Image:
    """Grey values of any depth as 8 bits, from black to white as `reading` has them. Colours are left as they are."""
    asked = reading.value_range or reading.percentiles
    if asked is None or image.mode not in {*DEEP_MODES, "F", "L"}:
        return image
    return Image.fromarray(eight_bit(np.asarray(image)[..., None], reading)[..., 0])


def _rgb(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    if image.mode in DEEP_MODES:
        return Image.fromarray(deep_to_eight_bit(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise BadFileError(
            "floating-point pixels have no fixed range; say which values are black and white by `value_range: [0, 1]`"
        )
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        laid = Image.alpha_composite(Image.new("RGBA", rgba.size, (*(background or (0, 0, 0)), 255)), rgba).convert(
            "RGB"
        )
        if background is None and rgba.getchannel("A").getextrema() != (255, 255):
            laid.info[TRANSPARENT] = True
        return laid
    return image if image.mode == "RGB" else image.convert("RGB")


def _ambiguous(image: Image.Image) -> bool:
    """Whether the image was turned in a way that leaves its size as it was, so that a mask's size tells nothing."""
    orientation = image.info.get(TURNED, 1)
    width, height = size_of(image)
    return orientation in (2, 3, 4) or (orientation > 4 and width == height)


def size_of(image: Image.Image) -> tuple[int, int]:
    """Width and height (px) of the image in its file, which `read_image` may have decoded smaller."""
    size: tuple[int, int] = image.info.get(SHRUNK, (image.size, 1))[0]
    return size


def size_in_file(source: Path | Member, reading: Reading) -> tuple[int, int] | None:
    """Width and height (px) by the header, turned upright; None of a file that cannot be read."""
    path = file_of(source)
    if reading.channels is not None:
        of_channels = array_header(path) if path.suffix.lower() == ".npy" else tiff_header(path)
        if of_channels is not None:
            return of_channels.size
    try:
        with Image.open(path) as image:
            if reading.page is not None and getattr(image, "n_frames", 1) > 1:
                image.seek(reading.page - 1)
            return image.size[::-1] if image.getexif().get(ORIENTATION, 1) > 4 else image.size
    except Exception:  # Pillow raises almost any type on damaged files
        return None


def open_mask(source: Source) -> NDArray[Any]:
    """The values of a mask (H, W), or its colours (H, W, 3) uint8, before they mean anything. Raises BadFileError."""
    image = _open(source)
    if image.mode in MASK_MODES:
        return np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)
    pixels = np.asarray(read_image(source))
    return pixels[..., 0] if (pixels[..., :1] == pixels).all() else pixels


def palette_of(source: Source) -> Palette:
    """The colours of the indices that occur in a palette image; {} of others. Raises BadFileError."""
    image = _open(source)
    return _palette(image, np.asarray(image)) if image.mode == "P" else {}


def read_mask(source: Source, values: Mapping[int, int], page: int | None = None) -> Image.Image:
    """The mask's values mapped through `values`, as mode L. Of a palette the indices are the values; its colours are
    kept in `info`.

    Raises BadFileError for colour masks and for values that `values` does not name.
    """
    image = _open(source, page=page)
    array = np.asarray(image) if image.mode in MASK_MODES else _grey_in(image)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    _check_values(array, values)
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values.keys())] = list(values.values())
    mask = Image.fromarray(table[array])
    if image.mode == "P":
        mask.info[PALETTE] = _palette(image, array)
    return mask


def _palette(image: Image.Image, indices: NDArray[np.uint8]) -> Palette:
    colors = image.getpalette("RGB") or []
    held = np.flatnonzero(np.bincount(indices.ravel())).tolist()
    return {index: tuple(colors[3 * index : 3 * index + 3]) for index in held if 3 * index + 3 <= len(colors)}


def _grey_in(image: Image.Image) -> NDArray[Any]:
    """The values of a mask that was saved with three equal channels, with opacity, or as whole floating-point numbers.

    Raises BadFileError for others.
    """
    pixels = np.asarray(image)
    if image.mode in ("RGB", "RGBA"):
        if (pixels[..., :1] == pixels[..., :3]).all() and (pixels[..., 3:] == 255).all():
            return pixels[..., 0]
    elif image.mode == "LA":
        if (pixels[..., 1] == 255).all():
            return pixels[..., 0]
        raise BadFileError("a mask that is transparent in part, and nothing says what those pixels are; save it opaque")
    elif image.mode == "F":
        odd = (pixels != np.floor(pixels)) | (pixels < 0) | (pixels > 65535)
        if not odd.any():
            return pixels.astype(np.int32)
        raise BadFileError(
            f"a mask holds one class index per pixel, and {pixels[odd][0]:g} is none (floating-point values); save it "
            "with whole numbers"
        )
    raise BadFileError(
        f"a mask holds one class index per pixel, this one is a colour image (mode {image.mode}); `mask_colors:` says "
        "which colour is which class"
    )


def read_threshold_mask(source: Source, threshold: int, page: int | None = None) -> Image.Image:
    """A black and white mask, mode L: 1 where it is at least `threshold` bright (of 255), else 0."""
    grey = np.asarray(read_image(source, reading=Reading(page=page)).convert("L"))
    return Image.fromarray((grey >= threshold).astype(np.uint8))


def read_color_mask(source: Source, colors: Colors, page: int | None = None) -> Image.Image:
    """The mask's colours as class indices, mode L. Raises BadFileError for a colour that means nothing."""
    if colors.other is None and colors.tolerance == 0:
        return _exact_colors(np.asarray(read_image(source, reading=Reading(page=page))), colors)
    pixels = np.asarray(read_image(source, reading=Reading(page=page))).astype(np.int16)
    left = np.ones(pixels.shape[:2], np.bool_)
    mask = np.full(pixels.shape[:2], 0 if colors.other is None else colors.other, np.uint8)
    for color, index in colors.classes:
        near = left & (np.abs(pixels - np.array(color, np.int16)).max(-1) <= colors.tolerance)
        mask[near], left = index, left & ~near
    if colors.other is None and left.any():
        raise _unknown_color(pixels[left][0], colors)
    return Image.fromarray(mask)


def _exact_colors(pixels: NDArray[np.uint8], colors: Colors) -> Image.Image:
    """(H, W, 3) -> the classes of colours that are all given exactly; as above, and faster for many colours."""
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    known = {(red << 16) + (green << 8) + blue: index for (red, green, blue), index in colors.classes}
    order = np.array(sorted(known), np.int32)
    at = np.searchsorted(order, codes).clip(max=len(order) - 1)
    if (unknown := order[at] != codes).any():
        raise _unknown_color(pixels[unknown][0], colors)
    return Image.fromarray(np.array([known[code] for code in order.tolist()], np.uint8)[at])


def _unknown_color(color: NDArray[Any], colors: Colors) -> BadFileError:
    known = ", ".join(str(color) for color, _ in colors.classes)
    return BadFileError(f"mask colour {tuple(color.tolist())} has no meaning (known: {known})")


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


def _image(source: Path | Member, unpack: Unpack | None, wanted: tuple[int, Fit] | None, reading: Reading) -> Bands:
    return read_bands(_source(source, unpack, False), wanted, reading)


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


def _mask(source: Path | Member, listing: Listing, unpack: Unpack | None) -> Image.Image:
    read, page = _source(source, unpack, True), listing.reading.page
    if listing.mask_colors is not None:
        return read_color_mask(read, listing.mask_colors, page)
    if listing.mask_threshold is not None:
        return read_threshold_mask(read, listing.mask_threshold, page)
    return read_mask(read, listing.mask_values or {}, page)


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


def _open(source: Source, wanted: tuple[int, Fit] | None = None, page: int | None = None) -> Image.Image:
    """Decoded whole and turned upright by its EXIF orientation."""
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    if isinstance(source, np.ndarray):
        return _of_array(source)
    data = _content(source)
    if is_numpy(data):
        return _of_array(read_numpy(data))
    try:
        image = Image.open(io.BytesIO(data))
        _refuse_unfit(image, page)
        if page is not None and getattr(image, "n_frames", 1) > 1:
            image.seek(page - 1)
        deep = any(";16" in str(tile[3]) for tile in image.tile)
        whole, orientation = image.size, image.getexif().get(ORIENTATION, 1)
        by = _shrink(image, *wanted, orientation != 1) if wanted else 1
        image.load()
        if deep:
            _refuse_dark(image)
        ImageOps.exif_transpose(image, in_place=True)  # in place: upright images are not copied
        if orientation != 1:
            image.info[TURNED] = orientation
        if by > 1:
            image.info[SHRUNK] = (whole[::-1] if orientation > 4 else whole), by
        return image
    except BadFileError:
        raise
    except UnidentifiedImageError as error:
        raise BadFileError("not an image that can be read; replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise BadFileError(f"damaged ({type(error).__name__}: {error}); replace or remove it") from error


def _refuse_unfit(image: Image.Image, page: int | None) -> None:
    """Raises BadFileError for an image that is too large, several, or has channels that Pillow drops."""
    width, height = image.size
    if width * height > LARGEST:
        raise BadFileError(
            f"{width}x{height} are {width * height / 1e6:,.0f} million pixels, above the limit of "
            f"{LARGEST // 10**6:,} million; cut it into smaller images"
        )
    pages = _pages(image)
    if pages > 1 and page is None:
        raise BadFileError(
            f"holds {pages} pages or frames, of which an image is one; say which by `page: 1`, or save those to be "
            "used as files of their own"
        )
    if page is not None and page > (frames := max(pages, getattr(image, "n_frames", 1))) and frames > 1:
        raise BadFileError(f"holds {frames} pages, and `page: {page}` is behind the last")
    channels = image.tag_v2.get(SAMPLES, 1) if isinstance(image, TiffImageFile) else 0
    if channels > len(image.getbands()):
        raise BadFileError(
            f"has {channels} channels, of which only {len(image.getbands())} can be read; `channels: {channels}` "
            "uses all of them, or save it with the three that are to be seen as red, green and blue"
        )


def _pages(image: Image.Image) -> int:
    """Pages of a TIFF without smaller copies and masks of pages; frames of an animation."""
    count = int(getattr(image, "n_frames", 1))
    if image.format == "MPO" or count == 1:  # cameras put a preview behind a photo
        return 1
    if not isinstance(image, TiffImageFile):
        return count
    whole = 0
    for page in range(count):
        image.seek(page)
        whole += not int(image.tag_v2.get(SUBFILE, 0)) & 5
    image.seek(0)
    return whole


def _refuse_dark(image: Image.Image) -> None:
    """Raises BadFileError for 16-bit colours that Pillow cuts to 8 bits and that are nearly black then."""
    if len(image.getbands()) < 3:
        return  # grey keeps its 16 bits and is looked at later
    brightest = max(high for _, high in image.getextrema()[:3])  # type: ignore[misc]
    if 0 < brightest < LEAST_DEEP // 256:
        raise BadFileError(
            f"16-bit colour whose largest value is below {256 * (brightest + 1)} of 65535 would turn black (are these "
            "8 or 12 bits?); scale it to the full range or save it with 8 bits"
        )


def _shrink(image: Image.Image, size: int, fit: Fit, turned: bool) -> int:
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


def _content(source: Path | bytes) -> bytes:
    data = _read(source) if isinstance(source, Path) else source
    if not data:
        raise BadFileError("empty file (0 bytes); replace or remove it")
    return data


def _of_array(array: NDArray[Any]) -> Image.Image:
    """An .npy array as an image: a mask of whole numbers, or one of the kinds that image files hold."""
    if np.issubdtype(array.dtype, np.integer) and array.dtype.itemsize > 2:
        if array.size and not -(2**31) <= int(array.min()) <= int(array.max()) < 2**31:
            raise BadFileError(f"values {array.min()} to {array.max()} are beyond 32 bits")
        array = array.astype(np.int32)
    if array.ndim in (2, 3) and array.size:
        with contextlib.suppress(TypeError, ValueError):
            return Image.fromarray(np.ascontiguousarray(array))
    raise BadFileError(
        f"an array of {array.shape} and type {array.dtype} is no colour image; say by `channels:` "
        "how many channels images have"
    )


def _read(path: Path) -> bytes:
    if not is_file(path):  # a pipe need not end
        raise BadFileError(NOT_A_FILE)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnopenedFileError(f"cannot be opened ({error.strerror})") from error


def _check_values(array: NDArray[np.generic], values: Mapping[int, int]) -> None:
    # Counting is many times faster than sorting; almost every mask has 8 bits.
    seen = np.flatnonzero(np.bincount(array.ravel())) if array.dtype == np.uint8 else np.unique(array)
    unknown = sorted(set(seen.tolist()) - values.keys())
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        allowed = sorted(values)
        known = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 8 else ", ".join(map(str, allowed))
        way = "name their classes or set `ignore:`"
        if unknown == [255] and 1 not in seen and sorted(set(values.values())) == [0, 1]:
            way = "if white is the second class, say so by `mask_values: [0, 255]`; if it is to be ignored, by "
            way += "`ignore: 255`"
        raise BadFileError(f"mask values outside the classes: {shown} (known: {known}); {way}")


def _attempt(read: Callable[[], Read], source: Path | Member, root: Path, problems: list[str]) -> Read | None:
    try:
        return read()
    except BadFileError as error:
        problems.append(error.of(_relative(source, root)))
        return None


def _relative(source: Path | Member | None, root: Path) -> str:
    if source is None:
        return ""
    name = file_of(source).relative_to(root).as_posix()
    return f"{name}[{source.row}]" if isinstance(source, Member) else name


def _sizes(mask: Image.Image, image: Image.Image) -> str:
    width, height = size_of(image)
    return (
        f"the mask is {mask.width}x{mask.height}, its image {width}x{height}; "
        "they must have equal size (after EXIF orientation)"
    )
