"""What Tune calls: the watchdog over trials, without Ray's processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.cluster import tune_callbacks
from pretune.cluster.tune_callbacks import Watchdog, run_stage
from pretune.dispatch.dispatcher import TRANSPORT, Dispatcher
from pretune.outcomes import Outcome
from pretune.trainables.constants import RESUMED

STEPS = st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=12)


@given(STEPS, STEPS)
def test_the_watchdog_tells_of_every_ended_trial_until_the_handout_is_done_with_it(
    endings: list[list[int]], forgets: list[list[int]]
) -> None:
    """Three trials are added a step; some end, and the handout is told of some of them by Tune itself."""
    config = {TRANSPORT: {"mark": 0}}
    trials = [SimpleNamespace(trial_id=str(i), status="RUNNING", config=config) for i in range(3 * len(endings))]
    live: dict[str, Any] = {}
    reap = mock.Mock()
    watchdog = Watchdog(
        cast(Dispatcher, SimpleNamespace(live=live, reap=reap, announce=print, stopping=None, overdue=False))
    )
    forgotten = (forgets * len(endings))[: len(endings)]
    for step, (ends, done) in enumerate(zip(endings, forgotten, strict=True)):
        there = trials[: 3 * (step + 1)]
        live.update({trial.trial_id: trial for trial in there[-3:]})
        for i in ends:
            if i < len(there):
                there[i].status = "TERMINATED" if i % 2 else "ERROR"
        watchdog.on_step_end(step, there)
        told = reap.call_args.args[0]
        ended = {trial.trial_id for trial in there if trial.status != "RUNNING"}
        assert ended & live.keys() <= told <= ended
        for i in done:
            if str(i) in ended:
                live.pop(str(i), None)
    watchdog.on_step_end(len(endings), trials)
    assert len(watchdog.open) <= len(live)  # what is over costs nothing any more


def test_where_a_stage_goes_on_is_told_at_once_and_other_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(task: Any, report: Any, asked: Any) -> Outcome:
        for values in ({"step": 40, "total": 100, RESUMED: 1.0}, {"step": 41, "total": 100}):
            report(values)
        return Outcome("finished", {})

    told: list[dict[str, Any]] = []
    node = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(tune_callbacks, "execute", execute)
    monkeypatch.setattr(tune_callbacks.StageTask, "from_json", lambda text: None)
    monkeypatch.setattr(tune_callbacks.ray, "get_runtime_context", lambda: node)
    run_stage({TRANSPORT: {"task": "", "pause": 60.0}}, told.append)
    assert [(values["step"], "done" in values) for values in told] == [(40, False), (41, True)]
