"""Folders of the user's own images, with or without masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trainables.data.errors import DataError
from trainables.data.listing import IGNORE, Entry, Listing

STRAY = 0.1  # share of images beside class folders up to which they are a mistake, and not the way of the folder
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def list_images(root: Path) -> Listing:
    """Every image below `root`. Where all of them lie in sub-folders, the first level of these is the image class.

    A class folder without an image is a problem: left out silently, the classes would not be those of the folders. So
    is an image beside class folders that hold nearly all: it would take the classes from all others.
    """
    paths = dict(sorted((path.relative_to(root).as_posix(), path) for path in _walk(root)))
    tops = [name.split("/")[0] if "/" in name else None for name in paths]
    index = {top: i for i, top in enumerate(sorted({top for top in tops if top is not None}))}
    stray = [name for name, top in zip(paths, tops, strict=True) if top is None]
    labelled = len(stray) <= STRAY * len(paths)
    entries = (
        Entry(name, path, label=index[top] if labelled and top is not None else None)
        for (name, path), top in zip(paths.items(), tops, strict=True)
        if top is not None or not labelled
    )
    beside = (f"{name}: lies beside class folders; move it into one of them, or remove it" for name in stray)
    problems = (*beside, *_empty_folders(root, set(index))) if labelled else ()
    return Listing(root, tuple(entries), problems, label_names=tuple(sorted(index)) if labelled else ())


def _empty_folders(root: Path, classes: set[str]) -> Iterator[str]:
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in classes:
            yield f"{path.name}: a class folder without an image; add images or remove it"


def list_images_and_masks(root: Path, images: str, masks: str, classes: tuple[str, ...], ignore: int | None) -> Listing:
    """Images and masks below two folders of `root`, paired by path without suffix.

    Names that cannot be paired are problems. Raises DataError for a missing folder or other than 1 to 255 classes.
    """
    if not 1 <= len(classes) <= IGNORE:
        raise DataError(f"classes: {len(classes)} names, but a mask holds 1 to {IGNORE} classes (0 to {IGNORE - 1})")
    problems: list[str] = []
    image_of, mask_of = _by_stem(root, images, problems), _by_stem(root, masks, problems)
    for stem in sorted(image_of.keys() - mask_of.keys()):
        missing = image_of[stem].relative_to(root).as_posix()
        problems.append(f"{missing}: no mask; expected {masks}/{stem}.png (or another image type)")
    for stem in sorted(mask_of.keys() - image_of.keys()):
        orphan = mask_of[stem].relative_to(root).as_posix()
        problems.append(f"{orphan}: a mask without an image; add {images}/{stem}.jpg or remove the mask")
    values = {i: i for i in range(len(classes))} | ({} if ignore is None else {ignore: IGNORE})
    entries = (Entry(stem, image_of[stem], mask_of[stem]) for stem in sorted(image_of.keys() & mask_of.keys()))
    return Listing(root, tuple(entries), tuple(problems), classes, values)


def _by_stem(root: Path, folder: str, problems: list[str]) -> dict[str, Path]:
    """Path below the folder, without suffix -> file. Of two files with one stem neither is taken."""
    base = root / folder
    if not base.is_dir():
        raise DataError(f"image-mask-folder: no folder {folder}/ in {root}; set `images:` and `masks:` to their names")
    found: dict[str, list[Path]] = {}
    for path in _walk(base):
        found.setdefault(path.relative_to(base).with_suffix("").as_posix(), []).append(path)
    for paths in found.values():
        if len(paths) > 1:
            names = ", ".join(sorted(path.relative_to(root).as_posix() for path in paths))
            problems.append(f"{names}: files with one stem cannot be told apart; keep one")
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Images at any depth, without hidden files and folders. Links are followed, but never in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, real))
        elif path.suffix.lower() in SUFFIXES:
            yield path
