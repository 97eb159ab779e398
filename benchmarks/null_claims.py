"""The tests behind every claim of an answer, for thousands of studies at a time: scores in, "is anything claimed?" out.

`tests/benchmarks/test_null_claims.py` holds each equal to the function that reports use. Axes: scores are (studies,
seeds, cells), NaN for a replicate that failed; equally many fail in each study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special, stats

from pretune.analysis.statistics import ALPHA

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def holm_shows(p: Array) -> Flags:
    """(studies, tests): whether p is below 5 % after Holm's correction over its study's tests; NaN is no test."""
    order = np.argsort(p, axis=1)  # NaN last
    steps = np.maximum(np.isfinite(p).sum(axis=1)[:, None] - np.arange(p.shape[1]), 1)
    below = np.take_along_axis(p, order, axis=1) * steps < ALPHA
    shown = np.zeros(p.shape, np.bool_)
    np.put_along_axis(shown, order, np.logical_and.accumulate(below, axis=1), axis=1)
    return shown


def _t(differences: Array) -> tuple[Array, Array]:
    """t and degrees of freedom over the seeds (axis 1) that have a difference; NaN with fewer than two."""
    n = np.isfinite(differences).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(differences, axis=1) / n
        squares = np.nansum((differences - mean[:, None]) ** 2, axis=1)
        t = mean / np.sqrt(squares / (n - 1) / n)
    return np.where(n > 1, t, math.nan), np.maximum(n - 1, 1).astype(np.float64)


def failed_in(scores: Array) -> Flags:
    """(studies, cells): whether replicates of a cell failed."""
    return np.asarray(np.isnan(scores).any(axis=1))


def _unflattered(t: Array, first_failed: Flags, second_failed: Flags) -> Flags:
    """Whether the side that comes out better has all its replicates; t is of second minus first, higher is better."""
    return np.where(t > 0, ~second_failed, ~first_failed)


class BaselineClaims:
    """Comparisons with a baseline cell: paired, two-sided, Holm over the cells."""

    def __init__(self, scores: Array, baseline: int) -> None:
        t, degrees = _t(np.delete(scores, baseline, axis=2) - scores[:, :, [baseline]])
        failed = failed_in(scores)
        kept = _unflattered(t, failed[:, [baseline]], np.delete(failed, baseline, axis=1))
        self._shown = holm_shows(2 * special.stdtr(degrees, -np.abs(t))) & kept
        self._above = t > 0

    def differs(self) -> Flags:
        """Whether "H is higher and L is lower" counts any, or the figure of differences has a filled mark."""
        return np.asarray(self._shown.any(axis=1))

    def shown(self) -> Flags:
        """Whether the answer begins with "Shown"."""
        return np.asarray((self._shown & self._above).any(axis=1) | self._shown.all(axis=1))


class MarkClaims:
    """The marks of a column: one-sided paired tests of all pairs, Holm over them; cells without failures alone show."""

    def __init__(self, scores: Array) -> None:
        studies, _, cells = scores.shape
        first, second = (np.array(side) for side in zip(*_ordered_pairs(cells), strict=True))
        failed = failed_in(scores)
        t, degrees = _t(scores[:, :, second] - scores[:, :, first])
        shown = holm_shows(special.stdtr(degrees, -t)) & ~failed[:, second]
        self._worse = np.zeros((studies, cells), np.bool_)
        for cell in range(cells):
            self._worse[:, cell] = shown[:, first == cell].any(axis=1)
        self._best = np.nanmean(scores, axis=1).argmax(axis=1)
        self._best_failed = np.take_along_axis(failed, self._best[:, None], axis=1)[:, 0]
        np.put_along_axis(self._worse, self._best[:, None], False, axis=1)  # bold

    def worse(self) -> Flags:
        """Whether any cell has neither bold nor ≈."""
        return np.asarray(self._worse.any(axis=1))

    def best_shown(self) -> Flags:
        """Whether the answer says that the best cell is better than each of the others."""
        return np.asarray((self._worse.sum(axis=1) == self._worse.shape[1] - 1) & ~self._best_failed)


def _ordered_pairs(cells: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(cells) for b in range(cells) if a != b]


def has_an_effect(scores: Array, sizes: Mapping[str, int]) -> Flags:
    """Whether any main effect or interaction is shown, over the seeds that every cell has; Holm over the lines."""
    complete = np.isfinite(scores).all(axis=2)
    n = int(complete.sum(axis=1)[0])
    if n < 2:
        return np.zeros(len(scores), np.bool_)
    table = scores[complete].reshape(len(scores), n, -1)
    parts = [part for count in range(1, len(sizes) + 1) for part in combinations(sizes, count)]
    return np.asarray(holm_shows(np.stack([_effect_p(table, sizes, part) for part in parts], axis=1)).any(axis=1))


def _effect_p(table: Array, sizes: Mapping[str, int], part: tuple[str, ...]) -> Array:
    contrasts = np.ones((1, 1))
    for name, k in sizes.items():
        contrasts = np.kron(contrasts, linalg.helmert(k) if name in part else np.full((1, k), k**-0.5))
    scores = table @ contrasts.T  # (studies, seeds, df)
    _, n, df = scores.shape
    means = scores.mean(axis=1)
    centred = scores - means[:, None]
    f = (n * np.sum(means**2, axis=1) / df) / (np.sum(centred**2, axis=(1, 2)) / (df * (n - 1)))
    covariance = np.einsum("sni,snj->sij", centred, centred) / (n - 1)
    epsilon = np.trace(covariance, axis1=1, axis2=2) ** 2 / (df * np.sum(covariance**2, axis=(1, 2)))
    return np.asarray(stats.f.sf(f, epsilon * df, epsilon * df * (n - 1)), np.float64)


def studies_differ(first: Array, second: Array, paired: bool) -> Flags:
    """Whether `pretune compare` shows any cell to differ: paired by seed or Welch's test, Holm over the cells."""
    if paired:
        t, degrees = _t(second - first)
    else:
        counts = [np.isfinite(side).sum(axis=1) for side in (first, second)]
        errors = [np.nanvar(side, axis=1, ddof=1) / n for side, n in zip((first, second), counts, strict=True)]
        total = errors[0] + errors[1]
        degrees = total**2 / sum(error**2 / (n - 1) for error, n in zip(errors, counts, strict=True))
        t = (np.nanmean(second, axis=1) - np.nanmean(first, axis=1)) / np.sqrt(total)
    shown = holm_shows(2 * special.stdtr(degrees, -np.abs(t)))
    return np.asarray((shown & _unflattered(t, failed_in(first), failed_in(second))).any(axis=1))
