"""Images of any kind as 8-bit RGB, or as one grey image for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.decode.channels import (
    array_header,
    channels_last,
    deep_to_eight_bit,
    eight_bit,
    raw_channels,
    read_channels,
    tiff_header,
)
from pretune.trainables.data.decode.fitting import SHRUNK, Fit
from pretune.trainables.data.decode.opening import LARGEST, ORIENTATION, TURNED, Source, content_of, open_image
from pretune.trainables.data.errors import BadFileError
from pretune.trainables.data.listing import PLAIN, Member, Reading, file_of

Bands = tuple[Image.Image, ...]  # one image of three colours, or a grey one for each channel

DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
TRANSPARENT = "pretune:transparent"  # in an image's info: that some of it was laid over black


def read_bands(source: Source, wanted: tuple[int, Fit] | None = None, reading: Reading = PLAIN) -> Bands:
    """One image of three colours as `read_image` has it; where `reading` names channels, a grey image for each.

    Raises BadFileError.
    """
    if reading.channels is None:
        return (read_image(source, wanted, reading),)
    if isinstance(source, np.ndarray | Image.Image):
        pixels = eight_bit(channels_last(np.asarray(source), reading.channels), reading)
    else:
        data = content_of(source)
        pixels = read_channels(data, reading, lambda: open_image(data, page=reading.page))
    if pixels.shape[0] * pixels.shape[1] > LARGEST:
        raise BadFileError(f"{pixels.shape[1]}x{pixels.shape[0]} px are too many; cut it into smaller images")
    return tuple(Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0))


def read_raw_channels(path: Path, channels: int) -> NDArray[Any]:
    """(H, W, C) with the file's own numbers. Raises BadFileError."""
    data = content_of(path)
    return raw_channels(data, Reading(channels=channels), lambda: open_image(data))


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
    image = open_image(source, wanted, reading.page)
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
