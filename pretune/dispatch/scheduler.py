"""The scheduler: which stage runs next.

Pure bookkeeping, without processes or clocks: programs say what they wait for, the store says what is there, and
whoever runs stages takes the next ready one and reports how it ended. Equal fingerprints are one stage run; a stage
is ready when its parent is finished; descendants of a failed stage are blocked; a crash is retried unless it would
end the same, a divergence never.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pretune.outcomes import Outcome, Outcomes, Program
from pretune.search_spaces.stages import Stage

Find = Callable[[str], Outcome | None]
Shape = tuple[str, int, float, int, bool]  # kind, CPUs, GPUs (-1: the default), workers, whether it crashed before
Event = Callable[
    [Literal["reused", "started", "finished", "diverged", "retried", "crashed", "blocked", "preempted"], Stage, str],
    None,
]


@dataclass(eq=False)
class _Waiting:
    """A program, the stages that it waits for, and which of them have not ended."""

    program: Program
    awaited: tuple[str, ...] = ()
    missing: set[str] = field(default_factory=set)


def _ignore(kind: str, stage: Stage, text: str) -> None:
    return None


@dataclass
class Scheduler:
    """Call `start` once; then `take` ready stages and `complete` them until `finished`.

    A call costs next to nothing however many stages wait: ready stages stand in one heap per resource shape, those that
    wait for a parent stand with it, and programs are told when a stage that they wait for ends.
    """

    find: Find  # what the store holds of a fingerprint
    retries: int  # how often a crashed stage is tried again
    on_event: Event = _ignore
    find_announced: Find | None = None  # the same, for what a trial says that it has just finished
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, Stage] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    attempts: Counter[str] = field(default_factory=Counter)
    _wanted: set[str] = field(default_factory=set)  # neither running nor ended
    _ready: dict[Shape, list[tuple[int, int, Stage]]] = field(default_factory=dict)  # heaps: seed, order asked, stage
    _children: dict[str, list[Stage]] = field(default_factory=dict)  # wanted stages by the parent they wait for
    _waiting: dict[str, list[_Waiting]] = field(default_factory=dict)  # programs by what they wait for
    _series: dict[str, dict[str, int]] = field(default_factory=dict)  # epochs of the trainings of each series
    _fresh: deque[Stage] = field(default_factory=deque)  # wanted, and not yet put anywhere
    _movable: deque[_Waiting] = field(default_factory=deque)  # programs that have all they waited for
    _programs: int = 0
    _asked: int = 0

    def start(self, programs: Sequence[Program]) -> None:
        self._add(programs)
        self._advance()

    @property
    def finished(self) -> bool:
        return self._programs == 0

    @property
    def waiting(self) -> int:
        return len(self._wanted)

    def take(self, fits: Callable[[Stage], bool] = lambda stage: True) -> Stage | None:
        """The next ready stage that fits, or None.

        Pretrainings come first, since others wait for them; then the first report seed of all cells, so that a study
        that is stopped compares them. While nothing else runs the seed decides first: one by one, order costs no time.

        `fits` may look at a stage's resources alone: of each resource shape only the first in line is tried. Those that
        crashed before stand in lines of their own, since they may have to wait for another node.
        """
        for shape in sorted(self._ready, key=self._turn):
            if fits(self._ready[shape][0][-1]):
                return self._run(shape)
        return None

    def _turn(self, shape: Shape) -> tuple[int, int, int]:
        """Order of the first in a shape's line among those of all shapes."""
        seed, asked, stage = self._ready[shape][0]
        waited_for = 0 if stage.kind == "pretrain" else 1
        return (waited_for, seed, asked) if self.running else (seed, waited_for, asked)

    def first_in_line(self) -> Stage | None:
        """A stage that is ready, if there is one."""
        return next((line[0][-1] for line in self._ready.values()), None)

    def complete(self, stage: Stage, outcome: Outcome) -> None:
        """Note how a running stage ended. What it was the last to hold up moves on."""
        if self.running.pop(stage.fingerprint, None) is None:
            return  # told twice: by the trial and by the watchdog
        if outcome.state == "preempted":
            self.attempts[stage.fingerprint] -= 1  # not its fault, and nothing is lost
        policy = outcome.policy
        again = policy is not None and policy.retried and self.attempts[stage.fingerprint] <= self.retries
        if outcome.state == "preempted" or again:
            self._wanted.add(stage.fingerprint)
            self._queue(stage)
            self.on_event("preempted" if outcome.state == "preempted" else "retried", stage, outcome.cause)
            return
        self._end(stage, outcome)
        self._advance()

    def stuck(self) -> bool:
        """Nothing runs and nothing can: the end, or a fault that must be said rather than waited for."""
        return not self.running and not self._ready

    # ------------------------------------------------------------------------------------------------- stages

    def _want(self, stage: Stage) -> None:
        """Take from the store, or put in line, the parents first."""
        if self._is_known(stage):
            return
        if self._reuse(stage):
            for ancestor in stage.ancestors():  # not run for its own sake, but results show it where it is there
                if not self._is_known(ancestor):
                    self._reuse(ancestor)
            return
        for parent in stage.parents:
            self._want(parent)
        self._wanted.add(stage.fingerprint)
        if stage.series:
            self._series.setdefault(stage.series, {})[stage.fingerprint] = stage.reach
        self._fresh.append(stage)

    def _is_known(self, stage: Stage) -> bool:
        key = stage.fingerprint
        return key in self.outcomes or key in self.running or key in self._wanted

    def _place(self, stage: Stage) -> None:
        """Into the line if its parents are finished, beside the first that has not ended, else it is blocked."""
        for parent in stage.parents:
            ended = self.outcomes.get(parent.fingerprint)
            if ended is None:
                self._children.setdefault(parent.fingerprint, []).append(stage)
                return
            if ended.state != "finished":
                self._block(stage, parent, ended)
                return
        if (shorter := self._shorter(stage)) is not None:
            self._children.setdefault(shorter, []).append(stage)
            return
        self._queue(stage)

    def _shorter(self, stage: Stage) -> str | None:
        """The longest training under way or in line that this one would continue; it is worth waiting for."""
        mates = self._series.get(stage.series, {}) if stage.series else {}
        open_ones = [
            (reach, key)
            for key, reach in mates.items()
            if reach < stage.reach and (key in self.running or key in self._wanted)
        ]
        return max(open_ones)[1] if open_ones else None

    def _queue(self, stage: Stage) -> None:
        self._asked += 1
        gpus = stage.resources.gpus_each
        again = self.attempts[stage.fingerprint] > 0
        shape = (stage.kind, stage.resources.cpus, -1.0 if gpus is None else gpus, stage.resources.workers, again)
        heapq.heappush(self._ready.setdefault(shape, []), (stage.seed_rank, self._asked, stage))

    def _run(self, shape: Shape) -> Stage:
        _, _, stage = heapq.heappop(self._ready[shape])
        if not self._ready[shape]:
            del self._ready[shape]
        self._wanted.remove(stage.fingerprint)
        self.running[stage.fingerprint] = stage
        self.attempts[stage.fingerprint] += 1
        self.on_event("started", stage, "")
        return stage

    def _reuse(self, stage: Stage) -> bool:
        found = self.find(stage.fingerprint)
        if found is None:
            return False
        self.reused.add(stage.fingerprint)
        self.outcomes[stage.fingerprint] = found
        self.on_event("reused", stage, "")
        return True

    def _end(self, stage: Stage, outcome: Outcome) -> None:
        """The outcome is there: children go on or are blocked, programs are told."""
        self.outcomes[stage.fingerprint] = outcome
        self.on_event(outcome.state, stage, outcome.cause)
        for child in self._children.pop(stage.fingerprint, []):
            self._place(child)
        for waiting in self._waiting.pop(stage.fingerprint, []):
            waiting.missing.discard(stage.fingerprint)
            if not waiting.missing:
                self._movable.append(waiting)

    def _block(self, stage: Stage, parent: Stage, ended: Outcome) -> None:
        """Whoever waits for something that failed will never run; the first that failed is named."""
        self._wanted.remove(stage.fingerprint)
        cause = ended.cause if ended.state == "blocked" else f"its {parent.name} {ended.state}: {ended.cause}"
        self._end(stage, Outcome("blocked", {}, cause, ended.root or ended.state))

    # ----------------------------------------------------------------------------------------------- programs

    def _add(self, programs: Sequence[Program]) -> None:
        self._programs += len(programs)
        self._movable.extend(_Waiting(program) for program in programs)

    def _advance(self) -> None:
        """Let every program go on that has all it waits for, until none has."""
        while self._movable or self._fresh:
            while self._movable:
                self._resume(self._movable.popleft())
            while self._fresh:  # only now is it known which trainings continue which
                self._place(self._fresh.popleft())

    def _resume(self, waiting: _Waiting) -> None:
        answers: Outcomes | None = {key: self.outcomes[key] for key in waiting.awaited} or None
        try:
            stages = waiting.program.send(answers)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            self._programs -= 1
            self._add(end.value or [])
            return
        for stage in stages:
            self._want(stage)
        waiting.awaited = tuple(dict.fromkeys(stage.fingerprint for stage in stages))
        waiting.missing = {key for key in waiting.awaited if key not in self.outcomes}
        for key in waiting.missing:
            self._waiting.setdefault(key, []).append(waiting)
        if not waiting.missing:
            self._movable.append(waiting)
