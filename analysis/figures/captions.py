"""Caption and alternative text of every figure, from the numbers it draws.

A caption says what is shown, of how many, and what bands and bars are; an alternative text gives the numbers
themselves. Both go with the figure, in `layout.meta`: the page shows them, and `pretune report --figures` writes them
beside the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.digits import DASH, few, number, p_value
from pretune.analysis.load.timeline import Timeline, sentence
from pretune.analysis.questions.curves import AmountCurves, Band, LearningCurves
from pretune.analysis.questions.differences import Differences
from pretune.analysis.questions.dots import CellDots
from pretune.analysis.questions.interactions import Interaction
from pretune.analysis.questions.pairs import HeatMapGrid, Tradeoff
from pretune.analysis.questions.ranks import Ranks
from pretune.analysis.questions.tasks import Profiles, RankTest
from pretune.analysis.statistics import Interval
from pretune.search_spaces.words import counted

_MOST = 12  # items that an alternative text lists


def described(figure: go.Figure, caption: str, items: Iterable[str]) -> go.Figure:
    """The figure with its caption, and an alternative text of its items."""
    listed = list(items)
    more = f"; and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
    meta = {"caption": caption, "alt": "; ".join(listed[:_MOST]) + more}
    figure.update_layout(meta={key: text.replace("\x00", "") for key, text in meta.items()})
    return figure


def caption_of(figure: go.Figure) -> str:
    """The caption that a figure carries; "" of one without."""
    return str((figure.layout.meta or {}).get("caption", ""))


def alternative_of(figure: go.Figure) -> str:
    """The numbers that a figure shows, for those who cannot see it; "" of one without."""
    return str((figure.layout.meta or {}).get("alt", ""))


# ------------------------------------------------------------------------------------------------------------- cells


def dots(figure: go.Figure, cells: Sequence[CellDots], metric: str, published: bool) -> go.Figure:
    caption = f"{metric} of {counted(len(cells), 'cell')}. Circles: {_seeds([len(cell.values) for cell in cells])}. "
    caption += "Diamonds: their means with 95 % Student-t intervals."
    caption += " Stars: published values and their standard deviations." if published else ""
    items = (f"{cell.cell}: {_interval(cell.mean)}, n={cell.short or len(cell.values)}" for cell in cells)
    return described(figure, caption, items)


def differences(figure: go.Figure, table: Differences) -> go.Figure:
    caption = f"Difference in {table.metric} of {counted(len(table.rows), 'cell')} to the baseline, paired over "
    caption += f"{_seeds([row.n for row in table.rows])}, with 95 % Student-t intervals. "
    caption += "Filled: Holm-corrected p below 0.05."
    items = (
        f"{row.cell}: {_interval(Interval(row.difference, row.low, row.high), sign=True)}, {_p(row.p_holm)}"
        for row in table.rows
    )
    return described(figure, caption, items)


def learning(figure: go.Figure, curves: LearningCurves) -> go.Figure:
    caption = f"{curves.metric} over the steps of {curves.stage}. {_bands(curves.bands)}"
    ends = ((band.label, band) for band in curves.bands if len(band.x))
    items = (f"{label}: {_number(band.mean[0])} first, {_number(band.mean[-1])} last" for label, band in ends)
    return described(figure, caption, items)


def amounts(figure: go.Figure, curves: AmountCurves, saved: Sequence[str]) -> go.Figure:
    caption = f"{curves.metric} over {curves.factor}{', logarithmic' if curves.log else ''}. {_bands(curves.bands)}"
    caption += f" Dotted: to the {curves.factor} at which the baseline scores the same, with its 95 % interval." * bool(
        saved
    )
    names = dict(zip(curves.amounts, curves.levels, strict=True))
    items = [
        f"{band.label}: "
        + ", ".join(f"{_number(y)} at {names.get(float(x), f'{x:g}')}" for x, y in zip(band.x, band.mean, strict=True))
        for band in curves.bands
    ]
    return described(figure, caption, [*items, *saved])


def interaction(figure: go.Figure, found: Interaction) -> go.Figure:
    facets = f", one panel for each of {len(found.facets)} settings of the other factors" * (len(found.facets) > 1)
    caption = f"{found.metric} over {found.axis_factor}, a line for each {found.line_factor}{facets}. "
    caption += "Thin lines: seeds; thick: their mean."
    if any(math.isfinite(facet.contrast.low) for facet in found.facets):
        caption += " Interaction: the difference of differences, with its 95 % Student-t interval, paired over seeds."
    items = []
    for facet in found.facets:
        means = [f"{level}: {few([_number(_mean(column)) for column in table.T])}" for level, table in facet.lines]
        known = math.isfinite(facet.contrast.low)
        apart = f", difference of differences {_interval(facet.contrast, sign=True)}, n={facet.n}" if known else ""
        items.append(f"{facet.setting or 'all'}: {', '.join(means)}{apart}")
    return described(figure, caption, items)


def ranks(figure: go.Figure, found: Ranks) -> go.Figure:
    seeds, cells = counted(found.seeds, "seed"), counted(len(found.cells), "cell")
    caption = f"Share of resamples of {seeds} in which each of {cells} takes each rank in "
    caption += f"{found.metric}; rows are in the order of their means."
    items = (f"{cell} is first in {share:.0%}" for cell, share in zip(found.cells, found.share[:, 0], strict=True))
    return described(figure, caption, items)


def heat_map(figure: go.Figure, grid: HeatMapGrid) -> go.Figure:
    counts = grid.counts[grid.counts > 0]
    of = f", each the mean of {_range(counts.tolist())}" if len(counts) else ""
    caption = f"{grid.title or grid.column_name}: {grid.value_name}{of}."
    caption += " Colours span six standard deviations over seeds, or all values." if grid.span else ""
    return described(figure, caption, _extremes(grid))


def _extremes(grid: HeatMapGrid) -> list[str]:
    if not np.isfinite(grid.values).any():
        return ["no values"]
    places = [np.unravel_index(int(pick(grid.values)), grid.values.shape) for pick in (np.nanargmax, np.nanargmin)]
    names = [f"{_number(grid.values[y, x])} at {grid.rows[y]}, {grid.columns[x]}" for y, x in places]
    return [f"highest {names[0]}", f"lowest {names[1]}"]


def tradeoff(figure: go.Figure, found: Tradeoff) -> go.Figure:
    caption = f"{found.y_name} against {found.x_name} of {len(found.labels)}. Filled: on the Pareto front."
    if np.isfinite(found.x_std).any() or np.isfinite(found.y_std).any():
        caption += " Bars: one standard deviation over seeds."
    if found.stays is not None:
        caption += " In brackets: the share of resampled seeds in which a cell is on the front."
    order = sorted(range(len(found.labels)), key=lambda i: (not found.front[i], found.x[i]))
    items = (
        f"{found.labels[i]}: {_number(found.x[i])}, {_number(found.y[i])}{' (on the front)' * bool(found.front[i])}"
        for i in order
    )
    return described(figure, caption, items)


def time_line(figure: go.Figure, found: Timeline) -> go.Figure:
    return described(figure, f"Each bar is a stage run: {sentence(found)}.", [sentence(found)])


# ------------------------------------------------------------------------------------------------------------- tasks


def profiles(figure: go.Figure, found: Profiles) -> go.Figure:
    side = "at most" if found.minimize else "above"
    caption = f"Share of runs {side} each {found.metric}: {_over(found)}. Bands: 95 %, pointwise, stratified bootstrap."
    middle = len(found.scores) // 2
    at = _number(found.scores[middle])
    return described(figure, caption, (f"{one.setting}: {one.share[middle]:.0%} {side} {at}" for one in found.settings))


def iqm(figure: go.Figure, found: Profiles) -> go.Figure:
    caption = f"Interquartile mean of {found.metric}: {_over(found)}. Bars: 95 %, stratified bootstrap; of few seeds "
    caption += "they are too narrow."
    return described(figure, caption, (f"{one.setting}: {_interval(one.iqm)}" for one in found.settings))


def _over(found: Profiles) -> str:
    return (
        f"{counted(found.seeds, 'seed')} of each of {counted(len(found.tasks), 'data set')} ({few(list(found.tasks))})"
    )


def rank_differences(figure: go.Figure, found: RankTest) -> go.Figure:
    shown = "is" if found.p < 0.05 else "is not"
    caption = f"Mean ranks of {len(found.settings)} settings in {found.metric} over {len(found.tasks)} data sets "
    caption += f"({few(list(found.tasks))}). That any differ {shown} shown (Friedman, {_p(found.p)}). "
    caption += "Bars join settings that are not shown to differ (Nemenyi, 5 %)."
    names = zip(found.settings, found.ranks, strict=True)
    groups = [f"not told apart: {few(list(found.settings[first : last + 1]))}" for first, last in found.groups]
    return described(figure, caption, [*(f"{name}: {rank:.2f}" for name, rank in names), *groups])


# ------------------------------------------------------------------------------------------------------------- parts


def _bands(bands: Sequence[Band]) -> str:
    counts = [int(n) for band in bands for n in band.n]
    if not any(n > 1 for n in counts):
        return f"{counted(len(bands), 'line')} of one seed each."
    return f"Lines: means over {_seeds(counts)}; bands: one standard deviation (ddof 1)."


def _seeds(counts: Sequence[int]) -> str:
    known = [n for n in counts if n]
    return f"{_range(known)} seed{'s' * (max(known) != 1)}" if known else "no seed"


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _number(value: float, sign: bool = False) -> str:
    if not math.isfinite(value):
        return DASH
    return number(value, 3, False, sign) if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.3g}"


def _p(p: float) -> str:
    shown = p_value(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def _interval(found: Interval, sign: bool = False) -> str:
    size, low, high = (_number(value, sign) for value in found)
    return size if not math.isfinite(found.low) else f"{size} [{low}, {high}]"
