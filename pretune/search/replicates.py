"""A study's programs at work: the replicates they plan, the trials they measure, and notes for the results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.storages import BaseStorage

from pretune.search_spaces import schema, space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import DigestOf, Replicate, Stage, Until, stages_of

Values = dict[str, Any]  # of ranges, by the range's dotted key
Phase = Literal["search", "select", "confirm"]

# unscored: all replicates finished, and none has a score in the target
TrialEnd = Literal["complete", "infeasible", "failed", "partial", "unscored"]


@dataclass(frozen=True)
class TrialResult:
    """Result of one trial of a search, as Optuna is told of it."""

    state: TrialEnd
    value: float | None = None  # the target; of a partial one as far as it went
    reached: int = 0  # of a partial one: seeds (racing) or epochs (rungs)
    reason: str = ""
    scores: tuple[float, ...] = ()  # by search seed, means over the cells that vote; NaN where none has a score
    also: tuple[float, ...] = ()  # further targets
    over: tuple[float, ...] = ()  # by how much it is beyond each constraint's bound; above 0 is infeasible


@dataclass(frozen=True)
class TrialRecord:
    """A trial of a search and its result, for `searches.parquet`."""

    search: str
    cells: tuple[str, ...]
    index: int
    values: Values
    result: TrialResult


@dataclass(frozen=True)
class ReplicatePlan:
    """One replicate of one configuration in one cell, and the stages that make it up."""

    phase: Phase
    cell: Cell
    configuration: str  # short hash of the settings
    replicate: Replicate
    values: Values  # what was chosen from the ranges
    stages: Mapping[str, Stage]
    until: Until | None = None  # a rung: one part trained for its first epochs only
    pair: bool = False  # whether it holds no more than a pairwise probe of this cell with another


@dataclass
class Run:
    """Facts that programs need, and what they leave behind for the results."""

    study: Study
    digest_of: DigestOf  # the content of a data set
    storage: BaseStorage
    elapsed: Callable[[], float] = lambda: 0.0  # seconds since this run of the study began
    gpu_seconds: Callable[[str], float] = lambda fingerprint: 0.0  # that a stage run took, a stored one included
    is_stored: Callable[[str], bool] = lambda fingerprint: False
    earlier: Callable[[], Iterable[Mapping[str, Any]]] = lambda: ()  # what the store tells of its stage runs
    suggest_by: schema.Tune | None = None  # where values are not suggested as the study says: in a plan, at random
    search_prefix: str = ""  # of the names of searches, where a database holds those of several studies
    replicates: list[ReplicatePlan] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # what went wrong
    notes: list[str] = field(default_factory=list)  # what should be known beside the table
    trials: list[TrialRecord] = field(default_factory=list)
    open_searches: int = 0

    def plan_replicates(
        self,
        phase: Phase,
        cell: Cell,
        values: Values,
        seeds: Sequence[Replicate],
        until: Until | None = None,
    ) -> list[ReplicatePlan]:
        """Note that replicates are needed; their test set is measured in the confirm phase alone."""
        configuration = cell.configuration(values_or_centres(values))
        short = hashlib.sha256(configuration.model_dump_json().encode()).hexdigest()[:8]
        header, on_test = self.study.header, phase == "confirm"
        plans = [
            ReplicatePlan(
                phase,
                cell,
                short,
                seed,
                values,
                stages_of(configuration, seed, header, self.digest_of, on_test, until),
                until,
            )
            for seed in seeds
        ]
        self.replicates += plans
        return plans


def values_or_centres(values: Values) -> space.Suggest:
    """The values found so far; the centre of every other range."""
    return lambda name, item: values[name] if name in values else space.centre(name, item)


def stages_in(plans: Iterable[ReplicatePlan]) -> dict[str, Stage]:
    """Distinct stages by fingerprint, in the order in which they were asked for."""
    return {stage.fingerprint: stage for plan in plans for stage in plan.stages.values()}
