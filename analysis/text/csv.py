"""Tables as CSV: tidy rows with a header line, unrounded, never in percent; a missing number is an empty field."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pretune.analysis.load.results import PublishedValue
from pretune.analysis.questions.components import Component
from pretune.analysis.questions.differences import Difference, Differences
from pretune.analysis.questions.effects import Effect, Effects
from pretune.analysis.questions.folds import FoldMean, Folds
from pretune.analysis.questions.image_bootstrap import CellInterval, Intervals
from pretune.analysis.questions.tables import CellValue, Table, inside_interval, places
from pretune.analysis.text.grids import AnyTable


def to_csv(table: AnyTable) -> str:
    """One row per cell, comparison, effect or component.

    A table: row factors, column factors, metric, mean, std, n, n_expected, the 95 % interval of the mean, the runs
    behind it (fine-tunings, where seeds are nested), whether it is best in its column, and whether it is that or not
    shown to be worse (empty where it could not be compared); where there is a published table also its mean and std,
    ours minus published, and whether the published mean lies in our interval. Else: the fields of the rows.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_rows(table))
    return text.getvalue()


def joined(tables: Iterable[AnyTable]) -> str:
    """One CSV of several tables of a kind. Columns that only some have, as of published values, come last in those."""
    parts = [list(_rows(table)) for table in tables]
    head = max((part[0] for part in parts), key=len)
    rows = [row + [""] * (len(head) - len(row)) for part in parts for row in part[1:]]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def _rows(table: AnyTable) -> Iterable[list[str]]:
    if isinstance(table, Table):
        return _table(table)
    if isinstance(table, Folds):
        return _named(table.metric, FoldMean._fields, table.rows)
    if isinstance(table, Intervals):
        return _named(table.metric, CellInterval._fields, table.rows)
    if isinstance(table, Differences):
        return _named(table.metric, Difference._fields, table.rows)
    if isinstance(table, Effects):
        lines = [(" × ".join(row.factors), *row[1:], p) for row, p in zip(table.rows, table.p_holm, strict=True)]
        return _named(table.metric, ("effect", *Effect._fields[1:], "p_holm"), lines)
    return _named(table.metric, Component._fields, table.rows)


def _named(metric: str, fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[list[str]]:
    yield ["metric", *fields]
    yield from ([metric, *map(_field, row)] for row in rows)


def _table(table: Table) -> Iterable[list[str]]:
    numbers = ["metric", "mean", "std", "n", "n_expected", "low", "high", "runs", "runs_expected"]
    numbers += ["best", "not_distinguishable"]
    compared = [] if table.published is None else ["published", "published_std", "difference", "inside_interval"]
    yield [*table.row_factors, *table.column_factors, *numbers, *compared]
    for y, x, value in places(table):
        row = [table.metric, value.mean, value.std, value.n, value.n_expected, value.low, value.high]
        row += [value.runs, value.runs_expected, table.best[y][x]]
        row += [None if (rival := table.rivals[y][x]) is None else table.best[y][x] or rival]
        theirs = table.published[y][x] if table.published else None
        row += _against(value, theirs) if compared else []
        yield [*table.rows[y], *table.columns[x], *map(_field, row)]


def _against(ours: CellValue, theirs: PublishedValue | None) -> list[Any]:
    if theirs is None:
        return [None] * 4
    return [theirs.mean, theirs.std, ours.mean - theirs.mean, inside_interval(ours, theirs)]


def _field(value: Any) -> str:
    """Booleans as in YAML, whole numbers as such, other numbers in full; nothing for what is missing."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)
