"""Two studies side by side: cells of equal label, their difference, and the settings in which the studies differ.

Seeds are not paired here. Two studies may use other data, splits or code, and then equal seed numbers have nothing in
common; Welch's test needs no pairing, at the price of a wider interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import rich.box
import rich.table
import yaml
from numpy.typing import ArrayLike
from rich.console import JustifyMethod
from rich.text import Text
from scipy import stats

from pretune.analysis.digits import DASH, decimals, number, p_value
from pretune.analysis.load.replicates import FINISHED, Replicate, independent_values, replicates
from pretune.analysis.load.results import ResultsError, load, load_header
from pretune.analysis.statistics import MeanStd, holm, mean_std

_LONGEST_NAME = 16  # of a column: at 80 columns, longer ones are cut
_NAMES = ("study", "question", "report", "published", "scales", "tune", "resources")  # what no result depends on


class Welch(NamedTuple):
    """Difference of two means with unequal variances; NaN where either side has one run."""

    difference: float  # mean of b - mean of a
    low: float  # 95 % interval
    high: float
    p: float  # two-sided


class Row(NamedTuple):
    """One cell in both studies."""

    cell: str
    first: MeanStd
    second: MeanStd
    welch: Welch
    p_holm: float  # Holm-corrected over all rows


@dataclass(frozen=True)
class Comparison:
    """Two studies in one metric. Cells that only one of them has are named, not guessed."""

    metric: str
    first: str
    second: str
    rows: tuple[Row, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]  # dotted key, value in the first, value in the second
    percent: bool = False  # where both studies print percent
    shared: str = ""  # which confirmed stage runs are in both, which makes them no independent samples


def compare_folders(first: Path, second: Path, metric: str | None = None) -> tuple[Comparison, ...]:
    """Compare two studies' output folders in `metric`, or in every metric that both report.

    Raises ResultsError where results cannot be read, or no metric or no finished cell is common to both.
    """
    a, b = load_header(first), load_header(second)
    metrics = [metric] if metric else [name for name in a.report.metrics if name in b.report.metrics]
    if not metrics:
        raise ResultsError(f"{a.study} and {b.study} report no metric in common: name one with --metric")
    settings = tuple(different_settings(first, second))
    names = (a.study, b.study) if a.study != b.study else (str(first), str(second))
    results = load(first), load(second)
    found = (
        compare(replicates(results[0], a, name), replicates(results[1], b, name), name, names, settings)
        for name in metrics
    )
    shared = shared_runs(*results)
    return tuple(
        replace(one, percent=a.in_percent(one.metric) and b.in_percent(one.metric), shared=shared) for one in found
    )


def shared_runs(first: pandas.DataFrame, second: pandas.DataFrame) -> str:
    """What two studies' confirmed stage runs have in common, by fingerprint, in a sentence; "" for nothing."""
    ours, theirs = _confirmed(first), _confirmed(second)
    if not (both := ours.keys() & theirs.keys()):
        return ""
    if ours.keys() == theirs.keys():
        return f"both hold the same {len(both)} stage runs: this is one study beside itself, and nothing is compared"
    stages = Counter(ours[run] for run in both)
    named = ", ".join(f"{count} {stage}" for stage, count in stages.items())
    return (
        f"the studies share {len(both)} confirmed stage runs ({named}) of {len(ours)} and {len(theirs)}: they are not "
        "independent, which Welch's interval and p take them to be"
    )


def _confirmed(results: pandas.DataFrame) -> dict[str, str]:
    """Fingerprint -> stage of every confirmed stage run that finished."""
    rows = results[(results["phase"] == "confirm") & (results["outcome"] == FINISHED)]
    return dict(zip(rows["fingerprint"].astype(str), rows["stage"].astype(str), strict=True))


def compare(
    first: Mapping[str, tuple[Replicate, ...]],
    second: Mapping[str, tuple[Replicate, ...]],
    metric: str,
    names: tuple[str, str],
    settings: tuple[tuple[str, str, str], ...] = (),
) -> Comparison:
    """Cell label -> replicates, of both; nested fine-tunings are averaged per pretraining. Raises ResultsError."""
    ours, theirs = _values(first), _values(second)
    cells = [cell for cell in ours if cell in theirs]
    if not cells:
        raise ResultsError(f"{names[0]} and {names[1]} have no finished cell of equal name: nothing can be compared")
    tests = [welch(ours[cell], theirs[cell]) for cell in cells]
    corrected = holm([test.p for test in tests])
    rows = tuple(
        Row(cell, mean_std(ours[cell]), mean_std(theirs[cell]), test, float(p))
        for cell, test, p in zip(cells, tests, corrected, strict=True)
    )
    only = tuple(cell for cell in ours if cell not in theirs), tuple(cell for cell in theirs if cell not in ours)
    return Comparison(metric, *names, rows, *only, settings)


def _values(found: Mapping[str, tuple[Replicate, ...]]) -> dict[str, list[float]]:
    values = {cell: list(independent_values(runs).values()) for cell, runs in found.items()}
    return {cell: runs for cell, runs in values.items() if runs}


def welch(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Welch:
    """Welch's t-test and interval for mean(b) - mean(a), both `(runs,)` and independent, assuming normal runs.

    NaN bounds and p where a side has one run, or neither has any spread.
    """
    x, y = mean_std(a), mean_std(b)
    errors = np.array([x.std**2 / x.n, y.std**2 / y.n])
    difference, total = y.mean - x.mean, float(errors.sum())
    if not total > 0:  # one run (NaN), or copies of one run on both sides
        return Welch(difference, math.nan, math.nan, math.nan)
    degrees = total**2 / float((errors**2 / np.array([x.n - 1, y.n - 1])).sum())
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(total)
    p = 2 * float(stats.t.sf(abs(difference) / math.sqrt(total), degrees))
    return Welch(difference, difference - half, difference + half, p)


def different_settings(first: Path, second: Path) -> Iterator[tuple[str, str, str]]:
    """Dotted keys of the two studies' files with other values, without those that no result depends on."""
    a, b = dict(_flat(_study_file(first))), dict(_flat(_study_file(second)))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key) and key.split(".")[0] not in _NAMES:
            yield key, str(a.get(key, DASH)), str(b.get(key, DASH))


def _study_file(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ResultsError(f"{folder / 'study.yaml'} cannot be read: it is missing or damaged") from error


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


# ---------------------------------------------------------------------------------------------------------- layout


def to_rich(found: Comparison) -> rich.table.Table:
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


def to_markdown(found: Comparison) -> str:
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


def cells_of(row: Row, digits: int, percent: bool) -> list[str]:
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
    """What the numbers do not say."""
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
    return said if found.settings else [*said, "the settings that results depend on are equal"]


def _mean(value: MeanStd, digits: int, percent: bool) -> str:
    std = DASH if math.isnan(value.std) else number(value.std, digits, percent)
    return f"{number(value.mean, digits, percent)} ± {std} ({value.n})"


def _pipe(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
