"""COCO JSON: polygons, run lengths, crowds, categories, parts, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets.coco import drawn
from pretune.trainables.data.splits import draw_split, marks_for

coco = pytest.importorskip("pycocotools.mask")
DATA: TypeAdapter[Any] = TypeAdapter(schema.Data)
SIZE = 8
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def settings(root: Path, **changes: Any) -> Any:
    return DATA.validate_python({"dataset": "coco", "root": str(root), "cache_size": SIZE} | changes)


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def write(root: Path, annotations: list[dict[str, Any]], count: int = 1, file: str = "annotations.json") -> Path:
    root.mkdir(exist_ok=True)
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(count)]
    for image in images:
        Image.new("RGB", (SIZE, SIZE), (90, 0, 0)).save(root / str(image["file_name"]))
    filled = [{"id": i, "image_id": 10, "iscrowd": 0} | one for i, one in enumerate(annotations)]
    (root / file).write_text(json.dumps({"images": images, "annotations": filled, "categories": CATEGORIES}))
    return root


def mask_of(root: Path, **changes: Any) -> NDArray[np.uint8]:
    made = load_images(settings(root, **changes), None, root / "cache")
    assert made.masks is not None
    return np.asarray(made.masks[0])


def test_polygons_are_classes_in_the_order_of_ids_and_the_rest_is_background(tmp_path: Path) -> None:
    write(
        tmp_path,
        [{"category_id": 7, "segmentation": box(0, 0, 4, 4)}, {"category_id": 3, "segmentation": box(4, 4, 8, 8)}],
    )
    made = load_images(settings(tmp_path), None, tmp_path / "cache")
    assert made.classes == ("background", "cat", "dog")
    expected = np.zeros((SIZE, SIZE))
    expected[:4, :4], expected[4:, 4:] = 2, 1
    assert made.masks is not None
    assert np.array_equal(made.masks[0], expected)


def test_named_classes_set_the_order_and_leave_others_to_the_background(tmp_path: Path) -> None:
    write(
        tmp_path,
        [{"category_id": 7, "segmentation": box(0, 0, 4, 4)}, {"category_id": 3, "segmentation": box(4, 4, 8, 8)}],
    )
    assert set(np.unique(mask_of(tmp_path, classes=["dog"]))) == {0, 1}
    assert mask_of(tmp_path, classes=["dog", "cat"])[0, 0] == 1
    digests = {content_digest(settings(tmp_path, classes=c), None) for c in ([], ["dog"], ["dog", "cat"])}
    assert len(digests) == 3


@given(inside=arrays.arrays(np.bool_, (5, 7), elements=st.booleans()))
def test_run_lengths_in_either_form_are_the_pixels_they_were_made_of(inside: NDArray[np.bool_]) -> None:
    packed = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
    compressed = {"size": [5, 7], "counts": packed["counts"].decode()}
    columns, counts, value = inside.T.ravel(), [0], False
    for pixel in columns:
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    for segmentation in (compressed, {"size": [5, 7], "counts": counts}):
        assert np.array_equal(drawn({"segmentation": segmentation}, (5, 7)), inside)


def test_crowds_are_ignored_and_small_objects_lie_over_large_ones(tmp_path: Path) -> None:
    whole = {"size": [SIZE, SIZE], "counts": [0, SIZE * SIZE]}
    write(tmp_path, [
        {"category_id": 3, "segmentation": box(2, 2, 4, 4)},
        {"category_id": 7, "segmentation": box(0, 0, 6, 6)},
        {"category_id": 7, "segmentation": whole, "iscrowd": 1},
    ])  # fmt: skip
    mask = mask_of(tmp_path)
    assert (mask[2, 2], mask[0, 0], mask[7, 7]) == (1, 2, IGNORE)


def test_an_image_without_annotations_is_background(tmp_path: Path) -> None:
    write(tmp_path, [{"category_id": 7, "segmentation": box(0, 0, 4, 4)}], count=2)
    made = load_images(settings(tmp_path), None, tmp_path / "cache")
    assert made.masks is not None
    assert made.names == ("0.png", "1.png")
    assert not np.asarray(made.masks[1]).any()


def test_files_for_parts_are_official_lists(tmp_path: Path) -> None:
    one = [{"category_id": 7, "segmentation": box(0, 0, 4, 4)}]
    for part in ("train", "val", "test"):
        write(tmp_path, one, count={"train": 3, "val": 2, "test": 1}[part], file=f"{part}.json")
    parts = {part: f"{part}.json" for part in ("train", "val", "test")}
    asked = settings(tmp_path, annotations=parts, split={"test": "official", "val": "official"})
    made = load_images(asked, None, tmp_path / "cache")
    split = draw_split(6, asked.split, 0, made.official_test, None, marks_for(asked.split, made))
    assert [[made.names[i] for i in part] for part in split][1:] == [["val/0.png", "val/1.png"], ["test/0.png"]] or [
        len(part) for part in split
    ] == [3, 2, 1]


def test_a_missing_image_and_another_size_are_named(tmp_path: Path) -> None:
    write(tmp_path, [], count=3)
    (tmp_path / "1.png").unlink()
    Image.new("RGB", (SIZE, SIZE + 2)).save(tmp_path / "2.png")
    with pytest.raises(DataError) as caught:
        load_images(settings(tmp_path), None, tmp_path / "cache")
    assert "1.png: listed, but the file is missing" in str(caught.value)
    assert "annotations.json[2]: the mask is 8x8, its image 8x10" in str(caught.value)


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [(None, "has no segmentation; boxes alone"), ([[1, 2]], "cannot be drawn"), ({"counts": "a"}, "cannot be drawn")],
)
def test_an_annotation_that_is_no_mask_says_why(segmentation: Any, expected: str) -> None:
    with pytest.raises(BadFileError, match=f"annotation 5 .*{expected}|annotation 5 {expected}"):
        drawn({"id": 5, "segmentation": segmentation}, (SIZE, SIZE))


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("[]", {}, "is no COCO file"),
        ("{", {}, "is no COCO file"),
        (json.dumps({"images": [], "annotations": [{"image_id": 1}], "categories": []}), {}, "holds boxes"),
        (json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]}),
         {}, "two categories called x"),
        (json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a/b"}]}), {}, "category 'a/b'"),
        (json.dumps({"images": [], "annotations": [], "categories": CATEGORIES}), {"classes": ["cow"]},
         "no category is called cow; there are cat, dog"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_one_sentence(
    tmp_path: Path, text: str, changes: dict[str, Any], expected: str
) -> None:
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=expected):
        load_images(settings(tmp_path, **changes), None, tmp_path / "cache")
