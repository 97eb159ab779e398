"""Listing the user's own folders: what counts as an image, which mask belongs to it, what cannot be paired."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from torchvision import datasets

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import class_of_value
from pretune.trainables.data.sets.folders import list_images, list_images_and_masks
from pretune.trainables.data.sets.table import list_files


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
    assert found.problems == ("stray.jpg: is not in a class folder; move it into one, or remove it",)
    assert found.label_names == ("cat", "dog")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "root" / "cat").mkdir(parents=True)
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    assert [entry.name for entry in list_images(tmp_path / "root").entries] == ["dog/1.jpg"]


def pairs(root: Path) -> tuple[list[str], list[str]]:
    listing = list_images_and_masks(root, "images", "masks", ("sky", "road"), {0: 0, 1: 1})
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


def own(**changes: object) -> schema.ImageMaskFolder:
    plain = {"dataset": "image-mask-folder", "root": "d", "classes": ("x", "y")}
    return schema.ImageMaskFolder.model_validate(plain | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0, 1: 1}),
        ({"ignore": 9}, {0: 0, 1: 1, 9: 255}),
        ({"mask_values": [0, 255]}, {0: 0, 255: 1}),
        ({"mask_values": [7, 3], "ignore": 255}, {7: 0, 3: 1, 255: 255}),
    ],
)
def test_values_of_masks_mean_classes_in_order_or_as_given(
    changes: dict[str, object], expected: dict[int, int]
) -> None:
    assert class_of_value(own(**changes)) == expected


@pytest.mark.parametrize("values", [[0], [0, 0], [0, 1, 2]])
def test_values_of_masks_are_one_for_each_class(values: list[int]) -> None:
    with pytest.raises(ValueError, match="each of the 2 classes"):
        own(mask_values=values)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    with pytest.raises(DataError, match="no folder masks/ in"):
        pairs(tmp_path)


@pytest.mark.parametrize("count", [0, 256])
def test_no_class_or_one_that_would_be_the_ignored_index_is_an_error(count: int) -> None:
    with pytest.raises(DataError, match=f"{count} names, but a mask holds 1 to 255"):
        class_of_value(own(classes=tuple(map(str, range(count)))))


# ------------------------------------------------------------------------------------------ what is left out, and why


def test_a_mask_is_not_blamed_for_an_image_that_is_not_read(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png", "images/b.gif", "masks/b.png", "images/c.png", "masks/c.heic")
    names, problems = pairs(tmp_path)
    assert names == ["a"]
    assert problems == [
        "images/c.png: its mask masks/c.heic has an unsupported type; save it as PNG",
        "masks/b.png: its image images/b.gif has an unsupported type; save it as PNG or JPEG",
    ]


def test_a_mask_of_two_images_with_one_stem_is_no_orphan(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/a.png", "masks/a.png", "images/b.jpg", "masks/b.png")
    assert pairs(tmp_path) == (
        ["b"],
        ["images/a.jpg, images/a.png: files with one stem cannot be told apart; keep one"],
    )


def test_images_that_are_in_no_pair_and_types_that_are_not_read_are_counted(tmp_path: Path) -> None:
    """Four images, of which one has a mask; an orphan mask is no image."""
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg", "images/c.png", "masks/a.png", "masks/z.png")
    touch(tmp_path, "images/x.gif", "images/y.GIF", "masks/m.heic", "images/.hidden.gif")
    found = list_images_and_masks(tmp_path, "images", "masks", ("sky", "road"), {0: 0, 1: 1})
    assert (len(found.entries), found.unlisted, found.ignored) == (1, 3, {".gif": 2, ".heic": 1})


def test_types_that_are_not_read_are_counted_in_a_folder_of_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"cat/{i}.jpg" for i in range(20)), "dog/1.png", "stray.png", "cat/b.avif", "README")
    found = list_images(tmp_path)
    assert (len(found.entries), found.unlisted, found.ignored) == (21, 1, {".avif": 1, "": 1})


# ---------------------------------------------------------------------------------------------- train/, val/ and test/


def test_train_and_test_are_official_lists_and_classes_lie_below(tmp_path: Path) -> None:
    """As torchvision's ImageFolder reads each of the parts."""
    kinds = ("cat", "dog")
    touch(tmp_path, *(f"{part}/{kind}/{i}.jpg" for part in ("train", "val", "test") for kind in kinds for i in (1, 2)))
    found = list_images(tmp_path)
    theirs = datasets.DatasetFolder(str(tmp_path / "train"), lambda path: path, extensions=(".jpg",))
    ours = [(str(e.image), e.label) for e in found.entries if e.name.startswith("train/")]
    assert (ours, list(found.label_names)) == (theirs.samples, theirs.classes)
    assert {entry.name.split("/")[0]: entry.test for entry in found.entries} == {
        "train": False,
        "val": False,
        "test": True,
    }
    assert found.problems == ()


def test_without_a_test_folder_validation_is_the_test_list(tmp_path: Path) -> None:
    touch(tmp_path, "Train/1.jpg", "Valid/2.jpg")
    assert [(e.name, e.label, e.test) for e in list_images(tmp_path).entries] == [
        ("Train/1.jpg", None, False),
        ("Valid/2.jpg", None, True),
    ]


