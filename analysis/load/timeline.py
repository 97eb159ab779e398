"""When stage runs ran: one lane for each that ran beside others, and the share of the time in which lanes were idle."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas

from pretune.analysis.load.runs import title_of

PAUSE = 60.0  # seconds without any stage run, after which the next ones are of another run of the study


class StageSpan(NamedTuple):
    """A stage run."""

    lane: int  # from 0
    start: float  # seconds since the first stage run, pauses excluded
    seconds: float
    stage: str  # its title
    fingerprint: str


class Timeline(NamedTuple):
    """All stage runs whose times are known, by their start."""

    spans: tuple[StageSpan, ...]
    lanes: int  # the most stage runs at once
    seconds: float  # from the first start to the last end, pauses excluded
    idle: float  # share of lanes x seconds in which no stage run was under way


def timeline(stage_runs: pandas.DataFrame) -> Timeline | None:
    """Lanes of stage runs, from the columns started (seconds since 1970) and seconds; None where no start is known.

    A stage run takes the first lane that is free when it starts. A pause of more than PAUSE seconds is excluded: the
    study was not running, or a stage run is reused from another study.
    """
    if "started" not in stage_runs.columns:
        return None
    known = stage_runs[stage_runs["started"].notna()].sort_values(["started", "fingerprint"])
    spans: list[StageSpan] = []
    free: list[float] = []  # when each lane is
    excluded, ended = 0.0, -math.inf
    for row in known.to_dict("records"):
        started, seconds = float(row["started"]), float(row["seconds"])
        if started - ended > PAUSE:
            excluded += started - (ended if spans else 0.0)
        ended = max(ended, started + seconds)
        lane = next((i for i, when in enumerate(free) if when <= started), len(free))
        free[lane : lane + 1] = [started + seconds]
        spans.append(StageSpan(lane, started - excluded, seconds, title_of(row), str(row["fingerprint"])))
    if not spans:
        return None
    whole = ended - excluded
    busy = sum(span.seconds for span in spans)
    return Timeline(tuple(spans), len(free), whole, max(0.0, 1 - busy / (len(free) * whole)) if whole > 0 else 0.0)


def sentence(found: Timeline) -> str:
    """'61 s with up to 2 stage runs at once; these slots were idle for 3.1 % of the time'."""
    most = f"up to {found.lanes} stage runs at once; these slots were"
    if found.lanes == 1:
        most = "one stage run at a time; the slot was"
    return f"{found.seconds:.0f} s with {most} idle for {100 * found.idle:.1f} % of the time"
