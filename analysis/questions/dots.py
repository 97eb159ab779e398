"""Every cell's replicates one by one, beside their mean and its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas

from pretune.analysis.load.replicates import ReplicateResult, independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import Interval, t_interval


class CellDots(NamedTuple):
    """One cell's replicates, their mean and its interval (NaN bounds for one seed)."""

    cell: str
    values: tuple[float, ...]
    mean: Interval


def cell_dots(results: pandas.DataFrame, header: StudyHeader, metric: str) -> tuple[CellDots, ...]:
    """All cells in the study's order; one without a finished replicate has no values. Raises ResultsError."""
    found = replicate_results(results, header, metric)
    return tuple(_dots(cell.label, found[cell.label]) for cell in header.cells)


def _dots(label: str, found: tuple[ReplicateResult, ...]) -> CellDots:
    values = tuple(independent_values(found).values())
    return CellDots(label, values, t_interval(values) if values else Interval(math.nan, math.nan, math.nan))
