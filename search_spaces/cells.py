"""Factors and their levels, crossed into the cells of the result table."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import yaml

from pretune.search_spaces import space
from pretune.search_spaces.check import BROKEN
from pretune.search_spaces.document import KeyPath, Locations, Problem, dotted, line_of
from pretune.search_spaces.identities import settings_that_reach
from pretune.search_spaces.overrides import Lines, put, split_key
from pretune.search_spaces.schema import FACTS, Configuration

MAX_CELLS = 10_000

Template = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One combination of the levels of all factors: settings of every stage, ranges still in place."""

    label: str
    levels: dict[str, str]
    template: Template

    def configuration(self, suggest: space.Suggest = space.centre) -> Configuration:
        """Every range filled in by `suggest`; by default with its centre."""
        return Configuration.model_validate(self.settings(suggest))

    def settings(self, suggest: space.Suggest) -> dict[str, Any]:
        """The template with every range filled in, unchecked; sections without ranges are the template's own."""
        return {
            key: space.fill(section, suggest, key) if key in self._ranges_by_section else section
            for key, section in self.template.items()
        }

    @functools.cached_property
    def all_ranges(self) -> tuple[tuple[str, space.Range], ...]:
        """Every range of the template by name, those inside branches included."""
        return tuple(itertools.chain(*self._ranges_by_section.values()))

    @functools.cached_property
    def _ranges_by_section(self) -> dict[str, tuple[tuple[str, space.Range], ...]]:
        found = {key: tuple(space.ranges(section, key)) for key, section in self.template.items()}
        return {key: ranges for key, ranges in found.items() if ranges}

    @property
    def pretrained(self) -> bool:
        """Whether the fine-tuning (or, without one, the study) starts from a pretraining."""
        finetune = self.template.get("finetune")
        none = isinstance(finetune, Mapping) and finetune.get("transfer") == "none"
        return bool(self.template["pretrain"]) and not none

    def ranges(self, part: Literal["pretrain", "finetune"]) -> list[str]:
        """Names of the ranges tuned with `pretrain` (those of model and data among them) or with `finetune`.

        Where nothing is transferred, the ranges of model and data are tuned with the fine-tuning, and those of a
        pretraining that nobody uses not at all.
        """
        return self._tuned_with[part]

    @functools.cached_property
    def _tuned_with(self) -> dict[str, list[str]]:
        names = [name for name, _ in self.all_ranges]
        if not self.pretrained:
            return {"pretrain": [], "finetune": [name for name in names if not name.startswith("pretrain")]}
        of_finetune = [name for name in names if name.startswith("finetune")]
        return {"pretrain": [name for name in names if name not in of_finetune], "finetune": of_finetune}

    def pretraining(self) -> str:
        """Equal for the cells whose pretraining is tuned together: all that reaches it, as canonical text."""
        reaching = {
            "data": self.template["data"],
            "model": self._trained_model(),
            "pretrain": self.template["pretrain"],
        }
        return json.dumps(space.to_plain(reaching), sort_keys=True)

    def _trained_model(self) -> Any:
        """The settings of the model that reach the pretraining, and every range of the model, which is tuned with it.

        A model that is itself a choice counts whole: the names of its ranges hold those of its options.
        """
        written = self.template.get("model") or {}
        if not isinstance(written, Mapping):
            return written
        ranged = {key: value for key, value in written.items() if any(space.ranges(value))}
        model = self.configuration().model.model_dump(mode="json") | ranged
        decoder = any(_decodes(stage) for stage in self.template["pretrain"])
        return settings_that_reach(model, decoder) | ranged


