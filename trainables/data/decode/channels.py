"""Images of any number of channels: .npy arrays, multispectral TIFF by tifffile, and whatever Pillow reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.errors import BadFileError
from pretune.trainables.data.listing import Reading

NUMPY = b"\x93NUMPY"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # + is BigTIFF
LEAST_DEEP = 4096  # of 65,536; an image whose brightest value is below would be black with 8 bits

Open = Callable[[], Image.Image]


def is_numpy(data: bytes) -> bool:
    return data.startswith(NUMPY)


def read_numpy(data: bytes) -> NDArray[Any]:
    """The array of an .npy file. Raises BadFileError."""
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadFileError(f"not an .npy array that can be read ({error}); save it anew with numpy.save") from error
    return array


def read_channels(data: bytes, reading: Reading, by_pillow: Open) -> NDArray[np.uint8]:
    """(H, W, C) with 8 bits, black to white as `reading` has it. Raises BadFileError for other channels than it says.

    Args:
        by_pillow: opens the file with Pillow, which reads all but .npy and TIFF.
    """
    return eight_bit(raw_channels(data, reading, by_pillow), reading)


def raw_channels(data: bytes, reading: Reading, by_pillow: Open) -> NDArray[Any]:
    """The same with the file's own numbers."""
    if is_numpy(data):
        pixels = read_numpy(data)
    elif data.startswith(TIFFS):
        pixels = _read_tiff(data, reading)
    else:
        image = by_pillow()
        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return channels_last(pixels, reading.channels or 3)


def channels_last(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    """(H, W, C) of (H, W, C), (C, H, W), or (H, W) for one channel. Raises BadFileError."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == channels and pixels.size:
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] == channels and pixels.size:
        return np.moveaxis(pixels, 0, 2)
    wanted = f"(height, width, {channels})"
    raise BadFileError(f"holds an array of {pixels.shape}, and `channels: {channels}` asks for {wanted}")


def eight_bit(pixels: NDArray[Any], reading: Reading) -> NDArray[np.uint8]:
    """(H, W, C) of any type -> uint8, by one range, one for each channel, or the type's own. Raises BadFileError."""
    if reading.value_range is not None or reading.percentiles is not None:
        values = pixels.astype(np.float64)
        if not np.isfinite(values).all():
            raise BadFileError("some pixels are NaN or infinite; replace them by a value")
        low, high = _ranges(values, reading).T
        wide = high > low
        scaled = wide * (values - low) / np.where(wide, high - low, 1)  # an even channel is black
        made: NDArray[np.uint8] = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
        return made
    if pixels.dtype == np.bool_:
        return np.where(pixels, 255, 0).astype(np.uint8)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise BadFileError(
            "floating-point pixels have no fixed range; say which values are black and white by `value_range: [0, 1]`"
        )
    return deep_to_eight_bit(pixels)


def _ranges(pixels: NDArray[np.float64], reading: Reading) -> NDArray[np.float64]:
    """Black and white of every channel, (C, 2)."""
    channels = pixels.shape[2]
    if reading.percentiles is not None:
        return np.percentile(pixels.reshape(-1, channels), reading.percentiles, axis=0).T
    return np.broadcast_to(np.array(reading.value_range, np.float64).reshape(-1, 2), (channels, 2))


def deep_to_eight_bit(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Whole numbers of 16 bits: 65,535 -> 255. Raises BadFileError where that would leave them black."""
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise BadFileError(
            f"grey values {wide.min()} to {wide.max()} are beyond 16 bits; save it with 8 or 16 bits, or say by "
            "`value_range:` which are black and white"
        )
    if 0 < wide.max() < LEAST_DEEP:
        raise BadFileError(
            f"16-bit grey whose largest value is {wide.max()} of 65535 would turn black (are these 8 or 12 bits?); "
            "scale it to the full range, save it with 8 bits, or say by `value_range:` which are black and white"
        )
    return ((wide + 128) // 257).astype(np.uint8)


class Header(NamedTuple):
    """Contents of a file that is read channel by channel."""

    size: tuple[int, int]  # width, height
    kind: str  # '4 x uint16'
    channels: int


def array_header(path: Path) -> Header | None:
    """Header of an .npy array (H, W, C), (C, H, W) or (H, W); None of others."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    if array.ndim not in (2, 3) or not array.size:
        return None
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    height, width, channels = shape if shape[2] <= shape[0] else (*shape[1:], shape[0])
    return Header((width, height), f"{channels} x {array.dtype}", channels)


def tiff_header(path: Path) -> Header | None:
    """Header of a TIFF file with more samples than colours have; None of others, and without tifffile."""
    try:
        with _tifffile().TiffFile(path) as file:
            page = whole_pages(file)[0]
            samples, dtype = int(page.samplesperpixel), page.dtype
            size = int(page.imagewidth), int(page.imagelength)
    except Exception:  # tifffile raises almost any type on damaged files, which the run names
        return None
    return Header(size, f"{samples} x {dtype}", samples) if samples > 3 else None


# ---------------------------------------------------------------------------------------------------------------- TIFF


def _read_tiff(data: bytes, reading: Reading) -> NDArray[Any]:
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = whole_pages(file)
            if reading.page is None and len(pages) == reading.channels:
                return np.stack([page.asarray() for page in pages], axis=-1) if len(pages) > 1 else _page(pages[0])
            return _page(_chosen(pages, reading.page))
    except BadFileError:
        raise
    except Exception as error:  # tifffile raises almost any type on damaged files
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "pip install 'pretune[multispectral]'" if "imagecodecs" in text else "replace or remove it"
        raise BadFileError(f"a TIFF file that cannot be read ({text}); {fix}") from error


def whole_pages(file: Any) -> list[Any]:
    """The pages of a TIFF file without smaller copies (overviews) and masks."""
    return [page for page in file.pages if not int(getattr(page, "subfiletype", 0)) & 5]


def _chosen(pages: list[Any], page: int | None) -> Any:
    if page is None and len(pages) > 1:
        raise BadFileError(f"has {len(pages)} pages, and Pretune reads one; choose it with `page: 1`")
    if page is not None and page > len(pages) > 1:
        raise BadFileError(f"has {len(pages)} pages; page {page} does not exist")
    return pages[0] if len(pages) == 1 else pages[(page or 1) - 1]


def _page(page: Any) -> NDArray[Any]:
    """A page with its samples last, also where they are stored plane by plane."""
    pixels: NDArray[Any] = page.asarray()
    return np.moveaxis(pixels, 0, -1) if page.axes.startswith("S") else pixels


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise BadFileError(
            "TIFF of several channels is read by tifffile: pip install 'pretune[multispectral]'"
        ) from None
    return tifffile
