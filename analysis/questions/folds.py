"""The mean over the folds of a cross-validation: over a factor whose levels are 1/k, 2/k, ..., k/k.

A fold's value is its mean over seeds, and the standard deviation is over folds. No interval and no test is made of it:
folds share most of their training images, and no unbiased estimate of the variance of their mean exists (Bengio,
Grandvalet: "No unbiased estimator of the variance of k-fold cross-validation", JMLR 2004).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas

from pretune.analysis.load.replicates import independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import mean_std

FOLD = re.compile(r"^([1-9][0-9]*)/([1-9][0-9]*)$")


class FoldMean(NamedTuple):
    """One combination of all other factors' levels."""

    cell: str
    mean: float  # over folds
    std: float  # over folds, ddof 1; NaN below two
    folds: int  # that have a value
    folds_expected: int
    seeds: int  # the fewest of a fold


@dataclass(frozen=True)
class Folds:
    """One metric over the folds of `factor`."""

    study: str
    metric: str
    factor: str
    rows: tuple[FoldMean, ...]
    percent: bool
    notes: tuple[str, ...]


def over_folds(results: pandas.DataFrame, header: StudyHeader, metric: str) -> tuple[Folds, ...]:
    """One table where the study has a factor of folds, else none. Raises ResultsError as `replicates` does."""
    factor = fold_factor(header)
    if factor is None or header.definition(metric).direction is None:
        return ()
    values = {label: independent_values(found) for label, found in replicate_results(results, header, metric).items()}
    groups: dict[str, list[list[float]]] = {}  # the other levels -> folds -> seeds
    for cell in header.cells:
        others = " ".join(f"{name}={level}" for name, level in cell.levels.items() if name != factor and level)
        groups.setdefault(others or "all", []).append(list(values[cell.label].values()))
    rows = tuple(_row(cell, folds) for cell, folds in groups.items())
    seeds = sorted({row.seeds for row in rows if row.seeds})
    n = f" (n={seeds[0]}{f' to {seeds[-1]}' if len(seeds) > 1 else ''})" if seeds else ""
    notes = [f"each fold is its mean over seeds{n}; folds share training images, so there is no interval over folds"]
    short = [f"{row.cell}: {row.folds} of {row.folds_expected} folds" for row in rows if row.folds < row.folds_expected]
    percent = header.in_percent(metric)
    return (Folds(header.title, metric, factor, rows, percent, (*notes, *short)),)


def fold_factor(header: StudyHeader) -> str | None:
    """The first factor whose levels are folds of one number, two of them or more."""
    for name, levels in header.factors.items():
        found = [FOLD.match(level) for level in levels]
        if len(levels) > 1 and all(found) and len({match[2] for match in found if match}) == 1:
            return name
    return None


def _row(cell: str, folds: list[list[float]]) -> FoldMean:
    means = [float(np.mean(seeds)) for seeds in folds if seeds]
    mean, std, n = mean_std(means) if means else (math.nan, math.nan, 0)
    return FoldMean(cell, mean, std, n, len(folds), min((len(seeds) for seeds in folds if seeds), default=0))
