"""Rules between settings that are each fine alone: references, sizes, what a search needs to be scored by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell, Level, Template, level_label
from pretune.search_spaces.document import KeyPath, Locations, Problem, did_you_mean, dotted
from pretune.search_spaces.metrics import (
    DEFINITIONS,
    SCORES,
    as_fraction,
    is_reportable,
    parts_of,
    pattern_of,
    setting_of,
)
from pretune.search_spaces.rules_building import check_axes, check_building, never_reached
from pretune.search_spaces.rules_probes import check_pairs, check_probe_metric, check_probe_target, check_probes
from pretune.search_spaces.rules_task import (
    check_equal_levels,
    check_options,
    check_tuned,
    measure,
    measured_by,
    path_of,
    scored_size,
    sizes_searched,
)
from pretune.search_spaces.rules_volumes import check_volumes
from pretune.search_spaces.rules_windows import check_windows
from pretune.search_spaces.schema import Configuration, Data, Finetune, Header, batch_parts, levels_of
from pretune.search_spaces.sections import Sections
from pretune.search_spaces.tuning import check_metrics, check_searched, check_tune

ENOUGH = 500  # problems, with repetitions, after which further cells are looked at once these are mended


def check_cells(cells: Sequence[tuple[Cell, Locations]], header: Header, warnings: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    first_of: dict[str, tuple[Configuration, str]] = {}  # by task, as it is written
    compared: set[str] = set()  # choices whose options were
    measured: dict[str, dict[str, str]] = {name: {} for name in header.report.metrics if measured_by(name)}
    sections = Sections()
    for cell, locations in cells:
        if len(problems) > ENOUGH:
            break
        problems += check_options(cell, locations, compared)
        for suggest in extremes(cell):
            if len(problems) > ENOUGH:
                break
            settings = cell.settings(suggest)
            configuration, found = sections.read(settings, locations)
            problems += [*_offered(cell, found, locations), *_check_parts(settings, header, locations)]
            if configuration is not None:
                problems += _check_configuration(cell, configuration, header, locations, warnings)
                first_of.setdefault(_task_as_written(settings, configuration.finetune), (configuration, cell.label))
                if configuration.finetune is not None:
                    for metric, measures in measured.items():
                        measures.setdefault(measure(metric, configuration.finetune), cell.label)
    tested: dict[str, str] = {}
    for configuration, label in first_of.values():
        tested.setdefault(_tested_on(configuration), label)
    if len(labels := dict.fromkeys(tested.values())) > 1:
        task = "test images, classes, sizes or tolerances"
        warnings.append(f"the cells differ in {task}, so they are different tasks ({' / '.join(labels)})")
    for metric, measures in measured.items():
        if len(labels := dict.fromkeys(measures.values())) > 1:
            by = " or ".join(f"finetune.{key}" for key in measured_by(metric))
            apart = f"they differ in {by}, so do not compare them by this metric"
            warnings.append(f"{metric} does not measure the same in all cells: {apart} ({' / '.join(labels)})")
    return _once_each_fix(problems)


def _once_each_fix(problems: Sequence[Problem]) -> list[Problem]:
    """One of the problems at a place that have one fix: the values of a range fail one by one."""
    kept: dict[tuple[int, str, str], Problem] = {}
    for i, problem in enumerate(problems):
        kept.setdefault((problem.line, problem.where, problem.fix or str(i)), problem)
    return list(kept.values())


def _offered(cell: Cell, found: Sequence[Problem], locations: Locations) -> list[Problem]:
    """Ranges that give fractions where whole numbers are wanted get the range of whole ones as their fix."""
    fixes: dict[str, str] = {}
    for name, item in cell.all_ranges if found else ():
        if isinstance(item, space.Uniform | space.LogUniform) and item.low.is_integer() and item.high.is_integer():
            kind = "log_int" if isinstance(item, space.LogUniform) else "int"
            where = locations.problem(path_of(name), "").where
            fixes[where] = f"write {{{kind}: [{item.low:.0f}, {item.high:.0f}]}}"
    return [replace(problem, fix=problem.fix or fixes.get(problem.where, "")) for problem in found]


def _task_as_written(settings: Template, finetune: Finetune | None) -> str:
    """All that `_tested_on` looks at, data sets as they are written: told apart without dumping each configuration."""
    if finetune is None:
        return ""
    resolution = finetune.size if finetune.evaluate is None else None
    return repr((settings.get("data"), finetune.data, finetune.boundary_tolerance, resolution))


def _tested_on(settings: Configuration) -> str:
    """Settings that decide on which images and classes the fine-tuning is tested, as text."""
    if settings.finetune is None or settings.finetune.data not in settings.data:
        return ""
    data = settings.data[settings.finetune.data]
    measured = settings.finetune.model_dump_json(include={"boundary_tolerance"})
    return (
        f"{measured}{scored_size(settings)}"
        + data.model_dump_json(include=TASK)
        + data.split.model_dump_json(exclude={"val", "val_folds", "val_fold"})
    )


TASK = {  # of a data set's settings: which images are tested, and what their masks mean
    *("dataset", "root", "limit", "seed", "images", "labels", "classes", "classify"),
    *("mask_values", "mask_threshold", "mask_colors", "ignore", "ignore_colors"),
    *("masks", "image_name", "mask_name", "annotations", "rest", "page"),
}


def extremes(cell: Cell) -> Iterator[space.Suggest]:
    """Ways to fill the ranges that between them try both ends of each, and every option.

    All at once, and each alone with all others at their first: at its ends, or in full inside a branch, which is met
    only there.
    """
    found = cell.all_ranges
    most = max((len(space.representatives(item)) for _, item in found), default=1)
    for k in range(most):
        yield lambda _name, item, k=k: _nth(item, k)  # type: ignore[misc]
    for target, item in found if len(found) > 1 else ():  # of one range that was all
        for k in range(len(space.representatives(item)) if "[" in target else 2):
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


def _check_parts(settings: Template, header: Header, locations: Locations) -> Iterator[Problem]:
    """Check that what the study refers to is there, whether or not it is free of faults."""
    finetune, probes = settings.get("finetune"), _mapping_at(settings, "probe")
    users: list[tuple[KeyPath, Any]] = [(("pretrain", i), stage) for i, stage in enumerate(settings["pretrain"])]
    users += [(("finetune",), finetune), *((("probe", name), probe) for name, probe in probes.items())]
    known = _mapping_at(settings, "data")
    for path, stage in users:
        name = stage.get("data") if isinstance(stage, Mapping) else None
        if isinstance(name, str) and isinstance(settings.get("data"), Mapping) and name not in known:
            yield locations.problem((*path, "data"), f"there is no data set {name!r}", did_you_mean(name, known))
    if not settings["pretrain"] and finetune is None:
        yield Problem(0, "study", "neither pretrain nor finetune: there is nothing to run", "add one of them")
    for metric in filter(is_reportable, header.report.metrics):
        if parts_of(metric).part == "probe":
            yield from check_probe_metric(metric, probes, locations)
        elif finetune is None:
            yield locations.problem(
                ("report", "metrics"), f"no stage reports {metric}", "add finetune, or report a probe"
            )
        elif isinstance(finetune, Mapping) and (size := parts_of(metric).size) not in _sizes(finetune):
            what = f"no fine-tuning is tested at {size} px"
            yield locations.problem(("report", "metrics"), what, f"add {size} to finetune.test_sizes")
    yield from check_probe_target(header.tune.pretrain.target, probes, locations)


def _sizes(finetune: Mapping[str, Any]) -> tuple[str, ...]:
    """Sizes of images that a fine-tuning is tested at; "" is its own."""
    return ("", *map(str, finetune.get("test_sizes") or ()))


def _mapping_at(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = settings.get(key)
    return value if isinstance(value, Mapping) else {}


def _check_configuration(
    cell: Cell, settings: Configuration, header: Header, locations: Locations, warnings: list[str]
) -> Iterator[Problem]:
    if settings.finetune is not None:
        yield from _check_finetune(cell, settings, locations, warnings)
        yield from _check_extra_scores(settings.finetune, header, locations)
    yield from _check_pretrain(settings, locations)
    yield from _check_workers(settings, header, locations)
    yield from _check_checkpointing(settings, header, locations)
    yield from check_probes(settings, locations)
    warnings += [*_leaks(settings), *_held_back(settings), *never_reached(settings)]
    warnings += sizes_searched(cell, settings)
    yield from check_tuned(cell, settings, header.tune, locations)
    yield from _check_sizes(cell, settings, locations)
    yield from check_volumes(settings, locations)
    yield from check_windows(settings, locations)
    yield from check_building(settings, locations)
    yield from _check_tuning(cell, settings, header, locations)


def _check_finetune(
    cell: Cell, settings: Configuration, locations: Locations, warnings: list[str]
) -> Iterator[Problem]:
    assert settings.finetune is not None
    finetune = settings.finetune
    trained = settings.pretrain[-1].method if settings.pretrain else None
    if finetune.transfer == "encoder+decoder" and trained is not None and not trained.facts.decoder:
        what = f"{trained.name} trains no decoder to transfer"
        yield locations.problem(("finetune", "transfer"), what, "use transfer: encoder")
    if finetune.freeze == "encoder" and (finetune.transfer == "none" or not settings.pretrain):
        warnings.append(
            f"cell {cell.label}: the encoder is frozen with random weights, because nothing is transferred to it"
        )


def _check_extra_scores(finetune: Finetune, header: Header, locations: Locations) -> Iterator[Problem]:
    """A metric that a setting turns on is named only where it is on."""
    tune = header.tune
    named: dict[KeyPath, tuple[str, ...]] = {("report", "metrics"): header.report.metrics}
    named |= {("tune", "target"): (tune.target,), ("tune", "also"): tune.also}
    named |= {("tune", "constraints"): tuple(tune.constraints)}
    for path, metrics in named.items():
        for metric in metrics:
            setting, value = setting_of(metric) or ("", None)
            is_set = getattr(finetune, setting) if setting else None
            if setting and (is_set in (None, False) or (isinstance(value, str) and is_set != value)):
                what = f"{metric} is computed only with finetune.{setting}"
                yield locations.problem(path, what, f"set finetune.{setting}: {level_label(value)}")


def _check_pretrain(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    """Supervised pretraining sees training images alone; projections are of levels that the encoder has."""
    for i, stage in enumerate(settings.pretrain):
        if stage.method.facts.supervised and stage.sees != "train":
            what = f"{stage.method.name} would train on the labels of validation or test images"
            yield locations.problem(("pretrain", i, "sees"), what, "set sees: train")
        asked = getattr(stage.method, "projection_levels", 1)
        held = levels_of(settings.model)
        if held is not None and asked > held:
            what = f"projection_levels {asked}, and the encoder has {held} levels"
            yield locations.problem(("pretrain", i, "method", "projection_levels"), what, f"at most {held}")


def _check_workers(settings: Configuration, header: Header, locations: Locations) -> Iterator[Problem]:
    """Workers take equal shares of a pretraining batch, and MoCo's parts of it lie whole on one of them."""
    for i, stage in enumerate(settings.pretrain):
        for workers in header.resources.pretrain.worker_counts:
            parts = batch_parts(stage.method)
            if stage.batch_size % workers:
                what = f"{stage.batch_size} images are not divisible by {workers} workers (resources.pretrain)"
                yield locations.problem(("pretrain", i, "batch_size"), what, f"use a multiple of {workers}")
            elif parts > 1 and workers > 1 and (parts % workers or stage.batch_size % parts):
                what = f"{parts} parts of {stage.batch_size} images are not divisible by {workers} workers"
                fix = f"use a multiple of {workers} that divides the batch"
                yield locations.problem(("pretrain", i, "method", "bn_splits"), what, fix)