def level_label(value: object) -> str:
    """Return a level as it is written in tables: `true`, `none`, `10%`, `0.2`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    try:
        return yaml.safe_dump(space.to_plain(value), default_flow_style=True, width=math.inf).split("\n")[0].strip()
    except yaml.YAMLError:  # an object that YAML cannot write; whether it is a setting is found out later
        return str(value)


class Level(NamedTuple):
    """Return the settings of a level, by dotted key, and where each is written."""

    override: dict[str, Any]
    written: dict[str, KeyPath]


def read_factors(data: Any, lines: Lines, problems: list[Problem]) -> dict[str, dict[str, Level]]:
    if not isinstance(data, Mapping):
        problems.append(Locations(lines).problem(("factors",), "is a mapping of factors to their levels"))
        return {}
    return {name: _read_levels(("factors", name), body, lines, problems) for name, body in data.items()}


def _read_levels(path: KeyPath, body: Any, lines: Lines, problems: list[Problem]) -> dict[str, Level]:
    if not isinstance(body, Mapping) or not body:
        fix = "write {dotted.key: [values]} or {level name: {dotted.key: value}}"
        problems.append(Locations(lines).problem(path, "has no levels", fix))
        return {}
    if len(body) == 1 and isinstance(next(iter(body.values())), list):
        key, values = next(iter(body.items()))
        return _plain_levels((*path, key), values, lines, problems)
    levels: dict[str, Level] = {}
    for label, override in body.items():
        if not isinstance(override, Mapping) and override is not None:
            fix = "write {level name: {dotted.key: value}}, or one dotted key with a list of values"
            problems.append(Locations(lines).problem((*path, label), "is not an override", fix))
            continue
        written = {key: (*path, label, key) for key in override or {}}
        parsed = {key: parse_part((override or {})[key], where, lines, problems) for key, where in written.items()}
        levels[label] = Level(parsed, written)
    return levels


def _plain_levels(path: KeyPath, values: list[Any], lines: Lines, problems: list[Problem]) -> dict[str, Level]:
    if not values:
        problems.append(Locations(lines).problem(path, "has no levels", "list its values"))
    levels: dict[str, Level] = {}
    for i, value in enumerate(values):
        label, key, where = level_label(value), str(path[-1]), (*path, i)
        if label in levels:
            problems.append(Locations(lines).problem(where, f"the level {label!r} stands there twice", "remove one"))
        levels[label] = Level({key: parse_part(value, where, lines, problems)}, {key: where})
    return levels


def cross(
    template: Template, lines: Lines, factors: Mapping[str, Mapping[str, Level]], problems: list[Problem]
) -> Iterator[tuple[Cell, Locations]]:
    """Every combination of levels, each with the settings it means and where they stand."""
    usable = {name: levels for name, levels in factors.items() if levels}  # of the others the reader was told
    total = math.prod(len(levels) for levels in usable.values())
    if total > MAX_CELLS:
        problems.append(Locations(lines).problem(("factors",), f"{total} cells are more than {MAX_CELLS}"))
        return
    under = _lines_of_levels(lines, usable)
    own = {path: line for path, line in lines.items() if path[:1] not in (("factors",), ("scales",))}
    set_in = {key.split(".")[0] for levels in usable.values() for level in levels.values() for key in level.override}
    for combination in itertools.product(*(levels.items() for levels in usable.values())):
        settings = {key: copy.deepcopy(value) if key in set_in else value for key, value in template.items()}
        own_lines = dict(own)
        for _, (override, written) in combination:
            for key, value in override.items():
                path = written[key]
                put(settings, own_lines, split_key(key, settings), value, under[path], dotted(path), problems)
        chain = _as_chain(settings.get("pretrain"))
        settings["pretrain"] = [stage for _, stage in chain]
        levels_of = {name: label for name, (label, _) in zip(usable, combination, strict=True)}
        label = " ".join(f"{name}={level}" for name, level in levels_of.items()) or "all"
        yield Cell(label, levels_of, settings), Locations(own_lines, tuple(path for path, _ in chain))


def _lines_of_levels(lines: Lines, factors: Mapping[str, Mapping[str, Level]]) -> dict[KeyPath, Lines]:
    """The lines below each place at which a level sets a key, as `lines_under` gives them, in one pass."""
    places = {path for levels in factors.values() for level in levels.values() for path in level.written.values()}
    under: dict[KeyPath, Lines] = {}
    for path, line in lines.items():
        for end in range(2, len(path) + 1):
            if path[:end] in places:
                under.setdefault(path[:end], {})[path[end:]] = line
    return {path: under.get(path) or {(): line_of(lines, path)} for path in places}


# ------------------------------------------------------------------------------------------------- ranges and chains


def parse_part(value: Any, path: KeyPath, lines: Lines, problems: list[Problem]) -> Any:
    if isinstance(value, Mapping) and not space.is_written_range(value):
        return {key: parse_part(item, (*path, key), lines, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [parse_part(item, (*path, i), lines, problems) for i, item in enumerate(value)]
    try:
        return space.parse_ranges(value)
    except ValueError as error:
        problems.append(Locations(lines).problem(path, str(error)))
        return BROKEN


def _as_chain(pretrain: Any) -> list[tuple[KeyPath, Any]]:
    """`pretrain` may be missing, `none`, one stage or a list of them: the stages, and where each is written."""
    if isinstance(pretrain, list):
        return [(("pretrain", i), stage) for i, stage in enumerate(pretrain) if not _is_none(stage)]
    return [] if pretrain is None or _is_none(pretrain) else [(("pretrain",), pretrain)]


def _is_none(stage: Any) -> bool:
    method = stage.get("method") if isinstance(stage, Mapping) else stage
    return stage == "none" or method == "none" or (isinstance(method, Mapping) and method.get("name") == "none")


def _decodes(stage: Any) -> bool:
    """Whether a pretraining trains a decoder, or may: its method can be a choice among several."""
    method = stage.get("method") if isinstance(stage, Mapping) else None
    options = method.options if isinstance(method, space.Choice) else (method,)
    names = [option.get("name") for option in options if isinstance(option, Mapping)]
    return any(FACTS[name].decoder for name in names if isinstance(name, str) and name in FACTS)
