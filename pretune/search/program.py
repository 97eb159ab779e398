"""The story of a study, phase by phase, as generators.

A *program* yields the stages that it waits for and is sent the outcomes of all of them; when it ends it returns the
programs that follow. It knows nothing of processes, of time or of what is cached, so the same programs are run on a
cluster, by `pretune plan` (every outcome invented) and in tests.

    per group of cells that share a pretraining:   search its ranges   (search seeds, validation data)
        per cell:                                  search its ranges   (search seeds, validation data)
            per cell:                              confirm the best    (fresh report seeds, test data)

How one search goes is told in `search.py`, how its trials are measured (all seeds, a race, rungs) in `pruning.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pretune.outcomes import Program
from pretune.search.pairs import pairwise_plans
from pretune.search.replicates import ReplicatePlan, Run, Values
from pretune.search.search import SearchSpec, search
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.metrics import PRETEXT_LOSS, PROBE_ACCURACY
from pretune.search_spaces.stages import Stage, replicates


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
    best = yield from search(run, pretraining_search(run, cells))
    return [] if best is None else [tune_finetuning(run, cell, best) for cell in cells]


def tune_finetuning(run: Run, cell: Cell, values: Values) -> Program:
    """Search the ranges of one cell's fine-tuning, on the pretraining found before."""
    if not cell.ranges("finetune"):
        return [confirm(run, cell, values)]
    target = run.study.header.tune.target
    best = yield from search(
        run, SearchSpec("finetune", [cell], lambda plan: (plan.stages["finetune"], target), fixed=values)
    )
    return [] if best is None else [confirm(run, cell, best)]


def confirm(run: Run, cell: Cell, values: Values) -> Program:
    """Run a cell's best on the report seeds and measure it on the test set."""
    plans = run.plan_replicates("confirm", cell, values, replicates(run.study.header.seeds, "report"))
    yield [stage for plan in [*plans, *pairwise_plans(run, plans)] for stage in plan.stages.values()]
    return []


def pretraining_search(run: Run, cells: Sequence[Cell]) -> SearchSpec:
    """The search of a pretraining, scored as `tune.pretrain` says: by fine-tunings, its own loss, or a probe."""
    asked = run.study.header.tune.pretrain
    voters = [cell for cell in run.study.matching(asked.cells) if cell in cells] or list(cells)
    metric = {"cells": run.study.header.tune.target, "pretext": PRETEXT_LOSS}.get(asked.target, PROBE_ACCURACY)
    name = {"cells": "finetune", "pretext": "pretrain"}.get(asked.target, asked.target.replace("probe.", "probe:"))
    scoring = voters if name == "finetune" else voters[:1]
    return SearchSpec("pretrain", scoring, lambda plan: (scoring_stage(plan, name), metric), asked.trials)


def scoring_stage(plan: ReplicatePlan, name: str) -> Stage:
    """The stage that scores a pretraining; of a chain the last."""
    if name == "pretrain":
        return [stage for stage in plan.stages.values() if stage.kind == "pretrain"][-1]
    return plan.stages[name]
