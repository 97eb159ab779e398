"""One file or its content -> an upright Pillow image, or one sentence that says why it cannot be used."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pretune.trainables.data.decode.channels import LEAST_DEEP, is_numpy, read_numpy
from pretune.trainables.data.decode.fitting import SHRUNK, Fit, shrink
from pretune.trainables.data.errors import BadFileError, UnopenedFileError
from pretune.trainables.data.image_files import NOT_A_FILE, is_file

Source = Path | bytes | NDArray[Any] | Image.Image  # a file, its content, or decoded pixels

ORIENTATION = 0x0112  # EXIF's tag
TURNED = "pretune:turned"  # in an image's info: the orientation that it was stored in
LARGEST = 1_000_000_000  # px; with three colours such an image takes 4 GB of memory while it is decoded
SUBFILE, SAMPLES = 254, 277  # TIFF's tags: kind of a page (1: smaller copy, 4: mask), channels in the file

Image.MAX_IMAGE_PIXELS = None  # Pillow refuses above 179 million; `_refuse_unfit` has our limit


def open_image(source: Source, wanted: tuple[int, Fit] | None = None, page: int | None = None) -> Image.Image:
    """Decoded whole and turned upright by its EXIF orientation."""
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    if isinstance(source, np.ndarray):
        return _of_array(source)
    data = content_of(source)
    if is_numpy(data):
        return _of_array(read_numpy(data))
    try:
        image = Image.open(io.BytesIO(data))
        _refuse_unfit(image, page)
        if page is not None and getattr(image, "n_frames", 1) > 1:
            image.seek(page - 1)
        deep = any(";16" in str(tile[3]) for tile in image.tile)
        whole, orientation = image.size, image.getexif().get(ORIENTATION, 1)
        by = shrink(image, *wanted, orientation != 1) if wanted else 1
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


def content_of(source: Path | bytes) -> bytes:
    """All bytes of a file. Raises BadFileError for one that is empty or cannot be opened."""
    data = _read(source) if isinstance(source, Path) else source
    if not data:
        raise BadFileError("empty file (0 bytes); replace or remove it")
    return data


def _read(path: Path) -> bytes:
    if not is_file(path):  # a pipe need not end
        raise BadFileError(NOT_A_FILE)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnopenedFileError(f"cannot be opened ({error.strerror})") from error


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
            f"has {pages} pages or frames, and Pretune reads one; choose it with `page: 1`, or save each page to be "
            "used as a file"
        )
    if page is not None and page > (frames := max(pages, getattr(image, "n_frames", 1))) and frames > 1:
        raise BadFileError(f"has {frames} pages; page {page} does not exist")
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
