"""Drawing settings over several data sets: performance profiles, IQM, and ranks with their critical difference."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.figures import captions, theme
from pretune.analysis.questions.tasks import Profiles, RankTest

_ROW = 26  # pixels between names of the diagram of ranks


def profile_plot(found: Profiles) -> go.Figure:
    """The share of runs above (of a loss: below) each score, with its band."""
    figure = go.Figure(layout=theme.figure_layout(height=430))
    for number, one in enumerate(found.settings):
        color, name = theme.COLORS[number % len(theme.COLORS)], theme.text(one.setting)
        around, edge = np.concatenate([found.scores, found.scores[::-1]]), np.concatenate([one.high, one.low[::-1]])
        band = go.Scatter(x=theme.finite(around), y=theme.finite(edge), fill="toself", fillcolor=theme.faint(color))
        band.update(
            mode="lines", line={"width": 0, "shape": "hv"}, legendgroup=name, showlegend=False, hoverinfo="skip"
        )
        line = go.Scatter(x=theme.finite(found.scores), y=theme.finite(one.share), mode="lines", name=name)
        dash = theme.DASHES[number % len(theme.DASHES)]
        figure.add_trace(band)
        figure.add_trace(line.update(line={"color": color, "width": 2, "dash": dash, "shape": "hv"}, legendgroup=name))
    side = "at most" if found.minimize else "above"
    figure.update_xaxes(title=theme.text(found.metric))
    figure.update_yaxes(title=f"share of runs {side} it", range=[-0.02, 1.02])
    return captions.profiles(figure, found)


def iqm_plot(found: Profiles) -> go.Figure:
    """The interquartile mean of each setting with its interval."""
    figure = go.Figure(layout=theme.figure_layout(height=theme.tall(len(found.settings))))
    names = [theme.text(one.setting) for one in found.settings]
    means = [one.iqm.estimate for one in found.settings]
    figure.add_trace(theme.markers("IQM and 95 % interval", means, names, theme.COLORS[0], "diamond", 10))
    figure.data[0].error_x = theme.whiskers([one.iqm for one in found.settings])
    figure.update_xaxes(title=theme.text(f"IQM of {found.metric}"))
    figure.update_layout(showlegend=False)
    return captions.iqm(theme.in_rows(figure, names), found)


def rank_difference_plot(found: RankTest) -> go.Figure:
    """Mean ranks on a line, the best on the left, with bars over settings that are not shown to differ."""
    count, bars = len(found.settings), len(found.groups)
    left = (count + 1) // 2
    below = 0.9 + 0.5 * bars
    figure = go.Figure(layout=theme.figure_layout(height=round(90 + _ROW * (left + 2.5 + 0.5 * bars))))
    ink = {"color": theme.INK, "width": 1.5}
    for number, (name, rank) in enumerate(zip(found.settings, found.ranks, strict=True)):
        on_left = number < left
        depth = -(below + (number if on_left else count - 1 - number))
        side, text = (
            (0.8, f"{theme.text(name)} {rank:.2f}") if on_left else (count + 0.2, f"{rank:.2f} {theme.text(name)}")
        )
        line = go.Scatter(
            x=[float(rank), float(rank), side], y=[0, depth, depth], mode="lines", line=ink, hoverinfo="skip"
        )
        figure.add_trace(line.update(name=theme.text(name)))
        looks = {"showarrow": False, "xanchor": "right" if on_left else "left", "xshift": -4 if on_left else 4}
        figure.add_annotation(x=side, y=depth, text=text, **looks)
    for number, (first, last) in enumerate(found.groups):
        x = [float(found.ranks[first]) - 0.04, float(found.ranks[last]) + 0.04]
        bar = go.Scatter(x=x, y=[-0.4 - 0.5 * number] * 2, mode="lines", line={"color": theme.COLORS[1], "width": 6})
        figure.add_trace(bar.update(name="not shown to differ", hoverinfo="skip"))
    measure = go.Scatter(x=[1, 1 + found.difference], y=[1.0, 1.0], mode="lines+markers", line=ink, hoverinfo="skip")
    figure.add_trace(measure.update(name="critical difference", marker={"symbol": "line-ns", "size": 9, "line": ink}))
    text = f"critical difference {found.difference:.2f}"
    figure.add_annotation(x=1 + found.difference / 2, y=1.0, text=text, showarrow=False, yshift=12)
    figure.add_hline(y=0, line=ink)
    ticks = {"tickvals": list(range(1, count + 1)), "side": "top", "showgrid": False}
    title = theme.text(f"mean rank in {found.metric} over {len(found.tasks)} data sets, 1 is the best")
    figure.update_xaxes(range=[0.8 - 0.45 * count, count + 0.2 + 0.45 * count], title=title, **ticks)
    figure.update_yaxes(visible=False, range=[-(below + left), 1.9])
    figure.update_layout(showlegend=False, margin={"t": 60, "b": 16})
    return captions.rank_differences(figure, found)
