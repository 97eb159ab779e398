"""Tables laid out: `to_markdown`, `to_latex`, `to_html`, `to_rich`, which round, and `to_csv`, which does not."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import rich.table
from rich.text import Text

from analysis.results import PublishedValue
from analysis.tables import DASH, CellValue, Difference, Differences, Outcome, Table, lower_is_better


class _Grid(NamedTuple):
    """A table as text: what every written format shares."""

    caption: str
    left: int  # leading columns that hold labels
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]]  # body positions
    notes: tuple[str, ...]


def to_markdown(table: Table | Differences) -> str:
    """A pipe table with its caption above and its notes below; ends in a newline."""
    grid = _grid(table)
    rows = [[_pipe(cell) for cell in row] for row in _embolden(grid, "**{}**".format)]
    rule = ["---"] * grid.left + ["---:"] * (len(grid.head) - grid.left)
    lines = ["| " + " | ".join(row) + " |" for row in [[_pipe(name) for name in grid.head], rule, *rows]]
    notes = [f"- {_pipe(note)}" for note in grid.notes]
    return "\n".join([_pipe(grid.caption), "", *lines, *(["", *notes] if notes else [])]) + "\n"


def to_latex(table: Table | Differences) -> str:
    """A `table` environment in booktabs style (\\usepackage{booktabs}); ends in a newline."""
    grid = _grid(table)
    escaped = grid._replace(body=tuple(tuple(map(_tex, row)) for row in grid.body))
    rows = [" & ".join(row) + r" \\" for row in _embolden(escaped, r"\textbf{{{}}}".format)]
    notes = [rf"\\ {{\footnotesize {_tex(note)}}}" for note in grid.notes]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(grid.caption)}}}",
        rf"\begin{{tabular}}{{{'l' * grid.left}{'r' * (len(grid.head) - grid.left)}}}",
        r"\toprule",
        " & ".join(map(_tex, grid.head)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *notes,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_html(table: Table | Differences) -> str:
    """A `table` element: caption above, notes in its foot, best of each column in <strong>; all text is escaped."""
    grid = _grid(table)
    escaped = grid._replace(body=tuple(tuple(map(html.escape, row)) for row in grid.body))
    rows = [_html_row(row, grid.left) for row in _embolden(escaped, "<strong>{}</strong>".format)]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in grid.head)
    notes = "".join(f'<tr><td colspan="{len(grid.head)}">{html.escape(note)}</td></tr>' for note in grid.notes)
    foot = f"<tfoot>{notes}</tfoot>" if notes else ""
    caption = f"<caption>{html.escape(grid.caption)}</caption>"
    body = "\n".join(rows)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>{foot}</table>\n"


def _html_row(cells: Sequence[str], left: int) -> str:
    labels = "".join(f'<th scope="row">{cell}</th>' for cell in cells[:left])
    return f"<tr>{labels}{''.join(f'<td>{cell}</td>' for cell in cells[left:])}</tr>"


def to_rich(table: Table | Differences) -> rich.table.Table:
    """The table for a terminal: best of each column bold, published numbers beneath ours, notes below."""
    grid = _grid(table, beneath=True)
    title = Text(f"{table.study}: {table.metric}", style="bold")
    pretty = rich.table.Table(title=title, caption=Text("\n".join([grid.caption, *grid.notes])), caption_justify="left")
    for position, name in enumerate(grid.head):
        label = position < grid.left
        pretty.add_column(Text(name), justify="left" if label else "right", style="cyan" if label else "")
    for y, row in enumerate(grid.body):
        last_of_group = grid.left > 1 and y + 1 < len(grid.body) and grid.body[y + 1][0] != row[0]
        cells = (_rich_cell(text, (y, x) in grid.bold) for x, text in enumerate(row))
        pretty.add_row(*cells, end_section=last_of_group)
    return pretty


def to_csv(table: Table | Differences) -> str:
    """Tidy rows with a header line, unrounded, never in percent; a missing number is an empty field.

    A table: row factors, column factors, metric, mean, std, n, n_expected (published too, where there is a published
    table), one row per cell. Differences: the fields of `Difference` after the metric.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(_tidy_table(table) if isinstance(table, Table) else _tidy_differences(table))
    return text.getvalue()


