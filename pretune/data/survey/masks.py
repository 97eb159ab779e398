"""Meaning of the pixels of masks, guessed from their values, palettes and colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.data.survey.no_class import no_class
from pretune.data.survey.samples import evenly_spread
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
MOST_SAMPLED = 20  # masks in which borders are looked for


@dataclass(frozen=True)
class Meaning:
    """Meaning of the pixels of masks, as settings of a data set."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the pixels that count, by class
    ignored: float  # share of all pixels
    settings: Mapping[str, Any]  # mask_values, ignore, mask_threshold, mask_colors, ignore_colors
    why: str  # one line for people
    notes: tuple[str, ...] = ()  # sentences: classes that were left out, and what may be no class

    @property
    def rarest(self) -> float:
        return min(self.shares)

    @property
    def ignored_text(self) -> str:
        """'; 255 is ignored'; "" where nothing is."""
        given = [self.settings["ignore"]] if "ignore" in self.settings else self.settings.get("ignore_colors", ())
        return f"; {', '.join(map(str, given))} {'is' if len(given) == 1 else 'are'} ignored" if given else ""


@dataclass(frozen=True)
class _Masks:
    """Masks to look at, and the wishes about them."""

    paths: Sequence[Path]
    names: Sequence[str] | None
    ignore: int | RGB | None
    all_read: bool
    in_color: bool  # whether colours alone say what is what, since palettes differ

    @property
    def folder(self) -> Path:
        return self.paths[0].parent

    def sample(self) -> Iterator[NDArray[np.int32]]:
        """Some masks (H, W): values, or colours as 0xRRGGBB; none that is damaged."""
        for path in evenly_spread(self.paths, MOST_SAMPLED):
            if (pixels := _read(path, self.in_color)) is not None:
                yield _codes(pixels) if pixels.ndim == 3 else pixels.astype(np.int32)


def meaning_of_masks(
    paths: Sequence[Path],
    names: Sequence[str] | None = None,
    ignore: int | RGB | None = None,
    all_read: bool = True,
) -> Meaning:
    """Return the meaning of the values or colours of some masks.

    Args:
        ignore: value or colour that is no class.
        all_read: whether there are no other masks, so that classes of a palette that none of these has are left away.

    Raises DataError where they cannot be masks, or do not hold what is to be ignored.
    """
    values: Counter[int] = Counter()
    colors: Counter[RGB] = Counter()
    masks = _Masks(paths, names, ignore, all_read, _palettes_differ(paths))
    for path in paths:
        of_values, of_colors = _pixels(path, masks.in_color)
        values.update(of_values)
        colors.update(of_colors)
    if not values and not colors:
        raise DataError(f"none of {counted(len(paths), 'mask')} can be read, {paths[0]} first")
    if not colors:
        return _by_values(values, masks)
    return _by_colors(colors + Counter({(v, v, v): count for v, count in values.items()}), masks)


def _ignored_value(values: Counter[int], masks: _Masks) -> int | None:
    """The value to ignore. Raises DataError for a colour and for a value that no mask holds."""
    ignore = masks.ignore
    if isinstance(ignore, tuple):
        raise DataError(
            f"--ignore {_typed(ignore)} is a colour, and the masks in {masks.folder} hold values: {_first(values)}"
        )
    if ignore is not None and ignore not in values:
        raise DataError(
            f"--ignore {ignore}: no mask holds this value ({counted(len(masks.paths), 'mask')} read); they hold "
            f"{_first(values)}"
        )
    return ignore


def _ignored_color(colors: Counter[RGB], masks: _Masks) -> RGB | None:
    """The colour to ignore. Raises DataError for one that no mask has."""
    ignore = masks.ignore
    color = (ignore, ignore, ignore) if isinstance(ignore, int) else ignore
    if color is not None and color not in colors:
        raise DataError(
            f"--ignore {_typed(color)}: no mask has this colour ({counted(len(masks.paths), 'mask')} read); they have "
            f"{'; '.join(_typed(one) for one, _ in colors.most_common(12))}{'; ...' if len(colors) > 12 else ''}"
        )
    return color


