"""Image files below a folder: the one listing, by which training, `pretune data check` and `pretune predict` go."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
WITH_ARRAYS = SUFFIXES | {".npy"}  # where a data set says how many channels its images have
NOT_A_FILE = "a pipe, a socket or a device, and no file; remove it"


class ImageFiles(NamedTuple):
    """Files below a folder, in the order of folders and names; nothing hidden."""

    images: list[Path]
    others: list[Path]  # of types that are not read
    irregular: list[Path]  # called like images, but pipes or devices, which need not end


def image_files(folder: Path, suffixes: frozenset[str] = SUFFIXES) -> ImageFiles:
    """Files at any depth, without hidden ones and folders. Links are followed, but never in a circle."""
    found = ImageFiles([], [], [])
    for path in _visible(folder):
        if path.suffix.lower() not in suffixes:
            found.others.append(path)
        else:
            (found.images if is_file(path) else found.irregular).append(path)
    return found


def is_file(path: Path) -> bool:
    """Whether reading it ends. A link that leads nowhere counts: opening it says what is wrong."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _visible(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _visible(path, (*above, real))
        else:
            yield path


def composed(name: str) -> str:
    """The name in one Unicode form (NFC): an accented letter may be stored as one character or as two."""
    return unicodedata.normalize("NFC", name)


def by_suffix(paths: Iterable[Path]) -> dict[str, int]:
    """Suffix in small letters -> files."""
    return dict(Counter(path.suffix.lower() for path in paths))


def not_read(ignored: Mapping[str, int]) -> str:
    """A sentence on files of types that are not read, by suffix; nothing where there are none."""
    if not ignored:
        return ""
    count = sum(ignored.values())
    kinds = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in sorted(ignored.items()))
    files = "1 file is" if count == 1 else f"{count} files are"
    return f"{files} not read as images: {kinds} (read are {', '.join(sorted(SUFFIXES))}; convert what is an image)"
