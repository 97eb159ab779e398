"""Curves: what a metric does over training, and over a factor that is an amount (labels). Numbers only, no drawing.

A band is the mean over seeds ± one sample standard deviation (ddof 1), as in the tables; where one seed reports there
is a mean and no band (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas
from numpy.typing import NDArray

from pretune.analysis.load.replicates import ReplicateResult, independent_values, replicate_results
from pretune.analysis.load.results import PublishedValue, ResultsError, StoredCell, StudyHeader
from pretune.analysis.statistics import Array, mean_std
from pretune.search_spaces.metrics import parts_of


class Band(NamedTuple):
    """One line with its band: all arrays (points,), x ascending."""

    label: str
    x: Array
    mean: Array
    low: Array  # mean - std; NaN for one seed
    high: Array
    n: NDArray[np.int64]  # seeds at each point


class LearningCurves(NamedTuple):
    """A metric over training steps, one band per cell (or one for a pretraining that cells share)."""

    stage: str
    metric: str
    bands: tuple[Band, ...]


class AmountCurves(NamedTuple):
    """A metric against a factor whose levels are amounts, one band per combination of the other factors."""

    factor: str
    metric: str
    unit: str  # "percent", "count" or "" (a plain number)
    levels: tuple[str, ...]  # in ascending order of `amounts`
    amounts: tuple[float, ...]
    log: bool  # whether the amounts span a factor of five or more, so that a logarithmic axis shows them apart
    bands: tuple[Band, ...]
    published: tuple[Band, ...] = ()  # a paper's values for each of `bands`, with n = 0; no points where it has none


def learning_curves(curves: pandas.DataFrame, stage: str, metric: str, order: Sequence[str] = ()) -> LearningCurves:
    """Bands of the confirm phase over steps, cells in `order`; empty where nothing reports the metric."""
    asked = (curves["phase"] == "confirm") & (curves["stage"] == stage) & (curves["metric"] == metric)
    found = curves[asked]
    cells = sorted(set(found["cell"]), key=lambda cell: (order.index(cell) if cell in order else len(order), cell))
    return LearningCurves(stage, metric, tuple(_over_steps(cell, found[found["cell"] == cell]) for cell in cells))


def curve_metrics(curves: pandas.DataFrame) -> tuple[tuple[str, str], ...]:
    """(stage, metric) of which some confirmed run has more than one step; per-class metrics are excluded."""
    whole = [name for name in curves["metric"].unique() if not parts_of(name).label]
    confirm = curves[(curves["phase"] == "confirm") & curves["metric"].isin(whole)]
    points = confirm.drop_duplicates(["fingerprint", "metric", "step"]).groupby(["fingerprint", "metric"]).size()
    several = {(str(key[0]), str(key[1])) for key, count in points.items() if count > 1}  # type: ignore[index]
    columns = (confirm[name].astype(str) for name in ("fingerprint", "metric", "stage"))
    found = {(stage, metric) for run, metric, stage in zip(*columns, strict=True) if (run, metric) in several}
    return tuple(sorted(found))


def _over_steps(cell: str, rows: pandas.DataFrame) -> Band:
    """One point per step; cells that draw fewer labels take fewer steps in an epoch, so points are their own."""
    groups = [(float(step), group["value"].to_numpy(np.float64)) for step, group in rows.groupby("step")]  # type: ignore[arg-type]
    return band(cell or "all cells", groups)


def band(label: str, groups: Sequence[tuple[float, Array]]) -> Band:
    """(x, values over seeds) -> a band. Values that are not finite are excluded; an x without any is no point."""
    points = [(x, mean_std(values[np.isfinite(values)])) for x, values in groups if np.isfinite(values).any()]
    points.sort(key=lambda point: point[0])
    mean = np.array([summary.mean for _, summary in points], np.float64)
    std = np.array([summary.std for _, summary in points], np.float64)
    x = np.array([at for at, _ in points], np.float64)
    return Band(label, x, mean, mean - std, mean + std, np.array([summary.n for _, summary in points], np.int64))


# ------------------------------------------------------------------------------------------------ metric and amount


def amounts(levels: Sequence[str]) -> tuple[str, tuple[float, ...]] | None:
    """Unit and value of every level, where all are amounts of one kind: percentages, counts or plain numbers.

    `all` is 100 % among percentages and 1 among fractions. Beside counts its value is not known, so that is None,
    as are levels that are not numbers, equal or not finite.
    """
    parsed = [_amount(level) for level in levels if level != "all"]
    units = {unit for unit, _ in parsed}
    if len(levels) < 2 or len(units) != 1 or ("all" in levels and units == {"count"}):
        return None
    unit = units.pop()
    values = iter(parsed)
    found = tuple((100.0 if unit == "percent" else 1.0) if level == "all" else next(values)[1] for level in levels)
    usable = unit != "none" and all(map(math.isfinite, found)) and len(set(found)) == len(found)
    return ({"count": "count", "percent": "percent"}.get(unit, ""), found) if usable else None


def _amount(level: str) -> tuple[str, float]:
    percent = level.endswith("%")
    try:
        value = float(level[:-1] if percent else level)
    except ValueError:
        return "none", math.nan
    return "percent" if percent else "count" if level.isdigit() else "number", value


def amount_factor(header: StudyHeader) -> str | None:
    """The factor to draw on an axis: `labels` if its levels are amounts, else the first factor whose levels are."""
    names = sorted(header.factors, key=lambda name: name != "labels")
    return next((name for name in names if amounts(header.factors[name]) is not None), None)


def amount_curves(
    results: pandas.DataFrame,
    header: StudyHeader,
    factor: str,
    metric: str,
    published: Mapping[str, PublishedValue] | None = None,
) -> AmountCurves:
    """The metric over the levels of `factor`, from the confirm phase, and a paper's values by cell beside it.

    Raises ResultsError where the factor's levels are not amounts.
    """
    described = amounts(header.factors.get(factor, ()))
    if described is None:
        raise ResultsError(f"the levels of {factor!r} are not amounts: choose a factor of numbers or percentages")
    unit, values = described
    at = dict(zip(header.factors[factor], values, strict=True))
    found = replicate_results(results, header, metric)
    groups = settings_beside(header, factor)
    bands = tuple(_over_amounts(name, cells, at, factor, found) for name, cells in groups.items())
    theirs = tuple(_published_band(name, cells, at, factor, published or {}) for name, cells in groups.items())
    levels = tuple(sorted(at, key=lambda level: at[level]))
    shown = tuple(at[x] for x in levels)
    return AmountCurves(factor, metric, unit, levels, shown, is_logarithmic(values), bands, theirs)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether amounts are drawn, and read between, over their logarithm: where they span a factor of five."""
    return min(values) > 0 and max(values) / min(values) >= 5


