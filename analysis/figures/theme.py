"""Look of every figure, and the parts that several of them share.

One theme for all: Okabe and Ito's colours, which stay apart for colour-blind readers, and with them line styles and
marker shapes, which stay apart in grey print; for amounts cividis, which is ordered for colour-blind eyes and in grey.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.statistics import Array, Interval

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8A6D00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down")
SCALE = "Cividis"
INK, GRID = "#1F2933", "#E4E7EB"
ROW_PX = 30  # height of one row of a figure with a row per cell


def figure_layout(height: int = 380) -> go.Layout:
    axis = {"gridcolor": GRID, "linecolor": INK, "ticks": "outside", "zeroline": False, "automargin": True}
    return go.Layout(
        height=height,
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 60, "r": 20, "t": 36, "b": 50},
        colorway=list(COLORS),
        xaxis=axis,
        yaxis=axis,
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="closest",
        template="none",
    )


def in_rows(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    """One row per name in the given order, also where it has no value; widely spaced names keep their whole text."""
    order = list(reversed(names))
    figure.update_yaxes(categoryorder="array", categoryarray=order, type="category", range=[-0.6, len(names) - 0.4])
    figure.update_yaxes(automargin=True, title=None)
    return figure


def tall(rows: int) -> int:
    return 110 + ROW_PX * max(2, rows)


def markers(name: str, x: Iterable[float], y: Sequence[str] | Array, color: str, symbol: str, size: int) -> go.Scatter:
    """Numbers x against names or numbers y."""
    up = finite(y) if isinstance(y, np.ndarray) else list(y)
    marker = {"color": color, "size": size, "symbol": symbol or "circle", "line": {"width": 1.5, "color": color}}
    return go.Scatter(name=name, x=finite(x), y=up, mode="markers", marker=marker, line={"color": color})


def whiskers(intervals: Sequence[Interval]) -> dict[str, Any]:
    up = finite(np.array([part.high - part.estimate for part in intervals], np.float64))
    down = finite(np.array([part.estimate - part.low for part in intervals], np.float64))
    return {"type": "data", "array": up, "arrayminus": down, "symmetric": False, "thickness": 2, "width": 6}


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 times powers of ten (at the powers alone over three decades) in and around the values."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    if not known:
        return {}
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def finite(values: Iterable[float]) -> list[float | None]:
    """Plain numbers, with None where there is none: NaN is no JSON."""
    return [float(value) if math.isfinite(value) else None for value in values]


def text(content: str) -> str:
    """Plotly reads a subset of HTML in its labels: what came from a study is escaped."""
    return html.escape(content, quote=True)


_PX_PER_INCH, _PX_PER_POINT = 96, 96 / 72  # of CSS, and so of plotly and of the PDFs that a browser prints
_SCREEN, _NARROW, _MARGINS = 900, 450, ("l", "r", "t", "b")


def for_print(figure: go.Figure, inches: float) -> go.Figure:
    """A copy `inches` wide with 8 pt type: marks, lines and margins shrink with it, and the legend takes its place."""
    shown = go.Figure(figure)
    width, size = round(inches * _PX_PER_INCH), 8 * _PX_PER_POINT
    scale = max(0.55, min(1.0, width / _SCREEN))
    tall = max(0.75, scale)
    margin = {key: tall * (getattr(figure.layout.margin, key) or 40) for key in _MARGINS}
    legend = max(0.0, 60 + 20 * _names(figure) - margin["b"]) if width < _NARROW else 10
    shown.update_layout(width=width, font={"size": size}, legend={"font": {"size": size}, "tracegroupgap": 0})
    shown.update_layout(margin=margin | {"b": margin["b"] + legend, "l": scale * margin["l"]})
    title = {"font": {"size": size}}
    shown.for_each_xaxis(lambda axis: _few_ticks(axis, width))
    shown.update_xaxes(tickfont={"size": size}, title=title)
    shown.update_yaxes(tickfont={"size": size}, title=title)
    shown.update_annotations(font={"size": size})
    shown.update_layout(height=round(tall * (figure.layout.height or 380) + legend))
    for trace in shown.data:
        _shrink(trace, scale)
    return shown


def _few_ticks(axis: Any, width: int) -> None:
    """Name powers of ten alone on a logarithmic axis that is short."""
    first, last = axis.domain or (0.0, 1.0)
    wide = 48 * len(axis.tickvals or ())  # pixels that all names take
    if axis.type == "log" and axis.tickvals is not None and (last - first) * width < wide:
        named = zip(axis.tickvals, axis.ticktext, strict=True)
        axis.ticktext = [text if f"{value:e}".startswith("1.0") else "" for value, text in named]


def _names(figure: go.Figure) -> int:
    """Lines that a legend takes where each name has its own."""
    return sum(trace.showlegend is not False and bool(trace.name) for trace in figure.data)


def _shrink(trace: Any, scale: float) -> None:
    """Marks and lines in proportion, none thinner than can be printed."""
    if trace.type != "scatter":
        return
    if trace.marker.size is not None:
        sizes = trace.marker.size
        trace.marker.size = [max(1, scale * s) for s in sizes] if isinstance(sizes, tuple) else max(3, scale * sizes)
    if trace.line.width:
        trace.line.width = max(0.5, scale * trace.line.width)
