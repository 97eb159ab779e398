"""All cells of several studies in one figure."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.figures import theme
from pretune.analysis.questions.compare import MetricComparison

_APART = 0.6  # of a row, over which its studies are spread
_STUDY_PX = 16  # height that each study takes of a row


def comparison_plot(found: MetricComparison, names: tuple[str, ...]) -> go.Figure:
    """A row for each cell, in it the mean of each study with its 95 % t interval; the first cell and study on top.

    Args:
        names: of the studies, in the order of the means.
    """
    rows = len(found.cells)
    figure = go.Figure(layout=theme.figure_layout(110 + rows * max(theme.ROW_PX, _STUDY_PX * len(names))))
    offsets = np.linspace(_APART / 2, -_APART / 2, len(names))
    for place, (name, offset) in enumerate(zip(names, offsets, strict=True)):
        known = [(rows - 1 - y, value) for y, row in enumerate(found.means) if (value := row[place]) is not None]
        color, symbol = theme.COLORS[place % len(theme.COLORS)], theme.MARKERS[place % len(theme.MARKERS)]
        heights = np.array([y + offset for y, _ in known], np.float64)
        trace = theme.markers(theme.text(name), [value.mean.mean for _, value in known], heights, color, symbol, 9)
        trace.error_x = theme.whiskers([value.interval for _, value in known])
        trace.customdata = [value.mean.n for _, value in known]
        trace.hovertemplate = "%{x:.4g} (n=%{customdata})"
        figure.add_trace(trace)
    named = [theme.text(cell) for cell in reversed(found.cells)]
    figure.update_xaxes(title=theme.text(found.metric))
    figure.update_yaxes(tickvals=list(range(rows)), ticktext=named, range=[-0.6, rows - 0.4], automargin=True)
    return figure
