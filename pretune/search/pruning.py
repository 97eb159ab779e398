"""How the configurations of one batch are measured: all seeds at once, in a race over seeds, or up rungs of epochs.

Generators like the programs: they yield the stages that they wait for and are sent their outcomes. Each ends with a
verdict on every configuration. Configurations of one batch are compared with each other and with what earlier batches
found, never with what happens to be finished elsewhere, so no verdict depends on timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pretune.outcomes import Outcome, Outcomes
from pretune.search.racing import Noise, clearly_worse, residual
from pretune.search.replicates import ReplicatePlan, Run, TrialEnd, TrialResult, Values
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.metrics import parse
from pretune.search_spaces.stages import Replicate, Stage, Until, replicates

Target = Callable[[ReplicatePlan], tuple[Stage, str]]  # which stage's metric scores a replicate


@dataclass(frozen=True)
class Trial:
    """A configuration that was asked for."""

    index: int
    values: Values


Verdicts = dict[int, TrialResult]  # by index
Measuring = Generator[Sequence[Stage], Outcomes, Verdicts]


@dataclass
class Contest:
    """One search's configurations, and what the batches so far have shown."""

    run: Run
    part: str  # pretrain or finetune: whose ranges are searched
    cells: Sequence[Cell]  # which score it
    target: Target
    sign: float  # -1 where the target is minimised
    uses: list[ReplicatePlan] = field(default_factory=list)
    best: TrialResult | None = None  # of the configurations that went the whole way
    asked: int = 0  # configurations that took part in races so far
    noise: Noise = field(default_factory=Noise)  # pooled over the races so far
    on_rung: dict[int, list[float]] = field(default_factory=dict)  # epochs -> values of all that were judged there

    def measure(self, trials: Sequence[Trial]) -> Measuring:
        """Verdicts on a batch, by the way that the study chose."""
        tune = self.run.study.header.tune
        verdicts = yield from (
            self._race(trials) if tune.racing else self._climb(trials) if tune.rungs else self._all_seeds(trials)
        )
        for verdict in verdicts.values():
            if verdict.told == "complete" and self._better(verdict, self.best):
                self.best = verdict
        return verdicts

    # --------------------------------------------------------------------------------------------- three ways

    def _all_seeds(self, trials: Sequence[Trial]) -> Measuring:
        seeds = replicates(self.run.study.header.seeds, "search")
        uses = {trial.index: self._ask(trial, seeds) for trial in trials}
        outcomes = yield self._targets(uses.values())
        return {index: self.judged(asked, outcomes) for index, asked in uses.items()}

    def _race(self, trials: Sequence[Trial]) -> Measuring:
        """A few seeds for all, then more for those that are not clearly worse than the best."""
        racing, seeds = self.run.study.header.tune.racing, replicates(self.run.study.header.seeds, "search")
        assert racing is not None
        looks = math.ceil((len(seeds) - racing.first) / racing.step)
        uses: dict[int, list[ReplicatePlan]] = {trial.index: [] for trial in trials}
        outcomes: dict[str, Outcome] = {}
        verdicts: Verdicts = {}
        alive, given, n, noise = list(trials), 0, racing.first, Noise()
        self.asked += len(trials)
        while alive:
            new = {trial.index: self._ask(trial, seeds[given:n]) for trial in alive}
            outcomes |= yield self._targets(new.values())
            for index, more in new.items():
                uses[index] += more
                verdicts[index] = self.judged(uses[index], outcomes)
            alive = [trial for trial in alive if verdicts[trial.index].told == "complete"]
            if n == len(seeds):
                break
            rows = [verdicts[trial.index].scores for trial in alive]
            rows += [self.best.scores[:n]] if self.best is not None else []
            if len(rows) >= 2:
                scores = self.sign * np.array(rows)
                noise = residual(np.unique(scores, axis=0))  # a configuration asked twice tells of no more noise
                # Bonferroni over looks, and over who of all so far might be the best by chance: the incumbent was
                # chosen on these very seeds
                level = racing.alpha / looks / max(1, self.asked - 1)
                for row, gap, p in clearly_worse(scores, self.noise + noise, level):
                    if row < len(alive):
                        index = alive[row].index
                        why = (
                            f"raced out after {n} of {len(seeds)} seeds: {abs(gap):.4g} worse than the best, p {p:.2g}"
                        )
                        verdicts[index] = replace(verdicts[index], told="partial", reached=n, reason=why)
            alive = [trial for trial in alive if verdicts[trial.index].told == "complete"]
            given, n = n, min(len(seeds), n + racing.step)
        self.noise += noise
        return self._adjusted(verdicts)

    def _climb(self, trials: Sequence[Trial]) -> Measuring:
        """A few epochs for all, then the rest of the training for those that the rule lets go on."""
        rungs, seeds = self.run.study.header.tune.rungs, replicates(self.run.study.header.seeds, "search")
        assert rungs is not None
        part, verdicts = ("pretrain" if self.part == "pretrain" else "finetune"), Verdicts()
        alive = list(trials)
        for epochs in (*rungs.epochs, None):
            until = None if epochs is None else Until(part, epochs)  # type: ignore[arg-type]
            uses = {trial.index: self._ask(trial, seeds, until) for trial in alive}
            outcomes = yield self._targets(uses.values())
            verdicts |= {index: self.judged(asked, outcomes) for index, asked in uses.items()}
            alive = [trial for trial in alive if verdicts[trial.index].told == "complete"]
            if epochs is None or not alive:
                break
            values = {trial.index: self.sign * (verdicts[trial.index].value or 0.0) for trial in alive}
            self.on_rung.setdefault(epochs, []).extend(values.values())
            going, why = self._going_on(values, epochs)
            for index in values.keys() - going:
                reason = f"stopped after {epochs} epochs: {why}"
                verdicts[index] = replace(verdicts[index], told="partial", reached=epochs, reason=reason)
            alive = [trial for trial in alive if trial.index in going]
        return verdicts

    def _going_on(self, values: dict[int, float], epochs: int) -> tuple[set[int], str]:
        """Which go on from a rung; of equals the first asked."""
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

    def _ask(self, trial: Trial, seeds: Sequence[Replicate], until: Until | None = None) -> list[ReplicatePlan]:
        asked = [u for cell in self.cells for u in self.run.use("search", cell, trial.values, seeds, until)]
        self.uses += asked
        return asked

    def _targets(self, groups: object) -> list[Stage]:
        return [self.target(use)[0] for uses in groups for use in uses]  # type: ignore[attr-defined]

    def judged(self, uses: Sequence[ReplicatePlan], outcomes: Outcomes) -> TrialResult:
        """What is found of a configuration that went as far as it was asked to go."""
        tune = self.run.study.header.tune
        ends = [outcomes[self.target(use)[0].fingerprint] for use in uses]
        metric = self.target(uses[0])[1]
        told, value = judge(ends, metric)
        if value is None:
            return TrialResult(told, reason=next((end.cause for end in ends if end.cause), f"{metric} is not finite"))
        seeds = list(dict.fromkeys(use.replicate for use in uses))
        scores = tuple(
            float(
                np.mean([measured(end, metric) for use, end in zip(uses, ends, strict=True) if use.replicate == seed])
            )
            for seed in seeds
        )
        also = tuple(float(np.mean([measured(end, name) for end in ends])) for name in tune.also)
        over = tuple(max(measured(end, name) for end in ends) - bound for name, bound in tune.constraints.items())
        if not all(math.isfinite(number) for number in (*also, *over)):
            return TrialResult("infeasible", reason=f"{', '.join((*tune.also, *tune.constraints))}: not all measured")
        broken = [
            f"{name} above {tune.constraints[name]:g}"
            for name, by in zip(tune.constraints, over, strict=True)
            if by > 0
        ]
        if broken:
            return TrialResult("infeasible", value, 0, "; ".join(broken), scores, also, over)
        return TrialResult("complete", value, 0, "", scores, also, over)

    def _adjusted(self, verdicts: Verdicts) -> Verdicts:
        """What left the race early is told with the mean it would have on all seeds if it kept its distance to the
        best: a mean over easy seeds alone would flatter it."""
        reference = self.best
        for verdict in verdicts.values():
            if verdict.told == "complete" and self._better(verdict, reference):
                reference = verdict
        if reference is None:
            return verdicts
        whole = float(np.mean(reference.scores))
        return {
            i: replace(v, value=float(np.mean(v.scores)) + whole - float(np.mean(reference.scores[: v.reached])))
            if v.told == "partial"
            else v
            for i, v in verdicts.items()
        }

    def _better(self, verdict: TrialResult, other: TrialResult | None) -> bool:
        assert verdict.value is not None
        return other is None or other.value is None or self.sign * verdict.value > self.sign * other.value


def judge(outcomes: Sequence[Outcome], metric: str) -> tuple[TrialEnd, float | None]:
    """What to tell of a configuration: never a mean over survivors. One without the metric has no value to tell."""
    if any(outcome.state == "crashed" or outcome.root == "crashed" for outcome in outcomes):
        return "failed", None
    if any(outcome.state == "diverged" or outcome.root == "diverged" for outcome in outcomes):
        return "infeasible", None
    value = float(np.mean([measured(outcome, metric) for outcome in outcomes]))
    return ("complete", value) if math.isfinite(value) else ("infeasible", None)


def measured(outcome: Outcome, metric: str) -> float:
    """A metric of a stage run, or what it cost."""
    return float((outcome.costs if parse(metric).part == "cost" else outcome.metrics).get(metric, math.nan))
