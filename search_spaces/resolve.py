"""YAML -> Study -> cells -> configurations.

`load` (a file) and `from_dict` (Python) end in the same frozen `Study`. Every problem of the file is reported at
once, as one `StudyError`, before anything starts.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from search_spaces import space
from search_spaces.check import BROKEN, problems_of
from search_spaces.document import (
    Document,
    KeyPath,
    Places,
    Problem,
    StudyError,
    did_you_mean,
    dotted,
    from_mapping,
    line_of,
    parse,
    read,
)
from search_spaces.schema import DECODING, Configuration, Header

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
        none = isinstance(finetune, Mapping) and finetune.get("transfer") == "none"
        return bool(self.template["pretrain"]) and not none

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
        model = self.template.get("model") or {}
        if isinstance(model, Mapping) and not any(_decodes(stage) for stage in self.template["pretrain"]):
            model = {key: value for key, value in model.items() if key not in ("skip_connections", "decoder_widths")}
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
    return resolve(from_mapping(data), scale, overrides)


def from_yaml(text: str, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """The same from a YAML string."""
    return resolve(parse(text), scale, overrides)


def resolve(document: Document, scale: str | None = None, overrides: Sequence[str] = ()) -> Study:
    problems: list[Problem] = []
    data, lines = _apply_overrides(document, scale, overrides, problems)
    problems += _unknown_keys(data, lines)
    header = _read_header(data, lines, problems)
    template = {key: _parse_part(data[key], (key,), lines, problems) for key in STAGE_KEYS if key in data}
    factors = _read_factors(data.get("factors") or {}, lines, problems)
    cells = list(_cross(template, lines, factors, problems))
    warnings: list[str] = []
    problems += _check_cells(cells, header, warnings)
    problems += _check_header(header, cells, factors, Places(lines))
    if "tune" in data and not any(True for cell, _ in cells for _ in space.ranges(cell.template)):
        warnings.append("the study has a tune section but no ranges: nothing is searched, it goes straight to confirm")
    if problems:
        raise StudyError(problems, document.source)
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
    if isinstance(value, str):
        return value
    try:
        return yaml.safe_dump(space.to_plain(value), default_flow_style=True, width=math.inf).split("\n")[0].strip()
    except yaml.YAMLError:  # an object that YAML cannot write; whether it is a setting is found out later
        return str(value)


# ------------------------------------------------------------------------------------------------ scales and --set


def _apply_overrides(
    document: Document, scale: str | None, overrides: Sequence[str], problems: list[Problem]
) -> tuple[dict[str, Any], Lines]:
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    scales = _read_scales(data.get("scales") or {}, Places(lines), problems)
    if scale is not None and scale not in scales:
        hint = did_you_mean(scale, scales) if scales else "the study has no scales"
        problems.append(Places(lines).problem(("scales",), f"there is no scale {scale!r}", hint))
    for key, value in scales.get(scale or "", {}).items():
        place = ("scales", str(scale), key)
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


def _read_scales(scales: Any, places: Places, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    fix = "for example scales: {small: {finetune.epochs: 1}}"
    if not isinstance(scales, Mapping):
        problems.append(places.problem(("scales",), "is a mapping of scales to their settings", fix))
        return {}
    for name, settings in scales.items():
        if not isinstance(settings, Mapping):
            problems.append(places.problem(("scales", name), "is a mapping of dotted keys to values", fix))
    return {name: dict(settings) if isinstance(settings, Mapping) else {} for name, settings in scales.items()}


def split_key(key: str, data: Any) -> KeyPath:
    """'pretrain.0.epochs' -> ('pretrain', 0, 'epochs') where pretrain is a list."""
    path: list[str | int] = []
    for part in str(key).split("."):
        if isinstance(data, list) and part.isdecimal():
            path.append(int(part))
            data = data[int(part)] if int(part) < len(data) else None
        else:
            path.append(part)
            data = data.get(part) if isinstance(data, Mapping) else None
    return tuple(path)


def _put(data: Any, lines: Lines, path: KeyPath, value: Any, new: Lines, where: str, problems: list[Problem]) -> None:
    """Put `value` at `path`, in place; what stood there goes, whole, with its line numbers."""
    for i, part in enumerate(path):
        fits = isinstance(data, dict) or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if not fits:
            what = f"cannot be set, because {dotted(path[:i])} is {_described(data)}"
            fix = "set the whole of it, in one level if factors meet here"
            problems.append(Problem(new.get((), 0), where, what, fix))
            return
        if i < len(path) - 1:
            if isinstance(data, dict) and data.get(part) is None:
                data[part] = {}
            data = data[part]
    last = path[-1]
    data[last] = copy.deepcopy(value)
    for old in [key for key in lines if key[: len(path)] == path]:
        del lines[old]
    lines.update({(*path, *key): line for key, line in new.items()})


def _described(value: Any) -> str:
    if space.is_range(value):
        return "a range"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


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


def _read_header(data: Mapping[str, Any], lines: Lines, problems: list[Problem]) -> Header:
    """The header; where it has faults, one with defaults in their place, so that the rest is checked all the same."""
    given = {key: data[key] for key in HEADER_KEYS if key in data}
    header, found = problems_of(Header, given, Places(lines))
    problems += found
    return header or problems_of(Header, {**given, "study": "study"}, Places(lines))[0] or Header(study="study")


def _parse_part(value: Any, path: KeyPath, lines: Lines, problems: list[Problem]) -> Any:
    if isinstance(value, Mapping) and not (len(value) == 1 and next(iter(value)) in space.RANGE_KEYS):
        return {key: _parse_part(item, (*path, key), lines, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_parse_part(item, (*path, i), lines, problems) for i, item in enumerate(value)]
    try:
        return space.parse_ranges(value)
    except ValueError as error:
        problems.append(Places(lines).problem(path, str(error)))
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
    return any(isinstance(option, Mapping) and option.get("name") in DECODING for option in options)


# --------------------------------------------------------------------------------------------------------- factors


class Level(NamedTuple):
    """What a level sets, by dotted key, and where each is written."""

    override: dict[str, Any]
    written: dict[str, KeyPath]


def _read_factors(data: Any, lines: Lines, problems: list[Problem]) -> dict[str, dict[str, Level]]:
    if not isinstance(data, Mapping):
        problems.append(Places(lines).problem(("factors",), "is a mapping of factors to their levels"))
        return {}
    return {name: _read_levels(("factors", name), body, lines, problems) for name, body in data.items()}


def _read_levels(place: KeyPath, body: Any, lines: Lines, problems: list[Problem]) -> dict[str, Level]:
    if not isinstance(body, Mapping) or not body:
        fix = "write {dotted.key: [values]} or {level name: {dotted.key: value}}"
        problems.append(Places(lines).problem(place, "has no levels", fix))
        return {}
    if len(body) == 1 and isinstance(next(iter(body.values())), list):
        key, values = next(iter(body.items()))
        return _plain_levels((*place, key), values, lines, problems)
    levels: dict[str, Level] = {}
    for label, override in body.items():
        if not isinstance(override, Mapping) and override is not None:
            fix = "write {level name: {dotted.key: value}}, or one dotted key with a list of values"
            problems.append(Places(lines).problem((*place, label), "is not an override", fix))
            continue
        written = {key: (*place, label, key) for key in override or {}}
        parsed = {key: _parse_part((override or {})[key], where, lines, problems) for key, where in written.items()}
        levels[label] = Level(parsed, written)
    return levels


def _plain_levels(place: KeyPath, values: list[Any], lines: Lines, problems: list[Problem]) -> dict[str, Level]:
    if not values:
        problems.append(Places(lines).problem(place, "has no levels", "list its values"))
    levels: dict[str, Level] = {}
    for i, value in enumerate(values):
        label, key, where = level_label(value), str(place[-1]), (*place, i)
        if label in levels:
            problems.append(Places(lines).problem(where, f"the level {label!r} stands there twice", "remove one"))
        levels[label] = Level({key: _parse_part(value, where, lines, problems)}, {key: where})
    return levels


def _cross(
    template: Template, lines: Lines, factors: Mapping[str, Mapping[str, Level]], problems: list[Problem]
) -> Iterator[tuple[Cell, Places]]:
    """Every combination of levels, each with the settings it means and where they stand."""
    usable = {name: levels for name, levels in factors.items() if levels}  # of the others the reader was told
    total = math.prod(len(levels) for levels in usable.values())
    if total > MAX_CELLS:
        problems.append(Places(lines).problem(("factors",), f"{total} cells are more than {MAX_CELLS}"))
        return
    for combination in itertools.product(*(levels.items() for levels in usable.values())):
        settings, own_lines = copy.deepcopy(template), dict(lines)
        for _, (override, written) in combination:
            for key, value in override.items():
                new, where = _lines_under(lines, written[key]), dotted(written[key])
                _put(settings, own_lines, split_key(key, settings), value, new, where, problems)
        chain = _as_chain(settings.get("pretrain"))
        settings["pretrain"] = [stage for _, stage in chain]
        levels_of = {name: label for name, (label, _) in zip(usable, combination, strict=True)}
        label = " ".join(f"{name}={level}" for name, level in levels_of.items()) or "all"
        yield Cell(label, levels_of, settings), Places(own_lines, tuple(place for place, _ in chain))


# ------------------------------------------------------------------------------------------------- checks of meaning

SCORES = ("accuracy", "mean_accuracy", "jaccard", "dice", "precision", "recall")
METRIC = re.compile(rf"^(test|val)/({'|'.join(SCORES)})(/.+)?$|^probe/[^/]+/accuracy$")


def _check_cells(cells: Sequence[tuple[Cell, Places]], header: Header, warnings: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    for cell, places in cells:
        for suggest in _extremes(cell):
            settings = space.fill(cell.template, suggest)
            configuration, found = problems_of(Configuration, settings, places)
            problems += [*found, *_check_finite(settings, (), places), *_check_parts(settings, header, places)]
            if configuration is not None:
                problems += _check_configuration(cell, configuration, header, places, warnings)
    return problems


def _extremes(cell: Cell) -> Iterator[space.Suggest]:
    """Ways to fill the ranges that between them try both ends of each, and every option.

    All at once, and each alone with all others at their first, since a range inside a branch is met only there.
    """
    found = list(space.ranges(cell.template))
    most = max((len(space.representatives(item)) for _, item in found), default=1)
    for k in range(most):
        yield lambda _name, item, k=k: _nth(item, k)  # type: ignore[misc]
    for target, item in found:
        for k in range(len(space.representatives(item))):
            yield _towards(target, k)


def _nth(item: space.Range, k: int) -> Any:
    answers = space.representatives(item)
    return answers[k % len(answers)]


def _towards(target: str, k: int) -> space.Suggest:
    """The k-th answer to one range, the options that lead to it, and the first answer to every other."""

    def suggest(name: str, item: space.Range) -> Any:
        if name == target:
            return _nth(item, k)
        if isinstance(item, space.Choice):
            inside = [target.startswith(f"{name}[{label}]") for label in item.labels()]
            return inside.index(True) if any(inside) else 0
        return _nth(item, 0)

    return suggest


def _check_finite(value: Any, path: KeyPath, places: Places) -> Iterator[Problem]:
    """`.inf` and `.nan` are numbers to YAML, and settings of nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        yield places.problem(path, f"should be a finite number, received {value}")
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _check_finite(item, (*path, key), places)


