"""Oxford-IIIT Pet: the lists, the trimap's meaning, and the real data where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.sets.pets import list_pets
from pretune.trainables.data.sets.table import ABOUT, find_folder, locate


def pets(root: Path, trainval: str = "Cat_1 1 1 1\nDog_2 2 2 1\n", test: str = "Dog_10 2 2 1\n") -> Path:
    """A tiny data set in the official layout; every listed image exists, trimap rows 1, 2, 3 from top to bottom."""
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    (root / "annotations" / "trainval.txt").write_text(trainval)
    (root / "annotations" / "test.txt").write_text(test)
    for line in (trainval + test).splitlines():
        name = line.split()[0]
        Image.new("RGB", (6, 6), (50, 100, 150)).save(root / "images" / f"{name}.jpg")
        trimap = np.repeat(np.array([1, 2, 3], np.uint8), 2)[:, None].repeat(6, 1)
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    return root


def test_lists_give_names_breeds_and_the_official_test(tmp_path: Path) -> None:
    listing = list_pets(pets(tmp_path), "trimap")
    assert [(e.name, e.label, e.test) for e in listing.entries] == [
        ("Cat_1", 0, False),
        ("Dog_10", 1, True),
        ("Dog_2", 1, False),
    ]
    assert listing.problems == ()


@pytest.mark.parametrize(
    ("labels", "classes", "rows"),
    [("trimap", ("pet", "background", "border"), [0, 1, 2]), ("foreground", ("background", "pet"), [1, 0, 1])],
)
def test_trimap_values_become_classes(
    tmp_path: Path, labels: Literal["trimap", "foreground"], classes: tuple[str, ...], rows: list[int]
) -> None:
    """File values 1, 2, 3 (pet, background, border); foreground counts the border as pet (P3)."""
    settings = schema.Pets(dataset="oxford-iiit-pet", labels=labels, cache_size=3)
    made = load_images(settings, pets(tmp_path / "data"), tmp_path / "cache")
    assert made.classes == classes
    assert made.masks is not None
    assert made.masks[0].tolist() == [[row] * 3 for row in rows]


def test_comments_and_blank_lines_are_no_entries(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "annotations" / "test.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n\nDog_10 2 2 1\n")
    listing = list_pets(root, "trimap")
    assert (len(listing.entries), listing.problems) == (3, ())


def test_broken_lines_duplicates_and_missing_files_are_each_reported(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "annotations" / "test.txt").write_text("Dog_10 2 2 1\nCat_1 1 1 1\nrubbish\nDog_2b zero 1 1\nCat_3 1 1 1\n")
    (root / "annotations" / "trimaps" / "Dog_2.png").unlink()
    listing = list_pets(root, "trimap")
    assert [entry.name for entry in listing.entries] == ["Cat_1", "Dog_10"]
    expected = [
        "line 3 is not NAME",
        "line 4 is not NAME",
        "Cat_1 is listed more",
        "Dog_2.png: the mask",
        "Cat_3.jpg: listed",
    ]
    assert len(listing.problems) == 5
    for text in expected:
        assert sum(text in problem for problem in listing.problems) == 1


def test_missing_lists_and_folders_say_how_to_get_them(tmp_path: Path) -> None:
    root = pets(tmp_path)
    (root / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"annotations/test.txt .*download=True"):
        list_pets(root, "trimap")


@pytest.mark.parametrize("place", ["", "oxford-iiit-pet"])
def test_the_folder_is_found_itself_or_inside_of_torchvisions_root(tmp_path: Path, place: str) -> None:
    root = pets(tmp_path / place)
    assert find_folder(tmp_path, ABOUT["oxford-iiit-pet"]) == root


def real_data() -> Path:
    beside = Path(__file__).resolve().parents[4] / ".." / "shared" / "data"
    folder = Path(os.environ.get("PRETUNE_TEST_DATA", beside))
    if not (folder / "oxford-iiit-pet").is_dir():
        pytest.skip("no real data: set PRETUNE_TEST_DATA to a folder that holds oxford-iiit-pet/")
    return folder


def test_the_real_lists_are_complete() -> None:
    root = locate(schema.Pets(dataset="oxford-iiit-pet"), real_data())
    assert root is not None
    listing = list_pets(root, "trimap")
    tests = [entry.test for entry in listing.entries]
    assert (tests.count(False), tests.count(True), listing.problems) == (3139, 3093, ())
    assert {entry.label for entry in listing.entries} == set(range(37))


def test_real_images_are_decoded_with_plausible_class_shares(tmp_path: Path) -> None:
    """The pack states mean shares of about 30 % pet, 58 % background, 12 % border."""
    settings = schema.Pets(dataset="oxford-iiit-pet", limit=150, cache_size=64)
    made = load_images(settings, real_data(), tmp_path)
    assert made.images.shape == (150, 64, 64, 3)
    assert made.masks is not None
    shares = np.bincount(made.masks.ravel(), minlength=256) / made.masks.size
    assert shares[:3] == pytest.approx([0.30, 0.58, 0.12], abs=0.05)
    assert shares[3:].sum() == 0
    assert made.images.std() > 30


def test_breeds_are_called_what_their_images_are(tmp_path: Path) -> None:
    """A breed of several words, and one of the 37 between them that this copy has no image of."""
    listed = list_pets(pets(tmp_path, "great_cat_1 1 1 1\nPug_2 3 2 1\n", "Pug_10 3 2 1\n"), "trimap")
    assert listed.label_names == ("great cat", "", "Pug")
    dogs = list_pets(tmp_path, "trimap", species="dogs")
    assert [dogs.label_names[entry.label or 0] for entry in dogs.entries] == ["Pug", "Pug"]
