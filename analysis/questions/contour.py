"""The score over two ranges of one search: a smooth surface through its trials, where it predicts trials at all.

A thin-plate spline over the two parameters (over their logarithms where the range is one), least squares with a
penalty on bending that makes left-out trials fit best; all other parameters vary at random and are noise here. It is
there only if it predicts trials that it has not seen better than in 95 % of permutations of the scores (Bonferroni over
the pairs of a search), and it is drawn only between trials (inside their convex hull).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import Delaunay, QhullError

from pretune.analysis.questions.pairs import SPAN, pooled_std
from pretune.analysis.questions.searched import PARTIAL, SearchRuns, place_of, seed_std, varied
from pretune.analysis.statistics import ALPHA, Array

FEWEST = 20  # trials that went the whole way
_GRID = 41  # points along each range
_PENALTIES = np.logspace(-6, 3, 13)
_PERMUTATIONS = 999
_DISTINCT = 5  # values of a parameter, fewer of which are levels: a heat map shows them


class Surface(NamedTuple):
    """One pair of ranges."""

    search: str
    metric: str
    x_name: str
    y_name: str
    x: Array  # (points,) of the grid
    y: Array
    values: Array  # (y, x); NaN outside of the trials
    log: tuple[bool, bool]
    trials: Array  # (trials, 3): x, y, score
    lost: Array  # (lost, 2) of trials that failed
    predicted: float  # share of the variance of trials not seen that is predicted
    span: float  # least width of the colour scale
    best: tuple[float, float, float]  # x, y and value at the best place of the surface


def surfaces(search: SearchRuns, ranges: Mapping[str, Any]) -> tuple[Surface, ...]:
    """One for each pair of ranges of which the search has trials enough and that says something."""
    names = [name for name in varied(search) if _is_range(search, name, ranges.get(name, {}))]
    pairs = list(combinations(names, 2))
    if len(search.trials) < FEWEST:
        return ()
    found = (_surface(search, x, y, ranges, ALPHA / len(pairs)) for x, y in pairs)
    return tuple(one for one in found if one is not None)


def _is_range(search: SearchRuns, name: str, described: Mapping[str, Any]) -> bool:
    values = [trial.values.get(name) for trial in search.trials]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and "choice" not in described and len(set(values)) > _DISTINCT


def _surface(search: SearchRuns, x: str, y: str, ranges: Mapping[str, Any], alpha: float) -> Surface | None:
    log = (_is_log(ranges.get(x, {})), _is_log(ranges.get(y, {})))
    raw = np.array([[place_of(trial.values[name]) for name in (x, y)] for trial in search.trials], np.float64)
    score = np.array([trial.score for trial in search.trials], np.float64)
    places = np.where(log, np.log(np.where(log, raw, 1.0)), raw)
    low, width = places.min(axis=0), np.ptp(places, axis=0)
    unit = (places - low) / width
    try:
        hull = Delaunay(unit)
    except QhullError:  # trials on a line
        return None
    fit = _Spline(unit)
    predicted, penalty, p = fit.chosen(score)
    if p > alpha:
        return None
    line = np.linspace(0, 1, _GRID)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    values = np.where(hull.find_simplex(grid) >= 0, fit.at(grid, score, penalty), math.nan).reshape(_GRID, _GRID)
    axes = [np.exp(low[i] + line * width[i]) if log[i] else low[i] + line * width[i] for i in range(2)]
    top = np.unravel_index(int((np.nanargmin if search.minimize else np.nanargmax)(values)), values.shape)
    lost = [[place_of(one.values[name]) for name in (x, y)] for one in search.lost
            if one.ending != PARTIAL and x in one.values and y in one.values]  # fmt: skip
    return Surface(
        search.name, search.metric, x, y, axes[0], axes[1], values, log, np.column_stack([raw, score]),
        np.array(lost, np.float64).reshape(-1, 2), predicted,
        SPAN * pooled_std([seed_std(trial) for trial in search.trials]),
        (float(axes[0][top[1]]), float(axes[1][top[0]]), float(values[top])),
    )  # fmt: skip


def _is_log(described: Mapping[str, Any]) -> bool:
    return bool(described.keys() & {"log_uniform", "log_int"})


class _Spline:
    """A thin-plate spline through places `(n, 2)` in the unit square, for any scores and penalty."""

    def __init__(self, places: Array) -> None:
        self.places = places
        self.plane = np.column_stack([np.ones(len(places)), places])
        self.kernel = _kernel(places, places)
        self.fits = [self._fit(penalty) for penalty in _PENALTIES]  # score -> weights and plane, each (n + 3, n)
        self.hats = [np.hstack([self.kernel, self.plane]) @ fit for fit in self.fits]

    def _fit(self, penalty: float) -> Array:
        count = len(self.places)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = self.kernel + penalty * np.eye(count)
        system[:count, count:], system[count:, :count] = self.plane, self.plane.T
        return np.asarray(np.linalg.pinv(system)[:, :count], np.float64)

    def errors(self, scores: Array) -> Array:
        """(penalties, columns): mean squared errors of each trial predicted from all others; scores (n, columns)."""
        found = []
        for hat in self.hats:
            left = np.maximum(1 - np.diag(hat), 1e-6)[:, None]
            found.append(np.mean(((scores - hat @ scores) / left) ** 2, axis=0))
        return np.array(found, np.float64)

    def chosen(self, score: Array) -> tuple[float, int, float]:
        """The share of variance predicted at the best penalty, its number, and p of so much by permutation."""
        generator, count = np.random.default_rng(0), len(score)
        permuted = generator.permuted(np.tile(score[:, None], (1, _PERMUTATIONS)), axis=0)
        errors = self.errors(np.column_stack([score, permuted]))
        of_mean = float(np.mean(((score - score.mean()) * count / (count - 1)) ** 2))
        if of_mean == 0:
            return 0.0, 0, 1.0
        best = errors.min(axis=0)
        p = float((1 + np.sum(best[1:] <= best[0])) / (1 + _PERMUTATIONS))
        return 1 - float(best[0]) / of_mean, int(errors[:, 0].argmin()), p

    def at(self, places: Array, score: Array, penalty: int) -> Array:
        basis = np.hstack([_kernel(places, self.places), np.ones((len(places), 1)), places])
        return np.asarray(basis @ (self.fits[penalty] @ score), np.float64)


def _kernel(a: Array, b: Array) -> Array:
    squares = np.sum((a[:, None] - b[None]) ** 2, axis=-1)
    return np.asarray(
        np.where(squares > 0, 0.5 * squares * np.log(np.where(squares > 0, squares, 1.0)), 0.0), np.float64
    )


def without_surface(pairs_of: Sequence[tuple[str, str, str]], found: Sequence[Surface]) -> list[int]:
    """The places of those (search, one, other) that no surface shows."""
    shown = {(one.search, frozenset((one.x_name, one.y_name))) for one in found}
    return [i for i, (name, a, b) in enumerate(pairs_of) if (name, frozenset((a, b))) not in shown]
