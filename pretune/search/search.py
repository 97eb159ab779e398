"""One search, from its first suggestion to its best configuration.

Trials are suggested, measured and told in batches of a fixed size. With `tune.top_k` the search ends by measuring its
best again on seeds of their own, since the best of many looks better than it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pretune.outcomes import Outcomes
from pretune.search import budget, warm_start
from pretune.search.optuna_study import Search, open_search, relative
from pretune.search.pruning import Pruning, SuggestedTrial, Target
from pretune.search.replicates import Run, TrialRecord, TrialResult, Values, values_or_centres
from pretune.search.samplers import grid_size
from pretune.search_spaces import schema, space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.identities import RECIPE
from pretune.search_spaces.metrics import (
    PRETEXT_LOSS,
    PROBE_ACCURACY,
    Bound,
    Direction,
    direction_of,
    parts_of,
    scored_by,
    sign_of,
)
from pretune.search_spaces.stages import Stage, replicates, stages_of
from pretune.search_spaces.words import counted

Part = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class SearchSpec:
    """The ranges that one search is about, and how it scores them."""

    part: Part  # whose ranges are searched
    cells: Sequence[Cell]  # which score it; ranges are those of the first
    target: Target
    trials: int | None = None  # where it has a number of its own
    fixed: Values = field(default_factory=dict)  # values found by the search before

    @property
    def title(self) -> str:
        """For people: 'search of finetune for encoder=frozen skip=true'."""
        more = " ..." if len(self.cells) > 2 else ""
        return f"search of {self.part} for {' and '.join(cell.label for cell in self.cells[:2])}{more}"

    def visit(self, suggest: space.Suggest) -> object:
        """Call `suggest` for every range that is searched; others stand at what is fixed, or at their centres."""
        own, others = set(self.cells[0].ranges(self.part)), values_or_centres(self.fixed)
        return space.fill(self.cells[0].template, lambda n, r: suggest(n, r) if n in own else others(n, r))


def search(run: Run, spec: SearchSpec) -> Generator[Sequence[Stage], Outcomes, Values | None]:
    """The values of the best configuration, None if there is none.

    A configuration's score is the mean of its target over cells and search seeds, and counts only if all of them
    finished. A budget that ends is looked at between batches; the first batch always runs.
    """
    tune, title = run.study.header.tune, spec.title
    optuna_search = open_search_of(run, spec)
    pruning = Pruning(run, spec.part, spec.cells, spec.target, sign_of(directions(spec.part, tune)[0]))
    limits = budget.share(tune.budget, searches_of(run))
    budget_key, began = budget_text(run, limits), run.elapsed() / 3600
    ended = optuna_search.ended(budget_key)
    wanted = trials_of(run, spec, limits)
    if tune.warm_start and spec.part == "finetune":
        note = warm_start.begin(run, optuna_search, spec.visit, spec.cells[0], spec.fixed)
        run.notes.append(f"{title}: {note}")
    run.open_searches += 1
    for first in range(0, wanted, tune.batch):
        used_up = budget.exhausted(run, limits, first, pruning.plans, began) if first and ended is None else ""
        if used_up or (ended is not None and first >= ended):
            optuna_search.end(first, budget_key)
            run.notes.append(
                f"{title}: {first} of {counted(wanted, 'trial')} run, then its budget was used up "
                f"({used_up or 'as before'})"
            )
            break
        batch = [
            SuggestedTrial(i, spec.fixed | optuna_search.suggest(i, spec.visit, prefer_stored(run, spec)))
            for i in range(first, min(first + tune.batch, wanted))
        ]
        results = yield from pruning.measure(batch)
        for trial in batch:
            optuna_search.tell(trial.index, results[trial.index])
            labels = tuple(cell.label for cell in spec.cells)
            run.trials.append(TrialRecord(title, labels, trial.index, trial.values, results[trial.index]))
    if optuna_search.preferred:
        run.notes.append(
            f"{title}: for {optuna_search.preferred} of {wanted} trials a later suggestion was used because its "
            "pretraining was in the store (tune.prefer_stored): the search leans towards those"
        )
    ranked = ranked_values(run, title, pruning.metric, pruning.sign)
    best = yield from select(run, spec, ranked, pruning)
    run.open_searches -= 1
    if best is None:
        run.messages.append(nothing_found(run, spec, pruning, bool(ranked)))
    elif any(t.result.state == "unscored" and t.values == best for t in run.trials if t.search == title):
        run.notes.append(
            f"{title}: no validation image of the search seeds has the class of {pruning.metric}, so it cannot tell "
            "trials apart: the first that predicts the class nowhere was confirmed"
        )
    return best


def select(
    run: Run, spec: SearchSpec, ranked: Sequence[Values], pruning: Pruning
) -> Generator[Sequence[Stage], Outcomes, Values | None]:
    """The best configuration: the first, or of the first `tune.top_k` the best on seeds that the search never saw."""
    candidates, seeds = ranked[: run.study.header.tune.top_k], replicates(run.study.header.seeds, "select")
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    groups = [
        [plan for cell in spec.cells for plan in run.plan_replicates("select", cell, values, seeds)]
        for values in candidates
    ]
    outcomes = yield [spec.target(plan)[0] for group in groups for plan in group]
    results = [pruning.result_of(group, outcomes) for group in groups]
    ranks = ranking(results, pruning.metric, pruning.sign)
    return candidates[min(ranks, key=lambda place: (ranks[place], place))] if ranks else None


def ranked_values(run: Run, title: str, metric: str, sign: float) -> list[Values]:
    """Values of a search's trials that can be confirmed, the best first; of equals the first suggested."""
    trials = [trial for trial in run.trials if trial.search == title]
    order = ranking([trial.result for trial in trials], metric, sign)
    return [trials[place].values for place in sorted(order, key=lambda place: (order[place], trials[place].index))]


