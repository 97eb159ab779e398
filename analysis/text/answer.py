"""The findings of a study in sentences, with the doubt beside each number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pandas

from pretune.analysis.digits import few, in_unit, number, out_of
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.differences import Differences, differences
from pretune.analysis.questions.dots import cell_dots
from pretune.analysis.questions.effects import effects, main_effects
from pretune.analysis.questions.facts import Facts
from pretune.analysis.questions.image_bootstrap import out_of_range
from pretune.analysis.questions.tables import CellValue, Table, build_table, places
from pretune.analysis.text.facts import fact_sentences
from pretune.analysis.text.grids import WEIGHTS_SAID, difference_digits, place_name, shortfall, table_digits

_SELECTED = (
    "Each interval is for one number alone. For the best of several cells, or for the largest of several differences, "
    "it covers the true value in less than 95 % of studies."
)
MOST_COLUMNS = 6  # whose best is said; a wider table is read as a table


def answer(results: pandas.DataFrame, header: StudyHeader, metric: str, facts: Facts | None = None) -> tuple[str, ...]:
    """Sentences: per column of the table its best cell with interval and those not shown to be worse, as the table
    marks them; cells without some of their values; `facts`; the factors' main effects; and what Holm's test says of
    the baseline. Raises ResultsError."""
    dots = cell_dots(results, header, metric)
    cells = _table(results, header, metric)
    if not any(cell.values for cell in dots):
        return (
            f"No replicate has finished with a value of {metric} yet, so there is no answer.",
            *_missing(cells),
        )
    sentences = [*_columns(cells), *_missing(cells)]
    if facts is not None:
        sentences += [f"{_sentence(said)}." for said in fact_sentences(facts)]
    sentences += main_effects(effects(results, header, metric))
    if header.report.baseline and (table := differences(results, header, metric)).rows:
        sentences.append(_baseline_sentence(table))
    definition = header.definition(metric)
    if sum(math.isfinite(cell.mean.low) for cell in dots) > 1 and definition.direction is not None:
        sentences.append(_SELECTED)
    sentences += [
        _sentence(said) + "." for said in out_of_range([(cell.mean.low, cell.mean.high) for cell in dots], definition)
    ]
    return tuple(sentences)


def _table(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Table:
    """The report's table; one of a single row is turned, so that its cells are compared with one another."""
    table = build_table(results, header, metric)
    if len(table.rows) > 1 or len(table.columns) == 1:
        return table
    turned = replace(header.report, rows=table.column_factors, columns=table.row_factors)
    return build_table(results, replace(header, report=turned, published=()), metric)


def _columns(table: Table) -> Iterator[str]:
    unknown: dict[str, list[int]] = {}  # why no cell of a column could be compared -> these columns
    for x in range(min(len(table.columns), MOST_COLUMNS)):
        column = [(y, value) for y, row in enumerate(table.values) if (value := row[x]) is not None and value.n]
        if column:
            yield _best_sentence(table, x, column)
            yield from _survivors(table, x, column)
        if any(not table.best[y][x] for y, _ in column) and table.definition.direction is not None:
            others = [y for y, _ in column if not table.best[y][x]]
            if any(table.rivals[y][x] is not None for y in others):
                yield _rivals_sentence(table, x, others)
            else:
                whys = " or ".join(dict.fromkeys(filter(None, table.tested[x].why)))
                unknown.setdefault(whys, []).append(x)
    for whys, columns in unknown.items():
        yield _sentence(f"{_where(table, *columns)}it is unknown which other cells are worse ({whys}).")
    if len(table.columns) > MOST_COLUMNS:
        yield f"The table has {len(table.columns) - MOST_COLUMNS} more columns, each with its own best."


def _best_of(table: Table, column: list[tuple[int, CellValue]]) -> tuple[int, CellValue]:
    lowest = table.definition.direction == "minimize"
    return (min if lowest else max)(column, key=lambda place: place[1].mean)


def _survivors(table: Table, x: int, column: list[tuple[int, CellValue]]) -> Iterator[str]:
    """Sentences on a best cell of which replicates failed, and on the best of the cells with all their values."""
    y, best = _best_of(table, column)
    if not best.failed:
        return
    wrong = "low" if table.definition.direction == "minimize" else "high"
    said = f"{best.failed} of its {best.runs_expected} replicates failed and {_are(best.failed)} not in this mean"
    yield f"{_where(table, x)}{_row(table, y)}: {said}, which may therefore be too {wrong}."
    whole = [place for place in column if not place[1].is_short]
    if whole:
        z, other = _best_of(table, whole)
        value = in_unit(other.mean, table_digits(table), table.percent)
        yield _sentence(f"{_where(table, x)}among the cells with all their values, {_row(table, z)} is best: {value}.")


