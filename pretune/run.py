"""`pretune run`: from a study to its table. The order of things, without their details."""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from optuna.storages import BaseStorage
from rich.console import Console
from rich.progress import Progress as Bar

from pretune import cluster, needs, packing, program, record, warm
from pretune.backbones import check_backbones
from pretune.copies import in_the_test_set
from pretune.errors import SearchStorageError
from pretune.execute import Folders, order_of
from pretune.growth import Group, Growth
from pretune.handout import Live, costs, find_in
from pretune.image_counts import write_test_images
from pretune.ledger import Ledger, ResourceError
from pretune.log_to import LogTo, check_packages
from pretune.metrics import Facts, published
from pretune.monitor import CellStatus, RunningStage, Snapshot, monitor
from pretune.objects import is_address
from pretune.outcomes import Outcomes, Run, Use, stages_in
from pretune.publish import Publisher
from pretune.scheduler import Scheduler
from pretune.search import close_storage, is_database_error, open_storage
from pretune.store import Store, StoreError, open_store, write_atomically
from pretune.transport import run_trials, start_ray, stop_ray
from search_spaces import schema
from search_spaces.resolve import Study
from search_spaces.stages import DigestOf, Stage

STATUS_SECONDS = 2.0  # between two versions of status.json
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
RESULTS_SECONDS = 60.0  # between two versions of the results, for whoever watches the report


@dataclass(frozen=True)
class Options:
    """Where a study runs and writes. Nothing here changes a result."""

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
    may_grow: tuple[Group, ...] = ()  # machines that the cluster's autoscaler may start; default: as its head says


@dataclass(frozen=True)
class Ended:
    """How a study ended. `exit_code`: 0 whole, 3 with failed stages, 130 stopped by the user."""

    exit_code: int
    trained: int
    reused: int
    failed: dict[str, str]  # label -> cause
    seconds: float
    messages: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what should be known beside the table


def run_study(study: Study, options: Options, console: Console) -> Ended:
    """Run what is missing of a study and write its results.

    Raises:
        DataError, StoreError, ResourceError, ModelError: before anything is trained.
    """
    check_backbones(study)
    check_packages(options.log_to)
    if options.address:
        cluster.check_address(options.address)
    began = time.monotonic()
    store = open_store(options.store, options.cache)
    store.check()
    digest_of, copies, left_out = prepare_data(study, options, console)
    make_folder(options.out)
    publisher = Publisher(options.out, options.results)
    publisher.check()
    log_file = options.out / "pretune.log"
    with (
        told_in_a_sentence(options),
        only_driver(options.out),
        publisher.alone(functools.partial(console.print, highlight=False, soft_wrap=True)),
        searches_in(options) as storage,
        log_file.open("a", encoding="utf-8") as log,
    ):
        log.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n" for line in left_out)
        if say_changes(study, options.out, console):
            record.set_aside(options.out)
        record.write_header(study, options.out)
        run = Run(study, digest_of, storage)
        run.notes += copies
        run.clock = lambda: time.monotonic() - began
        run.is_stored = lambda fingerprint: store.find(fingerprint) is not None
        run.earlier = functools.partial(warm.earlier, store, options.out)
        run.search_prefix = record.own_name(study, options.out) if options.search_storage else ""
        state = State(study, run, store, options.out, began, log)
        state.publisher = publisher
        scheduler = Scheduler(find_in(store), study.header.retries, state.event, find_in(store, announced=True))
        state.scheduler = scheduler
        run.gpu_seconds = lambda key: (
            o.costs.get("cost/gpu_seconds", 0.0) if (o := scheduler.outcomes.get(key)) else 0.0
        )
        scheduler.start(program.start(run))
        if not scheduler.finished:
            try:
                train(study, state, options, console)
            finally:
                stop_ray()
        return conclude(study, state, options)


