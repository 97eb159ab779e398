"""YAML -> Study -> cells -> configurations.

`load` (a file) and `from_dict` (Python) end in the same frozen `Study`. Every problem of the file is reported at
once, as one `StudyError`, before anything starts.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from search_spaces import space
from search_spaces.check import problems_of
from search_spaces.document import Document, KeyPath, Problem, StudyError, did_you_mean, dotted, line_of, parse, read
from search_spaces.schema import Configuration, Header

STAGE_KEYS = tuple(Configuration.model_fields)
HEADER_KEYS = tuple(Header.model_fields)
STUDY_KEYS = (*HEADER_KEYS, *STAGE_KEYS, "factors", "scales")
MAX_CELLS = 10_000

Template = dict[str, Any]
Lines = dict[KeyPath, int]


@dataclass(frozen=True)
class Cell:
    """One combination of the levels of all factors: settings of every stage, ranges still in place."""

    label: str
    levels: dict[str, str]
    template: Template

    def configuration(self, suggest: space.Suggest = space.centre) -> Configuration:
        """Every range filled in by `suggest`; by default with its centre."""
        return Configuration.model_validate(space.fill(self.template, suggest))

    @property
    def pretrained(self) -> bool:
        """Whether the fine-tuning (or, without one, the study) starts from a pretraining."""
        finetune = self.template.get("finetune")
        return bool(self.template["pretrain"]) and (finetune is None or finetune.get("transfer") != "none")

    def ranges(self, part: Literal["pretrain", "finetune"]) -> list[str]:
        """Names of the ranges tuned with `pretrain` (those of model and data among them) or with `finetune`.

        Where nothing is transferred, the ranges of model and data are tuned with the fine-tuning, and those of a
        pretraining that nobody uses not at all.
        """
        names = [name for name, _ in space.ranges(self.template)]
        if not self.pretrained:
            return [name for name in names if part == "finetune" and not name.startswith("pretrain")]
        return [name for name in names if name.startswith("finetune") == (part == "finetune")]

    def pretraining(self) -> str:
        """Equal for the cells whose pretraining is tuned together: all that reaches it, as canonical text."""
        model = {key: value for key, value in (self.template.get("model") or {}).items() if key != "skip_connections"}
        reaching = {"data": self.template["data"], "model": model, "pretrain": self.template["pretrain"]}
        return json.dumps(space.to_plain(reaching), sort_keys=True)


@dataclass(frozen=True)
class Study:
    """A whole study, checked."""

    header: Header
    factors: dict[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    resolved: dict[str, Any]  # the study as one YAML-able mapping, scales and --set applied
    source: str
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.header.study

    @property
    def published(self) -> dict[str, Any] | None:
        """The published table that the report names, as plain data."""
        key = self.header.report.published
        return self.header.published[key].model_dump(mode="json") if key else None

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
    """The same from Python data; ranges as mappings or as objects of `search_spaces.space`."""
    return resolve(Document(copy.deepcopy(dict(data)), {}, "study"), scale, overrides)


def from_yaml(text: str, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """The same from a YAML string."""
    return resolve(parse(text), scale, overrides)


def resolve(document: Document, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    problems: list[Problem] = []
    data, lines = _apply_overrides(document, scale, overrides, problems)
    problems += _unknown_keys(data, lines)
    header, found = problems_of(Header, {key: data[key] for key in HEADER_KEYS if key in data}, lines)
    problems += found
    template, found = _with_ranges({key: data[key] for key in STAGE_KEYS if key in data}, lines)
    problems += found
    factors = _read_factors(data.get("factors") or {}, lines, problems)
    cells = list(_cross(template, lines, factors, problems))
    warnings: list[str] = []
    problems += _check_cells(cells, header if isinstance(header, Header) else None, warnings)
    if isinstance(header, Header):
        problems += _check_header(header, template, factors, lines, warnings)
    if problems or not isinstance(header, Header):
        raise StudyError(_once(problems), document.source)
    names = {name: tuple(levels) for name, levels in factors.items()}
    resolved = {key: space.to_plain(data[key]) for key in STUDY_KEYS if key in data and key != "scales"}
    return Study(
        header, names, tuple(cell for cell, _ in cells), resolved, document.source, tuple(dict.fromkeys(warnings))
    )


def level_label(value: object) -> str:
    """How a level is written in tables: `true`, `none`, `10%`, `0.2`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0].strip()


