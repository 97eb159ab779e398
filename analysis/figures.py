"""Drawing, with plotly: NamedTuples of numbers in, figures out. Nothing is computed here.

One theme for all: Okabe and Ito's colours, which stay apart for colour-blind readers, and with them line styles and
marker shapes, which stay apart in grey print. Every text that came from a study is escaped, since plotly reads a
subset of HTML in its labels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from analysis.curves import AmountCurves, Array, Band, LearningCurves
from analysis.results import ResultsError
from analysis.sensitivity import Importance, Response
from analysis.statistics import Interval
from analysis.tables import Differences

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8A6D00")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down")
INK, GRID = "#1F2933", "#E4E7EB"
ROW_PX = 30  # height of one row of a figure with a row per cell


class CellDots(NamedTuple):
    """One cell's replicates, their mean and its interval (NaN bounds for one seed)."""

    cell: str
    values: tuple[float, ...]
    mean: Interval


def dot_plot(cells: Sequence[CellDots], metric: str) -> go.Figure:
    """Every replicate as a dot, and the mean with its 95 % t interval; one row per cell, the first on top."""
    figure = go.Figure(layout=_layout(height=_tall(len(cells))))
    names = [_text(cell.cell) for cell in cells]
    seeds = [(value, name) for cell, name in zip(cells, names, strict=True) for value in cell.values]
    figure.add_trace(_markers("one seed", [v for v, _ in seeds], [n for _, n in seeds], COLORS[5], "circle-open", 8))
    means = [cell.mean.estimate for cell in cells]
    figure.add_trace(_markers("mean and 95 % t interval", means, names, COLORS[0], "diamond", 10))
    figure.data[-1].error_x = _whiskers([cell.mean for cell in cells])
    figure.update_xaxes(title=_text(metric))
    return _rows(figure, names)


def difference_plot(table: Differences) -> go.Figure:
    """Paired differences to the baseline with their 95 % t intervals; filled where Holm's p is below 0.05."""
    figure = go.Figure(layout=_layout(height=_tall(len(table.rows))))
    names = [_text(row.cell) for row in table.rows]
    bounds = [Interval(row.difference, row.low, row.high) for row in table.rows]
    figure.add_trace(_markers(_text(table.metric), [row.difference for row in table.rows], names, COLORS[0], "", 11))
    shown = ["diamond" if row.p_holm < 0.05 else "diamond-open" for row in table.rows]
    figure.data[-1].marker.symbol = shown
    figure.data[-1].error_x = _whiskers(bounds)
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title=_text(f"difference in {table.metric} to the baseline"))
    figure.update_layout(showlegend=False)
    return _rows(figure, names)


def learning_plot(curves: LearningCurves) -> go.Figure:
    """A metric over training steps."""
    figure = _bands(curves.bands, lines_only=True)
    figure.update_xaxes(title=_text(f"step of {curves.stage}"))
    figure.update_yaxes(title=_text(curves.metric))
    return figure


def amount_plot(curves: AmountCurves) -> go.Figure:
    """A metric against an amount, e.g. of labels; a logarithmic axis where amounts span a factor of five."""
    figure = _bands(curves.bands, lines_only=False)
    ticks = {"tickvals": list(curves.amounts), "ticktext": [_text(level) for level in curves.levels]}
    figure.update_xaxes(title=_text(curves.factor), type="log" if curves.log else "linear", minor={}, **ticks)
    figure.update_yaxes(title=_text(curves.metric))
    return figure


def response_plot(response: Response) -> go.Figure:
    """Scores of the sampler's trials over one parameter, with the means of equally filled bins."""
    figure = go.Figure(layout=_layout())
    figure.add_trace(_markers("one trial", response.x, response.score, COLORS[5], "circle-open", 8))
    means = _markers("mean ± std of neighbouring trials", response.bin_x, response.bin_mean, COLORS[1], "square", 9)
    means.mode = "markers" if response.options else "lines+markers"
    means.error_y = {"array": _finite(response.bin_std), "color": COLORS[1], "thickness": 1.5}
    figure.add_trace(means)
    figure.update_xaxes(title=_text(response.parameter), type="log" if response.log else "linear")
    if response.options:
        options = [_text(option) for option in response.options]
        figure.update_xaxes(tickvals=list(range(len(options))), ticktext=options)
    figure.update_yaxes(title=_text(response.metric))
    return figure


