"""`pretune run`: from a study to its table. The order of things, without their details."""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from optuna.storages import BaseStorage
from rich.console import Console

from pretune.cluster import join
from pretune.cluster.autoscaling import Autoscaling, Group
from pretune.cluster.heartbeat import Heartbeat, heartbeat
from pretune.cluster.log_to import LogTo, check_packages
from pretune.cluster.metrics import published
from pretune.cluster.tune import run_trials, start_ray, stop_ray
from pretune.data.backbones import check_backbones
from pretune.data.prepare import prepare_data
from pretune.dispatch import gpu_sharing
from pretune.dispatch.resources import ClusterResources, ResourceError
from pretune.dispatch.scheduler import Scheduler
from pretune.errors import EXIT_FAILED_STAGES, EXIT_STOPPED, SearchStorageError
from pretune.monitor.plain import plain
from pretune.monitor.terminal import monitor
from pretune.results import tables
from pretune.results.changes import say_changes, set_aside
from pretune.results.image_counts import write_test_images
from pretune.search import program, warm_start
from pretune.search.optuna_study import close_storage, is_database_error, open_storage
from pretune.search.replicates import Run, stages_in
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import Stage
from pretune.status import FailedRun, State
from pretune.store import index
from pretune.store.lookup import find_in
from pretune.store.mirror import Publisher
from pretune.store.object_store import is_address
from pretune.store.store import StoreError, open_store, write_atomically
from pretune.worker.task import Folders, StageTask

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Options:
    """Places and limits of a run. Nothing here changes a result."""

    out: Path  # the study's own folder
    store: Path | str  # a folder, or the s3:// or gs:// address of one
    cache: Path
    data: Path | None = None
    parallel: int | None = None  # most stage runs at once; default: as many as the CPUs or GPUs hold
    address: str | None = None  # of a Ray cluster; default: this machine
    results: str | None = None  # s3:// or gs:// address that `out` is copied to
    search_storage: str | None = None  # URL of a database for the searches; default: a journal file in `out`
    dashboard: bool = False  # Ray's dashboard, with an actor named for every stage run
    log_to: tuple[str, ...] = ()  # loggers of Ray's that also get what stages report
    may_grow: tuple[Group, ...] = ()  # nodes that the cluster's autoscaler may start; default: as its head says


@dataclass(frozen=True)
class Ended:
    """End of a study. `exit_code`: 0 whole, 3 with failed stages, 130 stopped by the user."""

    exit_code: int
    trained: int
    reused: int
    failed: tuple[FailedRun, ...]  # stage runs without a result, beside `diverged`
    seconds: float
    messages: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what should be known beside the table
    diverged: tuple[FailedRun, ...] = ()  # trials of searches that diverged: answers, which no rerun would change


def run_study(study: Study, options: Options, console: Console) -> Ended:
    """Run what is missing of a study and write its results.

    Raises:
        DataError, StoreError, ResourceError, ModelError: before anything is trained.
    """
    check_backbones(study)
    check_packages(options.log_to)
    if options.address:
        join.check_address(options.address)
    began = time.monotonic()
    store = open_store(options.store, options.cache)
    store.check()
    digest_of, notes, excluded, sources = prepare_data(study, options.data, options.cache, console)
    make_folder(options.out)
    publisher = Publisher(options.out, options.results)
    publisher.check()
    log_file = options.out / "pretune.log"
    with (
        faults_in_a_sentence(options),
        only_driver(options.out),
        publisher.alone(functools.partial(say_plainly, console)),
        searches_in(options) as storage,
        log_file.open("a", encoding="utf-8", errors="backslashreplace") as log,
    ):
        log.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n" for line in excluded)
        if say_changes(study, options.out, console):
            set_aside(options.out)
        tables.write_header(study, options.out, digest_of)
        run = Run(study, digest_of, storage)
        run.notes += notes
        run.elapsed = lambda: time.monotonic() - began
        run.is_stored = lambda fingerprint: store.find(fingerprint) is not None
        run.earlier = functools.partial(warm_start.earlier, store, options.out)
        run.search_prefix = tables.own_name(study, options.out) if options.search_storage else ""
        state = State(study, run, store, options.out, began, log)
        state.publisher, state.sources = publisher, sources
        scheduler = Scheduler(
            find_in(store, listing=index.look(store)), study.header.retries, state.event, find_in(store, announced=True)
        )
        state.scheduler = scheduler
        run.gpu_seconds = lambda key: (
            o.costs.get("cost/gpu_seconds", 0.0) if (o := scheduler.outcomes.get(key)) else 0.0
        )
        scheduler.start(program.start(run))
        if not scheduler.finished:
            with heartbeat(options.address, state.say, stop_ray) as watch:
                train(study, state, options, console, watch)
        return conclude(study, state, options)


def say_plainly(console: Console, text: str) -> None:
    console.print(plain(text), highlight=False, soft_wrap=True)