def _check_checkpointing(settings: Configuration, header: Header, locations: Locations) -> Iterator[Problem]:
    """Activation checkpointing is of networks that are not compiled."""
    stages: list[tuple[KeyPath, Any]] = [(("pretrain", i), stage) for i, stage in enumerate(settings.pretrain)]
    stages += [] if settings.finetune is None else [(("finetune",), settings.finetune)]
    for path, stage in stages:
        if stage.compile and getattr(header.resources, str(path[0])).activation_checkpointing:
            what = f"resources.{path[0]}.activation_checkpointing is of networks that are not compiled"
            yield locations.problem((*path, "compile"), what, "set compile: false, or leave the other out")


def _leaks(settings: Configuration) -> Iterator[str]:
    """Ways in which a pretraining may see images that something is later scored on; allowed, but said."""
    for stage in settings.pretrain:
        if stage.sees != "train":
            also = "test images" if stage.sees == "all" else "validation images"
            yield f"pretraining on {stage.data} also sees {also} (sees: {stage.sees}); mention this beside the results"
        if settings.finetune is not None and stage.data != settings.finetune.data:
            ours, theirs = settings.data.get(stage.data), settings.data.get(settings.finetune.data)
            if ours and theirs and _files(ours) == _files(theirs) and ours.split != theirs.split:
                both = f"{stage.data} and {settings.finetune.data}"
                yield f"{both} have the same files but different splits, so pretraining may see test images"


