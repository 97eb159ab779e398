"""Several data sets: how settings compare over tasks that one factor of the study goes through.

A task is a data set that is fine-tuned on, with its labels. Folds and amounts of labels of one data set are no tasks of
their own: they share images, and the tests below take tasks as independent.

Performance profiles and the interquartile mean (IQM) with a stratified bootstrap are those of Agarwal et al. 2021
(rliable), over the raw scores; ranks with Friedman's test (Iman and Davenport's F) and Nemenyi's critical difference
those of Demsar 2006.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas
from scipy import stats

from pretune.analysis.load.replicates import independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.curves import settings_beside
from pretune.analysis.statistics import ALPHA, Array, Interval, iqm_interval
from pretune.search_spaces.metrics import sign_of

FEWEST_TASKS = 3  # for profiles and the IQM
FEWEST_SEEDS = 3
FEWEST_RANKED = 5  # tasks for ranks: fewer show nothing however clear they are, or lean on an approximation too far
_RESAMPLES = 2000
_POINTS = 81


class Profile(NamedTuple):
    """One setting: the share of runs above each score, and the IQM of all of them."""

    setting: str
    share: Array  # (points,)
    low: Array  # 95 %, pointwise
    high: Array
    iqm: Interval


class Profiles(NamedTuple):
    """All settings over all tasks."""

    metric: str
    factor: str
    tasks: tuple[str, ...]
    seeds: int
    minimize: bool
    scores: Array  # (points,) thresholds
    settings: tuple[Profile, ...]


class RankTest(NamedTuple):
    """Mean ranks over tasks, 1 is the best, and what difference of them is needed."""

    metric: str
    factor: str
    tasks: tuple[str, ...]
    settings: tuple[str, ...]  # the best mean rank first
    ranks: Array
    f: float  # Iman and Davenport's, of Friedman's test
    p: float
    difference: float  # Nemenyi's critical difference at 5 %
    groups: tuple[tuple[int, int], ...]  # first and last of neighbours that are not shown to differ


class TaskComparison(NamedTuple):
    """All that can be said over tasks, and sentences on what cannot."""

    profiles: Profiles | None
    ranks: RankTest | None
    notes: tuple[str, ...]


def task_factor(header: StudyHeader) -> str | None:
    """The factor that decides which data set is fine-tuned on, where one does by itself."""
    for factor in header.factors:
        found: dict[str, set[str]] = {}
        for cell in header.cells:
            found.setdefault(cell.levels.get(factor, ""), set()).add(header.tasks.get(cell.label, ""))
        alone = all(len(tasks) == 1 for tasks in found.values())
        if alone and len(found) > 1 and len(set.union(*found.values())) == len(found):
            return factor
    return None


def over_tasks(results: pandas.DataFrame, header: StudyHeader, metric: str) -> TaskComparison | None:
    """None for a study of one data set, of one setting, or a metric without a direction. Raises ResultsError."""
    factor, direction = task_factor(header), header.definition(metric).direction
    if factor is None or direction is None:
        return None
    found = {label: independent_values(of) for label, of in replicate_results(results, header, metric).items()}
    values = {
        setting: {cell.levels[factor]: list(found[cell.label].values()) for cell in cells if found[cell.label]}
        for setting, cells in settings_beside(header, factor).items()
    }
    tasks = [task for task in header.factors[factor] if all(of.get(task) for of in values.values())]
    if len(values) < 2 or not tasks:
        return None
    minimize = direction == "minimize"
    profiles, why = _profiles(values, tasks, metric, factor, minimize)
    ranks, why_not = _ranks(values, tasks, metric, factor, sign_of(direction))
    return TaskComparison(profiles, ranks, tuple(filter(None, (why, why_not))))


def _profiles(
    values: Mapping[str, Mapping[str, list[float]]], tasks: list[str], metric: str, factor: str, minimize: bool
) -> tuple[Profiles | None, str]:
    seeds = min(len(of[task]) for of in values.values() for task in tasks)
    if len(tasks) < FEWEST_TASKS or seeds < FEWEST_SEEDS:
        enough = f"they take {FEWEST_TASKS} tasks and {FEWEST_SEEDS} seeds of each"
        return (
            None,
            f"No profile and no IQM of {metric} over {factor}: {enough}, and there are {len(tasks)} and {seeds}.",
        )
    tables = {name: np.array([of[task][:seeds] for task in tasks], np.float64).T for name, of in values.items()}
    every = np.concatenate([table.ravel() for table in tables.values()])
    edge = 0.02 * float(np.ptp(every)) or 0.01
    scores = np.linspace(every.min() - edge, every.max() + edge, _POINTS)
    made = tuple(_profile(name, table, scores, minimize) for name, table in tables.items())
    return Profiles(metric, factor, tuple(tasks), seeds, minimize, scores, made), ""


def _profile(setting: str, table: Array, scores: Array, minimize: bool) -> Profile:
    """`table` (seeds, tasks); seeds are redrawn within each task."""
    sign, generator = -1.0 if minimize else 1.0, np.random.default_rng(0)
    share = profile_of(sign * table, sign * scores)
    seeds, tasks = table.shape
    drawn = generator.integers(seeds, size=(_RESAMPLES, seeds, tasks))
    replayed = np.array([profile_of(sign * table[draw, np.arange(tasks)], sign * scores) for draw in drawn])
    low, high = np.quantile(replayed, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return Profile(setting, share, low, high, iqm_interval(table, np.random.default_rng(0)))


def profile_of(table: Array, scores: Array) -> Array:
    """The share of all runs of `(seeds, tasks)` that are above each score (Agarwal et al. 2021, equation 2)."""
    ordered = np.sort(table, axis=None)
    return np.asarray(1 - np.searchsorted(ordered, scores, side="right") / len(ordered), np.float64)


# ------------------------------------------------------------------------------------------------------------- ranks


def _ranks(
    values: Mapping[str, Mapping[str, list[float]]], tasks: list[str], metric: str, factor: str, sign: float
) -> tuple[RankTest | None, str]:
    if len(tasks) < FEWEST_RANKED or len(values) < 3:
        enough = f"they take {FEWEST_RANKED} tasks and 3 settings"
        return None, f"No ranks over {factor} for {metric}: {enough}, and there are {len(tasks)} and {len(values)}."
    table = sign * np.array([[np.mean(of[task]) for of in values.values()] for task in tasks], np.float64)
    mean = mean_ranks(table)
    f, p = friedman(mean, len(tasks))
    difference = critical_difference(len(values), len(tasks))
    order = np.argsort(mean, kind="stable")
    groups = _groups(mean[order], difference if p < ALPHA else math.inf)
    names = tuple(list(values)[i] for i in order)
    return RankTest(metric, factor, tuple(tasks), names, mean[order], f, p, difference, groups), ""


def mean_ranks(table: Array) -> Array:
    """Over the rows of `(tasks, settings)`, larger is better: 1 is the best rank, and ties share the mean of theirs."""
    return np.asarray(stats.rankdata(-table, axis=1).mean(axis=0), np.float64)


def friedman(ranks: Array, tasks: int) -> tuple[float, float]:
    """Iman and Davenport's F of Friedman's chi square over mean ranks, and its p."""
    settings = len(ranks)
    square = 12 * tasks / (settings * (settings + 1)) * (np.sum(ranks**2) - settings * (settings + 1) ** 2 / 4)
    left = tasks * (settings - 1) - float(square)
    f = math.inf if left <= 1e-12 else (tasks - 1) * float(square) / left
    return f, float(stats.f.sf(f, settings - 1, (settings - 1) * (tasks - 1)))


def critical_difference(settings: int, tasks: int) -> float:
    """Nemenyi's: mean ranks that differ by less are not shown to differ at 5 %."""
    q = float(stats.studentized_range.ppf(1 - ALPHA, settings, np.inf)) / math.sqrt(2)
    return q * math.sqrt(settings * (settings + 1) / (6 * tasks))


def _groups(ranks: Array, difference: float) -> tuple[tuple[int, int], ...]:
    """The longest runs of neighbours within the difference, two or more, none inside another."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.flatnonzero(ranks - ranks[first] < difference)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple(found)
