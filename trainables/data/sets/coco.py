"""COCO JSON: polygons and run-length masks of objects, as annotation tools export them; pycocotools reads both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.listing import Entry, Listing, Member, Pack
from pretune.trainables.data.sets.catalogue import DataSet
from pretune.trainables.data.sets.present import with_files


class Annotated(NamedTuple):
    """One JSON file: its images, and the annotations of each."""

    images: Sequence[Mapping[str, Any]]
    of_image: Mapping[int, Sequence[Mapping[str, Any]]]  # image id -> annotations
    names: Mapping[int, str]  # category id -> name, in the order of ids


class Masks:
    """Masks by index of the image in the file: (H, W) uint8, drawn when they are asked for.

    Crowds are IGNORE. Objects cover them, the smaller ones those that are larger, since COCO's objects may overlap.
    """

    def __init__(self, read: Annotated, index: Mapping[int, int]) -> None:
        self._read, self._index = read, index

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        image = self._read.images[row]
        mask = np.zeros((int(image["height"]), int(image["width"])), np.uint8)
        found = [(a, drawn(a, mask.shape)) for a in self._read.of_image.get(image["id"], ())
                 if a["category_id"] in self._index]  # fmt: skip
        for annotation, inside in sorted(found, key=lambda one: (not one[0].get("iscrowd"), -int(one[1].sum()))):
            mask[inside] = IGNORE if annotation.get("iscrowd") else self._index[annotation["category_id"]]
        return mask


def drawn(annotation: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of an object: polygons, or run lengths as a list or compressed.

    Raises BadFileError for other forms."""
    from pycocotools import mask as coco

    height, width = shape
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, list) and segmentation:
            runs = coco.merge(coco.frPyObjects([polygon for polygon in segmentation if polygon], height, width))
        elif isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], list):
            runs = coco.frPyObjects(dict(segmentation), height, width)
        elif isinstance(segmentation, Mapping):
            runs = dict(segmentation)
        else:
            raise BadFileError(f"annotation {annotation.get('id')} has no segmentation; boxes alone are no masks")
        inside: NDArray[np.bool_] = coco.decode(runs).astype(np.bool_)
    except BadFileError:
        raise
    except Exception as error:  # its Cython raises almost any type
        raise BadFileError(f"annotation {annotation.get('id')} cannot be drawn ({error}); export it again") from error
    if inside.shape != shape:
        raise BadFileError(
            f"annotation {annotation.get('id')} is of {inside.shape[::-1]} px, its image of {shape[::-1]}"
        )
    return inside


def list_coco(settings: schema.Coco, root: Path) -> Listing:
    """Images and their drawn masks. Raises DataError for a file of another form, and for unknown classes."""
    parts = settings.annotations
    files = {"": parts} if isinstance(parts, str) else {k: v for k, v in parts.model_dump().items() if v is not None}
    read = {part: read_annotations(root / file) for part, file in files.items()}
    names = list(dict.fromkeys(name for one in read.values() for name in one.names.values()))
    if unknown := sorted({*settings.classes} - {*names}):
        raise DataError(f"coco: no category is called {', '.join(unknown)}; there are {', '.join(names)}")
    kept = settings.classes or tuple(names)
    if odd := [name for name in kept if "/" in name or not name.strip() or not name.isprintable()]:
        raise DataError(
            f"coco: the category {odd[0]!r} cannot stand in the name of a metric; leave it out by `classes:`"
        )
    if len(kept) >= IGNORE:
        raise DataError(f"coco: {len(kept)} categories, but a mask holds up to {IGNORE - 1}; name some by `classes:`")
    last = "test" if "test" in files else "val"
    entries = [
        Entry(
            f"{part}/{name}" if part else name,
            root / settings.images / name,
            Member(root / files[part], row),
            test=part == last if part else None,
            listed=(part or None, None),
        )
        for part, one in read.items()
        for row, name in enumerate(str(image["file_name"]) for image in one.images)
    ]
    problems: list[str] = []
    there = with_files(entries, root, problems)
    indices = {root / file: _indices(read[part].names, kept) for part, file in files.items()}
    opened = {root / file: read[part] for part, file in files.items()}
    classes = (settings.rest, *kept)
    return Listing(
        root, tuple(sorted(there)), tuple(problems), classes,
        {i: i for i in range(len(classes))} | {IGNORE: IGNORE},
        unpack=partial(_open, opened, indices), unlisted=len(entries) - len(there),
    )  # fmt: skip


def _open(read: Mapping[Path, Annotated], indices: Mapping[Path, Mapping[int, int]], path: Path) -> Pack:
    """A JSON file as the masks of its images."""
    return Pack((), Masks(read[path], indices[path]))


def _indices(names: Mapping[int, str], kept: Sequence[str]) -> dict[int, int]:
    """Category id -> class index; background is 0."""
    return {key: 1 + kept.index(name) for key, name in names.items() if name in kept}


def read_annotations(path: Path) -> Annotated:
    """A COCO JSON file. Raises DataError where it is none, and where pycocotools is missing."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise DataError("coco: pycocotools is missing; install it with: pip install 'pretune[coco]'") from None
    if not path.is_file():
        raise DataError(f"coco: no file {path}; `annotations:` names it, below `root:`")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        images, annotations = read["images"], read["annotations"]
        names = {int(one["id"]): str(one["name"]) for one in sorted(read["categories"], key=lambda one: one["id"])}
        [(one["id"], one["file_name"], int(one["height"]), int(one["width"])) for one in images]
        of_image: dict[int, list[Mapping[str, Any]]] = {}
        for one in annotations:
            of_image.setdefault(one["image_id"], []).append(one)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"coco: {path} is no COCO file of images, annotations and categories ({error!r})") from error
    if annotations and not any(one.get("segmentation") for one in annotations):
        raise DataError(f"coco: {path} holds boxes and no segmentations; export polygons or masks")
    if twice := sorted(name for name, count in Counter(names.values()).items() if count > 1):
        raise DataError(f"coco: {path} has two categories called {', '.join(twice)}; rename one")
    return Annotated(images, of_image, names)


COCO_SETS = {"coco": DataSet(list_coco, "your images with a COCO JSON file of polygons or run-length masks")}
