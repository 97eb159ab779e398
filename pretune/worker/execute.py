"""One stage run, inside whichever process was given it.

`StageTask` is all that crosses the process boundary: plain data. The loops report through a plain callable and know
neither Ray nor the store.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pretune.dispatch.node_health import NO_GPU, NOT_THERE
from pretune.outcomes import Outcome
from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage
from pretune.store.lease import EndedWaitError, single_flight
from pretune.store.store import CONTINUE, Store, open_store
from pretune.trainables.data.errors import DataError, printable

DISK_FULL = "No space left on device"  # in the cause of a stage run that could not be kept; the words of the system
LEAST_BYTES = 65_536  # below which a disk is full

SETTINGS: dict[str, TypeAdapter[Any]] = {
    "pretrain": TypeAdapter(schema.Pretrain),
    "finetune": TypeAdapter(schema.Finetune),
    "probe": TypeAdapter(schema.Probe),
}


@dataclass(frozen=True)
class Folders:
    """Where a study keeps things. Paths of the machine, in no fingerprint."""

    store: str  # a path, or an address of an object store
    cache: str
    data: str | None  # where data sets without a root of their own are looked for
    mark: str | None = None  # a file that the driver made in the folder that all machines share, by which to know it

    def open_store(self) -> Store:
        return open_store(self.store, self.cache)


@dataclass(frozen=True)
class StageTask:
    """A stage to run, as plain data."""

    fingerprint: str
    kind: str
    name: str
    label: str  # readable: which cell and seed it is for
    settings: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    digest: str
    streams: dict[str, int]
    parent: str | None
    other: str | None  # of a pairwise probe: the second parent, and its model
    other_model: dict[str, Any] | None
    threads: int  # of each worker
    gpus: float  # of each worker
    workers: int
    min_workers: int
    batch_norm: str
    on_test: bool
    until: int | None
    series: str
    reach: int
    keep_state: bool
    folders: Folders
    checkpoint_seconds: float = 60.0  # wall time between resumable states

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> StageTask:
        values = json.loads(text)
        return StageTask(**values | {"folders": Folders(**values["folders"])})


def task_of(stage: Stage, label: str, gpus: float, folders: Folders) -> StageTask:
    return StageTask(
        fingerprint=stage.fingerprint,
        kind=stage.kind,
        name=stage.name,
        label=label,
        settings=stage.settings.model_dump(mode="json"),
        model=stage.model.model_dump(mode="json"),
        data=stage.data.model_dump(mode="json"),
        digest=stage.digest,
        streams=stage.streams,
        parent=stage.parent.fingerprint if stage.parent else None,
        other=stage.other.fingerprint if stage.other else None,
        other_model=stage.other.model.model_dump(mode="json") if stage.other else None,
        threads=stage.resources.cpus,
        gpus=gpus,
        workers=stage.resources.workers,
        min_workers=stage.resources.worker_counts[0],
        batch_norm=stage.resources.batch_norm,
        on_test=stage.on_test,
        until=stage.until,
        series=stage.series,
        reach=stage.reach,
        keep_state=stage.keep_state,
        folders=folders,
    )


def execute(task: StageTask, report: Any, leaving: Callable[[], bool] = lambda: False) -> Outcome:
    """Run a stage and store its result. Never raises for a fault of the stage: the outcome carries the cause.

    Args:
        report: `callable(dict[str, float])`, called with step, total and the latest values; an exception that it
            raises of its own accord (a stop) goes through.
        leaving: asked after every step; once it says yes, the stage writes its state and ends as preempted.
    """
    if missing := not_shared(task):  # before anything is made there: it would be on this machine's own disk
        return Outcome("crashed", {}, missing)
    store = task.folders.open_store()
    attempt: Path | None = None
    try:
        with single_flight(store, task.fingerprint, report, leaving) as flight:
            if found := store.find(task.fingerprint):  # another driver on the same store was faster
                return Outcome("diverged" if found.outcome == "diverged" else "finished", found.metrics, found.cause)
            attempt = flight.attempt = store.begin(task.fingerprint)
            return _run_and_keep(task, store, attempt, report, leaving)
    except EndedWaitError as left:
        return Outcome("preempted", {}, str(left))
    except DataError as error:
        return Outcome("crashed", {}, " | ".join([error.summary, *error.problems]), final=error.stays)
    except Exception as error:
        if attempt is not None:
            with contextlib.suppress(OSError):  # a full disk is a cause to tell, not one to hide
                (attempt / "error.txt").write_text(printable(traceback.format_exc()), encoding="utf-8")
        return Outcome("crashed", {}, _of_this_machine(describe(error), error, store) + full_disk(store))


def not_shared(task: StageTask) -> str:
    """What to say where this machine does not see the folder that the driver sees; nothing where it does."""
    mark = task.folders.mark
    if mark is None or Path(mark).exists():
        return ""
    return f"{NOT_THERE}: {platform.node()} does not see {Path(mark).parent} (is it mounted?)"


def full_disk(store: Store) -> str:
    """What to add to a cause where the disk is full: not every library that fails for it says so."""
    try:
        full = shutil.disk_usage(store.root).free < LEAST_BYTES
    except OSError:
        return ""
    return f" ({DISK_FULL})" if full else ""


def _of_this_machine(cause: str, error: Exception, store: Store) -> str:
    """The cause without the words that stop a study, where a disk is full that is this machine's own."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC or full_disk(store):
        return cause
    inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(store.root)
    own = shutil.disk_usage(tempfile.gettempdir()).free < LEAST_BYTES if error.filename is None else not inside
    return cause.replace(DISK_FULL, f"no space on a disk of {platform.node()}") if own else cause


