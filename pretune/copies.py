"""Pictures that are in a data set twice, one of them in the test set: a leak that no split can see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pretune.store import write_atomically
from search_spaces import schema
from search_spaces.resolve import Study

if TYPE_CHECKING:
    from trainables.data.images import ImageSet

MOST = 20_000  # images of a set that is searched before a study: some seconds, once


def in_the_test_set(study: Study, opened: Callable[[schema.Data], tuple[str, ImageSet]], cache: Path) -> Iterator[str]:
    """A sentence for each data set with copies on both sides of its test split.

    Args:
        opened: a data set's digest and its images.
        cache: pairs that were found are remembered there, by digest.
    """
    from trainables.data.splits import draw_split

    said: set[str] = set()
    for cell in study.cells:
        for name, data in cell.configuration().data.items():
            digest, held = opened(data)
            key = f"{digest} {data.split.model_dump_json()}"
            if key in said or isinstance(data, schema.Scenes | schema.Volumes | schema.LUNA16):
                continue
            said.add(key)
            if not isinstance(held.images, np.ndarray) or len(held.images) > MOST:
                yield f"data {name}: streamed or over {MOST:,} images: not searched for pictures that are there twice"
                continue
            test = np.zeros(len(held.images), np.bool_)
            test[draw_split(len(held.images), data.split, 0, held.official_test, held.labels).test] = True
            across = [(a, b) if test[a] else (b, a) for a, b in pairs(digest, held, cache) if test[a] != test[b]]
            if across:
                inside, outside = across[0]
                count = len({picture for picture, _ in across})
                fold = f" (fold {data.split.fold})" if data.split.fold else ""
                yield (
                    f"data {name}{fold}: {count} of {int(test.sum())} pictures of the test set look like one outside "
                    f"of it, {held.names[inside]} = {held.names[outside]} first: scores on them are flattered"
                )


def pairs(digest: str, held: ImageSet, cache: Path) -> list[tuple[int, int]]:
    """Rows that show the same picture, searched once for each content."""
    from trainables.data.duplicates import find_duplicates

    path = cache / "copies" / f"{digest}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = [[pair.first, pair.second] for pair in find_duplicates(np.asarray(held.images))]
        write_atomically(path, json.dumps(found))
    return [(int(a), int(b)) for a, b in json.loads(path.read_text(encoding="utf-8"))]
