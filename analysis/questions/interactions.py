"""Two factors at a time, seed by seed: does the effect of one depend on the level of the other?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas

from pretune.analysis.load.replicates import independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.curves import amounts
from pretune.analysis.statistics import Array, Interval, t_interval

Cells = dict[str, dict[int, float]]  # cell -> seed -> value


class Facet(NamedTuple):
    """One setting of all other factors: a line for each level of one factor over the levels of another."""

    setting: str  # 'labels=50'; "" where there are no other factors
    lines: tuple[tuple[str, Array], ...]  # (level, (seeds, levels of the axis)), NaN where a seed has no value
    contrast: Interval  # difference of differences, of two levels each, over seeds with all four; else NaN
    n: int  # seeds in it


class Interaction(NamedTuple):
    """Two factors of a study in one metric."""

    metric: str
    line_factor: str
    axis_factor: str
    axis: tuple[str, ...]  # levels
    facets: tuple[Facet, ...]


def interactions(results: pandas.DataFrame, header: StudyHeader, metric: str) -> tuple[Interaction, ...]:
    """One for each pair of factors with two levels or more. Raises ResultsError as `replicate_results` does."""
    found = {label: independent_values(part) for label, part in replicate_results(results, header, metric).items()}
    names = [name for name, levels in header.factors.items() if len(levels) > 1]
    names.sort(key=lambda name: amounts(header.factors[name]) is not None)  # amounts go on the axis
    return tuple(_interaction(header, metric, found, line, axis) for line, axis in combinations(names, 2))


def _interaction(header: StudyHeader, metric: str, found: Cells, line: str, axis: str) -> Interaction:
    settings: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for cell in header.cells:
        if line in cell.levels and axis in cell.levels:
            rest = " ".join(f"{key}={level}" for key, level in cell.levels.items() if key not in (line, axis))
            settings.setdefault(rest, {})[cell.levels[line], cell.levels[axis]] = found[cell.label]
    lines, levels = header.factors[line], header.factors[axis]
    facets = tuple(_facet(rest, cells, lines, levels) for rest, cells in settings.items())
    return Interaction(metric, line, axis, levels, facets)


def _facet(
    setting: str,
    cells: Mapping[tuple[str, str], Mapping[int, float]],
    lines: tuple[str, ...],
    levels: tuple[str, ...],
) -> Facet:
    seeds = sorted({seed for values in cells.values() for seed in values})
    tables = {
        line: np.array([[cells.get((line, x), {}).get(seed, math.nan) for x in levels] for seed in seeds], np.float64)
        for line in lines
    }
    shown = tuple((line, table.reshape(len(seeds), len(levels))) for line, table in tables.items())
    if len(lines) != 2 or len(levels) != 2:
        return Facet(setting, shown, Interval(math.nan, math.nan, math.nan), 0)
    first, second = (table for _, table in shown)
    contrast = (second[:, 1] - second[:, 0]) - (first[:, 1] - first[:, 0])
    whole = contrast[np.isfinite(contrast)]
    return Facet(setting, shown, t_interval(whole) if len(whole) else Interval(*(math.nan,) * 3), len(whole))
