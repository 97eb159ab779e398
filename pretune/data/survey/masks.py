"""Meaning of the pixels of masks, guessed from their values, palettes and colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretune.search_spaces.schema.palettes import PALETTES, RGB
from pretune.search_spaces.words import counted
from pretune.trainables.data.decode.images import read_image
from pretune.trainables.data.decode.masks import open_mask
from pretune.trainables.data.decode.palettes import palette_of
from pretune.trainables.data.errors import BadFileError, DataError

SOFT = 0.1  # share of pixels between black and white up to which a mask is black and white with soft edges
NEAR = 64  # of 255: what counts as black or white there
BLACK = (0, 0, 0)  # with one colour it is any palette's
MOST_VALUES = 64  # classes that a mask is believed to have


@dataclass(frozen=True)
class Meaning:
    """Meaning of the pixels of masks, as settings of a data set."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the pixels that count, by class
    ignored: float  # share of all pixels
    settings: Mapping[str, Any]  # mask_values, ignore, mask_threshold, mask_colors, ignore_colors
    why: str  # one line for people

    @property
    def rarest(self) -> float:
        return min(self.shares)


def meaning_of_masks(paths: Sequence[Path], names: Sequence[str] | None = None, ignore: int | None = None) -> Meaning:
    """Return the meaning of the values or colours of some masks; `ignore` is a value that is no class.

    Raises DataError where they cannot be masks, or do not hold that value.
    """
    values: Counter[int] = Counter()
    colors: Counter[RGB] = Counter()
    in_color = _palettes_differ(paths)
    for path in paths:
        of_values, of_colors = _pixels(path, in_color)
        values.update(of_values)
        colors.update(of_colors)
    if not values and not colors:
        raise DataError(f"none of {counted(len(paths), 'mask')} can be read, {paths[0]} first")
    if colors and ignore is not None:
        raise DataError(
            f"--ignore {ignore} is a value, and the masks in {paths[0].parent} have colours: run init without it, "
            "and write ignore_colors into the file"
        )
    if ignore is not None and ignore not in values:
        held = f"{', '.join(map(str, sorted(values)[:12]))}{', ...' if len(values) > 12 else ''}"
        raise DataError(
            f"--ignore {ignore}: no mask holds this value ({counted(len(paths), 'mask')} read); they hold {held}"
        )
    if colors:
        return _by_colors(colors + Counter({(v, v, v): count for v, count in values.items()}), names, paths)
    return _by_values(values, names, paths, ignore)


def _palettes_differ(paths: Sequence[Path]) -> bool:
    """Whether one index has two colours in the palettes of two masks, so that colours alone say what is what."""
    colors: dict[int, tuple[int, ...]] = {}
    for path in paths:
        try:
            palette = palette_of(path)
        except BadFileError:
            continue
        if any(colors.setdefault(index, color) != color for index, color in palette.items()):
            return True
    return False


def _pixels(path: Path, in_color: bool) -> tuple[Mapping[int, int], Mapping[RGB, int]]:
    """Value -> pixels, or colour -> pixels; nothing of a damaged file, which the run names."""
    try:
        mask = np.asarray(read_image(path)) if in_color else open_mask(path)
    except BadFileError:
        return {}, {}
    if mask.ndim == 3:
        codes, counts = np.unique(mask.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
        colors = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
        return {}, dict(zip(colors, counts.tolist(), strict=True))
    if mask.dtype == np.uint8:  # counting is many times faster than sorting
        counts = np.bincount(mask.ravel(), minlength=256)
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}, {}
    found, counts = np.unique(mask, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True)), {}


def _by_values(values: Counter[int], names: Sequence[str] | None, paths: Sequence[Path], ignore: int | None) -> Meaning:
    total = values.total()
    held = sorted(values)
    between = sum(count for value, count in values.items() if NEAR <= value <= 255 - NEAR) / total
    ends = held[-1] <= 255 and held[-1] > 255 - NEAR and held[0] < NEAR
    if ignore is None and len(held) > 2 and ends and _soft(values, between):
        white = sum(count for value, count in values.items() if value >= 128) / total
        classes = _named(names, 2, ["background", "object"])
        why = f"black and white with soft edges ({between:.1%} grey): values above half are the second class"
        return Meaning(classes, (1 - white, white), 0.0, {"mask_threshold": 128}, why)
    if len(held) > MOST_VALUES:
        raise DataError(
            f"{paths[0].parent}: the masks hold {len(held)} values, too many for classes: are these images? "
            "(a mask has one value or one colour per class)"
        )
    if ignore is None and 255 in held and len(held) > 2 and 0 < max(v for v in held if v < 255) < len(held) + 20:
        ignore = 255
    kept = [value for value in held if value != ignore]
    _refuse_one_class(kept, paths)
    plain = ["background", "object"] if len(kept) == 2 and kept[0] == 0 else []
    classes = _named(names, len(kept), plain or _counted(kept, _palette_names(paths[0])))
    scored = sum(values[value] for value in kept)
    settings: dict[str, Any] = {} if kept == list(range(len(kept))) else {"mask_values": kept}
    settings |= {} if ignore is None else {"ignore": ignore}
    shares = tuple(values[value] / scored for value in kept)
    text = ", ".join(f"{value} {values[value] / total:.1%}" for value in held[:12])
    why = f"mask values and their share of pixels: {text}{', ...' if len(held) > 12 else ''}"
    return Meaning(classes, shares, values[ignore] / total if ignore is not None else 0.0, settings, why)


