"""Tables of mean ± standard deviation over seeds, from the confirm phase alone.

Numbers only; how they are laid out and rounded is `layout`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pandas

from analysis.replicates import FINISHED, Replicate, independent_values, is_probe, lower_is_better, replicates
from analysis.results import Cell, Published, PublishedValue, ResultsError, StudyHeader
from analysis.statistics import mean_std, not_distinguishable_from_best, t_interval

DASH = "–"


# -------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Outcome:
    """How many of a cell's replicates ended in one way, and why (cause "" where there is nothing to say)."""

    outcome: (
        str  # as the study stored it (finished, diverged, crashed, blocked, ...); "no value" and "not run" are ours
    )
    cause: str
    count: int


@dataclass(frozen=True)
class CellValue:
    """Mean and sample standard deviation (NaN below two) over the n replicates that finished.

    `low` and `high` are the 95 % t interval of the mean over independent replicates: pretrainings, where seeds are
    nested. NaN below two.
    """

    mean: float
    std: float
    n: int
    n_expected: int
    low: float
    high: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Table:
    """One metric over rows and columns of level labels; None where the study has no such cell."""

    study: str
    metric: str
    row_factors: tuple[str, ...]  # () where the only row is "all"
    column_factors: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[tuple[str, ...], ...]
    values: tuple[tuple[CellValue | None, ...], ...]  # (rows, columns)
    best: tuple[tuple[bool, ...], ...]  # best mean of its column, ties included; a column with one value has none
    rivals: tuple[tuple[bool, ...], ...]  # not best, and not shown to be worse than the best of its column
    tested: tuple[int, ...]  # (columns,) seeds that finished in every cell of the column; below two none is a rival
    published: tuple[tuple[PublishedValue | None, ...], ...] | None  # as `values`
    percent: bool
    notes: tuple[str, ...]


