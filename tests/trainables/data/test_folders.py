"""Listing the user's own folders: what counts as an image, which mask belongs to it, what cannot be paired."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainables.data.errors import DataError
from trainables.data.folders import list_images, list_images_and_masks


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_all_image_types_in_any_case_and_depth_but_nothing_hidden(tmp_path: Path) -> None:
    wanted = ["a.JPG", "b.jpeg", "c.PNG", "d.bmp", "e.webp", "f.tif", "g/h/i.Jpg"]
    touch(tmp_path, *wanted, "notes.txt", ".DS_Store", "._a.jpg", ".hidden/x.png", "Thumbs.db")
    assert [entry.name for entry in list_images(tmp_path).entries] == sorted(wanted)


def test_first_level_sub_folders_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.jpg", "cat/2.jpg", "dog/old/3.jpg")
    assert [(e.name, e.label) for e in list_images(tmp_path).entries] == [
        ("cat/2.jpg", 0),
        ("dog/1.jpg", 1),
        ("dog/old/3.jpg", 1),
    ]


def test_an_empty_class_folder_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "bird").mkdir()
    (tmp_path / ".hidden").mkdir()
    listing = list_images(tmp_path)
    assert listing.problems == ("bird: a class folder without an image; add images or remove it",)
    assert [entry.label for entry in listing.entries] == [0, 1]


def test_images_outside_of_sub_folders_mean_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.jpg", "2.jpg")
    assert [entry.label for entry in list_images(tmp_path).entries] == [None, None]


def test_a_stray_image_beside_class_folders_takes_no_classes_away(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(6)), "stray.jpg")
    found = list_images(tmp_path)
    assert [entry.label for entry in found.entries] == [0] * 6 + [1] * 6
    assert found.problems == ("stray.jpg: lies beside class folders; move it into one of them, or remove it",)
    assert found.label_names == ("cat", "dog")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "root" / "cat").mkdir(parents=True)
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    assert [entry.name for entry in list_images(tmp_path / "root").entries] == ["dog/1.jpg"]


def pairs(root: Path, ignore: int | None = None) -> tuple[list[str], list[str]]:
    listing = list_images_and_masks(root, "images", "masks", ("sky", "road"), ignore)
    return [entry.name for entry in listing.entries], list(listing.problems)


def test_images_and_masks_are_paired_by_stem(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/deep/b.JPEG", "masks/a.png", "masks/deep/b.bmp")
    assert pairs(tmp_path) == (["a", "deep/b"], [])


def test_what_cannot_be_paired_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/c.png")
    names, problems = pairs(tmp_path)
    assert names == ["a"]
    assert problems == [
        "images/b.jpg: no mask; expected masks/b.png (or another image type)",
        "masks/c.png: a mask without an image; add images/c.jpg or remove the mask",
    ]


def test_two_files_with_one_stem_are_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/a.png", "images/b.jpg", "masks/b.png")
    names, problems = pairs(tmp_path)
    assert names == ["b"]
    assert problems == ["images/a.jpg, images/a.png: files with one stem cannot be told apart; keep one"]


def test_the_ignored_value_is_left_out_even_where_it_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png")
    values = [list_images_and_masks(tmp_path, "images", "masks", ("x", "y"), i).mask_values for i in (None, 9, 0)]
    assert values == [{0: 0, 1: 1}, {0: 0, 1: 1, 9: 255}, {0: 255, 1: 1}]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    with pytest.raises(DataError, match="no folder masks/ in"):
        pairs(tmp_path)


@pytest.mark.parametrize("count", [0, 256])
def test_no_class_or_one_that_would_be_the_ignored_index_is_an_error(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match=f"{count} names, but a mask holds 1 to 255"):
        list_images_and_masks(tmp_path, "images", "masks", tuple(map(str, range(count))), None)
