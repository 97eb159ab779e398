"""Variance components: how much of the spread comes from the pretraining seed, the fine-tuning seed, the tuned values.

Nested seeds (several fine-tunings of each pretraining) are a one-way random-effects layout; a search that tries each
configuration at the same seeds is a crossed one. Both are solved by the method of moments, which is unbiased; where
seeds are missing, nested ones are fitted by restricted maximum likelihood (statsmodels' MixedLM).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas
from numpy.typing import ArrayLike
from scipy import stats

from pretune.analysis.digits import few
from pretune.analysis.load.replicates import ReplicateResult, held_note, is_probe, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import Array

BETWEEN, WITHIN = "pretraining seed (and split)", "fine-tuning seed (and label subset)"


class Nested(NamedTuple):
    """Variances between groups and within them, and the share of the first in their sum with its 95 % interval."""

    between: float  # 0 where the estimate is negative
    within: float
    share: float
    low: float  # NaN where there is no exact interval
    high: float
    groups: int
    n: int


class Crossed(NamedTuple):
    """Variances of a two-way layout with one value per place; 0 where an estimate is negative."""

    rows: float
    columns: float
    rest: float


class Component(NamedTuple):
    """One source of spread in one place of a study."""

    where: str  # a cell, "all cells", or a search
    source: str
    std: float
    share: float  # of the variance of all sources in this place
    low: float  # 95 % interval of the share; NaN where there is none
    high: float
    n: int  # seeds or configurations that the estimate rests on


@dataclass(frozen=True)
class Components:
    """Every source of spread that the study's design tells apart, for one metric."""

    study: str
    metric: str
    rows: tuple[Component, ...]
    percent: bool
    notes: tuple[str, ...]


def nested(groups: Sequence[ArrayLike], confidence: float = 0.95) -> Nested:
    """Components of values in groups, `groups[i]` (repeats,), assuming normal effects.

    Equal groups: method of moments, (MS between - MS within) / repeats, with the exact interval of the share
    (intraclass correlation; Searle 1971, section 9.9). Unequal ones: restricted maximum likelihood, no interval.
    No share where the values of every group are equal, copies of one run. Raises ValueError with fewer than two groups,
    or where no group has two values.
    """
    values = [np.asarray(group, np.float64) for group in groups if np.size(group)]
    sizes = {len(group) for group in values}
    if len(values) < 2 or max(sizes) < 2:
        raise ValueError("variance components take two groups or more, with two values or more in one of them")
    if len(sizes) > 1:
        copies = all(np.ptp(group) == 0 for group in values)
        return (
            _solve(float(np.var([group[0] for group in values], ddof=1)), 0.0, len(values), 1)
            if copies
            else _reml(values)
        )
    between, within = mean_squares(np.stack(values))
    return _solve(between, within, len(values), sizes.pop(), confidence)


def mean_squares(table: Array) -> tuple[float, float]:
    """Mean squares between the rows of `(groups, repeats)` and within them."""
    groups, repeats = table.shape
    means = table.mean(axis=1)
    within = float(np.sum((table - means[:, None]) ** 2)) / (groups * (repeats - 1))
    rounding = (1e-12 * float(np.abs(table).max())) ** 2  # below it, squares are of digits that were lost
    between, within = (square if square > rounding else 0.0 for square in (repeats * float(means.var(ddof=1)), within))
    return between, within


def _solve(between: float, within: float, groups: int, repeats: int, confidence: float = 0.95) -> Nested:
    variance = max(0.0, (between - within) / repeats)
    total = variance + within
    if not within > 0:  # copies of one run
        return Nested(variance, 0.0, math.nan, math.nan, math.nan, groups, groups * repeats)
    low, high = (_share(between, within, quantile, groups, repeats) for quantile in _tails(confidence))
    return Nested(variance, within, variance / total, low, high, groups, groups * repeats)


def _tails(confidence: float) -> tuple[float, float]:
    return (1 + confidence) / 2, (1 - confidence) / 2


def _share(between: float, within: float, quantile: float, groups: int, repeats: int) -> float:
    """(F / F_q - 1) / (F / F_q - 1 + repeats), at least 0."""
    excess = between / within / float(stats.f.ppf(quantile, groups - 1, groups * (repeats - 1))) - 1
    return max(0.0, excess / (excess + repeats))


def _reml(values: Sequence[Array]) -> Nested:
    from statsmodels.regression.mixed_linear_model import MixedLM

    y = np.concatenate(values)
    labels = np.repeat(np.arange(len(values)), [len(group) for group in values])
    scale = float(y.std()) or 1.0  # the optimiser expects numbers of order one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a component at 0 lies on the boundary, which is no failure here
        fit = MixedLM((y - y.mean()) / scale, np.ones((len(y), 1)), groups=labels).fit(reml=True)
    between, within = float(np.asarray(fit.cov_re)[0, 0]) * scale**2, float(fit.scale) * scale**2
    total = between + within
    share = between / total if total > 0 else math.nan
    return Nested(between, within, share, math.nan, math.nan, len(values), len(y))


def crossed(table: ArrayLike) -> Crossed:
    """Components of `(rows, columns)` with one value each, rows and columns both random: method of moments."""
    values = np.asarray(table, np.float64)
    rows, columns = values.shape
    if rows < 2 or columns < 2:
        raise ValueError(f"a crossed layout takes two rows and two columns or more, not {values.shape}")
    by_row, by_column = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_row[:, None] - by_column[None, :] + values.mean()
    error = float(np.sum(rest**2)) / ((rows - 1) * (columns - 1))
    return Crossed(
        max(0.0, float(by_row.var(ddof=1)) - error / columns),
        max(0.0, float(by_column.var(ddof=1)) - error / rows),
        error,
    )


