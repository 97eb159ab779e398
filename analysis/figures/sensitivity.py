"""Drawing sensitivity: panels of trials with their curve and a rug of failures; importance with its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.figures import search_captions, theme
from pretune.analysis.questions.importance import Importance
from pretune.analysis.questions.sensitivity import Curve, Panel, PanelGroup, SearchPoints
from pretune.analysis.statistics import Array, Interval

MOST_COLORED = len(theme.COLORS)  # searches with a colour of their own; of more, hovering gives the name
_PANEL, _GAP, _RUG = 270, 92, 20  # pixels: of a panel, between two, of a line of the rug
_ENDS = {
    "diverged": "x-thin",
    "beyond a constraint": "y-up-thin",
    "crashed": "cross-thin",
    "without a score": "line-ns",
}
_DODGE = 0.07  # between searches at one option


def sensitivity_plot(group: PanelGroup, columns: int = 1) -> go.Figure:
    """One panel per parameter, all searches on one scale of scores; what failed stands on a rug below its panel."""
    endings = list(dict.fromkeys(end for panel in group.panels for one in panel.searches for end, _ in one.failed))
    rug = _RUG * len(endings)
    rows = -(-len(group.panels) // columns)
    named = min(MOST_COLORED, max(len(panel.searches) for panel in group.panels))
    legend = 60 + 22 * named  # a line each where names are long
    figure = go.Figure(layout=theme.figure_layout(height=rows * (_PANEL + rug + _GAP) + legend))
    figure.update_layout(margin={"t": 46, "b": legend})
    seen: set[str] = set()
    for number, panel in enumerate(group.panels):
        place = _Place(number, columns, rows, rug)
        for trace in _traces(panel, endings):
            trace.update(xaxis=f"x{place.axis}", yaxis=f"y{place.rug if trace.meta == 'rug' else place.axis}")
            trace.update(showlegend=bool(trace.name) and trace.name not in seen and trace.showlegend is not False)
            seen.add(str(trace.name))
            figure.add_trace(trace)
        figure.update_layout(_axes(panel, place, endings, figure.layout))
        figure.add_annotation(**_title(panel, place))
    return search_captions.sensitivity(figure, group)


class _Place:
    """A panel's place: the numbers of its axes, and its domains in the plotting area."""

    def __init__(self, number: int, columns: int, rows: int, rug: int) -> None:
        row, column = divmod(number, columns)
        whole, gap = rows * (_PANEL + rug + _GAP) - _GAP, 0.09
        top = 1 - row * (_PANEL + rug + _GAP) / whole
        width = (1 - gap * (columns - 1)) / columns
        self.axis, self.rug = 2 * number + 1, 2 * number + 2
        self.x = [column * (width + gap), column * (width + gap) + width]
        self.y = [max(0.0, top - _PANEL / whole), top]
        self.below = [max(0.0, top - (_PANEL + rug) / whole), self.y[0]]


def _axes(panel: Panel, place: _Place, endings: Sequence[str], layout: go.Layout) -> dict[str, Any]:
    """The panel's own axes, and those of its rug; all panels share one range of scores."""
    looks = {key: layout.xaxis[key] for key in ("gridcolor", "linecolor", "ticks", "zeroline")}
    x = looks | {"domain": place.x, "anchor": f"y{place.rug if endings else place.axis}", "type": "linear"}
    if panel.log:
        tried = [value for one in panel.searches for part in _all_x(one) for value in part]
        x |= {"type": "log", **theme.log_ticks(tried)}
    if panel.options:
        names = [theme.text(option) for option in panel.options]
        x |= {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.6, len(names) - 0.4]}
    title = {"text": theme.text(panel.metric), "standoff": 8}
    y = looks | {"domain": place.y, "anchor": f"x{place.axis}", "title": title, "automargin": True}
    y |= {"matches": "y"} if place.axis > 1 else {}
    axes = {f"xaxis{place.axis}": x, f"yaxis{place.axis}": y}
    if endings:
        lines = {"tickvals": list(range(len(endings))), "ticktext": list(endings), "tickfont": {"size": 11}}
        axes[f"yaxis{place.rug}"] = lines | {
            "domain": place.below, "anchor": f"x{place.axis}", "range": [-0.7, len(endings) - 0.3], "ticks": "",
            "gridcolor": theme.GRID, "zeroline": False, "automargin": True,
        }  # fmt: skip
    return axes


def _all_x(one: SearchPoints) -> list[Array]:
    return [one.x, one.partial_x, *(x for _, x in one.failed)]


