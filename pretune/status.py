"""Status of a run under way: labels, counts, times left. Decides nothing."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pretune.dispatch import gpu_sharing
from pretune.dispatch.dispatcher import RunningTrial
from pretune.dispatch.resources import ClusterResources
from pretune.dispatch.scheduler import Scheduler
from pretune.monitor.prometheus import Facts
from pretune.monitor.terminal import CellStatus, RunningStage, Snapshot
from pretune.outcomes import Outcomes
from pretune.results import tables
from pretune.search.replicates import ReplicatePlan, Run, stages_in
from pretune.search_spaces.metrics import TRAINING_LOSSES, direction_of
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.schema import Tune
from pretune.search_spaces.stages import Stage
from pretune.search_spaces.words import stage_title
from pretune.store.lookup import DRIVER, costs
from pretune.store.mirror import Publisher
from pretune.store.store import Store, write_atomically

STATUS_SECONDS = 2.0  # between two versions of status.json
RESULTS_SECONDS = 60.0  # between two versions of the results, for whoever watches the report


Sources = Mapping[str, Literal["resident", "streaming"]]  # of images, by the digest of their data set


class FailedRun(NamedTuple):
    """A stage run without a result."""

    label: str
    values: str  # of the ranges that reach it: 'pretrain.method.temperature 0.003'; "" where nothing is tuned
    cause: str
    is_answer: bool  # of a search alone, and diverged: an answer that no rerun changes, and that no table lacks

    def __str__(self) -> str:
        """One line."""
        return f"{self.label}{f' ({self.values})' if self.values else ''}: {self.cause}"


@dataclass
class State:
    """Status of a run under way: labels, counts, times. Decides nothing."""

    study: Study
    run: Run
    store: Store
    out: Path
    began: float
    log: IO[str]
    trained: int = 0
    taken_over: int = 0  # stage runs that another driver on the same store trained meanwhile
    driver: str = field(default_factory=lambda: uuid.uuid4().hex)  # this run, among all drivers
    stopped: bool = False
    live: dict[str, RunningTrial] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by stage title, of stages trained in this run
    images: dict[str, int] = field(default_factory=dict)  # seen in training, by title of the stage
    taken: dict[str, gpu_sharing.Taken] = field(default_factory=dict)  # most GPU memory of a stage run, by stage title
    notes: list[str] = field(default_factory=list)
    tell: Callable[[str], None] | None = None
    publisher: Publisher | None = None
    sources: Sources = field(default_factory=dict)
    scheduler: Scheduler = field(init=False)
    resources: ClusterResources | None = None
    _labels: dict[str, str] = field(default_factory=dict)
    _values: dict[str, str] = field(default_factory=dict)
    _parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    _labelled: int = 0
    _written: float = 0.0
    _counts: Snapshot | None = None
    _counts_due: float = 0.0
    _results_due: float = field(default_factory=lambda: time.monotonic() + RESULTS_SECONDS)

    def event(self, kind: str, stage: Stage, text: str) -> None:
        """Called by the scheduler: count it, log it, tell whoever watches."""
        label, values = self.label(stage), self._values.get(stage.fingerprint, "")
        said = f" ({values})" if values and kind in ("retried", "crashed", "diverged", "blocked") else ""
        line = f"{kind:9} {label}{said}" + (f": {text}" if text else "")
        self.write(f"{stage.fingerprint} {line}")
        if kind == "finished":
            entry = self.store.find(stage.fingerprint)
            of_another = entry is not None and entry.about.get(DRIVER, self.driver) != self.driver
            self.taken_over += of_another
            self.trained += not of_another
            if entry is not None:
                self.seconds.setdefault(stage.title, []).append(entry.seconds)
                if memory := costs(entry).get("cost/gpu_memory"):
                    most = max(memory, self.taken[stage.title].most if stage.title in self.taken else 0.0)
                    total = float(entry.about["machine"].get("gpu_memory_total") or 0.0)
                    self.taken[stage.title] = gpu_sharing.Taken(stage, most, total)
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
        """Return notes to read while the study runs and beside its table."""
        self.notes.append(text)
        self.run.notes.append(text)
        self.announce(text)

    def announce(self, text: str) -> None:
        """Log a line and tell it to whoever watches; for what should be known only while the study runs."""
        self.write(text)
        if self.tell:
            self.tell(text)

    def label(self, stage: Stage) -> str:
        """`finetune encoder=frozen skip=true seed 2`; a shared pretraining goes by its seed alone."""
        self._name_new_runs()
        return self._labels.get(stage.fingerprint, stage.title)

    def parameters(self, stage: Stage) -> dict[str, Any]:
        """Stage, phase, seed, levels of factors and chosen values that all uses of a stage run have in common."""
        self._name_new_runs()
        return self._parameters.get(stage.fingerprint, {"stage": stage.name})

    def _name_new_runs(self) -> None:
        """Note the names of the stage runs that were planned since the last call."""
        end = len(self.run.replicates)  # two threads ask, and uses are added meanwhile
        for use in self.run.replicates[self._labelled : end]:
            for name, part in use.stages.items():
                title = stage_title(name, part.method)
                whole = f"{title} {use.cell.label} seed {use.replicate.seed}"
                short = f"{title} seed {use.replicate.pretrain}"
                known = self._labels.get(part.fingerprint)
                alone = known is None or known == whole
                self._labels[part.fingerprint] = whole if alone else known if use.pair and known else short
                self._values[part.fingerprint] = tables.shown_values(use, part)
                own = tables.parameters(use, name, part)
                before = self._parameters.get(part.fingerprint, own)
                self._parameters[part.fingerprint] = {k: v for k, v in before.items() if k in own and own[k] == v}
        self._labelled = max(self._labelled, end)

    def runs_without_result(self) -> list[FailedRun]:
        """Stage runs that ended and did not finish, one by one, in the order in which they were asked for."""
        searched: dict[str, bool] = {}  # fingerprint -> whether only searches asked for it
        for use in self.run.replicates:
            for stage in use.stages.values():
                searched[stage.fingerprint] = searched.get(stage.fingerprint, True) and use.phase != "confirm"
        found = []
        for key, stage in stages_in(self.run.replicates).items():
            outcome = self.scheduler.outcomes.get(key)
            if outcome is not None and outcome.state != "finished":
                is_answer = searched[key] and "diverged" in (outcome.state, outcome.root)
                label, cause = self.label(stage), f"{outcome.state}: {outcome.cause}"
                found.append(FailedRun(label, self._values.get(key, ""), cause, is_answer))
        return found

    def reused_text(self) -> str:
        """Return the stage runs known so far that the store already holds."""
        known, reused = len(stages_in(self.run.replicates)), len(self.scheduler.reused)
        kinds = [
            stage.title for key, stage in stages_in(self.run.replicates).items() if key not in self.scheduler.outcomes
        ]
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
        """Return the numbers that are published as metrics."""
        seconds = {name: tuple(values) for name, values in list(self.seconds.items())}
        memory = {name: taken.most for name, taken in list(self.taken.items())}
        return Facts(self.snapshot(self.out), seconds, dict(self.images), memory)

    def _counted(self, force: bool) -> Snapshot:
        """The parts that go over all stages, made anew only now and then: a study may have thousands."""
        began = time.monotonic()
        if self._counts is None or force or began >= self._counts_due:
            uses, outcomes = list(self.run.replicates), dict(self.scheduler.outcomes)
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
                scale=self.study.scale,
                target=compared_by(self.study.header.tune),
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
            tables.write_results(self.study, self.run.replicates, self.scheduler.outcomes, self.store, self.out)
            if self.publisher is not None:
                self.publisher.send()
        except OSError as error:  # watching must never stop a study; the end writes them again
            self.notes.append(f"results so far could not be written: {error}")
        self._results_due = time.monotonic() + max(RESULTS_SECONDS, 50 * (time.monotonic() - began))

    def _running(self) -> Iterator[RunningStage]:
        for trial in list(self.live.values()):
            step, total = trial.latest.get("step", 0), trial.latest.get("total", 0)
            loss = next((f"loss {trial.latest[name]:.3g}" for name in TRAINING_LOSSES if name in trial.latest), "")
            detail = loss if trial.latest else "starting"  # where it goes on is not known before its first report
            seconds = time.monotonic() - trial.began
            yield RunningStage(self.label(trial.stage), step / total if total else 0.0, detail, seconds)

    def _cells(self, uses: list[ReplicatePlan], outcomes: Outcomes) -> Iterator[CellStatus]:
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
        """Seconds left, from the times of stages of the same title; None until each kind was seen once."""
        to_do = [stage for key, stage in stages.items() if key not in outcomes]
        if self.run.open_searches or any(stage.title not in self.seconds for stage in to_do):
            return None
        means = {name: statistics.fmean(values) for name, values in list(self.seconds.items())}
        work = sum(means[stage.title] for stage in to_do)
        work -= sum(time.monotonic() - trial.began for trial in list(self.live.values()))
        return max(0.0, work) / max(1, len(self.live))


def compared_by(tune: Tune) -> str:
    """'val/jaccard, higher is better'."""
    better = "higher" if direction_of(tune.target, tune.direction) == "maximize" else "lower"
    return f"{tune.target}, {better} is better"