def _check_parts(settings: Template, header: Header, places: Places) -> Iterator[Problem]:
    """What the study refers to must be there, whether or not it is free of faults."""
    finetune, probes = settings.get("finetune"), _mapping_at(settings, "probe")
    users: list[tuple[KeyPath, Any]] = [(("pretrain", i), stage) for i, stage in enumerate(settings["pretrain"])]
    users += [(("finetune",), finetune), *((("probe", name), probe) for name, probe in probes.items())]
    known = _mapping_at(settings, "data")
    for path, stage in users:
        name = stage.get("data") if isinstance(stage, Mapping) else None
        if isinstance(name, str) and known and name not in known:
            yield places.problem((*path, "data"), f"there is no data {name!r}", did_you_mean(name, known))
    if not settings["pretrain"] and finetune is None:
        yield Problem(0, "study", "neither pretrain nor finetune: there is nothing to run", "add one of them")
    for metric in filter(METRIC.match, header.report.metrics):
        probe = metric.split("/")[1] if metric.startswith("probe/") else None
        if probe is not None and probe not in probes:
            yield places.problem(("report", "metrics"), f"there is no probe {probe!r}", did_you_mean(probe, probes))
        elif probe is None and finetune is None:
            yield places.problem(("report", "metrics"), f"no stage reports {metric}", "add finetune, or report a probe")
    target = header.tune.pretrain.target
    if target.startswith("probe.") and target.removeprefix("probe.") not in probes:
        name = target.removeprefix("probe.")
        yield places.problem(("tune", "pretrain", "target"), f"there is no probe {name!r}", did_you_mean(name, probes))