def train(study: Study, state: State, options: Options, console: Console) -> None:
    """Start Ray and run stages until there is nothing left to do."""
    console.print(f"[dim]{state.reused_text()}starting Ray ...[/]", highlight=False, soft_wrap=True)
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    start_ray(options.address, None, options.dashboard, say)
    machines = functools.partial(cluster.machines, growth_of(options))
    state.ledger = ledger = Ledger(machines(), options.parallel)
    check_room(ledger, stages_in(state.run.uses), options)
    if options.address:
        with cluster.explained(options.address):
            state.run.notes.extend(cluster.look_around(*folders_of_all(study, options)))
        say(f"[dim]{cluster.describe(ledger)}[/]")
        state.write(cluster.describe(ledger))
    scraped = published(state.facts, time.monotonic) if options.dashboard or options.address else nullcontext()
    with marked(options) as mark, monitor(lambda: state.snapshot(options.out), console) as shown, scraped:
        folders = Folders(
            str(options.store) if is_address(options.store) else str(Path(options.store).resolve()),
            str(options.cache.resolve()),
            str(options.data.resolve()) if options.data else None,
            str(mark) if mark else None,
        )
        state.tell = shown.event
        state.snapshot(options.out)
        run_trials(
            state.scheduler,
            ledger,
            lambda stage, gpus: order_of(stage, state.label(stage), gpus, folders),
            state.live,
            state.images,
            options.dashboard,
            tuple(LogTo(name, study.name, options.out.resolve()) for name in options.log_to),
            machines,
            state.say,
        )
    state.tell = None


def growth_of(options: Options) -> Growth:
    """How far the cluster may grow; this machine alone never does."""
    if not options.address:
        return Growth()
    with cluster.explained(options.address):
        return cluster.find_growth(options.may_grow)


def check_room(ledger: Ledger, stages: dict[str, Stage], options: Options) -> None:
    """Raises `ResourceError` for a stage that no machine can hold that is there or may come."""
    try:
        ledger.check(stages)
    except ResourceError as error:
        known = not options.address or any(not machine.id for machine in ledger.machines)
        hint = "" if known else " (a cluster that grows by itself: say how far with --may-grow, such as 8xCPU=8,GPU=1)"
        raise ResourceError(f"{error}{hint}") from None


def marked(options: Options) -> AbstractContextManager[Path | None]:
    """A file by which every machine of a cluster knows the folder that all share."""
    if not options.address:
        return nullcontext()
    return cluster.marked(options.cache if is_address(options.store) else Path(options.store))


def folders_of_all(study: Study, options: Options) -> tuple[dict[str, Path], dict[str, Path]]:
    """Folders that all machines of a cluster must share, and those that they must have, by option or setting."""
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
    scheduler, uses = state.scheduler, state.run.uses
    state.stopped = not scheduler.finished
    state.run.notes += packing.advice(state.taken)
    state.live.clear()  # whatever was under way when the user stopped it
    record.write_results(study, uses, scheduler.outcomes, state.store, options.out)
    write_test_images(uses, state.store, options.out)
    record.write_searches(study, state.run, options.out)
    if scheduler.finished:
        record.keep_best(study, uses, scheduler.outcomes, state.store, options.out)
    write_atomically(options.out / "status.json", json.dumps(asdict(state.snapshot(None))))
    failed = {state.label(stage): state.cause(key) for key, stage in stages_in(uses).items() if state.cause(key)}
    code = 130 if not scheduler.finished else (3 if failed or state.run.messages else 0)
    seconds = time.monotonic() - state.began
    if state.publisher is not None:
        state.publisher.send()
    return Ended(
        code, state.trained, len(scheduler.reused), failed, seconds, tuple(state.run.messages), tuple(state.run.notes)
    )


# ----------------------------------------------------------------------------------------------------- preparation


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the output folder {folder} cannot be made: {error.strerror}; choose another with --out"
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
                f"another pretune run is working on {folder}; wait for it, or choose another --out"
            ) from None
        file.truncate(0)  # for `pretune stop`
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "job": os.environ.get(cluster.JOB, "")}, file)
        file.flush()
        yield


@contextmanager
def searches_in(options: Options) -> Iterator[BaseStorage]:
    """Where the searches are kept, as long as the study runs."""
    storage = open_storage(options.search_storage or options.out / "optuna.journal")
    try:
        yield storage
    finally:
        close_storage(storage)