def importance_plot(importance: Importance) -> go.Figure:
    """Shares of PED-ANOVA importance, with their 5th to 95th percentile over resampled trials."""
    figure = go.Figure(layout=_layout(height=_tall(len(importance.parameters))))
    names = [_text(name) for name in importance.parameters]
    figure.add_trace(_markers("share", importance.share, names, COLORS[2], "square", 10))
    parts = zip(importance.share, importance.low, importance.high, strict=True)
    figure.data[-1].error_x = _whiskers([Interval(*map(float, part)) for part in parts])
    figure.update_xaxes(title="share of importance (PED-ANOVA)", range=[-0.02, 1.02])
    figure.update_layout(showlegend=False)
    return _rows(figure, names)


def write_files(figures: Sequence[tuple[str, go.Figure]], folder: Path, kind: str) -> list[Path]:
    """Every (name, figure) as a file `name.kind` (svg, pdf or png), offline.

    Raises ResultsError where kaleido, or the browser that it draws with, is missing.
    """
    paths = [folder / f"{name}.{kind}" for name, _ in figures]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for (_, figure), path in zip(figures, paths, strict=True):
            figure.write_image(path, width=900, scale=2 if kind == "png" else 1)
    except Exception as error:  # kaleido and the browser each raise their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        needs = "figure files need `pip install 'pretune[figures]'` and a Chromium or Chrome"
        raise ResultsError(f"{needs} ({first})") from error
    return paths


# ------------------------------------------------------------------------------------------------------------ parts


def _bands(bands: Sequence[Band], lines_only: bool) -> go.Figure:
    figure = go.Figure(layout=_layout(height=430))
    for number, band in enumerate(bands):
        for trace in _band(band, number, lines_only):
            figure.add_trace(trace)
    if any((band.n > 1).any() for band in bands):
        figure.add_annotation(
            **{"text": "band: ± one standard deviation over seeds", "showarrow": False, "font": {"size": 11}},
            **{"xref": "paper", "yref": "paper", "x": 0, "y": 1.08, "xanchor": "left"},
        )
    return figure


def _band(band: Band, number: int, lines_only: bool) -> list[go.Scatter]:
    """The line, and behind it the area between low and high, where there is one."""
    color, name = COLORS[number % len(COLORS)], _text(band.label)
    line = {"color": color, "width": 2, "dash": DASHES[number // len(COLORS) % len(DASHES)]}
    mode = "lines" if lines_only and len(band.x) > 1 else "lines+markers"
    marker = {"symbol": MARKERS[number % len(MARKERS)], "size": 8}
    shown = {"x": _finite(band.x), "y": _finite(band.mean), "customdata": [int(n) for n in band.n]}
    hover = "%{y:.4g} at %{x} (n=%{customdata})"
    mean = go.Scatter(name=name, legendgroup=name, mode=mode, line=line, marker=marker, hovertemplate=hover, **shown)
    with_band = np.flatnonzero(np.isfinite(band.low))
    if not len(with_band):
        return [mean]
    around = np.concatenate([band.x[with_band], band.x[with_band][::-1]])
    edge = np.concatenate([band.high[with_band], band.low[with_band][::-1]])
    area = go.Scatter(x=_finite(around), y=_finite(edge), fill="toself", fillcolor=_faint(color), line={"width": 0})
    area.update(mode="lines", legendgroup=name, showlegend=False, hoverinfo="skip")
    return [area, mean]


def _markers(name: str, x: Iterable[float], y: Sequence[str] | Array, color: str, symbol: str, size: int) -> go.Scatter:
    """Numbers x against names or numbers y."""
    up = _finite(y) if isinstance(y, np.ndarray) else list(y)
    marker = {"color": color, "size": size, "symbol": symbol or "circle", "line": {"width": 1.5, "color": color}}
    return go.Scatter(name=name, x=_finite(x), y=up, mode="markers", marker=marker, line={"color": color})


def _whiskers(intervals: Sequence[Interval]) -> dict[str, Any]:
    up = _finite(np.array([part.high - part.estimate for part in intervals], np.float64))
    down = _finite(np.array([part.estimate - part.low for part in intervals], np.float64))
    return {"type": "data", "array": up, "arrayminus": down, "symmetric": False, "thickness": 2, "width": 6}


def _rows(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    """One row per name in the given order, also where it has no value; widely spaced names keep their whole text."""
    order = list(reversed(names))
    figure.update_yaxes(categoryorder="array", categoryarray=order, type="category", range=[-0.6, len(names) - 0.4])
    figure.update_yaxes(automargin=True, title=None)
    return figure


def _tall(rows: int) -> int:
    return 110 + ROW_PX * max(2, rows)


def _layout(height: int = 380) -> go.Layout:
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


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _finite(values: Iterable[float]) -> list[float | None]:
    """Plain numbers, with None where there is none: NaN is no JSON."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _text(text: str) -> str:
    return html.escape(text, quote=True)
