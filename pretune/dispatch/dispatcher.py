"""Dispatcher: assigns ready stages to free resources and records how they end.

No Ray in here: resources are counted by ourselves, and a trial that its runner loses is noticed by time.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pretune.dispatch.node_health import Health
from pretune.dispatch.resources import ClusterNode, ClusterResources, shape
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Failure, Outcome
from pretune.search_spaces.stages import Stage
from pretune.store.store import StoreError
from pretune.trainables.constants import RESUMED
from pretune.worker.task import NEWS, StageTask

TRANSPORT = "pretune"  # key of a trial's configuration: what carries the stage; all other keys are for people
LAUNCHER = {"memory": 1048576}  # bytes; Ray refuses a trial that reserves nothing
MARKS = 2**26  # places of several workers are told apart by so many amounts
REPORT_SECONDS = 1.0  # least time between two progress reports of a stage
REPORTS = 50.0  # most reports a second that the driver is to take; each costs it some milliseconds
LOST_SECONDS = 15.0  # after which a trial that Tune ended without telling us counts as crashed
LEAVE_SECONDS = 38.0  # which stages get to write their state when the study is stopped: all of it stays under 50 s
RESOURCE_SECONDS = 5.0  # between two looks at what the cluster has
QUIET_SECONDS = 600.0  # without a report, after which a stage run is mentioned; nothing is ended for it
FIRST_SECONDS = 60.0  # for which nothing else is dispatched until a retry has its place on another node
WAIT_SECONDS = 60.0  # with nothing running and something ready, after which it is said what is waited for


def _new_mark() -> int:
    """An amount of memory in bytes, 1 to 65 MiB, that no other stage run of a cluster is likely to have."""
    return LAUNCHER["memory"] + 1 + secrets.randbelow(MARKS)


def _ignore(text: str) -> None:
    return None


@dataclass
class RunningTrial:
    """A trial that is under way."""

    stage: Stage
    began: float
    label: str  # readable: which cell and seed it is for
    latest: dict[str, Any] = field(default_factory=dict)
    seen_ended: float | None = None  # when Tune was first seen to have ended it without telling
    heard: float = field(default_factory=lambda: time.monotonic())  # of it last
    mentioned: bool = False  # that nothing was heard for long
    rerouted: bool = False  # away from a node on which it crashed


@dataclass
class Dispatcher:
    """Gives stages of the scheduler to whatever runs trials, as far as the nodes have room, and takes outcomes back."""

    scheduler: Scheduler
    resources: ClusterResources
    task_for: Callable[[Stage, float], StageTask]
    live: dict[str, RunningTrial]  # what is under way, by trial
    images: dict[str, int] = field(default_factory=dict)  # seen in training, by title of the stage
    fault: Exception | None = None  # ours, raised while Tune called us: it would log it and go on
    nodes: Callable[[], Sequence[ClusterNode]] | None = None  # what the cluster has now: nodes come and go
    say: Callable[[str], None] = _ignore  # to whoever watches and reads the log
    announce: Callable[[str], None] = _ignore  # likewise, but only while the study runs
    stopping: float | None = None  # since when nothing is dispatched any more
    health: Health = field(default_factory=Health)
    _excluded: dict[str, str] = field(default_factory=dict)  # nodes to keep stages off, and why
    _looked: float = field(default_factory=lambda: time.monotonic())
    _idle_since: float | None = None

    def take(self, trial: str) -> dict[str, Any] | None:
        """The configuration of a new trial, or None while nothing is ready or fits.

        It is the stage run's label, stage, phase, seed, levels and chosen values, and under TRANSPORT what carries it.
        """
        self._look()
        stage = None if self.stopping or self._held_up() else self.scheduler.take(self._fits)
        self._say_what_is_waited_for(dispatched=stage is not None)
        if stage is None:
            return None
        each, excluded = self.resources.each(stage), self.excluded(stage)
        self.resources.admit(stage, excluded)
        task = replace(self.task_for(stage, each["GPU"]), mark=_new_mark() if stage.resources.workers > 1 else 0)
        self.live[trial] = RunningTrial(
            stage, time.monotonic(), task.label, rerouted=bool(excluded & self.crashed_on(stage))
        )
        # A trial that launches workers holds nothing that they need: any CPU of its own could keep them out for ever.
        reserved = each if stage.resources.workers == 1 else LAUNCHER
        pause = max(REPORT_SECONDS, len(self.live) / REPORTS)
        transport = {
            "task": task.to_json(),
            "resources": reserved,
            "excluded": sorted(excluded),
            "pause": pause,
            "mark": task.mark,
        }
        return {"label": task.label} | task.parameters | {TRANSPORT: transport}

    def _fits(self, stage: Stage) -> bool:
        return self.resources.fits(stage, self.excluded(stage))

    def excluded(self, stage: Stage) -> AbstractSet[str]:
        """Nodes that a stage should not run on: those excluded, and where it crashed, as far as others could do it.

        Not of one on several workers: nobody says on which node such a stage crashed, and Ray Train places them.
        """
        if stage.resources.workers > 1:
            return frozenset()
        out = frozenset(self._excluded)
        crashed = self.crashed_on(stage)
        choices = (out | crashed, out, frozenset[str]()) if out or crashed else (frozenset[str](),)
        return next((choice for choice in choices if self.resources.could_hold(stage, choice)), frozenset())

    def crashed_on(self, stage: Stage) -> AbstractSet[str]:
        return self.health.where.get(stage.fingerprint, frozenset[str]())

    def _held_up(self) -> bool:
        """A stage that was sent to another node waits for its place: it comes first, for a while.

        Else it would come last: Tune gives a place to whatever can go on in the same process.
        """
        begun = [live.began for live in self.live.values() if live.rerouted and not live.latest]
        return any(time.monotonic() - began < FIRST_SECONDS for began in begun)

    @property
    def over(self) -> bool:
        """Nothing is left to dispatch, now or later; with nothing live and nothing ready, Tune would poll forever."""
        if self.fault is not None or self.scheduler.finished:
            return True
        return (self.scheduler.stuck() or self.stopping is not None) and not self.live

    def stop(self) -> None:
        """Dispatch no more; what is under way may write its state and leave."""
        self.stopping = self.stopping or time.monotonic()

    @property
    def overdue(self) -> bool:
        """Stages had their time to leave."""
        return self.stopping is not None and time.monotonic() - self.stopping > LEAVE_SECONDS

    def _look(self) -> None:
        if self.nodes is not None and time.monotonic() - self._looked > RESOURCE_SECONDS:
            self._looked = time.monotonic()
            on_gpus = self.resources.on_gpus
            self.resources.look(self.nodes())
            if self.resources.on_gpus and not on_gpus:
                self.say("a node with a GPU has joined: stages without an explicit `gpus` now use a GPU")
            self._judge()

    def _judge(self) -> None:
        """Update the excluded nodes, and report those that changed."""
        hosts = {node.id: node.host for node in self.resources.nodes if node.id}
        before, self._excluded = self._excluded, self.health.excluded(hosts.keys())
        for node in self._excluded.keys() - before.keys():
            self.say(f"{hosts[node]} gets no more stages: {self._excluded[node]}")
        for node in (before.keys() - self._excluded.keys()) & hosts.keys():
            self.say(f"{hosts[node]} gets stages again")

    def _say_what_is_waited_for(self, dispatched: bool) -> None:
        """Once, where nothing runs for long since no node that is there or may come has room."""
        now = time.monotonic()
        if dispatched or self.live or self.stopping or not (waiting := self.scheduler.first_in_line()):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > WAIT_SECONDS:
            room = shape(self.resources.each(waiting))
            self.say(f"nothing can run: no node has room for {room}; waiting for such a node")
            self._idle_since = math.inf

    def progress(self, trial: str, result: dict[str, Any]) -> None:
        """A trial reports. A stage that goes on from its checkpoint does not count the images before it once more."""
        if (live := self.live.get(trial)) and NEWS in result:
            live.heard = time.monotonic()
            self.say(f"{live.label}: {result[NEWS]}")
        elif live:
            steps = 0 if RESUMED in result else result.get("step", 0) - live.latest.get("step", 0)
            seen = round(max(0, steps) * getattr(live.stage.settings, "batch_size", 0))
            self.images[live.stage.title] = self.images.get(live.stage.title, 0) + seen
            live.latest, live.heard, live.mentioned = result, time.monotonic(), False
            self.resources.settle(live.stage.fingerprint, result.get("node", ""))

    def end(self, trial: str, result: Mapping[str, Any] | None) -> None:
        """A trial has ended; told twice, it counts once."""
        if live := self.live.pop(trial, None):
            self.resources.release(live.stage.fingerprint)
            try:
                outcome = outcome_of(live.stage, result or live.latest, self.scheduler)
                outcome = self._blame(live, str((result or live.latest).get("node", "")), outcome)
                if outcome.policy and outcome.policy.stops_study:
                    raise StoreError(
                        f"the study stopped: the disk of the store is full ({outcome.cause}); free some "
                        "space and run the same command again. Finished work is kept"
                    )
                self.scheduler.complete(live.stage, outcome)
            except Exception as fault:
                self.fault = self.fault or fault

    def _blame(self, live: RunningTrial, node: str, outcome: Outcome) -> Outcome:
        """Note on which node it ended. Where only that is at fault, the stage runs again at no cost."""
        if not node or live.stage.resources.workers > 1:
            return outcome
        if outcome.state in ("finished", "diverged"):
            self.health.ended_well(node)
        elif outcome.policy:
            self.health.crashed(live.stage.fingerprint, node, outcome)
        self._judge()
        if outcome.policy and outcome.policy.of_node and node in self._excluded:
            return outcome._replace(state="preempted")
        return outcome

    def reap(self, ended: frozenset[str] | set[str] = frozenset()) -> None:
        """Trials that ended some time ago without anybody saying so, which would hang the study."""
        now = time.monotonic()
        for trial, live in list(self.live.items()):
            if trial in ended:
                live.seen_ended = live.seen_ended or now
            if live.seen_ended is not None and now - live.seen_ended > LOST_SECONDS:
                self.end(trial, None)
            elif now - live.heard > QUIET_SECONDS and not live.mentioned:
                live.mentioned = True
                what, why = "Ray has not started it", "it may wait for free CPUs or GPUs"
                if live.latest:
                    what, why = "no progress report", "it may be slow"
                self.say(f"{live.label}: {what} for {QUIET_SECONDS / 60:.0f} min; {why}")


def outcome_of(stage: Stage, result: Mapping[str, Any], scheduler: Scheduler) -> Outcome:
    """Return how a trial ended: what the store holds counts, then what the trial said, then that Tune saw it die."""
    if found := scheduler.find(stage.fingerprint):
        return found
    if (state := result.get("state")) in ("crashed", "preempted"):
        ended: Literal["crashed", "preempted"] = "preempted" if state == "preempted" else "crashed"
        return Outcome(ended, {}, str(result.get("cause")), failure=Failure(result.get("failure", "error")))
    if result.get("state") in ("finished", "diverged"):
        if scheduler.find_announced and (found := scheduler.find_announced(stage.fingerprint)):
            return found
        cause = "the stage finished but its result is not visible in the store; is the store shared by all nodes?"
        return Outcome("crashed", {}, cause, failure=Failure.NOT_VISIBLE)
    return Outcome("crashed", {}, "the process that ran it died (killed, or out of memory)", failure=Failure.LOST)
