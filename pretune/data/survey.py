"""Survey of a person's own folders, before there is a study: how files pair, how large they are, what masks mean.

`pretune init` writes a study from it. Headers of images and all values of masks are read, of a sample where there are
many; nothing is written.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.search_spaces import schema
from pretune.search_spaces.schema.palettes import PALETTES, RGB
from pretune.trainables.data.decode.channels import LEAST_DEEP, array_header, tiff_header
from pretune.trainables.data.decode.images import DEEP_MODES, read_image, read_raw_channels
from pretune.trainables.data.decode.masks import open_mask
from pretune.trainables.data.decode.opening import ORIENTATION
from pretune.trainables.data.decode.palettes import palette_of
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.image_files import SUFFIXES, WITH_ARRAYS, by_suffix, image_files
from pretune.trainables.data.listing import Listing, Member, file_of
from pretune.trainables.data.sets.coco import list_coco
from pretune.trainables.data.sets.folders import (
    EQUAL_STEMS,
    Names,
    folder_pairs,
    key_of,
    list_images_and_masks,
    tell_apart,
)

Item = TypeVar("Item")

MOST_HEADERS = 2000  # images whose size and mode are read
MOST_DEEP = 50  # images of which pages are counted, and values read where they have more than 8 bits
MOST_MASKS = 300  # masks whose values are read
CUT = (0.5, 99.5)  # percentiles of a channel that are black and white
SOFT = 0.1  # share of pixels between black and white up to which a mask is black and white with soft edges
NEAR = 64  # of 255: what counts as black or white there
MOST_VALUES = 64  # classes that a mask is believed to have

# What people put behind or before the name of an image to call its mask.
MASK_WORDS = (
    "mask", "masks", "gt", "seg", "segmentation", "label", "labels", "annotation", "groundtruth", "ground_truth",
    "manual", "lbl", "Mask", "GT", "Segmentation", "Label", "L",
)  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "gt", "groundtruth", "SegmentationClass")


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
        return f"{self.count} images ({self.sizes}; {kinds})"


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


@dataclass(frozen=True)
class PairsSeen:
    """Images with masks."""

    root: Path
    images: str  # folder below root
    masks: str
    names: Names
    listing: Listing
    meaning: Meaning
    looked_at: int  # masks whose values were read
    annotations: str | None = None  # COCO JSON below root, in place of `masks` and `names`

    @property
    def count(self) -> int:
        return len(self.listing.entries)


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
        raise DataError(f"{paths[0].parent}: none of the {len(paths)} images can be read")
    sizes = Counter(size for size, _, _ in headers)
    modes = Counter(mode for _, mode, _ in headers)
    ((channels, _),) = Counter(channels for _, _, channels in headers).most_common(1)
    reading = _reading(paths, modes) if channels is None else _reading_of_channels(paths, channels)
    return ImagesSeen(len(paths), Sizes(sizes), modes, unread, reading, channels)


def _reading_of_channels(paths: Sequence[Path], channels: int) -> dict[str, str]:
    """Number of channels, and black and white of each by percentiles of all images that are looked at."""
    asked = {f"channels: {channels}": "all of them go into the network; people are shown the first three"}
    found = []
    for path in _sample(paths, MOST_DEEP):
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
    why = f"{CUT[0]} to {CUT[1]} % of the values of each channel, of {len(found)} images: black and white"
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
    chosen = _sample(paths, MOST_DEEP)
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
    except Exception:
        return 1


def survey_pairs(images: Path, masks: Path | None, names: Sequence[str] | None = None) -> PairsSeen:
    """Images and masks, paired by the rule that pairs most of them.

    Args:
        masks: None: looked for in the folder of the images, or in a folder beside or below them.
        names: of the classes, in the order of their values; default: background and counted ones.

    Raises DataError where no rule pairs anything, or where masks are no masks.
    """
    root, image_folder, mask_folder = _root(images, masks)
    tried = [(root, image_folder, mask_folder)] if masks else [*_folders_below(images), (images, ".", ".")]
    for suffixes in (SUFFIXES, WITH_ARRAYS):
        counted = [
            (_pairs(*place, rule, suffixes), place, rule) for place in tried for rule in _rules(*place, suffixes)
        ]
        if most := max((count for count, _, _ in counted), default=0):
            break
    if not most:
        where = f"{images} and {masks}" if masks else f"{images}"
        raise DataError(
            f"{where}: no image has a mask with a matching name, such as a.jpg with a.png or a_mask.png; rename your "
            "files, or set `image_name:` and `mask_name:` in the study"
        )
    (root, image_folder, mask_folder), rule = next((place, rule) for count, place, rule in counted if count == most)
    listing = list_images_and_masks(root, image_folder, mask_folder, (), {}, names=rule, suffixes=suffixes)
    files = [file_of(entry.mask) for entry in listing.entries if entry.mask is not None]
    chosen = _sample(files, MOST_MASKS)
    meaning = meaning_of_masks(chosen, names)
    return PairsSeen(root, image_folder, mask_folder, rule, listing, meaning, len(chosen))


def survey_coco(images: Path, file: Path, names: Sequence[str] | None = None) -> PairsSeen:
    """Images with a COCO JSON file. `names`: categories to keep; default: all. Raises DataError."""
    root = Path(os.path.commonpath([images.resolve(), file.resolve().parent]))
    below = images.resolve().relative_to(root).as_posix()
    settings = schema.Coco(
        dataset="coco", root=str(root), images=below, annotations=file.resolve().relative_to(root).as_posix(),
        classes=tuple(names or ()),
    )  # fmt: skip
    listing = list_coco(settings, root)
    if not listing.entries:
        raise DataError(f"{file}: none of its images is in {images}", listing.problems)
    rows = [entry.mask.row for entry in _sample(listing.entries, MOST_MASKS) if isinstance(entry.mask, Member)]
    assert listing.unpack is not None
    masks = listing.unpack(file.resolve()).masks
    assert masks is not None
    counts = np.sum([np.bincount(np.asarray(masks[row]).ravel(), minlength=256) for row in rows], axis=0)
    kept = counts[: len(listing.classes)] / max(1, counts[: len(listing.classes)].sum())
    text = ", ".join(f"{name} {share:.1%}" for name, share in zip(listing.classes, kept, strict=True))
    shown = tuple(share for share in kept.tolist() if share)
    ignored = float(counts[255] / counts.sum())
    meaning = Meaning(listing.classes, shown, ignored, {}, f"share of pixels: {text}")
    return PairsSeen(root, below, "", EQUAL_STEMS, listing, meaning, len(rows), str(settings.annotations))


def coco_file_in(folder: Path) -> Path | None:
    """The one COCO JSON file in a folder, beside images."""
    found = [path for path in sorted(folder.glob("*.json")) if _is_coco(path)]
    return found[0] if len(found) == 1 else None


def _is_coco(path: Path) -> bool:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(read, dict) and {"images", "annotations", "categories"} <= set(read)


# ------------------------------------------------------------------------------------------------------------- pairing


def _root(images: Path, masks: Path | None) -> tuple[Path, str, str]:
    """The folder above both, and both below it."""
    both = images.resolve(), (masks or images).resolve()
    root = Path(os.path.commonpath(both)) if both[0] != both[1] else both[0]
    return root, *(path.relative_to(root).as_posix() for path in both)  # type: ignore[return-value]


def _folders_below(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """images/ and masks/ (and what else people call them) below `folder`, or below its train/, val/ and test/."""
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    parts = {path.name for part in folder.iterdir() if part.is_dir() for path in part.iterdir() if path.is_dir()}
    yield from ((folder, ".", mask) for mask in MASK_FOLDERS if mask in there and not there & {*IMAGE_FOLDERS})
    for held in (there, parts):
        for image in (name for name in IMAGE_FOLDERS if name in held):
            for mask in (name for name in MASK_FOLDERS if name in held):
                if (held is there) or all((part / image).is_dir() for part in folder.iterdir() if part.is_dir()):
                    yield folder, image, mask


def _rules(root: Path, images: str, masks: str, suffixes: frozenset[str]) -> Iterator[Names]:
    """Rules that may pair the files, the plainest first; of the words for masks those that some file has."""
    pairs = folder_pairs(root, images, masks)
    of_images = [path.stem for _, folder, _ in pairs for path in image_files(folder, suffixes).images]
    of_masks = [path.stem for _, _, folder in pairs for path in image_files(folder, suffixes).images]
    if images != masks:
        yield EQUAL_STEMS
        yield from _derived(of_images, of_masks)
    for word, joint in itertools.product(MASK_WORDS, "_-. "):
        if any(stem.endswith(f"{joint}{word}") for stem in of_masks):
            yield Names(mask=f"{{stem}}{joint}{word}")
        if any(stem.startswith(f"{word}{joint}") for stem in of_masks):
            yield Names(mask=f"{word}{joint}{{stem}}")
    if images == masks:  # a folder for each pair
        kinds = sorted(set(of_masks)) if len(set(of_masks)) < 10 else []
        yield from (Names(f"{{stem}}/{one}", f"{{stem}}/{other}") for one in kinds for other in kinds
                    if other in MASK_WORDS and one != other)  # fmt: skip


def _pairs(root: Path, images: str, masks: str, rule: Names, suffixes: frozenset[str]) -> int:
    """Count the pairs that a rule makes, by names alone."""
    count = 0
    for _, image_folder, mask_folder in folder_pairs(root, images, masks):
        found = tell_apart(image_folder, mask_folder, rule, suffixes)
        image_keys = {key_of(image_folder, path, rule.image) for path in found[0].images}
        mask_keys = {key_of(mask_folder, path, rule.mask) for path in found[1].images}
        count += len((image_keys & mask_keys) - {None})
    return count


def _derived(images: Sequence[str], masks: Sequence[str]) -> Iterator[Names]:
    """Yield patterns from what stands around the part of the names that differs, as in 21_training and 21_manual1."""
    if len(images) < 2 or len(masks) < 2:
        return
    before = [_common_start(list(stems)) for stems in (images, masks)]
    behind = [_common_start([stem[::-1] for stem in stems])[::-1] for stems in (images, masks)]
    shared_before = _common_start([text[::-1] for text in before])[::-1].lstrip("_-. ")
    shared_behind = _common_start(behind).rstrip("_-. ")
    parts = [
        f"{text[: len(text) - len(shared_before)]}{{stem}}{end[len(shared_behind) :]}"
        for text, end in zip(before, behind, strict=True)
    ]
    if not any("{" in text or "}" in text for text in (*before, *behind)):
        yield Names(*parts)


def _common_start(texts: Sequence[str]) -> str:
    return os.path.commonprefix(list(texts))  # noqa: RUF071  # characters are meant, not parts of paths


# --------------------------------------------------------------------------------------------------------------- masks


def meaning_of_masks(paths: Sequence[Path], names: Sequence[str] | None = None) -> Meaning:
    """Return the meaning of the values or colours of some masks. Raises DataError where they cannot be masks."""
    values: Counter[int] = Counter()
    colors: Counter[RGB] = Counter()
    in_color = _palettes_differ(paths)
    for path in paths:
        of_values, of_colors = _pixels(path, in_color)
        values.update(of_values)
        colors.update(of_colors)
    if not values and not colors:
        raise DataError(f"none of the {len(paths)} masks can be read, {paths[0]} first")
    if colors:
        return _by_colors(colors + Counter({(v, v, v): count for v, count in values.items()}), names, paths)
    return _by_values(values, names, _palette_names(paths[0]), paths)


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


def _by_values(
    values: Counter[int], names: Sequence[str] | None, palette: Sequence[str], paths: Sequence[Path]
) -> Meaning:
    total = values.total()
    held = sorted(values)
    between = sum(count for value, count in values.items() if NEAR <= value <= 255 - NEAR) / total
    if len(held) > 2 and held[-1] <= 255 and held[-1] > 255 - NEAR and held[0] < NEAR and _soft(values, between):
        white = sum(count for value, count in values.items() if value >= 128) / total
        classes = _named(names, 2, ["background", "object"])
        why = f"black and white with soft edges ({between:.1%} grey): values above half are the second class"
        return Meaning(classes, (1 - white, white), 0.0, {"mask_threshold": 128}, why)
    if len(held) > MOST_VALUES:
        raise DataError(
            f"{paths[0].parent}: the masks hold {len(held)} values, too many for classes: are these images? "
            "(a mask has one value or one colour per class)"
        )
    ignore = 255 if 255 in held and len(held) > 2 and 0 < max(v for v in held if v < 255) < len(held) + 20 else None
    kept = [value for value in held if value != ignore]
    _refuse_one_class(kept, paths)
    plain = ["background", "object"] if len(kept) == 2 and kept[0] == 0 else []
    classes = _named(names, len(kept), plain or _counted(kept, palette))
    counted = sum(values[value] for value in kept)
    settings: dict[str, Any] = {} if kept == list(range(len(kept))) else {"mask_values": kept}
    settings |= {} if ignore is None else {"ignore": ignore}
    shares = tuple(values[value] / counted for value in kept)
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
        if set(colors) <= {*color_of, *palette.ignored} and names is None:
            counts = Counter({one: sum(colors[c] for c in several) for one, several in palette.colors.items()})
            shares = tuple(counts[one] / max(1, counts.total()) for one in palette.colors if counts[one])
            ignored = sum(colors[color] for color in palette.ignored) / total
            why = f"the {len(colors)} colours are among those of {name}"
            return Meaning(tuple(palette.colors), shares, ignored, {"mask_colors": name}, why)
    if len(colors) > MOST_VALUES:
        raise DataError(
            f"{paths[0].parent}: the masks hold {len(colors)} colours, too many for classes; check that "
            "these are masks, and save them as PNG, because JPEG changes colours"
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
            "classes"
        )


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
    with Image.open(path) as image:
        palette = image.getpalette() if image.mode == "P" else None
    first = None if palette is None else list(zip(*[iter(palette[: 3 * len(colors)])] * 3, strict=False))
    return tuple(PALETTES["voc"].colors) if first == colors else ()


# --------------------------------------------------------------------------------------------------------------- files


def _headers(paths: Sequence[Path]) -> Iterator[tuple[tuple[int, int], str, int | None]]:
    """Width and height, mode, and the number of channels where these are not colours."""
    for path in _sample(paths, MOST_HEADERS):
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


def _sample(of: Sequence[Item], most: int) -> list[Item]:
    """Evenly spread over the names."""
    at: Iterable[int] = np.linspace(0, len(of) - 1, min(most, len(of))).astype(int).tolist()
    return [of[i] for i in at]


# -------------------------------------------------------------------------------------------------------------- groups


class Groups(NamedTuple):
    """Images that belong together, such as those of one patient."""

    setting: str | dict[str, str]  # as `split.group` takes it
    groups: int
    example: str


YEAR = re.compile(r"(19|20)\d\d")
GROUP_PATTERNS = (r"([^/_-]+)[_-][^/]*$", r"([^/]+)[_-][^/_-]*$")  # up to the first, or to the last, _ or - of the name


def find_groups(names: Sequence[str]) -> Groups | None:
    """Groups that names tell: parent folders or beginnings with a number in them, each of two images on average.

    `patient03_slice07` is one of patient03; `img_0012` and `Abyssinian_12` are of no group, and years are none.
    """
    candidates: list[tuple[str | dict[str, str], list[str | None]]] = [
        ("parent", [name.rpartition("/")[0] or None for name in names])
    ]
    for pattern in GROUP_PATTERNS:
        matches = (re.search(pattern, name) for name in names)
        candidates.append(({"pattern": pattern}, [one and one[1] for one in matches]))
    possible = [found for setting, keys in candidates if (found := _grouped(setting, keys, len(names)))]
    return next((one for one in possible if one.groups >= 5), possible[0] if possible else None)


def _grouped(setting: str | dict[str, str], keys: Sequence[str | None], count: int) -> Groups | None:
    held = {key for key in keys if key}
    numbered = all(re.search(r"\d", key) and not YEAR.fullmatch(key) for key in held)
    if None in keys or not 3 <= len(held) <= count / 2 or not numbered:
        return None
    return Groups(setting, len(held), min(held))
