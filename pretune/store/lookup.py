"""The store as the scheduler and the searches see it: outcomes by fingerprint, and what stage runs cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pretune.outcomes import Outcome
from pretune.search_spaces.words import stage_title
from pretune.store.index import Listing
from pretune.store.store import Entry, Store

TASK = "order"  # in an entry's `about`: the task (`StageTask.record`), by the name that tasks had when stores were made
DRIVER = "driver"  # likewise: whose task it was


def find_in(store: Store, announced: bool = False, listing: Listing | None = None) -> Callable[[str], Outcome | None]:
    """The store as the scheduler sees it.

    Args:
        announced: look patiently, for what another node says it has finished.
        listing: what a bucket held at the start; it is not asked for what was not there then.
    """
    look = store.find_announced if announced else store.find

    def find(fingerprint: str) -> Outcome | None:
        if listing is not None and listing.lacks(fingerprint):
            return None
        entry = look(fingerprint)
        return None if entry is None else stored_outcome(entry)

    return find


def stored_outcome(entry: Entry) -> Outcome:
    """Return how the stage run of an entry ended."""
    state: Literal["diverged", "finished"] = "diverged" if entry.outcome == "diverged" else "finished"
    return Outcome(state, entry.metrics, entry.cause, costs=costs(entry))


def costs(entry: Entry) -> dict[str, float]:
    """Return the cost of a stage run: seconds, GPU seconds, and the most GPU memory (bytes) where it had a GPU."""
    task = task_of(entry)
    gpus = float(task.get("gpus") or 0.0) * int(task.get("workers") or 1)
    memory = (entry.about.get("machine") or {}).get("gpu_memory")
    found = {"cost/seconds": entry.seconds, "cost/gpu_seconds": entry.seconds * gpus}
    return found if memory is None else found | {"cost/gpu_memory": float(memory)}


def task_of(entry: Entry) -> Mapping[str, Any]:
    """The task of a stage run as its entry keeps it: settings, model, data, seed streams, the parent's fingerprint."""
    return entry.about.get(TASK) or {}


def title_of(entry: Entry) -> str:
    """The stage of an entry for people: with the method of a pretraining."""
    settings = task_of(entry).get("settings") or {}
    return stage_title(entry.stage, str((settings.get("method") or {}).get("name", "")))
