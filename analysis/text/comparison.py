"""Two studies side by side, for a terminal and in Markdown."""

from __future__ import annotations

import math
from typing import Any

import rich.box
import rich.table
from rich.console import JustifyMethod
from rich.text import Text

from pretune.analysis.digits import DASH, decimals, number, p_value
from pretune.analysis.questions.compare import COMPARED, ComparedCell, Comparison
from pretune.analysis.statistics import MeanStd

_LONGEST_NAME = 16  # of a column: at 80 columns, longer ones are cut


def comparison_table(found: Comparison) -> rich.table.Table:
    """For a terminal: one row per common cell, other cells and settings below."""
    first, second = _short_names(found)
    title = Text(f"{second} against {first}: {found.metric}", style="bold")
    caption = Text("\n".join(notes(found)))
    narrow: dict[str, Any] = {"box": rich.box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = rich.table.Table(title=title, caption=caption, caption_justify="left", **narrow)
    digits = _digits(found)
    for place, name in enumerate(head(found)):
        side: JustifyMethod = "right" if place else "left"
        style = "" if place else "cyan"
        table.add_column(Text(name), justify=side, style=style, overflow="fold")
    for row in found.rows:
        table.add_row(*map(Text, cells_of(row, digits, found.percent)))
    return table


def comparison_markdown(found: Comparison) -> str:
    """A pipe table with its notes; ends in a newline."""
    first, second = _short_names(found)
    lines = [f"{second} against {first}: {found.metric}", ""]
    digits = _digits(found)
    rows = [head(found), ["---", *["---:"] * 5], *(cells_of(row, digits, found.percent) for row in found.rows)]
    lines += ["| " + " | ".join(_pipe(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {_pipe(note)}" for note in notes(found))]) + "\n"


def head(found: Comparison) -> list[str]:
    """Names of the columns; studies of long names, as of paths, are A and B."""
    unit = ", points" if found.percent else ""
    return ["cell", *_short_names(found), f"difference{unit}", "95 % interval (Welch)", "p (Holm)"]


def _digits(found: Comparison) -> int:
    """By the spread of the replicates, as in a study's own table."""
    return decimals([side.std for row in found.rows for side in (row.first, row.second) if side.std > 0])


def _short_names(found: Comparison) -> tuple[str, str]:
    long = max(len(found.first), len(found.second)) > _LONGEST_NAME
    return ("A", "B") if long else (found.first, found.second)


def cells_of(row: ComparedCell, digits: int, percent: bool) -> list[str]:
    """A row as text: mean ± std (n), twice; the difference with its interval and corrected p."""
    difference, low, high = (number(value, digits, percent, sign=True) for value in row.welch[:3])
    interval = DASH if math.isnan(row.welch.low) else f"[{low}, {high}]"
    return [
        row.cell,
        _mean(row.first, digits, percent),
        _mean(row.second, digits, percent),
        difference,
        interval,
        p_value(row.p_holm),
    ]


def notes(found: Comparison) -> list[str]:
    """Notes on all that the numbers do not say."""
    unit = ", percent" if found.percent else ""
    said = [f"mean ± standard deviation (n){unit}; the studies' seeds are not paired"]
    if _short_names(found) == ("A", "B"):
        said = [f"A: {found.first}", f"B: {found.second}", *said]
    said += [found.shared] if found.shared else []
    if any(row.first.n == 1 or row.second.n == 1 for row in found.rows):
        said.append("one seed on a side: no interval")
    for name, cells in ((found.first, found.only_first), (found.second, found.only_second)):
        said += [f"only in {name}: {', '.join(cells)}"] if cells else []
    said += [f"{key}: {ours} against {theirs}" for key, ours, theirs in found.settings]
    return [*said, *_equal(found)]


def _equal(found: Comparison) -> list[str]:
    """Lines on the parts that were compared and are equal, and on those that could not be compared."""
    unknown = [f"not compared: {', '.join(found.not_compared)}"] if found.not_compared else []
    if found.settings:
        return unknown
    equal = [name for name in COMPARED if name not in found.not_compared]
    return [*([f"compared and equal: {', '.join(equal)}"] if equal else []), *unknown]


def _mean(value: MeanStd, digits: int, percent: bool) -> str:
    std = DASH if math.isnan(value.std) else number(value.std, digits, percent)
    return f"{number(value.mean, digits, percent)} ± {std} ({value.n})"


def _pipe(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
