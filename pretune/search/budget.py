"""Budgets: the spending of a search, and whether another batch is allowed."""

from __future__ import annotations

from collections.abc import Iterable

from pretune.search.replicates import ReplicatePlan, Run, stages_in
from pretune.search_spaces import schema
from pretune.search_spaces.words import counted


def share(budgets: schema.Budgets, searches: int) -> schema.Budget:
    """Return the limits of one of `searches`: the smaller of its own budget and an even share of the study's.

    Even shares, since which search comes first is a matter of timing. Hours pass for all of them together.
    """
    study, cell = budgets.study, budgets.cell

    def least(*limits: float | None) -> float | None:
        return min((limit for limit in limits if limit is not None), default=None)

    def part(total: int | None) -> int | None:
        return None if total is None else max(1, total // max(1, searches))

    trials, epochs = least(cell.trials, part(study.trials)), least(cell.epochs, part(study.epochs))
    return schema.Budget(
        trials=None if trials is None else int(trials),
        epochs=None if epochs is None else int(epochs),
        hours=cell.hours,
        gpu_hours=cell.gpu_hours,
    )


def spent_epochs(plans: Iterable[ReplicatePlan]) -> int:
    """Epochs of all stage runs asked for; a training continued from a shorter one counts the shorter one once."""
    longest: dict[str, int] = {}
    for stage in stages_in(plans).values():
        key = stage.series or stage.fingerprint
        longest[key] = max(longest.get(key, 0), stage.reach)
    return sum(longest.values())


def gpu_hours(run: Run, plans: Iterable[ReplicatePlan]) -> float:
    """GPU hours of the stage runs that have ended."""
    return sum(run.gpu_seconds(fingerprint) for fingerprint in stages_in(plans)) / 3600


def exhausted(run: Run, own: schema.Budget, asked: int, plans: list[ReplicatePlan], began: float) -> str:
    """Name the budget that is used up; "" while none is."""
    study = run.study.header.tune.budget.study
    if own.trials is not None and asked >= own.trials:
        return counted(own.trials, "trial")
    if own.epochs is not None and spent_epochs(plans) >= own.epochs:
        return counted(own.epochs, "epoch")
    now = run.elapsed() / 3600
    if own.hours is not None and now - began >= own.hours:
        return f"{own.hours:g} hours"
    if study.hours is not None and now >= study.hours:
        return f"the study's {study.hours:g} hours"
    if own.gpu_hours is not None and gpu_hours(run, plans) >= own.gpu_hours:
        return f"{own.gpu_hours:g} GPU hours"
    if study.gpu_hours is not None and gpu_hours(run, run.replicates) >= study.gpu_hours:
        return f"the study's {study.gpu_hours:g} GPU hours"
    return ""
