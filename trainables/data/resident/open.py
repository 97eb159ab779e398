"""Open a built data set: memory-mapped arrays and their index, in milliseconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.trainables.data.errors import DataError, printable
from pretune.trainables.data.image_set import ImageSet

INDEX = "index.json"  # of a built data set: names, classes, labels, and whose images its maps are of


def open_cached(digest: str, cache: Path) -> ImageSet | None:
    """The built data set `digest`, or None where there is none. Raises DataError for a damaged one."""
    folder = cache / digest
    if not folder.is_dir():
        return None
    try:
        return _open(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the cached data set {folder} is damaged ({error}); delete it and run again") from error


def open_built(digest: str, cache: Path) -> ImageSet:
    """The data set `digest`, which was built a moment ago. Raises DataError where it was removed since."""
    opened = open_cached(digest, cache)
    if opened is None:
        raise DataError(f"the cached data set {cache / digest} was removed while it was being opened; run again")
    return opened


def _open(folder: Path) -> ImageSet:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if "of" in index:  # maps, beside the images that they are of
        images = _open(folder.parent / str(index["of"]))
        regions, depth = _map(folder / "regions.npy"), _map(folder / "depth.npy")
        return replace(
            images,
            regions=images.regions if regions is None else regions,
            depth=images.depth if depth is None else depth,
        )
    labels, tests = index["labels"], index["official_test"]
    return ImageSet(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        masks=_map(folder / "masks.npy"),
        regions=_map(folder / "regions.npy"),
        depth=_map(folder / "depth.npy"),
        labels=None if labels is None else np.array(labels, np.int64),
        official_test=None if tests is None else np.array(tests, np.bool_),
        names=tuple(map(printable, index["names"])),
        classes=tuple(index["classes"]),
        skipped=tuple(map(printable, index["skipped"])),
        label_names=tuple(map(printable, index.get("label_names", ()))),  # caches of before the adapters have none
        parts=index.get("parts"),
        groups=index.get("groups"),
        transparent=tuple(map(printable, index.get("transparent", ()))),
    )


def _map(path: Path) -> NDArray[Any] | None:
    return np.load(path, mmap_mode="r") if path.exists() else None