def test_a_training_folder_alone_holds_classes_and_no_test_list(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    assert [(e.label, e.test) for e in list_images(tmp_path).entries] == [(0, None), (1, None)]


def test_a_class_called_train_among_others_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "bus/1.jpg")
    assert [(e.name, e.label, e.test) for e in list_images(tmp_path).entries] == [
        ("bus/1.jpg", 0, None),
        ("train/1.jpg", 1, None),
    ]


@pytest.mark.parametrize(("other", "named"), [("extra/3.jpg", "extra/"), ("3.jpg", "single images")])
def test_parts_among_other_things_are_not_taken_for_classes(tmp_path: Path, other: str, named: str) -> None:
    touch(tmp_path, *(f"train/cat/{i}.jpg" for i in range(20)), "test/cat/2.jpg", other)
    with pytest.raises(DataError, match=f"holds test/, train/, which look like parts .* beside them {named}; move"):
        list_images(tmp_path)


def test_an_empty_class_folder_of_a_part_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/deep/2.jpg")
    (tmp_path / "val" / "dog").mkdir()
    assert list_images(tmp_path).problems == ("val/dog: a class folder without an image; add images or remove it",)


@pytest.mark.parametrize("layout", ["images/{part}/a.jpg masks/{part}/a.png", "{part}/images/a.jpg {part}/masks/a.png"])
def test_images_and_masks_may_be_cut_into_parts_either_way(tmp_path: Path, layout: str) -> None:
    for part in ("train", "val"):
        touch(tmp_path, *layout.format(part=part).split())
    found = list_images_and_masks(tmp_path, "images", "masks", ("sky", "road"), {0: 0, 1: 1})
    assert [(e.name, e.test) for e in found.entries] == [("train/a", False), ("val/a", True)]
    assert [str(e.image.relative_to(tmp_path)) for e in found.entries if isinstance(e.image, Path)] == [
        layout.format(part=part).split()[0] for part in ("train", "val")
    ]
    assert found.problems == ()


def test_a_part_without_masks_says_which_folders_are_expected(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.jpg", "train/masks/a.png", "val/images/a.jpg")
    with pytest.raises(DataError, match=r"images/ .*train/, val/ and test/"):
        pairs(tmp_path)


@pytest.mark.parametrize("where", ["images", "masks", "images/deep"])
def test_a_folder_that_may_not_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The refusal is made up, since tests may run as root, who reads everything."""
    touch(tmp_path, "images/a.png", "images/deep/b.png", "masks/a.png", "masks/deep/b.png")
    listdir, scandir = os.listdir, os.scandir

    def locked(path: Any, whole: Any) -> Any:
        if Path(os.fsdecode(path)) == tmp_path / where:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "listdir", lambda path=".": locked(path, listdir))
    monkeypatch.setattr(os, "scandir", lambda path=".": locked(path, scandir))
    settings = schema.ImageMaskFolder(dataset="image-mask-folder", root=str(tmp_path), classes=("x", "y"))
    with pytest.raises(DataError, match=rf"{tmp_path / where} cannot be read by this user \(Permission denied\)"):
        list_files(settings, None)


# -------------------------------------------------------------------------------- names, links and files that are none


@pytest.mark.parametrize("images", ["images", "./images", "masks/../images", "linked"])
def test_images_and_masks_in_one_folder_are_refused_by_whatever_way(images: str, tmp_path: Path) -> None:
    """Every file would be its own mask, and with `on_error: skip` the masks would be images."""
    touch(tmp_path, "images/a.jpg", "images/a_mask.png", "masks/b.png")
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    with pytest.raises(DataError, match=r"the same folder, .*`masks:`"):
        list_images_and_masks(tmp_path, images, "images", ("a",), {0: 0})


def test_names_are_paired_in_whatever_unicode_form(tmp_path: Path) -> None:
    """A Mac stores accents apart, and a zip file keeps them so; names are those of the images' files."""
    touch(tmp_path, "images/caf\u00e9.jpg", "masks/cafe\u0301.png", "images/u\u0308/x.jpg", "masks/\u00fc/x.png")
    assert pairs(tmp_path) == (sorted(["caf\u00e9", "u\u0308/x"]), [])


def test_two_names_that_differ_by_unicode_form_alone_cannot_be_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "images/\u00e9.jpg", "images/e\u0301.jpg", "masks/\u00e9.png", "masks/e\u0301.png")
    names, problems = pairs(tmp_path)
    assert names == []
    assert [problem.split(": ")[1] for problem in problems] == [
        "files with one stem cannot be told apart; keep one"
    ] * 2


def test_one_class_in_two_unicode_forms_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "\u00e9/1.jpg", "e\u0301/2.jpg", "b/3.jpg")
    with pytest.raises(DataError, match=r"twice, .*'\\xe9'"):
        list_images(tmp_path)


def test_a_pipe_among_images_is_a_problem_and_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png")
    for name in ("images/b.jpg", "masks/c.png", "images/notes"):
        os.mkfifo(tmp_path / name)
    names, problems = pairs(tmp_path)
    assert names == ["a"]
    why = "a pipe, a socket or a device, and no file; remove it"
    assert problems == [f"images/b.jpg: {why}", f"masks/c.png: {why}"]
    assert list_images(tmp_path).problems == tuple(problems)
