"""Ends of stage runs, and the generators that wait for them: the language between rooms of the engine."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

from pretune.search_spaces.stages import Stage


class Failure(StrEnum):
    """Kinds of failure. The kind travels with an outcome and decides what follows; its sentence is for people."""

    ERROR = "error"  # anything that no other kind is about
    BAD_DATA = "bad_data"  # files that cannot be read, or data that lack what the stage requires
    DEFECT = "defect"  # a mistake in settings or code, which every attempt repeats
    OUT_OF_MEMORY = "out_of_memory"  # of the GPU or the node, while the process lived on to tell
    NO_GPU = "no_gpu"  # Ray gave the stage a GPU, and torch finds none
    NOT_SHARED = "not_shared"  # the node does not see the folder that all nodes share
    NODE_DISK_FULL = "node_disk_full"  # a disk of the node alone
    STORE_FULL = "store_full"  # the disk of the store
    LOST = "lost"  # the process died without a word
    NOT_VISIBLE = "not_visible"  # the stage finished, but its result is not in the store


class FailurePolicy(NamedTuple):
    """Treatment of a kind of failure."""

    retried: bool  # another attempt may end otherwise
    counts: bool  # against the node: three different stages in a row exclude it
    of_node: bool = False  # the node alone is at fault: excluded at once, and the stage runs again at no cost
    stops_study: bool = False  # all other stages would fail likewise


FAILURES = {
    Failure.ERROR: FailurePolicy(retried=True, counts=True),
    Failure.BAD_DATA: FailurePolicy(retried=False, counts=False),
    Failure.DEFECT: FailurePolicy(retried=False, counts=False),
    Failure.OUT_OF_MEMORY: FailurePolicy(retried=False, counts=False),
    Failure.NO_GPU: FailurePolicy(retried=True, counts=False, of_node=True),
    Failure.NOT_SHARED: FailurePolicy(retried=True, counts=False, of_node=True),
    Failure.NODE_DISK_FULL: FailurePolicy(retried=True, counts=True),
    Failure.STORE_FULL: FailurePolicy(retried=True, counts=False, stops_study=True),
    Failure.LOST: FailurePolicy(retried=True, counts=True),
    Failure.NOT_VISIBLE: FailurePolicy(retried=True, counts=True),
}


class Outcome(NamedTuple):
    """End of a stage run. A blocked one never ran: `root` says how its ancestor ended.

    A preempted one has not ended: its process was preempted, its state is in the store, and it is dispatched again.
    """

    state: Literal["finished", "diverged", "crashed", "blocked", "preempted"]
    metrics: Mapping[str, float]
    cause: str = ""
    root: str = ""
    costs: Mapping[str, float] = {}  # cost/seconds, cost/gpu_seconds, cost/gpu_memory (bytes): not part of results
    failure: Failure = Failure.ERROR  # of a crashed one

    @property
    def policy(self) -> FailurePolicy | None:
        """Treatment of a crash; None for every other end."""
        return FAILURES[self.failure] if self.state == "crashed" else None


Outcomes = Mapping[str, Outcome]  # by fingerprint
Program = Generator[Sequence[Stage], Outcomes, "list[Program]"]
