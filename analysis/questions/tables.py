"""Tables of mean ± standard deviation over seeds, from the confirm phase alone.

Numbers only; `analysis.text.grids` lays them out and rounds them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas
from numpy.typing import NDArray

from pretune.analysis.digits import few
from pretune.analysis.load.replicates import (
    FINISHED,
    ReplicateResult,
    any_failed,
    held_note,
    independent_values,
    is_probe,
    replicate_results,
    runs_expected,
)
from pretune.analysis.load.results import PublishedTable, PublishedValue, ResultsError, StoredCell, StudyHeader
from pretune.analysis.questions.differences import Differences
from pretune.analysis.statistics import mean_std, not_distinguishable_from_best, t_interval
from pretune.search_spaces.metrics import Direction, MetricDefinition, parts_of, pattern_of
from pretune.search_spaces.schema.scores import PIXELS

# -------------------------------------------------------------------------------------------------------- numbers


NO_SCORE, NOT_RUN = "no score", "not run"  # finished without a value of the metric; not ended yet


@dataclass(frozen=True)
class OutcomeCount:
    """Count of a cell's replicates that ended in one way, and why (cause "" where there is nothing to say)."""

    outcome: str  # as the study stored it (finished, diverged, crashed, blocked, ...), NO_SCORE or NOT_RUN
    cause: str
    count: int


@dataclass(frozen=True)
class CellValue:
    """Mean and sample standard deviation (NaN below two) over the n independent replicates that finished.

    Where seeds are nested those are pretrainings, each the mean of its `runs` that finished. `low` and `high` are the
    95 % t interval of the mean, NaN below two.
    """

    mean: float
    std: float
    n: int
    n_expected: int
    low: float
    high: float
    runs: int  # replicates that finished: fine-tunings, where seeds are nested
    runs_expected: int
    outcomes: tuple[OutcomeCount, ...]
    same_weights: bool | None = None  # whether all replicates are one model, by SHA-256; None: not known

    @property
    def is_short(self) -> bool:
        """Whether replicates lack a value."""
        return self.runs < self.runs_expected

    @property
    def failed(self) -> int:
        """Replicates that failed: those may be the ones that would have scored worst."""
        return sum(end.count for end in self.outcomes if end.outcome not in (FINISHED, NO_SCORE, NOT_RUN))


class Tested(NamedTuple):
    """Comparison of the cells of one column with one another."""

    fewest: int  # common seeds of the pairs that were tested; 0 where none was
    most: int
    tests: int  # pairs of cells that were tested ...
    pairs: int  # ... of all that have values
    why: tuple[str, ...]  # (rows,) why a cell with a value could be compared with no other; "" where it could


class AgainstBaseline(NamedTuple):
    """Cells that are shown to differ from their baseline cell: the tests of the answer, not those of `Table.rivals`."""

    baseline: str
    tests: int  # comparisons with the baseline that could be tested
    sides: tuple[tuple[int, ...], ...]  # (rows, columns): 1 shown to be above its baseline, -1 below, 0 neither
    worse: tuple[tuple[bool, ...], ...]  # (rows, columns): shown to be worse, as cell or as baseline, in its column


@dataclass(frozen=True)
class Table:
    """One metric over rows and columns of level labels; None where the study has no such cell."""

    study: str
    metric: str
    definition: MetricDefinition  # of `metric`: its direction and range
    row_factors: tuple[str, ...]  # () where the only row is "all"
    column_factors: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[tuple[str, ...], ...]
    values: tuple[tuple[CellValue | None, ...], ...]  # (rows, columns)
    best: tuple[tuple[bool, ...], ...]  # best mean of its column, ties included; a column with one value has none
    rivals: tuple[tuple[bool | None, ...], ...]  # not best, and not shown to be worse than another of its column;
    # None where it could not be compared, for want of seeds in common or of any spread
    tested: tuple[Tested, ...]  # (columns,)
    published: tuple[tuple[PublishedValue | None, ...], ...] | None  # as `values`
    differs: tuple[str, ...]  # how the study differs from the published one, where published values are shown
    percent: bool
    notes: tuple[str, ...]
    against: AgainstBaseline | None = None  # where the study has a baseline, and the table is to be read