def _tidy_table(table: Table) -> Iterable[list[str]]:
    published = [] if table.published is None else ["published", "published_std"]
    yield [*table.row_factors, *table.column_factors, "metric", "mean", "std", "n", "n_expected", *published]
    for y, x, value in _places(table):
        numbers = [*map(_full, (value.mean, value.std)), str(value.n), str(value.n_expected)]
        theirs = table.published[y][x] if table.published else None
        numbers += [_full(theirs.mean if theirs else None), _full(theirs.std if theirs else None)][: len(published)]
        yield [*table.rows[y], *table.columns[x], table.metric, *numbers]


def _tidy_differences(table: Differences) -> Iterable[list[str]]:
    yield ["metric", *Difference._fields]
    for row in table.rows:
        yield [table.metric, row.cell, row.baseline, *map(_full, row[2:7]), str(row.n)]


def _full(number: float | None) -> str:
    return "" if number is None or math.isnan(number) else repr(float(number))


def _places(table: Table) -> Iterable[tuple[int, int, CellValue]]:
    for y, row in enumerate(table.values):
        yield from ((y, x, value) for x, value in enumerate(row) if value is not None)


def _grid(table: Table | Differences, beneath: bool = False) -> _Grid:
    """`beneath` puts published values under ours in place of beside them."""
    return _table_grid(table, beneath) if isinstance(table, Table) else _differences_grid(table)


def _table_grid(table: Table, beneath: bool) -> _Grid:
    digits, common = _digits(table), _common_n(table)
    footnotes = _footnotes(table)
    marks = {place: _superscript(number) for number, place in enumerate(footnotes, start=1)}
    ours = [["" for _ in table.columns] for _ in table.rows]
    for y, x, value in _places(table):
        text = _format_value(value, digits, table.percent, show_n=common is None)
        ours[y][x] = text + marks.get((y, x), "")
    labels = [list(row) or ["all"] for row in table.rows]
    body = [label + _with_published(table, y, ours[y], beneath) for y, label in enumerate(labels)]
    step = 2 if table.published is not None and not beneath else 1
    best = frozenset((y, len(labels[0]) + step * x) for y, x in _best(table))
    left = list(table.row_factors) or [""]
    notes = [f"{marks[place]} {text}" for place, text in footnotes.items()]
    return _Grid(
        _caption(table, common), len(left), (*left, *_head(table, beneath)), tuple(map(tuple, body)), best,
        (*_single_note(table), *notes, *table.notes),
    )  # fmt: skip


def _head(table: Table, beneath: bool) -> list[str]:
    """Column names: the level labels, or the metric where there is one column without a label."""
    names = [" ".join(_factor_level(table, column)) or table.metric for column in table.columns]
    if table.published is None or beneath:
        return names
    return list(chain.from_iterable((name, f"{name} published") for name in names))


def _factor_level(table: Table, column: tuple[str, ...]) -> list[str]:
    """'labels=10%': a level without its factor's name says too little in a heading."""
    return [f"{factor}={level}" for factor, level in zip(table.column_factors, column, strict=True) if level]


def _with_published(table: Table, y: int, ours: list[str], beneath: bool) -> list[str]:
    if table.published is None:
        return ours
    digits = _published_digits(chain.from_iterable(table.published))
    theirs = [_format_published(value, digits, table.percent) for value in table.published[y]]
    if beneath:
        return [f"{own}\npublished {their}" if their else own for own, their in zip(ours, theirs, strict=True)]
    return list(chain.from_iterable(zip(ours, theirs, strict=True)))


def _differences_grid(table: Differences) -> _Grid:
    digits = _decimals([row.high - row.difference for row in table.rows if row.high > row.difference])
    body = tuple(_difference_row(row, digits, table.percent) for row in table.rows)
    unit = ", percentage points" if table.percent else ""
    what = f"{table.metric}: paired difference to {table.baseline}{unit}"
    caption = f"{what}, 95 % t interval (each alone), Holm-corrected p (all together)"
    return _Grid(caption, 1, ("cell", "difference", "95 % interval", "p (Holm)", "n"), body, frozenset(), table.notes)


def _difference_row(row: Difference, digits: int, percent: bool) -> tuple[str, ...]:
    difference, low, high = (_number(value, digits, percent, sign=True) for value in row[2:5])
    p = DASH if math.isnan(row.p_holm) else "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
    interval = DASH if math.isnan(row.low) else f"[{low}, {high}]"
    return row.cell, difference, interval, p, str(row.n)


# --------------------------------------------------------------------------------------- numbers, captions, footnotes


def _decimals(spreads: Sequence[float]) -> int:
    """Decimals of a fraction that keep two leading digits of the median spread, between 2 and 4; 3 without spreads."""
    positive = [abs(spread) for spread in spreads if spread]
    if not positive:
        return 3
    return min(4, max(2, 1 - math.floor(math.log10(float(np.median(positive))))))


