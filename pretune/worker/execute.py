"""One stage run, inside whichever process was given it: the store, the lease, and how it ended."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretune.outcomes import Failure, Outcome
from pretune.store.lease import EndedWaitError, single_flight
from pretune.store.lookup import DRIVER, TASK, stored_outcome
from pretune.store.store import Store
from pretune.trainables.data.errors import DataError, printable
from pretune.trainables.files import CONTINUE
from pretune.worker.failures import failed
from pretune.worker.ray_train import run_worker_group
from pretune.worker.stage import device_for, hardware, not_shared, run_worker, state_to_resume
from pretune.worker.stage_memory import what_fits_here, with_less_memory
from pretune.worker.task import StageTask


def execute(task: StageTask, report: Any, preempted: Callable[[], bool] = lambda: False) -> Outcome:
    """Run a stage and store its result. Never raises for a fault of the stage: the outcome carries the cause.

    Args:
        report: `callable(dict[str, float])`, called with step, total and the latest values; an exception that it
            raises of its own accord (a stop) goes through.
        preempted: asked after every step; once it says yes, the stage writes its state and ends as preempted.
    """
    if missing := not_shared(task):  # before anything is made there: it would be on this node's own disk
        return Outcome("crashed", {}, missing, failure=Failure.NOT_SHARED)
    store = task.folders.open_store()
    attempt: Path | None = None
    try:
        with single_flight(store, task.fingerprint, report, preempted) as flight:
            if found := store.find(task.fingerprint):  # another driver on the same store was faster
                return stored_outcome(found)
            attempt = flight.attempt = store.begin(task.fingerprint)
            return _run_and_keep(task, store, attempt, report, preempted)
    except EndedWaitError as left:
        return Outcome("preempted", {}, str(left))
    except Exception as error:
        if attempt is not None and not isinstance(error, DataError):
            with contextlib.suppress(OSError):  # a full disk is a cause to tell, not one to hide
                (attempt / "error.txt").write_text(printable(traceback.format_exc()), encoding="utf-8")
        batch_size = getattr(task.stage.settings, "batch_size", None)
        return failed(error, batch_size, store.root, lambda: what_fits_here(task.stage, task.gpus))


def _run_and_keep(task: StageTask, store: Store, attempt: Path, report: Any, preempted: Callable[[], bool]) -> Outcome:
    from pretune.trainables.loop import (  # torch is imported here, in the process that needs it
        DivergedError,
        PreemptedError,
    )

    began, started = time.monotonic(), time.time()
    try:
        if task.stage.resources.workers > 1:
            metrics, where = run_worker_group(task, attempt, report)
        else:
            device = device_for(task.gpus)

            def run(resident: bool) -> dict[str, float]:
                resume = state_to_resume(task)
                return run_worker(task, attempt, report, device, resume, preempted=preempted, resident=resident)

            metrics, again = with_less_memory(run, device.type == "cuda")
            where = {"machine": hardware(task) | {"images_kept_on_host": again}}
        outcome, cause = "finished", ""
    except PreemptedError as left:
        return Outcome("preempted", {}, str(left))
    except DivergedError as error:
        metrics, where, outcome, cause = {}, {"machine": hardware(task)}, "diverged", str(error)
    seconds = time.monotonic() - began
    about = {"label": task.label, TASK: task.record()} | where
    about |= {"host": platform.node(), "pid": os.getpid(), "started": started}
    about |= {DRIVER: task.driver} if task.driver else {}
    entry = store.finish(attempt, task.stage.name, outcome, cause, metrics, seconds, about)
    if CONTINUE in entry.files:
        store.note_length(task.stage.series, task.stage.reach, task.fingerprint)
    return stored_outcome(entry)
