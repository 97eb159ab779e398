"""YAML -> Study -> cells -> configurations.

`load` (a file) and `from_dict` (Python) end in the same frozen `Study`. Every problem of the file is reported at
once, as one `StudyError`, before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell, cross, level_label, parse_part, read_factors
from pretune.search_spaces.check import check_finite, elsewhere, problems_of
from pretune.search_spaces.document import (
    Document,
    Locations,
    Problem,
    StudyError,
    did_you_mean,
    from_mapping,
    line_of,
    parse,
    read,
)
from pretune.search_spaces.overrides import Lines, apply_overrides, state_overlays
from pretune.search_spaces.rules import check_cells, check_header
from pretune.search_spaces.rules_task import check_overlaid, check_writers
from pretune.search_spaces.schema import Configuration, Header
from pretune.search_spaces.tuning import tuning_warnings
from pretune.search_spaces.words import titled

STAGE_KEYS = tuple(Configuration.model_fields)
HEADER_KEYS = tuple(Header.model_fields)
STUDY_KEYS = (*HEADER_KEYS, *STAGE_KEYS, "factors", "scales")


@dataclass(frozen=True)
class Study:
    """A whole study, checked."""

    header: Header
    factors: dict[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    resolved: dict[str, Any]  # the study as one YAML-able mapping, scales and --set applied
    source: str
    warnings: tuple[str, ...]
    scale: str = ""  # that was laid over the file; "" for none

    @property
    def name(self) -> str:
        return self.header.study

    @property
    def title(self) -> str:
        """The name for people, with the scale."""
        return titled(self.name, self.scale)

    @property
    def published(self) -> list[dict[str, Any]]:
        """The published tables that the report names, each of a metric of its own, as plain data."""
        return [self.header.published[key].model_dump(mode="json") for key in self.header.report.published or ()]

    def matching(self, levels: Mapping[str, Any]) -> tuple[Cell, ...]:
        """The cells that have the given levels; none given: all."""
        wanted = {factor: level_label(level) for factor, level in levels.items()}
        return tuple(cell for cell in self.cells if wanted.items() <= cell.levels.items())

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True)


def load(path: str | Path, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a study file.

    Args:
        path: the YAML file.
        scale: one of its `scales`, applied over the file.
        overrides: `dotted.key=value` strings (the command line's --set), applied last.

    Raises:
        StudyError: with every problem found, each with file, line and fix.
    """
    return resolve(read(Path(path)), scale, overrides)


def from_dict(data: Mapping[str, Any], scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """The same from Python data; ranges as mappings or as objects of `pretune.search_spaces.space`."""
    return resolve(from_mapping(data), scale, overrides)


def from_yaml(text: str, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """The same from a YAML string."""
    return resolve(parse(text), scale, overrides)


def resolve(document: Document, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    problems: list[Problem] = []
    data, lines = apply_overrides(document, scale, overrides, problems)
    state_overlays(data, document.data.get("scales"), scale, overrides)
    problems += _unknown_keys(data, lines)
    header = _read_header(data, lines, problems)
    template = {key: parse_part(data[key], (key,), lines, problems) for key in STAGE_KEYS if key in data}
    factors = read_factors(data.get("factors") or {}, lines, problems)
    collisions = list(check_writers(factors, Locations(lines)))
    problems += collisions
    problems += check_overlaid(document, scale, overrides, factors)
    cells = list(cross(template, lines, {} if collisions else factors, problems))  # the rest is checked all the same
    warnings: list[str] = []
    problems += check_cells(cells, header, warnings)
    problems += check_header(header, cells, factors, Locations(lines))
    if "tune" in data and not any(cell.all_ranges for cell, _ in cells):
        warnings.append("the study has a tune section but no ranges, so nothing is searched")
    if not problems:
        warnings += tuning_warnings([cell for cell, _ in cells], header)
    if problems:
        raise StudyError(problems, document.source)
    if header.keep_states is None:
        header = header.model_copy(update={"keep_states": lengths_vary([cell for cell, _ in cells])})
    names = {name: tuple(levels) for name, levels in factors.items()}
    resolved = {key: space.to_plain(data[key]) for key in STUDY_KEYS if key in data and key != "scales"}
    return Study(
        header,
        names,
        tuple(cell for cell, _ in cells),
        resolved,
        document.source,
        tuple(dict.fromkeys(warnings)),
        scale or "",
    )


def lengths_vary(cells: Sequence[Cell]) -> bool:
    """Whether trainings of the study may differ in their epochs alone, so that longer ones continue shorter ones."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        stages = {f"pretrain.{i}": stage for i, stage in enumerate(cell.template["pretrain"])}
        for name, stage in (stages | {"finetune": cell.template.get("finetune")}).items():
            epochs = stage.get("epochs") if isinstance(stage, Mapping) else None
            if space.is_range(epochs):
                return True
            found.setdefault(name, set()).add(str(epochs))
    return any(len(lengths) > 1 for lengths in found.values())


def _unknown_keys(data: Mapping[str, Any], lines: Lines) -> list[Problem]:
    unknown = [str(key) for key in data if key not in STUDY_KEYS]
    return [
        Problem(
            line_of(lines, (key,)), key, "there is no such key",
            did_you_mean(key, STUDY_KEYS, or_else=elsewhere(Configuration, (key,)) or elsewhere(Header, (key,))),
        )
        for key in unknown
    ]  # fmt: skip


def _read_header(data: Mapping[str, Any], lines: Lines, problems: list[Problem]) -> Header:
    """The header; where it has faults, one with defaults in their place, so that the rest is checked all the same."""
    given = {key: data[key] for key in HEADER_KEYS if key in data}
    header, found = problems_of(Header, given, Locations(lines))
    problems += [*found, *check_finite(given, (), Locations(lines))]
    return header or problems_of(Header, {**given, "study": "study"}, Locations(lines))[0] or Header(study="study")
