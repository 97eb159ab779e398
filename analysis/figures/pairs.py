"""Drawing two things at a time: heat maps, trade-offs, parallel coordinates. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from pretune.analysis.figures import captions, search_captions, theme
from pretune.analysis.questions.pairs import HeatMapGrid, Parallel, Tradeoff

_MOST_NUMBERS = 14  # columns beyond which numbers no longer fit into their fields, and are shown on hovering
_MOST_NAMED = 16  # points with a mark and a line in the legend of their own; of more, hovering gives the name


def heat_map(grid: HeatMapGrid, low: float | None = None, high: float | None = None) -> go.Figure:
    """Numbers in coloured fields, the first row on top. `low` and `high` hold the colour scale (CKA: 0 and 1)."""
    finite = grid.values[np.isfinite(grid.values)]
    bottom, top = color_range(finite, grid.span) if low is None or high is None else (low, high)
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
    return captions.heat_map(figure, grid)


def color_range(finite: NDArray[np.float64], span: float) -> tuple[float, float]:
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
            stays = "" if found.stays is None else f" ({found.stays[number]:.0%} on the front)"
            figure.add_trace(_points(found, np.array([number]), theme.text(label) + stays, color, symbol))
    else:
        figure.add_trace(_points(found, np.flatnonzero(~found.front), "beaten", theme.COLORS[5], "circle-open"))
        figure.add_trace(_points(found, np.flatnonzero(found.front), "on the front", theme.COLORS[0], "diamond"))
    order = [i for i in np.argsort(found.x, kind="stable") if found.front[i]]
    line = {"color": theme.INK, "width": 1, "dash": "dot"}
    front = go.Scatter(x=theme.finite(found.x[order]), y=theme.finite(found.y[order]), mode="lines", line=line)
    figure.add_trace(front.update(name="Pareto front", hoverinfo="skip"))
    figure.update_xaxes(title=theme.text(found.x_name), **(_log_axis(found) if found.log else {}))
    figure.update_yaxes(title=theme.text(found.y_name))
    return captions.tradeoff(figure, found)


def _log_axis(found: Tradeoff) -> dict[str, Any]:
    edges = np.log10([found.x.min(), found.x.max()]) + np.array([-0.08, 0.08])
    return {"type": "log", "range": edges.tolist(), "minor": {}} | theme.log_ticks(found.x)


def _points(found: Tradeoff, which: NDArray[np.intp], name: str, color: str, symbol: str) -> go.Scatter:
    points = theme.markers(name, found.x[which], found.y[which], color, symbol, 11 if len(which) == 1 else 8)
    for axis, std in (("error_x", found.x_std[which]), ("error_y", found.y_std[which])):
        if np.isfinite(std).any():
            points.update({axis: {"array": theme.finite(std), "color": color, "thickness": 1, "width": 0}})
    labels = [theme.text(found.labels[i]) for i in which]
    return points.update(customdata=labels, hovertemplate="%{x:.4g}, %{y:.4g}<br>%{customdata}<extra></extra>")


def parallel_plot(found: Parallel) -> go.Figure:
    """One line per trial, grey where it scored badly, then blue, the best orange, thick and on top; failures dotted.

    Plain lines in place of plotly's `parcoords`, which needs WebGL and code that a strict content policy forbids.
    """
    figure = go.Figure(layout=theme.figure_layout(height=440 + 22 * max(0, len(found.groups) - 5)))
    count, trials = len(found.axes), len(found.rank)
    at = np.stack([axis.spread for axis in found.axes], axis=1)  # (trials and lost, axes)
    at[trials:, -1] = _FAILED
    for ending in dict.fromkeys(found.endings):
        lost = trials + np.flatnonzero([one == ending for one in found.endings])
        name = theme.text(f"{ending} ({len(lost)} trials)" if len(lost) > 1 else ending)
        figure.add_trace(_lines(at[lost], name, {"color": theme.COLORS[3], "width": 1.2, "dash": "dot"}))
    for number, (label, of) in enumerate(found.groups):
        best = number == len(found.groups) - 1 and number > 0
        shade = min(len(_SHADES) - 1, len(_SHADES) * number // max(1, len(found.groups) - 1))
        line = {"color": theme.COLORS[1] if best else _SHADES[shade], "width": 2.5 if best else 1.4}
        figure.add_trace(_lines(at[of], theme.text(label), line))
    if found.endings:
        figure.add_annotation(**_TICK, x=count - 1, y=_FAILED, text="failed", font={"size": 11})
    for place, axis in enumerate(found.axes):
        figure.add_vline(x=place, line={"color": theme.INK, "width": 1})
        for height, label in axis.ticks:
            figure.add_annotation(text=theme.text(label), x=place, y=height, font={"size": 11}, **_TICK)
    names = [theme.text(axis.name) for axis in found.axes]
    figure.update_xaxes(tickvals=list(range(count)), ticktext=names, range=[-0.15, count - 0.65], showgrid=False)
    figure.update_yaxes(visible=False, range=[_FAILED - 0.06 if found.endings else -0.06, 1.06])
    return search_captions.parallel(figure, found)


_FAILED = -0.15  # place of what has no score, on the axis of scores
_SHADES = ("#C9CED6", "#9FB3C8", "#56B4E9", "#0072B2")
_TICK: Mapping[str, Any] = {
    "xanchor": "left", "xshift": 4, "showarrow": False, "bgcolor": "rgba(255,255,255,0.8)",
}  # fmt: skip


def _lines(places: NDArray[np.float64], name: str, line: Mapping[str, Any]) -> go.Scatter:
    """`(trials, axes)` as one trace, with a gap after each trial."""
    count = places.shape[1]
    x = [place for _ in places for place in (*range(count), None)]
    y = [place for row in places for place in (*map(float, row), None)]
    return go.Scatter(x=x, y=y, mode="lines", name=name, line=dict(line), hoverinfo="skip")
