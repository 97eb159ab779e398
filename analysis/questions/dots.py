"""Every cell's replicates one by one, beside their mean and its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas

from pretune.analysis.load.replicates import ReplicateResult, independent_values, replicate_results, runs_expected
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import Interval, t_interval


class CellDots(NamedTuple):
    """One cell's replicates, their mean and its interval (NaN bounds for one seed)."""

    cell: str
    values: tuple[float, ...]
    mean: Interval
    short: str = ""  # '3 of 5' where replicates have no value


def cell_dots(results: pandas.DataFrame, header: StudyHeader, metric: str) -> tuple[CellDots, ...]:
    """All cells in the study's order; one without a finished replicate has no values. Raises ResultsError."""
    found = replicate_results(results, header, metric)
    expected = runs_expected(header, metric)
    return tuple(_dots(cell.label, found[cell.label], expected) for cell in header.cells)


def _dots(label: str, found: tuple[ReplicateResult, ...], expected: int) -> CellDots:
    values, runs = tuple(independent_values(found).values()), sum(math.isfinite(one.value) for one in found)
    mean = t_interval(values) if values else Interval(math.nan, math.nan, math.nan)
    return CellDots(label, values, mean, f"{runs} of {expected}" if runs < expected else "")
