"""The answer of a study in short sentences: what is shown, how large it is, what it means, what would settle it.

"Shown" is said by the tests that mark the tables alone: Holm over the comparisons with the baseline, or over the pairs
of a column. Replicates without a value stand beside it.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pandas
import yaml

from pretune.analysis.digits import few, in_unit, number
from pretune.analysis.load.replicates import FINISHED, independent_values, replicate_results, runs_expected
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.differences import Difference, Differences, differences
from pretune.analysis.questions.facts import collapsed
from pretune.analysis.questions.tables import Table, build_table, places
from pretune.analysis.statistics import ALPHA, seeds_needed
from pretune.analysis.text.answer import answer
from pretune.analysis.text.grids import difference_digits, place_name

_POWER = 0.8
_MOST_NAMED = 3  # further cells that the answer names
_FEW_SEEDS = 4  # up to which a spread is often small by chance: a t-test of 3 pairs has two degrees of freedom


def headline(results: pandas.DataFrame, header: StudyHeader, metric: str) -> str:
    """Short sentences; the first of `answer` where no direction is better or nothing finished. Raises ResultsError."""
    definition = header.definition(metric)
    means = _means(results, header, metric)
    if definition.direction is None or not means:
        return answer(results, header, metric)[0]
    sign = 1 if definition.direction == "maximize" else -1
    if header.report.baseline:
        said = _against_baseline(results, header, metric, means, sign)
    else:
        said = _among_cells(results, header, metric, means, sign)
    return f"{said}.{_missing(results, header, metric)}"


def left_open(results: pandas.DataFrame, header: StudyHeader) -> str:
    """Say that pairs without the baseline are not compared, and how to compare with the best cell; "" for no such pair.

    The best is that of the first metric. Raises ResultsError.
    """
    metric, baseline = header.report.metrics[0], header.report.baseline
    means, sign = _means(results, header, metric), header.definition(metric).direction == "maximize" or -1
    cells = {cell.label: {f: cell.levels.get(f, "") for f in baseline} for cell in header.cells if cell.label in means}
    others = [label for label, levels in cells.items() if levels != baseline]
    if len({tuple(cells[label].values()) for label in others}) < 2 or header.definition(metric).direction is None:
        return ""
    best = cells[max(others, key=lambda label: sign * means[label])]
    named = yaml.safe_dump(best, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf).strip()
    return (
        f"the answer compares each cell only with {_named(baseline)}. To compare with {_named(best)}, add --set "
        f"{shlex.quote(f'report.baseline={named}')} to your `pretune run` command; nothing is trained again. p then "
        "holds only if you chose this pair before you saw the table"
    )


def _named(levels: Mapping[str, str]) -> str:
    return " ".join(f"{factor}={level}" for factor, level in levels.items())


def _means(results: pandas.DataFrame, header: StudyHeader, metric: str) -> dict[str, float]:
    found = replicate_results(results, header, metric)
    values = {label: list(independent_values(part).values()) for label, part in found.items()}
    return {label: sum(part) / len(part) for label, part in values.items() if part}


def _missing(results: pandas.DataFrame, header: StudyHeader, metric: str) -> str:
    """' 3 of 24 replicates have no value (2 diverged, 1 not run).'"""
    expected = runs_expected(header, metric) * len(header.cells)
    found = [run for runs in replicate_results(results, header, metric).values() for run in runs]
    known = sum(math.isfinite(run.value) for run in found)
    if known >= expected:
        return ""
    ends = Counter(
        "no score" if run.outcome == "finished" else run.outcome for run in found if not math.isfinite(run.value)
    )
    ends += Counter({"not run": max(0, expected - len(found))})
    return f" {expected - known} of {expected} replicates have no value ({_listed(ends)})."


def _failed(results: pandas.DataFrame, header: StudyHeader, metric: str) -> dict[str, str]:
    """Cell -> '2 of its 5 runs failed ...', of those with any: they may have been the worst."""
    said = {}
    for label, runs in replicate_results(results, header, metric).items():
        if count := sum(run.outcome != FINISHED for run in runs):
            said[label] = f"{count} of its {len(runs)} runs failed. A failed run might have scored worst"
    return said


def _listed(ends: Counter[str]) -> str:
    return ", ".join(f"{count} {end}" for end, count in ends.items())


# --------------------------------------------------------------------------------------------------- with a baseline


def _against_baseline(
    results: pandas.DataFrame, header: StudyHeader, metric: str, means: dict[str, float], sign: int
) -> str:
    table, failed = differences(results, header, metric), _failed(results, header, metric)
    if not table.rows:
        return f"Not answered: no cell can be compared with the baseline {table.baseline}"
    shown = [row for row in table.rows if row.shown]
    above = [row for row in table.rows if row.p_holm < ALPHA and sign * row.difference > 0]
    better = [row for row in above if row.shown]
    if above and not better:
        row = max(above, key=lambda one: sign * one.difference)
        said = f"Not settled: {_improvement(row, table, means, header, metric)}. But {failed[row.cell]}"
        return said + _others_of(row, table, sign)
    if better:
        row = max(better, key=lambda one: sign * one.difference)
        shows = "shows" if len(better) == 1 else "show"
        of = f". {len(better)} of {len(table.rows)} comparisons {shows} an improvement" if len(table.rows) > 1 else ""
        said = f"Shown: {_improvement(row, table, means, header, metric)}{_doubts(row, results, header, metric)}{of}"
        return said + _others_of(row, table, sign)
    if len(shown) == len(table.rows):
        row = min(shown, key=lambda one: abs(one.difference))
        worse = _improvement(row, table, means, header, metric) + _doubts(row, results, header, metric)
        return f"Shown: every compared cell is worse than the baseline {table.baseline}. The closest: {worse}"
    row = max((one for one in table.rows if not one.shown), key=lambda one: sign * one.difference)
    shows = "shows" if len(shown) == 1 else "show"
    worse = f" {len(shown)} of {len(table.rows)} comparisons {shows} a worse score." if shown else ""
    which = "The best cell that is not" if shown else "The best other cell"
    closest = _improvement(row, table, means, header, metric)
    wanting = _wanting(row, table, failed, _tests(table))
    return (
        f"No clear answer: no cell is shown to be better than the baseline {table.baseline}.{worse} "
        f"{which}: {closest}. {wanting}{_others_of(row, table, sign)}"
    )


def _doubts(row: Difference, results: pandas.DataFrame, header: StudyHeader, metric: str) -> str:
    """Sentences beside what is shown: pretrainings that collapsed, and few seeds, which may agree by chance."""
    said = [
        f". But {found.runs} of {found.of} pretraining runs of {found.cell} showed signs of collapse"
        for found in collapsed(results, header)
        if found.cell in (row.cell, row.baseline)
    ]
    if row.n <= _FEW_SEEDS:
        nested = header.pretrainings < header.replicates
        more = f"run again with --set seeds.report{'.pretrain' * nested}=6"
        found, expected = replicate_results(results, header, metric), runs_expected(header, metric)
        unfinished = any(len(found[cell]) < expected for cell in (row.cell, row.baseline))
        advice = "let the study finish" if unfinished else more
        said.append(f". {row.n} {'pretrainings' if nested else 'seeds'} can agree by chance: {advice}")
    return "".join(said)


def _others_of(named: Difference, table: Differences, sign: int) -> str:
    """'. Not clear: a=z (+0.010). Shown to be worse: a=u (-0.200)': comparisons that no sentence names yet.

    Further improvements are counted where one is named. Better means that are not shown come first.
    """
    others = [row for row in table.rows if row is not named]
    open_ = sorted((row for row in others if not row.shown), key=lambda row: -sign * row.difference)
    larger = [row for row in open_ if named.shown and sign * row.difference > max(0, sign * named.difference)]
    parts = {
        "Larger, but not clear": larger,
        "Not clear": [row for row in open_ if row not in larger],
        "Shown to be worse": [row for row in others if row.shown and sign * row.difference < 0],
    }
    said = {start: few([_with_size(row, table) for row in rows], _MOST_NAMED) for start, rows in parts.items() if rows}
    if untold := [row for row in larger if not row.flattered]:  # else failures hold it back, and not the seeds
        said["Larger, but not clear"] += f". {_seeds(untold[0], table, _tests(table))}"
    return "".join(f". {start}: {names}" for start, names in said.items())


def _with_size(row: Difference, table: Differences) -> str:
    return f"{row.cell} ({_size(row, table)})"


def _size(row: Difference, table: Differences) -> str:
    """'+0.010' or '+1.0 points'."""
    unit = " points" if table.percent else ""
    return number(row.difference, difference_digits(table), table.percent, sign=True) + unit


def _improvement(row: Difference, table: Differences, means: dict[str, float], header: StudyHeader, metric: str) -> str:
    """'a=x has test/jaccard 0.75, which is 0.17 above a=y (both with b=z). 95 % interval of the difference: ...'."""
    digits = difference_digits(table)
    mean = in_unit(means[row.cell], digits, table.percent)
    side = "above" if row.difference >= 0 else "below"
    size = number(abs(row.difference), digits, table.percent) + (" points" if table.percent else "")
    unpaired = not math.isclose(means[row.cell] - means[row.baseline], row.difference, abs_tol=1e-9)
    what = "pretrainings" if header.pretrainings < header.replicates else "seeds"
    doubt = f"{row.n} paired {what if row.n > 1 else what[:-1]}"
    if math.isfinite(row.low):
        low, high = (number(bound, digits, table.percent, sign=True) for bound in (row.low, row.high))
        doubt = f"95 % interval of the difference: {low} to {high}, {doubt}"
    means_so = _in_practice(row, means, header, metric)
    ours, theirs, both = _apart(row, header)
    common = f" in the {row.n} {what} that both have" if unpaired else ""
    differs = f"{'; it is' if unpaired else ', which is'} {size} {side} {theirs}{both}{common}"
    return f"{ours} has {metric} {mean}{differs}. {doubt[0].upper()}{doubt[1:]}{means_so}"


def _apart(row: Difference, header: StudyHeader) -> tuple[str, str, str]:
    """'start=pretrained', 'start=random', ' (both with labels=12)': levels that two cells share are said once."""
    levels = {cell.label: cell.levels for cell in header.cells}
    ours, theirs = levels.get(row.cell), levels.get(row.baseline)
    if ours is None or theirs is None or len(ours) < 2:
        return row.cell, row.baseline, ""
    shared = {factor for factor, level in ours.items() if theirs.get(factor) == level}
    if not shared or shared == ours.keys():
        return row.cell, row.baseline, ""
    apart = [" ".join(f"{f}={level}" for f, level in cell.items() if f not in shared) for cell in (ours, theirs)]
    both = " ".join(f"{factor}={level}" for factor, level in ours.items() if factor in shared)
    return apart[0], apart[1], f" (both with {both})"


def _in_practice(row: Difference, means: dict[str, float], header: StudyHeader, metric: str) -> str:
    """The difference as a share of what the baseline lacks to a perfect score."""
    definition = header.definition(metric)
    if definition.unit != "fraction" or definition.direction != "maximize" or not row.p_holm < ALPHA:
        return ""
    lacking = 1 - (means[row.cell] - row.difference)
    if row.difference <= 0 or lacking <= 0:
        return ""
    return f". The gain is {100 * row.difference / lacking:.0f} % of the way from the baseline to a perfect score"


def _tests(table: Differences) -> int:
    """Comparisons that Holm's correction counts."""
    return sum(math.isfinite(row.p) for row in table.rows)


