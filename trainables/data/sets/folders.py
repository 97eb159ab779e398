"""Folders of the user's own images, with or without masks.

Either may be cut into train/, val/ and test/, as torchvision and others expect it: then these are the official lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_files import NOT_A_FILE, ImageFiles, by_suffix, composed, image_files
from pretune.trainables.data.listing import Entry, Listing, class_of_value
from pretune.trainables.data.sets.catalogue import DataSet

STRAY = 0.1  # share of images beside class folders up to which they are a mistake, and not the way of the folder

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")
TEST = ("test", "testing")


def list_image_folder(settings: schema.ImageFolder, root: Path) -> Listing:
    """See `list_images`."""
    return list_images(root)


def list_image_mask_folder(settings: schema.ImageMaskFolder, root: Path) -> Listing:
    """See `list_images_and_masks`."""
    values = class_of_value(settings)
    return list_images_and_masks(root, settings.images, settings.masks, settings.classes, values)


def list_images(root: Path) -> Listing:
    """Every image below `root`. Where all of them lie in sub-folders, the first level of these is the image class.

    Below train/ with val/ or test/ beside it, the next level is: see `official_tests`.
    A class folder without an image is a problem: ignored silently, the classes would not be those of the folders. So
    is an image beside class folders that hold nearly all: it would take the classes from all others.
    """
    found = image_files(root)
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
    beside = (f"{name}: lies beside class folders; move it into one of them, or remove it" for name in stray)
    bases = [root] if tests is None else sorted({root / name.split("/")[0] for name in paths})
    empty = (problem for base in bases for problem in _empty_folders(root, base, paths))
    problems = (*beside, *empty) if labelled else ()
    problems = (*problems, *_irregular(root, found))
    return Listing(
        root, entries, problems, label_names=tuple(sorted(index)) if labelled else (),
        unlisted=len(paths) - len(entries), ignored=by_suffix(found.others),
    )  # fmt: skip


def official_tests(names: Iterable[str]) -> dict[str, bool | None] | None:
    """Which of the files are on the official test list: those below test/, or val/ where there is no test/.

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
    root: Path, images: str, masks: str, classes: tuple[str, ...], values: Mapping[int, int]
) -> Listing:
    """Images and masks below two folders of `root`, paired by path without suffix; or below those of each of train/,
    val/ and test/ where `root` has these. `values`: of the masks' pixels -> class index or IGNORE.

    Names that cannot be paired are problems. Raises DataError for a missing folder.
    """
    pairs = _folder_pairs(root, images, masks)
    for _, image_folder, mask_folder in pairs:
        if os.path.realpath(image_folder) == os.path.realpath(mask_folder):
            raise DataError(
                f"image-mask-folder: `images:` and `masks:` are one folder, {image_folder}, in which every file would "
                "be its own mask; move the masks into a folder of their own and name it by `masks:`"
            )
    if not pairs:
        missing = next(folder for folder in (images, masks) if not (root / folder).is_dir())
        raise DataError(
            f"image-mask-folder: no folder {missing}/ in {root}; set `images:` and `masks:` to the names of the "
            "folders there, or of those in each of its train/, val/ and test/"
        )
    problems: list[str] = []
    entries: list[Entry] = []
    unlisted, others = 0, list[Path]()
    for part, image_folder, mask_folder in pairs:
        found_images, found_masks = image_files(image_folder), image_files(mask_folder)
        problems += [*_irregular(root, found_images), *_irregular(root, found_masks)]
        paired = _paired(root, (image_folder, found_images), (mask_folder, found_masks), problems)
        entries += [Entry(f"{part}{_stem(image_folder, image)}", image, mask) for image, mask in paired]
        unlisted += len(found_images.images) - len(paired)
        others += [*found_images.others, *found_masks.others]
    tests = official_tests([entry.name for entry in entries])
    if tests is not None:
        entries = [entry._replace(test=tests[entry.name]) for entry in entries]
    return Listing(
        root, tuple(sorted(entries)), tuple(problems), classes, values, unlisted=unlisted, ignored=by_suffix(others)
    )


def _folder_pairs(root: Path, images: str, masks: str) -> list[tuple[str, Path, Path]]:
    """('', root/images, root/masks), else ('train/', root/train/images, root/train/masks) and so on."""
    if (root / images).is_dir() and (root / masks).is_dir():
        return [("", root / images, root / masks)]
    parts = [path for path in sorted(root.iterdir()) if path.name.lower() in (*TRAIN, *VAL, *TEST)]
    found = [(f"{part.name}/", part / images, part / masks) for part in parts]
    return found if found and all(a.is_dir() and b.is_dir() for _, a, b in found) else []


def _paired(
    root: Path, images: tuple[Path, ImageFiles], masks: tuple[Path, ImageFiles], problems: list[str]
) -> list[tuple[Path, Path]]:
    """Image and mask of equal stem, in whatever Unicode form. Of two files with one stem neither is taken."""
    image_of, mask_of = (_by_stem(folder, found.images) for folder, found in (images, masks))
    unread_image, unread_mask = (_by_stem(folder, found.others) for folder, found in (images, masks))
    problems += [*_equal_stems(root, image_of), *_equal_stems(root, mask_of)]
    for stem in sorted(image_of.keys() - mask_of.keys()):
        expected = f"{masks[0].relative_to(root).as_posix()}/{stem}.png"
        if stem in unread_mask:
            how = f"its mask {_in(root, unread_mask[stem][0])} is of a type that is not read; save it as PNG"
        else:
            how = f"no mask; expected {expected} (or another image type)"
        problems += [f"{_in(root, path)}: {how}" for path in image_of[stem][: len(image_of[stem]) == 1]]
    for stem in sorted(mask_of.keys() - image_of.keys()):
        if stem in unread_image:
            how = f"its image {_in(root, unread_image[stem][0])} is of a type that is not read; save it as PNG or JPEG"
        else:
            how = f"a mask without an image; add {images[0].relative_to(root).as_posix()}/{stem}.jpg or remove the mask"
        problems += [f"{_in(root, path)}: {how}" for path in mask_of[stem][: len(mask_of[stem]) == 1]]
    both = sorted(image_of.keys() & mask_of.keys())
    return [(image_of[s][0], mask_of[s][0]) for s in both if len(image_of[s]) == len(mask_of[s]) == 1]


def _equal_stems(root: Path, files_of: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    for paths in files_of.values():
        if len(paths) > 1:
            names = ", ".join(sorted(_in(root, path) for path in paths))
            yield f"{names}: files with one stem cannot be told apart; keep one"


def _by_stem(folder: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Path below the folder, without suffix and in one Unicode form -> files."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(composed(_stem(folder, path)), []).append(path)
    return found


def _stem(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


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