def _mapping_at(settings: Template, key: str) -> Mapping[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, Mapping) else {}


def _check_configuration(
    cell: Cell, settings: Configuration, header: Header, places: Places, warnings: list[str]
) -> Iterator[Problem]:
    if settings.finetune is not None:
        yield from _check_finetune(cell, settings, places, warnings)
    yield from _check_pretrain(settings, places)
    yield from _check_sizes(settings, places)
    yield from _check_tuning(cell, settings, header, places)


def _check_finetune(cell: Cell, settings: Configuration, places: Places, warnings: list[str]) -> Iterator[Problem]:
    assert settings.finetune is not None
    finetune, data = settings.finetune, settings.data.get(settings.finetune.data)
    if data is not None and data.dataset == "image-folder":
        yield places.problem(("finetune", "data"), "image-folder has no masks", "use image-mask-folder")
    trained = settings.pretrain[-1].method.name if settings.pretrain else None
    if finetune.transfer == "encoder+decoder" and trained is not None and trained not in DECODING:
        what = f"{trained} trains no decoder to transfer"
        yield places.problem(("finetune", "transfer"), what, "use transfer: encoder")
    if finetune.freeze == "encoder" and (finetune.transfer == "none" or not settings.pretrain):
        warnings.append(f"cell {cell.label}: the frozen encoder is a random one, nothing is transferred to it")
    if finetune.checkpoint == "best" and data is not None and data.split.val == 0:
        yield places.problem(("finetune", "checkpoint"), "best needs validation images", "set data.*.split.val")


