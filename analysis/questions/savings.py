"""Labels that a start saves: the amount at which the baseline scores what another setting scores with fewer.

The baseline's scores between its amounts are read off a line through them (over the logarithm where the axis has it),
seed by seed. The interval is a test turned round: the amounts at which the paired difference over seeds is not shown
to differ from zero (t-test at 5 %), so it covers in 95 % of studies where such a line is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas
from scipy import stats

from pretune.analysis.load.replicates import ReplicateResult, any_failed, independent_values, replicate_results
from pretune.analysis.load.results import StoredCell, StudyHeader
from pretune.analysis.questions.curves import amounts, is_logarithmic, settings_beside
from pretune.analysis.statistics import ALPHA, Array
from pretune.search_spaces.metrics import sign_of

_POINTS = 400  # amounts at which the baseline is looked at

Runs = Mapping[float, Mapping[tuple[int, int, int], ReplicateResult]]  # amount, ascending -> seeds -> run with a score


class Saving(NamedTuple):
    """One setting at its smallest amount, and the amount at which the baseline scores the same."""

    setting: str  # 'start=pretrained'
    baseline: str
    factor: str
    unit: str  # of amounts: '%' or ''
    amount: float
    score: float  # of the setting at this amount
    equal: float  # inf: the baseline is worse at every amount; 0: it is better at every amount
    low: float  # 95 %; 0 and inf where nothing bounds it; NaN where nothing varies over seeds
    high: float
    smallest: float  # amount of the baseline
    largest: float
    n: int  # paired seeds; pretrainings where seeds are nested
    counted: str  # 'seeds' or 'pretrainings'
    failed: bool  # runs of this setting or of the baseline failed

    @property
    def sentence(self) -> str:
        """'start=SimCLR with labels=50 scores what start=random does with about 205 (95 %: 160 to 260; 5 seeds)'."""
        if math.isinf(self.equal):
            amount = f"better than {self.baseline} does with {self.shown(self.largest)}, the most tried"
        elif self.equal == 0:
            amount = f"worse than {self.baseline} does with {self.shown(self.smallest)}, the fewest tried"
        else:
            amount = f"what {self.baseline} does with about {self.shown(self.equal)}"
        doubt = "; runs failed, which might have scored worst" if self.failed else ""
        own = f"{self.setting} with {self.factor}={self.shown(self.amount)}"
        return f"{own} scores {amount} ({self._interval}{self.n} {self.counted}{doubt})"

    @property
    def _interval(self) -> str:
        """'95 %: 160 to 260; '; without it where every amount is shown to differ."""
        if math.isnan(self.low):
            return "no interval, because nothing varies; "
        if self.low == self.high:
            return ""
        low = f"fewer than {self.shown(self.smallest)}" if self.low == 0 else self.shown(self.low)
        high = f"more than {self.shown(self.largest)}" if math.isinf(self.high) else self.shown(self.high)
        return f"95 %: {low} to {high}; "

    def shown(self, amount: float) -> str:
        """An amount that was tried as it is; one between them without false digits."""
        tried = amount in (self.amount, self.smallest, self.largest)
        return (f"{amount:g}" if tried else f"{amount:.0f}" if amount >= 20 else f"{amount:.3g}") + self.unit


def savings(results: pandas.DataFrame, header: StudyHeader, factor: str, metric: str) -> tuple[Saving, ...]:
    """One for each setting of the other factors beside the baseline; () without a baseline or two seeds, and for a
    metric without a direction.

    None of a setting whose score the baseline's curve crosses more than once, or downwards, and none where an amount of
    the baseline has no score. Raises ResultsError as `replicate_results` does.
    """
    described = amounts(header.factors.get(factor, ()))
    groups = settings_beside(header, factor)
    chosen = {name: level for name, level in header.report.baseline.items() if name != factor}
    baseline = next((name for name, cells in groups.items() if chosen and _matches(cells[0], chosen)), "")
    direction = header.definition(metric).direction
    if described is None or not baseline or len(groups) < 2 or direction is None:
        return ()
    at = dict(zip(header.factors[factor], described[1], strict=True))
    found = replicate_results(results, header, metric)
    curves = {name: _by_amount(cells, at, factor, found) for name, cells in groups.items()}
    if not all(curves[baseline].values()):
        return ()
    log, sign = is_logarithmic(described[1]), sign_of(direction)
    unit = "%" if described[0] == "percent" else ""
    counted = "pretrainings" if header.pretrainings < header.replicates else "seeds"
    made = []
    for name in groups:
        with_scores = {amount: runs for amount, runs in curves[name].items() if runs}
        if name == baseline or not with_scores:
            continue
        amount = min(with_scores)
        place = _saving(with_scores[amount], curves[baseline], log, sign)
        if place is None:
            continue
        own = next(cell for cell in groups[name] if at[cell.levels[factor]] == amount)
        failed = any(any_failed(found[cell.label]) for cell in (own, *groups[baseline]))
        ends = min(curves[baseline]), max(curves[baseline])
        score, equal, low, high, n = place
        made.append(Saving(name, baseline, factor, unit, amount, score, equal, low, high, *ends, n, counted, failed))
    return tuple(made)


def _matches(cell: StoredCell, chosen: Mapping[str, str]) -> bool:
    return all(cell.levels.get(name) == level for name, level in chosen.items())


def _by_amount(
    cells: Sequence[StoredCell], at: Mapping[str, float], factor: str, found: Mapping[str, tuple[ReplicateResult, ...]]
) -> Runs:
    runs = {
        at[cell.levels[factor]]: {run.seeds: run for run in found[cell.label] if math.isfinite(run.value)}
        for cell in cells
    }
    return {amount: runs[amount] for amount in sorted(runs)}


class _Place(NamedTuple):
    score: float
    equal: float
    low: float
    high: float
    n: int


def _saving(
    ours: Mapping[tuple[int, int, int], ReplicateResult], theirs: Runs, log: bool, sign: float
) -> _Place | None:
    """Runs are paired before fine-tunings of one pretraining are averaged, as `paired_values` does."""
    common = sorted(set(ours).intersection(*(set(part) for part in theirs.values())))
    every = [list(independent_values(tuple(runs[s] for s in common)).values()) for runs in (ours, *theirs.values())]
    if len(theirs) < 2 or len(every[0]) < 2:
        return None
    x = np.array(list(theirs), np.float64)
    mine, table = np.array(every[0], np.float64), np.array(every[1:], np.float64).T  # (pretrainings, amounts)
    place = np.log(x) if log else x
    fine = np.linspace(place[0], place[-1], _POINTS)
    lines = np.array([np.interp(fine, place, row) for row in table], np.float64)  # (pretrainings, points)
    shown = np.exp(fine) if log else fine
    shown[0], shown[-1] = x[0], x[-1]  # without the rounding of the logarithm
    rounding = 16 * float(np.finfo(np.float64).eps) * float(max(np.abs(mine).max(), np.abs(table).max()))
    equal = _crossing(sign * (lines.mean(axis=0) - float(mine.mean())), shown, rounding)
    if equal is None:
        return None
    differences = mine[:, None] - lines
    low = high = math.nan
    if np.ptp(differences, axis=0).max() > rounding:
        low, high = _not_shown_to_differ(differences, shown, equal)
    return _Place(float(mine.mean()), equal, low, high, len(mine))


def _crossing(ahead: Array, amount: Array, rounding: float) -> float | None:
    """The amount at which the baseline comes to the score; inf if at none, 0 if it is better at all.

    `ahead` (amounts,) is how much better the baseline is. None for a curve that crosses the score downwards, or more
    than once, or that lies on it everywhere.
    """
    sides = np.where(np.abs(ahead) <= rounding, 0, np.sign(ahead))
    apart = sides[sides != 0]
    turns = np.flatnonzero(np.diff(apart))
    if not len(apart) or len(turns) > 1 or (len(turns) == 1 and apart[0] > 0):
        return None
    if apart[0] > 0 and sides[0]:
        return 0.0
    reached = np.flatnonzero(sides >= 0)
    return float(amount[reached[0]]) if len(reached) else math.inf


def _not_shown_to_differ(differences: Array, amount: Array, equal: float) -> tuple[float, float]:
    """The smallest and largest amount at which the mean of `(seeds, amounts)` may be zero; 0 and inf at the ends."""
    seeds = len(differences)
    half = stats.t.ppf(1 - ALPHA / 2, seeds - 1) * differences.std(axis=0, ddof=1) / math.sqrt(seeds)
    fits = np.abs(differences.mean(axis=0)) <= half
    if math.isfinite(equal) and equal > 0:  # where the set is narrower than a step, its neighbours
        place = int(np.searchsorted(amount, equal))
        fits[max(0, place - 1) : place + 1] = True
    kept = np.flatnonzero(fits)
    if not len(kept):  # beyond one end
        return equal, equal
    low = 0.0 if kept[0] == 0 or equal == 0 else float(amount[kept[0]])
    return low, math.inf if kept[-1] == len(amount) - 1 or math.isinf(equal) else float(amount[kept[-1]])