# ------------------------------------------------------------------------------------------------ scales and --set


def _apply_overrides(
    document: Document, scale: str | None, overrides: Sequence[str], problems: list[Problem]
) -> tuple[dict[str, Any], Lines]:
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    scales = data.get("scales") or {}
    if scale is not None and scale not in scales:
        hint = did_you_mean(scale, scales) if scales else "the study has no scales"
        problems.append(Problem(lines.get(("scales",), 0), "scales", f"there is no scale {scale!r}", hint))
    elif scale is not None:
        for key, value in scales[scale].items():
            place = ("scales", scale, key)
            _put(data, lines, split_key(key, data), value, _lines_under(lines, place), dotted(place), problems)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            problems.append(Problem(0, f"--set {text}", "is not of the form dotted.key=value"))
            continue
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            problems.append(Problem(0, f"--set {text}", "the value is not valid YAML", "quote it"))
            continue
        _put(data, lines, split_key(key.strip(), data), parsed, {(): 0}, f"--set {key}", problems)
    return data, lines


def split_key(key: str, data: Any) -> KeyPath:
    """'pretrain.0.epochs' -> ('pretrain', 0, 'epochs') where pretrain is a list."""
    path: list[str | int] = []
    for part in str(key).split("."):
        if isinstance(data, list) and part.isdigit():
            path.append(int(part))
            data = data[int(part)] if int(part) < len(data) else None
        else:
            path.append(part)
            data = data.get(part) if isinstance(data, Mapping) else None
    return tuple(path)


def _put(data: Any, lines: Lines, path: KeyPath, value: Any, new: Lines, where: str, problems: list[Problem]) -> None:
    """Put `value` at `path`, in place; what stood there goes, whole, with its line numbers."""
    for part in path[:-1]:
        if isinstance(data, dict):
            if data.get(part) is None:
                data[part] = {}
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            problems.append(Problem(new.get((), 0), where, f"{part!r} cannot be set inside a plain value"))
            return
    last = path[-1]
    inside = isinstance(data, dict) or (isinstance(data, list) and isinstance(last, int) and last < len(data))
    if not inside or space.is_range(data):
        problems.append(Problem(new.get((), 0), where, f"{last!r} cannot be set inside a plain value"))
        return
    data[last] = copy.deepcopy(value)
    for old in [key for key in lines if key[: len(path)] == path]:
        del lines[old]
    lines.update({(*path, *key): line for key, line in new.items()})


def _lines_under(lines: Lines, path: KeyPath) -> Lines:
    return {key[len(path) :]: line for key, line in lines.items() if key[: len(path)] == path} or {
        (): line_of(lines, path)
    }


# ------------------------------------------------------------------------------------------------- keys and ranges


def _unknown_keys(data: Mapping[str, Any], lines: Lines) -> list[Problem]:
    unknown = [key for key in data if key not in STUDY_KEYS]
    return [
        Problem(line_of(lines, (key,)), str(key), "there is no such key", did_you_mean(str(key), STUDY_KEYS))
        for key in unknown
    ]


def _with_ranges(data: Template, lines: Lines) -> tuple[Template, list[Problem]]:
    """Stage settings with their ranges parsed; pretraining as a list of stages."""
    problems: list[Problem] = []
    template = {key: _parse_part(value, (key,), lines, problems) for key, value in data.items()}
    return template, problems


