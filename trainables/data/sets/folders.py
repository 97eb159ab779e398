"""Folders of the user's own images, with or without masks.

Either may be cut into train/, val/ and test/, as torchvision and others expect it: then these are the official lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_files import (
    NOT_A_FILE,
    SUFFIXES,
    WITH_ARRAYS,
    ImageFiles,
    by_suffix,
    composed,
    image_files,
)
from pretune.trainables.data.listing import Entry, Listing, meaning_of
from pretune.trainables.data.sets.catalogue import DataSet

STRAY = 0.1  # share of images beside class folders up to which they are a mistake, and not the way of the folder

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")
TEST = ("test", "testing")


class Names(NamedTuple):
    """Patterns of the names of images and masks, without suffix: {stem} is what the two of a pair share."""

    image: str = "{stem}"
    mask: str = "{stem}"


EQUAL_STEMS = Names()


def list_image_folder(settings: schema.ImageFolder, root: Path) -> Listing:
    """See `list_images`."""
    return list_images(root, _suffixes(settings))


def list_image_mask_folder(settings: schema.ImageMaskFolder, root: Path) -> Listing:
    """See `list_images_and_masks`."""
    names = Names(settings.image_name, settings.mask_name)
    meaning = meaning_of(settings)
    found = list_images_and_masks(
        root, settings.images, settings.masks, settings.classes, meaning.mask_values, names=names,
        suffixes=_suffixes(settings),
    )  # fmt: skip
    return replace(found, **meaning._asdict())


def _suffixes(settings: schema.ImageFolder | schema.ImageMaskFolder) -> frozenset[str]:
    return SUFFIXES if settings.channels is None else WITH_ARRAYS


def list_images(root: Path, suffixes: frozenset[str] = SUFFIXES) -> Listing:
    """Every image below `root`. Where all of them lie in sub-folders, the first level of these is the image class.

    Below train/ with val/ or test/ beside it, the next level is: see `official_tests`.
    A class folder without an image is a problem: ignored silently, the classes would not be those of the folders. So
    is an image beside class folders that hold nearly all: it would take the classes from all others.
    """
    found = image_files(root, suffixes)
    _refuse_equal_classes(root, found.images)
    paths = dict(sorted((path.relative_to(root).as_posix(), path) for path in found.images))
    _refuse_parts_among_others(root, paths)
    tests = official_tests(paths)
    level = 0 if tests is None else 1  # at which folders are classes
    kinds = [parts[level] if len(parts := name.split("/")) > level + 1 else None for name in paths]
    index = {kind: i for i, kind in enumerate(sorted({kind for kind in kinds if kind is not None}))}
    stray = [name for name, kind in zip(paths, kinds, strict=True) if kind is None]
    labelled = len(stray) <= STRAY * len(paths)
    entries = tuple(
        Entry(
            name,
            path,
            label=index[kind] if labelled and kind is not None else None,
            test=None if tests is None else tests[name],
        )
        for (name, path), kind in zip(paths.items(), kinds, strict=True)
        if kind is not None or not labelled
    )
    beside = (f"{name}: is not in a class folder; move it into one, or remove it" for name in stray)
    bases = [root] if tests is None else sorted({root / name.split("/")[0] for name in paths})
    empty = (problem for base in bases for problem in _empty_folders(root, base, paths))
    problems = (*beside, *empty) if labelled else ()
    problems = (*problems, *_irregular(root, found))
    return Listing(
        root, entries, problems, label_names=tuple(sorted(index)) if labelled else (),
        unlisted=len(paths) - len(entries), ignored=by_suffix(found.others),
    )  # fmt: skip


def official_tests(names: Iterable[str]) -> dict[str, bool | None] | None:
    """Return which of the files are on the official test list: those below test/, or val/ where there is no test/.

    None where not all files lie below train/, val/ and test/, train/ among them. Of train/ alone there is no test list,
    and what lies below it is cut as if it was the whole.
    """
    top = {name: _top(name) for name in names}
    tops = set(top.values())
    if not tops & {*TRAIN} or not tops <= {*TRAIN, *VAL, *TEST}:
        return None
    last = TEST if tops & {*TEST} else VAL
    return {name: part in last if tops & {*last} else None for name, part in top.items()}


def _top(name: str) -> str:
    """The folder at the top, in small letters; nothing for a file at the top."""
    return name.split("/")[0].lower() if "/" in name else ""


def _refuse_parts_among_others(root: Path, names: Iterable[str]) -> None:
    """Raises DataError where train/ and val/ or test/ would be taken for classes, as other things lie beside them."""
    tops = {_top(name) for name in names}
    others = sorted(tops - {*TRAIN, *VAL, *TEST})
    if others and tops & {*TRAIN} and tops & {*VAL, *TEST}:
        parts = ", ".join(f"{part}/" for part in sorted(tops - {*others}))
        beside = ", ".join(f"{other}/" if other else "single images" for other in others[:5])
        raise DataError(
            f"image-folder: {root} holds {parts}, which look like parts of a set and not like classes, and beside them "
            f"{beside}; move these away, or name one of the parts by `root:`"
        )


def _empty_folders(root: Path, base: Path, names: Iterable[str]) -> Iterator[str]:
    level = len(base.relative_to(root).parts) + 1
    used = {"/".join(name.split("/")[:level]) for name in names}
    for path in sorted(base.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and _in(root, path) not in used:
            yield f"{_in(root, path)}: a class folder without an image; add images or remove it"


def list_images_and_masks(
    root: Path,
    images: str,
    masks: str,
    classes: tuple[str, ...],
    values: Mapping[int, int],
    names: Names = EQUAL_STEMS,
    suffixes: frozenset[str] = SUFFIXES,
) -> Listing:
    """Images and masks below two folders of `root`, paired by path without suffix; or below those of each of train/,
    val/ and test/ where `root` has these. `values`: of the masks' pixels -> class index or IGNORE.

    One folder may be the other, or lie in it: `names` tell masks apart in the first case.

    Names that cannot be paired are problems. Raises DataError for a missing folder.
    """
    pairs = folder_pairs(root, images, masks)
    pairs = [(part, a, a if os.path.realpath(a) == os.path.realpath(b) else b) for part, a, b in pairs]
    for _, image_folder, mask_folder in pairs:
        if image_folder == mask_folder and names.image == names.mask:
            raise DataError(
                f"image-mask-folder: `images:` and `masks:` are the same folder, {image_folder}, so every file would "
                "be its own mask; set `masks:` to the folder of the masks, or say how masks are named with "
                "`mask_name: '{stem}_mask'`"
            )
    if not pairs:
        missing = next(folder for folder in (images, masks) if not (root / folder).is_dir())
        raise DataError(
            f"image-mask-folder: there is no folder {missing}/ in {root}; set `images:` and `masks:` to the names "
            "of the folders in it, or in its train/, val/ and test/"
        )
    problems: list[str] = []
    entries: list[Entry] = []
    unlisted, others = 0, list[Path]()
    for part, image_folder, mask_folder in pairs:
        found_images, found_masks = tell_apart(image_folder, mask_folder, names, suffixes)
        problems += [*_irregular(root, found_images), *_irregular(root, found_masks)]
        paired = _paired(root, (image_folder, found_images), (mask_folder, found_masks), names, problems)
        for image, mask in paired:
            stem = key_of(image_folder, image, names.image)
            entries.append(Entry(f"{part}{stem}", image, mask))
        unlisted += len(found_images.images) - len(paired)
        others += [*found_images.others, *(found_masks.others if mask_folder != image_folder else [])]
    tests = official_tests([entry.name for entry in entries])
    if tests is not None:
        entries = [entry._replace(test=tests[entry.name]) for entry in entries]
    return Listing(
        root, tuple(sorted(entries)), tuple(problems), classes, values, unlisted=unlisted, ignored=by_suffix(others)
    )


def folder_pairs(root: Path, images: str, masks: str) -> list[tuple[str, Path, Path]]:
    """('', root/images, root/masks), else ('train/', root/train/images, root/train/masks) and so on."""
    if (root / images).is_dir() and (root / masks).is_dir():
        return [("", root / images, root / masks)]
    parts = [path for path in sorted(root.iterdir()) if path.name.lower() in (*TRAIN, *VAL, *TEST)]
    found = [(f"{part.name}/", part / images, part / masks) for part in parts]
    return found if found and all(a.is_dir() and b.is_dir() for _, a, b in found) else []


def tell_apart(
    images: Path, masks: Path, names: Names, suffixes: frozenset[str] = SUFFIXES
) -> tuple[ImageFiles, ImageFiles]:
    """The images and the masks, where all may lie in one folder. A mask is what is called as one."""
    found = image_files(images, suffixes)
    if images == masks:
        called = [path for path in found.images if key_of(masks, path, names.mask) is not None]
        if names.mask == "{stem}":  # all are called so, and images are what is called as one
            called = [path for path in called if key_of(images, path, names.image) is None]
        of_masks = set(called)
        return (
            found._replace(images=[path for path in found.images if path not in of_masks]),
            ImageFiles(called, found.others, []),
        )
    if masks.is_relative_to(images):
        found = ImageFiles(*([p for p in paths if not p.is_relative_to(masks)] for paths in found))
    return found, image_files(masks, suffixes)


def _paired(
    root: Path, images: tuple[Path, ImageFiles], masks: tuple[Path, ImageFiles], names: Names, problems: list[str]
) -> list[tuple[Path, Path]]:
    """Image and mask of equal stem, in whatever Unicode form. Of two files with one stem neither is taken, nor what is
    not called as `names` say."""
    image_of, unread_image = (_by_stem(images[0], paths, names.image) for paths in images[1][:2])
    mask_of, unread_mask = (_by_stem(masks[0], paths, names.mask) for paths in masks[1][:2])
    for folder, found, name, kind in ((*images, names.image, "image"), (*masks, names.mask, "mask")):
        odd = sorted(_in(root, path) for path in found.images if key_of(folder, path, name) is None)
        problems += [f"{path}: its name does not match `{kind}_name: {name}`; rename or remove it" for path in odd]
    problems += [*_equal_stems(root, image_of), *_equal_stems(root, mask_of)]
    for stem in sorted(image_of.keys() - mask_of.keys()):
        expected = f"{_in(root, masks[0] / _called(stem, names.mask))}.png"
        if stem in unread_mask:
            how = f"its mask {_in(root, unread_mask[stem][0])} has an unsupported type; save it as PNG"
        else:
            how = f"no mask; expected {expected} (or another image type)"
        problems += [f"{_in(root, path)}: {how}" for path in image_of[stem][: len(image_of[stem]) == 1]]
    for stem in sorted(mask_of.keys() - image_of.keys()):
        if stem in unread_image:
            how = f"its image {_in(root, unread_image[stem][0])} has an unsupported type; save it as PNG or JPEG"
        else:
            how = f"a mask without an image; add {_in(root, images[0] / _called(stem, names.image))}.jpg "
            how += "or remove the mask"
        problems += [f"{_in(root, path)}: {how}" for path in mask_of[stem][: len(mask_of[stem]) == 1]]
    both = sorted(image_of.keys() & mask_of.keys())
    return [(image_of[s][0], mask_of[s][0]) for s in both if len(image_of[s]) == len(mask_of[s]) == 1]


def _called(stem: str, name: str) -> str:
    """('deep/a', '{stem}_mask') -> 'deep/a_mask'."""
    folder, _, last = stem.rpartition("/")
    return f"{folder}/{name.format(stem=last)}" if folder else name.format(stem=last)


def key_of(folder: Path, path: Path, name: str) -> str | None:
    """The stem of a file below `folder`, with the folders above it; None where it is not called as `name` says."""
    within = path.relative_to(folder).with_suffix("").as_posix()
    if name == "{stem}":
        return within
    before, after = map(re.escape, name.split("{stem}"))
    found = re.fullmatch(rf"((?:.*/)?){before}([^/]+){after}", within)
    return found and found[1] + found[2]


def _equal_stems(root: Path, files_of: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    for paths in files_of.values():
        if len(paths) > 1:
            names = ", ".join(sorted(_in(root, path) for path in paths))
            yield f"{names}: files with one stem cannot be told apart; keep one"


def _by_stem(folder: Path, paths: Iterable[Path], name: str) -> dict[str, list[Path]]:
    """Path below the folder, without suffix and what `name` puts around the stem, in one Unicode form -> files."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        if (key := key_of(folder, path, name)) is not None:
            found.setdefault(composed(key), []).append(path)
    return found


def _irregular(root: Path, found: ImageFiles) -> Iterator[str]:
    return (f"{_in(root, path)}: {NOT_A_FILE}" for path in found.irregular)


def _refuse_equal_classes(root: Path, images: Iterable[Path]) -> None:
    """Raises DataError where two folders of one name, in two Unicode forms, would be two classes."""
    below = {path.parent for path in images}
    folders = sorted({parent.as_posix() for path in below for parent in (path / "file").relative_to(root).parents})
    held: dict[str, str] = {}
    for name in folders:
        if held.setdefault(composed(name), name) != name:
            raise DataError(
                f"image-folder: {root} holds the folder {name} twice, its accented letters stored in two Unicode forms "
                f"({held[composed(name)]!a} and {name!a}); move all images into one of them"
            )


def _in(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


FOLDER_SETS = {
    "image-folder": DataSet(
        list_image_folder, "your images, all in one folder or in one for each class, also below train/, val/ and test/"
    ),
    "image-mask-folder": DataSet(
        list_image_mask_folder, "your images/ and masks/ with equal file names, also below train/, val/ and test/"
    ),
}