def ranking(results: Sequence[TrialResult], metric: str, sign: float) -> dict[int, float]:
    """Positions of the results that can be confirmed -> rank, the lowest is the best.

    A trial without any score in a class has predicted it nowhere, and the truth has it at no search seed. All that
    others can have scored there are false positives, so it is not behind a score of 0.
    """
    ranks = {
        place: -sign * result.value
        for place, result in enumerate(results)
        if result.state == "complete" and result.value is not None
    }
    if parts_of(metric).label:
        nothing_found = -np.finfo(float).tiny
        ranks |= {place: nothing_found for place, result in enumerate(results) if result.state == "unscored"}
    return ranks


def nothing_found(run: Run, spec: SearchSpec, pruning: Pruning, some_complete: bool) -> str:
    """A search without a configuration to confirm, as a sentence."""
    tune, trials = run.study.header.tune, [trial for trial in run.trials if trial.search == spec.title]
    return (
        f"{spec.title}: no configuration of {len(trials)} finished with a finite {pruning.metric} in all its replicates"
        f"{' and within the constraints' if tune.constraints else ''}"
        f"{', on the selection seeds too' if some_complete and tune.top_k > 1 else ''}; nothing to confirm"
        f"{nearest(tune.constraints, trials)}"
    )


def nearest(bounds: Mapping[str, float], trials: Sequence[TrialRecord]) -> str:
    """Say how far the configuration that exceeds its constraints least is from meeting them, and what to do."""
    measured = [trial.result for trial in trials if any(by > 0 for by in trial.result.over)]
    if not bounds or not measured:
        return ""
    closest = min(measured, key=lambda result: sum(max(0.0, by) for by in relative(result.over, bounds)))
    parts = zip(itertools.starmap(Bound, bounds.items()), closest.over, strict=True)
    broken = [f"{bound.metric} {bound.value + bound.sign * by:.4g}, {bound.side}" for bound, by in parts if by > 0]
    return f" (the nearest had {' and '.join(broken)}: loosen tune.constraints, or widen the ranges)"


# ------------------------------------------------------------------------------------------------- how it is set up


