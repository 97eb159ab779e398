"""When stage runs ran: one lane for each that ran beside others, and the share of the time in which lanes were idle."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas
import plotly.graph_objects as go

from pretune.analysis.figures.theme import COLORS, layout, tall, text

PAUSE = 60.0  # seconds without any stage run, after which the next ones are of another run of the study
MOST = 3000  # stage runs that the figure draws


class Span(NamedTuple):
    """A stage run."""

    lane: int  # from 0
    start: float  # seconds since the first stage run, pauses left out
    seconds: float
    stage: str
    fingerprint: str


class Timeline(NamedTuple):
    """All stage runs whose times are known, by their start."""

    spans: tuple[Span, ...]
    lanes: int  # the most stage runs at once
    seconds: float  # from the first start to the last end, pauses left out
    idle: float  # share of lanes x seconds in which no stage run was under way


def timeline(stage_runs: pandas.DataFrame) -> Timeline | None:
    """Of the columns started (seconds since 1970) and seconds; None where no start is known.

    A stage run takes the first lane that is free when it starts. A pause of more than PAUSE seconds is left out: the
    study was not running, or a stage run is reused from another study.
    """
    if "started" not in stage_runs.columns:
        return None
    known = stage_runs[stage_runs["started"].notna()].sort_values(["started", "fingerprint"])
    spans: list[Span] = []
    free: list[float] = []  # when each lane is
    left_out, ended = 0.0, -math.inf
    for row in known.to_dict("records"):
        started, seconds = float(row["started"]), float(row["seconds"])
        if started - ended > PAUSE:
            left_out += started - (ended if spans else 0.0)
        ended = max(ended, started + seconds)
        lane = next((i for i, when in enumerate(free) if when <= started), len(free))
        free[lane : lane + 1] = [started + seconds]
        spans.append(Span(lane, started - left_out, seconds, str(row["stage"]), str(row["fingerprint"])))
    if not spans:
        return None
    whole = ended - left_out
    busy = sum(span.seconds for span in spans)
    return Timeline(tuple(spans), len(free), whole, 1 - busy / (len(free) * whole) if whole > 0 else 0.0)


def sentence(found: Timeline) -> str:
    """'At most 2 stage runs at once; between the first start and the last end, 61 s, lanes were idle 3.1 % of it.'"""
    most = "1 stage run" if found.lanes == 1 else f"{found.lanes} stage runs"
    return f"at most {most} at once, idle for {100 * found.idle:.1f} % of {found.seconds:.0f} s"


def timeline_plot(found: Timeline) -> go.Figure | None:
    """A bar for every stage run on its lane, coloured by stage; None where there are more than MOST."""
    if len(found.spans) > MOST:
        return None
    figure = go.Figure(layout=layout(tall(found.lanes)))
    for place, stage in enumerate(dict.fromkeys(span.stage for span in found.spans)):
        chosen = [span for span in found.spans if span.stage == stage]
        figure.add_bar(
            name=text(stage),
            orientation="h",
            base=[span.start for span in chosen],
            x=[span.seconds for span in chosen],
            y=[span.lane + 1 for span in chosen],
            customdata=[span.fingerprint for span in chosen],
            marker={"color": COLORS[place % len(COLORS)], "line": {"color": "white", "width": 0.5}},
            hovertemplate="%{base:.1f} s: %{x:.2f} s<br>%{customdata}",
        )
    figure.update_layout(barmode="overlay", bargap=0.3, showlegend=True)
    figure.update_xaxes(title="seconds since the first stage run")
    figure.update_yaxes(title="lane", dtick=1, autorange="reversed")
    return figure
