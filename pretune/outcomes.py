"""How stage runs end, and the generators that wait for them: what rooms of the engine say to each other."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Literal, NamedTuple

from pretune.search_spaces.stages import Stage


class Outcome(NamedTuple):
    """How a stage run ended. A blocked one never ran: `root` says how its ancestor ended.

    A preempted one has not ended: its process had to leave, its state is in the store, and it is handed out again.
    """

    state: Literal["finished", "diverged", "crashed", "blocked", "preempted"]
    metrics: Mapping[str, float]
    cause: str = ""
    root: str = ""
    costs: Mapping[str, float] = {}  # cost/seconds, cost/gpu_seconds, cost/gpu_memory (bytes): not part of results
    final: bool = False  # of a crashed one: trying again would end the same


Outcomes = Mapping[str, Outcome]  # by fingerprint
Program = Generator[Sequence[Stage], Outcomes, "list[Program]"]
