"""Groups, split files, official parts and strata by pixels: no part ever holds a piece of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.splits import Marks, draw_split, group_codes, marks_for, pixel_strata

DATA: TypeAdapter[Any] = TypeAdapter(schema.Data)
sizes_of_groups = st.lists(st.integers(1, 12), min_size=3, max_size=25)


def split(**values: Any) -> schema.Split:
    return schema.Split.model_validate(values)


def marks_of(sizes: list[int]) -> Marks:
    return Marks([f"patient{g:02}_{i}" for g, size in enumerate(sizes) for i in range(size)])


BY_PATIENT = {"pattern": r"(patient\d+)_"}


# -------------------------------------------------------------------------------------------------------------- groups


@given(sizes=sizes_of_groups, test=st.floats(0.1, 0.4), val=st.floats(0.1, 0.4), seed=st.integers(0, 1000))
def test_a_group_is_in_one_part_and_parts_are_near_their_shares(
    sizes: list[int], test: float, val: float, seed: int
) -> None:
    marks, n = marks_of(sizes), sum(sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    try:
        drawn = draw_split(n, split(test=test, val=val, group=BY_PATIENT), seed, None, None, marks)
    except DataError as error:
        assert "train and test must not be empty" in str(error)  # noqa: PT017
        return
    assert np.array_equal(np.sort(np.concatenate(drawn)), np.arange(n))
    parts = [set(groups[part]) for part in drawn]
    assert sum(map(len, parts)) == len(sizes)
    assert abs(len(drawn.test) - round(n * test)) <= max(sizes)


@given(sizes=sizes_of_groups, of=st.integers(2, 5), seed=st.integers(0, 1000))
def test_folds_of_groups_hold_every_group_once_and_are_alike_in_size(sizes: list[int], of: int, seed: int) -> None:
    assume(len(sizes) >= of)
    marks, n = marks_of(sizes), sum(sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    settings = [split(fold=f"{k + 1}/{of}", val=0, group=BY_PATIENT) for k in range(of)]
    tests = [draw_split(n, one, seed, None, None, marks).test for one in settings]
    assert sorted(np.concatenate(tests).tolist()) == list(range(n))
    held = [set(groups[test]) for test in tests]
    assert sum(map(len, held)) == len(sizes)
    assert max(map(len, tests)) - min(map(len, tests)) <= max(sizes)


def test_test_groups_follow_the_split_seed_alone_and_validation_the_replicate() -> None:
    marks = marks_of([4] * 20)
    settings = split(test=0.2, val=0.2, group=BY_PATIENT)
    drawn = [draw_split(80, settings, seed, None, None, marks) for seed in range(5)]
    assert len({tuple(sorted(one.test)) for one in drawn}) == 1
    assert len({tuple(sorted(one.val)) for one in drawn}) == 5
    assert {(len(one.test), len(one.val)) for one in drawn} == {(16, 16)}
    other = draw_split(80, settings.model_copy(update={"seed": 1}), 0, None, None, marks)
    assert set(other.test) != set(drawn[0].test)


def test_validation_folds_of_groups_go_round_the_rest() -> None:
    marks = marks_of([3] * 10)
    settings = split(test=0.2, val_folds=4, group=BY_PATIENT)
    folds = [settings.model_copy(update={"val_fold": f"{k}/4", "val_folds": None, "val": 0.25}) for k in (1, 2, 3, 4)]
    drawn = [draw_split(30, one, seed, None, None, marks) for seed, one in enumerate(folds)]
    assert sorted(np.concatenate([one.val for one in drawn]).tolist()) == sorted(
        np.setdiff1d(np.arange(30), drawn[0].test)
    )
    assert {len(one.val) for one in drawn} == {6}


@pytest.mark.parametrize(
    ("group", "names", "codes"),
    [
        ("parent", ["a/1", "a/2", "b/c/1", "b/1"], [0, 0, 2, 1]),
        ({"pattern": r"^[^_]+"}, ["p1_x", "p2_x", "p1_y"], [0, 1, 0]),
        ({"pattern": r"_(\w)$"}, ["p1_x", "p2_x", "p1_y"], [0, 0, 1]),
    ],
)
def test_groups_are_told_by_folder_or_name(group: Any, names: list[str], codes: list[int]) -> None:
    asked = split(group=group).group
    assert asked is not None
    assert group_codes(len(names), asked, Marks(names)).tolist() == codes


@pytest.mark.parametrize(
    ("group", "names", "expected"),
    [
        ("parent", ["a/1", "2"], "1 of 2 images have no group by a parent folder, 2 first"),
        ({"pattern": r"^(p\d)_"}, ["p1_x", "q_x"], "1 of 2 images have no group by the pattern"),
        ("parent", ["a/1", "a/2"], r"all 2 images are of one group \(a\)"),
    ],
)
def test_images_without_a_group_are_named(group: Any, names: list[str], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        draw_split(2, split(group=group), 0, None, None, Marks(names))


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(DataError, match="5 folds of 3 groups"):
        draw_split(9, split(fold="1/5", group=BY_PATIENT), 0, None, None, marks_of([3, 3, 3]))


def test_groups_change_the_identity_and_their_absence_does_not() -> None:
    """A study from before there were groups keeps its fingerprints."""
    plain = split(seed=1).model_dump(mode="json", include={"test", "val", "seed"})
    assert plain == {"test": 0.1, "val": 0.1, "seed": 1}
    assert {"group", "file"}.isdisjoint(split().model_dump(mode="json"))
    grouped = split(seed=1, group="parent").model_dump(mode="json", include={"test", "val", "seed"})
    assert grouped == plain | {"group": "parent"}
    whole = split(group={"pattern": "a"}, fold="1/2")
    assert schema.Split.model_validate(whole.model_dump(mode="json")) == whole


# -------------------------------------------------------------------------------------------------- strata by pixels


def test_strata_are_the_rarest_class_of_an_image_in_quarters_of_its_pixels() -> None:
    masks = np.zeros((10, 4, 4), np.uint8)
    for i in range(1, 9):
        masks[i].flat[:i] = 1
    masks[9] = IGNORE
    found = pixel_strata(masks, 3)
    assert found.tolist() == [0, 4, 4, 5, 5, 6, 6, 7, 7, -1]


def test_every_part_shows_a_rare_class_by_its_share() -> None:
    masks = np.zeros((100, 8, 8), np.uint8)
    masks[:10, 0, 0] = 1  # 10 of 100 images, 0.2 % of the pixels
    marks = Marks(strata=pixel_strata(masks, 2))
    for seed in range(5):
        drawn = draw_split(100, split(test=0.2, val=0.2, stratify="pixels", seed=seed), seed, None, None, marks)
        assert [int((part < 10).sum()) for part in drawn] == [6, 2, 2]
    folds = [draw_split(100, split(fold=f"{k}/5", stratify="pixels"), 0, None, None, marks).test for k in range(1, 6)]
    assert [int((fold < 10).sum()) for fold in folds] == [2] * 5


def test_strata_and_groups_together() -> None:
    """Of ten patients of ten images two are ill: each fold of two has one of these."""
    masks = np.zeros((100, 4, 4), np.uint8)
    masks[:20, 0, 0] = 1
    marks = marks_of([10] * 10)._replace(strata=pixel_strata(masks, 2))
    for k in (1, 2):
        test = draw_split(100, split(fold=f"{k}/2", stratify="pixels", group=BY_PATIENT), 3, None, None, marks).test
        assert (len(test), int((test < 20).sum())) == (50, 10)


def test_without_masks_strata_by_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="data set has no masks"):
        draw_split(10, split(stratify="pixels"), 0, None, None, Marks())


# --------------------------------------------------------------------------------------------------------- split.file


def photos(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
    return root


def opened(root: Path, file: str, text: str, **changes: Any) -> tuple[Any, Any]:
    (root / file).write_text(text)
    given = {"dataset": "image-folder", "root": "photos", "cache_size": 4, "split": {"file": file} | changes}
    settings = DATA.validate_python(given)
    made = load_images(settings, root, root / "cache")
    drawn = draw_split(len(made.images), settings.split, 0, made.official_test, None, marks_for(settings.split, made))
    return made, [[made.names[i] for i in sorted(part)] for part in drawn]


NAMES = ["s1/a.png", "s1/b.png", "s2/a.png", "s2/c.png"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("s.csv", "name,split\ns1/a.png,train\ns1/b.png,TEST\ns2/a.png,val\ns2/c.png,train\n"),
        ("s.csv", "Split;Image\ntrain;s1/a\ntest;b\nvalidation;s2/a.png\ntrain;c.png\n"),
        ("s.json", json.dumps({"train": ["s1/a.png", "c"], "valid": ["./s2/a"], "testing": ["s1/b.png"]})),
        ("s.json", json.dumps([{"file": n, "split": p} for n, p in zip(NAMES, ("train", "test", "dev", "train"),
                                                                       strict=True)])),
    ],
)  # fmt: skip
def test_a_file_says_which_image_is_for_what(tmp_path: Path, file: str, text: str) -> None:
    _, parts = opened(photos(tmp_path, NAMES), file, text)
    assert parts == [["s1/a.png", "s2/c.png"], ["s2/a.png"], ["s1/b.png"]]


def test_what_the_file_says_is_part_of_the_content(tmp_path: Path) -> None:
    photos(tmp_path, NAMES)
    digests = set()
    for test in ("a", "b"):
        rows = [f"s1/{name},{'test' if name == test else 'train'}" for name in "ab"]
        opened(tmp_path, "s.csv", "\n".join(["name,split", *rows, "s2/a,train", "s2/c,train"]), val=0.25)
        given = {"dataset": "image-folder", "root": "photos", "split": {"file": "s.csv", "val": 0.25}}
        digests.add(content_digest(DATA.validate_python(given), tmp_path))
    assert len(digests) == 2


def test_a_column_of_the_file_groups_images(tmp_path: Path) -> None:
    text = "name,patient\ns1/a,x\ns1/b,y\ns2/a,x\ns2/c,z\n"
    made, parts = opened(photos(tmp_path, NAMES), "s.csv", text, group={"column": "patient"}, test=0.25, val=0.25)
    group = dict(zip(made.names, made.groups, strict=True))
    held = [{group[name] for name in part} for part in parts]
    assert sorted(map(len, held)) == [1, 1, 1]


def test_folds_of_the_file_are_used_as_they_are(tmp_path: Path) -> None:
    text = "name,fold\ns1/a,1\ns1/b,2\ns2/a,1\ns2/c,3\n"
    _, parts = opened(photos(tmp_path, NAMES), "s.csv", text, fold="1/3", val=0)
    assert parts[2] == ["s1/a.png", "s2/a.png"]
    with pytest.raises(DataError, match=r"split.file names 3 folds \(1, 2, 3\)"):
        opened(tmp_path, "s.csv", text, fold="1/5", val=0)


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("name,split\ns1/a,train\n", {}, "no row for 3 of 4 images, s1/b.png, s2/a.png, s2/c.png first"),
        ("name,split\na,train\nb,test\nc,train\n", {}, "no row for 2 of 4 images, s1/a.png, s2/a.png first"),
        ("x,y\n1,2\n", {}, "has the columns x, y; one should be name"),
        ("name,who\na,b\n", {"group": {"column": "patient"}, "test": 0.5}, "has no column patient, only name, who"),
        ("", {}, r"has the columns \(none\)"),
        ("name,split\ns1/a,train\ns1/b,train\ns2/a,train\ns2/c,test\n", {}, "lists no validation images"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(
    tmp_path: Path, text: str, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        opened(photos(tmp_path, NAMES), "s.csv", text, **changes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    photos(tmp_path, NAMES)
    given = DATA.validate_python({"dataset": "image-folder", "root": "photos", "split": {"file": "none.csv"}})
    with pytest.raises(DataError, match=r"split\.file: .*none\.csv"):
        load_images(given, tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"group": {"column": "x"}}, "the column x is one of split.file, which is missing"),
        ({"group": {"pattern": "("}}, "should be a regular expression"),
        ({"file": "a.csv", "test": 0.2, "val": 0.2}, "leave these out"),
        ({"val": "official", "val_folds": 3}, "the official validation list has no folds"),
    ],
)
def test_settings_that_contradict_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        split(**values)


# ------------------------------------------------------------------------------------------------------ official parts


def test_official_validation_is_used_as_it_is(tmp_path: Path) -> None:
    names = [f"{part}/{i}.png" for part, count in (("train", 4), ("val", 2), ("test", 3)) for i in range(count)]
    photos(tmp_path, names)
    given = {"dataset": "image-folder", "root": "photos", "cache_size": 4, "split": {"test": "official"}}
    for seed in (0, 1):
        settings = DATA.validate_python(given | {"split": {"test": "official", "val": "official"}})
        made = load_images(settings, tmp_path, tmp_path / "cache")
        drawn = draw_split(9, settings.split, seed, made.official_test, None, marks_for(settings.split, made))
        assert [sorted({made.names[i].split("/")[0] for i in part}) for part in drawn] == [["train"], ["val"], ["test"]]
        assert [len(part) for part in drawn] == [4, 2, 3]


def test_a_set_without_validation_list_refuses_official() -> None:
    with pytest.raises(DataError, match="no validation images"):
        draw_split(4, split(test=0.25, val="official"), 0, None, None, Marks(["a", "b", "val/c", "d"]))


# ---------------------------------------------------------------------------------- split files that say two things


def listed_by(tmp_path: Path, rows: str, **asked: Any) -> Any:
    """The split of six images under a file with these rows."""
    for i in range(6):
        for folder in ("images", "masks"):
            (tmp_path / "d" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(tmp_path / "d" / "images" / f"{i}.png")
        Image.fromarray(np.full((4, 4), i % 2, np.uint8)).save(tmp_path / "d" / "masks" / f"{i}.png")
    (tmp_path / "s.csv").write_text(rows)
    plain = {"dataset": "image-mask-folder", "root": "d", "classes": ["a", "b"], "cache_size": 4}
    data = DATA.validate_python(plain | {"split": {"file": "s.csv", "val": 1, **asked}})
    made = load_images(data, tmp_path, tmp_path / "cache")
    return draw_split(6, data.split, 0, made.official_test, None, marks_for(data.split, made))


PARTS = ["test", "train", "train", "val", "train", "test"]
HEAD = "name,split\n" + "".join(f"{i},{part}\n" for i, part in enumerate(PARTS))


@pytest.mark.parametrize("again", range(6))
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_image_in_two_parts_is_refused_and_in_one_part_twice_is_not(tmp_path: Path, again: int, part: str) -> None:
    rows = f"{HEAD}{again},{part}\n"
    if PARTS[again] == part:
        assert sorted(listed_by(tmp_path, rows, test="official").test) == [0, 5]
        return
    with pytest.raises(DataError, match=f"names {again} twice, in {PARTS[again]} and in {part}; leave one row"):
        listed_by(tmp_path, rows, test="official")


def test_images_of_an_unknown_part_are_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="parts exclude beside train, val and test"):
        listed_by(tmp_path, HEAD.replace("2,train", "2,exclude"), test="official")


@pytest.mark.parametrize("test", [0.3, 2])
def test_a_test_list_that_the_split_would_not_use_is_refused(tmp_path: Path, test: float) -> None:
    rows = "name,split,patient\n" + "".join(f"{i},{part},p{i // 2}\n" for i, part in enumerate(PARTS))
    by_patient = {"group": {"column": "patient"}}
    with pytest.raises(DataError, match=f"says which images are test, and `test: {test}` would draw others"):
        listed_by(tmp_path, rows, test=test, **by_patient)
    assert sorted(listed_by(tmp_path, rows, test="official", **by_patient).test) == [0, 5]


def test_own_folds_and_groups_are_refused_together_and_each_alone_holds(tmp_path: Path) -> None:
    rows = "name,fold,patient\n" + "".join(f"{i},{i % 3},p{i // 2}\n" for i in range(6))
    with pytest.raises(DataError, match="`group` would draw other folds"):
        listed_by(tmp_path, rows, fold="1/3", group={"column": "patient"})
    assert sorted(listed_by(tmp_path, rows, fold="1/3").test) == [0, 3]
    alone = rows.replace("fold", "number_of_scan")
    held = listed_by(tmp_path, alone, fold="1/3", group={"column": "patient"}).test
    assert sorted(held) in ([0, 1], [2, 3], [4, 5])
