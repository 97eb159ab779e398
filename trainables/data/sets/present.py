"""Files that are there, what masks show, and what entries say, before anything is decoded for good."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.listing import Entry, file_of
from pretune.trainables.data.sets.parquet import Shards


def with_files(entries: Iterable[Entry], root: Path, problems: list[str]) -> list[Entry]:
    """The entries whose image and mask are there; the others become problems."""
    held: dict[Path, set[str]] = {}  # one folder listing in place of a `stat` for each file: network drives are slow
    kept = []
    for entry in entries:
        paths = [file_of(source) for source in (entry.image, entry.mask) if source is not None]
        missing = [path for path in paths if path.name not in _names(path.parent, held)]
        problems += [f"{path.relative_to(root).as_posix()}: listed, but the file is missing" for path in missing]
        if not missing:
            kept.append(entry)
    return kept


def showing(entries: Sequence[Entry], values: frozenset[int]) -> list[Entry]:
    """The entries whose mask file holds any of `values`. Those that cannot be read stay: decoding them says why."""
    with ThreadPoolExecutor() as pool:
        seen = pool.map(lambda entry: None if entry.mask is None else values_in_mask(file_of(entry.mask)), entries)
        return [entry for entry, found in zip(entries, seen, strict=True) if found is None or found & values]


def values_in_mask(path: Path) -> frozenset[int] | None:
    """The values in a mask file, or None where it cannot be read. Remembered until the file changes."""
    try:
        stat = path.stat()
        return _values_in_mask(path, stat.st_size, stat.st_mtime_ns)
    except Exception:  # Pillow's decoders raise almost any type on damaged files
        return None


def read_indices(path: Path) -> NDArray[np.uint8]:
    """The mask file's values, (H, W)."""
    with Image.open(path) as image:
        return np.asarray(image).astype(np.uint8)


def labels_of(entries: Sequence[Entry]) -> NDArray[np.int64] | None:
    """(N,) image classes, where every entry has one."""
    if isinstance(entries, Shards):
        return entries.labels
    labels = [entry.label for entry in entries]
    return None if not labels or None in labels else np.array(labels, np.int64)


def tests_of(entries: Sequence[Entry]) -> NDArray[np.bool_] | None:
    """(N,) whether an image is on the data set's own test list, where it has one."""
    if isinstance(entries, Shards):
        return None
    tests = [entry.test for entry in entries]
    return None if not tests or None in tests else np.array(tests, np.bool_)


def marks_of(entries: Sequence[Entry], which: int) -> tuple[str | None, ...] | None:
    """Part (0) or group (1) of each image, by `split.file`; None where it has none."""
    if isinstance(entries, Shards):
        return None
    found = tuple(entry.listed[which] for entry in entries)
    return found if any(found) else None


@lru_cache(maxsize=200_000)
def _values_in_mask(path: Path, size: int, mtime_ns: int) -> frozenset[int]:
    return frozenset(np.flatnonzero(np.bincount(read_indices(path).ravel())).tolist())


def _names(folder: Path, held: dict[Path, set[str]]) -> set[str]:
    if folder not in held:
        held[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    return held[folder]
