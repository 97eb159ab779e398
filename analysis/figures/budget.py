"""Drawing searches over their number of trials: the best so far, what is to be expected, and how far it may go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pretune.analysis.figures import search_captions, theme
from pretune.analysis.questions.budget import Budget

MOST = 12  # searches of one figure
_FACET = 270  # pixels
_LINE = 52  # letters of a title


def budget_plot(found: Sequence[Budget], columns: int = 2) -> go.Figure:
    """A facet for each search, on one scale."""
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    titles = [_title(one) for one in found]
    figure = make_subplots(rows, columns, shared_yaxes="all", subplot_titles=titles, vertical_spacing=0.3 / rows)
    figure.update_layout(theme.figure_layout(height=rows * _FACET + 110))
    figure.update_layout(margin={"t": 76, "b": 80})
    for number, one in enumerate(found):
        for trace in _traces(one, first=number == 0):
            figure.add_trace(trace, row=number // columns + 1, col=number % columns + 1)
    _name_each_once(figure)
    looks = {"gridcolor": theme.GRID, "linecolor": theme.INK, "ticks": "outside", "zeroline": False, "automargin": True}
    figure.update_xaxes(**looks, rangemode="tozero")
    figure.update_xaxes(title="trials", row=rows)
    figure.update_yaxes(**looks)
    figure.update_yaxes(title=theme.text(found[0].metric), col=1)
    return search_captions.budget(figure.update_annotations(font={"size": 12}, yshift=4), found)


def _title(one: Budget) -> str:
    lines, line = [f"<b>{theme.text(one.search.removeprefix('fine-tuning of '))}</b>"], ""
    for word in one.sentence.split():
        if line and len(line) + len(word) > _LINE:
            lines, line = [*lines, theme.text(line)], ""
        line = f"{line} {word}".strip()
    return "<br>".join([*lines, theme.text(line)])


def _name_each_once(figure: go.Figure) -> None:
    seen: set[str] = set()
    for trace in figure.data:
        trace.showlegend = bool(trace.name) and trace.name not in seen
        seen.add(str(trace.name))


def _traces(one: Budget, first: bool) -> list[go.Scatter]:
    count = len(one.best)
    steps: dict[str, Any] = {"color": theme.COLORS[6], "width": 1.5, "shape": "hv", "dash": "dot"}
    best = go.Scatter(x=list(range(1, count + 1)), y=theme.finite(one.best), mode="lines", line=steps)
    traces = [best.update(name="best so far, in the order tried", legendgroup="best")]
    if not len(one.n):
        return traces
    color = theme.COLORS[0]
    around = np.concatenate([one.n, one.n[::-1]]).astype(np.float64)
    edge = np.concatenate([one.high, one.low[::-1]])
    band = go.Scatter(x=theme.finite(around), y=theme.finite(edge), fill="toself", fillcolor=theme.faint(color))
    band.update(mode="lines", line={"width": 0}, hoverinfo="skip", legendgroup="expected")
    line = go.Scatter(x=[int(n) for n in one.n], y=theme.finite(one.expected), mode="lines", legendgroup="expected")
    line.update(name="expected best of so many, with 95 % interval", line={"color": color, "width": 3})
    traces += [band, line]
    if np.isfinite(one.ahead):
        traces.append(_ahead(one, count))
    return traces


def _ahead(one: Budget, count: int) -> go.Scatter:
    """The wedge of what as many trials again may bring: from nothing to the last slope."""
    last = float(one.expected[-1])
    x, y = [count, 2 * count, 2 * count, count], [last, last + (-1 if one.minimize else 1) * one.ahead, last, last]
    wedge = go.Scatter(x=x, y=y, fill="toself", fillcolor=theme.faint(theme.COLORS[1]), mode="lines")
    wedge.update(line={"color": theme.COLORS[1], "width": 1, "dash": "dash"}, legendgroup="ahead")
    return wedge.update(name="what as many trials again may bring", hoverinfo="skip")