def _wanting(row: Difference, table: Differences, failed: Mapping[str, str], comparisons: int) -> str:
    """Runs that failed, or else the number of seeds, that keep a difference from being shown."""
    if row.flattered and row.p_holm < ALPHA:
        cell = row.cell if row.cell in failed else row.baseline
        return f"This is not shown, since {cell} lost runs: {failed[cell]}"
    return _seeds(row, table, comparisons)


def _seeds(row: Difference, table: Differences, comparisons: int) -> str:
    """The seeds that would show a difference of this size, in Holm's first step of so many two-sided tests."""
    if not (row.std > 0) or row.difference == 0:
        return "The number of seeds needed is unknown, because the spread is unknown"
    try:
        n = f"about {seeds_needed(row.difference, row.std, _POWER, ALPHA / max(1, comparisons)):,} seeds"
    except ValueError:
        n = "more than a million seeds"
    return f"If the true difference is {_size(row, table)}, {n} are needed to show it in 80 % of studies"


# ------------------------------------------------------------------------------------------------ without a baseline


def _among_cells(
    results: pandas.DataFrame, header: StudyHeader, metric: str, means: dict[str, float], sign: int
) -> str:
    """The cell of the best mean against all others, as the marks of a table of one column."""
    names = tuple(header.factors)
    alone = replace(header, report=replace(header.report, rows=names, columns=()), published=())
    table = build_table(results, alone, metric)
    best = max(means, key=lambda label: sign * means[label])
    levels = next(cell.levels for cell in header.cells if cell.label == best)
    beside = replace(header, report=replace(header.report, baseline=dict(levels)))
    rows, rivals = differences(results, beside, metric), _rivals(table, best)
    if not rows.rows or rivals is None:
        value = in_unit(means[best], 3, rows.percent)
        return f"Not answered: {best} has {metric} {value}. No other cell can be compared with it"
    others = len(means) - 1
    open_ = [one for one in rows.rows if one.cell in rivals] or rows.rows
    row = max(open_, key=lambda one: sign * one.difference)
    closest = f"The closest: {_improvement(row, rows, means, header, metric)}"
    failed = _failed(results, header, metric)
    if best in failed:
        return f"Not settled: {best} has the best mean, but {failed[best]}. {closest}"
    if not rivals:
        value = in_unit(means[best], difference_digits(rows), rows.percent)
        than = f"each of the {others} others" if others > 1 else "the other cell"
        than += " with a value" if len(means) < len(header.cells) else ""
        doubts = _doubts(row, results, header, metric)
        return f"Shown: {best} is better in {metric} ({value}) than {than}. {closest}{doubts}"
    are = "is" if len(rivals) == 1 else "are"
    open_cells = f"{len(rivals)} of the {others} other cells {are}" if others > 1 else "the other cell is"
    said = f"No clear answer: {best} has the best mean, but {open_cells} not shown to be worse"
    said += f" ({few(rivals, _MOST_NAMED)})"
    pairs = others * (others + 1) // 2  # each tested in one direction or the other
    return f"{said}. {closest}. {_wanting(row, rows, failed, pairs)}"


def _rivals(table: Table, best: str) -> list[str] | None:
    """The cells beside `best` that are not shown to be worse than another; None where none could be tested.

    A cell that ties with the best is not shown to be worse.
    """
    others = {place_name(table, y, x): (y, x) for y, x, value in places(table) if value.n}
    marks = {name: table.best[y][x] or table.rivals[y][x] for name, (y, x) in others.items() if name != best}
    if all(mark is None for mark in marks.values()):
        return None
    return [name for name, mark in marks.items() if mark is not False]
