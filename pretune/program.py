"""What a study does, phase by phase, as generators.

A *program* yields the stages that it waits for and is sent the outcomes of all of them; when it ends it returns the
programs that follow. It knows nothing of processes, of time or of what is cached, so the same programs are run on a
cluster, by `pretune plan` (every outcome invented) and in tests.

    per group of cells that share a pretraining:   search its ranges   (search seeds, validation data)
        per cell:                                  search its ranges   (search seeds, validation data)
            per cell:                              confirm the best    (fresh report seeds, test data)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from optuna.storages import BaseStorage

from pretune.search import Direction, Search, Told, Values, direction_of, open_search
from search_spaces import schema, space
from search_spaces.cells import Cell
from search_spaces.resolve import Study
from search_spaces.stages import (
    RECIPE,
    DigestOf,
    Replicate,
    Stage,
    encoder_stage,
    pair_stage,
    replicates,
    stages_of,
)


class Outcome(NamedTuple):
    """How a stage run ended. A blocked one never ran: `root` says how its ancestor ended."""

    state: Literal["finished", "diverged", "crashed", "blocked"]
    metrics: Mapping[str, float]
    cause: str = ""
    root: str = ""


Outcomes = Mapping[str, Outcome]  # by fingerprint
Program = Generator[Sequence[Stage], Outcomes, "list[Program]"]


@dataclass(frozen=True)
class Use:
    """One replicate of one configuration in one cell, and the stages that make it up."""

    phase: Literal["search", "confirm"]
    cell: Cell
    configuration: str  # short hash of the settings
    replicate: Replicate
    values: Values  # what was chosen from the ranges
    stages: Mapping[str, Stage]
    pair: bool = False  # whether it holds no more than a pairwise probe of this cell with another


@dataclass
class Run:
    """What programs need to know, and what they leave behind for the results."""

    study: Study
    digest_of: DigestOf  # the content of a data set
    storage: BaseStorage
    uses: list[Use] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    open_searches: int = 0

    def use(
        self, phase: Literal["search", "confirm"], cell: Cell, values: Values, seeds: Sequence[Replicate]
    ) -> list[Use]:
        """Note that replicates are needed; their test set is measured in the confirm phase alone."""
        configuration = cell.configuration(chosen(values))
        short = hashlib.sha256(configuration.model_dump_json().encode()).hexdigest()[:8]
        header, on_test = self.study.header, phase == "confirm"
        uses = [
            Use(phase, cell, short, seed, values, stages_of(configuration, seed, header, self.digest_of, on_test))
            for seed in seeds
        ]
        self.uses += uses
        return uses


def start(run: Run) -> list[Program]:
    """The first programs of a study: one per group of cells that share their pretraining."""
    groups: dict[str, list[Cell]] = {}
    for cell in run.study.cells:
        groups.setdefault(cell.pretraining() if cell.ranges("pretrain") else cell.label, []).append(cell)
    return [tune_pretraining(run, cells) for cells in groups.values()]


def tune_pretraining(run: Run, cells: Sequence[Cell]) -> Program:
    """Search the ranges of a pretraining, once for all cells that share it.

    While it is searched, fine-tuning's own ranges stand at their centres.
    """
    if not cells[0].ranges("pretrain"):
        return [tune_finetuning(run, cell, {}) for cell in cells]
    asked = run.study.header.tune.pretrain
    voters = [cell for cell in run.study.matching(asked.cells) if cell in cells] or list(cells)
    metric = {"cells": run.study.header.tune.target, "pretext": "val/pretext_loss"}.get(asked.target, "probe/accuracy")
    name = {"cells": "finetune", "pretext": "pretrain"}.get(asked.target, asked.target.replace("probe.", "probe:"))
    best = yield from search(
        run,
        "pretrain",
        voters if name == "finetune" else voters[:1],
        asked.trials,
        lambda use: (scored(use, name), metric),
        {},
    )
    if best is None:
        return []
    return [tune_finetuning(run, cell, best) for cell in cells]


def tune_finetuning(run: Run, cell: Cell, values: Values) -> Program:
    """Search the ranges of one cell's fine-tuning, on the pretraining found before."""
    if not cell.ranges("finetune"):
        return [confirm(run, cell, values)]
    target = run.study.header.tune.target
    best = yield from search(run, "finetune", [cell], None, lambda use: (use.stages["finetune"], target), values)
    return [] if best is None else [confirm(run, cell, best)]


