"""A folder of images: how many, how large, of which modes, and the settings by which they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.data.survey.samples import evenly_spread
from pretune.search_spaces.words import counted
from pretune.trainables.data.decode.channels import LEAST_DEEP, array_header, tiff_header
from pretune.trainables.data.decode.images import DEEP_MODES, read_raw_channels
from pretune.trainables.data.decode.opening import ORIENTATION
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.image_files import SUFFIXES, WITH_ARRAYS, by_suffix, image_files

MOST_HEADERS = 2000  # images whose size and mode are read
MOST_DEEP = 50  # images of which pages are counted, and values read where they have more than 8 bits
CUT = (0.5, 99.5)  # percentiles of a channel that are black and white


class Sizes(NamedTuple):
    """Sizes of images, px."""

    counts: Mapping[tuple[int, int], int]  # (width, height) -> images

    @property
    def short(self) -> int:
        """Median of the shorter side."""
        return int(np.median(np.repeat([min(size) for size in self.counts], list(self.counts.values()))))

    @property
    def aspect(self) -> float:
        """Longer over shorter side that nine of ten images do not exceed."""
        ratios = np.repeat([max(size) / min(size) for size in self.counts], list(self.counts.values()))
        return float(np.quantile(ratios, 0.9))

    def __str__(self) -> str:
        if len(self.counts) == 1:
            width, height = next(iter(self.counts))
            return f"all {width} x {height} px"
        widths, heights = ([size[side] for size in self.counts] for side in (0, 1))
        wide, high = (f"{min(s)} to {max(s)}" if len(set(s)) > 1 else str(s[0]) for s in (widths, heights))
        return f"{wide} px wide, {high} px high"


@dataclass(frozen=True)
class ImagesSeen:
    """A folder of images."""

    count: int
    sizes: Sizes
    modes: Mapping[str, int]  # Pillow's, such as RGB or I;16 -> images
    unread: Mapping[str, int]  # suffix -> files of it, which are not read
    reading: Mapping[str, str]  # channels, value_range or page, as a study has them -> why
    channels: int | None = None  # where images are not colour

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {mode}" for mode, count in sorted(self.modes.items(), key=lambda item: -item[1]))
        return f"{counted(self.count, 'image')} ({self.sizes}; {kinds})"


def survey_images(folder: Path) -> ImagesSeen:
    """Every image below a folder. Raises DataError where there is none that can be read."""
    found = image_files(folder, suffixes_in(folder))
    if not found.images:
        raise DataError(f"{folder} holds no image of a supported type ({', '.join(sorted(SUFFIXES))})")
    return images_seen(found.images, by_suffix(found.others))


def suffixes_in(folder: Path) -> frozenset[str]:
    """Arrays are images in a folder that holds no others."""
    found = image_files(folder, WITH_ARRAYS).images
    return WITH_ARRAYS if found and all(path.suffix.lower() == ".npy" for path in found) else SUFFIXES


def images_seen(paths: Sequence[Path], unread: Mapping[str, int]) -> ImagesSeen:
    """Sizes and modes by the headers of a sample; damaged files are left to the run, which names them."""
    headers = list(_headers(paths))
    if not headers:
        raise DataError(f"{paths[0].parent}: none of {counted(len(paths), 'image')} can be read")
    sizes = Counter(size for size, _, _ in headers)
    modes = Counter(mode for _, mode, _ in headers)
    ((channels, _),) = Counter(channels for _, _, channels in headers).most_common(1)
    reading = _reading(paths, modes) if channels is None else _reading_of_channels(paths, channels)
    return ImagesSeen(len(paths), Sizes(sizes), modes, unread, reading, channels)


def _headers(paths: Sequence[Path]) -> Iterator[tuple[tuple[int, int], str, int | None]]:
    """Width and height, mode, and the number of channels where these are not colours."""
    for path in evenly_spread(paths, MOST_HEADERS):
        suffix = path.suffix.lower()
        of_channels = tiff_header if suffix in (".tif", ".tiff") else array_header if suffix == ".npy" else None
        if of_channels is not None and (found := of_channels(path)) is not None and not _is_rgba(path):
            yield found
            continue
        try:
            with Image.open(path) as image:
                turned = image.getexif().get(ORIENTATION, 1) > 4
                yield (image.size[::-1] if turned else image.size), image.mode, None
        except Exception:  # Pillow raises almost any type on damaged files; the run names them
            continue


def _is_rgba(path: Path) -> bool:
    """Whether Pillow reads four channels as colours with opacity, or as those of a printer."""
    try:
        with Image.open(path) as image:
            return image.mode in ("RGBA", "RGBX", "CMYK") and not any(";16" in str(tile[3]) for tile in image.tile)
    except Exception:  # Pillow cannot read many kinds of channels
        return False


def _reading_of_channels(paths: Sequence[Path], channels: int) -> dict[str, str]:
    """Number of channels, and black and white of each by percentiles of all images that are looked at."""
    asked = {f"channels: {channels}": "the network uses all of them; pictures show the first three"}
    found = []
    for path in evenly_spread(paths, MOST_DEEP):
        try:
            found.append(read_raw_channels(path, channels).reshape(-1, channels))
        except BadFileError:  # the run names it
            continue
    if not found or all(values.dtype in (np.uint8, np.bool_) for values in found):
        return asked
    together = np.concatenate(found).astype(np.float64)
    together = together[np.isfinite(together).all(axis=1)]
    if not len(together):  # the run asks for a value in place of what is not finite
        return asked
    low, high = np.percentile(together, CUT, axis=0)
    ranges = [_rising(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    why = f"{CUT[0]} to {CUT[1]} % of the values of each channel, of {counted(len(found), 'image')}: black and white"
    return asked | {f"value_range: {ranges}": why}


def _rising(low: float, high: float) -> list[float]:
    """Black and white in four digits, or as many more as tell them apart; of an even channel, white is above it."""
    if high <= low:
        high = low + 1
    for digits in (4, 8, 12):
        shown = [float(f"{value:.{digits}g}") for value in (low, high)]
        if shown[0] < shown[1]:
            return shown
    return [low, high]


def _reading(paths: Sequence[Path], modes: Mapping[str, int]) -> dict[str, str]:
    """Return the settings by which files with several pages, floating-point or dark 16-bit pixels are read."""
    asked: dict[str, str] = {}
    chosen = evenly_spread(paths, MOST_DEEP)
    if (pages := max((_frames(path) for path in chosen), default=1)) > 1:
        asked["page: 1"] = f"files have up to {pages} pages; of each only this one is used"
    if not {"F", *DEEP_MODES} & set(modes):
        return asked
    found = [values for path in chosen if (values := _deep_values(path)) is not None]
    low, high = min((v.min() for v in found), default=0.0), max((v.max() for v in found), default=0.0)
    if "F" not in modes and high >= LEAST_DEEP:
        return asked  # the whole range of 16 bits, which is the default
    if "F" not in modes:
        white = (1 << int(high).bit_length()) - 1
        return asked | {f"value_range: [0, {white}]": f"16-bit files whose largest value is {high:g}"}
    if low >= 0 and high <= 1:
        return asked | {"value_range: [0, 1]": "floating-point files between 0 and 1"}
    return asked | {"value_range: {percentiles: [1, 99]}": f"floating-point files from {low:g} to {high:g}"}


def _deep_values(path: Path) -> NDArray[np.float64] | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image).astype(np.float64) if image.mode in {"F", *DEEP_MODES} else None
    except Exception:  # Pillow raises almost any type on damaged files; the run names them
        return None


def _frames(path: Path) -> int:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow raises almost any type on damaged files; the run names them
        return 1
