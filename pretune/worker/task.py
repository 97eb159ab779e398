"""A stage to run, as plain data: all that crosses the process boundary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from pretune.search_spaces.stages import Stage
from pretune.store.store import Store, open_store

NEWS = "news"  # key of a trial's report that is a sentence for the study's log, and no progress


@dataclass(frozen=True)
class Folders:
    """Places where a study keeps things: paths of a node, in no fingerprint."""

    store: str  # a path, or an address of an object store
    cache: str
    data: str | None  # where data sets without a root of their own are looked for
    mark: str | None = None  # a file that the driver made in the folder that all nodes share, by which to know it

    def open_store(self) -> Store:
        return open_store(self.store, self.cache)


@dataclass(frozen=True)
class StageTask:
    """A stage, and where it runs."""

    stage: Stage
    label: str  # readable: which cell and seed it is for
    gpus: float  # of each worker
    folders: Folders
    checkpoint_seconds: float = 60.0  # wall time between resumable states
    parameters: dict[str, Any] = field(default_factory=dict)  # what tells it from others of its study, for people
    source: Literal["auto", "resident", "streaming"] = "auto"  # of its images, where its data say `auto`
    driver: str = ""  # which asked for it, by a name that no other run has
    mark: int = 0  # bytes of memory in each worker's place, by which it is known (held_places); 0: one process

    @property
    def fingerprint(self) -> str:
        return self.stage.fingerprint

    def to_json(self) -> str:
        return _TASK.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> StageTask:
        return _TASK.validate_json(text)

    def record(self) -> dict[str, Any]:
        """The task as a store keeps it: parents by fingerprint, and nothing of folders."""
        parent, other = (one.fingerprint if one else None for one in (self.stage.parent, self.stage.other))
        record: dict[str, Any] = _STAGE.dump_python(self.stage, mode="json")
        took = {"gpus": self.gpus, "workers": self.stage.resources.workers}
        return record | {"parent": parent, "other": other} | took


_STAGE, _TASK = TypeAdapter(Stage), TypeAdapter(StageTask)