def _held_back(settings: Configuration) -> Iterator[str]:
    """Pools that hold a test set back, though no stage is scored on them."""
    tested = settings.data.get(settings.finetune.data) if settings.finetune is not None else None
    if tested is None or settings.probe:  # a probe may score the pool
        return
    for name in dict.fromkeys(stage.data for stage in settings.pretrain if stage.sees != "all"):
        data = settings.data.get(name)
        if data and _files(data) != _files(tested) and (data.split.fold or data.split.test not in (0, "official")):
            held = data.split.fold or data.split.test
            yield f"data.{name} has a test set ({held}) that no stage uses; set `split: none` to pretrain on all images"


def _files(data: Data) -> str:
    return data.model_dump_json(include={"dataset", "root", "images", "seed"})


def _check_sizes(cell: Cell, settings: Configuration, locations: Locations) -> Iterator[Problem]:
    """An encoder halves the size a few times, and a decoder has to meet its skips on the way up.

    Those of timm's backbones are checked where their stride is known: `trainables/buildable.py`.
    """
    factor, name = settings.model.stride, settings.model.name
    if factor is None:
        return
    model = f"a U-Net of {factor.bit_length()} levels" if name.endswith("unet") else f"the model {name}"
    decoded: list[tuple[KeyPath, int]] = []
    if settings.finetune is not None:
        decoded.append((("finetune", "size"), settings.finetune.size))
        decoded += [(("finetune", "test_sizes"), size) for size in settings.finetune.test_sizes]
    encoded: list[tuple[KeyPath, int]] = [(("probe", key, "size"), probe.size) for key, probe in settings.probe.items()]
    for i, stage in enumerate(settings.pretrain):
        users = decoded if stage.method.facts.decoder else encoded
        users.append((("pretrain", i, "views", "size"), stage.views.size))
    for path, size in decoded:
        if size % factor:
            what = f"{size} px is not a multiple of {factor}, which {model} needs"
            yield locations.problem(path, what, _in_steps(cell, path, size, factor))
    for path, size in encoded:
        if size < factor:
            what = f"{size} px is below {factor}, the minimum for the encoder of {model}"
            yield locations.problem(path, what, f"use {factor} or more")


