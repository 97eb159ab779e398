"""Data leakage: images that are in a test set and outside of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretune.data.leaks import find_leaks
from pretune.search_spaces.resolve import Study, from_dict
from pretune.trainables.data.sources import open_set, prepare


def noise(random: np.random.Generator) -> Image.Image:
    return Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32))


def study(folder: Path, fold: str) -> Study:
    data = {"dataset": "image-mask-folder", "root": str(folder), "classes": ["a", "b"], "cache_size": 32}
    split = {"fold": fold, "val": 0}
    return from_dict({"study": "s", "data": {"d": data | {"split": split}}, "finetune": {"data": "d", "epochs": 1}})


def test_copies_on_both_sides_of_the_test_split_are_said_whatever_the_split(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(6):  # of each image there are two files
        pixels = noise(random)
        for name in (f"{i}", f"{i} again"):
            pixels.save(tmp_path / "data" / "images" / f"{name}.png")
            Image.new("L", (32, 32)).save(tmp_path / "data" / "masks" / f"{name}.png")
    cache = tmp_path / "cache"

    def said(fold: str) -> list[str]:
        def opened(data):  # type: ignore[no-untyped-def]
            digest = prepare(data, None, cache)[0]
            return digest, open_set(data, digest, None, cache)

        return list(find_leaks(study(tmp_path / "data", fold), opened, cache))

    found = [said(f"{k}/2") for k in (1, 2)]
    assert all(len(sentences) == 1 for sentences in found)
    counts = [re.search(r"fold (./2)\): (\d) of 6 test images look like an image", s[0]) for s in found]
    assert [count and count[1] for count in counts] == ["1/2", "2/2"]
    assert len({count and count[2] for count in counts}) == 1  # what is across one half of two is across the other
    for path in (tmp_path / "data").glob("*/* again.png"):
        path.unlink()
    assert said("1/2") == []


def test_groups_that_an_official_list_cuts_are_said(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, names in (("train", ["p1_a", "p2_a"]), ("test", ["p1_b", "p3_a"])):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
        for name in names:
            noise(random).save(tmp_path / part / "images" / f"{name}.png")
            Image.new("L", (32, 32)).save(tmp_path / part / "masks" / f"{name}.png")
    data = {"dataset": "image-mask-folder", "root": str(tmp_path), "classes": ["a", "b"], "cache_size": 32}
    split = {"test": "official", "val": 0, "group": {"pattern": r"(p\d)_"}}
    made = from_dict({"study": "s", "data": {"d": data | {"split": split}}, "finetune": {"data": "d", "epochs": 1}})

    def opened(data):  # type: ignore[no-untyped-def]
        digest = prepare(data, None, tmp_path / "cache")[0]
        return digest, open_set(data, digest, None, tmp_path / "cache")

    (sentence,) = find_leaks(made, opened, tmp_path / "cache")
    assert (
        "data d: 1 groups of split.group have images both in the test set and outside of it, "
        "for example that of test/p1_b; " in sentence
    )


@pytest.mark.parametrize(
    ("pretrain", "transfer", "expected"),
    [
        ({"sees": "all"}, "encoder", "3 of 5 test images look like an image that pretraining sees in data a"),
        ({"sees": "train"}, "encoder", "2 of 5 test images look like an image that pretraining sees in data a"),
        ({"sees": "all", "data": "b"}, "encoder", None),  # of the same set it sees what it was told to
        ({"sees": "all"}, "none", None),  # nothing starts from what it saw
    ],
)
def test_a_pretraining_that_sees_the_test_images_of_another_set_is_said(
    tmp_path: Path, pretrain: dict[str, str], transfer: str, expected: str | None
) -> None:
    """b is cut into 5 and 5 by its folders; of its test images a holds three at twice the size, one of these as its
    own test image, and one of its training images, which is no leak."""
    random = np.random.default_rng(1)
    for part, names in (("train", range(5)), ("test", range(5, 10))):
        for kind in ("images", "masks"):
            (tmp_path / "b" / part / kind).mkdir(parents=True)
        (tmp_path / "a" / part).mkdir(parents=True)
        for i in names:
            made = noise(random)
            made.save(tmp_path / "b" / part / "images" / f"{i}.png")
            Image.new("L", (32, 32)).save(tmp_path / "b" / part / "masks" / f"{i}.png")
            if i in (0, 5, 6, 7):
                there = "test" if i == 7 else "train"
                (tmp_path / "a" / there).mkdir(exist_ok=True)
                made.resize((64, 64)).save(tmp_path / "a" / there / f"copy {i}.png")
    for i in range(8):
        noise(random).save(tmp_path / "a" / ("train" if i < 4 else "test") / f"own {i}.png")
    split = {"test": "official", "val": 0}
    a = {"dataset": "image-folder", "root": str(tmp_path / "a"), "cache_size": 64, "split": split}
    b = {"dataset": "image-mask-folder", "root": str(tmp_path / "b"), "classes": ["x", "y"], "cache_size": 32}
    made_of = {"data": "a", "method": {"name": "simclr"}, "epochs": 1, "batch_size": 2}
    asked = from_dict({
        "study": "s", "data": {"a": a, "b": b | {"split": split}}, "pretrain": made_of | pretrain,
        "finetune": {"data": "b", "epochs": 1, "transfer": transfer},
    })  # fmt: skip
    cache = tmp_path / "cache"

    def opened(data):  # type: ignore[no-untyped-def]
        digest = prepare(data, None, cache)[0]
        return digest, open_set(data, digest, None, cache)

    for _ in range(2):  # found, and remembered
        said = list(find_leaks(asked, opened, cache))
        assert len(said) == (expected is not None)
        assert all(
            sentence.startswith(f"data b: {expected} (pretrain.sees: {pretrain['sees']}), for example ")
            for sentence in said
        )
        assert all(" test/5 and train/copy 5.png; " in sentence for sentence in said)