@contextmanager
def told_in_a_sentence(options: Options) -> Iterator[None]:
    """A disk or a database that fails under the driver ends the run; what is finished is in the store."""
    again = "what is finished is kept, and the same command goes on"
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


def prepare_data(study: Study, options: Options, console: Console | None) -> tuple[DigestOf, list[str], list[str]]:
    """Decode every data set into the cache, with a progress bar.

    Returns:
        What names a data set's content, sentences about pictures that are in a test set and outside of it, and a line
        for every file that was left out.

    Raises:
        DataError: data that cannot be used. NeedsError, before anything is decoded where the files' list shows it: data
            that do not have what the study asks for.
    """
    from trainables.data.images import ImageSet
    from trainables.data.needs import Held, held_by
    from trainables.data.sources import Choice, open_set, prepare

    @functools.cache
    def prepared(data: schema.Data) -> tuple[str, Choice]:
        if console is None:
            return prepare(data, options.data, options.cache)
        with Bar(console=console, transient=True) as bar:
            task = bar.add_task(f"preparing {data.dataset}")
            return prepare(
                data, options.data, options.cache, lambda done, total: bar.update(task, completed=done, total=total)
            )

    @functools.cache
    def opened(data: schema.Data) -> ImageSet:
        return open_set(data, prepared(data)[0], options.data, options.cache)

    needs.refuse_study(study, needs.listed(options.data))
    said: set[str] = set()
    held: dict[schema.Data, Held] = {}
    left_out: list[str] = []
    for cell in study.cells:
        for name, data in cell.configuration().data.items():
            digest, choice = prepared(data)
            if data not in held:
                held[data] = held_by(opened(data))
            if digest not in said:
                said.add(digest)
                say_source(name, choice.why, console)
                left_out += say_left_out(name, data, opened(data), options.data, console)
    needs.refuse_study(study, held.get)
    found = list(in_the_test_set(study, lambda data: (prepared(data)[0], opened(data)), options.cache))
    for sentence in found:
        if console is None:
            break
        console.print(f"[yellow]note:[/] {sentence}", highlight=False, soft_wrap=True)
    return lambda data: prepared(data)[0], found, left_out


def say_source(name: str, why: str, console: Console | None) -> None:
    """Whether a data set is decoded once or streamed, and why."""
    if console is not None:
        console.print(f"[dim]data {name}: {why}[/]", highlight=False)


def say_left_out(name: str, data: schema.Data, held: Any, data_root: Path | None, console: Console | None) -> list[str]:
    """Which files `on_error: skip` left out, the first ten of them, and which types of file are not read.

    Returns a line for each, for the log.
    """
    from trainables.data.left_out import images_left_out, types_not_read

    skipped, ignored = held.skipped, types_not_read(data, data_root)
    if console is not None:
        if ignored:
            console.print(f"note: data {name}: {ignored}", highlight=False, markup=False, soft_wrap=True)
        if skipped:
            many = images_left_out(data, data_root, len(held.images))
            console.print(f"note: data {name}: {many} left out (on_error: skip)", highlight=False)
        for line in skipped[:10]:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        if len(skipped) > 10:
            where = "pretune.log and pretune data check list all"
            console.print(f"  and {len(skipped) - 10} more; {where}", highlight=False)
    return [f"data {name}: left out: {line}" for line in skipped] + ([f"data {name}: {ignored}"] if ignored else [])


def say_changes(study: Study, folder: Path, console: Console) -> bool:
    """Where the file was edited since the last run: which keys changed. What they leave valid is reused."""
    import yaml

    try:
        before = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return False
    changed = sorted(differing(before, yaml.safe_load(study.to_yaml())))
    if changed:
        console.print(f"the study changed since its last run: {', '.join(changed)}", highlight=False)
        console.print(f"its earlier results are in {folder / record.EARLIER}", highlight=False, soft_wrap=True)
    return bool(changed)