def _first(values: Counter[int]) -> str:
    return f"{', '.join(map(str, sorted(values)[:12]))}{', ...' if len(values) > 12 else ''}"


def _typed(ignore: int | RGB) -> str:
    """A value or colour as --ignore takes it."""
    return str(ignore) if isinstance(ignore, int) else ",".join(map(str, ignore))


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


def _read(path: Path, in_color: bool) -> NDArray[Any] | None:
    """Values (H, W) or colours (H, W, 3) of a mask; None if it is damaged, which the run says."""
    try:
        return np.asarray(read_image(path)) if in_color else open_mask(path)
    except BadFileError:
        return None


def _codes(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(H, W, 3) -> (H, W), 0xRRGGBB."""
    return colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _color(code: int) -> RGB:
    return code >> 16, code >> 8 & 255, code & 255


def _code(color: RGB) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _pixels(path: Path, in_color: bool) -> tuple[Mapping[int, int], Mapping[RGB, int]]:
    """Value -> pixels, or colour -> pixels; nothing of a damaged file."""
    mask = _read(path, in_color)
    if mask is None:
        return {}, {}
    if mask.ndim == 3:
        codes, counts = np.unique(_codes(mask), return_counts=True)
        return {}, dict(zip(map(_color, codes.tolist()), counts.tolist(), strict=True))
    if mask.dtype == np.uint8:  # counting is many times faster than sorting
        counts = np.bincount(mask.ravel(), minlength=256)
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}, {}
    found, counts = np.unique(mask, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True)), {}


def _by_values(values: Counter[int], masks: _Masks) -> Meaning:
    ignore, total = _ignored_value(values, masks), values.total()
    held = sorted(values)
    between = sum(count for value, count in values.items() if NEAR <= value <= 255 - NEAR) / total
    ends = held[-1] <= 255 and held[-1] > 255 - NEAR and held[0] < NEAR
    if ignore is None and len(held) > 2 and ends and _soft(values, between):
        white = sum(count for value, count in values.items() if value >= 128) / total
        classes = _named(masks.names, 2, ["background", "object"])
        why = f"black and white with soft edges ({between:.1%} grey): values of 128 or more are the second class"
        return Meaning(classes, (1 - white, white), 0.0, {"mask_threshold": 128}, why)
    if len(held) > MOST_VALUES:
        raise DataError(
            f"{masks.folder}: the masks hold {len(held)} values, too many for classes: are these images? "
            "(a mask has one value or one colour per class)"
        )
    if ignore is None and 255 in held and len(held) > 2 and 0 < max(v for v in held if v < 255) < len(held) + 20:
        ignore = 255
    kept = [value for value in held if value != ignore]
    _refuse_one_class(kept, masks.paths)
    plain = ["background", "object"] if len(kept) == 2 and kept[0] == 0 else []
    classes = _named(masks.names, len(kept), plain or _counted(kept, _palette_names(masks.paths[0])))
    scored = sum(values[value] for value in kept)
    settings: dict[str, Any] = {} if kept == list(range(len(kept))) else {"mask_values": kept}
    settings |= {} if ignore is None else {"ignore": ignore}
    shares = tuple(values[value] / scored for value in kept)
    text = ", ".join(f"{value}: {values[value] / total:.1%}" for value in held[:12])
    why = f"mask values and their share of pixels: {text}{', ...' if len(held) > 12 else ''}"
    notes = () if ignore is not None else _doubt({value: values[value] / total for value in held}, masks, False)
    return Meaning(classes, shares, values[ignore] / total if ignore is not None else 0.0, settings, why, notes)


def _doubt(shares: Mapping[int, float], masks: _Masks, in_color: bool) -> tuple[str, ...]:
    """A sentence about a value or colour (0xRRGGBB) that looks like no class, and how to leave it out."""
    found = no_class(shares, in_color, masks.sample())
    if found is None:
        return ()
    code, why = found
    shown, typed = (str(list(_color(code))), _typed(_color(code))) if in_color else (str(code), str(code))
    return (
        f"{shown} ({shares[code]:.1%} of the pixels) {why}. If it is no class, delete the study file and run init "
        f"again with --ignore {typed}",
    )


def _soft(values: Counter[int], between: float) -> bool:
    """Whether values spread around black and white, as JPEG leaves them: most pixels at the ends, many values."""
    ends = sum(count for value, count in values.items() if value < NEAR or value > 255 - NEAR) / values.total()
    return len(values) > 8 and between <= SOFT and ends >= 1 - SOFT


def _by_colors(colors: Counter[RGB], masks: _Masks) -> Meaning:
    ignore, total = _ignored_color(colors, masks), colors.total()
    for name, palette in PALETTES.items():
        color_of = {color: one for one, several in palette.colors.items() for color in several}
        seen = {color_of[color] for color in colors if color not in (BLACK, ignore) and color in color_of}
        if set(colors) <= {*color_of, *palette.ignored, ignore} and masks.names is None and len(seen) > 1:
            return _by_palette(name, colors, ignore, masks)
    if len(colors) > MOST_VALUES:
        raise DataError(
            f"{masks.folder}: the masks hold {len(colors)} colours, too many for classes: give each class one "
            "colour and save masks as PNG, without soft edges (or are --images and --masks swapped?)"
        )
    kept = Counter({color: count for color, count in colors.items() if color != ignore})
    _refuse_one_class(list(kept), masks.paths)
    held = [color for color, _ in sorted(kept.items(), key=lambda item: (item[0] != BLACK, -item[1]))]
    classes = _named(masks.names, len(held), _counted(list(range(len(held))), ()))
    settings: dict[str, Any] = {"mask_colors": {name: list(color) for name, color in zip(classes, held, strict=True)}}
    settings |= {"ignore_colors": [list(ignore)]} if ignore else {}
    text = ", ".join(f"{list(color)}: {colors[color] / total:.1%}" for color in held[:6])
    why = f"mask colours and their share of pixels: {text}{', ...' if len(held) > 6 else ''}"
    notes = () if ignore else _doubt({_code(color): count / total for color, count in colors.items()}, masks, True)
    shares = tuple(kept[color] / kept.total() for color in held)
    return Meaning(classes, shares, colors[ignore] / total if ignore else 0.0, settings, why, notes)


def _by_palette(name: str, colors: Counter[RGB], ignore: RGB | None, masks: _Masks) -> Meaning:
    """Masks in the colours of a published set: its classes that occur; all of them if other masks were not read."""
    palette = PALETTES[name]
    classes = {one: several for one, several in palette.colors.items() if ignore not in several}
    counts = {one: sum(colors[color] for color in several) for one, several in classes.items()}
    absent = [one for one in classes if not counts[one]]
    kept = {one: several for one, several in classes.items() if counts[one] or not masks.all_read}
    settings: dict[str, Any] = {"mask_colors": name}
    ignored = list(dict.fromkeys((*palette.ignored, *([ignore] if ignore else []))))
    if kept != palette.colors:
        lists = {one: [list(color) for color in several] for one, several in kept.items()}
        settings["mask_colors"] = {one: several[0] if len(several) == 1 else several for one, several in lists.items()}
        settings["ignore_colors"] = [list(color) for color in ignored]
    total, scored = colors.total(), sum(counts.values())
    shares = tuple(count / scored for count in counts.values() if count)
    why = f"the {len(colors)} colours are among those of {name}"
    if kept != palette.colors:
        why += f", which has {len(palette.colors)} classes"
    return Meaning(
        tuple(kept), shares, sum(colors[color] for color in ignored) / total, settings, why,
        (_absent_sentence(name, absent, masks),) if absent else (),
    )  # fmt: skip


def _absent_sentence(name: str, absent: Sequence[str], masks: _Masks) -> str:
    """Say which classes of a palette were not seen, and what follows."""
    many = f"{len(absent)} of {name}'s {len(PALETTES[name].colors)} classes"
    if not masks.all_read:
        return (
            f"{many} were not found in the {len(masks.paths)} masks read; they are kept, because other masks may "
            "contain them"
        )
    listed = f"{', '.join(absent[:6])}{', ...' if len(absent) > 6 else ''}"
    return f"{many} are in no mask and were left out ({listed}); `mask_colors: {name}` in the file has them all"


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
