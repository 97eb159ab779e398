"""The scheduler: which stage runs next.

Pure bookkeeping, without processes or clocks: programs say what they wait for, the store says what is there, and
whoever runs stages takes the next ready one and reports how it ended. Equal fingerprints are one stage run; a stage
is ready when its parent is finished; descendants of a failed stage are blocked; a crash is retried, a divergence
never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pretune.program import Outcome, Outcomes, Program
from search_spaces.stages import Stage

Find = Callable[[str], Outcome | None]
Event = Callable[
    [Literal["reused", "started", "finished", "diverged", "retried", "crashed", "blocked"], Stage, str], None
]


class _Waiting:
    """A program and the fingerprints that it waits for."""

    def __init__(self, program: Program, needs: set[str]) -> None:
        self.program = program
        self.needs = needs


def _ignore(kind: str, stage: Stage, text: str) -> None:
    return None


@dataclass
class Scheduler:
    """Call `start` once; then `take` ready stages and `complete` them until `finished`."""

    find: Find  # what the store holds of a fingerprint
    retries: int  # how often a crashed stage is tried again
    on_event: Event = _ignore
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: dict[str, Stage] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    attempts: Counter[str] = field(default_factory=Counter)
    _wanted: dict[str, Stage] = field(default_factory=dict)  # neither running nor ended, in the order of asking
    _programs: list[_Waiting] = field(default_factory=list)

    def start(self, programs: Sequence[Program]) -> None:
        self._programs += [_Waiting(program, set()) for program in programs]
        self._advance()

    @property
    def finished(self) -> bool:
        return not self._programs

    @property
    def waiting(self) -> int:
        return len(self._wanted)

    def take(self, fits: Callable[[Stage], bool] = lambda stage: True) -> Stage | None:
        """The next ready stage that fits, or None; pretrainings first, since others wait for them."""
        ready = (stage for stage in self._wanted.values() if self._is_ready(stage) and fits(stage))
        stage = min(ready, key=lambda stage: stage.kind != "pretrain", default=None)
        if stage is not None:
            del self._wanted[stage.fingerprint]
            self.running[stage.fingerprint] = stage
            self.attempts[stage.fingerprint] += 1
            self.on_event("started", stage, "")
        return stage

    def complete(self, stage: Stage, outcome: Outcome) -> None:
        """Note how a running stage ended. What it was the last to hold up moves on."""
        if self.running.pop(stage.fingerprint, None) is None:
            return  # told twice: by the trial and by the watchdog
        if outcome.state == "crashed" and self.attempts[stage.fingerprint] <= self.retries:
            self._wanted[stage.fingerprint] = stage
            self.on_event("retried", stage, outcome.cause)
            return
        self.outcomes[stage.fingerprint] = outcome
        self.on_event(outcome.state, stage, outcome.cause)
        self._block_descendants()
        self._advance()

    def stuck(self) -> bool:
        """Nothing runs and nothing can: the end, or a fault that must be said rather than waited for."""
        return not self.running and not any(self._is_ready(stage) for stage in self._wanted.values())

    # ---------------------------------------------------------------------------------------------- inside

    def _is_ready(self, stage: Stage) -> bool:
        return stage.parent is None or self._ended(stage.parent) == "finished"

    def _ended(self, stage: Stage) -> str | None:
        outcome = self.outcomes.get(stage.fingerprint)
        return outcome.state if outcome else None

    def _advance(self) -> None:
        """Let every program go on that has all it waits for, until none has."""
        moved = True
        while moved:
            moved = False
            for waiting in list(self._programs):
                if all(need in self.outcomes for need in waiting.needs):
                    self._resume(waiting)
                    moved = True

    def _resume(self, waiting: _Waiting) -> None:
        answers: Outcomes | None = {need: self.outcomes[need] for need in waiting.needs} or None
        try:
            stages = waiting.program.send(answers)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            self._programs.remove(waiting)
            self._programs += [_Waiting(program, set()) for program in end.value or []]
            return
        waiting.needs = {stage.fingerprint for stage in stages}
        for stage in stages:
            self._want(stage)
        self._block_descendants()

    def _want(self, stage: Stage) -> None:
        """Take from the store, or put on the list, the parents first."""
        key = stage.fingerprint
        if key in self.outcomes or key in self.running or key in self._wanted:
            return
        if self._reuse(stage):
            for ancestor in stage.ancestors():  # not run for its own sake, but results show it where it is there
                if ancestor.fingerprint not in {*self.outcomes, *self.running, *self._wanted}:
                    self._reuse(ancestor)
            return
        if stage.parent is not None:
            self._want(stage.parent)
        self._wanted[key] = stage

    def _reuse(self, stage: Stage) -> bool:
        found = self.find(stage.fingerprint)
        if found is None:
            return False
        self.outcomes[stage.fingerprint] = found
        self.reused.add(stage.fingerprint)
        self.on_event("reused", stage, "")
        return True

    def _block_descendants(self) -> None:
        """Whoever waits for something that failed will never run."""
        for stage in list(self._wanted.values()):
            failed = next((a for a in stage.ancestors() if self._ended(a) not in (None, "finished")), None)
            if failed is None:
                continue
            ended = self.outcomes[failed.fingerprint]
            del self._wanted[stage.fingerprint]
            cause = f"its {failed.name} {ended.state}: {ended.cause}"
            self.outcomes[stage.fingerprint] = Outcome("blocked", {}, cause, ended.root or ended.state)
            self.on_event("blocked", stage, cause)
