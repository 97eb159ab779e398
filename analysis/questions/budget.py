"""The best of a search by the number of its trials, and what more trials would bring.

The best so far is a fact about one order of trials. The expected best of n trials is its mean over all orders in which
the same configurations could have been tried (Dodge et al. 2019, here without replacement): of ranked scores v_1 <= ...
<= v_N it is the sum of v_i C(i - 1, n - 1) / C(N, n). With several search seeds a configuration is chosen by all but
one of them and scored by that one, on the average over seeds, or the best would rise by luck alone.

How a budget goes on is said of trials that were drawn at random, and of two search seeds or more. The expected best
grows ever more slowly with n (it is concave), so that N further trials bring at most twice what the second half of the
N brought. Its interval is the 2.5th to 97.5th percentile over resampled trials. Simulated (300 searches each of 8 to 64
trials, one to five parameters), that interval covers in 92 to 100 %, of exponential tails in 82 to 93 %; where nothing
is to be gained "still rising" is said in at most 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pretune.analysis.questions.pairs import pooled_std
from pretune.analysis.questions.searched import SearchRuns, seed_std
from pretune.analysis.statistics import ALPHA, Array, Interval
from pretune.search_spaces.words import counted

Trend = Literal["rising", "flat", "open", ""]

RANDOM = ("random", "qmc")  # samplers of which more trials would be like those there are
_FEWEST = 8  # trials that went the whole way, below which nothing is said of more of them
_RESAMPLES = 400
_MOST_POINTS = 60  # numbers of trials at which an expectation is drawn


class Budget(NamedTuple):
    """One search over its trials, those that were lost included; scores as the metric has them."""

    search: str
    metric: str
    best: Array  # so far, in the order in which trials were asked for, (trials,); NaN before the first score
    n: NDArray[np.int64]  # numbers of trials with an expectation, (points,); () of a sampler that learns
    expected: Array  # best of n
    low: Array  # 95 %, pointwise
    high: Array
    held_out: bool  # whether the expectation is scored on a seed that did not choose
    gain: Interval  # of the second half of the trials, larger is better; NaN where nothing is said
    ahead: float  # at most so much would as many trials again bring; NaN where nothing is said
    noise: float  # standard deviation over search seeds
    trend: Trend
    sentence: str
    minimize: bool = False


def budgets(found: Sequence[SearchRuns]) -> tuple[Budget, ...]:
    """One for each search in which three trials or more were tried and one has a score."""
    return tuple(_budget(search) for search in found if search.trials and len(search.trials) + len(search.lost) >= 3)


def _budget(search: SearchRuns) -> Budget:
    sign = -1.0 if search.minimize else 1.0
    best, place = _so_far(search, sign)
    noise = pooled_std([seed_std(trial) for trial in search.trials]) or math.nan
    none, empty = Interval(math.nan, math.nan, math.nan), np.empty(0)
    found = Budget(
        search.name, search.metric, best, np.empty(0, np.int64), empty, empty, empty, False, none, math.nan, noise, "",
        f"the best of {counted(len(best), 'trial')} was number {place}", search.minimize,
    )  # fmt: skip
    if not search.designed or len(search.trials) < 3:
        learns = "" if search.designed else "; more trials cannot be predicted, because each depends on earlier ones"
        return found._replace(sentence=found.sentence + learns)
    table = _table(search, sign)
    n = _numbers(len(table))
    expected, bands = _expected(table[None], n)[0], _resampled(table, n)
    low, high = np.nanquantile(bands, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    found = found._replace(
        n=n,
        expected=sign * expected,
        low=np.minimum(sign * low, sign * high),
        high=np.maximum(sign * low, sign * high),
        held_out=table.shape[1] > 1,
    )
    return _continued(found, search, expected, bands)


def _continued(found: Budget, search: SearchRuns, expected: Array, bands: Array) -> Budget:
    """With what is said of more trials, where anything is."""
    if search.sampler not in RANDOM:
        return found
    if not found.held_out:
        why = "with one search seed, the noise in this rise is unknown"
        return found._replace(sentence=f"{found.sentence}; {why}")
    if len(search.trials) < _FEWEST:
        return found._replace(
            sentence=f"{found.sentence}; too few to say whether more would help (at least {_FEWEST} are needed)"
        )
    count, half = int(found.n[-1]), int(np.flatnonzero(found.n == found.n[-1] // 2)[0])
    gains = bands[:, -1] - bands[:, half]
    gain = Interval(
        float(expected[-1] - expected[half]), *map(float, np.nanquantile(gains, [ALPHA / 2, 1 - ALPHA / 2]))
    )
    ahead = max(0.0, 2 * gain.high)
    trend: Trend = "flat" if ahead < found.noise else "rising" if gain.low > 0 else "open"
    return found._replace(
        gain=gain, ahead=ahead, trend=trend, sentence=_sentence(trend, gain, ahead, found.noise, count)
    )


def _sentence(trend: Trend, gain: Interval, ahead: float, noise: float, count: int) -> str:
    size, low, high = (f"{value:+.3f}".replace("-", "−") for value in gain)
    second = f"the second half of {count} trials improved the best by {size} [{low}, {high}]"
    if trend == "flat":
        noisy = f"which is less than the noise of seeds ({noise:.3f})"
        return f"flat: {count} more trials would bring at most {ahead:.3f}, {noisy}"
    if trend == "rising":
        return f"still rising: {second}; {count} more would bring at most {ahead:.3f}"
    return f"it is open whether more trials help: {second}; {count} more would bring at most {ahead:.3f}"


# ------------------------------------------------------------------------------------------------------------- parts


def _so_far(search: SearchRuns, sign: float) -> tuple[Array, int]:
    """The best so far after each trial, and the number of the trial that is the best, from 1."""
    tried = [(trial.position, trial.score) for trial in search.trials] + [
        (trial.position, math.nan) for trial in search.lost
    ]
    tried.sort(key=lambda one: one[0])
    scores = sign * np.array([score for _, score in tried], np.float64)
    return sign * np.fmax.accumulate(scores), int(np.nanargmax(scores)) + 1


def _table(search: SearchRuns, sign: float) -> Array:
    """(trials, seeds), larger is better; a trial without a score at each seed is NaN, as is one that was lost."""
    seeds = sorted({seed for trial in search.trials for seed in trial.by_seed})
    if not seeds:
        rows = [[trial.score] for trial in search.trials]
    else:
        rows = [[trial.by_seed.get(seed, math.nan) for seed in seeds] for trial in search.trials]
    rows += [[math.nan] * max(1, len(seeds))] * len(search.lost)
    table = sign * np.array(rows, np.float64)
    table[np.isnan(table).any(axis=1)] = math.nan
    return table


def _numbers(trials: int) -> NDArray[np.int64]:
    """Numbers of trials from 1 to all, their half among them."""
    spaced = np.linspace(1, trials, min(trials, _MOST_POINTS)).round().astype(np.int64)
    return np.unique([*spaced, max(1, trials // 2), trials])


def chances(trials: int, n: NDArray[np.int64]) -> Array:
    """(points, trials): the chance that the i-th smallest of all is the largest of n drawn without replacement."""
    rank, drawn = np.arange(1, trials + 1)[None, :], n[:, None]
    fits = rank >= drawn
    logs = _log_choose(np.where(fits, rank - 1, drawn - 1), drawn - 1) - _log_choose(np.full_like(drawn, trials), drawn)
    return np.where(fits, np.exp(logs), 0.0)


def _log_choose(of: NDArray[np.int64], taken: NDArray[np.int64]) -> Array:
    return np.asarray(
        special.gammaln(of + 1) - special.gammaln(taken + 1) - special.gammaln(of - taken + 1), np.float64
    )


def _expected(tables: Array, n: NDArray[np.int64]) -> Array:
    """(resamples, points) from (resamples, trials, seeds), given that one of the n has a score."""
    weights = chances(tables.shape[1], n)
    total, seeds = tables.sum(axis=2), tables.shape[2]
    parts = []
    for seed in range(seeds):
        own = tables[:, :, seed]
        by = total - own if seeds > 1 else own
        order = np.argsort(np.where(np.isnan(by), -math.inf, by), axis=1, kind="stable")
        scored = np.take_along_axis(own, order, axis=1)
        known = np.isfinite(scored)
        sums, given = np.where(known, scored, 0.0) @ weights.T, known.astype(np.float64) @ weights.T
        parts.append(np.divide(sums, given, out=np.full(sums.shape, math.nan), where=given > 0))
    return np.asarray(np.mean(parts, axis=0), np.float64)


def _resampled(table: Array, n: NDArray[np.int64]) -> Array:
    """(resamples, points): the expectation over trials drawn anew."""
    drawn = np.random.default_rng(0).integers(len(table), size=(_RESAMPLES, len(table)))
    return _expected(table[drawn], n)
