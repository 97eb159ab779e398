"""The three things that Ray Tune calls: what to run next, what to do about lost trials, and a trial.

Kept apart from `tune` because importing Tune takes seconds, and at module level because Tune pickles them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from pretune.dispatch.dispatcher import LEAVE_SECONDS, TRANSPORT, Dispatcher
from pretune.trainables.constants import RESUMED
from pretune.worker import preemption
from pretune.worker.execute import execute
from pretune.worker.task import NEWS, StageTask


class StageSearcher(Searcher):
    """A Tune search algorithm that dispatches ready stages."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self.dispatcher = dispatcher

    def suggest(self, trial_id: str) -> Any:
        self.dispatcher.reap()  # Tune asks in a loop of up to 600 s without a step while nothing is live
        return Searcher.FINISHED if self.dispatcher.over else self.dispatcher.take(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.dispatcher.progress(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result:
            self.dispatcher.progress(trial_id, result)
        self.dispatcher.end(trial_id, result)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store and Optuna's storage hold all state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles the searcher into its own folder; nothing of ours belongs there


class Watchdog(tune.Callback):
    """Tells the dispatcher which trials Tune holds for ended, and stages when the study is stopped.

    Args:
        lost: called with the mark of a stage run on several workers whose trial was lost (held_places).
    """

    def __init__(self, dispatcher: Dispatcher, lost: Callable[[int], None] = lambda mark: None) -> None:
        self.dispatcher = dispatcher
        self.lost = lost
        self.asked = False
        self.open: dict[str, Any] = {}  # trials that the dispatcher was not seen to be done with
        self.seen = 0  # of Tune's list, which only grows

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.open |= {trial.trial_id: trial for trial in trials[self.seen :]}
        self.seen = len(trials)
        ended = {name for name, trial in self.open.items() if trial.status in ("TERMINATED", "ERROR")}
        for name in ended:
            if self.open[name].status == "ERROR" and (mark := self.open[name].config[TRANSPORT]["mark"]):
                self.lost(mark)
        self.dispatcher.reap(ended)
        for name in ended - self.dispatcher.live.keys():
            del self.open[name]
        if self.dispatcher.stopping and not self.asked:
            self.asked = True
            self._ask_stages_to_leave()
        if self.dispatcher.overdue:
            preemption.end_at_once()

    def _ask_stages_to_leave(self) -> None:
        """Ask them to leave; end those that cannot be asked."""
        if self.dispatcher.live:
            self.dispatcher.announce(
                f"stopping: {len(self.dispatcher.live)} stage runs save their state, for at most {LEAVE_SECONDS:g} s "
                "(press Ctrl-C again to stop at once)"
            )
        try:
            preemption.ask_to_stop()
        except Exception as error:  # Ray raises bare errors while its head does not answer
            self.dispatcher.say(f"{error}: stages stop now, and will continue from their last saved state")
            preemption.end_at_once()

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StageTrial(tune.Trainable):
    """A trial: one stage, in a thread of this actor. Each step is a report of its; the last says how it ended.

    The main thread, on which Tune calls, listens to SIGTERM. An actor takes one stage after another.
    """

    def setup(self, config: dict[str, Any]) -> None:
        preemption.listen()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._reports: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
        self._stage = threading.Thread(target=_reported, args=(config, self._reports.put), daemon=True)

    def step(self) -> dict[str, Any]:
        if self._stage.ident is None:
            self._stage.start()
        report = self._reports.get()
        if isinstance(report, BaseException):
            raise report
        return report


class NamedStage(StageTrial):
    """The same as an actor that the dashboard shows by stage, cell and seed. Ray asks once, so it takes one trial."""

    def __repr__(self) -> str:
        return str(self.config["label"])


def _reported(config: dict[str, Any], tell: Callable[[dict[str, Any] | BaseException], None]) -> None:
    """Run the stage of a trial; whatever ends this thread ends the trial, too."""
    try:
        run_stage(config, tell)
    except BaseException as error:  # the other thread raises it
        tell(error)


def run_stage(config: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Run one stage, and tell what it reports; its outcome and metrics go last. Raises only to end the actor."""
    transport = config[TRANSPORT]
    last, latest = time.monotonic(), dict[str, Any]()
    where = {"node": ray.get_runtime_context().get_node_id()}

    def report(values: dict[str, Any]) -> None:
        nonlocal last, latest
        if NEWS in values:
            tell(values)
            return
        latest = values
        if RESUMED in values or time.monotonic() - last >= transport["pause"]:
            last = time.monotonic()
            tell(values | where)

    with preemption.at_work() as asked:
        outcome = execute(StageTask.from_json(transport["task"]), report, asked)
    ended = {"state": outcome.state, "cause": outcome.cause, "failure": str(outcome.failure)}
    broken = outcome.state in ("crashed", "preempted")
    tell(latest | dict(outcome.metrics) | where | ended | {"done": not broken})
    if broken:
        raise RuntimeError(outcome.cause)  # ends this actor: a CUDA error, say, would break the next stage too