def differing(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            yield from differing(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
    elif before != after:
        yield key


# ------------------------------------------------------------------------------------------------------- the state


@dataclass
class State:
    """What there is to say about a run under way: labels, counts, times. Decides nothing."""

    study: Study
    run: Run
    store: Store
    out: Path
    began: float
    log: IO[str]
    trained: int = 0
    stopped: bool = False
    live: dict[str, Live] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # per stage name, of stages trained in this run
    images: dict[str, int] = field(default_factory=dict)  # seen in training, per stage name
    gpu_memory: dict[str, float] = field(default_factory=dict)  # bytes, the most of a stage run, per stage name
    taken: dict[str, packing.Taken] = field(default_factory=dict)  # the same beside what the GPU has
    notes: list[str] = field(default_factory=list)
    tell: Callable[[str], None] | None = None
    publisher: Publisher | None = None
    scheduler: Scheduler = field(init=False)
    ledger: Ledger | None = None
    _labels: dict[str, str] = field(default_factory=dict)
    _labelled: int = 0
    _written: float = 0.0
    _counts: Snapshot | None = None
    _counts_due: float = 0.0
    _results_due: float = field(default_factory=lambda: time.monotonic() + RESULTS_SECONDS)

    def event(self, kind: str, stage: Stage, text: str) -> None:
        """Called by the scheduler: count it, log it, tell whoever watches."""
        line = f"{kind:9} {self.label(stage)}" + (f": {text}" if text else "")
        self.write(f"{stage.fingerprint} {line}")
        if kind == "finished":
            self.trained += 1
            if entry := self.store.find(stage.fingerprint):
                self.seconds.setdefault(stage.name, []).append(entry.seconds)
                if memory := costs(entry).get("cost/gpu_memory"):
                    self.gpu_memory[stage.name] = max(memory, self.gpu_memory.get(stage.name, 0.0))
                    total = float(entry.about["machine"].get("gpu_memory_total") or 0.0)
                    self.taken[stage.name] = packing.Taken(stage, self.gpu_memory[stage.name], total)
            self.write_so_far()
        if kind not in ("reused", "started"):
            self.notes.append(line)
            if self.tell:
                self.tell(line)
                self.snapshot(self.out)  # for `pretune status`, whatever the terminal shows

    def write(self, line: str) -> None:
        """Into the study's log."""
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self.log.flush()

    def say(self, text: str) -> None:
        """What should be known while the study runs and beside its table."""
        self.write(text)
        self.notes.append(text)
        self.run.notes.append(text)
        if self.tell:
            self.tell(text)

    def label(self, stage: Stage) -> str:
        """`finetune encoder=frozen skip=true seed 2`; a shared pretraining goes by its seed alone."""
        end = len(self.run.uses)  # two threads ask, and uses are added meanwhile
        for use in self.run.uses[self._labelled : end]:
            for name, part in use.stages.items():
                whole = f"{name} {use.cell.label} seed {use.replicate.seed}"
                short = f"{name} seed {use.replicate.pretrain}"
                known = self._labels.get(part.fingerprint)
                alone = known is None or known == whole
                self._labels[part.fingerprint] = whole if alone else known if use.pair and known else short
        self._labelled = max(self._labelled, end)
        return self._labels.get(stage.fingerprint, stage.name)

    def cause(self, fingerprint: str) -> str:
        outcome = self.scheduler.outcomes.get(fingerprint)
        if outcome is None or outcome.state == "finished":
            return ""
        return f"{outcome.state}: {outcome.cause}"

    def reused_text(self) -> str:
        """What the store already holds of the stage runs known so far."""
        known, reused = len(stages_in(self.run.uses)), len(self.scheduler.reused)
        kinds = [stage.name for key, stage in stages_in(self.run.uses).items() if key not in self.scheduler.outcomes]
        to_do = ", ".join(f"{kinds.count(name)} {name}" for name in dict.fromkeys(kinds))
        return f"{reused} of {known} stage runs are in the store; to run: {to_do}; "

    def snapshot(self, folder: Path | None) -> Snapshot:
        """The study at this moment; now and then also written to `folder`."""
        shot = replace(
            self._counted(force=folder is None),
            running=tuple(self._running()),
            waiting=self.scheduler.waiting,
            finished=self.trained,
            reused=len(self.scheduler.reused),
            elapsed=time.monotonic() - self.began,
            messages=tuple(self.notes[-4:]),
        )
        if folder is not None and time.monotonic() - self._written > STATUS_SECONDS:
            self._written = time.monotonic()
            write_atomically(folder / "status.json", json.dumps(asdict(shot)))
        return shot

    def facts(self) -> Facts:
        """What is published as metrics."""
        seconds = {name: tuple(values) for name, values in list(self.seconds.items())}
        return Facts(self.snapshot(self.out), seconds, dict(self.images), dict(self.gpu_memory))

    def _counted(self, force: bool) -> Snapshot:
        """The parts that go over all stages, made anew only now and then: a study may have thousands."""
        began = time.monotonic()
        if self._counts is None or force or began >= self._counts_due:
            uses, outcomes = list(self.run.uses), dict(self.scheduler.outcomes)
            stages = stages_in(uses)
            self._counts = Snapshot(
                study=self.study.name,
                phase=self._phase(),
                running=(),
                waiting=0,
                finished=0,
                reused=0,
                failed=sum(outcome.state != "finished" for outcome in outcomes.values()),
                total=None if self.run.open_searches else len(stages),
                cells=tuple(self._cells(uses, outcomes)),
                elapsed=0.0,
                remaining=self._remaining(stages, outcomes),
                messages=(),
            )
            self._counts_due = time.monotonic() + max(0.5, 20 * (time.monotonic() - began))
        return self._counts

    def _phase(self) -> str:
        if self.stopped:
            return "stopped"
        return "search" if self.run.open_searches else "confirm"

    def write_so_far(self) -> None:
        """The results as far as they are there: once a minute, less often where writing them takes long."""
        began = time.monotonic()
        if began < self._results_due:
            return
        try:
            record.write_results(self.study, self.run.uses, self.scheduler.outcomes, self.store, self.out)
            if self.publisher is not None:
                self.publisher.send()
        except OSError as error:  # watching must never stop a study; the end writes them again
            self.notes.append(f"results so far could not be written: {error}")
        self._results_due = time.monotonic() + max(RESULTS_SECONDS, 50 * (time.monotonic() - began))

    def _running(self) -> Iterator[RunningStage]:
        for trial in list(self.live.values()):
            step, total = trial.latest.get("step", 0), trial.latest.get("total", 0)
            loss = next(
                (f"loss {v:.3g}" for k, v in trial.latest.items() if k.startswith("train/") and k.endswith("loss")), ""
            )
            seconds = time.monotonic() - trial.began
            yield RunningStage(self.label(trial.stage), step / total if total else 0.0, loss, seconds)

    def _cells(self, uses: list[Use], outcomes: Outcomes) -> Iterator[CellStatus]:
        metric = self.study.header.tune.target
        expected: dict[str, int] = {cell.label: 0 for cell in self.study.cells}
        values: dict[str, list[float]] = {cell.label: [] for cell in self.study.cells}
        for use in uses:
            if use.phase == "confirm" and "finetune" in use.stages:
                expected[use.cell.label] += 1
                outcome = outcomes.get(use.stages["finetune"].fingerprint)
                if outcome is not None and metric in outcome.metrics:
                    values[use.cell.label].append(outcome.metrics[metric])
        for label, found in values.items():
            mean = statistics.fmean(found) if found else None
            spread = statistics.stdev(found) if len(found) > 1 else None
            yield CellStatus(label, len(found), expected[label], mean, spread)

    def _remaining(self, stages: dict[str, Stage], outcomes: Outcomes) -> float | None:
        """Seconds left, from the times of stages of the same name; None until each kind was seen once."""
        to_do = [stage for key, stage in stages.items() if key not in outcomes]
        if self.run.open_searches or any(stage.name not in self.seconds for stage in to_do):
            return None
        means = {name: statistics.fmean(values) for name, values in list(self.seconds.items())}
        work = sum(means[stage.name] for stage in to_do)
        work -= sum(time.monotonic() - trial.began for trial in list(self.live.values()))
        return max(0.0, work) / max(1, len(self.live))
