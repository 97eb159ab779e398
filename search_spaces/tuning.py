"""Rules of the section `tune`, alone and together with the ranges that it searches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.document import KeyPath, Locations, Problem, did_you_mean
from pretune.search_spaces.metrics import (
    COSTS,
    DEFINITIONS,
    PRETEXT_LOSS,
    SCORES,
    as_fraction,
    is_reportable,
    parts_of,
    pattern_of,
)
from pretune.search_spaces.schema import Configuration, Header, Tune
from pretune.search_spaces.stages import replicates

LEARNING_ANYWHERE = "tpe, gp, random, qmc, grid, genetic or nsga2"


def check_tune(header: Header, locations: Locations) -> Iterator[Problem]:
    """Contradictions within the section."""
    tune, seeds = header.tune, len(replicates(header.seeds, "search"))
    if tune.racing and tune.rungs:
        yield locations.problem(("tune", "rungs"), "racing and rungs both decide when to stop", "leave out one of them")
    if tune.racing and tune.racing.first >= seeds:
        what = f"the race begins with {tune.racing.first} seeds, and there are only {seeds} search seeds"
        yield locations.problem(("tune", "racing"), what, f"set seeds.search above {tune.racing.first}")
    if tune.racing and (header.seeds.search.finetune > 1):
        what = "a race compares independent seeds, and nested ones share pretrainings"
        yield locations.problem(("tune", "racing"), what, "give seeds.search as a number")
    if tune.sampler in ("genetic", "nsga2") and (tune.racing or tune.rungs):
        what = f"{tune.sampler} breeds from whole trials alone, and most of a race or of rungs are not"
        yield locations.problem(("tune", "sampler"), what, "use tpe, or leave out racing and rungs")
    if tune.warm_start and tune.sampler not in ("tpe", "gp"):
        yield locations.problem(
            ("tune", "warm_start"), f"{tune.sampler} learns nothing from earlier trials", "use tpe or gp"
        )
    for key, given in (("racing", tune.racing), ("rungs", tune.rungs), ("warm_start", tune.warm_start)):
        if tune.also and given:
            yield locations.problem(
                ("tune", key), f"{key} compares by one target, and `also` names more", "leave one out"
            )
    if tune.target in tune.also:
        yield locations.problem(("tune", "also"), f"{tune.target} is the target already", "leave it out of `also`")
    if tune.also and tune.sampler not in ("nsga2", "tpe", "gp", "random", "qmc", "grid"):
        what = f"{tune.sampler} cannot search for several targets"
        yield locations.problem(("tune", "sampler"), what, "nsga2, tpe, gp, random, qmc and grid can")
    yield from _check_budgets(tune, locations)
    if tune.top_k > tune.trials:
        yield locations.problem(("tune", "top_k"), f"top_k {tune.top_k} is above trials {tune.trials}", "lower it")


def _check_budgets(tune: Tune, locations: Locations) -> Iterator[Problem]:
    for name in ("trials", "epochs", "hours", "gpu_hours"):
        whole, one = getattr(tune.budget.study, name), getattr(tune.budget.cell, name)
        if whole is not None and one is not None and one > whole:
            what = f"a cell may spend {one:g} {name}, and the whole study only {whole:g}"
            yield locations.problem(("tune", "budget", "cell", name), what, "raise the study's, or lower this")
    if tune.budget.cell.trials is not None and tune.budget.cell.trials > tune.trials:
        what = f"a budget of {tune.budget.cell.trials} trials is never used up: tune.trials is {tune.trials}"
        yield locations.problem(("tune", "budget", "cell", "trials"), what, "raise tune.trials, or leave it out")


def check_metrics(tune: Tune, locations: Locations) -> Iterator[Problem]:
    """Further targets and constraints must be something that a stage run reports."""
    known = [*(f"val/{score}" for score in SCORES), PRETEXT_LOSS, *COSTS]
    for key, names in (("also", tune.also), ("constraints", tuple(tune.constraints))):
        for name in names:
            if parts_of(name).part == "test":
                yield locations.problem(("tune", key), f"{name}: tuning on the test set", "use val/...")
            elif name not in known and not (parts_of(name).part == "val" and is_reportable(name)):
                yield locations.problem(("tune", key), f"no stage reports {name!r}", did_you_mean(name, known))
    for name, value in tune.constraints.items():
        found = DEFINITIONS.get(pattern_of(name))
        if found is not None and not found.low <= value <= found.high:
            what = f"{value:g} is outside {found.low:g} to {found.high:g}, the range of {name}"
            yield locations.problem(("tune", "constraints", name), what, as_fraction(found, value))


def check_searched(cell: Cell, settings: Configuration, header: Header, locations: Locations) -> Iterator[Problem]:
    """Whether the sampler can search the ranges of a cell, and rungs can shorten what is trained."""
    tune = header.tune
    found = dict(cell.all_ranges)
    for part in ("pretrain", "finetune"):
        own = {name: found[name] for name in cell.ranges(part)}
        if not own:
            continue
        yield from _check_sampler(tune, own, locations)
        stages = [s for s in (*settings.pretrain, settings.finetune) if s is not None and getattr(s, "steps", None)]
        if stages and (tune.budget.study.epochs or tune.budget.cell.epochs):
            what = "a budget of epochs counts none of a training that is given in steps"
            yield locations.problem(("tune", "budget"), what, "give epochs in place of steps, or a budget of trials")
        if part == "pretrain" and tune.pretrain.target != "cells" and (tune.also or tune.constraints):
            key, scored = ("also" if tune.also else "constraints"), tune.pretrain.target
            what = f"{key} is about fine-tunings, and the pretraining's ranges are tuned by {scored}"
            yield locations.problem(("tune", key), what, "set tune.pretrain.target: cells, or leave it out")
        if tune.rungs is not None:
            yield from _check_rungs(tune, part, settings, locations)


def _check_sampler(tune: Tune, own: dict[str, space.Range], locations: Locations) -> Iterator[Problem]:
    if tune.sampler != "cmaes":
        return
    others = [name for name, item in own.items() if isinstance(item, space.Choice | space.Subset)]
    if others:
        kind = "choice" if isinstance(own[others[0]], space.Choice) else "subset"
        what = f"cmaes searches numbers, and {others[0]} is a {kind}"
        yield locations.problem(("tune", "sampler"), what, f"use {LEARNING_ANYWHERE}")
    elif len(own) < 2:
        what = f"cmaes needs two ranges or more, and there is only {next(iter(own))}"
        yield locations.problem(("tune", "sampler"), what, f"use {LEARNING_ANYWHERE}")


def _check_rungs(tune: Tune, part: str, settings: Configuration, locations: Locations) -> Iterator[Problem]:
    assert tune.rungs is not None
    stage = settings.finetune if part == "finetune" else (settings.pretrain[-1] if settings.pretrain else None)
    if stage is None:
        return
    path: KeyPath = ("finetune",) if part == "finetune" else ("pretrain", len(settings.pretrain) - 1)
    if stage.epochs is None:
        what = "rungs shorten a training by epochs, and this one is given in steps"
        yield locations.problem((*path, "steps"), what, "give epochs, or leave out tune.rungs")
    elif tune.rungs.epochs[-1] >= (ends := getattr(stage, "stop_after", None) or stage.epochs):
        what = f"the last rung, after {tune.rungs.epochs[-1]} epochs, is not before the end of {part} ({ends})"
        yield locations.problem(("tune", "rungs", "epochs"), what, "lower it")
    if part == "finetune" and settings.finetune is not None and settings.finetune.patience is not None:
        yield locations.problem(
            (*path, "patience"), "patience and tune.rungs both stop trainings early", "use one of them"
        )


def tuning_warnings(cells: Sequence[Cell], header: Header) -> Iterator[str]:
    """Warn about what is allowed and probably not meant."""
    tune, seeds = header.tune, len(replicates(header.seeds, "search"))
    if not any(cell.all_ranges for cell in cells):
        return
    found = DEFINITIONS.get(pattern_of(tune.target))
    best = None if found is None else found.direction
    if tune.direction is not None and best is not None and tune.direction != best:
        yield f"tune.direction: {tune.direction} looks for the worst {tune.target}, of which high values are " + (
            "better" if best == "maximize" else "worse"
        )
    if tune.sampler in ("nsga2", "genetic") and tune.population >= tune.trials:
        yield f"tune.population {tune.population} is not below trials {tune.trials}: there will be no second generation"
    if tune.sampler in ("tpe", "gp", "cmaes") and tune.startup >= tune.trials:
        yield (
            f"the search is purely random, because tune.trials ({tune.trials}) is not above tune.startup "
            f"({tune.startup}); set tune.startup: {tune.trials // 2}, or raise trials"
        )
    if tune.rungs and tune.rungs.rule == "halving" and math.ceil(tune.batch * tune.rungs.keep) >= tune.batch:
        yield f"every rung keeps all of a batch of {tune.batch}; raise tune.batch or lower tune.rungs.keep"
    distinct = _with_distinct_pretrainings(cells)
    folds = {f for cell in distinct for data in cell.configuration().data.values() if (f := data.split.val_folds)}
    if any(seeds % fold for fold in folds):
        yield f"{seeds} search seeds do not go evenly round {max(folds)} validation folds; use a multiple"
    if any(parts_of(name).part == "cost" for name in (*tune.also, *tune.constraints)):
        yield "costs depend on the machine, its load and on kills (the last attempt counts), and with them the table"
    if tune.budget.study.hours or tune.budget.cell.hours or tune.budget.study.gpu_hours or tune.budget.cell.gpu_hours:
        yield "a budget in hours ends searches at a point that depends on the machine, and with it the table"
    for cell in distinct:
        yield from _doubtful_target(cell, tune.pretrain.target)


def _with_distinct_pretrainings(cells: Sequence[Cell]) -> list[Cell]:
    """The first of each group of cells that differ in their fine-tuning alone."""
    found: dict[tuple[bool, str], Cell] = {}
    for cell in cells:
        rest = {key: section for key, section in cell.template.items() if key != "finetune"}
        found.setdefault((cell.pretrained, repr(rest)), cell)
    return list(found.values())


def _doubtful_target(cell: Cell, target: str) -> Iterator[str]:
    """Ranges of a pretraining that its target cannot judge fairly."""
    trained, names = cell.configuration().pretrain, cell.ranges("pretrain")
    if not trained or not names:
        return
    if target == "pretext" and not trained[-1].method.facts.supervised:
        ours = {"method", "views"} | ({"batch_size"} if trained[-1].method.facts.compares_batch else set())
        task = [name for name in names if name.startswith("pretrain") and ours & set(name.split("."))]
        if task:
            yield (
                f"tune.pretrain.target: pretext compares losses, and {' and '.join(task)} changes what the loss "
                "measures: the lowest is not the best pretraining; a probe or `cells` can tell"
            )
    if target.startswith("probe.") and trained[-1].sees != "train":
        yield (
            f"tune.pretrain.target: {target} is scored on validation images that pretraining sees "
            f"(sees: {trained[-1].sees}): it looks better than it is, and more so for what memorises"
        )
