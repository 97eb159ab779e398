"""Drawing the score over two ranges of one search."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.figures import search_captions, theme
from pretune.analysis.figures.pairs import color_range
from pretune.analysis.questions.contour import Surface
from pretune.analysis.statistics import Array


def contour_plot(found: Surface) -> go.Figure:
    """Lines of equal score between trials; dots are trials in the colour of their own score, crosses failed."""
    figure = go.Figure(layout=theme.figure_layout(height=460))
    shown = np.concatenate([found.values[np.isfinite(found.values)], found.trials[:, 2]])
    bottom, top = color_range(shown, found.span)
    scale = {"colorscale": theme.SCALE, "showscale": False}
    area = go.Contour(x=theme.finite(found.x), y=theme.finite(found.y), z=[theme.finite(row) for row in found.values])
    area.update(zmin=bottom, zmax=top, contours={"start": bottom, "end": top, "size": (top - bottom) / 10}, **scale)
    area.update(
        colorbar={"title": {"text": theme.text(found.metric), "side": "right"}, "thickness": 14}, showscale=True
    )
    area.update(line={"width": 0.5, "color": "rgba(255,255,255,0.6)"}, hoverinfo="skip", connectgaps=False)
    figure.add_trace(area)
    x, y, score = found.trials.T
    dots = theme.markers("one trial, in the colour of its score", x, y, theme.INK, "circle", 9)
    dots.update(
        marker={"color": theme.finite(score), "cmin": bottom, "cmax": top, "line": {"width": 1, "color": "white"}}
    )
    dots.update(marker={"colorscale": theme.SCALE}, customdata=theme.finite(score))
    figure.add_trace(dots.update(hovertemplate="%{customdata:.4g} at %{x:.3g}, %{y:.3g}<extra></extra>"))
    if len(found.lost):
        failed = theme.markers("failed", found.lost[:, 0], found.lost[:, 1], theme.COLORS[1], "x-thin", 9)
        figure.add_trace(failed.update(marker={"line": {"width": 2, "color": theme.COLORS[1]}}))
    best = theme.markers(
        "best of the surface", np.array(found.best[:1]), np.array(found.best[1:2]), "white", "star", 15
    )
    figure.add_trace(best.update(marker={"line": {"width": 1.5, "color": theme.INK}}))
    both = [np.concatenate([part, found.lost[:, i]]) for i, part in enumerate((x, y))]
    figure.update_xaxes(title=theme.text(found.x_name), showgrid=False, **_axis(both[0], found.log[0]))
    figure.update_yaxes(title=theme.text(found.y_name), showgrid=False, **_axis(both[1], found.log[1]))
    return search_captions.contour(figure, found)


def _axis(values: Array, log: bool) -> dict[str, Any]:
    shown = np.log10(values) if log else values
    edge = 0.04 * float(np.ptp(shown))
    looks: dict[str, Any] = {"range": [float(shown.min()) - edge, float(shown.max()) + edge]}
    return looks | ({"type": "log", "minor": {}} | theme.log_ticks(values) if log else {})
