"""Measuring the trials of one batch: all seeds at once, in a race over seeds, or up rungs of epochs.

Generators like the programs: they yield the stages that they wait for and are sent their outcomes. Each ends with a
result of every trial. Trials of one batch are compared with each other and with what earlier batches
found, never with what happens to be finished elsewhere, so no result depends on timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pretune.outcomes import Outcome, Outcomes
from pretune.search.racing import Noise, clearly_worse, residual
from pretune.search.replicates import ReplicatePlan, Run, TrialEnd, TrialResult, Values
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.metrics import Bound, parts_of
from pretune.search_spaces.stages import Replicate, Stage, Until, replicates
from pretune.search_spaces.words import counted

Target = Callable[[ReplicatePlan], tuple[Stage, str]]  # which stage's metric scores a replicate


@dataclass(frozen=True)
class SuggestedTrial:
    """A trial whose values were suggested, and that is to be measured."""

    index: int
    values: Values


GOES_ON = ("complete", "unscored")  # results that speak against no trial: it gets more seeds or epochs

TrialResults = dict[int, TrialResult]  # by index
Measuring = Generator[Sequence[Stage], Outcomes, TrialResults]


@dataclass
class Pruning:
    """Measures the trials of one search, and stops those early that the batches so far show to be worse."""

    run: Run
    part: str  # pretrain or finetune: whose ranges are searched
    cells: Sequence[Cell]  # which score it
    target: Target
    sign: float  # -1 where the target is minimised
    plans: list[ReplicatePlan] = field(default_factory=list)
    best: TrialResult | None = None  # of the trials that went the whole way
    asked: int = 0  # trials that took part in races so far
    noise: Noise = field(default_factory=Noise)  # pooled over the races so far
    on_rung: dict[int, list[float]] = field(default_factory=dict)  # epochs -> values of all that were measured there

    def measure(self, trials: Sequence[SuggestedTrial]) -> Measuring:
        """Results of a batch, by the way that the study chose."""
        tune = self.run.study.header.tune
        results = yield from (
            self._race(trials) if tune.racing else self._climb(trials) if tune.rungs else self._all_seeds(trials)
        )
        for result in results.values():
            if result.state == "complete" and self._better(result, self.best):
                self.best = result
        return results

    @property
    def metric(self) -> str:
        """The metric that scores a trial; known once one was planned."""
        return self.target(self.plans[0])[1]

    # --------------------------------------------------------------------------------------------- three ways

    def _all_seeds(self, trials: Sequence[SuggestedTrial]) -> Measuring:
        seeds = replicates(self.run.study.header.seeds, "search")
        plans = {trial.index: self._plan(trial, seeds) for trial in trials}
        outcomes = yield self._targets(plans.values())
        return {index: self.result_of(asked, outcomes) for index, asked in plans.items()}

    def _race(self, trials: Sequence[SuggestedTrial]) -> Measuring:
        """A few seeds for all, then more for those that are not clearly worse than the best."""
        racing, seeds = self.run.study.header.tune.racing, replicates(self.run.study.header.seeds, "search")
        assert racing is not None
        looks = math.ceil((len(seeds) - racing.first) / racing.step)
        plans: dict[int, list[ReplicatePlan]] = {trial.index: [] for trial in trials}
        outcomes: dict[str, Outcome] = {}
        results: TrialResults = {}
        alive, given, n, noise = list(trials), 0, racing.first, Noise()
        self.asked += len(trials)
        while alive:
            new = {trial.index: self._plan(trial, seeds[given:n]) for trial in alive}
            outcomes |= yield self._targets(new.values())
            for index, more in new.items():
                plans[index] += more
                results[index] = self.result_of(plans[index], outcomes)
            alive = [trial for trial in alive if results[trial.index].state in GOES_ON]
            if n == len(seeds):
                break
            rows = [results[trial.index].scores for trial in alive]
            rows += [self.best.scores[:n]] if self.best is not None else []
            if len(rows) >= 2 and (scores := comparable(rows, self.sign)).shape[1]:
                noise = residual(np.unique(scores, axis=0))  # a configuration asked twice tells of no more noise
                # Bonferroni over looks, and over who of all so far might be the best by chance: the incumbent was
                # chosen on these very seeds
                level = racing.alpha / looks / max(1, self.asked - 1)
                for row, gap, p in clearly_worse(scores, self.noise + noise, level):
                    if row < len(alive):
                        index = alive[row].index
                        of = f"raced out after {n} of {counted(len(seeds), 'seed')}"
                        why = f"{of}: {abs(gap):.4g} worse than the best, p {p:.2g}"
                        results[index] = replace(results[index], state="partial", reached=n, reason=why)
            alive = [trial for trial in alive if results[trial.index].state in GOES_ON]
            given, n = n, min(len(seeds), n + racing.step)
        self.noise += noise
        return self._adjusted(results)

    def _climb(self, trials: Sequence[SuggestedTrial]) -> Measuring:
        """A few epochs for all, then the rest of the training for those that the rule lets go on."""
        rungs, seeds = self.run.study.header.tune.rungs, replicates(self.run.study.header.seeds, "search")
        assert rungs is not None
        part, results = ("pretrain" if self.part == "pretrain" else "finetune"), TrialResults()
        alive = list(trials)
        for epochs in (*rungs.epochs, None):
            until = None if epochs is None else Until(part, epochs)  # type: ignore[arg-type]
            plans = {trial.index: self._plan(trial, seeds, until) for trial in alive}
            outcomes = yield self._targets(plans.values())
            results |= {index: self.result_of(asked, outcomes) for index, asked in plans.items()}
            alive = [trial for trial in alive if results[trial.index].state in GOES_ON]
            if epochs is None or not alive:
                break
            values = {i: self.sign * value for i in (t.index for t in alive) if (value := results[i].value) is not None}
            self.on_rung.setdefault(epochs, []).extend(values.values())
            going, why = self._going_on(values, epochs)
            for index in values.keys() - going:
                reason = f"stopped after {counted(epochs, 'epoch')}: {why}"
                results[index] = replace(results[index], state="partial", reached=epochs, reason=reason)
            alive = [trial for trial in alive if results[trial.index].state in GOES_ON]
        return results

    def _going_on(self, values: dict[int, float], epochs: int) -> tuple[set[int], str]:
        """Return those that go on from a rung; of equals the first asked."""
        tune = self.run.study.header.tune
        assert tune.rungs is not None
        if tune.rungs.rule == "halving":
            count = math.ceil(len(values) * tune.rungs.keep)
            order = sorted(values, key=lambda index: (-values[index], index))
            return set(order[:count]), f"not among the best {count} of {len(values)}"
        known = self.on_rung[epochs]
        if len(known) < max(2, tune.startup):
            return set(values), ""
        median = float(np.median(known))
        return {i for i, value in values.items() if value >= median}, "worse than the median of all so far"

    # ------------------------------------------------------------------------------------------------- judging

    def _plan(
        self, trial: SuggestedTrial, seeds: Sequence[Replicate], until: Until | None = None
    ) -> list[ReplicatePlan]:
        run = self.run
        new = [plan for cell in self.cells for plan in run.plan_replicates("search", cell, trial.values, seeds, until)]
        self.plans += new
        return new

    def _targets(self, groups: object) -> list[Stage]:
        return [self.target(plan)[0] for plans in groups for plan in plans]  # type: ignore[attr-defined]

    def result_of(self, plans: Sequence[ReplicatePlan], outcomes: Outcomes) -> TrialResult:
        """Result of a trial that went as far as it was to go.

        Each metric is a mean (a constraint: the worst) over the replicates that have a score in it. A class that is in
        neither truth nor prediction has none, which is no fault of the configuration.
        """
        tune, metric = self.run.study.header.tune, self.target(plans[0])[1]
        ends = [outcomes[self.target(plan)[0].fingerprint] for plan in plans]
        if (state := end_of(ends)) != "complete":
            return TrialResult(state, reason=next((end.cause for end in ends if end.cause), state))
        names = (metric, *tune.also, *tune.constraints)
        found = {name: [value for end in ends if (value := measured(end, name)) is not None] for name in names}
        if broken := [name for name, values in found.items() if not np.isfinite(values).all()]:
            return TrialResult("infeasible", reason=f"{', '.join(broken)}: not finite")
        scores = seed_scores(plans, [measured(end, metric) for end in ends])
        if missing := [name for name, values in found.items() if not values]:
            return TrialResult("unscored", reason=f"no replicate has a score in {', '.join(missing)}", scores=scores)
        value, *also = (float(np.mean(found[name])) for name in (metric, *tune.also))
        bounds = [Bound(name, bound) for name, bound in tune.constraints.items()]
        over = tuple(bound.excess(found[bound.metric]) for bound in bounds)
        exceeded = "; ".join(f"{bound.metric} {bound.side}" for bound, by in zip(bounds, over, strict=True) if by > 0)
        state = "infeasible" if exceeded else "complete"
        unscored = sum(math.isnan(score) for score in scores)
        said = f"no score at {unscored} of {counted(len(scores), 'seed')}" if unscored else ""
        return TrialResult(state, value, 0, "; ".join(filter(None, (exceeded, said))), scores, tuple(also), over)

    def _adjusted(self, results: TrialResults) -> TrialResults:
        """Return the results; trials that left the race early get the mean of all seeds at their distance to the best.

        A mean over easy seeds alone would flatter them.
        """
        reference = self.best
        for result in results.values():
            if result.state == "complete" and self._better(result, reference):
                reference = result
        if reference is None:
            return results
        return {
            i: replace(result, value=adjusted(result, reference.scores)) if result.state == "partial" else result
            for i, result in results.items()
        }

    def _better(self, result: TrialResult, other: TrialResult | None) -> bool:
        assert result.value is not None
        return other is None or other.value is None or self.sign * result.value > self.sign * other.value


def comparable(rows: Sequence[tuple[float, ...]], sign: float) -> NDArray[np.float64]:
    """(trials, seeds) larger is better, of the seeds at which all of them have a score."""
    scores = sign * np.array(rows, np.float64)
    return np.asarray(scores[:, np.isfinite(scores).all(axis=0)])


def adjusted(result: TrialResult, reference: tuple[float, ...]) -> float:
    """A partial result's mean on all seeds, if it kept its distance to `reference`, which has all of them."""
    ours, theirs = np.array(result.scores), np.array(reference[: result.reached])
    both = np.isfinite(ours) & np.isfinite(theirs)
    return float(np.mean(ours[both])) + float(np.nanmean(reference)) - float(np.mean(theirs[both]))


def end_of(outcomes: Sequence[Outcome]) -> TrialEnd:
    """The end of a trial whose replicates ended so: never a mean over survivors."""
    if any(outcome.state == "crashed" or outcome.root == "crashed" for outcome in outcomes):
        return "failed"
    if any(outcome.state == "diverged" or outcome.root == "diverged" for outcome in outcomes):
        return "infeasible"
    return "complete"


def measured(outcome: Outcome, metric: str) -> float | None:
    """A metric of a stage run, or what it cost; None where it has no score in it."""
    return (outcome.costs if parts_of(metric).part == "cost" else outcome.metrics).get(metric)


def seed_scores(plans: Sequence[ReplicatePlan], values: Sequence[float | None]) -> tuple[float, ...]:
    """By seed the mean over the cells that have a score; NaN for a seed at which none has."""
    by_seed: dict[Replicate, list[float]] = {}
    for plan, value in zip(plans, values, strict=True):
        by_seed.setdefault(plan.replicate, []).extend([] if value is None else [value])
    return tuple(float(np.mean(found)) if found else math.nan for found in by_seed.values())