def settings_beside(header: StudyHeader, factor: str) -> dict[str, list[StoredCell]]:
    """Cells that differ in `factor` alone, by their other levels."""
    groups: dict[str, list[StoredCell]] = {}
    for cell in header.cells:
        if factor in cell.levels:
            name = " ".join(f"{key}={level}" for key, level in cell.levels.items() if key != factor)
            groups.setdefault(name or "all", []).append(cell)
    return groups


def _over_amounts(
    label: str,
    cells: Sequence[StoredCell],
    at: Mapping[str, float],
    factor: str,
    found: Mapping[str, tuple[ReplicateResult, ...]],
) -> Band:
    values = [(at[cell.levels[factor]], list(independent_values(found[cell.label]).values())) for cell in cells]
    return band(label, [(x, np.array(runs, np.float64)) for x, runs in values])


def _published_band(
    label: str,
    cells: Sequence[StoredCell],
    at: Mapping[str, float],
    factor: str,
    published: Mapping[str, PublishedValue],
) -> Band:
    found = [cell for cell in cells if cell.label in published]
    values = [
        (at[cell.levels[factor]], published[cell.label]) for cell in sorted(found, key=lambda c: at[c.levels[factor]])
    ]
    x = np.array([place for place, _ in values], np.float64)
    mean = np.array([value.mean for _, value in values], np.float64)
    std = np.array([math.nan if value.std is None else value.std for _, value in values], np.float64)
    return Band(label, x, mean, mean - std, mean + std, np.zeros(len(x), np.int64))
