"""Predicted masks as COCO JSON, for annotation tools and for `dataset: coco`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_coco(masks: Mapping[str, Path], classes: Sequence[str], background: int, path: Path) -> None:
    """Write the masks of a folder to one JSON file.

    Each class in an image is one annotation, with all its pixels as uncompressed run lengths (as in COCO-Stuff); the
    background has none. Category ids are 1 + class index.

    Args:
        masks: name of an image's file -> its mask, an image of class indices.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, file) in enumerate(masks.items(), 1):
        with Image.open(file) as opened:
            mask = np.asarray(opened)
        images.append({"id": number, "file_name": name, "width": mask.shape[1], "height": mask.shape[0]})
        for index in sorted({*np.unique(mask).tolist()} - {background}):
            inside = mask == index
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": index + 1, "iscrowd": 0}
            annotation |= {"area": int(inside.sum()), "bbox": _box(inside)}
            annotation["segmentation"] = {"size": list(mask.shape), "counts": run_lengths(inside)}
            annotations.append(annotation)
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes) if index != background]
    written = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(written), encoding="utf-8")


def run_lengths(inside: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, pixels outside and inside by turns, outside first."""
    flat = inside.flatten(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts: list[int] = np.diff([0, *borders.tolist(), flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def _box(inside: NDArray[np.bool_]) -> list[int]:
    """Left, top, width and height in px."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
