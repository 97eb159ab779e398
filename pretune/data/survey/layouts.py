"""Layouts of people's folders that are no images with masks beside them, and what to do with each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pretune.trainables.data.image_files import SUFFIXES, image_files

LOOKED_AT = 20  # files of a kind that are opened
UNKNOWN = "is no COCO JSON file of images, annotations and categories: give a folder of masks, or such a file"
CONVERT = "export it as COCO JSON or as PNG masks, and give these by --masks"


def advice(images: Path, masks: Path | None) -> str:
    """Say what lies there in place of masks, and what to do; general advice where nothing is known of it."""
    folders = [images] if masks is None else [images, masks]
    return next(
        (said for folder in folders for said in _known(folder)),
        f"{'give the folder of the masks with' if masks is None else 'check --images and'} --masks (a.jpg pairs with "
        "a.png or a_mask.png)",
    )


def _known(folder: Path) -> Iterator[str]:
    if any((above / "leftImg8bit").is_dir() for above in (folder, folder.parent)):
        yield "this looks like Cityscapes: write `dataset: cityscapes` and its folder as `root:`"
    others = image_files(folder).others
    for suffix in (".json", ".xml", ".txt"):
        for path in islice((path for path in others if path.suffix.lower() == suffix), LOOKED_AT):
            if (said := what_it_is(path)) != UNKNOWN:
                yield f"{path} {said}"
    for suffix in sorted({path.suffix.lower() for path in others} & {".gif", ".npy", ".npz", ".mat", ".svg", ".dcm"}):
        yield f"files of type {suffix} are not read as masks: save them as PNG"
    if twins := _twins(folder):
        yield (
            f"images and masks seem to lie in one folder with equal names ({twins}): move the masks into a folder of "
            "their own, and give it by --masks"
        )


def what_it_is(path: Path) -> str:
    """Say what a file of annotations is, as the end of a sentence; `UNKNOWN` for any other."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return UNKNOWN
    if path.suffix.lower() == ".json":
        return _what_json(text)
    if path.suffix.lower() == ".xml" and "<annotation" in text[:1000]:
        return f"holds boxes of VOC or shapes of CVAT, which are not read: {CONVERT}"
    if path.suffix.lower() == ".txt" and _is_outline(text.partition("\n")[0].split()):
        return f"holds boxes or outlines of YOLO, which are not read: {CONVERT}"
    return UNKNOWN


def _what_json(text: str) -> str:
    try:
        read: Any = json.loads(text)
    except ValueError:
        return UNKNOWN
    if isinstance(read, dict) and {"images", "annotations", "categories"} <= set(read):
        return "is a COCO file: give it by --masks, and the folder of its images by --images"
    if isinstance(read, dict) and {"shapes", "imagePath"} <= set(read):
        return f"is a file of LabelMe, which is not read: {CONVERT} (labelme2voc.py, labelme2coco)"
    if isinstance(read, list) and read and isinstance(read[0], dict) and {"data", "annotations"} <= set(read[0]):
        return f"is a project of Label Studio, which is not read: {CONVERT}"
    return UNKNOWN


def _is_outline(words: Sequence[str]) -> bool:
    """Whether a line has a class and four or more shares of the image's sides."""
    try:
        return len(words) >= 5 and words[0].isdigit() and all(0 <= float(word) <= 1 for word in words[1:])
    except ValueError:
        return False


def _twins(folder: Path) -> str:
    """'a.jpg, a.png', the first two images of one name; "" where there are none."""
    seen: dict[Path, Path] = {}
    for path in image_files(folder, SUFFIXES).images:
        if (first := seen.setdefault(path.with_suffix(""), path)) != path:
            return f"{first.name}, {path.name}"
    return ""
