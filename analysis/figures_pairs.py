"""Drawing two things at a time: heat maps, trade-offs, parallel coordinates. Nothing is computed here."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from analysis import theme
from analysis.pairs import Grid, Parallel, Tradeoff

_TEXT_ABOVE = 0.6  # of the colour scale: there the ground is so light that numbers are dark
_FIELD_PX = 52
_GROUPS = 5  # colours of parallel coordinates


def heat_map(grid: Grid, low: float | None = None, high: float | None = None) -> go.Figure:
    """Numbers in coloured fields, the first row on top. `low` and `high` hold the colour scale (CKA: 0 and 1)."""
    finite = grid.values[np.isfinite(grid.values)]
    bottom = float(finite.min()) if low is None and len(finite) else low or 0.0
    top = float(finite.max()) if high is None and len(finite) else high or 1.0
    columns, rows = ([theme.text(name) for name in names] for names in (grid.columns, grid.rows))
    figure = go.Figure(layout=theme.layout(height=150 + _FIELD_PX * max(2, len(rows))))
    bar = {"title": {"text": theme.text(grid.value_name), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    shown = go.Heatmap(
        z=[theme.finite(row) for row in grid.values], x=list(range(len(columns))), y=list(range(len(rows))),
        zmin=bottom, zmax=max(top, bottom + 1e-12), colorscale=theme.SCALE, colorbar=bar, xgap=2, ygap=2,
        customdata=grid.counts.tolist(), hovertemplate="%{z:.4g}, of %{customdata}<extra></extra>",
    )  # fmt: skip
    figure.add_trace(shown)
    for (y, x), value in np.ndenumerate(grid.values):
        if np.isfinite(value):
            light = (value - bottom) / max(top - bottom, 1e-12) > _TEXT_ABOVE
            ink = {"color": theme.INK if light else "white", "size": 13}
            figure.add_annotation(x=x, y=y, text=f"{value:.3f}", showarrow=False, font=ink)
    ticks = {"showgrid": False, "ticks": ""}
    figure.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=columns, title=theme.text(grid.column_name), **ticks
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, **ticks)
    title = {"text": theme.text(grid.row_name), "standoff": 16}
    figure.update_yaxes(autorange="reversed", title=title)
    return figure


def tradeoff_plot(found: Tradeoff) -> go.Figure:
    """Two metrics against each other; the cells on the Pareto front are filled and joined by steps."""
    figure = go.Figure(layout=theme.layout(height=460))
    names = [theme.text(label) for label in found.labels]
    for number, name in enumerate(names):
        on_front = bool(found.front[number])
        symbol = theme.MARKERS[number % len(theme.MARKERS)] + ("" if on_front else "-open")
        color = theme.COLORS[number % len(theme.COLORS)]
        point = theme.markers(name, [found.x[number]], found.y[number : number + 1], color, symbol, 11)
        for axis, std in (("error_x", found.x_std), ("error_y", found.y_std)):
            bar = {"array": theme.finite(std[number : number + 1]), "color": color, "thickness": 1, "width": 0}
            point.update({axis: bar})
        point.update(hovertemplate="%{x:.4g}, %{y:.4g}" + (" (on the front)" if on_front else ""))
        figure.add_trace(point)
    order = [i for i in np.argsort(found.x, kind="stable") if found.front[i]]
    line = {"color": theme.INK, "width": 1, "dash": "dot"}
    front = go.Scatter(x=theme.finite(found.x[order]), y=theme.finite(found.y[order]), mode="lines", line=line)
    figure.add_trace(front.update(name="Pareto front", hoverinfo="skip"))
    figure.update_xaxes(title=theme.text(found.x_name))
    figure.update_yaxes(title=theme.text(found.y_name))
    return figure


def parallel_plot(found: Parallel) -> go.Figure:
    """One line per trial, grey where it scored badly, then blue, the best fifth orange, thick and on top.

    Plain lines in place of plotly's `parcoords`, which needs WebGL and code that a strict content policy forbids.
    """
    figure = go.Figure(layout=theme.layout(height=440))
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
