"""Data leakage that no split can see: images of a test set that are in training too, in its own data set or another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import uses_pretraining
from pretune.store.store import write_atomically
from pretune.trainables.checksums import sealed, unsealed

if TYPE_CHECKING:
    from pretune.trainables.data.checks.duplicates import Alike
    from pretune.trainables.data.image_set import ImageSet

MAX_SEARCHED = 20_000  # images of a set that is searched before a study: some seconds, once
FOLDER, SUFFIX = "copies", ".alike.json"  # of the cache, and of the files in it that remember what was found
INFLATED = "test scores may be too high (leakage): keep images of one scene together with split.group"

Opened = Callable[[schema.Data], "tuple[str, ImageSet]"]  # a data set's digest and its images


class Searched(NamedTuple):
    """A data set that is small enough to be searched."""

    name: str  # in the study
    digest: str
    images: ImageSet
    test: NDArray[np.bool_]  # (N,)
    split: schema.Split

    @property
    def where(self) -> str:
        return f"data {self.name}" + (f" (fold {self.split.fold})" if self.split.fold else "")


def find_leaks(study: Study, opened: Opened, cache: Path) -> Iterator[str]:
    """A sentence for each data set with duplicates across its test split, and for each pretraining that sees
    duplicates of the test set of what is fine-tuned in another data set.

    Args:
        opened: a data set's digest and its images.
        cache: what was found is remembered there, by digest.
    """
    sets: dict[str, Searched | None] = {}  # by content and split: cells share most of them
    reported: set[tuple[str, ...]] = set()
    for cell in study.cells:
        configuration = cell.configuration()
        keys = {name: f"{opened(data)[0]} {data.split.model_dump_json()}" for name, data in configuration.data.items()}
        for name, data in configuration.data.items():
            if keys[name] in sets or isinstance(data, schema.Scenes) or schema.slices_of(data) is not None:
                continue
            sets[keys[name]] = one = _searched(name, data, opened)
            if one is None:
                yield f"data {name}: not searched for duplicates (streamed, or more than {MAX_SEARCHED:,} images)"
            else:
                yield from _leaks_inside(one, cache)
        for stage in configuration.pretrain:
            if configuration.finetune is None or not sees_other_data(stage, configuration):
                continue
            both = keys[configuration.finetune.data], keys[stage.data]
            tested, other = (sets.get(one) for one in both)
            if tested is not None and other is not None and (*both, stage.sees) not in reported:
                reported.add((*both, stage.sees))
                yield from _leaks_between(tested, other, stage.sees, cache)


def sees_other_data(stage: schema.Pretrain, configuration: schema.Configuration) -> bool:
    """Whether a pretraining looks at images of another data set than fine-tuning, and fine-tuning starts from it."""
    finetune = configuration.finetune
    other = finetune is not None and finetune.data != stage.data
    return stage.method.facts.trains and other and uses_pretraining(configuration)


def _searched(name: str, data: schema.Data, opened: Opened) -> Searched | None:
    """The set with its test split; None where it is too large to search."""
    from pretune.trainables.data.splits import draw_split, marks_for

    digest, images = opened(data)
    if images.streamed or len(images.images) > MAX_SEARCHED:
        return None
    test = np.zeros(len(images.images), np.bool_)
    marks = marks_for(data.split, images)
    test[draw_split(len(images.images), data.split, 0, images.official_test, images.labels, marks).test] = True
    return Searched(name, digest, images, test, data.split)


def _leaks_inside(one: Searched, cache: Path) -> Iterator[str]:
    """Groups and duplicates across the test split of one data set."""
    from pretune.trainables.data.checks.duplicates import duplicates_among
    from pretune.trainables.data.splits import group_codes, marks_for

    if one.split.group is not None:  # only lists that are used as they are can cut a group
        groups = group_codes(len(one.test), one.split.group, marks_for(one.split, one.images))
        if len(both := np.intersect1d(groups[one.test], groups[~one.test])):
            first = next(name for name, group in zip(one.images.names, groups, strict=True) if group == both[0])
            yield (
                f"{one.where}: {len(both)} groups of split.group have images both in the test set and outside of it, "
                f"for example that of {first}; {INFLATED}"
            )

    found = duplicates_among(_alike([one], cache), one.test, ~one.test)
    if found:
        a, b = found[0]
        yield (
            f"{one.where}: {len(found)} of {int(one.test.sum())} test images {_look(found)} like an image outside of "
            f"the test set, for example {one.images.names[a]} and {one.images.names[b]}; {INFLATED}"
        )


def _leaks_between(tested: Searched, other: Searched, sees: str, cache: Path) -> Iterator[str]:
    """Duplicates of a test set among what pretraining sees of another set; validation images, too, of some seed."""
    from pretune.trainables.data.checks.duplicates import duplicates_among

    seen = np.ones_like(other.test) if sees == "all" else ~other.test
    nothing = np.zeros_like
    wanted, others = np.append(tested.test, nothing(seen)), np.append(nothing(tested.test), seen)
    found = duplicates_among(_alike([tested, other], cache), wanted, others)
    if found:
        a, b = found[0]
        yield (
            f"{tested.where}: {len(found)} of {int(tested.test.sum())} test images {_look(found)} like an image that "
            f"pretraining sees in data {other.name} (pretrain.sees: {sees}), for example {tested.images.names[a]} and "
            f"{other.images.names[b - len(tested.test)]}; test scores of starts pretrained on {other.name} may be "
            f"slightly too good. To avoid this, remove such images from data {other.name}"
        )


def _look(found: Sequence[object]) -> str:
    return "looks" if len(found) == 1 else "look"


def _alike(sets: Sequence[Searched], cache: Path) -> Alike:
    """Rows of the sets, one set after the other, that look alike: searched once for each content."""
    from pretune.trainables.data.checks.duplicates import Alike, Duplicate, Summaries, find_alike, summarised

    path = cache / FOLDER / f"{'-'.join(one.digest[:32] for one in sets)}{SUFFIX}"
    if (known := unsealed(path)) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [summarised(np.asarray(one.images.images)) for one in sets]
        found = find_alike(Summaries(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))
        known = [found.first.tolist(), found.near]
        write_atomically(path, sealed(known))
    first, near = known
    return Alike(np.array(first, np.int64), [Duplicate(*pair) for pair in near])
