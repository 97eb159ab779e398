"""What a reader is told of a faulty data set: one sentence for each value, in the words of the file."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict


def told(data: Any) -> list[str]:
    with pytest.raises(StudyError) as caught:
        from_dict({"study": "s", "data": data, "finetune": {"data": "x", "epochs": 1}})
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


OWN = {"dataset": "image-mask-folder", "root": "d", "classes": ["a", "b"]}
PART = "a count of images (50) or a share below 1 (0.1, 10%)"
FOLD = "should be one of 1/k to k/k, of at least two folds: 2/5 is the second of five"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"regions": "slic"}, "x.regions: should be a mapping of keys to values, received 'slic'"),
        ({"depth": "folder"}, "x.depth: should be a mapping of keys to values, received 'folder'"),
        ({"split": 0.1}, "x.split: should be a mapping of keys to values, received 0.1"),
        ({"split": {"test": "some"}}, f"x.split.test: should be official, {PART}, received 'some'"),
        ({"split": {"test": 1.5}}, f"x.split.test: should be {PART}, received 1.5"),
        ({"split": {"val": -1}}, f"x.split.val: should be {PART}, received -1"),
        ({"split": {"val": True}}, f"x.split.val: should be {PART}, received True"),
        ({"split": {"fold": "6/5"}}, f"x.split.fold: {FOLD}, received '6/5'"),
        ({"split": {"fold": 3}}, f"x.split.fold: {FOLD}, received 3"),
        ({"split": {"val_fold": "1/1"}}, f"x.split.val_fold: {FOLD}, received '1/1'"),
        ({"split": {"stratify": "maybe"}}, "x.split.stratify: should be true, false or pixels, received 'maybe'"),
        ({"classes": "a"}, "x.classes: should be a list such as [a, b], received 'a'"),
        ({"mask_values": 255}, "x.mask_values: should be a list such as [a, b], received 255"),
        ({"mask_values": [0]}, "x: mask_values: [0] should be one value for each of the 2 classes, none twice"),
        ({"limit": "many"}, "x.limit: should be a whole number, received 'many'"),
        ({"cache_size": 12.5}, "x.cache_size: should be a whole number, received 12.5"),
        ({"root": 5}, "x.root: should be text, received 5"),
        ({"root": None}, "x.root: is empty"),
    ],
)
def test_a_faulty_value_is_one_clear_sentence(changes: dict[str, Any], expected: str) -> None:
    assert told({"x": OWN | changes}) == [f"data.{expected}"]


@pytest.mark.parametrize(("written", "share"), [("10%", 0.1), ("2.5 %", 0.025), (0.1, 0.1), (7, 7)])
def test_parts_of_a_split_are_counts_or_shares(written: Any, share: float) -> None:
    split = {"test": written, "val": written}
    body = {"study": "s", "data": {"x": OWN | {"split": split}}, "finetune": {"data": "x", "epochs": 1}}
    chosen = from_dict(body).cells[0].configuration().data["x"].split
    assert (chosen.test, chosen.val, type(chosen.test)) == (share, share, type(share))
