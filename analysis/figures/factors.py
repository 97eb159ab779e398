"""Drawing factors: lines of seeds over two factors, and how stable the order of cells is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pretune.analysis.figures import captions, theme
from pretune.analysis.figures.pairs import heat_map
from pretune.analysis.questions.interactions import Facet, Interaction
from pretune.analysis.questions.pairs import HeatMapGrid
from pretune.analysis.questions.ranks import Ranks

_FACET = 300  # pixels of one facet
_MOST_RANKS = 12


def interaction_plot(found: Interaction, columns: int = 2) -> go.Figure:
    """A facet for each setting of the other factors: thin lines are seeds, thick ones their mean."""
    columns = min(columns, len(found.facets))
    rows = -(-len(found.facets) // columns)
    titles = [theme.text(facet.setting) + _contrast(facet) for facet in found.facets]
    figure = make_subplots(rows, columns, shared_yaxes="all", subplot_titles=titles, vertical_spacing=0.18 / rows)
    figure.update_layout(theme.figure_layout(height=rows * _FACET + 90))
    figure.update_layout(margin={"t": 56, "b": 80})
    for number, facet in enumerate(found.facets):
        for trace in _facet_lines(facet, found, first=number == 0):
            figure.add_trace(trace, row=number // columns + 1, col=number % columns + 1)
    looks = {"gridcolor": theme.GRID, "linecolor": theme.INK, "ticks": "outside", "zeroline": False, "automargin": True}
    levels = [theme.text(level) for level in found.axis]
    figure.update_xaxes(**looks, tickvals=list(range(len(levels))), ticktext=levels, range=[-0.3, len(levels) - 0.7])
    figure.update_yaxes(**looks)
    figure.update_xaxes(title=theme.text(found.axis_factor), row=rows)
    figure.update_yaxes(title=theme.text(found.metric), col=1)
    return captions.interaction(figure.update_annotations(font={"size": 13}, yshift=4), found)


def _contrast(facet: Facet) -> str:
    if not math.isfinite(facet.contrast.low):
        return ""
    size, low, high = (f"{value:+.3f}".replace("-", "−") for value in facet.contrast)
    return f"<br>interaction {size} [{low}, {high}], n={facet.n}"


def _facet_lines(facet: Facet, found: Interaction, first: bool) -> list[go.Scatter]:
    traces = []
    for number, (level, table) in enumerate(facet.lines):
        color, name = theme.COLORS[number % len(theme.COLORS)], theme.text(f"{found.line_factor}={level}")
        symbol, dash = theme.MARKERS[number % len(theme.MARKERS)], theme.DASHES[number % len(theme.DASHES)]
        x: list[float | None] = []
        y: list[float | None] = []
        for row in table:  # one trace for all seeds, with a gap between them
            x += [*map(float, range(len(row))), None]
            y += [*theme.finite(row), None]
        thin: dict[str, Any] = {"color": color, "width": 1}
        seeds = go.Scatter(x=x, y=y, mode="lines", line=thin, opacity=0.35, legendgroup=name, showlegend=False)
        shown = [
            float(np.mean(column[np.isfinite(column)])) if np.isfinite(column).any() else math.nan for column in table.T
        ]
        mean = go.Scatter(x=list(range(len(shown))), y=theme.finite(shown), mode="lines+markers", name=name)
        mean.update(line={"color": color, "width": 3, "dash": dash}, marker={"symbol": symbol, "size": 9})
        traces += [seeds.update(hoverinfo="skip"), mean.update(legendgroup=name, showlegend=first)]
    return traces


def rank_plot(found: Ranks) -> go.Figure:
    """Cells against ranks: the share of resampled seeds in which a cell takes a rank."""
    most = min(_MOST_RANKS, len(found.cells))
    places = tuple(f"{place + 1}" for place in range(most))
    counts = np.full((len(found.cells), most), found.seeds, np.int64)
    grid = HeatMapGrid("", "", f"rank in {found.metric}", "share of resampled seeds", found.cells, places,
                       found.share[:, :most], counts)  # fmt: skip
    return captions.ranks(heat_map(grid, 0.0, 1.0), found)