def _run_and_keep(task: StageTask, store: Store, attempt: Path, report: Any, leaving: Callable[[], bool]) -> Outcome:
    from pretune.trainables.loop import (  # torch is imported here, in the process that needs it
        DivergedError,
        PreemptedError,
    )

    began, started = time.monotonic(), time.time()
    try:
        if task.workers > 1:
            from pretune.worker.ray_train import run_worker_group

            metrics, where = run_worker_group(task, attempt)
        else:
            device, resume = device_for(task.gpus), state_to_resume(task)
            metrics = run_worker(task, attempt, report, device, resume, leaving=leaving)
            where = {"machine": machine(task)}
        outcome, cause = "finished", ""
    except PreemptedError as left:
        return Outcome("preempted", {}, str(left))
    except DivergedError as error:
        metrics, where, outcome, cause = {}, {"machine": machine(task)}, "diverged", str(error)
    seconds = time.monotonic() - began
    about = {"label": task.label, "order": asdict(task) | {"folders": None}} | where
    about |= {"host": platform.node(), "pid": os.getpid(), "started": started}
    entry = store.finish(attempt, task.name, outcome, cause, metrics, seconds, about)
    if CONTINUE in entry.files:
        store.note_length(task.series, task.reach, task.fingerprint)
    return Outcome("diverged" if outcome == "diverged" else "finished", entry.metrics, cause)


