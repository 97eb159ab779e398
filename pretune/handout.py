"""Between the scheduler and whatever runs trials: what the cluster has, who runs, and how trials end.

No Ray in here: stages are handed out by our own ledger, and a trial that its runner loses is noticed by time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pretune.execute import DISK_FULL, Order
from pretune.outcomes import Outcome
from pretune.scheduler import Scheduler
from pretune.store import Entry, Store, StoreError
from search_spaces.stages import Stage

LAUNCHER = {"memory": 1048576}  # bytes; Ray refuses a trial that reserves nothing
LOST_SECONDS = 15.0  # after which a trial that Tune ended without telling us counts as crashed
LEAVE_SECONDS = 45.0  # which stages get to write their state when the study is stopped
RESOURCE_SECONDS = 5.0  # between two looks at what the cluster has


class ResourceError(Exception):
    """The study needs what this machine or cluster does not have."""


@dataclass
class Ledger:
    """What the cluster has and what running stages use of it. Stages are admitted by this, not by Tune."""

    total: Mapping[str, float]
    parallel: int | None = None  # most stages at once
    running: dict[str, dict[str, float]] = field(default_factory=dict)
    nodes: Sequence[Mapping[str, float]] = ()  # what each machine has; default: all is on one

    def each(self, stage: Stage) -> dict[str, float]:
        """CPUs and GPUs of one worker of a stage; one GPU where the study leaves it open and there are any.

        A share of a GPU counts as what it leaves no use for: of 0.6 only one fits on each, so it is 1.
        """
        asked, gpus = stage.resources.gpus_each, self.total.get("GPU", 0.0)
        wanted = min(1.0, gpus) if asked is None else asked
        return {"CPU": float(stage.resources.cpus), "GPU": 1 / int(1 / wanted + 1e-9) if 0 < wanted < 1 else wanted}

    def needs(self, stage: Stage) -> dict[str, float]:
        """CPUs and GPUs of a stage, of all its workers together."""
        return {name: amount * stage.resources.workers for name, amount in self.each(stage).items()}

    def fits(self, stage: Stage) -> bool:
        if self.parallel is not None and len(self.running) >= self.parallel:
            return False
        return all(self._free(name) >= amount - 1e-9 for name, amount in self.needs(stage).items())

    def _free(self, name: str) -> float:
        return self.total.get(name, 0.0) - math.fsum(used.get(name, 0.0) for used in self.running.values())

    def check(self, stages: Mapping[str, Stage]) -> None:
        """Raises `ResourceError` for a stage that could never be placed; Ray itself would wait silently."""
        for stage in stages.values():
            each, workers = self.each(stage), stage.resources.workers
            for name, amount in each.items():
                largest = max(node.get(name, 0.0) for node in self.nodes or (self.total,))
                if amount > largest:
                    key = (
                        "cpus"
                        if name == "CPU"
                        else "gpus"
                        if stage.resources.gpus_per_worker is None
                        else "gpus_per_worker"
                    )
                    there = "there are" if len(self.nodes) < 2 else "no machine has more than"
                    raise ResourceError(
                        f"resources.{stage.kind}.{key}: a stage needs {amount:g} {name}, {there} {largest:g}; "
                        "lower it or add machines"
                    )
            if (room := sum(_room(node, each) for node in self.nodes or (self.total,))) < workers:
                shape = " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)
                raise ResourceError(
                    f"resources.{stage.kind}.workers: {workers} workers with {shape} each, there is room for {room}; "
                    "lower it or add machines"
                )


def _room(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers a machine has room for."""
    return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in each.items() if amount)


@dataclass
class Live:
    """A trial that is under way."""

    stage: Stage
    began: float
    latest: dict[str, Any] = field(default_factory=dict)
    seen_ended: float | None = None  # when Tune was first seen to have ended it without telling


