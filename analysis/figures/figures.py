"""Drawing, with plotly: NamedTuples of numbers in, figures out. Nothing is computed here; `theme` has the looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from pretune.analysis.figures import captions, theme
from pretune.analysis.load.results import PublishedValue, ResultsError
from pretune.analysis.questions.curves import AmountCurves, Band, LearningCurves
from pretune.analysis.questions.differences import Differences
from pretune.analysis.questions.dots import CellDots
from pretune.analysis.questions.savings import Saving
from pretune.analysis.statistics import Interval


def dot_plot(
    cells: Sequence[CellDots], metric: str, published: Mapping[str, PublishedValue] | None = None
) -> go.Figure:
    """Every replicate as a dot, and the mean with its 95 % t interval; one row per cell, the first on top.

    A cell of which replicates have no value says how many behind its name.
    `published`: cell -> a paper's value, drawn as a star with its standard deviation where it gives one.
    """
    figure = go.Figure(layout=theme.figure_layout(height=theme.tall(len(cells))))
    names = [theme.text(cell.cell + (f" ({cell.short})" if cell.short else "")) for cell in cells]
    seeds = [(value, name) for cell, name in zip(cells, names, strict=True) for value in cell.values]
    figure.add_trace(
        theme.markers("one seed", [v for v, _ in seeds], [n for _, n in seeds], theme.COLORS[5], "circle-open", 8)
    )
    means = [cell.mean.estimate for cell in cells]
    figure.add_trace(theme.markers("mean and 95 % t interval", means, names, theme.COLORS[0], "diamond", 10))
    figure.data[-1].error_x = theme.whiskers([cell.mean for cell in cells])
    theirs = [(name, (published or {}).get(cell.cell)) for cell, name in zip(cells, names, strict=True)]
    if stars := [(name, value) for name, value in theirs if value is not None]:
        x, y = [value.mean for _, value in stars], [name for name, _ in stars]
        figure.add_trace(theme.markers("published", x, y, theme.COLORS[1], "star-open", 11))
        figure.data[-1].error_x = {"array": [value.std for _, value in stars], "thickness": 1, "width": 4}
    figure.update_xaxes(title=theme.text(metric))
    return captions.dots(theme.in_rows(figure, names), cells, metric, bool(stars))


def difference_plot(table: Differences) -> go.Figure:
    """Paired differences to the baseline with their 95 % t intervals; filled where Holm's p is below 0.05."""
    figure = go.Figure(layout=theme.figure_layout(height=theme.tall(len(table.rows))))
    names = [theme.text(row.cell) for row in table.rows]
    bounds = [Interval(row.difference, row.low, row.high) for row in table.rows]
    figure.add_trace(
        theme.markers(theme.text(table.metric), [row.difference for row in table.rows], names, theme.COLORS[0], "", 11)
    )
    shown = ["diamond" if row.shown else "diamond-open" for row in table.rows]
    figure.data[-1].marker.symbol = shown
    figure.data[-1].error_x = theme.whiskers(bounds)
    figure.add_vline(x=0, line={"color": theme.INK, "width": 1})
    figure.update_xaxes(title=theme.text(f"difference in {table.metric} to the baseline"))
    figure.update_layout(showlegend=False)
    return captions.differences(theme.in_rows(figure, names), table)


def learning_plot(curves: LearningCurves) -> go.Figure:
    """A metric over training steps."""
    figure = _bands(curves.bands, lines_only=True)
    figure.update_xaxes(title=theme.text(f"step of {curves.stage}"))
    figure.update_yaxes(title=theme.text(curves.metric))
    return captions.learning(figure, curves)


def amount_plot(curves: AmountCurves, saved: Sequence[Saving] = ()) -> go.Figure:
    """A metric against an amount, e.g. of labels; a logarithmic axis where amounts span a factor of five.

    `saved`: dotted, from a setting at its smallest amount to the amount at which the baseline scores the same, with
    its 95 % interval.
    """
    figure = _bands(curves.bands, lines_only=False, published=curves.published)
    colors = {band.label: theme.COLORS[number % len(theme.COLORS)] for number, band in enumerate(curves.bands)}
    for saving in saved:
        figure.add_trace(_saving(saving, colors.get(saving.setting, theme.INK)))
    ticks = {"tickvals": list(curves.amounts), "ticktext": [theme.text(level) for level in curves.levels]}
    figure.update_xaxes(title=theme.text(curves.factor), type="log" if curves.log else "linear", minor={}, **ticks)
    figure.update_yaxes(title=theme.text(curves.metric))
    return captions.amounts(figure, curves, [saving.sentence for saving in saved])