def _check_pretrain(settings: Configuration, places: Places) -> Iterator[Problem]:
    """Supervised pretraining needs what the data set must have."""
    for i, stage in enumerate(settings.pretrain):
        data = settings.data.get(stage.data)
        if stage.method.name == "segmentation" and data is not None and data.dataset == "image-folder":
            what = "image-folder has no masks to pretrain segmentation with"
            yield places.problem(("pretrain", i, "data"), what, "use image-mask-folder")


def _check_sizes(settings: Configuration, places: Places) -> Iterator[Problem]:
    """An encoder halves the size a few times, and a decoder has to meet its skips on the way up."""
    factor, name = settings.model.stride, settings.model.name
    model = f"a U-Net of {factor.bit_length()} levels" if name.endswith("unet") else f"the model {name}"
    decoded: list[tuple[KeyPath, int]] = [] if settings.finetune is None else [(("finetune",), settings.finetune.size)]
    encoded: list[tuple[KeyPath, int]] = [(("probe", key), probe.size) for key, probe in settings.probe.items()]
    for i, stage in enumerate(settings.pretrain):
        users = decoded if stage.method.name in DECODING else encoded
        users.append((("pretrain", i, "views"), stage.views.size))
    for path, size in decoded:
        if size % factor:
            what = f"{size} px is not a multiple of {factor}, as {model} needs"
            yield places.problem((*path, "size"), what)
    for path, size in encoded:
        if size < factor:
            what = f"{size} px is below {factor}, what the encoder of {model} needs"
            yield places.problem((*path, "size"), what)


