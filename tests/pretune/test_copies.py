"""Pictures that are in a test set and outside of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from pretune.copies import in_the_test_set
from search_spaces.resolve import Study, from_dict
from trainables.data.sources import open_set, prepare


def study(folder: Path, fold: str) -> Study:
    data = {"dataset": "image-mask-folder", "root": str(folder), "classes": ["a", "b"], "cache_size": 32}
    split = {"fold": fold, "val": 0}
    return from_dict({"study": "s", "data": {"d": data | {"split": split}}, "finetune": {"data": "d", "epochs": 1}})


def test_copies_on_both_sides_of_the_test_split_are_said_whatever_the_split(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(6):  # of each picture there are two files
        pixels = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32))
        for name in (f"{i}", f"{i} again"):
            pixels.save(tmp_path / "data" / "images" / f"{name}.png")
            Image.new("L", (32, 32)).save(tmp_path / "data" / "masks" / f"{name}.png")
    cache = tmp_path / "cache"

    def said(fold: str) -> list[str]:
        def opened(data):  # type: ignore[no-untyped-def]
            digest = prepare(data, None, cache)[0]
            return digest, open_set(data, digest, None, cache)

        return list(in_the_test_set(study(tmp_path / "data", fold), opened, cache))

    found = [said(f"{k}/2") for k in (1, 2)]
    assert all(len(sentences) == 1 for sentences in found)
    counts = [re.search(r"fold (./2)\): (\d) of 6 pictures of the test set look like one", s[0]) for s in found]
    assert [count and count[1] for count in counts] == ["1/2", "2/2"]
    assert len({count and count[2] for count in counts}) == 1  # what is across one half of two is across the other
    for path in (tmp_path / "data").glob("*/* again.png"):
        path.unlink()
    assert said("1/2") == []
