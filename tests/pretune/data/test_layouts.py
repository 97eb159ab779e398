"""Layouts of folders from public data sets and annotation tools: read right, or refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pretune.data.survey.pairs import survey_coco, survey_pairs
from pretune.trainables.data.errors import DataError

Disc = NDArray[np.bool_]
BLACK_RED = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)


def saved(pixels: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photo(path: Path, seed: int = 0) -> None:
    saved(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8), path)


def disc(seed: int) -> Disc:
    y, x = np.random.default_rng(seed).integers(6, 18, 2)
    inside: Disc = np.hypot(*(np.mgrid[:24, :24] - np.array([[[y]], [[x]]]))) < 5
    return inside


def grey(inside: Disc, value: int = 255) -> NDArray[np.uint8]:
    return (inside * value).astype(np.uint8)


def pairs(root: Path, image: str, mask: str, drawn: Callable[[Disc], Any] = grey, count: int = 4) -> None:
    for i in range(count):
        photo(root / image.format(i=i), i)
        saved(drawn(disc(i)), root / mask.format(i=i))


# ------------------------------------------------------------------------------------------------------------ read


@pytest.mark.parametrize(
    ("image", "mask", "found"),
    [
        ("train/{i}.jpg", "train_masks/{i}_mask.png", ("train", "train_masks")),
        ("ISIC_Input/{i}.jpg", "ISIC_GroundTruth/{i}_segmentation.png", ("ISIC_Input", "ISIC_GroundTruth")),
        ("My Photos/Blätter {i} (1).JPG", "My Labels/Blätter {i} (1).PNG", ("My Photos", "My Labels")),
        ("images/train/{i}.jpeg", "masks/train/{i}.png", ("images", "masks")),
        ("tiles/{i}.bmp", "segmented/{i}.tif", ("tiles", "segmented")),
    ],
)
def test_folders_are_found_by_what_they_are_called(
    tmp_path: Path, image: str, mask: str, found: tuple[str, str]
) -> None:
    pairs(tmp_path, image, mask)
    seen = survey_pairs(tmp_path, None)
    assert (seen.images, seen.masks, seen.count) == (*found, 4)


def test_masks_of_one_part_alone_are_used(tmp_path: Path) -> None:
    """As Kaggle has it: the test images have no masks."""
    pairs(tmp_path, "train/images/{i}.png", "train/masks/{i}.png")
    photo(tmp_path / "test" / "images" / "9.png")
    seen = survey_pairs(tmp_path, None)
    assert (seen.root, seen.images, seen.masks, seen.count) == (tmp_path / "train", "images", "masks", 4)


@pytest.mark.parametrize(
    ("drawn", "settings"),
    [
        (lambda m: grey(m, 1).astype(np.uint16), {}),
        (lambda m: m.astype(np.uint16) * 65535, {"mask_values": [0, 65535]}),
        (lambda m: (m + 1).astype(np.uint8), {"mask_values": [1, 2]}),
        (lambda m: m, {}),  # one bit
        (lambda m: np.dstack([grey(m)] * 3 + [np.full(m.shape, 255, np.uint8)]), {"mask_values": [0, 255]}),
        (lambda m: BLACK_RED[m.astype(int)], {"mask_colors": {"background": [0, 0, 0], "class 1": [255, 0, 0]}}),
        (lambda m: np.dstack([BLACK_RED[m.astype(int)], grey(m)]), {"mask_colors": {
            "background": [0, 0, 0], "class 1": [255, 0, 0]}}),
    ],
)  # fmt: skip
def test_two_classes_however_they_are_drawn(tmp_path: Path, drawn: Callable[[Disc], Any], settings: Any) -> None:
    """Red on black is no `rider` of Cityscapes: one colour beside black tells no palette."""
    pairs(tmp_path, "images/{i}.png", "masks/{i}.png", drawn)
    assert survey_pairs(tmp_path, None).meaning.settings == settings


# --------------------------------------------------------------------------------------------------------- refused


def written(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


COCO = {"images": [], "annotations": [], "categories": []}
LABELME = {"version": "5", "shapes": [], "imagePath": "0.jpg"}
LABEL_STUDIO = [{"id": 1, "data": {}, "annotations": []}]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a/0.json", LABELME, "a/0.json is a file of LabelMe, which is not read: export it as COCO JSON or as PNG"),
        ("project.json", LABEL_STUDIO, "project.json is a project of Label Studio, which is not read: export"),
        ("annotations/train.json", COCO, "train.json is a COCO file: give it by --masks, and the folder of its images"),
        ("a/0.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n", "0.txt holds boxes or outlines of YOLO, which are not read"),
        ("annotations.xml", "<annotations><version>1.1", "annotations.xml holds boxes of VOC or shapes of CVAT"),
        ("masks/0.gif", "GIF", "files of type .gif are not read as masks: save them as PNG"),
        ("leftImg8bit/x.txt", "", "this looks like Cityscapes: write `dataset: cityscapes`"),
        ("README.txt", "photographs of 2020\n", "give the folder of the masks with --masks (a.jpg pairs with a.png"),
    ],
)  # fmt: skip
def test_annotations_that_are_no_masks_are_named(tmp_path: Path, file: str, content: Any, said: str) -> None:
    photo(tmp_path / "a" / "0.jpg")
    written(tmp_path / file, content)
    with pytest.raises(DataError, match=r"no masks found in |no mask in ") as refused:
        survey_pairs(tmp_path, None)
    assert said in str(refused.value)
    path = tmp_path / file
    if path.suffix in (".json", ".xml") and content is not COCO:
        with pytest.raises(DataError) as given:
            survey_coco(tmp_path / "a", path)
        assert said.removeprefix(file) in str(given.value)


def test_an_image_and_its_mask_of_one_name_in_one_folder_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, "a/{i}.jpg", "a/{i}.png")
    with pytest.raises(DataError, match=r"equal names \(0.jpg, 0.png\): move the masks"):
        survey_pairs(tmp_path / "a", None)


def test_arrays_as_masks_of_photographs_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "0.png")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "0.npy", grey(disc(0), 1))
    with pytest.raises(DataError, match=r"0\.npy: arrays are read as masks"):
        survey_pairs(tmp_path, None)


def test_a_damaged_first_mask_is_left_to_the_run(tmp_path: Path) -> None:
    pairs(tmp_path, "images/{i}.png", "masks/{i}.png")
    (tmp_path / "masks" / "0.png").write_bytes(b"no image")
    assert survey_pairs(tmp_path, None).meaning.classes == ("background", "object")


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (lambda m: np.dstack([grey(m, 0)] * 3 + [grey(m)]), "they differ in opacity alone: save that channel as grey"),
        (lambda m: grey(m, 0), "contain only 0; a task needs at least two classes"),
        (lambda m: np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8), "--images and --masks swapped?"),
    ],
)  # fmt: skip
def test_masks_without_classes_are_refused(tmp_path: Path, drawn: Callable[[Disc], Any], said: str) -> None:
    pairs(tmp_path, "images/{i}.png", "masks/{i}.png", drawn)
    with pytest.raises(DataError) as refused:
        survey_pairs(tmp_path, None)
    assert said in str(refused.value)