def _check_tuning(cell: Cell, settings: Configuration, header: Header, places: Places) -> Iterator[Problem]:
    """Whatever tunes a range must exist: the stage that is scored, and validation images to score it on."""
    target, tuned = header.tune.pretrain.target, bool(cell.ranges("pretrain"))
    if tuned and target == "cells" and cell.template.get("finetune") is None:
        what = "the ranges of the pretraining are tuned by fine-tunings, and there are none"
        fix = "set tune.pretrain.target to pretext or probe.NAME"
        yield places.problem(("tune", "pretrain", "target"), what, fix)
    if target == "pretext" and settings.pretrain and settings.pretrain[-1].sees != "train":
        what = "the pretext target needs validation images that pretraining did not see"
        yield places.problem(("pretrain", len(settings.pretrain) - 1, "sees"), what, "set sees: train")
    scored: set[str] = set()
    if settings.finetune and (cell.ranges("finetune") or (tuned and target == "cells")):
        scored.add(settings.finetune.data)
    if settings.pretrain and tuned and target == "pretext":
        scored.add(settings.pretrain[-1].data)
    for name in sorted(scored & set(settings.data)):
        if settings.data[name].split.val == 0:
            yield places.problem(("data", name, "split", "val"), "tuning needs validation images", "set it above 0")


def _check_header(
    header: Header, cells: Sequence[tuple[Cell, Places]], factors: Mapping[str, Mapping[str, Level]], places: Places
) -> Iterator[Problem]:
    for key in ("rows", "columns"):
        for name in getattr(header.report, key) or ():
            if name not in factors:
                yield places.problem(("report", key), f"there is no factor {name!r}", did_you_mean(name, factors))
    if header.report.published and header.report.published not in header.published:
        fix = did_you_mean(header.report.published, header.published) or "add published: {KEY: {values: [...]}}"
        what = f"the section published has no table {header.report.published!r}"
        yield places.problem(("report", "published"), what, fix)
    yield from _check_levels(header.report.baseline, ("report", "baseline"), factors, places)
    yield from _check_levels(header.tune.pretrain.cells, ("tune", "pretrain", "cells"), factors, places)
    yield from _check_metrics(header, places)


def _check_metrics(header: Header, places: Places) -> Iterator[Problem]:
    known = [f"{role}/{score}" for role in ("test", "val") for score in SCORES]
    for metric in header.report.metrics:
        if not METRIC.match(metric):
            fix = "write probe/NAME/accuracy" if metric.startswith("probe/") else did_you_mean(metric, known)
            yield places.problem(("report", "metrics"), f"no stage reports {metric!r}", fix)
    target = header.tune.target
    if target.startswith("test/"):
        yield places.problem(("tune", "target"), "tuning on the test set", "use val/...")
    elif not (METRIC.match(target) and target.startswith("val/")):
        fix = did_you_mean(target, [name for name in known if name.startswith("val/")])
        yield places.problem(("tune", "target"), f"no fine-tuning reports {target!r}", fix)
    target = header.tune.pretrain.target
    if target not in ("cells", "pretext") and not target.startswith("probe."):
        place = ("tune", "pretrain", "target")
        yield places.problem(place, f"unknown target {target!r}", "cells, pretext or probe.NAME")


def _check_levels(
    levels: Mapping[str, Any], place: KeyPath, factors: Mapping[str, Mapping[str, Level]], places: Places
) -> Iterator[Problem]:
    for name, level in levels.items():
        if name not in factors:
            yield places.problem((*place, name), f"there is no factor {name!r}", did_you_mean(name, factors))
        elif factors[name] and level_label(level) not in factors[name]:
            fix = did_you_mean(level_label(level), factors[name])
            yield places.problem((*place, name), f"factor {name!r} has no level {level_label(level)!r}", fix)
