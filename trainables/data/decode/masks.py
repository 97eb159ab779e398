"""Masks as class indices: by their values, a threshold or their colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.decode.images import DEEP_MODES, read_image
from pretune.trainables.data.decode.opening import Source, open_image
from pretune.trainables.data.decode.palettes import PALETTE, palette_in
from pretune.trainables.data.errors import BadFileError
from pretune.trainables.data.listing import Colors, Reading

MASK_MODES = frozenset({"1", "L", "P"}) | DEEP_MODES


def open_mask(source: Source) -> NDArray[Any]:
    """The values of a mask (H, W), or its colours (H, W, 3) uint8, before they mean anything. Raises BadFileError."""
    image = open_image(source)
    if image.mode in MASK_MODES:
        return np.asarray(image).astype(np.uint8) if image.mode == "1" else np.asarray(image)
    pixels = np.asarray(read_image(source))
    return pixels[..., 0] if (pixels[..., :1] == pixels).all() else pixels


def read_mask(source: Source, values: Mapping[int, int], page: int | None = None) -> Image.Image:
    """The mask's values mapped through `values`, as mode L. Of a palette the indices are the values; its colours are
    kept in `info`.

    Raises BadFileError for colour masks and for values that `values` does not name.
    """
    image = open_image(source, page=page)
    array = np.asarray(image) if image.mode in MASK_MODES else _grey_in(image)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    _check_values(array, values)
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values.keys())] = list(values.values())
    mask = Image.fromarray(table[array])
    if image.mode == "P":
        mask.info[PALETTE] = palette_in(image, array)
    return mask


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
            f"holds the floating-point value {pixels[odd][0]:g}, but a mask has one class index per pixel; save it "
            "with whole numbers"
        )
    raise BadFileError(
        f"is a colour image (mode {image.mode}), but a mask has one class index per pixel; use `mask_colors:` to say "
        "which colour is which class"
    )


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
