"""Tables of mean ± standard deviation over seeds, and differences to a baseline, from the confirm phase alone.

First the numbers (`build`, `differences`), then their layout (`to_markdown`, `to_latex`, `to_html`, `to_rich`), which
rounds, and `to_csv`, which does not.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
import pandas
import rich.table
from rich.text import Text

from analysis.results import Cell, Published, PublishedValue, ResultsError, StudyHeader
from analysis.statistics import holm, mean_std, paired_difference, smallest_possible_p

DASH = "–"
_MOST_PAIRS_TO_WARN = 5  # at six pairs an exact test can reach 0.05


# -------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Outcome:
    """How many of a cell's replicates ended in one way, and why (cause "" where there is nothing to say)."""

    outcome: str  # finished, diverged, crashed, blocked; "no value" and "not run" are this module's
    cause: str
    count: int


@dataclass(frozen=True)
class CellValue:
    """Mean and sample standard deviation (NaN below two) over the n replicates that finished."""

    mean: float
    std: float
    n: int
    n_expected: int
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
    published: tuple[tuple[PublishedValue | None, ...], ...] | None  # as `values`
    percent: bool
    notes: tuple[str, ...]


class Difference(NamedTuple):
    """Paired difference of a cell to its baseline cell: positive where the cell's metric is higher."""

    cell: str
    baseline: str
    difference: float
    low: float  # 95 % t interval
    high: float
    p: float
    p_holm: float  # Holm-corrected over all rows
    n: int  # pairs: seeds, or pretrainings where seeds are nested


@dataclass(frozen=True)
class Differences:
    """Every cell against its baseline, for one metric."""

    study: str
    metric: str
    baseline: str
    rows: tuple[Difference, ...]
    percent: bool
    notes: tuple[str, ...]


class Replicate(NamedTuple):
    """What one replicate of a cell came to; `value` is NaN where there is none."""

    seeds: tuple[int, int, int]  # seed, pretraining seed, fine-tuning seed; -1 where seeds are not nested
    outcome: str
    cause: str
    value: float

    @property
    def pretraining(self) -> int:
        """The seed that separates independent replicates: that of the pretraining, where seeds are nested."""
        seed, pretrain, _ = self.seeds
        return seed if pretrain < 0 else pretrain