def confirm(run: Run, cell: Cell, values: Values) -> Program:
    """Run a cell's best on the report seeds and measure it on the test set."""
    seeds = replicates(run.study.header.seeds, "report")
    uses = run.use("confirm", cell, values, seeds)
    yield [stage for use in [*uses, *compare(run, uses)] for stage in use.stages.values()]
    return []


def compare(run: Run, new: Sequence[Use]) -> list[Use]:
    """Pairwise probes of `new` confirmed uses with those that were there before, of cells that differ in the probe's
    factor alone. The first level of a pair is that which the study names first, whichever was confirmed first; the
    probe is noted under both, with the other level in its name."""
    found: list[Use] = []
    for use in new:
        for name, probe in pairwise_probes(use).items():
            levels = run.study.factors[probe.between]
            for partner in [other for other in run.uses if other.phase == "confirm" and not other.pair]:
                if differ_alone(use, partner, probe.between):
                    pair = sorted((use, partner), key=lambda one: levels.index(one.cell.levels[probe.between]))
                    found += pair_uses(run, name, probe, pair[0], pair[1])
    run.uses += found
    return found


def pairwise_probes(use: Use) -> dict[str, schema.CKA]:
    probes = use.cell.configuration(chosen(use.values)).probe
    return {name: probe for name, probe in probes.items() if isinstance(probe, schema.CKA)}


def differ_alone(one: Use, other: Use, factor: str) -> bool:
    """Whether two uses are of the same replicate, and of cells that differ in one factor and in no other."""
    a, b = one.cell.levels, other.cell.levels
    return one.replicate == other.replicate and [name for name in a if a[name] != b[name]] == [factor]


def pair_uses(run: Run, name: str, probe: schema.CKA, first: Use, second: Use) -> list[Use]:
    """Both sides of a pair; none where a cell has no such probe, or no encoder to compare."""
    parents = encoder_stage(first.stages, probe.of), encoder_stage(second.stages, probe.of)
    if parents[0] is None or parents[1] is None or not all(name in pairwise_probes(use) for use in (first, second)):
        return []
    configuration = first.cell.configuration(chosen(first.values))
    stage = pair_stage(configuration, name, first.replicate, run.study.header, run.digest_of, (parents[0], parents[1]))
    sides = ((first, second), (second, first))
    return [
        replace(side, stages={f"probe:{name}/{other.cell.levels[probe.between]}": stage}, pair=True)
        for side, other in sides
    ]


# ----------------------------------------------------------------------------------------------------------- search

Target = Callable[[Use], tuple[Stage, str]]  # which stage's metric scores a replicate


def search(
    run: Run,
    part: Literal["pretrain", "finetune"],
    cells: Sequence[Cell],
    trials: int | None,
    target: Target,
    fixed: Values,
) -> Generator[Sequence[Stage], Outcomes, Values | None]:
    """Ask, run and tell in batches of a fixed size; the values of the best configuration, None if there is none.

    A configuration's score is the mean of its target over cells and search seeds, and counts only if all of them
    finished.
    """
    tune, wanted = run.study.header.tune, trials or run.study.header.tune.trials
    questions = open_questions(run, part, cells, fixed)
    best: tuple[float, Values] | None = None
    sign = -1.0 if questions.study.direction.name == "MINIMIZE" else 1.0
    run.open_searches += 1
    metric = ""
    for first in range(0, wanted, tune.batch):
        batch = range(first, min(first + tune.batch, wanted))
        uses = {i: ask(run, part, cells, questions, i, fixed) for i in batch}
        outcomes = yield [target(use)[0] for trial in uses.values() for use in trial]
        for i, trial in uses.items():
            metric = target(trial[0])[1]
            told, value = judge([outcomes[target(use)[0].fingerprint] for use in trial], metric)
            questions.tell(i, told, value)
            if value is not None and (best is None or sign * value > sign * best[0]):
                best = (value, trial[0].values)
    run.open_searches -= 1
    label = " and ".join(cell.label for cell in cells[:2]) + (" ..." if len(cells) > 2 else "")
    if best is None:
        run.messages.append(
            f"search of {part} for {label}: no configuration of {wanted} finished with a finite {metric} in all its "
            "replicates; nothing to confirm"
        )
        return None
    return best[1]