# --------------------------------------------------------------------------------------------------- of a study


def components(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Components:
    """Spread by pretraining and fine-tuning seed (nested report seeds), and by tuned values (a search on >= 2 seeds).

    Searches stand in the table of the report's first metric alone, in units of the metric that they optimise. Without
    either design there are no rows. Raises ResultsError as `replicates` does.
    """
    percent = header.in_percent(metric)
    seeds, notes = (
        _of_nested_seeds(replicate_results(results, header, metric)) if _is_nested(header, metric) else ([], [])
    )
    searched = _of_searches(results, header.target) if metric == header.report.metrics[0] else []
    if searched:
        crowded = (
            "points chosen in advance"
            if header.designed
            else "what a sampler tried, which is denser where scores are good"
        )
        notes.append(f"searches: spread of {header.target} over {crowded}")
    return Components(header.title, metric, (*seeds, *searched), percent, (*notes, *held_note(header)))


def _is_nested(header: StudyHeader, metric: str) -> bool:
    return header.pretrainings < header.replicates and not is_probe(metric)


def _of_nested_seeds(found: Mapping[str, tuple[ReplicateResult, ...]]) -> tuple[list[Component], list[str]]:
    """Every cell's components, those of the cells that lost no run together, and notes."""
    groups = {label: kept for label, runs in found.items() if (kept := _groups(runs))}
    apart = {label: kept for label, kept in groups.items() if len(kept) > 1 and max(map(len, kept)) > 1}
    rows = [row for label, kept in apart.items() for row in _pair(label, nested(kept))]
    notes = ["nested seeds: variance between pretrainings, and between fine-tunings of one pretraining"] if rows else []
    pooled, explained = _pooled(apart)
    single = {label: kept[0] for label, kept in groups.items() if len(kept) == 1 and len(kept[0]) > 1}
    rows += [*pooled, *(_of_one_pretraining(label, values) for label, values in single.items())]
    if single:
        notes.append(
            "one pretraining: the spread of its fine-tunings only, which does not show how another pretraining "
            "would score"
        )
    copies = [row.where for row in rows if row.source == WITHIN and row.std == 0]
    if copies:
        notes.append(f"no share, because the fine-tunings of one pretraining do not vary: {few(copies)}")
    return rows, [*notes, *explained]


def _pooled(cells: Mapping[str, list[list[float]]]) -> tuple[list[Component], list[str]]:
    """Components of the cells of most runs together, where there are two or more; which cells those are."""
    size = max((sum(map(len, kept)) for kept in cells.values()), default=0)
    whole = [np.array(kept) for kept in cells.values() if len(set(map(len, kept))) == 1 and sum(map(len, kept)) == size]
    if len(whole) < 2 or len({table.shape for table in whole}) > 1:
        return [], []
    between, within = np.mean([mean_squares(table) for table in whole], axis=0)
    every = len(whole) == len(cells)
    where = "all cells" if every else f"{len(whole)} of {len(cells)} cells"
    said = f"{where}: mean of the cells' variances; cells share seeds, so the interval uses the n of one cell"
    said += "" if every else "; cells with failed runs are not included"
    return _pair(where, _solve(float(between), float(within), *whole[0].shape)), [said]


def _of_one_pretraining(where: str, values: list[float]) -> Component:
    return Component(where, WITHIN, float(np.std(values, ddof=1)), math.nan, math.nan, math.nan, len(values))


def _groups(runs: tuple[ReplicateResult, ...]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for run in runs:
        if math.isfinite(run.value):
            groups.setdefault(run.pretraining, []).append(run.value)
    return list(groups.values())


def _pair(where: str, found: Nested) -> list[Component]:
    within_low, within_high = 1 - found.high, 1 - found.low
    return [
        Component(where, BETWEEN, math.sqrt(found.between), found.share, found.low, found.high, found.groups),
        Component(where, WITHIN, math.sqrt(found.within), 1 - found.share, within_low, within_high, found.n),
    ]


def _of_searches(results: pandas.DataFrame, target: str) -> list[Component]:
    """Tuned values against seeds, of every cell's search whose configurations all ran at the same two seeds or more."""
    if "chosen" not in results.columns:
        return []
    asked = (results["phase"] == "search") & (results["metric"] == target) & (results["outcome"] == "finished")
    if "until" in results.columns:
        asked &= results["until"].isna()  # a rung is not a whole run
    rows: list[Component] = []
    for cell, part in results[asked].groupby("cell", sort=False):
        table = _whole(part)
        configurations, seeds = table.shape
        if min(configurations, seeds) > 1:
            rows += _three(f"search, {cell!s}", crossed(table), configurations, seeds)
    return rows


def _whole(part: pandas.DataFrame) -> Array:
    """(configurations, seeds) of the configurations that finished at every seed."""
    wide: Any = part.pivot_table(index="chosen", columns="seed", values="value", sort=False)
    return np.asarray(wide.dropna().to_numpy(), np.float64)


def _three(where: str, found: Crossed, configurations: int, seeds: int) -> list[Component]:
    total = sum(found)
    named = (("tuned values", found.rows, configurations), ("seed", found.columns, seeds))
    whole = (*named, ("tuned values × seed", found.rest, configurations * seeds))
    shares = [variance / total if total > 0 else math.nan for _, variance, _ in whole]
    return [
        Component(where, source, math.sqrt(variance), share, math.nan, math.nan, n)
        for (source, variance, n), share in zip(whole, shares, strict=True)
    ]