def open_search_of(run: Run, spec: SearchSpec) -> Search:
    """The Optuna study of a search. Its name holds a hash of all that its results depend on, so that an edited study
    file never mixes old results with new trials, while more trials extend the old search."""
    header, cells, part = run.study.header, spec.cells, spec.part
    depends = {
        "cells": [space.to_plain(cell.template) for cell in cells],
        "seeds": header.seeds.model_dump(mode="json", include={"search", "hold"}),
        "tune": header.tune.model_dump(mode="json", exclude={"trials", "pretrain", "budget", "top_k"}),
        "recipes": RECIPE,
        "resources": header.resources.model_dump(mode="json"),
        "target": header.tune.pretrain.target if part == "pretrain" else header.tune.target,
        "data": sorted(run.digest_of(d) for cell in cells for d in cell.configuration().data.values()),
        "fixed": spec.fixed,
    }
    if lower := [name for name in header.tune.constraints if Bound(name, 0.0).sign < 0]:
        depends["lower bounds"] = lower  # upper ones until 2026-11-28: results of before are other ones
    key = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:8]
    label = part if part == "pretrain" else f"{part} {cells[0].label}"
    ranges = {
        name: space.to_plain(item) for name, item in space.ranges(cells[0].template) if name in cells[0].ranges(part)
    }
    space_key = f"{part} {json.dumps(ranges, sort_keys=True, default=str)}"  # so that an extended study asks the same
    return open_search(
        run.storage,
        f"{label} {key}",
        run.suggest_by or header.tune,
        directions(part, header.tune),
        run.search_prefix,
        space_key,
        targets(part, header.tune),
    )


def directions(part: Part, tune: schema.Tune) -> list[Direction]:
    """Directions of a search's target and of those beside it. `tune.direction` is about `tune.target`; a pretext loss
    and a probe's accuracy have their own."""
    if part == "pretrain" and tune.pretrain.target != "cells":
        first = direction_of(PRETEXT_LOSS if tune.pretrain.target == "pretext" else PROBE_ACCURACY)
    else:
        first = direction_of(tune.target, tune.direction)
    return [first, *(direction_of(name) for name in tune.also)]


def targets(part: Part, tune: schema.Tune) -> list[str]:
    """Names of a search's target and of those beside it, as Optuna's dashboard shows them."""
    first = scored_by(tune.pretrain.target, tune.target) if part == "pretrain" else tune.target
    return [first, *tune.also]


def trials_of(run: Run, spec: SearchSpec, limits: schema.Budget) -> int:
    """Count the trials of a search: as set, and no more than its budget and its grid allow."""
    tune = run.study.header.tune
    points = grid_size(spec.visit, tune.points) if tune.sampler == "grid" else None
    limited = [number for number in (limits.trials, points) if number is not None]
    wanted = min([spec.trials or tune.trials, *limited])
    if points is not None and wanted < points:
        run.notes.append(f"{spec.title}: {wanted} of the grid's {points:,} points are tried, at random (tune.trials)")
    return wanted


def prefer_stored(run: Run, spec: SearchSpec) -> Callable[[Values], bool] | None:
    """Whether the pretraining of a suggestion is paid for, where the study asks for it."""
    if spec.part == "finetune" or run.study.header.tune.prefer_stored is None:
        return None
    seed = replicates(run.study.header.seeds, "search")[0]

    def stored(values: Values) -> bool:
        configuration = spec.cells[0].configuration(values_or_centres(spec.fixed | values))
        stages = stages_of(configuration, seed, run.study.header, run.digest_of, False)
        trained = [stage for stage in stages.values() if stage.kind == "pretrain"]
        return bool(trained) and run.is_stored(trained[-1].fingerprint)

    return stored


def budget_text(run: Run, limits: schema.Budget) -> str:
    """The budget as it is noted in the search's storage."""
    return json.dumps([limits.model_dump(mode="json"), run.study.header.tune.budget.study.model_dump(mode="json")])


def searches_of(run: Run) -> int:
    """Count the searches of a study: they share its budget evenly."""
    cells = run.study.cells
    return len({cell.pretraining() for cell in cells if cell.ranges("pretrain")}) + sum(
        bool(cell.ranges("finetune")) for cell in cells
    )