def build(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Table:
    """The table of `metric`, from the confirm phase's fine-tunings (or probes, for a metric "probe/...").

    Rows and columns follow the study's report section: by default all factors but the last, and the last; a factor
    named in neither becomes a row. Raises ResultsError for an unknown factor or a metric that no finished run reports.
    """
    found = replicates(results, header, metric)
    row_factors, column_factors = _layout(header)
    rows, columns = _labels(header, row_factors), _labels(header, column_factors)
    expected = header.pretrainings if is_probe(metric) else header.replicates
    runs = {_key(cell, row_factors + column_factors): found[cell.label] for cell in header.cells}
    by_levels = {levels: _summary(part, expected) for levels, part in runs.items()}
    values = tuple(tuple(by_levels.get(row + column) for column in columns) for row in rows)
    best = _best(values, lower_is_better(metric))
    sets = [_not_worse([runs.get(row + column, ()) for row in rows], lower_is_better(metric)) for column in columns]
    kept = tuple(tuple(sets[x][0][y] and not best[y][x] for x in range(len(columns))) for y in range(len(rows)))
    published, notes = _lay_out_published(header.published, metric, rows, columns)
    return Table(
        study=header.study,
        metric=metric,
        row_factors=row_factors,
        column_factors=column_factors,
        rows=rows,
        columns=columns,
        values=values,
        best=best,
        rivals=kept,
        tested=tuple(seeds for _, seeds in sets),
        published=published,
        percent=header.report.percent and not lower_is_better(metric),
        notes=(*_nested_note(header, metric), *_patience_note(results, metric), *notes),
    )


# ---------------------------------------------------------------------------------------- from replicates to values


def _layout(header: StudyHeader) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Row factors and column factors; together they are all of the study's factors."""
    factors, report = tuple(header.factors), header.report
    _require_factors([*(report.rows or ()), *(report.columns or ())], factors)
    if report.columns is not None:
        columns = report.columns
    else:
        columns = tuple(factor for factor in factors[-1:] if factor not in (report.rows or ()))
    rows = report.rows or ()
    return rows + tuple(factor for factor in factors if factor not in rows + columns), columns


def _require_factors(named: Sequence[str], factors: Sequence[str]) -> None:
    for name in named:
        if name not in factors:
            raise ResultsError(f"{name!r} is no factor of this study: choose from {', '.join(factors) or '(none)'}")
        if named.count(name) > 1:
            raise ResultsError(f"the factor {name!r} stands in the report's rows and columns more than once")


def _key(cell: Cell, factors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cell.levels.get(factor, "") for factor in factors)


def _labels(header: StudyHeader, factors: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Level labels in the study's order, without combinations that no cell has; one empty label without factors."""
    present = {_key(cell, factors) for cell in header.cells}
    orders = [
        dict.fromkeys((*header.factors[factor], "")) for factor in factors
    ]  # "": a cell that the factor does not reach
    return tuple(labels for labels in product(*orders) if labels in present)


def _summary(found: tuple[Replicate, ...], expected: int) -> CellValue:
    values = [replicate.value for replicate in found if not math.isnan(replicate.value)]
    mean, std, n = mean_std(values) if values else (math.nan, math.nan, 0)
    _, low, high = t_interval(list(independent_values(found).values())) if values else (math.nan,) * 3
    ends = Counter((_end(replicate), replicate.cause) for replicate in found)
    outcomes = [Outcome(outcome, cause, count) for (outcome, cause), count in ends.items()]
    if len(found) < expected:
        outcomes.append(Outcome("not run", "", expected - len(found)))
    return CellValue(mean, std, n, expected, low, high, tuple(outcomes))


def _best(values: tuple[tuple[CellValue | None, ...], ...], minimize: bool) -> tuple[tuple[bool, ...], ...]:
    """True at the best mean of each column that has two values or more."""
    means = [[math.nan if value is None else value.mean for value in row] for row in values]
    columns = [[mean for mean in column if not math.isnan(mean)] for column in zip(*means, strict=True)]
    best = [(min if minimize else max)(column) if len(column) > 1 else None for column in columns]
    return tuple(tuple(mean == best[x] for x, mean in enumerate(row)) for row in means)


def _not_worse(column: Sequence[tuple[Replicate, ...]], minimize: bool) -> tuple[list[bool], int]:
    """Cells of a column that are not shown to be worse than its best, and over how many common seeds."""
    values = {y: seeds for y, found in enumerate(column) if (seeds := independent_values(found))}
    common = sorted(set.intersection(*(set(seeds) for seeds in values.values()))) if values else []
    kept = [False] * len(column)
    if len(values) > 1 and len(common) > 1:
        scores = [[seeds[seed] for seeds in values.values()] for seed in common]
        tested = not_distinguishable_from_best(scores, maximize=not minimize)
        for y, same in zip(values, tested.not_distinguishable, strict=True):
            kept[y] = bool(same)
    return kept, len(common)


def _end(replicate: Replicate) -> str:
    unreported = replicate.outcome == FINISHED and math.isnan(replicate.value)
    return "no value" if unreported else replicate.outcome


def _patience_note(results: pandas.DataFrame, metric: str) -> tuple[str, ...]:
    """Which fine-tunings patience ended before their last epoch; a probe's metric is of none."""
    found = results[(results["phase"] == "confirm") & (results["metric"] == "train/stopped_epoch")]
    if is_probe(metric) or found.empty:
        return ()
    counts = Counter(found["cell"])
    named = ", ".join(f"{cell} ({count})" for cell, count in list(counts.items())[:6])
    return (f"stopped early by patience, seeds in brackets: {named}{' ...' if len(counts) > 6 else ''}",)


def _nested_note(header: StudyHeader, metric: str) -> tuple[str, ...]:
    if is_probe(metric) or header.pretrainings == header.replicates:
        return ()
    each = header.replicates // header.pretrainings
    return (f"nested seeds: n counts fine-tunings, {each} for each of {header.pretrainings} pretrainings",)


def _lay_out_published(
    published: Published | None, metric: str, rows: Sequence[tuple[str, ...]], columns: Sequence[tuple[str, ...]]
) -> tuple[tuple[tuple[PublishedValue | None, ...], ...] | None, tuple[str, ...]]:
    """Published values in the table's places, and notes on them; a value without a place is said so."""
    if published is None or published.metric != metric:
        return None, ()
    by_labels = {value.labels: value for value in published.values}
    placed = tuple(tuple(by_labels.get(row + column) for column in columns) for row in rows)
    lost = by_labels.keys() - {row + column for row in rows for column in columns}
    notes = [f"published: {published.note}"] if published.note else []
    notes += [f"published for {' / '.join(labels)}, which is no cell of this study" for labels in sorted(lost)]
    return placed, tuple(notes)


def places(table: Table) -> Iterator[tuple[int, int, CellValue]]:
    """Row, column and value of every cell that the study has."""
    for y, row in enumerate(table.values):
        yield from ((y, x, value) for x, value in enumerate(row) if value is not None)


def inside(ours: CellValue, theirs: PublishedValue) -> bool | None:
    """Whether a published mean lies in our 95 % interval; None where we have none."""
    return None if math.isnan(ours.low) else ours.low <= theirs.mean <= ours.high