def train(study: Study, state: State, options: Options, console: Console, watch: Heartbeat) -> None:
    """Start Ray and run stages until there is nothing left to do."""
    console.print(f"[dim]{plain(state.reused_text())}starting Ray ...[/]", highlight=False, soft_wrap=True)
    say = functools.partial(say_plainly, console)
    start_ray(options.address, None, options.dashboard, say)
    watch.begin()
    nodes = functools.partial(join.cluster_nodes, autoscaling_of(options))
    state.resources = resources = ClusterResources(nodes(), options.parallel)
    check_room(resources, stages_in(state.run.replicates), options)
    if options.address:
        with join.explained(options.address):
            state.run.notes.extend(join.look_around(*folders_of_all(study, options)))
        say(join.describe(resources))
        state.write(join.describe(resources))
    scraped = published(state.facts, time.monotonic) if options.dashboard or options.address else nullcontext()
    with marked(options) as mark, monitor(lambda: state.snapshot(options.out), console) as shown, scraped:
        folders = Folders(
            str(options.store) if is_address(options.store) else str(Path(options.store).resolve()),
            str(options.cache.resolve()),
            str((options.data or Path()).resolve()),  # workers have another working folder
            str(mark) if mark else None,
        )
        asked = study.header.resources
        state.tell = shown.event
        state.snapshot(options.out)
        run_trials(
            state.scheduler,
            resources,
            lambda stage, gpus: StageTask(
                stage,
                state.label(stage),
                gpus,
                folders,
                study.header.checkpoint_seconds,
                state.parameters(stage),
                state.sources.get(stage.digest, "auto"),
                state.driver,
            ),
            state.live,
            state.images,
            options.dashboard,
            any(one.workers > 1 for one in (asked.pretrain, asked.finetune, asked.probe)),
            tuple(LogTo(name, study.name, options.out.resolve()) for name in options.log_to),
            nodes,
            state.say,
            state.announce,
        )
    state.tell = None


def autoscaling_of(options: Options) -> Autoscaling:
    """Return how far the cluster may grow; this machine alone never does."""
    if not options.address:
        return Autoscaling()
    with join.explained(options.address):
        return join.find_autoscaling(options.may_grow)


def check_room(resources: ClusterResources, stages: dict[str, Stage], options: Options) -> None:
    """Raises `ResourceError` for a stage that no node can hold that is there or may come."""
    try:
        resources.check(stages)
    except ResourceError as error:
        known = not options.address or any(not node.id for node in resources.nodes)
        hint = "" if known else " (if the cluster can start more nodes, say how many: --may-grow 8xCPU=8,GPU=1)"
        raise ResourceError(f"{error}{hint}") from None


def marked(options: Options) -> AbstractContextManager[Path | None]:
    """A file by which every node of a cluster knows the folder that all share."""
    if not options.address:
        return nullcontext()
    return join.marked(options.cache if is_address(options.store) else Path(options.store))


def folders_of_all(study: Study, options: Options) -> tuple[dict[str, Path], dict[str, Path]]:
    """Folders that all nodes of a cluster must share, and those that they must have, by option or setting."""
    shared = {"--root": options.cache.resolve()}
    if not is_address(options.store):
        shared["--store"] = Path(options.store).resolve()
    readable = {"--data": options.data.resolve()} if options.data else {}
    for cell in study.cells:
        for name, data in cell.configuration().data.items():
            root = Path(getattr(data, "root", None) or "").expanduser()  # relative ones are below --data
            if root.is_absolute():
                readable[f"data.{name}.root"] = root
    return shared, readable


def conclude(study: Study, state: State, options: Options) -> Ended:
    """Write results and the best model; say how it ended."""
    scheduler, uses = state.scheduler, state.run.replicates
    state.stopped = not scheduler.finished
    state.run.notes += gpu_sharing.advice(state.taken)
    state.live.clear()  # whatever was under way when the user stopped it
    tables.write_results(study, uses, scheduler.outcomes, state.store, options.out)
    write_test_images(uses, state.store, options.out)
    tables.write_searches(study, state.run, options.out)
    if scheduler.finished:
        tables.keep_best(study, uses, scheduler.outcomes, state.store, options.out)
    write_atomically(options.out / "status.json", json.dumps(asdict(state.snapshot(None))))
    without = state.runs_without_result()
    failed, diverged = (tuple(run for run in without if run.is_answer == answer) for answer in (False, True))
    code = exit_code(scheduler.finished, bool(failed or state.run.messages))
    seconds = time.monotonic() - state.began
    if state.publisher is not None:
        state.publisher.send()
    messages, notes = tuple(state.run.messages), tuple(state.run.notes)
    reused = len(scheduler.reused) + state.taken_over
    return Ended(code, state.trained, reused, failed, seconds, messages, notes, diverged)


def exit_code(finished: bool, incomplete: bool) -> int:
    """The exit code of a study that came this far; `incomplete`: its table or its searches lack something."""
    if not finished:
        return EXIT_STOPPED
    return EXIT_FAILED_STAGES if incomplete else 0


# ----------------------------------------------------------------------------------------------------- preparation


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the output folder {folder} cannot be created: {error.strerror}; choose another with --out"
        ) from None


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """One driver per output folder. The lock is the kernel's, so that a killed driver leaves none behind."""
    import fcntl

    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"another `pretune run` is using {folder}; wait until it ends, or choose another --out"
            ) from None
        file.truncate(0)  # for `pretune stop`
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "job": os.environ.get(join.JOB, "")}, file)
        file.flush()
        yield


@contextmanager
def searches_in(options: Options) -> Iterator[BaseStorage]:
    """Keep the searches open as long as the study runs."""
    storage = open_storage(options.search_storage or options.out / "optuna.journal")
    try:
        yield storage
    finally:
        close_storage(storage)


@contextmanager
def faults_in_a_sentence(options: Options) -> Iterator[None]:
    """A disk or a database that fails under the driver ends the run; what is finished is in the store."""
    again = "finished work is kept; run the same command again"
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        where = error.filename or options.out
        raise StoreError(f"the study stopped: {error.strerror}: {where}; {again} once it can be written") from None
    except Exception as error:
        if not is_database_error(error):
            raise
        raise SearchStorageError(f"the study stopped: the search storage no longer answers; {again}") from None
