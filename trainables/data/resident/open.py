"""Open a built data set: memory-mapped arrays and their index, in milliseconds.

The index has a checksum of itself, and the size and sha256 of every array: pixels are believed as they were decoded, or
decoded anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.trainables.checksums import described, is_as_recorded, say_damaged
from pretune.trainables.data.errors import DataError, printable
from pretune.trainables.data.image_set import ImageSet, image_names

THOROUGH = 1 << 30  # bytes: hashed in about a second
FILES = "files"  # in the index: its arrays, as `described`
SEAL = ', "sha256": "%s"}'  # ends the index, in place of its brace: the checksum of all the rest, with the brace
INDEX = "index.json"  # of a built data set: names, classes, labels, and whose images its maps are of


def open_cached(digest: str, cache: Path, thoroughly: bool = False) -> ImageSet | None:
    """The built data set `digest`, or None where there is none, or one that is not as it was written.

    Args:
        thoroughly: also hash arrays that were not changed since, up to THOROUGH bytes each: once for a study, since a
            disk that loses bits changes no times. Larger ones are believed by size and time.
    """
    folder = cache / digest
    if not folder.is_dir():
        return None
    try:
        index = _read_index(folder)
        _check_arrays(folder, index.get(FILES), thoroughly)
        if "of" not in index:
            return _open(folder, index)
        images = open_cached(str(index["of"]), cache, thoroughly)
        return None if images is None else _with_maps(images, folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, RecursionError):
        say_damaged(folder, "it is made anew")
        return None


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write the index of arrays that are in the folder, which ends their writing."""
    text = json.dumps(index | {FILES: {path.name: described(path) for path in sorted(folder.glob("*.npy"))}})
    (folder / INDEX).write_text(text[:-1] + SEAL % hashlib.sha256(text.encode()).hexdigest(), encoding="utf-8")


def _read_index(folder: Path) -> dict[str, Any]:
    """The content of an index. Raises ValueError where it is not what was written."""
    content = (folder / INDEX).read_bytes()
    index = dict(json.loads(content))
    recorded = index.pop("sha256", None)  # none in caches of before 2026-11-29
    text = content[: -len(SEAL % ("0" * 64))] + b"}"
    if (recorded or FILES in index) and recorded != hashlib.sha256(text).hexdigest():
        raise ValueError("the index is not what was written")
    return index


def _check_arrays(folder: Path, files: dict[str, dict[str, Any]] | None, thoroughly: bool) -> None:
    """Raises ValueError unless the arrays are those that the index names."""
    written = (folder / INDEX).stat().st_mtime_ns
    if files is None:
        return
    if {path.name for path in folder.glob("*.npy")} != files.keys() or not all(
        is_as_recorded(folder / name, about, None if thoroughly and about["size"] <= THOROUGH else written)
        for name, about in files.items()
    ):
        raise ValueError("an array is not what was written")


def open_built(digest: str, cache: Path) -> ImageSet:
    """The data set `digest`, which was built a moment ago. Raises DataError where it was removed since."""
    opened = open_cached(digest, cache)
    if opened is None:
        raise DataError(f"the cached data set {cache / digest} was removed while it was being opened; run again")
    return opened


def _with_maps(images: ImageSet, folder: Path) -> ImageSet:
    """The images with maps of them, which lie in a folder of their own."""
    regions, depth = _map(folder / "regions.npy"), _map(folder / "depth.npy")
    return replace(
        images,
        regions=images.regions if regions is None else regions,
        depth=images.depth if depth is None else depth,
    )


def _open(folder: Path, index: dict[str, Any]) -> ImageSet:
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
        transparent=tuple(map(printable, image_names(index.get("transparent", ())))),
    )


def _map(path: Path) -> NDArray[Any] | None:
    return np.load(path, mmap_mode="r") if path.exists() else None
