"""What a study does, phase by phase, as generators.

A *program* yields the stages that it waits for and is sent the outcomes of all of them; when it ends it returns the
programs that follow. It knows nothing of processes, of time or of what is cached, so the same programs are run on a
cluster, by `pretune plan` (every outcome invented) and in tests.

    per group of cells that share a pretraining:   search its ranges   (search seeds, validation data)
        per cell:                                  search its ranges   (search seeds, validation data)
            per cell:                              confirm the best    (fresh report seeds, test data)

With `tune.top_k` a search ends by measuring its best again on seeds of their own, since the best of many looks better
than it is. How the configurations of a search are measured (all seeds, a race, rungs) is `contest`'s story.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Literal

from pretune.outcomes import Outcomes, Program
from pretune.search import budget, warm_start
from pretune.search.optuna_study import Search, open_search, relative
from pretune.search.pruning import Contest, Target, Trial
from pretune.search.replicates import ReplicatePlan, Run, TrialRecord, Values, chosen
from pretune.search.samplers import SpaceVisitor, grid_size
from pretune.search_spaces import schema, space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.identities import RECIPE
from pretune.search_spaces.metrics import PRETEXT_LOSS, PROBE_ACCURACY, Direction, direction_of
from pretune.search_spaces.stages import Stage, encoder_stage, pair_stage, replicates, stages_of

Part = Literal["pretrain", "finetune"]


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
    metric = {"cells": run.study.header.tune.target, "pretext": PRETEXT_LOSS}.get(asked.target, PROBE_ACCURACY)
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


def compare(run: Run, new: Sequence[ReplicatePlan]) -> list[ReplicatePlan]:
    """Pairwise probes of `new` confirmed uses with those that were there before, of cells that differ in the probe's
    factor alone. The first level of a pair is that which the study names first, whichever was confirmed first; the
    probe is noted under both, with the other level in its name."""
    found: list[ReplicatePlan] = []
    for use in new:
        for name, probe in pairwise_probes(use).items():
            levels = run.study.factors[probe.between]
            for partner in [other for other in run.uses if other.phase == "confirm" and not other.pair]:
                if differ_alone(use, partner, probe.between):
                    pair = sorted((use, partner), key=lambda one: levels.index(one.cell.levels[probe.between]))
                    found += pair_uses(run, name, probe, pair[0], pair[1])
    run.uses += found
    return found


def pairwise_probes(use: ReplicatePlan) -> dict[str, schema.CKA]:
    probes = use.cell.configuration(chosen(use.values)).probe
    return {name: probe for name, probe in probes.items() if isinstance(probe, schema.CKA)}


def differ_alone(one: ReplicatePlan, other: ReplicatePlan, factor: str) -> bool:
    """Whether two uses are of the same replicate, and of cells that differ in one factor and in no other."""
    a, b = one.cell.levels, other.cell.levels
    return one.replicate == other.replicate and [name for name in a if a[name] != b[name]] == [factor]


def pair_uses(
    run: Run, name: str, probe: schema.CKA, first: ReplicatePlan, second: ReplicatePlan
) -> list[ReplicatePlan]:
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


def search(
    run: Run, part: Part, cells: Sequence[Cell], trials: int | None, target: Target, fixed: Values
) -> Generator[Sequence[Stage], Outcomes, Values | None]:
    """Ask, measure and tell in batches of a fixed size; the values of the best configuration, None if there is none.

    A configuration's score is the mean of its target over cells and search seeds, and counts only if all of them
    finished. A budget that ends is looked at between batches; the first batch always runs.
    """
    tune = run.study.header.tune
    questions, walk = open_questions(run, part, cells, fixed), walk_of(cells[0], part, fixed)
    name = title(part, cells)
    contest = Contest(run, part, cells, target, -1.0 if directions(part, tune)[0] == "minimize" else 1.0)
    limits = budget.share(tune.budget, searches_of(run))
    points = grid_size(walk, tune.points) if tune.sampler == "grid" else None
    wanted = least(trials or tune.trials, limits.trials, points)
    if points is not None and wanted < points:
        run.notes.append(f"{name}: {wanted} of the grid's {points:,} points are asked, drawn at random (tune.trials)")
    ended = questions.ended(limits_text(run, limits))
    began = run.clock() / 3600
    if tune.warm_start and part == "finetune":
        warm_start.begin(run, questions, walk, cells[0], fixed, name)
    found: list[tuple[float, int, Values]] = []
    run.open_searches += 1
    for first in range(0, wanted, tune.batch):
        over = budget.exhausted(run, limits, first, contest.uses, began) if first and ended is None else ""
        if over or (ended is not None and first >= ended):
            questions.end(first, limits_text(run, limits))
            run.notes.append(
                f"{name}: {first} of {wanted} configurations asked, then its budget was used up ({over or 'as before'})"
            )
            break
        batch = [
            Trial(i, fixed | questions.suggest(i, walk, prefer_stored(run, part, cells[0], fixed)))
            for i in range(first, min(first + tune.batch, wanted))
        ]
        verdicts = yield from contest.measure(batch)
        for trial in batch:
            verdict = verdicts[trial.index]
            questions.tell(trial.index, verdict)
            run.answers.append(
                TrialRecord(name, tuple(cell.label for cell in cells), trial.index, trial.values, verdict)
            )
            if verdict.told == "complete" and verdict.value is not None:
                found.append((-contest.sign * verdict.value, trial.index, trial.values))
    if questions.preferred:
        run.notes.append(
            f"{name}: in {questions.preferred} of {wanted} questions another than the sampler's first suggestion was "
            "taken because its pretraining was in the store (tune.prefer_stored): the search leans towards those"
        )
    asked = len([answer for answer in run.answers if answer.search == name])
    best = yield from select(run, cells, [values for *_, values in sorted(found, key=lambda f: f[:2])], target, contest)
    run.open_searches -= 1
    if best is None:
        metric = target(contest.uses[0])[1]
        run.messages.append(
            f"{name}: no configuration of {asked} finished with a finite {metric} in all its replicates"
            f"{' and within the constraints' if tune.constraints else ''}"
            f"{', on the selection seeds too' if found and tune.top_k > 1 else ''}; nothing to confirm"
            f"{nearest(run, name)}"
        )
    return best


def nearest(run: Run, name: str) -> str:
    """How far the configuration that exceeds its constraints least is from meeting them, and what to do."""
    bounds = run.study.header.tune.constraints
    measured = [a.verdict for a in run.answers if a.search == name and any(by > 0 for by in a.verdict.over)]
    if not bounds or not measured:
        return ""
    closest = min(measured, key=lambda verdict: sum(max(0.0, by) for by in relative(verdict.over, bounds)))
    broken = [
        f"{metric} {bound + by:.4g}, above {bound:g}"
        for (metric, bound), by in zip(bounds.items(), closest.over, strict=True)
        if by > 0
    ]
    return f" (the nearest had {' and '.join(broken)}: loosen tune.constraints, or widen the ranges)"


def select(
    run: Run, cells: Sequence[Cell], ranked: Sequence[Values], target: Target, contest: Contest
) -> Generator[Sequence[Stage], Outcomes, Values | None]:
    """The best configuration: the first, or of the first `tune.top_k` the best on seeds that the search never saw."""
    candidates, seeds = ranked[: run.study.header.tune.top_k], replicates(run.study.header.seeds, "select")
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    uses = [[u for cell in cells for u in run.use("select", cell, values, seeds)] for values in candidates]
    outcomes = yield [target(use)[0] for group in uses for use in group]
    verdicts = [contest.judged(group, outcomes) for group in uses]
    whole = [
        (-contest.sign * v.value, k) for k, v in enumerate(verdicts) if v.told == "complete" and v.value is not None
    ]
    return candidates[min(whole)[1]] if whole else None


def walk_of(cell: Cell, part: Part, fixed: Values) -> SpaceVisitor:
    """Calls what it is given for every range of a part; other ranges stand at what is fixed, or at their centres."""
    own, others = set(cell.ranges(part)), chosen(fixed)

    def walk(suggest: space.Suggest) -> object:
        return space.fill(cell.template, lambda n, r: suggest(n, r) if n in own else others(n, r))

    return walk


def prefer_stored(run: Run, part: Part, cell: Cell, fixed: Values) -> Callable[[Values], bool] | None:
    """Whether the pretraining of a suggestion is paid for, where the study asks for it."""
    if part == "finetune" or run.study.header.tune.prefer_stored is None:
        return None
    seed = replicates(run.study.header.seeds, "search")[0]

    def stored(values: Values) -> bool:
        stages = stages_of(cell.configuration(chosen(fixed | values)), seed, run.study.header, run.digest_of, False)
        trained = [stage for stage in stages.values() if stage.kind == "pretrain"]
        return bool(trained) and run.is_stored(trained[-1].fingerprint)

    return stored


def least(first: int, *others: int | None) -> int:
    return min([first, *(other for other in others if other is not None)])


def limits_text(run: Run, limits: schema.Budget) -> str:
    return json.dumps([limits.model_dump(mode="json"), run.study.header.tune.budget.study.model_dump(mode="json")])


def searches_of(run: Run) -> int:
    """How many searches a study has: they share its budget evenly."""
    cells = run.study.cells
    return len({cell.pretraining() for cell in cells if cell.ranges("pretrain")}) + sum(
        bool(cell.ranges("finetune")) for cell in cells
    )


def title(part: Part, cells: Sequence[Cell]) -> str:
    """For people: 'search of finetune for encoder=frozen skip=true'."""
    return (
        f"search of {part} for " + " and ".join(cell.label for cell in cells[:2]) + (" ..." if len(cells) > 2 else "")
    )


def open_questions(run: Run, part: Part, cells: Sequence[Cell], fixed: Values) -> Search:
    """The Optuna study of a search. Its name holds a hash of all that its answers depend on, so that an edited
    study file never mixes old answers with new questions, while more trials extend the old search."""
    header = run.study.header
    depends = {
        "cells": [space.to_plain(cell.template) for cell in cells],
        "seeds": header.seeds.model_dump(mode="json", include={"search", "hold"}),
        "tune": header.tune.model_dump(mode="json", exclude={"trials", "pretrain", "budget", "top_k"}),
        "recipes": RECIPE,
        "resources": header.resources.model_dump(mode="json"),
        "target": header.tune.pretrain.target if part == "pretrain" else header.tune.target,
        "data": sorted(run.digest_of(d) for cell in cells for d in cell.configuration().data.values()),
        "fixed": fixed,
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:8]
    label = part if part == "pretrain" else f"{part} {cells[0].label}"
    ranges = {
        name: space.to_plain(item) for name, item in space.ranges(cells[0].template) if name in cells[0].ranges(part)
    }
    space_key = f"{part} {json.dumps(ranges, sort_keys=True, default=str)}"  # so that an extended study asks the same
    return open_search(
        run.storage,
        f"{label} {key}",
        run.asks or header.tune,
        directions(part, header.tune),
        run.search_prefix,
        space_key,
    )


def directions(part: str, tune: schema.Tune) -> list[Direction]:
    """Of a search's target, and of those beside it. `tune.direction` is about `tune.target`; a pretext loss and a
    probe's accuracy have their own."""
    if part == "pretrain" and tune.pretrain.target != "cells":
        first = direction_of(PRETEXT_LOSS if tune.pretrain.target == "pretext" else PROBE_ACCURACY)
    else:
        first = direction_of(tune.target, tune.direction)
    return [first, *(direction_of(name) for name in tune.also)]


def scored(use: ReplicatePlan, name: str) -> Stage:
    """The stage that scores a pretraining; of a chain the last."""
    if name == "pretrain":
        return [stage for stage in use.stages.values() if stage.kind == "pretrain"][-1]
    return use.stages[name]