def run_worker(
    task: StageTask,
    attempt: Path,
    report: Any,
    device: Any,
    resume: Path | None,
    world: Any = None,
    leaving: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Run the stage in this process, as one of the workers of `world` (default: alone); its metrics.

    Args:
        device: a torch.device.
        resume: the state to go on from.
        leaving: see `execute`.
    """
    import torch

    from pretune.trainables.data.checks.requirements import check_requirements, facts_of_images
    from pretune.trainables.data.sources import open_set
    from pretune.trainables.data.splits import draw_split
    from pretune.trainables.distributed import ALONE
    from pretune.trainables.finetune import finetune
    from pretune.trainables.loop import RunContext
    from pretune.trainables.pretrain import pretrain
    from pretune.trainables.probes.accuracy import probe
    from pretune.trainables.probes.cka import compare
    from pretune.trainables.probes.maps import write_maps

    if missing := not_shared(task):  # one of several workers, on another machine than who began the stage
        raise FileNotFoundError(missing)
    torch.set_num_threads(task.threads)
    if task.gpus > 0 and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    torch.backends.cudnn.deterministic = True
    settings = SETTINGS[task.kind].validate_python(task.settings)
    model: schema.Model = TypeAdapter(schema.Model).validate_python(task.model)
    chosen: schema.Data = TypeAdapter(schema.Data).validate_python(task.data)
    cache = Path(task.folders.cache)
    root = Path(task.folders.data) if task.folders.data else None
    with contextlib.closing(open_set(chosen, task.digest, root, cache, processes=task.threads)) as data:
        workers = 1 if world is None else world.size
        check_requirements(task.name.replace(":", "."), settings, chosen, facts_of_images(data), workers)
        seed = task.streams.get("split", 0)
        split = draw_split(len(data.images), chosen.split, seed, data.official_test, data.labels)
        store = task.folders.open_store()
        parent, keep = _weights_of(task.parent, store), task.keep_state and bool(task.series)
        seconds = task.checkpoint_seconds
        place = RunContext(attempt, device, parent, resume, keep, seconds, world or ALONE, task.batch_norm, leaving)
        if isinstance(settings, schema.Pretrain):
            return pretrain(settings, model, data, split, task.streams, place, report, task.until)
        if isinstance(settings, schema.Finetune):
            stratify = chosen.split.stratify
            return finetune(
                settings, model, data, split, task.streams, place, report, task.on_test, stratify, task.until
            )
        if isinstance(settings, schema.CKA):
            other, other_model = (
                _weights_of(task.other, store),
                TypeAdapter(schema.Model).validate_python(task.other_model),
            )
            assert parent is not None
            assert other is not None
            return compare(settings, (model, other_model), (parent, other), data, split, device)
        if isinstance(settings, schema.CAM | schema.FeatureMaps):
            return write_maps(settings, model, data, split, place)
        assert isinstance(settings, schema.KNN | schema.LinearProbe)
        return probe(settings, model, data, split, place)


def state_to_resume(task: StageTask) -> Path | None:
    """What an earlier attempt left, or the end of a shorter training of the same."""
    store = task.folders.open_store()
    return store.resumable(task.fingerprint) or store.shorter(task.series, task.reach)


def _weights_of(fingerprint: str | None, store: Store) -> Path | None:
    if fingerprint is None:
        return None
    entry = store.find(fingerprint)
    if entry is None:
        raise FileNotFoundError(f"the stage before ({fingerprint}) is no longer in the store; run the study again")
    return store.file(entry, "model.safetensors")


def device_for(gpus: float) -> Any:
    """The GPU that Ray gave this process, or the CPU. Raises RuntimeError where torch does not find that GPU."""
    import torch

    if gpus > 0 and not torch.cuda.is_available():
        raise RuntimeError(
            f"{NO_GPU} on {platform.node()}: its driver does not work, or this torch is built without CUDA; "
            "`gpus: 0` under `resources` trains on the CPU"
        )
    return torch.device("cuda" if gpus > 0 else "cpu")


def machine(task: StageTask) -> dict[str, Any]:
    """Hardware and versions, for the record."""
    import torch

    on_gpu = task.gpus > 0 and torch.cuda.is_available()
    cuda = torch.cuda.get_device_name() if on_gpu else None
    memory = torch.cuda.max_memory_allocated() if on_gpu else None  # bytes, since the stage began
    return {
        "gpu": cuda,
        "gpu_memory": memory,
        "gpu_memory_total": torch.cuda.mem_get_info()[1] if on_gpu else None,
        "cpu": _cpu(),
        "threads": task.threads,
    } | {
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    """The processor's model name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(error: BaseException) -> str:
    """One line: what went wrong and where in our code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip().replace("\n", " | ")
    return printable(f"{type(error).__name__}: {text}{place}"[:2000])  # it goes into a Parquet column