def _in_steps(cell: Cell, path: KeyPath, size: int, factor: int) -> str:
    """The multiples of `factor` next to a size, or in place of a range of whole numbers."""
    item = dict(cell.all_ranges).get(dotted(path))
    if not isinstance(item, space.Int):
        return f"use {size // factor * factor} or {(size // factor + 1) * factor}" if size > factor else f"use {factor}"
    low, high = -(-item.low // factor) * factor, item.high // factor * factor
    return f"write {{int: [{low}, {high}], step: {factor}}}" if low < high else f"write {high}"


def _check_tuning(cell: Cell, settings: Configuration, header: Header, locations: Locations) -> Iterator[Problem]:
    """Whatever tunes a range must exist: the stage that is scored, and validation images to score it on."""
    yield from check_searched(cell, settings, header, locations)
    target, tuned = header.tune.pretrain.target, bool(cell.ranges("pretrain"))
    if tuned and target == "cells" and cell.template.get("finetune") is None:
        what = "the ranges of the pretraining are tuned by fine-tunings, and there are none"
        fix = "set tune.pretrain.target to pretext or probe.NAME"
        yield locations.problem(("tune", "pretrain", "target"), what, fix)
    if target == "pretext" and settings.pretrain and settings.pretrain[-1].sees != "train":
        what = "the pretext target needs validation images that pretraining did not see"
        yield locations.problem(("pretrain", len(settings.pretrain) - 1, "sees"), what, "set sees: train")
    scored: set[str] = set()
    if settings.finetune and (cell.ranges("finetune") or (tuned and target == "cells")):
        scored.add(settings.finetune.data)
    if settings.pretrain and tuned and target == "pretext":
        scored.add(settings.pretrain[-1].data)
    for name in sorted(scored & set(settings.data)):
        if settings.data[name].split.val == 0:
            yield locations.problem(("data", name, "split", "val"), "tuning needs validation images", "set it above 0")


def _check_published(header: Header, locations: Locations) -> Iterator[Problem]:
    """Every key names a table, no two tables stand beside one metric, and values are ones that it can have."""
    seen: dict[str, str] = {}
    for key in header.report.published or ():
        if key not in header.published:
            fix = did_you_mean(key, header.published) or "add published: {KEY: {values: [...]}}"
            yield locations.problem(("report", "published"), f"the section published has no table {key!r}", fix)
        elif other := seen.get(metric := header.published[key].metric):
            what = f"{other!r} and {key!r} are both of {metric}"
            yield locations.problem(("report", "published"), what, "name one table for each metric")
        else:
            seen[metric] = key
    for key, table in header.published.items():
        found = DEFINITIONS.get(pattern_of(table.metric))
        means = [row[-1][0] if isinstance(row[-1], tuple) else row[-1] for row in table.values if row]
        scores = [mean / 100 if table.percent else mean for mean in means if isinstance(mean, float)]
        if found is not None and (beyond := [n for n in scores if not found.low <= n <= found.high]):
            what = f"{beyond[0]:g} is outside {found.low:g} to {found.high:g}, the range of {table.metric}"
            fix = "" if table.percent else "set percent: true if these are percent"
            yield locations.problem(("published", key, "values"), what, fix)


def _check_margin(header: Header, locations: Locations) -> Iterator[Problem]:
    """A margin that no difference can exceed would call all cells equal."""
    margin = header.report.margin
    for metric in header.report.metrics if margin is not None else ():
        found = DEFINITIONS.get(pattern_of(metric))
        if margin is not None and found is not None and margin >= found.span:
            what = f"no two values of {metric} differ by more than {found.span:g}, and by {margin:g} all would be equal"
            yield locations.problem(("report", "margin"), what, as_fraction(found, margin))


def check_header(
    header: Header,
    cells: Sequence[tuple[Cell, Locations]],
    factors: Mapping[str, Mapping[str, Level]],
    locations: Locations,
) -> Iterator[Problem]:
    for key in ("rows", "columns"):
        for name in getattr(header.report, key) or ():
            if name not in factors:
                yield locations.problem(("report", key), f"there is no factor {name!r}", did_you_mean(name, factors))
    yield from check_axes(header, locations)
    yield from check_equal_levels(factors, cells, locations)
    yield from _check_runs(header, len(cells), locations)
    yield from _check_published(header, locations)
    yield from _check_margin(header, locations)
    yield from _check_levels(header.report.baseline, ("report", "baseline"), factors, locations)
    yield from _check_levels(header.tune.pretrain.cells, ("tune", "pretrain", "cells"), factors, locations)
    yield from _check_metrics(header, locations)
    yield from check_tune(header, locations)
    yield from check_metrics(header.tune, locations)
    yield from check_pairs(header, cells, factors)


MAX_REPLICATES = 100_000  # of a phase, in all cells: `plan` counts them one by one, in seconds


def _check_runs(header: Header, cells: int, locations: Locations) -> Iterator[Problem]:
    """A slip of a few zeros would be planned, and reported on, for hours."""
    for phase in ("search", "select", "report"):
        seeds = getattr(header.seeds, phase)
        total = 0 if seeds is None else seeds.pretrain * seeds.finetune * max(cells, 1)
        if total > MAX_REPLICATES:
            what = f"{total} replicates in {cells} cells are more than {MAX_REPLICATES}"
            yield locations.problem(("seeds", phase), what, "lower it")


def _check_metrics(header: Header, locations: Locations) -> Iterator[Problem]:
    known = [f"{role}/{score}" for role in ("test", "val") for score in SCORES]
    for metric in header.report.metrics:
        if not is_reportable(metric):
            of_probe = parts_of(metric).part == "probe"
            fix = "write probe/NAME/accuracy" if of_probe else did_you_mean(metric, known)
            yield locations.problem(("report", "metrics"), f"no stage reports {metric!r}", fix)
    target = header.tune.target
    if parts_of(target).part == "test":
        yield locations.problem(("tune", "target"), "tuning on the test set", "use val/...")
    elif not (is_reportable(target) and parts_of(target).part == "val"):
        fix = did_you_mean(target, [name for name in known if name.startswith("val/")])
        yield locations.problem(("tune", "target"), f"no fine-tuning reports {target!r}", fix)
    target = header.tune.pretrain.target
    if target not in ("cells", "pretext") and not target.startswith("probe."):
        path = ("tune", "pretrain", "target")
        yield locations.problem(path, f"unknown target {target!r}", "cells, pretext or probe.NAME")


def _check_levels(
    levels: Mapping[str, Any], path: KeyPath, factors: Mapping[str, Mapping[str, Level]], locations: Locations
) -> Iterator[Problem]:
    for name, level in levels.items():
        if name not in factors:
            yield locations.problem((*path, name), f"there is no factor {name!r}", did_you_mean(name, factors))
        elif factors[name] and level_label(level) not in factors[name]:
            fix = did_you_mean(level_label(level), factors[name])
            yield locations.problem((*path, name), f"factor {name!r} has no level {level_label(level)!r}", fix)