def write_files(
    figures: Sequence[tuple[str, go.Figure]], folder: Path, kind: str, inches: float | None = None
) -> list[Path]:
    """Every (name, figure) as a file `name.kind` (svg, pdf or png), offline; `inches` wide with 8 pt type, for a paper.

    Raises ResultsError where kaleido, or the browser that it draws with, is missing.
    """
    paths = [folder / f"{name}.{kind}" for name, _ in figures]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        drawn = [figure if inches is None else theme.for_print(figure, inches) for _, figure in figures]
        width, dots = (
            [900 if inches is None else figure.layout.width for figure in drawn],
            2 if inches is None else 200 / 96,
        )
        height = [figure.layout.height for figure in drawn]
        pio.write_images(drawn, paths, width=width, height=height, scale=dots if kind == "png" else 1)
    except Exception as error:  # kaleido and the browser each raise their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        required = "figure files need `pip install 'pretune[figures]'` and a Chromium or Chrome"
        raise ResultsError(f"{required} ({first})") from error
    return paths


# ------------------------------------------------------------------------------------------------------------ parts


def _bands(bands: Sequence[Band], lines_only: bool, published: Sequence[Band] = ()) -> go.Figure:
    """`published` holds a paper's values for each of `bands`, without points where it has none."""
    figure = go.Figure(layout=theme.figure_layout(height=430))
    for number, band in enumerate(bands):
        for trace in _band(band, number, lines_only):
            figure.add_trace(trace)
    for number, band in enumerate(published):
        figure.add_trace(_published(band, number))
    if any((band.n > 1).any() for band in bands):
        figure.add_annotation(
            **{"text": "band: ± one standard deviation over seeds", "showarrow": False, "font": {"size": 11}},
            **{"xref": "paper", "yref": "paper", "x": 0, "y": 1.08, "xanchor": "left"},
        )
    return figure


def _band(band: Band, number: int, lines_only: bool) -> list[go.Scatter]:
    """The line, and behind it the area between low and high, where there is one."""
    color, name = theme.COLORS[number % len(theme.COLORS)], theme.text(band.label)
    line = {"color": color, "width": 2, "dash": theme.DASHES[number % len(theme.DASHES)]}
    mode = "lines" if lines_only and len(band.x) > 1 else "lines+markers"
    marker = {"symbol": theme.MARKERS[number % len(theme.MARKERS)], "size": 8}
    shown = {"x": theme.finite(band.x), "y": theme.finite(band.mean), "customdata": [int(n) for n in band.n]}
    hover = "%{y:.4g} at %{x} (n=%{customdata})"
    mean = go.Scatter(name=name, legendgroup=name, mode=mode, line=line, marker=marker, hovertemplate=hover, **shown)
    with_band = np.flatnonzero(np.isfinite(band.low))
    if not len(with_band):
        return [mean]
    around = np.concatenate([band.x[with_band], band.x[with_band][::-1]])
    edge = np.concatenate([band.high[with_band], band.low[with_band][::-1]])
    area = go.Scatter(
        x=theme.finite(around), y=theme.finite(edge), fill="toself", fillcolor=theme.faint(color), line={"width": 0}
    )
    area.update(mode="lines", legendgroup=name, showlegend=False, hoverinfo="skip")
    return [area, mean]


def _saving(saving: Saving, color: str) -> go.Scatter:
    """From a setting to the amount at which the baseline equals it; to the baseline's largest where none does."""
    end = min(max(saving.equal, saving.amount), saving.largest)
    line = go.Scatter(x=[saving.amount, end], y=[saving.score] * 2, mode="lines+markers")
    if 0 < saving.equal < math.inf:
        both = f"{saving.shown(saving.amount)} and {saving.shown(saving.equal)}"
        line.update(name=theme.text(f"same score with {both}, 95 % interval"))
    else:
        line.update(showlegend=False)
    low, high = max(saving.amount, saving.low), min(saving.largest, saving.high)  # its ends where the interval is NaN
    bars = {"type": "data", "symmetric": False, "array": [0, max(0.0, high - end)], "color": color, "thickness": 1.5}
    line.update(error_x=bars | {"arrayminus": [0, max(0.0, end - low)], "width": 5})
    marker = {"symbol": ["circle", "line-ns" if math.isfinite(saving.equal) else "triangle-right"], "size": [1, 12]}
    line.update(marker=marker | {"color": color, "line": {"width": 2, "color": color}})
    return line.update(line={"color": color, "width": 1.5, "dash": "dot"}, hovertext=theme.text(saving.sentence))


def _published(band: Band, number: int) -> go.Scatter:
    """A paper's values in the colour of the band they belong to: open stars on a thin line."""
    color, std = theme.COLORS[number % len(theme.COLORS)], band.high - band.mean
    line = {"color": color, "width": 1, "dash": "dot"}
    bars = {"array": theme.finite(std), "color": color, "thickness": 1, "width": 4}
    points = go.Scatter(
        x=theme.finite(band.x), y=theme.finite(band.mean), mode="lines+markers", line=line, error_y=bars
    )
    marker = {"symbol": "star-open", "size": 11, "color": color}
    return points.update(name=f"{theme.text(band.label)}, published", marker=marker, showlegend=bool(len(band.x)))