@dataclass
class Handout:
    """Between the scheduler and whatever runs trials: hands stages out by the ledger, takes outcomes back."""

    scheduler: Scheduler
    ledger: Ledger
    order_for: Callable[[Stage, float], Order]
    live: dict[str, Live]  # what is under way, by trial
    images: dict[str, int] = field(default_factory=dict)  # seen in training, by name of stage
    fault: Exception | None = None  # ours, raised while Tune called us: it would log it and go on
    resources: Callable[[], Mapping[str, float]] | None = None  # what the cluster has now: machines come and go
    stopping: float | None = None  # since when nothing is handed out any more
    _looked: float = field(default_factory=time.monotonic)

    def take(self, trial: str) -> dict[str, Any] | None:
        """The configuration of a new trial, or None while nothing is ready or fits."""
        self._look()
        stage = None if self.stopping else self.scheduler.take(self.ledger.fits)
        if stage is None:
            return None
        each = self.ledger.each(stage)
        self.ledger.running[stage.fingerprint] = self.ledger.needs(stage)
        self.live[trial] = Live(stage, time.monotonic())
        # A trial that launches workers holds nothing that they need: any CPU of its own could keep them out for ever.
        reserved = each if stage.resources.workers == 1 else LAUNCHER
        return {"order": self.order_for(stage, each["GPU"]).to_json(), "resources": reserved}

    @property
    def over(self) -> bool:
        """Nothing is left to hand out, now or later; with nothing live and nothing ready, Tune would poll forever."""
        if self.fault is not None or self.scheduler.finished:
            return True
        return (self.scheduler.stuck() or self.stopping is not None) and not self.live

    def stop(self) -> None:
        """Hand out no more; what is under way may write its state and leave."""
        self.stopping = self.stopping or time.monotonic()

    @property
    def overdue(self) -> bool:
        """Stages had their time to leave."""
        return self.stopping is not None and time.monotonic() - self.stopping > LEAVE_SECONDS

    def _look(self) -> None:
        if self.resources is not None and time.monotonic() - self._looked > RESOURCE_SECONDS:
            self._looked = time.monotonic()
            self.ledger.total = self.resources()

    def progress(self, trial: str, result: dict[str, Any]) -> None:
        """A trial reports. A stage that goes on from its checkpoint counts the images before it once more."""
        if live := self.live.get(trial):
            steps = result.get("step", 0) - live.latest.get("step", 0)
            seen = round(max(0, steps) * getattr(live.stage.settings, "batch_size", 0))
            self.images[live.stage.name] = self.images.get(live.stage.name, 0) + seen
            live.latest = result

    def end(self, trial: str, result: Mapping[str, Any] | None, error: bool) -> None:
        """A trial has ended; told twice, it counts once."""
        if live := self.live.pop(trial, None):
            self.ledger.running.pop(live.stage.fingerprint, None)
            try:
                outcome = outcome_of(live.stage, result or live.latest, error, self.scheduler)
                if outcome.state == "crashed" and DISK_FULL in outcome.cause:  # else all others train for nothing
                    raise StoreError(
                        f"the study stopped: the disk of the store is full ({outcome.cause}); make room: what is "
                        "finished is kept, and the same command goes on"
                    )
                self.scheduler.complete(live.stage, outcome)
            except Exception as fault:
                self.fault = self.fault or fault

    def reap(self, ended: frozenset[str] | set[str] = frozenset()) -> None:
        """Trials that ended some time ago without anybody saying so, which would hang the study."""
        now = time.monotonic()
        for trial, live in list(self.live.items()):
            if trial in ended:
                live.seen_ended = live.seen_ended or now
            if live.seen_ended is not None and now - live.seen_ended > LOST_SECONDS:
                self.end(trial, None, error=True)


def outcome_of(stage: Stage, result: Mapping[str, Any], error: bool, scheduler: Scheduler) -> Outcome:
    """How a trial ended: what the store holds counts, then what the trial said, then that Tune saw it die."""
    if found := scheduler.find(stage.fingerprint):
        return found
    if (state := result.get("state")) in ("crashed", "preempted"):
        ended: Literal["crashed", "preempted"] = "preempted" if state == "preempted" else "crashed"
        return Outcome(ended, {}, str(result.get("cause")), final=bool(result.get("final")))
    if result.get("state") in ("finished", "diverged"):
        return Outcome(
            "crashed", {}, "it ended well, but the store does not show it: is it on a disk that all nodes share?"
        )
    return Outcome("crashed", {}, "the process that ran it died (killed, or out of memory)")


def find_in(store: Store) -> Callable[[str], Outcome | None]:
    """The store as the scheduler sees it."""

    def find(fingerprint: str) -> Outcome | None:
        entry = store.find(fingerprint)
        if entry is None:
            return None
        state: Literal["diverged", "finished"] = "diverged" if entry.outcome == "diverged" else "finished"
        return Outcome(state, entry.metrics, entry.cause, "", costs(entry))

    return find


def costs(entry: Entry) -> dict[str, float]:
    """What a stage run took: seconds, GPU seconds, and the most GPU memory (bytes) where it had a GPU."""
    order = entry.about.get("order") or {}
    gpus = float(order.get("gpus") or 0.0) * int(order.get("workers") or 1)
    memory = (entry.about.get("machine") or {}).get("gpu_memory")
    found = {"cost/seconds": entry.seconds, "cost/gpu_seconds": entry.seconds * gpus}
    return found if memory is None else found | {"cost/gpu_memory": float(memory)}
