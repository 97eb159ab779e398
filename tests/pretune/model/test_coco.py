"""Predicted masks as COCO JSON, read back by pycocotools and as a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask  # type: ignore[import-untyped, unused-ignore]
from pycocotools.coco import COCO  # type: ignore[import-untyped, unused-ignore]

from pretune.model.coco import run_lengths, write_coco
from pretune.search_spaces import schema
from pretune.trainables.data.resident.build import load_images

CLASSES = ("leaf", "background", "spot")


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans()))
def test_run_lengths_are_pycocotools(inside: NDArray[np.bool_]) -> None:
    height, width = inside.shape
    runs = coco_mask.frPyObjects({"size": [height, width], "counts": run_lengths(inside)}, height, width)
    assert (coco_mask.decode(runs).astype(bool) == inside).all()
    assert sum(run_lengths(inside)) == inside.size


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two images of 12 px with masks of three classes, one with all and one of background alone."""
    masks = np.ones((2, 12, 12), np.uint8)
    masks[0, 2:5, 3:9], masks[0, 7:, 6:8] = 0, 2
    (tmp_path / "photos" / "more").mkdir(parents=True)
    names = {"a.png": tmp_path / "0.png", "more/b.png": tmp_path / "1.png"}
    for (name, file), mask in zip(names.items(), masks, strict=True):
        Image.fromarray(mask).save(file)
        Image.new("RGB", (12, 12), (90, 60, 30)).save(tmp_path / "photos" / name)
    write_coco(names, CLASSES, 1, tmp_path / "annotations.json")
    return tmp_path


def test_pycocotools_reads_areas_boxes_and_masks(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = COCO(str(written / "annotations.json"))
    capsys.readouterr()
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["leaf", "spot"]
    found = read.loadAnns(read.getAnnIds())
    assert [(one["image_id"], one["category_id"], one["area"], one["bbox"]) for one in found] == [
        (1, 1, 18, [3, 2, 6, 3]),
        (1, 3, 10, [6, 7, 2, 5]),
    ]
    assert all(int(read.annToMask(one).sum()) == one["area"] for one in found)


def test_a_study_can_train_on_what_predict_wrote(written: Path) -> None:
    settings = schema.Coco.model_validate(
        {
            "dataset": "coco",
            "root": str(written),
            "images": "photos",
            "annotations": "annotations.json",
            "cache_size": 12,
        }
    )
    made = load_images(settings, written, written / "cache")
    assert made.masks is not None
    assert made.classes == ("background", "leaf", "spot")
    with Image.open(written / "0.png") as mask:
        expected = np.array([1, 0, 2], np.uint8)[np.asarray(mask)]
    assert (np.asarray(made.masks[0]) == expected).all()
    assert (np.asarray(made.masks[1]) == 0).all()


def test_an_images_file_is_named_as_it_lies_below_the_folder(written: Path) -> None:
    held = json.loads((written / "annotations.json").read_text())
    assert [one["file_name"] for one in held["images"]] == ["a.png", "more/b.png"]
