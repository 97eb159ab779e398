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

from pretune.analysis.load.replicates import ReplicateResult, independent_values, replicate_results
from pretune.analysis.load.results import StoredCell, StudyHeader
from pretune.analysis.questions.curves import amounts, is_logarithmic, settings_beside
from pretune.analysis.statistics import ALPHA, Array
from pretune.search_spaces.metrics import sign_of

_POINTS = 400  # amounts at which the baseline is looked at


class Saving(NamedTuple):
    """One setting at its smallest amount, and the amount at which the baseline scores the same."""

    setting: str  # 'start=pretrained'
    baseline: str
    amount: float
    score: float  # of the setting at this amount
    equal: float  # inf: the baseline is worse at its largest amount; 0: it is better at its smallest
    low: float  # 95 %; 0 and inf where nothing bounds it
    high: float
    smallest: float  # amount of the baseline
    largest: float
    n: int  # paired seeds

    @property
    def sentence(self) -> str:
        """'start=pretrained with 50 labels scores what start=random does with 205 (95 %: 160 to 260; 5 seeds)'."""
        if math.isinf(self.equal):
            amount = f"better than {self.baseline} does with {_shown(self.largest)}, the most tried"
        elif self.equal == 0:
            amount = f"worse than {self.baseline} does with {_shown(self.smallest)}, the fewest tried"
        else:
            amount = f"what {self.baseline} does with about {_shown(self.equal)}"
        return f"{self.setting} with {_shown(self.amount)} scores {amount} {self._sure}"

    @property
    def _sure(self) -> str:
        """'(95 %: 160 to 260; 5 seeds)'; without the interval where every amount is shown to differ."""
        if self.low == self.high:
            return f"({self.n} seeds)"
        low = f"fewer than {_shown(self.smallest)}" if self.low == 0 else _shown(self.low)
        high = f"more than {_shown(self.largest)}" if math.isinf(self.high) else _shown(self.high)
        return f"(95 %: {low} to {high}; {self.n} seeds)"


def _shown(amount: float) -> str:
    return f"{amount:.0f}" if amount >= 20 else f"{amount:.3g}"


def savings(results: pandas.DataFrame, header: StudyHeader, factor: str, metric: str) -> tuple[Saving, ...]:
    """One for each setting of the other factors beside the baseline; () without a baseline or two seeds, and for a
    metric without a direction.

    Raises ResultsError as `replicate_results` does.
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
    log = is_logarithmic(described[1])
    sign = sign_of(direction)
    made = (_saving(name, curves[name], baseline, curves[baseline], log, sign) for name in groups if name != baseline)
    return tuple(saving for saving in made if saving is not None)


def _matches(cell: StoredCell, chosen: Mapping[str, str]) -> bool:
    return all(cell.levels.get(name) == level for name, level in chosen.items())


def _by_amount(
    cells: Sequence[StoredCell], at: Mapping[str, float], factor: str, found: Mapping[str, tuple[ReplicateResult, ...]]
) -> dict[float, dict[int, float]]:
    """Amount -> seed -> score, of the amounts that have any, ascending."""
    values = {at[cell.levels[factor]]: independent_values(found[cell.label]) for cell in cells}
    return {amount: values[amount] for amount in sorted(values) if values[amount]}


def _saving(
    name: str,
    ours: Mapping[float, Mapping[int, float]],
    baseline: str,
    theirs: Mapping[float, Mapping[int, float]],
    log: bool,
    sign: float,
) -> Saving | None:
    if not ours or len(theirs) < 2:
        return None
    amount = min(ours)
    seeds = sorted(set(ours[amount]).intersection(*(set(part) for part in theirs.values())))
    if len(seeds) < 2:
        return None
    x = np.array(list(theirs), np.float64)
    table = np.array([[part[seed] for part in theirs.values()] for seed in seeds], np.float64)
    mine = np.array([ours[amount][seed] for seed in seeds], np.float64)
    place = np.log(x) if log else x
    fine = np.linspace(place[0], place[-1], _POINTS)
    lines = np.array([np.interp(fine, place, row) for row in table], np.float64)  # (seeds, points)
    shown = np.exp(fine) if log else fine
    equal = _crossing(sign * (lines.mean(axis=0) - float(mine.mean())), shown)
    low, high = _not_shown_to_differ(mine[:, None] - lines, shown, equal)
    return Saving(name, baseline, amount, float(mine.mean()), equal, low, high, float(x[0]), float(x[-1]), len(seeds))


def _crossing(ahead: Array, amount: Array) -> float:
    """The amount at which the baseline first comes to the score; inf beyond its last amount, 0 before its first.

    `ahead` (amounts,) is how much better the baseline is, so a curve that falls is not taken for one that lags behind.
    """
    if ahead[0] > 0:
        return 0.0
    if ahead[-1] < 0:
        return math.inf
    return float(amount[int(np.argmax(ahead >= 0))])


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
    low = 0.0 if kept[0] == 0 else float(amount[kept[0]])
    return low, math.inf if kept[-1] == len(amount) - 1 else float(amount[kept[-1]])