def build_table(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Table:
    """The table of `metric`, from the confirm phase's fine-tunings (or probes, for a metric "probe/...").

    Rows and columns follow the study's report section: by default all factors but the last, and the last; a factor
    named in neither becomes a row. Raises ResultsError for an unknown factor or a metric that no finished run reports.
    """
    found = replicate_results(results, header, metric)
    row_factors, column_factors = _layout(header)
    rows, columns = _labels(header, row_factors), _labels(header, column_factors)
    expected = (header.pretrainings, runs_expected(header, metric))
    runs = {_key(cell, row_factors + column_factors): found[cell.label] for cell in header.cells}
    definition, partner = header.definition(metric), parts_of(metric).level
    by_levels = {
        levels: _summary(part, *expected, parts_of(metric).label)
        for levels, part in runs.items()
        if not partner or partner not in levels
    }
    values = tuple(tuple(by_levels.get(row + column) for column in columns) for row in rows)
    best = _best(values, definition.direction)
    ranked = {} if definition.direction is None else runs
    minimize = definition.direction == "minimize"
    sets = [_not_worse([ranked.get(row + column, ()) for row in rows], minimize) for column in columns]
    same = [[kept[y] for kept, _ in sets] for y in range(len(rows))]
    rivals = tuple(
        tuple(s if s is None else s and not b for s, b in zip(*row, strict=True))
        for row in zip(same, best, strict=True)
    )
    published, notes = _lay_out_published(header.published, metric, rows, columns)
    return Table(
        study=header.title,
        metric=metric,
        definition=definition,
        row_factors=row_factors,
        column_factors=column_factors,
        rows=rows,
        columns=columns,
        values=values,
        best=best,
        rivals=rivals,
        tested=tuple(seeds for _, seeds in sets),
        published=published,
        differs=() if published is None else differences_from_published(header, metric),
        percent=header.in_percent(metric),
        notes=(
            *_itself_note(partner),
            *_average_note(metric, definition),
            *_nested_note(header, metric),
            *_checkpoint_note(header, metric),
            *_patience_note(results, metric),
            *held_note(header),
            *notes,
        ),
    )


def against_baseline(table: Table, header: StudyHeader, found: Differences) -> AgainstBaseline:
    """Results of the comparisons with the baseline, in the places of the table's cells."""
    where = {
        cell.label: (
            table.rows.index(_key(cell, table.row_factors)),
            table.columns.index(_key(cell, table.column_factors)),
        )
        for cell in header.cells
    }
    sides = [[0 for _ in table.columns] for _ in table.rows]
    worse = [[False for _ in table.columns] for _ in table.rows]
    better = {"maximize": 1, "minimize": -1, None: 0}[table.definition.direction]
    for row in found.rows:
        if not row.shown:
            continue
        (y, x), base = where[row.cell], where[row.baseline]
        sides[y][x] = 1 if row.difference > 0 else -1
        if better and base[1] == x:  # in one column, as the other marks
            loser = base if better * row.difference > 0 else (y, x)
            worse[loser[0]][loser[1]] = True
    tests = sum(math.isfinite(row.p) for row in found.rows)
    return AgainstBaseline(found.baseline, tests, tuple(map(tuple, sides)), tuple(map(tuple, worse)))


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
            raise ResultsError(f"{name!r} is not a factor of this study: choose from {', '.join(factors) or '(none)'}")
        if named.count(name) > 1:
            raise ResultsError(f"the factor {name!r} stands in the report's rows and columns more than once")


def _key(cell: StoredCell, factors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cell.levels.get(factor, "") for factor in factors)


def _labels(header: StudyHeader, factors: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Level labels in the study's order, without combinations that no cell has; one empty label without factors."""
    present = {_key(cell, factors) for cell in header.cells}
    orders = [
        dict.fromkeys((*header.factors[factor], "")) for factor in factors
    ]  # "": a cell that the factor does not reach
    return tuple(labels for labels in product(*orders) if labels in present)


def _summary(found: tuple[ReplicateResult, ...], expected: int, runs_expected: int, label: str) -> CellValue:
    runs = sum(math.isfinite(replicate.value) for replicate in found)
    values = list(independent_values(found).values())
    mean, std, n = mean_std(values) if values else (math.nan, math.nan, 0)
    _, low, high = t_interval(values) if values else (math.nan,) * 3
    ends = Counter(_end(replicate, label) for replicate in found)
    outcomes = [OutcomeCount(outcome, cause, count) for (outcome, cause), count in ends.items()]
    if len(found) < runs_expected:
        outcomes.append(OutcomeCount(NOT_RUN, "", runs_expected - len(found)))
    same = _same_weights(found)
    return CellValue(mean, std, n, expected, low, high, runs, runs_expected, tuple(outcomes), same)


def _same_weights(found: tuple[ReplicateResult, ...]) -> bool | None:
    hashes = [replicate.weights for replicate in found if math.isfinite(replicate.value)]
    return None if len(hashes) < 2 or not all(hashes) else len(set(hashes)) == 1


def _best(
    values: tuple[tuple[CellValue | None, ...], ...], direction: Direction | None
) -> tuple[tuple[bool, ...], ...]:
    """True at the best mean of each column that has two values or more; nowhere where neither direction is better."""
    if direction is None:
        return tuple(tuple(False for _ in row) for row in values)
    means = [[math.nan if value is None else value.mean for value in row] for row in values]
    columns = [[mean for mean in column if not math.isnan(mean)] for column in zip(*means, strict=True)]
    best = [(min if direction == "minimize" else max)(column) if len(column) > 1 else None for column in columns]
    return tuple(tuple(mean == best[x] for x, mean in enumerate(row)) for row in means)


def _not_worse(column: Sequence[tuple[ReplicateResult, ...]], minimize: bool) -> tuple[list[bool | None], Tested]:
    """Whether no other cell of the column is shown to be better, None where that cannot be tested; and the tests."""
    values = [independent_values(found) for found in column]
    seeds = sorted(set().union(*values))
    scores = np.array([[runs.get(seed, math.nan) for runs in values] for seed in seeds]).reshape(-1, len(column))
    whole = [not any_failed(found) for found in column]
    tested = not_distinguishable_from_best(scores, maximize=not minimize, may_show=whole)
    kept = [None if math.isnan(p) else bool(same) for p, same in zip(tested.p, tested.not_distinguishable, strict=True)]
    pairs = [(y, z) for y, z in combinations(range(len(column)), 2) if values[y] and values[z]]
    common = [int(tested.pairs[pair]) for pair in pairs if tested.tested[pair]]
    why = ["" if same is not None or not values[y] else _why_untested(y, tested.pairs) for y, same in enumerate(kept)]
    return kept, Tested(min(common, default=0), max(common, default=0), len(common), len(pairs), tuple(why))


def _why_untested(y: int, pairs: NDArray[np.int64]) -> str:
    return (
        "fewer than two seeds in common"
        if np.delete(pairs[y], y).max(initial=0) < 2
        else "the differences have no spread"
    )


def _end(replicate: ReplicateResult, label: str) -> tuple[str, str]:
    """The ending of a replicate and its cause; `label` is the class that the metric is of."""
    if replicate.outcome == FINISHED and math.isnan(replicate.value):
        absent = f"{label} is in neither truth nor prediction" if label else ""
        return NO_SCORE, replicate.cause or absent
    return replicate.outcome, replicate.cause


def _checkpoint_note(header: StudyHeader, metric: str) -> tuple[str, ...]:
    """A note on the weights that are scored, where they are not simply the last."""
    best = [cell for cell, kept in header.checkpoints.items() if kept != "last"]
    if is_probe(metric) or not best:
        return ()
    named = "" if len(best) == len(header.checkpoints) else f": {few(best)}; in other cells from the last weights"
    tuned = " (tuned)" if "tuned" in header.checkpoints.values() else ""
    what = f"scores come from the weights with the best val/jaccard of each training{tuned}"
    return (f"{what}, independent of tune.target{named}",)


def _patience_note(results: pandas.DataFrame, metric: str) -> tuple[str, ...]:
    """Return the fine-tunings that patience ended before their last epoch; a probe's metric is of none."""
    found = results[(results["phase"] == "confirm") & (results["metric"] == "train/stopped_epoch")]
    if is_probe(metric) or found.empty:
        return ()
    counts = Counter(found["cell"])
    named = ", ".join(f"{cell} ({count})" for cell, count in list(counts.items())[:6])
    return (f"stopped early by patience (how many seeds in brackets): {named}{' ...' if len(counts) > 6 else ''}",)


def _itself_note(partner: str) -> tuple[str, ...]:
    return () if not partner else (f"empty: {partner} compared with itself, 1 by definition; no cell is the best",)


def _average_note(metric: str, definition: MetricDefinition) -> tuple[str, ...]:
    """Return what a score is the mean of, where it is not of one confusion matrix over the split."""
    of_images = pattern_of(metric).startswith("SPLIT/") and not definition.average.startswith(PIXELS)
    return (f"{metric}: {definition.average}",) if of_images else ()


def _nested_note(header: StudyHeader, metric: str) -> tuple[str, ...]:
    if is_probe(metric) or header.pretrainings == header.replicates:
        return ()
    each = header.replicates // header.pretrainings
    what = "mean of its fine-tunings that finished"
    return (f"nested seeds: n counts pretrainings, as only these are independent; each value is the {what}, of {each}",)


def _lay_out_published(
    every: Sequence[PublishedTable], metric: str, rows: Sequence[tuple[str, ...]], columns: Sequence[tuple[str, ...]]
) -> tuple[tuple[tuple[PublishedValue | None, ...], ...] | None, tuple[str, ...]]:
    """Published values in the table's places, and notes on them; a value without a place is said so."""
    published = next((table for table in every if table.metric == metric), None)
    if published is None:
        return None, ()
    by_labels = {value.labels: value for value in published.values}
    placed = tuple(tuple(by_labels.get(row + column) for column in columns) for row in rows)
    lost = by_labels.keys() - {row + column for row in rows for column in columns}
    notes = [f"published: {published.note}"] if published.note else []
    notes += [f"published for {' / '.join(labels)}, which is no cell of this study" for labels in sorted(lost)]
    return placed, tuple(notes)


def differences_from_published(header: StudyHeader, metric: str = "") -> tuple[str, ...]:
    """Return what the study says of its differences from the published one, in full at the first metric of both.

    Elsewhere the number of differences, and where they are listed; nothing where the study does not say.
    """
    differs, both = header.report.differs, {table.metric for table in header.published}
    if differs is None or not both:
        return ()
    if not differs:
        return ("the study knows of no difference from the published one",)
    first = next((shown for shown in header.report.metrics if shown in both), "")
    counted = f"known differences from the published study, and choices where it is silent: {len(differs)}"
    if metric != first:
        return (f"{counted}, listed below the table of {first}",)
    return (counted, *(f"({number}) {sentence}" for number, sentence in enumerate(differs, start=1)))


def places(table: Table) -> Iterator[tuple[int, int, CellValue]]:
    """Row, column and value of every cell that the study has."""
    for y, row in enumerate(table.values):
        yield from ((y, x, value) for x, value in enumerate(row) if value is not None)


def inside_interval(ours: CellValue, theirs: PublishedValue) -> bool | None:
    """Whether a published mean lies in our 95 % interval; None where we have none."""
    return None if math.isnan(ours.low) else ours.low <= theirs.mean <= ours.high
