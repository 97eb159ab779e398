"""Pictures of a test set that are seen in training too, in its own data set or in another: a leak no split can see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import uses_pretraining
from pretune.store.store import write_atomically

if TYPE_CHECKING:
    from pretune.trainables.data.checks.duplicates import Alike
    from pretune.trainables.data.image_set import ImageSet

MOST = 20_000  # images of a set that is searched before a study: some seconds, once
LISTED = "alike.json"  # how the files end that remember what was found

Opened = Callable[[schema.Data], "tuple[str, ImageSet]"]  # a data set's digest and its images


class Searched(NamedTuple):
    """A data set that is small enough to be searched."""

    name: str  # in the study
    digest: str
    held: ImageSet
    test: NDArray[np.bool_]  # (N,)
    split: schema.Split

    @property
    def where(self) -> str:
        return f"data {self.name}" + (f" (fold {self.split.fold})" if self.split.fold else "")


def in_the_test_set(study: Study, opened: Opened, cache: Path) -> Iterator[str]:
    """A sentence for each data set with copies on both sides of its test split, and for each pretraining that sees
    copies of the test set of what is fine-tuned in another data set.

    Args:
        opened: a data set's digest and its images.
        cache: what was found is remembered there, by digest.
    """
    sets: dict[str, Searched | None] = {}  # by content and split: cells share most of them
    said: set[tuple[str, ...]] = set()
    for cell in study.cells:
        configuration = cell.configuration()
        keys = {name: key(data, opened) for name, data in configuration.data.items()}
        for name, data in configuration.data.items():
            if keys[name] in sets or isinstance(data, schema.Scenes | schema.Volumes | schema.LUNA16):
                continue
            sets[keys[name]] = one = searched(name, data, opened)
            if one is None:
                yield f"data {name}: streamed or over {MOST:,} images: not searched for pictures that are there twice"
            else:
                yield from inside(one, cache)
        for stage in configuration.pretrain:
            if configuration.finetune is None or not sees_others(stage, configuration):
                continue
            both = keys[configuration.finetune.data], keys[stage.data]
            tested, other = (sets.get(one) for one in both)
            if tested is not None and other is not None and (*both, stage.sees) not in said:
                said.add((*both, stage.sees))
                yield from between(tested, other, stage.sees, cache)


def key(data: schema.Data, opened: Opened) -> str:
    return f"{opened(data)[0]} {data.split.model_dump_json()}"


def searched(name: str, data: schema.Data, opened: Opened) -> Searched | None:
    """The set with its test split; None where it is too large to search."""
    from pretune.trainables.data.splits import draw_split

    digest, held = opened(data)
    if not isinstance(held.images, np.ndarray) or len(held.images) > MOST:
        return None
    test = np.zeros(len(held.images), np.bool_)
    test[draw_split(len(held.images), data.split, 0, held.official_test, held.labels).test] = True
    return Searched(name, digest, held, test, data.split)


def sees_others(stage: schema.Pretrain, configuration: schema.Configuration) -> bool:
    """Whether a pretraining looks at pictures of another data set than fine-tuning, and fine-tuning starts from it."""
    finetune = configuration.finetune
    other = finetune is not None and finetune.data != stage.data
    return stage.method.facts.trains and other and uses_pretraining(configuration)


def inside(one: Searched, cache: Path) -> Iterator[str]:
    """Copies in one data set."""
    from pretune.trainables.data.checks.duplicates import copies_in

    found = copies_in(alike([one], cache), one.test, ~one.test)
    if found:
        a, b = found[0]
        yield (
            f"{one.where}: {len(found)} of {int(one.test.sum())} pictures of the test set look like one outside of it, "
            f"{one.held.names[a]} = {one.held.names[b]} first: scores on them are flattered"
        )


def between(tested: Searched, other: Searched, sees: str, cache: Path) -> Iterator[str]:
    """Copies of a test set among what pretraining sees of another set; validation images, too, of some seed."""
    from pretune.trainables.data.checks.duplicates import copies_in

    seen = np.ones_like(other.test) if sees == "all" else ~other.test
    nothing = np.zeros_like
    wanted, others = np.append(tested.test, nothing(seen)), np.append(nothing(tested.test), seen)
    found = copies_in(alike([tested, other], cache), wanted, others)
    if found:
        a, b = found[0]
        yield (
            f"{tested.where}: {len(found)} of {int(tested.test.sum())} pictures of the test set look like one that "
            f"pretraining sees of data {other.name} (sees: {sees}), {tested.held.names[a]} = "
            f"{other.held.names[b - len(tested.test)]} first: scores on them are flattered"
        )


def alike(sets: Sequence[Searched], cache: Path) -> Alike:
    """Which rows of the sets, one after the other, show the same picture: searched once for each content."""
    from pretune.trainables.data.checks.duplicates import Alike, Duplicate, Summaries, find_alike, summarised

    path = cache / "copies" / f"{'-'.join(one.digest[:32] for one in sets)}.{LISTED}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [summarised(np.asarray(one.held.images)) for one in sets]
        found = find_alike(Summaries(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))
        write_atomically(path, json.dumps([found.first.tolist(), found.near]))
    first, near = json.loads(path.read_text(encoding="utf-8"))
    return Alike(np.array(first, np.int64), [Duplicate(*pair) for pair in near])
