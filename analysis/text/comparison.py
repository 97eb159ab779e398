"""Studies side by side, as text for every written format: sentences, and tables of means, differences and settings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import rich.box
import rich.table
from rich.console import RenderableType
from rich.text import Text

from pretune.analysis.digits import DASH, decimals, few, number, out_of, p_value
from pretune.analysis.questions.compare import CellDifference, Comparison, MetricComparison, StudyCell
from pretune.analysis.questions.differing import Differing
from pretune.analysis.statistics import ALPHA
from pretune.analysis.text.formats import markdown_of
from pretune.analysis.text.grids import TextGrid

_SHOWN = 4  # cells that a sentence names


def comparison_markdown(found: Comparison) -> str:
    """The whole comparison in Markdown; ends in a newline."""
    parts = [f"# {' · '.join(found.names)}\n", *(f"- {line}" for line in legend(found))]
    parts += [""] if legend(found) else []
    for metric in found.metrics:
        parts += ["\n".join(f"{said}\n" for said in sentences(found, metric))]
        parts += [markdown_of(means_grid(found, metric))]
        parts += [markdown_of(differences_grid(found, metric))] if metric.differences else []
    return "\n".join([*parts, markdown_of(differing_grid(found))])


def comparison_tables(found: Comparison) -> list[RenderableType]:
    """The same for a terminal, narrow; legend and notes below."""
    parts: list[RenderableType] = [Text(line) for line in legend(found)]
    for metric in found.metrics:
        grids = [means_grid(found, metric), *([differences_grid(found, metric)] if metric.differences else [])]
        parts += [*map(_rich, grids), *map(Text, sentences(found, metric))]
    return [*parts, _rich(differing_grid(found))]


def _rich(grid: TextGrid) -> RenderableType:
    title, caption = Text(grid.caption, style="bold"), Text("\n".join(grid.notes))
    if not grid.body:
        return Text.assemble(title, "\n", caption)
    table = rich.table.Table(
        title=title, caption=caption, title_justify="left", caption_justify="left",
        box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for place, name in enumerate(grid.head):
        left = place < grid.left
        table.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for row in grid.body:
        table.add_row(*map(Text, row))
    return table


def legend(found: Comparison) -> tuple[str, ...]:
    """'A: runs/simclr', where names are letters."""
    return () if found.names == found.titles else tuple(map("{}: {}".format, found.names, found.titles))


# -------------------------------------------------------------------------------------------------------- sentences


def sentences(found: Comparison, metric: MetricComparison) -> tuple[str, ...]:
    """Each other study against the first: what is shown, how seeds are paired, and what else differs."""
    first, *others = found.names
    said = [_against(first, other, metric) for other in others]
    return (*said, *pairing_sentences(found, metric), *_cause(found, metric))


def _against(first: str, other: str, metric: MetricComparison) -> str:
    rows = [row for row in metric.differences if row.study == other]
    tested = [row for row in rows if math.isfinite(row.p)]
    start = f"{other} against {first} in {metric.metric}"
    if not rows:
        return f"{start}: no cell has a value in both, so nothing is compared."
    if not tested:
        same = sum(row.same_runs for row in rows)
        if same == len(rows):
            return f"{start}: both values come from the same stage runs, so there is no difference to test."
        return f"{start}: no cell can be tested. A test needs two seeds and some spread on each side."
    shown = [row for row in tested if row.shown]
    of = f"{len(tested)} tested cell{'s' * (len(tested) != 1)}"
    tests = sum(math.isfinite(row.p) for row in metric.differences)
    largest = max(shown or tested, key=lambda row: abs(row.difference))
    if not shown:
        return f"{start}: no difference is shown in {of}; the largest: {_size(largest, metric)}."
    higher = sum(row.difference > 0 for row in shown)
    counts = f"{higher} higher, {len(shown) - higher} lower, after Holm over {tests} test{'s' * (tests != 1)}"
    are = "is" if len(shown) == 1 else "are"
    return f"{start}: {len(shown)} of {of} {are} shown to differ ({counts}); the largest: {_size(largest, metric)}."


def _size(row: CellDifference, metric: MetricComparison) -> str:
    """'a=x +0.031 (95 % interval +0.010 to +0.052, 3 paired seeds)'."""
    digits = _difference_digits(metric)
    size, low, high = (number(value, digits, metric.percent, sign=True) for value in row[2:5])
    pairs = f"{row.pairs} paired seed{'s' * (row.pairs != 1)}" if row.pairs else "seeds not paired"
    return f"{row.cell} {size}{' points' * metric.percent} (95 % interval {low} to {high}, {pairs})"


def pairing_sentences(found: Comparison, metric: MetricComparison) -> Iterator[str]:
    """Sentences on the studies that are paired over seeds, and on why others are not."""
    first, rows = found.names[0], [row for row in metric.differences if not row.same_runs]
    if paired := list(dict.fromkeys(row.study for row in rows if not _is_welch(row, metric))):
        same = "equal seeds have the same split into training, validation and test images"
        yield f"Paired by seed with {first}: {few(paired, _SHOWN)}; {same}."
    welch = {row.study for row in rows if _is_welch(row, metric)}
    for study, why, cells in metric.unpaired:
        if study in welch:
            every = len(cells) == sum(row.study == study for row in metric.differences)
            where = "" if every else f" in {few(cells, _SHOWN)}"
            yield f"Not paired with {first}{where}: {study}, because {why}. Welch's test is used instead."
    for study, said in found.shared:
        if study in welch:
            yield f"{said}: they are not independent, although Welch's test assumes it."


def _is_welch(row: CellDifference, metric: MetricComparison) -> bool:
    return any(row.study == study and row.cell in cells for study, _, cells in metric.unpaired)


def _cause(found: Comparison, metric: MetricComparison) -> Iterator[str]:
    """Whether a difference in scores can be put down to one thing."""
    several = {(row.part, row.name) for row in found.differing.rows}
    if len(several) > 1 and metric.differences:
        yield f"The studies differ in {len(several)} things, listed below. Differences in scores come from all of them."


# ----------------------------------------------------------------------------------------------------------- tables


def means_grid(found: Comparison, metric: MetricComparison) -> TextGrid:
    """A row for each cell of any study, a column for each study."""
    digits = _digits(metric)
    body = tuple(
        (cell, *(_mean(value, digits, metric.percent) for value in row))
        for cell, row in zip(metric.cells, metric.means, strict=True)
    )
    unit = ", percent" if metric.percent else ""
    short = [
        f"{cell} in {name}"
        for cell, row in zip(metric.cells, metric.means, strict=True)
        for name, value in zip(found.names, row, strict=True)
        if value is not None and value.mean.n < value.expected
    ]
    fewer = "fewer values than planned, so the mean may cover only the better runs"
    notes = [f"{fewer}: {few(short, _SHOWN)}"] if short else []
    none = [
        f"{cell} in {name}"
        for name, planned in found.planned
        for place, cell in enumerate(metric.cells)
        if cell in planned and metric.means[place][found.names.index(name)] is None
    ]
    notes += [f"planned, without any value: {few(none, _SHOWN)}"] if none else []
    notes += [f"only in {name}: {few(cells, _SHOWN)}" for name, cells in found.only]
    caption = f"{metric.metric}: mean ± standard deviation (n){unit}"
    return TextGrid(caption, 1, ("cell", *found.names), body, frozenset(), tuple(notes))


def differences_grid(found: Comparison, metric: MetricComparison) -> TextGrid:
    """A row for each common cell and other study."""
    digits, several = _difference_digits(metric), len(found.names) > 2
    body = tuple(
        (row.cell, *([row.study] if several else []), *_difference(row, metric, digits)) for row in metric.differences
    )
    head = ("cell", *(["study"] if several else []), "difference", "95 % interval", "p (Holm)", "test")
    unit = ", points" if metric.percent else ""
    caption = f"{metric.metric}{unit}: difference to {found.names[0]}, 95 % interval (each alone)"
    notes = []
    if any(row.same_runs for row in metric.differences):
        notes.append("same runs: the values come from the same stage runs in both studies")
    if lost := sum(row.unpaired for row in metric.differences):
        notes.append(f"runs that finished in only one study have no partner and are excluded: {lost}")
    flattered = [f"{row.cell} of {row.study}" for row in metric.differences if row.flattered and row.p_holm < ALPHA]
    if flattered:
        why = "replicates of the better side failed and may have been its worst, so no difference is claimed for"
        notes.append(f"{why}: {few(flattered, _SHOWN)}")
    if any(not row.same_runs and math.isnan(row.low) for row in metric.differences):
        notes.append("no interval: one seed, or no spread")
    return TextGrid(caption, 2 if several else 1, head, body, frozenset(), tuple(notes))


def _difference(row: CellDifference, metric: MetricComparison, digits: int) -> tuple[str, str, str, str]:
    difference, low, high = (number(value, digits, metric.percent, sign=True) for value in row[2:5])
    interval = DASH if math.isnan(row.low) else f"[{low}, {high}]"
    test = "same runs" if row.same_runs else "Welch" if _is_welch(row, metric) else f"paired, n={row.pairs}"
    return DASH if math.isnan(row.difference) else difference, interval, p_value(row.p_holm), test


def differing_grid(found: Comparison) -> TextGrid:
    """A row for each thing that differs, a column for each study."""
    body = tuple((_named(row), *row.values) for row in found.differing.rows)
    caption = "What else differs" if body else "What else differs: nothing that was compared"
    notes = [*_equal(found), *(said for _, said in found.shared)]
    if any("" in row.values for row in found.differing.rows):
        notes.append("empty: the study has none of these cells")
    return TextGrid(caption, 1 + len(found.names), ("what", *found.names), body, frozenset(), tuple(notes))


def _named(row: Differing) -> str:
    return row.name + (f" (in {row.where})" if row.where else "")


def _equal(found: Comparison) -> Iterator[str]:
    """Parts that are equal, and parts that could not be compared."""
    if found.differing.equal:
        yield f"compared and equal: {', '.join(found.differing.equal)}"
    if found.only:
        yield "settings and tuned values are compared in the cells that are in two studies or more"
    for part, why in found.differing.unknown:
        yield f"not compared: {part} ({why})"
    if found.differing.as_written:
        names = few(found.differing.as_written)
        yield f"settings are compared as written, without defaults: this version cannot resolve those of {names}"


def _digits(metric: MetricComparison) -> int:
    """By the spread of the replicates, as in a study's own table."""
    return decimals([value.mean.std for row in metric.means for value in row if value and value.mean.std > 0])


def _difference_digits(metric: MetricComparison) -> int:
    """By the spread of paired differences, and no fewer than the means have."""
    spreads = [row.std for row in metric.differences if row.std > 0]
    return max(_digits(metric), decimals(spreads)) if spreads else _digits(metric)


def _mean(value: StudyCell | None, digits: int, percent: bool) -> str:
    if value is None:
        return DASH
    std = DASH if math.isnan(value.mean.std) else number(value.mean.std, digits, percent)
    return f"{number(value.mean.mean, digits, percent)} ± {std} ({out_of(value.mean.n, value.expected)})"