def _soft(values: Counter[int], between: float) -> bool:
    """Whether values spread around black and white, as JPEG leaves them: most pixels at the ends, many values."""
    ends = sum(count for value, count in values.items() if value < NEAR or value > 255 - NEAR) / values.total()
    return len(values) > 8 and between <= SOFT and ends >= 1 - SOFT


def _by_colors(colors: Counter[RGB], names: Sequence[str] | None, paths: Sequence[Path]) -> Meaning:
    total = colors.total()
    for name, palette in PALETTES.items():
        color_of = {color: one for one, several in palette.colors.items() for color in several}
        seen = {color_of[color] for color in colors if color != BLACK and color in color_of}
        if set(colors) <= {*color_of, *palette.ignored} and names is None and len(seen) > 1:
            counts = Counter({one: sum(colors[c] for c in several) for one, several in palette.colors.items()})
            shares = tuple(counts[one] / max(1, counts.total()) for one in palette.colors if counts[one])
            ignored = sum(colors[color] for color in palette.ignored) / total
            why = f"the {len(colors)} colours are among those of {name}"
            return Meaning(tuple(palette.colors), shares, ignored, {"mask_colors": name}, why)
    if len(colors) > MOST_VALUES:
        raise DataError(
            f"{paths[0].parent}: the masks hold {len(colors)} colours, too many for classes: give each class one "
            "colour and save masks as PNG, without soft edges (or are --images and --masks swapped?)"
        )
    _refuse_one_class(list(colors), paths)
    held = [color for color, _ in sorted(colors.items(), key=lambda item: (item[0] != (0, 0, 0), -item[1]))]
    classes = _named(names, len(held), _counted(list(range(len(held))), ()))
    mapping = {name: list(color) for name, color in zip(classes, held, strict=True)}
    text = ", ".join(f"{list(color)} {colors[color] / total:.1%}" for color in held[:6])
    why = f"mask colours and their share of pixels: {text}{', ...' if len(held) > 6 else ''}"
    return Meaning(classes, tuple(colors[color] / total for color in held), 0.0, {"mask_colors": mapping}, why)


def _refuse_one_class(held: Sequence[object], paths: Sequence[Path]) -> None:
    if len(held) < 2:
        raise DataError(
            f"{paths[0].parent}: all {len(paths)} checked masks contain only {held[0]}; a task needs at least two "
            f"classes{_in_opacity(paths[0])}"
        )


def _in_opacity(path: Path) -> str:
    """Advice for a mask whose pixels differ in their opacity alone."""
    try:
        with Image.open(path) as image:
            opacity = image.getchannel("A").getextrema() if "A" in image.getbands() else (0, 0)
    except Exception:  # Pillow raises almost any type on damaged files and arrays; then there is nothing to advise
        return ""
    return " (they differ in opacity alone: save that channel as grey PNG)" if opacity[0] != opacity[1] else ""


def _named(given: Sequence[str] | None, count: int, made: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return tuple(made)
    if len(given) != count:
        raise DataError(f"--classes names {len(given)} classes, but the masks hold {count}; give {count} names")
    return tuple(given)


def _counted(values: Sequence[int], palette: Sequence[str]) -> list[str]:
    """Names of values: those of the palette, else background for 0 and numbers."""
    if palette and values and max(values) < len(palette):
        return [palette[value] for value in values]
    return ["background" if value == 0 else f"class {value}" for value in values]


def _palette_names(path: Path) -> tuple[str, ...]:
    """VOC's classes where a palette PNG has VOC's colours."""
    colors = [several[0] for several in PALETTES["voc"].colors.values()]
    try:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except Exception:  # Pillow raises almost any type on damaged files, which the run names, and on arrays
        return ()
    first = None if palette is None else list(zip(*[iter(palette[: 3 * len(colors)])] * 3, strict=False))
    return tuple(PALETTES["voc"].colors) if first == colors else ()