def _parse_part(value: Any, path: KeyPath, lines: Lines, problems: list[Problem]) -> Any:
    if isinstance(value, Mapping) and not (len(value) == 1 and next(iter(value)) in space.RANGE_KEYS):
        return {key: _parse_part(item, (*path, key), lines, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_parse_part(item, (*path, i), lines, problems) for i, item in enumerate(value)]
    try:
        return space.parse_ranges(value)
    except ValueError as error:
        problems.append(Problem(line_of(lines, path), dotted(path), str(error)))
        return None


def _as_chain(pretrain: Any) -> list[Any]:
    """`pretrain` may be missing, `none`, one stage or a list of them."""
    if pretrain is None or pretrain == "none":
        return []
    stages = pretrain if isinstance(pretrain, list) else [pretrain]
    return [stage for stage in stages if not _is_none(stage)]


def _is_none(stage: Any) -> bool:
    method = stage.get("method") if isinstance(stage, Mapping) else stage
    return stage == "none" or method == "none" or (isinstance(method, Mapping) and method.get("name") == "none")


# --------------------------------------------------------------------------------------------------------- factors

Level = tuple[dict[str, Any], Lines]  # dotted key -> value, and the lines of those keys


def _read_factors(data: Any, lines: Lines, problems: list[Problem]) -> dict[str, dict[str, Level]]:
    if not isinstance(data, Mapping):
        problems.append(Problem(line_of(lines, ("factors",)), "factors", "is a mapping of factors to their levels"))
        return {}
    return {str(name): _read_levels(str(name), body, lines, problems) for name, body in data.items()}


def _read_levels(name: str, body: Any, lines: Lines, problems: list[Problem]) -> dict[str, Level]:
    place = ("factors", name)
    if not isinstance(body, Mapping) or not body:
        fix = "write {dotted.key: [values]} or {level name: {dotted.key: value}}"
        problems.append(Problem(line_of(lines, place), dotted(place), "has no levels", fix))
        return {}
    if len(body) == 1 and isinstance(next(iter(body.values())), list):
        key, values = next(iter(body.items()))
        return _plain_levels(place, str(key), values, lines, problems)
    levels: dict[str, Level] = {}
    for label, override in body.items():
        if not isinstance(override, Mapping) and override is not None:
            fix = f"for example {label}: {{finetune.freeze: none}}"
            problems.append(
                Problem(line_of(lines, (*place, label)), dotted((*place, label)), "is not an override", fix)
            )
            continue
        levels[str(label)] = (dict(override or {}), _lines_under(lines, (*place, label)))
    return levels


def _plain_levels(
    place: KeyPath, key: str, values: list[Any], lines: Lines, problems: list[Problem]
) -> dict[str, Level]:
    labels = [level_label(value) for value in values]
    if len(set(labels)) < len(labels):
        problems.append(Problem(line_of(lines, (*place, key)), dotted((*place, key)), "a level stands there twice"))
    line = line_of(lines, (*place, key))
    return {label: ({key: value}, {(): line, (key,): line}) for label, value in zip(labels, values, strict=True)}


def _cross(
    template: Template, lines: Lines, factors: Mapping[str, Mapping[str, Level]], problems: list[Problem]
) -> Iterator[tuple[Cell, Lines]]:
    """Every combination of levels, each with the settings it means and where they stand."""
    total = 1
    for levels in factors.values():
        total *= len(levels)
    if total > MAX_CELLS:
        problems.append(Problem(line_of(lines, ("factors",)), "factors", f"{total} cells are more than {MAX_CELLS}"))
        return
    for combination in itertools.product(*(levels.items() for levels in factors.values())):
        settings, places = copy.deepcopy(template), dict(lines)
        for name, (label, (override, own_lines)) in zip(factors, combination, strict=True):
            for key, value in override.items():
                where = f"factors.{name}.{label}.{key}"
                parsed = _parse_part(value, ("factors", name, label, key), lines, problems)
                _put(
                    settings, places, split_key(key, settings), parsed, _lines_under(own_lines, (key,)), where, problems
                )
        settings["pretrain"] = _as_chain(settings.get("pretrain"))
        levels_of = {name: label for name, (label, _) in zip(factors, combination, strict=True)}
        label = " ".join(f"{name}={level}" for name, level in levels_of.items()) or "all"
        yield Cell(label, levels_of, settings), places


# ------------------------------------------------------------------------------------------------- checks of meaning

METRIC = re.compile(r"^(test|val)/(accuracy|mean_accuracy|jaccard|dice|precision|recall|loss)(/.+)?$|^probe/.+$")


def _check_cells(cells: Sequence[tuple[Cell, Lines]], header: Header | None, warnings: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    for cell, lines in cells:
        for suggest in _extremes(cell):
            settings = space.fill(cell.template, suggest)
            places = _single_stage(lines, settings)
            configuration, found = problems_of(Configuration, settings, places)
            problems += found
            if isinstance(configuration, Configuration):
                problems += _check_configuration(cell, configuration, header, places, warnings)
    return problems


def _single_stage(lines: Lines, settings: Template) -> Lines:
    """A chain of one may be written without the list: `pretrain.views` is `pretrain.0.views` then."""
    moved = {("pretrain", 0, *key[1:]): line for key, line in lines.items() if key[:1] == ("pretrain",)}
    return {**moved, **lines}


def _extremes(cell: Cell) -> Iterator[space.Suggest]:
    """Ways to fill the ranges that between them try both ends of each, and every option."""
    most = max((len(space.representatives(item)) for _, item in space.ranges(cell.template)), default=1)
    for k in range(most):

        def suggest(_name: str, item: space.Range, k: int = k) -> Any:
            answers = space.representatives(item)
            return answers[k % len(answers)]

        yield suggest


def _check_configuration(
    cell: Cell, settings: Configuration, header: Header | None, lines: Lines, warnings: list[str]
) -> Iterator[Problem]:
    users: list[tuple[KeyPath, str]] = [(("pretrain", i), stage.data) for i, stage in enumerate(settings.pretrain)]
    users += [(("finetune",), settings.finetune.data)] if settings.finetune else []
    users += [(("probe", name), probe.data) for name, probe in settings.probe.items()]
    for path, name in users:
        if name not in settings.data:
            fix = did_you_mean(name, settings.data)
            yield Problem(line_of(lines, (*path, "data")), dotted((*path, "data")), f"there is no data {name!r}", fix)
    if not settings.pretrain and settings.finetune is None:
        yield Problem(0, "study", "neither pretrain nor finetune: there is nothing to run", "add one of them")
    if settings.finetune is not None:
        yield from _check_finetune(cell, settings, lines, warnings)
    if header is not None:
        yield from _check_targets(settings, header, lines)


def _check_finetune(cell: Cell, settings: Configuration, lines: Lines, warnings: list[str]) -> Iterator[Problem]:
    assert settings.finetune is not None
    finetune, data = settings.finetune, settings.data.get(settings.finetune.data)
    if data is not None and data.dataset == "image-folder":
        where = ("finetune", "data")
        yield Problem(line_of(lines, where), dotted(where), "image-folder has no masks", "use image-mask-folder")
    if settings.pretrain and finetune.transfer == "encoder+decoder":
        where = ("finetune", "transfer")
        what = f"{settings.pretrain[-1].method.name} trains no decoder to transfer"
        yield Problem(line_of(lines, where), dotted(where), what, "use transfer: encoder")
    if finetune.freeze == "encoder" and (finetune.transfer == "none" or not settings.pretrain):
        warnings.append(f"cell {cell.label}: the frozen encoder is a random one, nothing is transferred to it")
    smallest = min(finetune.size, *(stage.views.size for stage in settings.pretrain), finetune.size)
    factor = 2 ** (len(settings.model.widths) - 1)
    if finetune.size % factor or smallest < factor:
        where = ("finetune", "size")
        what = (
            f"{finetune.size} px is not a multiple of {factor}, as a U-Net of {len(settings.model.widths)} levels needs"
        )
        yield Problem(line_of(lines, where), dotted(where), what)
    if finetune.checkpoint == "best" and data is not None and data.split.val == 0:
        where = ("finetune", "checkpoint")
        yield Problem(line_of(lines, where), dotted(where), "best needs validation images", "set data.*.split.val")


def _check_targets(settings: Configuration, header: Header, lines: Lines) -> Iterator[Problem]:
    for i, stage in enumerate(settings.pretrain):
        pretext = header.tune.pretrain.target == "pretext"
        if pretext and stage.sees != "train" and i == len(settings.pretrain) - 1:
            where: KeyPath = ("pretrain", i, "sees")
            what = "the pretext target needs validation images that pretraining did not see"
            yield Problem(line_of(lines, where), dotted(where), what, "set sees: train")
    for metric in header.report.metrics:
        probe = metric.split("/")[1] if metric.startswith("probe/") else None
        if probe is not None and probe not in settings.probe:
            where = ("report", "metrics")
            yield Problem(
                line_of(lines, where),
                dotted(where),
                f"there is no probe {probe!r}",
                did_you_mean(probe, settings.probe),
            )
        elif probe is None and settings.finetune is None:
            yield Problem(line_of(lines, ("report",)), "report.metrics", f"no stage reports {metric}")


def _check_header(
    header: Header, template: Template, factors: Mapping[str, Mapping[str, Level]], lines: Lines, warnings: list[str]
) -> Iterator[Problem]:
    for key in ("rows", "columns"):
        for name in getattr(header.report, key) or ():
            if name not in factors:
                place: KeyPath = ("report", key)
                yield Problem(
                    line_of(lines, place), dotted(place), f"there is no factor {name!r}", did_you_mean(name, factors)
                )
    if header.report.published and header.report.published not in header.published:
        place, fix = ("report", "published"), did_you_mean(header.report.published, header.published)
        what = f"the section published has no table {header.report.published!r}"
        yield Problem(line_of(lines, place), dotted(place), what, fix or "add published: {KEY: {values: [...]}}")
    yield from _check_levels(header.report.baseline, ("report", "baseline"), factors, lines)
    yield from _check_levels(header.tune.pretrain.cells, ("tune", "pretrain", "cells"), factors, lines)
    for place, metric in [(("report", "metrics"), m) for m in header.report.metrics] + [
        (("tune", "target"), header.tune.target)
    ]:
        if not METRIC.match(metric):
            yield Problem(
                line_of(lines, place), dotted(place), f"no stage reports {metric!r}", "for example test/jaccard"
            )
    if header.tune.target.startswith("test/"):
        yield Problem(line_of(lines, ("tune", "target")), "tune.target", "tuning on the test set", "use val/...")
    target = header.tune.pretrain.target
    if target not in ("cells", "pretext") and target.removeprefix("probe.") not in (template.get("probe") or {}):
        place = ("tune", "pretrain", "target")
        yield Problem(
            line_of(lines, place), dotted(place), f"unknown target {target!r}", "cells, pretext or probe.NAME"
        )
    if "tune" in {key[0] for key in lines if key} and not _any_range(template, factors):
        warnings.append("the study has a tune section but no ranges: nothing is searched, it goes straight to confirm")


def _any_range(template: Template, factors: Mapping[str, Mapping[str, Level]]) -> bool:
    overrides = [
        space.parse_ranges(value) for f in factors.values() for level in f.values() for value in level[0].values()
    ]
    return any(True for part in [template, *overrides] for _ in space.ranges(part))


def _check_levels(
    levels: Mapping[str, Any], place: KeyPath, factors: Mapping[str, Mapping[str, Level]], lines: Lines
) -> Iterator[Problem]:
    for name, level in levels.items():
        line = line_of(lines, (*place, name))
        if name not in factors:
            yield Problem(line, dotted(place), f"there is no factor {name!r}", did_you_mean(name, factors))
        elif level_label(level) not in factors[name]:
            fix = did_you_mean(level_label(level), factors[name])
            yield Problem(line, dotted(place), f"factor {name!r} has no level {level_label(level)!r}", fix)


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """The same mistake shows in every cell: keep one of each."""
    return list(dict.fromkeys(problems))