def _missing(table: Table) -> Iterator[str]:
    """Cells without any value, and those without some; what is true of several cells is said once."""
    none: dict[str, list[str]] = {}
    some: dict[str, list[str]] = {}
    for y, x, value in places(table):
        if value.is_short:
            (some if value.n else none).setdefault(shortfall(value), []).append(place_name(table, y, x))
    for start, found in (("Cells without any value", none), ("Cells with fewer values than planned", some)):
        if found:
            yield f"{start}: {few([f'{few(names)} ({why})' for why, names in found.items()])}."


def _best_sentence(table: Table, x: int, column: list[tuple[int, CellValue]]) -> str:
    lowest = table.definition.direction == "minimize"
    y, best = _best_of(table, column)
    ties = sum(value.mean == best.mean for _, value in column) - 1
    shared = f" (a tie with {ties} more)" if ties else ""
    what = "pretraining" if best.runs_expected > best.n_expected else "seed"
    count = out_of(best.n, best.n_expected)
    digits = table_digits(table)
    doubt = f"one {what}, so its uncertainty is not known"
    if math.isfinite(best.low):
        low, high = (number(bound, digits, table.percent) for bound in (best.low, best.high))
        doubt = f"95 % t interval {low} to {high}, {count} {what}s"
    elif best.n > 1:
        alike = WEIGHTS_SAID[best.same_weights]
        doubt = f"{count} {what}s without any spread{alike}, so its uncertainty is not known"
    mean = in_unit(best.mean, digits, table.percent)
    direction = "lowest" if lowest else "highest"
    return f"{_where(table, x)}{_row(table, y)} has the {direction} mean {table.metric}{shared}: {mean} ({doubt})."


def _rivals_sentence(table: Table, x: int, others: list[int]) -> str:
    """The marks of one column, in words; `others` are the rows beside the best, of which some were tested."""
    tested = [y for y in others if table.rivals[y][x] is not None]
    rivals = [_row(table, y) for y in tested if table.rivals[y][x]]
    fewest, most, tests, pairs, _ = table.tested[x]
    which = "all" if tests == pairs else f"{tests} of {pairs}"
    how = f"paired t-tests of {which} pairs, n={fewest}{f' to {most}' * (most > fewest)}, Holm"
    shown = few(rivals, 4)
    untested = len(others) - len(tested)
    compared = " that could be compared" if untested else ""
    counted = f"{len(rivals)} of the {len(tested)} other cells{compared} {_are(len(rivals))}"
    said = f"{counted} not shown to be worse ({how}): {shown}"
    if not rivals:
        every = "every other cell" if sum(row[x] for row in table.best) == 1 else "every cell below these"
        said = f"{every}{compared} is shown to be worse ({how})"
    elif len(rivals) == len(tested):
        said = f"no other cell{compared} is shown to be worse ({how})"
    return _sentence(_where(table, x) + said + (f"; {untested} could not be compared." if untested else "."))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _where(table: Table, *columns: int) -> str:
    """'At labels=8, labels=all: '; "" where the table has one column."""
    levels = [zip(table.column_factors, table.columns[x], strict=True) for x in columns]
    named = ", ".join(" ".join(f"{factor}={level}" for factor, level in column if level) for column in levels)
    return f"At {named}: " if named and len(table.columns) > 1 else ""


def _row(table: Table, y: int) -> str:
    return " ".join(f"{f}={level}" for f, level in zip(table.row_factors, table.rows[y], strict=True) if level) or "all"


def _baseline_sentence(table: Differences) -> str:
    shown = [row for row in table.rows if row.shown]
    higher = sum(row.difference > 0 for row in shown)
    lower = len(shown) - higher
    counts = f"{higher} {_are(higher)} shown to be higher and {lower} {_are(lower)} shown to be lower"
    untested = sum(math.isnan(row.p) for row in table.rows)
    counts += f" and {untested} could not be tested" if untested else ""
    largest = max(table.rows, key=lambda row: abs(row.difference))
    digits = difference_digits(table)
    size, low, high = (
        number(value, digits, table.percent, sign=True) for value in (largest.difference, largest.low, largest.high)
    )
    around = f"[{low}, {high}]" if math.isfinite(largest.low) else "no interval"
    unit = " points" if table.percent else ""
    return (
        f"Of {len(table.rows)} cells compared with the baseline {table.baseline}, {counts} (Holm correction, 5 %). "
        f"The largest difference is {size}{unit} ({around}, {largest.cell})."
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