def _title(panel: Panel, place: _Place) -> dict[str, Any]:
    said = f"<b>{theme.text(panel.parameter)}</b>" + (f"<br>{theme.text(panel.failures)}" if panel.failures else "")
    at = {"x": place.x[0], "y": place.y[1], "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return {"text": said, "showarrow": False, "align": "left", "yshift": 4, "font": {"size": 13}, **at}


def _traces(panel: Panel, endings: Sequence[str]) -> list[go.Scatter]:
    several = len(panel.searches) > 1
    traces = _interval(panel.curve, bool(panel.options)) if panel.curve is not None else []
    for number, one in enumerate(panel.searches):
        traces += _search(one, number, len(panel.searches), panel, endings)
    if panel.curve is not None:
        name = "all together, with 95 % interval" if several else "curve with 95 % interval"
        style = {"color": theme.INK, "width": 3}
        mode = "lines+markers" if len(panel.curve.x) <= len(panel.options or range(6)) else "lines"
        curve = go.Scatter(x=theme.finite(panel.curve.x), y=theme.finite(panel.curve.mean), line=style, name=name)
        curve.update(mode="markers" if panel.options else mode, marker={"size": 9, "color": theme.INK})
        traces.append(curve.update(legendrank=2000))
    return traces


def _interval(curve: Curve, options: bool) -> list[go.Scatter]:
    if not np.isfinite(curve.low).all():
        return []
    around, edge = np.concatenate([curve.x, curve.x[::-1]]), np.concatenate([curve.high, curve.low[::-1]])
    area = go.Scatter(x=theme.finite(around), y=theme.finite(edge), fill="toself", fillcolor=theme.faint(theme.INK))
    area.update(mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    if options:
        whiskers = {"array": theme.finite(curve.high - curve.mean), "color": theme.INK, "thickness": 2, "width": 8}
        bars = go.Scatter(x=theme.finite(curve.x), y=theme.finite(curve.mean), mode="markers", error_y=whiskers)
        return [bars.update(marker={"color": theme.INK, "size": 1}, showlegend=False, hoverinfo="skip")]
    return [area]


def _search(one: SearchPoints, number: int, of: int, panel: Panel, endings: Sequence[str]) -> list[go.Scatter]:
    """The trials of one search, its own line, what was raced out, the confirmed value, and its failures."""
    colored = of <= MOST_COLORED
    color = theme.COLORS[number] if colored else "#7B8794"
    symbol = theme.MARKERS[number % len(theme.MARKERS)] if colored else "circle"
    shift = _DODGE * (number - (of - 1) / 2) if panel.options and colored else 0.0
    name = theme.text(one.search.removeprefix("fine-tuning of ")) if colored else f"{of} searches, one mark per trial"
    hover = f"%{{y:.4g}} at %{{x:.4g}}<br>{theme.text(one.search)}<extra></extra>"
    trials = theme.markers(name, one.x + shift, one.score, color, f"{symbol}-open", 8)
    trials.update(legendgroup=name, hovertemplate=hover)
    if np.isfinite(one.std).any():
        trials.error_y = {"array": theme.finite(one.std), "color": color, "thickness": 1, "width": 0}
    traces = [trials]
    if one.line is not None and of > 1 and not panel.options:
        line = go.Scatter(x=theme.finite(one.line.x), y=theme.finite(one.line.mean), mode="lines", legendgroup=name)
        line.update(line={"color": color, "width": 1.2, "dash": theme.DASHES[number % 5]}, hoverinfo="skip")
        traces.append(line.update(showlegend=False))
    traces += _partial(one, color, shift) + _confirmed(one, color, shift)
    for ending, x in one.failed:
        at = np.full(len(x), endings.index(ending), np.float64)
        lost = theme.markers("", x + shift, at, color, _ENDS.get(ending, "x-thin"), 10)
        traces.append(
            lost.update(meta="rug", showlegend=False, legendgroup=name, hovertemplate=f"%{{x:.4g}}<br>{name}")
        )
    return traces


def _partial(one: SearchPoints, color: str, shift: float) -> list[go.Scatter]:
    if not len(one.partial_x):
        return []
    name = "raced out or stopped early: score as far as it went"
    found = theme.markers(name, one.partial_x + shift, one.partial_score, color, "triangle-down-open", 6)
    return [found.update(opacity=0.6, legendrank=1950)]


def _confirmed(one: SearchPoints, color: str, shift: float) -> list[go.Scatter]:
    if not one.confirmed.any():
        return []
    kept = theme.markers(
        "chosen for the table", (one.x + shift)[one.confirmed], one.score[one.confirmed], color, "star", 14
    )
    return [kept.update(marker={"line": {"width": 1, "color": theme.INK}}, legendrank=1900)]


# ------------------------------------------------------------------------------------------------------- importance

_AXES: Mapping[str, str] = {
    "main effects": "share of the variance of scores<br>that a parameter explains alone",
    "PED-ANOVA": "share of importance by PED-ANOVA:<br>what tells the best tenth of trials apart",
    "fANOVA": "share of importance by fANOVA:<br>variance of a forest's fit",
}


def importance_plot(found: Importance) -> go.Figure:
    """Shares with their intervals, and for each parameter the share that chance reaches; filled where it is above."""
    figure = go.Figure(layout=theme.figure_layout(height=theme.tall(len(found.parameters)) + 50))
    names = [theme.text(name) for name in found.parameters]
    shares = theme.markers("share, with its interval", found.share, names, theme.COLORS[2], "square", 10)
    parts = zip(found.share, found.low, found.high, strict=True)
    shares.error_x = theme.whiskers([Interval(*map(float, part)) for part in parts])
    shares.marker.symbol = ["square" if name in found.above else "square-open" for name in found.parameters]
    figure.add_trace(shares)
    floor = theme.markers("what chance reaches", found.floor, names, theme.COLORS[1], "line-ns", 20)
    figure.add_trace(floor.update(marker={"line": {"width": 3, "color": theme.COLORS[1]}}))
    right = max(1.02, 1.05 * float(np.nanmax(found.floor, initial=0.0)))
    figure.update_xaxes(title=_AXES[found.method], range=[-0.02, right])
    return search_captions.importance(theme.in_rows(figure, names), found)