def build(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Table:
    """The table of `metric`, from the confirm phase's fine-tunings (or probes, for a metric "probe/...").

    Rows and columns follow the study's report section: by default all factors but the last, and the last; a factor
    named in neither becomes a row. Raises ResultsError for an unknown factor or a metric that no finished run reports.
    """
    found = replicates(results, header, metric)
    row_factors, column_factors = _layout(header)
    rows, columns = _labels(header, row_factors), _labels(header, column_factors)
    expected = header.pretrainings if _is_probe(metric) else header.replicates
    by_levels = {
        _key(cell, row_factors + column_factors): _summary(found[cell.label], expected) for cell in header.cells
    }
    values = tuple(tuple(by_levels.get(row + column) for column in columns) for row in rows)
    published, notes = _lay_out_published(header.published, metric, rows, columns)
    return Table(
        study=header.study,
        metric=metric,
        row_factors=row_factors,
        column_factors=column_factors,
        rows=rows,
        columns=columns,
        values=values,
        published=published,
        percent=header.report.percent and not lower_is_better(metric),
        notes=(*_nested_note(header, metric), *notes),
    )


def differences(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Differences:
    """Each cell's paired difference to its baseline cell, with t interval and Holm-corrected p.

    A cell's baseline is the cell with the baseline's levels in its place and all other levels its own, so that a
    baseline that names no labels level is compared within each labels level. Pairs are equal seeds; nested
    fine-tunings are first averaged per pretraining, which is what is independent. Raises ResultsError where the study
    names no baseline, or one that is not among its cells.
    """
    found = replicates(results, header, metric)
    rows, notes = [], []
    for cell, baseline in _against_baseline(header):
        ours, theirs = _paired(found[cell.label], found[baseline.label])
        if ours:
            rows.append((cell.label, baseline.label, *paired_difference(ours, theirs)))
        else:
            notes.append(f"{cell.label}: no seed finished both here and in the baseline {baseline.label}")
    corrected = holm([row[5] for row in rows])
    done = tuple(Difference(*row[:6], float(p), row[6]) for row, p in zip(rows, corrected, strict=True))
    return Differences(
        study=header.study,
        metric=metric,
        baseline=" ".join(f"{factor}={level}" for factor, level in header.report.baseline.items()),
        rows=done,
        percent=header.report.percent and not lower_is_better(metric),
        notes=(*_few_pairs_note(done), *notes),
    )


def replicates(results: pandas.DataFrame, header: StudyHeader, metric: str) -> dict[str, tuple[Replicate, ...]]:
    """Cell label -> its replicates of the confirm phase in seed order, failed ones included."""
    runs = _stage_runs(results, metric)
    _require_metric(runs, metric)
    collected: dict[str, dict[tuple[int, int, int], Replicate]] = {cell.label: {} for cell in header.cells}
    for row in _records(runs):
        replicate = _replicate(row, metric)
        for label in _cells_of(row, header):
            known = collected[label].get(replicate.seeds)
            if known is None or math.isnan(known.value):  # a run has one row per metric: keep the one asked for
                collected[label][replicate.seeds] = replicate
    return {label: tuple(by_seed[seeds] for seeds in sorted(by_seed)) for label, by_seed in collected.items()}


def _records(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in runs.to_dict("records")]


def lower_is_better(metric: str) -> bool:
    """A loss is minimised; every other metric is a fraction to be maximised."""
    return "loss" in metric.rsplit("/", 1)[-1]


# ------------------------------------------------------------------------------------------ from rows to replicates


def _is_probe(metric: str) -> bool:
    return metric.startswith(("probe/", "probe:"))


def _stage_runs(results: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Confirm-phase rows of the stage that reports `metric`; a probe named in the metric leaves out the others."""
    confirm = results[results["phase"] == "confirm"]
    if not _is_probe(metric):
        return confirm[confirm["stage"] == "finetune"]
    probes = confirm[confirm["stage"].str.startswith("probe:")]
    named = probes[probes["stage"] == "probe:" + metric[len("probe/") :].split("/")[0]]
    runs = probes if named.empty else named
    reporting = sorted(set(runs.loc[runs["metric"].map(lambda name: _same_metric(name, metric)), "stage"]))
    if len(reporting) > 1:
        raise ResultsError(f"{metric} is reported by {', '.join(reporting)}: name one, as in probe/NAME/METRIC")
    return runs[runs["stage"] == reporting[0]] if reporting else runs


def _same_metric(name: str, metric: str) -> bool:
    """A probe's accuracy may be stored under its full name or as the last part alone."""
    return name == metric or (_is_probe(metric) and name == metric.split("/", 2)[-1])


def _require_metric(runs: pandas.DataFrame, metric: str) -> None:
    """A metric that no finished run reports is a mistake in its name; without finished runs it cannot be told."""
    names = sorted({name for name in runs.loc[runs["outcome"] == "finished", "metric"] if name})
    if names and not any(_same_metric(name, metric) for name in names):
        raise ResultsError(f"no confirmed run reports {metric!r}: choose from {', '.join(names)}")


def _replicate(row: dict[str, Any], metric: str) -> Replicate:
    asked = _same_metric(str(row["metric"]), metric) and row["outcome"] == "finished"
    seeds = (_seed(row["seed"]), _seed(row.get("seed_pretrain")), _seed(row.get("seed_finetune")))
    value = row["value"]
    return Replicate(
        seeds=seeds,
        outcome=str(row["outcome"]),
        cause="" if _is_missing(row["cause"]) else str(row["cause"]),
        value=float(value) if asked and isinstance(value, (int, float)) else math.nan,
    )


def _is_missing(value: object) -> bool:
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))


def _seed(value: Any) -> int:
    return -1 if _is_missing(value) else int(value)


def _cells_of(row: dict[str, Any], header: StudyHeader) -> list[str]:
    """The cell a row names; a run shared by several cells names none, and belongs to all with its factor levels."""
    if row["cell"] and not _is_missing(row["cell"]):
        return [cell.label for cell in header.cells if cell.label == row["cell"]]
    levels = {factor: row.get(f"factor.{factor}") for factor in header.factors}
    known = {factor: level for factor, level in levels.items() if not _is_missing(level)}
    return [cell.label for cell in header.cells if all(cell.levels.get(f) == level for f, level in known.items())]


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
    ends = Counter((_end(replicate), replicate.cause) for replicate in found)
    outcomes = [Outcome(outcome, cause, count) for (outcome, cause), count in ends.items()]
    if len(found) < expected:
        outcomes.append(Outcome("not run", "", expected - len(found)))
    return CellValue(mean, std, n, expected, tuple(outcomes))


def _end(replicate: Replicate) -> str:
    unreported = replicate.outcome == "finished" and math.isnan(replicate.value)
    return "no value" if unreported else replicate.outcome


def _nested_note(header: StudyHeader, metric: str) -> tuple[str, ...]:
    if _is_probe(metric) or header.pretrainings == header.replicates:
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


def _against_baseline(header: StudyHeader) -> list[tuple[Cell, Cell]]:
    """Every cell that is not a baseline, with its baseline; cells whose baseline the study leaves out are skipped."""
    wanted = header.report.baseline
    if not wanted:
        raise ResultsError("the study names no baseline: write one under report, as in baseline: {encoder: unfrozen}")
    cells = {tuple(sorted(cell.levels.items())): cell for cell in header.cells}
    targets = [(cell, cells.get(tuple(sorted({**cell.levels, **wanted}.items())))) for cell in header.cells]
    pairs = [(cell, target) for cell, target in targets if target is not None and target != cell]
    if all(target is None for _, target in targets):
        named = " ".join(f"{factor}={level}" for factor, level in wanted.items())
        raise ResultsError(f"the baseline {named} is not among the study's cells: check its levels")
    return pairs


def _paired(cell: tuple[Replicate, ...], baseline: tuple[Replicate, ...]) -> tuple[list[float], list[float]]:
    """Values of seeds that finished in both, averaged over the fine-tunings of one pretraining."""
    theirs = {replicate.seeds: replicate.value for replicate in baseline}
    groups: dict[int, list[tuple[float, float]]] = {}
    for replicate in cell:
        pair = (replicate.value, theirs.get(replicate.seeds, math.nan))
        if not any(map(math.isnan, pair)):
            groups.setdefault(replicate.pretraining, []).append(pair)
    means = [np.mean(pairs, axis=0) for pairs in groups.values()]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def _few_pairs_note(rows: Sequence[Difference]) -> tuple[str, ...]:
    fewest = min((row.n for row in rows), default=_MOST_PAIRS_TO_WARN + 1)
    if fewest > _MOST_PAIRS_TO_WARN:
        return ()
    reachable = f"{smallest_possible_p(fewest):.2g}"
    assumed = f"n={fewest}: p and interval lean on normal differences"
    return (f"{assumed}; an exact sign-flip test cannot fall below p={reachable}",)


# ---------------------------------------------------------------------------------------------------------- layout


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
    caption = f"{table.metric}: paired difference to {table.baseline}{unit}, 95 % t interval, Holm-corrected p"
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
