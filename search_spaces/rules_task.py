"""One key has one writer, and what is measured is not tuned."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pretune.search_spaces.cells import Cell, Level
from pretune.search_spaces.document import KeyPath, Locations, Problem, line_of
from pretune.search_spaces.schema import Configuration
from pretune.search_spaces.space import Range

# What decides on which images, classes and sizes a stage is scored: as a factor it makes columns different tasks.
SCORING = ("finetune.data", "finetune.test_sizes", "finetune.boundary_tolerance")

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
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _twice(path: KeyPath, place: KeyPath, key: str, whose: str, locations: Locations) -> Problem:
    line = line_of(locations.lines, place)
    also = f"{whose} sets {key} too" + (f" (line {line})" if line else "")
    return locations.problem(path, also, "one factor may set a key: join them into one with named levels")


def check_equal_levels(
    factors: Mapping[str, Mapping[str, Level]], cells: Sequence[tuple[Cell, Locations]]
) -> Iterator[Problem]:
    """Levels that are written otherwise and mean the same: 0.001 and "1e-3", 10% and 10.0%."""
    for name, levels in factors.items():
        alike: dict[str, str] = {}  # overrides -> the first level that has them
        for label, level in levels.items():
            first = alike.setdefault(repr(_canonical(level.override)), label)
            if first != label and _mean_the_same(name, first, label, cells):
                path = next(iter(level.written.values()), ("factors", name, label))
                yield cells[0][1].problem(path, f"the levels {first!r} and {label!r} mean the same", "remove one")


def _canonical(value: Any) -> Any:
    """Equal for values that may mean the same: numbers and texts of numbers, shares and percentages."""
    if isinstance(value, Mapping):
        return {key: _canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value).strip()
        with contextlib.suppress(ValueError):
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    return value


def _mean_the_same(factor: str, one: str, other: str, cells: Sequence[tuple[Cell, Locations]]) -> bool:
    """Whether the first cells of two levels have equal settings once these are read: labels 1 and 1.0 have not."""
    first = [next((cell for cell, _ in cells if cell.levels.get(factor) == level), None) for level in (one, other)]
    try:
        settings = [cell.configuration() for cell in first if cell is not None]
    except ValidationError:  # what is wrong there is reported for itself
        return False
    return len({one.model_dump_json() for one in settings}) == 1 == len(settings) - 1  # text: 1 image is not 1.0, all


def check_tuned(cell: Cell, settings: Configuration, locations: Locations) -> Iterator[Problem]:
    """A range on what defines the task or the score would choose the easiest task, not the best training."""
    scored = {probe.data for probe in settings.probe.values()}
    scored |= set() if settings.finetune is None else {settings.finetune.data}
    for name, item in cell.all_ranges:
        parts = tuple(part.partition("[")[0] for part in name.split("."))  # without the options of choices
        of_data = parts[0] == "data" and (len(parts) < 2 or parts[1] in scored)
        if of_data or parts[0] == "probe" or name in SCORING or (name == "finetune" and _differ_in_scoring(item)):
            what = "a range here changes what is measured: a search would choose the easiest task"
            yield locations.problem(
                parts, what, "give one value, or make it a factor, whose levels are different tasks"
            )


def _differ_in_scoring(item: Range) -> bool:
    """Whether a choice between whole fine-tunings is one between tasks."""
    options = [option for option in getattr(item, "options", ()) if isinstance(option, Mapping)]
    keys = [key.partition(".")[2] for key in SCORING]
    return len({repr([option.get(key) for key in keys]) for option in options}) > 1
