"""One key has one writer, and what is measured is not tuned."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell, Level
from pretune.search_spaces.document import Document, KeyPath, Locations, Problem, dotted, line_of
from pretune.search_spaces.metrics import parts_of
from pretune.search_spaces.schema import Configuration, Finetune, Tune, meaning_of

# What decides on which images, classes and sizes a stage is scored: as a factor it makes columns different tasks.
SCORING = ("finetune.data", "finetune.test_sizes", "finetune.boundary_tolerance", "finetune.average")

# What decides on what a score of fine-tuning measures, as keys of it: the loss scored is the loss trained.
LOSS = ("loss", "class_weights", "focal_gamma", "tversky_beta")
BATCHES = ("batch_size",)

MAX_FACTORS = 100  # each is compared with each


def check_writers(factors: Mapping[str, Mapping[str, Level]], locations: Locations) -> Iterator[Problem]:
    """No two factors, and no two keys of a level, set one key, or one a part of what the other replaces.

    The later would win, and cells would not be what their labels say.
    """
    if len(factors) > MAX_FACTORS:
        yield locations.problem(("factors",), f"{len(factors)} factors are more than {MAX_FACTORS}")
        return
    for levels in factors.values():
        for level in levels.values():
            for one, other in itertools.combinations(level.written, 2):
                if _touch(one, other):
                    yield _twice(level.written[other], level.written[one], one, "the same level", locations)
    written = {name: _written(levels) for name, levels in factors.items()}
    for (name, ours), theirs in itertools.combinations(written.items(), 2):
        for key, path in theirs[1].items():
            for own, place in ours.items():
                if _touch(own, key):
                    yield _twice(path, place, own, f"factor {name!r}", locations)


def _written(levels: Mapping[str, Level]) -> dict[str, KeyPath]:
    """The keys that a factor sets, each where it stands first."""
    found: dict[str, KeyPath] = {}
    for level in levels.values():
        for key, path in level.written.items():
            found.setdefault(key, path)
    return found


def _touch(one: str, other: str) -> bool:
    return _holds(one, other) or _holds(other, one)


def _holds(outer: str, inner: str) -> bool:
    return outer == inner or inner.startswith(f"{outer}.")


def _twice(path: KeyPath, place: KeyPath, key: str, whose: str, locations: Locations) -> Problem:
    line = line_of(locations.lines, place)
    also = f"{whose} sets {key} too" + (f" (line {line})" if line else "")
    return locations.problem(path, also, "one factor may set a key: join them into one with named levels")


def check_overlaid(
    document: Document, scale: str | None, overrides: Sequence[str], factors: Mapping[str, Mapping[str, Level]]
) -> Iterator[Problem]:
    """A key of a scale or of --set that a factor writes in all of its levels changes nothing; two of a scale may not
    touch."""
    scales, locations = document.data.get("scales"), Locations(document.lines)
    chosen = scales.get(scale) if isinstance(scales, Mapping) else None
    keys = list(chosen) if isinstance(chosen, Mapping) else []
    for one, other in itertools.combinations(keys, 2):
        if _touch(one, other):
            what = f"the same scale sets {one} too"
            yield locations.problem(("scales", str(scale), other), what, "set each key once")
    for name, levels in factors.items():
        what, fix = (
            f"has no effect: factor {name!r} sets it in every level",
            f"change factors.{name}, or remove this setting",
        )
        for key in keys:
            if _written_over(key, levels):
                yield locations.problem(("scales", str(scale), key), what, fix)
        for key in (text.partition("=")[0].strip() for text in overrides):
            if _written_over(key, levels):
                yield Problem(0, f"--set {key}", what, fix)


def _written_over(key: str, levels: Mapping[str, Level]) -> bool:
    return bool(levels) and all(any(_holds(own, key) for own in level.written) for level in levels.values())


def check_equal_levels(
    factors: Mapping[str, Mapping[str, Level]], cells: Sequence[tuple[Cell, Locations]], locations: Locations
) -> Iterator[Problem]:
    """Levels that are written otherwise and mean the same: 0.001 and "1e-3", all and 100%, a default and nothing.

    Levels are compared where all other factors are at their first level: since no two factors set one key, what is
    equal there is equal everywhere.
    """
    crossed = cells[0][0].levels if cells else {}  # nothing is crossed where factors collide
    first = {name: next(iter(levels)) for name, levels in factors.items() if name in crossed}
    for name, levels in ((name, factors[name]) for name in first):
        alike: dict[object, str] = {}  # settings -> the first level that has them
        others = {key: level for key, level in first.items() if key != name}
        for cell in (cell for cell, _ in cells if others.items() <= cell.levels.items()):
            label = cell.levels[name]
            meant = _settings_of(cell)
            if meant is not None and alike.setdefault(meant, label) != label:
                path = next(iter(levels[label].written.values()), ("factors", name, label))
                what = f"the levels {alike[meant]!r} and {label!r} mean the same"
                yield locations.problem(path, what, "remove one")


def _settings_of(cell: Cell, chosen: Mapping[str, int] | None = None) -> object:
    """A cell's settings once they are read, and its ranges; None where they cannot be read.

    `chosen` has numbers of options, by the names of choices.
    """
    given = chosen or {}
    try:
        read = cell.configuration(lambda name, item: given[name] if name in given else space.centre(name, item))
        return repr(meaning_of(read, read.model_dump())), repr(cell.all_ranges)
    except ValidationError:  # what is wrong there is reported for itself
        return None


def check_options(cell: Cell, locations: Locations, read: set[str]) -> Iterator[Problem]:
    """Options of a choice that are written otherwise and mean the same: one would be tried twice as often.

    Settings are compared in the first cell that has a choice; `read` holds those that were.
    """
    for name, item in cell.all_ranges:
        if isinstance(item, space.Choice):
            alike: dict[object, str] = {}
            plain = not any(other.startswith(f"{name}[") for other, _ in cell.all_ranges)
            compared = plain and "[" not in name and f"{name} {item}" not in read
            read.add(f"{name} {item}")
            for i, (option, label) in enumerate(zip(item.options, item.labels(), strict=True)):
                first = alike.setdefault(repr(_canonical(space.to_plain(option))), label)
                meant = _settings_of(cell, {name: i}) if compared and first == label else None
                if meant is not None:
                    first = alike.setdefault(meant, label)
                if first != label:
                    what = f"the options {first!r} and {label!r} mean the same"
                    yield locations.problem(path_of(name), what, "remove one")


def _canonical(value: Any) -> Any:
    """Equal for values that mean the same: numbers and their texts, shares and percentages; 1 is not 1.0."""
    if isinstance(value, Mapping):
        return {key: _canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, str):
        text = value.strip()
        with contextlib.suppress(ValueError):
            return int(text) if text.isdecimal() else float(text[:-1]) / 100 if text.endswith("%") else float(text)
    return value


@functools.lru_cache
def path_of(name: str) -> KeyPath:
    """The key path at which a range is written, from its name, without the options of choices."""
    parts = re.sub(r"\[[^]]*\]", "", name).split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def measured_by(metric: str) -> tuple[str, ...]:
    """Keys of fine-tuning with which a score of this name measures something else."""
    found = parts_of(metric)
    if found.part == "probe":
        return ()
    return LOSS if found.metric == "loss" else BATCHES if found.metric.endswith("_batches") else ()


def measure(metric: str, finetune: Finetune) -> str:
    """The values of those keys, equal where they mean the same."""
    dumped = finetune.model_dump(include=set(measured_by(metric)))
    return repr(meaning_of(finetune, dumped))


def scored_size(settings: Configuration) -> int | None:
    """px of the masks that a fine-tuning is scored on; sliding windows score at the resolution of the cache."""
    finetune = settings.finetune
    if finetune is None or finetune.data not in settings.data:
        return None
    return finetune.size if finetune.evaluate is None else settings.data[finetune.data].cache_size


def sizes_searched(cell: Cell, settings: Configuration) -> Iterator[str]:
    """Say that a search over sizes compares scores of other masks."""
    if dict(cell.all_ranges).get("finetune.size") and settings.finetune and settings.finetune.evaluate is None:
        yield (
            "finetune.size is a range, and masks are scored at that size: the best score may be that of the easiest "
            "size; finetune.evaluate scores all at the resolution of the cache"
        )


def _check_measures(cell: Cell, tune: Tune, locations: Locations) -> Iterator[Problem]:
    """A range on what defines a score would be searched for the measure that is easiest, as a loss that is small."""
    for metric in dict.fromkeys((tune.target, *tune.also, *tune.constraints)):
        keys = measured_by(metric)
        for name, item in cell.all_ranges if keys else ():
            path = path_of(name)
            if (path[0] == "finetune" and path[1:2] and path[1] in keys) or _options_differ(path, item, keys):
                what = f"a range here changes what {metric} measures: its best value is not that of the best model"
                yield locations.problem(path, what, "give one value, or tune by another score, such as val/jaccard")


def check_tuned(cell: Cell, settings: Configuration, tune: Tune, locations: Locations) -> Iterator[Problem]:
    """A range on what defines the task or the score would choose the easiest task, not the best training.

    By `tune.pretrain.target: pretext`, a pretraining is scored on its own data.
    """
    target = tune.pretrain.target
    yield from _check_measures(cell, tune, locations)
    scored = {probe.data for probe in settings.probe.values()}
    scored |= set() if settings.finetune is None else {settings.finetune.data}
    scored |= {stage.data for stage in settings.pretrain[-1:] if target == "pretext"}
    for name, item in cell.all_ranges:
        path = path_of(name)
        of_data = path[0] == "data" and (len(path) < 2 or path[1] in scored)
        sees = path[0] == "pretrain" and (path[-1] == "sees" or (path[-1] == "data" and target == "pretext"))
        if of_data or sees or path[0] == "probe" or dotted(path) in SCORING or _scored_otherwise(path, item):
            what = "a range here changes what is measured: a search would choose the easiest task"
            yield locations.problem(path, what, "give one value, or make it a factor, whose levels are different tasks")


def _scored_otherwise(path: KeyPath, item: space.Range) -> bool:
    """Whether the options of a whole stage are scored on other data, at other sizes, or have seen other images."""
    if path[0] not in ("finetune", "pretrain"):
        return False
    if path == ("finetune",):
        return _options_differ(path, item, [key.rpartition(".")[2] for key in SCORING])
    return _differ(item, ["sees"])


def _options_differ(path: KeyPath, item: space.Range, keys: Sequence[str]) -> bool:
    """Whether the options of a whole fine-tuning differ in any of its keys."""
    return path == ("finetune",) and _differ(item, keys)


def _differ(item: space.Range, keys: Sequence[str]) -> bool:
    if not isinstance(item, space.Choice):
        return False
    options = [option for option in item.options if isinstance(option, Mapping)]
    return any(len({str(option.get(key)) for option in options}) > 1 for key in keys)