def _digits(table: Table) -> int:
    return _decimals([value.std for _, _, value in _places(table) if value.std > 0])


def _number(value: float, digits: int, percent: bool, sign: bool = False) -> str:
    scaled, decimals = (100 * value, digits - 2) if percent else (value, digits)
    return f"{scaled:+.{decimals}f}".replace("-", "−") if sign else f"{scaled:.{decimals}f}"


def _format_value(value: CellValue, digits: int, percent: bool, show_n: bool) -> str:
    """'0.712 ± 0.013 (n=3)', '0.712 ± –' for one seed, '–' for none."""
    if value.n == 0:
        return DASH
    std = DASH if math.isnan(value.std) else _number(value.std, digits, percent)
    return f"{_number(value.mean, digits, percent)} ± {std}" + (f" (n={value.n})" if show_n else "")


def _format_published(value: PublishedValue | None, digits: int, percent: bool) -> str:
    if value is None:
        return ""
    mean = _number(value.mean, digits, percent)
    return mean if value.std is None else f"{mean} ± {_number(value.std, digits, percent)}"


def _published_digits(values: Iterable[PublishedValue | None]) -> int:
    """Decimals of a fraction with which the paper prints its table: no more than its values need, at least 2."""
    means = [value.mean for value in values if value is not None]
    return next(digits for digits in range(2, 9) if digits == 8 or all(abs(round(m, digits) - m) < 1e-9 for m in means))


def _common_n(table: Table) -> int | None:
    """The n of all cells that have a value, where it is the same; 0 where none has."""
    counts = {value.n for _, _, value in _places(table) if value.n}
    return next(iter(counts), 0) if len(counts) <= 1 else None


def _caption(table: Table, common: int | None) -> str:
    percent = ", percent" if table.percent else ""
    if common == 0:
        return f"{table.metric}{percent}: nothing has finished"
    n = "" if common is None else f" (n={common})"
    return f"{table.metric}{percent}: mean ± standard deviation over seeds{n}"


def _single_note(table: Table) -> tuple[str, ...]:
    return ("one seed: no standard deviation",) if any(value.n == 1 for _, _, value in _places(table)) else ()


def _footnotes(table: Table) -> dict[tuple[int, int], str]:
    """Positions of cells with fewer replicates than expected -> which cell, how many, and why."""
    return {(y, x): _shortfall(table, y, x, value) for y, x, value in _places(table) if value.n < value.n_expected}


def _shortfall(table: Table, y: int, x: int, value: CellValue) -> str:
    factors, levels = table.row_factors + table.column_factors, table.rows[y] + table.columns[x]
    name = " ".join(f"{factor}={level}" for factor, level in zip(factors, levels, strict=True) if level) or "all"
    whys = (_why(outcome) for outcome in value.outcomes if outcome.outcome != "finished")
    return f"{name}: {value.n} of {value.n_expected} seeds; {', '.join(whys)}"


def _why(outcome: Outcome) -> str:
    return f"{outcome.count} {outcome.outcome}" + (f" ({outcome.cause})" if outcome.cause else "")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _best(table: Table) -> list[tuple[int, int]]:
    """Positions of the best mean of each column, ties included; a column with one value has no best."""
    direction = -1.0 if lower_is_better(table.metric) else 1.0
    best = []
    for x in range(len(table.columns)):
        column = {y: direction * value.mean for y, at, value in _places(table) if at == x and value.n}
        if len(column) > 1:
            best += [(y, x) for y, score in column.items() if score == max(column.values())]
    return best


def _embolden(grid: _Grid, bold: Callable[[str], str]) -> list[list[str]]:
    return [
        [bold(text) if (y, x) in grid.bold else text for x, text in enumerate(row)] for y, row in enumerate(grid.body)
    ]


def _rich_cell(text: str, bold: bool) -> Text:
    """Ours on the first line, published numbers dim beneath it."""
    own, newline, published = text.partition("\n")
    return Text(own, style="bold" if bold else "") + Text(newline + published, style="dim not bold")


def _pipe(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


_TEX = str.maketrans({
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--", "−": "$-$", "<": r"$<$", ">": r"$>$", "\n": " ",
    **{digit: rf"\textsuperscript{{{n}}}" for n, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
})  # fmt: skip


def _tex(text: str) -> str:
    return text.translate(_TEX)
