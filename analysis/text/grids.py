"""Tables as text, which every written format shares: digits by the uncertainty, marks, captions and footnotes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from pretune.analysis.digits import DASH, decimals, few, number, out_of, p_value
from pretune.analysis.load.results import PublishedValue
from pretune.analysis.questions.components import Component, Components
from pretune.analysis.questions.differences import Difference, Differences
from pretune.analysis.questions.effects import Effect, Effects, effect_digits
from pretune.analysis.questions.folds import FoldMean, Folds
from pretune.analysis.questions.image_bootstrap import CellInterval, Intervals, out_of_range
from pretune.analysis.questions.tables import CellValue, OutcomeCount, Table, inside_interval, places
from pretune.search_spaces.words import counted

AnyTable = Table | Folds | Intervals | Differences | Effects | Components
_WIDE = 0.5  # of an interval, in shares of the metric's range
WEIGHTS_SAID = {True: ", their weights are equal (SHA-256)", False: ", their weights differ (SHA-256)", None: ""}
BEST = " *"  # beside the best of a column where nothing can be bold
RIVAL = " ≈"  # beside a cell that is not shown to be worse than its column's best
SIDES = {1: " ↑", -1: " ↓", 0: ""}  # beside a cell that is shown to be above, below its baseline cell


class TextGrid(NamedTuple):
    """A table as text: what every written format shares."""

    caption: str
    left: int  # leading columns that hold labels
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]]  # body positions
    notes: tuple[str, ...]


def text_grid(table: AnyTable, beneath: bool = False) -> TextGrid:
    """`beneath` puts published values under ours in place of beside them."""
    if isinstance(table, Table):
        return _table_grid(table, beneath)
    if isinstance(table, Folds):
        return _folds_grid(table)
    if isinstance(table, Intervals):
        return _intervals_grid(table)
    if isinstance(table, Differences):
        return _differences_grid(table)
    return _effects_grid(table) if isinstance(table, Effects) else _components_grid(table)


def _table_grid(table: Table, beneath: bool) -> TextGrid:
    digits, common = table_digits(table), _common_n(table)
    footnotes = _footnotes(table)
    numbered = {text: _superscript(number) for number, text in enumerate(footnotes, start=1)}
    marks = {place: numbered[text] for text, group in footnotes.items() for place in group}
    ours = [["" for _ in table.columns] for _ in table.rows]
    for y, x, value in places(table):
        text = _format_value(value, digits, table.percent, show_n=common is None)
        side = SIDES[table.against.sides[y][x]] if table.against is not None else ""
        ours[y][x] = text + side + (RIVAL if table.rivals[y][x] else "") + marks.get((y, x), "")
    labels = [list(row) or ["all"] for row in table.rows]
    step = 2 if table.published is not None and not beneath else 1
    body = [label + _with_published(table, y, ours[y], beneath) for y, label in enumerate(labels)]
    best = frozenset((y, len(labels[0]) + step * x) for y, x, _ in places(table) if table.best[y][x])
    left = list(table.row_factors) or [""]
    notes = [
        f"{numbered[text]} {few([place_name(table, *place) for place in group])}: {text}"
        for text, group in footnotes.items()
    ]
    return TextGrid(
        _caption(table, common), len(left), (*left, *_head(table, beneath)), tuple(map(tuple, body)), best,
        (
            *_rivals_note(table), *_baseline_note(table), *_published_note(table), *_single_note(table),
            *_no_spread_note(table), *_best_of_survivors_note(table), *notes, *table.notes,
        ),
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
    theirs = [
        _format_published(value, digits, table.percent) + _agreement(table, own, value)
        for own, value in zip(table.values[y], table.published[y], strict=True)
    ]
    if beneath:
        return [f"{own}\npublished {their}" if their else own for own, their in zip(ours, theirs, strict=True)]
    return list(chain.from_iterable(zip(ours, theirs, strict=True)))


def _agreement(table: Table, ours: CellValue | None, theirs: PublishedValue | None) -> str:
    """' (−0.006, inside)': ours minus published, and where the published mean lies."""
    if ours is None or theirs is None or not ours.n:
        return ""
    where = {None: "", True: ", inside", False: ", outside"}[inside_interval(ours, theirs)]
    return f" ({number(ours.mean - theirs.mean, table_digits(table), table.percent, sign=True)}{where})"


def _folds_grid(table: Folds) -> TextGrid:
    digits = decimals([row.std for row in table.rows if row.std > 0])
    unit = ", percent" if table.percent else ""
    caption = f"{table.metric}{unit}: mean ± standard deviation over folds (factor {table.factor})"
    body = tuple((row.cell, _over_folds(row, digits, table.percent), str(row.folds)) for row in table.rows)
    return TextGrid(caption, 1, ("cell", "mean ± std", "folds"), body, frozenset(), table.notes)


def _over_folds(row: FoldMean, digits: int, percent: bool) -> str:
    if row.folds == 0:
        return DASH
    std = DASH if math.isnan(row.std) else number(row.std, digits, percent)
    return f"{number(row.mean, digits, percent)} ± {std}"


def _intervals_grid(table: Intervals) -> TextGrid:
    digits = decimals([row.high - row.mean for row in table.rows if row.high > row.mean])
    caption = f"{table.metric}{', percent' * table.percent}: mean and 95 % intervals, over seeds and over test images"
    head = ("cell", "mean", "over seeds", "n", "over test images", "images")
    body = tuple(_interval_row(row, digits, table.percent) for row in table.rows)
    return TextGrid(caption, 1, head, body, frozenset(), table.notes)


def _interval_row(row: CellInterval, digits: int, percent: bool) -> tuple[str, ...]:
    seeds, images = (
        DASH if math.isnan(low) else f"{number(low, digits, percent)} to {number(high, digits, percent)}"
        for low, high in ((row.low, row.high), (row.image_low, row.image_high))
    )
    return (
        row.cell,
        number(row.mean, digits, percent),
        seeds,
        str(row.n),
        images,
        str(row.images) if row.images else DASH,
    )


def _differences_grid(table: Differences) -> TextGrid:
    digits = difference_digits(table)
    unit = ", percentage points" if table.percent else ""
    what = f"{table.metric}: paired difference to {table.baseline}{unit}"
    caption = f"{what}, 95 % t interval (for each alone), p with Holm correction over this metric's comparisons"
    head = ["cell", "difference", "95 % interval", "p (Holm)", "n"]
    notes = table.notes
    if table.margin is not None:
        head[4:4] = ["90 % interval", "p (equivalence)"]
        margin = f"{100 * table.margin:g} points" if table.percent else f"{table.margin:g}"
        notes = (
            f"equivalence: p of two one-sided t-tests that the difference is within ±{margin}, Holm over this metric's "
            "comparisons; the 90 % interval is for each comparison alone",
            *notes,
        )
    body = tuple(_difference_row(row, digits, table.percent, table.margin is not None) for row in table.rows)
    return TextGrid(caption, 1, tuple(head), body, frozenset(), notes)


def _difference_row(row: Difference, digits: int, percent: bool, equivalence: bool) -> tuple[str, ...]:
    difference = number(row.difference, digits, percent, sign=True)
    interval, narrower = (
        DASH
        if math.isnan(low)
        else "[{}, {}]".format(*(number(end, digits, percent, sign=True) for end in (low, high)))
        for low, high in ((row.low, row.high), (row.equivalent_low, row.equivalent_high))
    )
    same = (narrower, p_value(row.p_equivalent)) if equivalence else ()
    return row.cell, difference, interval, p_value(row.p_holm), *same, str(row.n)


def _effects_grid(table: Effects) -> TextGrid:
    unit = ", percentage points" if table.percent else ""
    caption = f"{table.metric}: main effects and interactions, repeated-measures ANOVA with seeds as blocks "
    caption += f"(n={table.n}), p with Holm correction over this metric's effects"
    head = ("effect", f"size{unit}", "F", "degrees of freedom", "p", "p (Holm)", "η² (adjusted)")
    digits = effect_digits(table)
    lines = zip(table.rows, table.p_holm, strict=True)
    body = tuple(_effect_row(row, p, digits, table.percent) for row, p in lines)
    explained = (
        "size: largest minus smallest term of the effect (for two levels: the difference of their means); degrees of "
        "freedom and p have the Greenhouse-Geisser correction if a factor has more than two levels",
    )
    return TextGrid(caption, 1, head, body, frozenset(), (*(explained if body else ()), *table.notes))


def _effect_row(row: Effect, p_holm: float, digits: int, percent: bool) -> tuple[str, ...]:
    degrees = ", ".join(f"{df if math.isnan(row.epsilon) else row.epsilon * df:.4g}" for df in (row.df, row.df_error))
    f, eta = (DASH if math.isnan(value) else f"{value:.2f}" for value in (row.f, row.eta))
    return " × ".join(row.factors), number(row.size, digits, percent), f, degrees, p_value(row.p), p_value(p_holm), eta


def _components_grid(table: Components) -> TextGrid:
    unit = ", percentage points" if table.percent else ""
    head = ("where", "source of spread", f"std{unit}", "share of the variance", "95 % interval", "n")
    digits = decimals([row.std for row in table.rows])
    body = tuple(_component_row(row, digits, table.percent) for row in table.rows)
    return TextGrid(f"{table.metric}: where the spread comes from", 2, head, body, frozenset(), table.notes)


def _component_row(row: Component, digits: int, percent: bool) -> tuple[str, ...]:
    share = DASH if math.isnan(row.share) else f"{100 * row.share:.0f} %"
    interval = DASH if math.isnan(row.low) else f"{100 * row.low:.0f} to {100 * row.high:.0f} %"
    return row.where, row.source, number(row.std, digits, percent), share, interval, str(row.n)


# --------------------------------------------------------------------------------------- numbers, captions, footnotes


def table_digits(table: Table) -> int:
    return decimals([value.std for _, _, value in places(table) if value.std > 0])


def difference_digits(table: Differences) -> int:
    return decimals([row.std for row in table.rows if row.std > 0])


def _format_value(value: CellValue, digits: int, percent: bool, show_n: bool) -> str:
    """'0.712 ± 0.013 (n=3)', '0.712 ± –' for one seed, '–' for none; '(n=2 of 3)' where a replicate has no value."""
    if value.n == 0:
        return DASH
    std = DASH if math.isnan(value.std) else number(value.std, digits, percent)
    text = f"{number(value.mean, digits, percent)} ± {std}"
    return f"{text} ({count_of(value)})" if show_n or value.is_short else text


def count_of(value: CellValue) -> str:
    """'n=3'; 'n=2 of 3' where replicates have no value, and of nested seeds the fine-tunings too."""
    text = f"n={out_of(value.n, value.n_expected)}"
    nested = value.is_short and value.runs_expected > value.n_expected
    return text + (f", {value.runs} of {value.runs_expected} runs" if nested else "")


def _format_published(value: PublishedValue | None, digits: int, percent: bool) -> str:
    if value is None:
        return ""
    mean = number(value.mean, digits, percent)
    return mean if value.std is None else f"{mean} ± {number(value.std, digits, percent)}"


def _published_digits(values: Iterable[PublishedValue | None]) -> int:
    """Decimals of a fraction with which the paper prints its table: no more than its values need, at least 2."""
    means = [value.mean for value in values if value is not None]
    return next(digits for digits in range(2, 9) if digits == 8 or all(abs(round(m, digits) - m) < 1e-9 for m in means))


def _common_n(table: Table) -> int | None:
    """The n of all cells that have a value, where it is the same; 0 where none has."""
    counts = {value.n for _, _, value in places(table) if value.n}
    return next(iter(counts), 0) if len(counts) <= 1 else None


def _caption(table: Table, common: int | None) -> str:
    percent = ", percent" if table.percent else ""
    if common == 0:
        return f"{table.metric}{percent}: nothing has finished"
    n = "" if common is None else f" (n={common})"
    nested = any(value.runs_expected > value.n_expected for _, _, value in places(table))
    return f"{table.metric}{percent}: mean ± standard deviation over {'pretrainings' if nested else 'seeds'}{n}"


def _rivals_note(table: Table) -> tuple[str, ...]:
    """The claim of the marks, and what was not tested at all, which a missing mark would pass for worse."""
    if table.definition.direction is None:
        return ()
    counts = [n for used in table.tested for n in (used.fewest, used.most) if used.tests]
    said = []
    if counts:
        seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        tests, pairs = sum(used.tests for used in table.tested), sum(used.pairs for used in table.tested)
        which = "all" if tests == pairs else f"{tests} of {pairs}"
        said.append(
            f"{RIVAL.strip()} may be as good as the best; a cell that is not the best and has no {RIVAL.strip()} is "
            "clearly worse than another cell of its column "
            f"(one-sided paired t-tests of {which} pairs, n={seeds}, Holm correction within the column, 5 %)"
        )
    untested: dict[str, list[str]] = {}
    for y, x, why in _untested(table):
        untested.setdefault(why, []).append(place_name(table, y, x))
    if untested and not counts:
        whys = " or ".join(untested)
        said.append(f"no cells of a column could be compared ({whys}), so it is unknown which are worse than the best")
    elif untested:
        said += [f"not compared ({why}): {few(names)}" for why, names in untested.items()]
    failed = [place_name(table, y, x) for y, x, value in places(table) if value.n and value.failed]
    if counts and failed:
        said.append(f"replicates of these cells failed, so no cell is called worse than them: {few(failed)}")
    return tuple(said)


def _baseline_note(table: Table) -> tuple[str, ...]:
    """The claim of the arrows, and why a cell with ≈ can be on the lower side of one."""
    against = table.against
    if against is None or not any(map(any, against.sides)):
        return ()
    used = [side for side in (1, -1) if any(side in row for row in against.sides)]
    arrows = " ".join(SIDES[side].strip() for side in used)
    where = " or ".join({1: "above", -1: "below"}[side] for side in used)
    each = ", each" if against.tests > 1 else ""
    how = f"{counted(against.tests, 'paired t-test')}{each} against the baseline, Holm correction, 5 %"
    said = [f"{arrows} shown to be {where} the baseline {against.baseline} ({how})"]
    both = [place_name(table, y, x) for y, x, _ in places(table) if table.rivals[y][x] and against.worse[y][x]]
    if both:
        said.append(
            f"{few(both)}: {RIVAL.strip()}, although {SIDES[1].strip()} or {SIDES[-1].strip()} shows that another cell "
            f"is better; {RIVAL.strip()} comes from more tests, each of which needs stronger evidence"
        )
    return tuple(said)


def _untested(table: Table) -> Iterator[tuple[int, int, str]]:
    """Row, column and reason of every cell in a column of several values that was compared with none of them."""
    counts = Counter(x for _, x, value in places(table) if value.n)
    for y, x, value in places(table):
        if value.n and counts[x] > 1 and (why := table.tested[x].why[y]):
            yield y, x, why


def _no_spread_note(table: Table) -> tuple[str, ...]:
    alike = [(place_name(table, y, x), v) for y, x, v in places(table) if v.n > 1 and math.isnan(v.low)]
    said = {
        same: [name for name, value in alike if value.same_weights is same] for same in (True, False, None)
    }  # by the hash of the weights
    return tuple(
        f"no interval, because nothing varies: the replicates of {few(names)} score the same{WEIGHTS_SAID[same]}"
        for same, names in said.items()
        if names
    )


def _published_note(table: Table) -> tuple[str, ...]:
    if table.published is None:
        return ()
    pairs = [
        (y, x, value, theirs)
        for y, x, value in places(table)
        if (theirs := table.published[y][x]) is not None and value.n > 1
    ]
    most = _WIDE * table.definition.span
    wide = [
        place_name(table, y, x)
        for y, x, ours, theirs in pairs
        if inside_interval(ours, theirs) and ours.high - ours.low > most
    ]
    said = [
        "in brackets: our mean minus the published mean, and whether the published mean is inside our 95 % t interval"
    ]
    if wide:
        said.append(
            f"'inside' means little for these, as our interval is wider than half of the metric's range: {few(wide)}"
        )
    said += table.differs
    return (*said, *out_of_range([(ours.low, ours.high) for _, _, ours, _ in pairs], table.definition))


def _single_note(table: Table) -> tuple[str, ...]:
    ones = [value for _, _, value in places(table) if value.n == 1]
    if any(value.runs > 1 for value in ones):
        return (
            "one pretraining, so no standard deviation; the spread of its fine-tunings is in the table 'where the "
            "spread comes from'",
        )
    return ("one seed: no standard deviation",) if ones else ()


def _footnotes(table: Table) -> dict[str, list[tuple[int, int]]]:
    """Shortfall in words -> positions of the cells that have it; in a stopped study many share one."""
    found: dict[str, list[tuple[int, int]]] = {}
    for y, x, value in places(table):
        if value.is_short:
            found.setdefault(shortfall(value), []).append((y, x))
    return found


def shortfall(value: CellValue) -> str:
    """'3 of 5 seeds; 2 diverged (loss is NaN)'."""
    whys = (_why(outcome) for outcome in value.outcomes if outcome.outcome != "finished")
    what = "seeds" if value.runs_expected == value.n_expected else "fine-tunings"
    return f"{value.runs} of {value.runs_expected} {what}; {', '.join(whys)}"


def _best_of_survivors_note(table: Table) -> tuple[str, ...]:
    """Bold cells whose failed replicates are in no mean."""
    names = [place_name(table, y, x) for y, x, value in places(table) if table.best[y][x] and value.failed]
    if not names:
        return ()
    return (f"best mean, but some runs failed and are not in it: {few(names)}",)


def place_name(table: Table, y: int, x: int) -> str:
    factors, levels = table.row_factors + table.column_factors, table.rows[y] + table.columns[x]
    return " ".join(f"{factor}={level}" for factor, level in zip(factors, levels, strict=True) if level) or "all"


def _why(outcome: OutcomeCount) -> str:
    return f"{outcome.count} {outcome.outcome}" + (f" ({outcome.cause})" if outcome.cause else "")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
