"""The time line: lanes, idle share and pauses, by hand and over random schedules."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretune.analysis.figures.timeline import MOST_SPANS, timeline_plot
from pretune.analysis.load.timeline import PAUSE, sentence, timeline


def runs(*spans, stage="finetune"):
    rows = [{"fingerprint": f"f{i:04d}", "stage": stage, "started": a, "seconds": s} for i, (a, s) in enumerate(spans)]
    return pandas.DataFrame(rows, columns=["fingerprint", "stage", "started", "seconds"])


def test_two_lanes_by_hand():
    """0-4 and 1-3 side by side, then 3-4 in the lane that is free: busy 4 + 2 + 1 of 2 x 4."""
    found = timeline(runs((1000.0, 4.0), (1001.0, 2.0), (1003.0, 1.0)))
    assert [(span.lane, span.start) for span in found.spans] == [(0, 0.0), (1, 1.0), (1, 3.0)]
    assert (found.lanes, found.seconds) == (2, 4.0)
    assert found.idle == pytest.approx(1 / 8)
    assert sentence(found) == "4 s with up to 2 stage runs at once; these slots were idle for 12.5 % of the time"


def test_a_pause_is_left_out_and_a_gap_is_not():
    """Two stage runs of 10 s: a gap of 30 s counts as idle, a pause of a day as nothing."""
    assert timeline(runs((0.0, 10.0), (40.0, 10.0))).idle == pytest.approx(30 / 50)
    apart = timeline(runs((0.0, 10.0), (10.0 + 86_400, 10.0)))
    assert (apart.seconds, apart.idle) == (pytest.approx(20.0), pytest.approx(0.0))
    assert sentence(apart) == "20 s with one stage run at a time; the slot was idle for 0.0 % of the time"


def test_nothing_is_known_of_stage_runs_of_older_versions():
    assert timeline(runs()) is None
    assert timeline(runs((1.0, 2.0)).drop(columns="started")) is None
    mixed = pandas.concat([runs((5.0, 2.0)), runs((5.0, 2.0)).assign(started=None, fingerprint="old")])
    assert [span.fingerprint for span in timeline(mixed).spans] == ["f0000"]


times = st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 20)), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a loaded machine draws slowly
@given(times)
def test_lanes_never_overlap_and_are_as_few_as_run_at_once(spans):
    found = timeline(runs(*spans))
    for lane in range(found.lanes):
        own = sorted(span for span in found.spans if span.lane == lane)
        own.sort(key=lambda span: span.start)
        ends = np.array([span.start + span.seconds for span in own])
        starts = np.array([span.start for span in own])
        assert (starts[1:] >= ends[:-1] - 1e-6).all()
    at_once = max(sum(a <= start < a + s for a, s in spans) for start, _ in spans)
    assert found.lanes == at_once
    assert -1e-6 <= found.idle < 1
    assert max(b for _, b in spans) < PAUSE  # so that no pause arises below the sum of 50 s and 20 s


def test_the_figure_has_a_bar_for_every_stage_run_up_to_a_limit():
    figure = timeline_plot(timeline(runs((0.0, 1.0), (1.0, 1.0))))
    assert [len(trace.x) for trace in figure.data] == [2]
    assert timeline_plot(timeline(runs(*((float(i), 1.0) for i in range(MOST_SPANS + 1))))) is None
