"""Drawing two things at a time: heat maps, trade-offs, parallel coordinates. Nothing is computed here."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from pretune.analysis.figures import theme
from pretune.analysis.questions.pairs import HeatMapGrid, Parallel, Tradeoff

_MOST_NUMBERS = 14  # columns beyond which numbers no longer fit into their fields, and are shown on hovering
_MOST_NAMED = 16  # points with a mark and a line in the legend of their own; of more, hovering gives the name
_GROUPS = 5  # colours of parallel coordinates


def heat_map(grid: HeatMapGrid, low: float | None = None, high: float | None = None) -> go.Figure:
    """Numbers in coloured fields, the first row on top. `low` and `high` hold the colour scale (CKA: 0 and 1)."""
    finite = grid.values[np.isfinite(grid.values)]
    bottom, top = _scale(finite, grid.span) if low is None or high is None else (low, high)
    columns, rows = ([theme.text(name) for name in names] for names in (grid.columns, grid.rows))
    figure = go.Figure(
        layout=theme.figure_layout(height=150 + (52 if len(rows) <= _MOST_NUMBERS else 22) * max(2, len(rows)))
    )
    bar = {"title": {"text": theme.text(grid.value_name), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    written = [[f"{value:.3f}" if np.isfinite(value) else "" for value in row] for row in grid.values]
    shown = go.Heatmap(
        z=[theme.finite(row) for row in grid.values], x=list(range(len(columns))), y=list(range(len(rows))),
        zmin=bottom, zmax=max(top, bottom + 1e-12), colorscale=theme.SCALE, colorbar=bar, xgap=2, ygap=2,
        text=written, texttemplate="%{text}" if len(columns) <= _MOST_NUMBERS else None,
        customdata=grid.counts.tolist(), hovertemplate="%{z:.4g}, of %{customdata}<extra></extra>",
    )  # fmt: skip
    figure.add_trace(shown)
    ticks = {"showgrid": False, "ticks": ""}
    figure.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=columns, title=theme.text(grid.column_name), **ticks
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, **ticks)
    title = {"text": theme.text(grid.row_name), "standoff": 16}
    figure.update_yaxes(autorange="reversed", title=title)
    return figure


def _scale(finite: NDArray[np.float64], span: float) -> tuple[float, float]:
    """The range of the values, but no narrower than `span`: what is small beside the noise looks small."""
    if not len(finite):
        return 0.0, 1.0
    wider = max(0.0, span - float(np.ptp(finite))) / 2
    return float(finite.min()) - wider, float(finite.max()) + wider


def tradeoff_plot(found: Tradeoff) -> go.Figure:
    """Two metrics against each other; what is on the Pareto front is filled, and joined by a line."""
    figure = go.Figure(layout=theme.figure_layout(height=460))
    if len(found.labels) <= _MOST_NAMED:
        for number, label in enumerate(found.labels):
            color = theme.COLORS[number % len(theme.COLORS)]
            symbol = theme.MARKERS[number % len(theme.MARKERS)] + ("" if found.front[number] else "-open")
            figure.add_trace(_points(found, np.array([number]), theme.text(label), color, symbol))
    else:
        figure.add_trace(_points(found, np.flatnonzero(~found.front), "beaten", theme.COLORS[5], "circle-open"))
        figure.add_trace(_points(found, np.flatnonzero(found.front), "on the front", theme.COLORS[0], "diamond"))
    order = [i for i in np.argsort(found.x, kind="stable") if found.front[i]]
    line = {"color": theme.INK, "width": 1, "dash": "dot"}
    front = go.Scatter(x=theme.finite(found.x[order]), y=theme.finite(found.y[order]), mode="lines", line=line)
    figure.add_trace(front.update(name="Pareto front", hoverinfo="skip"))
    figure.update_xaxes(title=theme.text(found.x_name))
    figure.update_yaxes(title=theme.text(found.y_name))
    return figure


def _points(found: Tradeoff, which: NDArray[np.intp], name: str, color: str, symbol: str) -> go.Scatter:
    points = theme.markers(name, found.x[which], found.y[which], color, symbol, 11 if len(which) == 1 else 8)
    for axis, std in (("error_x", found.x_std[which]), ("error_y", found.y_std[which])):
        if np.isfinite(std).any():
            points.update({axis: {"array": theme.finite(std), "color": color, "thickness": 1, "width": 0}})
    labels = [theme.text(found.labels[i]) for i in which]
    return points.update(customdata=labels, hovertemplate="%{x:.4g}, %{y:.4g}<br>%{customdata}<extra></extra>")


def parallel_plot(found: Parallel) -> go.Figure:
    """One line per trial, grey where it scored badly, then blue, the best fifth orange, thick and on top.

    Plain lines in place of plotly's `parcoords`, which needs WebGL and code that a strict content policy forbids.
    """
    figure = go.Figure(layout=theme.figure_layout(height=440))
    count = len(found.axes)
    group = np.minimum((found.rank * _GROUPS).astype(int), _GROUPS - 1)
    colors = ("#C9CED6", "#9FB3C8", "#56B4E9", "#0072B2", "#D55E00")
    labels = ("worst fifth", "second", "middle", "fourth", "best fifth")
    for number in range(_GROUPS):
        trials = np.flatnonzero(group == number)
        x = [place for _ in trials for place in (*range(count), None)]
        y = [place for trial in trials for place in (*(float(axis.places[trial]) for axis in found.axes), None)]
        width = 2.5 if number == _GROUPS - 1 else 1.2
        line = go.Scatter(x=x, y=y, mode="lines", name=labels[number], line={"color": colors[number], "width": width})
        figure.add_trace(line.update(hoverinfo="skip"))
    for place, axis in enumerate(found.axes):
        figure.add_vline(x=place, line={"color": theme.INK, "width": 1})
        for height, label in axis.ticks:
            place_of = {"x": place, "y": height, "xanchor": "left", "xshift": 4, "showarrow": False}
            style = {"font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.8)"}
            figure.add_annotation(text=theme.text(label), **place_of, **style)
    names = [theme.text(axis.name) for axis in found.axes]
    figure.update_xaxes(tickvals=list(range(count)), ticktext=names, range=[-0.15, count - 0.65], showgrid=False)
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    return figure