def ask(run: Run, part: str, cells: Sequence[Cell], questions: Search, index: int, fixed: Values) -> list[Use]:
    """One question to the sampler, and the replicates that answer it."""
    own = set(cells[0].ranges("pretrain" if part == "pretrain" else "finetune"))

    def suggest_all(suggest: space.Suggest) -> object:
        return space.fill(cells[0].template, lambda n, r: suggest(n, r) if n in own else chosen(fixed)(n, r))

    values = {**fixed, **questions.ask(index, suggest_all)}
    seeds = replicates(run.study.header.seeds, "search")
    return [use for cell in cells for use in run.use("search", cell, values, seeds)]


def judge(outcomes: Sequence[Outcome], metric: str) -> tuple[Told, float | None]:
    """What to tell of a configuration: never a mean over survivors. One without the metric has no value to tell."""
    if any(outcome.state == "crashed" or outcome.root == "crashed" for outcome in outcomes):
        return "failed", None
    if any(outcome.state == "diverged" or outcome.root == "diverged" for outcome in outcomes):
        return "infeasible", None
    value = float(np.mean([outcome.metrics.get(metric, math.nan) for outcome in outcomes]))
    return ("complete", value) if math.isfinite(value) else ("infeasible", None)


def open_questions(run: Run, part: str, cells: Sequence[Cell], fixed: Values) -> Search:
    """The Optuna study of a search. Its name holds a hash of all that its answers depend on, so that an edited
    study file never mixes old answers with new questions, while more trials extend the old search."""
    header = run.study.header
    depends = {
        "cells": [space.to_plain(cell.template) for cell in cells],
        "seeds": header.seeds.model_dump(mode="json", include={"search", "hold"}),
        "tune": header.tune.model_dump(mode="json", exclude={"trials", "pretrain"}),
        "recipes": RECIPE,
        "resources": header.resources.model_dump(mode="json"),
        "target": header.tune.pretrain.target if part == "pretrain" else header.tune.target,
        "data": sorted(run.digest_of(d) for cell in cells for d in cell.configuration().data.values()),
        "fixed": fixed,
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:8]
    label = part if part == "pretrain" else f"{part} {cells[0].label}"
    return open_search(run.storage, f"{label} {key}", header.tune, direction(part, header.tune))


def direction(part: str, tune: schema.Tune) -> Direction:
    """Of a search. `tune.direction` is about `tune.target`; a pretext loss and a probe's accuracy have their own."""
    if part == "pretrain" and tune.pretrain.target != "cells":
        return "minimize" if tune.pretrain.target == "pretext" else "maximize"
    return direction_of(tune.target, tune.direction)


def scored(use: Use, name: str) -> Stage:
    """The stage that scores a pretraining; of a chain the last."""
    if name == "pretrain":
        return [stage for stage in use.stages.values() if stage.kind == "pretrain"][-1]
    return use.stages[name]


def chosen(values: Values) -> space.Suggest:
    """The values found so far; the centre of every other range."""
    return lambda name, item: values[name] if name in values else space.centre(name, item)


def stages_in(uses: Iterable[Use]) -> dict[str, Stage]:
    """Distinct stages by fingerprint, in the order in which they were asked for."""
    return {stage.fingerprint: stage for use in uses for stage in use.stages.values()}
