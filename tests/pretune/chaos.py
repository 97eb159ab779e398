"""A study under signals: who gets which, at which moment of the study, and what came of it.

Moments are seen in the store and in the study's folder, so that they are the same on a fast machine and a slow one.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import psutil
import pytest

from pretune.store.store import DONE, Store
from pretune.trainables.files import STATE, TEST_IMAGES, WEIGHTS

Target = Literal["driver", "actor", "raylet", "head", "agent", "worker", "node", "machine"]
Moment = Literal["start", "training", "state", "evaluation", "entry", "ended", "tables", "report"]
LATE: tuple[Moment, ...] = ("ended", "tables", "report")  # no stage run is left; Ray is gone

SILENT = 240.0  # seconds without any sign after which the study counts as hanging; this machine is shared
STOPPED = (1.0, 5.0)  # seconds from SIGSTOP to SIGCONT
LOOK = 0.3  # between two looks at who lives
NAMES: dict[Target, tuple[str, ...]] = {
    "raylet": ("raylet/raylet",),
    "head": ("gcs/gcs_server",),
    "agent": ("ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    "worker": ("ray::RayTrainWorker", "ray::TrainController"),
}


@dataclass(frozen=True)
class Blow:
    """A signal that is planned."""

    target: Target
    number: signal.Signals
    moment: Moment

    def __str__(self) -> str:
        return f"{self.number.name} to {self.target} at {self.moment}"


@dataclass
class Struck:
    """A signal that was sent."""

    blow: Blow
    inside: bool  # the moment was still there right after
    silence: float  # seconds to the next sign of the study, or to its end
    went_on: bool  # else the driver ended


def schedule(seed: int, kinds: Sequence[tuple[Target, str, str]]) -> list[Blow]:
    """(target, signals, moments), each signal at each moment, in a random order, late moments last."""
    blows = [
        Blow(target, signal.Signals[f"SIG{number}"], cast("Moment", moment))
        for target, numbers, moments in kinds
        for number in numbers.split()
        for moment in moments.split()
    ]
    assert all(blow.moment in get_args(Moment) for blow in blows)
    random.Random(seed).shuffle(blows)
    return sorted(blows, key=lambda blow: blow.moment in LATE)


@dataclass
class World:
    """A study on this machine: its driver, and the Ray cluster where the driver does not start its own."""

    file: Path
    root: Path
    expected: frozenset[str]  # fingerprints of all stage runs
    nodes: int = 0  # of a cluster of our own; 0: the driver starts Ray
    driver: subprocess.Popen[bytes] | None = None
    cluster: Any = None
    workers: list[Any] = field(default_factory=list)
    started: list[psutil.Process] = field(default_factory=list)
    words: list[Path] = field(default_factory=list)  # of each driver
    ends: list[int] = field(default_factory=list)  # exit codes
    longest: float = 0.0  # silence, in seconds
    _began: float = 0.0
    _lines: int = 0  # bytes of the log when the driver was started
    _seen: tuple[int, int, float] = (0, 0, 0.0)
    _since: float = field(default_factory=time.monotonic)
    _late_only: bool = False  # no stage run need be left

    def __post_init__(self) -> None:
        self.store, self.out = Store(self.root / "store"), self.root / "tiny"
        self.log = self.out / "pretune.log"

    # ------------------------------------------------------------------------------------------- starting and ending

    def start(self) -> None:
        """Whatever is not there: the cluster, its nodes, the driver."""
        if self.nodes and self.cluster is None:
            from ray.cluster_utils import Cluster

            quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 9000}
            head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
            self.cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": quick})
        while len(self.workers) < self.nodes:
            self.workers.append(self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
        if not self.over():
            return
        self.words.append(Path(f"{self.root}-{len(self.words)}.txt"))
        self._began, self._lines = time.time(), len(self._log())
        where = ["--address", self.cluster.address] if self.cluster is not None else ["--parallel", "1"]
        call = [sys.executable, "-m", "pretune", "run", str(self.file), "--root", str(self.root), *where]
        with self.words[-1].open("wb") as words:
            self.driver = subprocess.Popen(call, stdout=words, stderr=subprocess.STDOUT)
        self.started.append(psutil.Process(self.driver.pid))
        self._since = time.monotonic()

    def over(self) -> bool:
        """Whether no driver runs; how one ended is checked here."""
        if self.driver is None:
            return True
        if (code := self.driver.poll()) is None:
            return False
        self.driver = None
        self.ends.append(code)
        text = self.words[-1].read_text(errors="replace")
        assert "Traceback" not in text, text[-3000:]
        sentence = {0: " trained, ", 2: "error: ", 130: "stopped", -signal.SIGKILL: ""}
        assert code in sentence, f"exit code {code}: {text[-2000:]}"
        assert sentence[code] in text, f"exit code {code} without a sentence: {text[-2000:]}"
        return True

    def stop_cluster(self) -> None:
        if self.cluster is not None:
            for node in list(self.workers):
                self.cluster.remove_node(node, allow_graceful=False)
            self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)
        self.cluster, self.workers = None, []

    def stop(self) -> None:
        """Leave nothing running."""
        if self.driver is not None and self.driver.poll() is None:
            self.processes()
            self.driver.kill()
            self.driver.wait()
        self.stop_cluster()
        for one in self.started:
            send(one, signal.SIGKILL)

    # -------------------------------------------------------------------------------------------------- what is seen

    def processes(self) -> list[psutil.Process]:
        """Everything below the driver, or below the cluster's nodes."""
        own = {child.pid for child in psutil.Process().children()}  # a reaped one's pid may be somebody else's by now
        tops = [self.driver.pid] if self.driver else []
        if self.cluster is not None:
            nodes = [*self.workers, *([self.cluster.head_node] if self.cluster.head_node else [])]
            tops = [part.process.pid for node in nodes for kind in node.all_processes.values() for part in kind]
        found = [one for pid in tops if pid in own for one in family(pid)]
        self.started += [one for one in found if one not in self.started]
        return found

    def victims(self, target: Target) -> list[psutil.Process]:
        """Processes of that kind."""
        assert self.driver is not None
        if target in ("driver", "node", "machine"):
            return [psutil.Process(self.driver.pid)]
        if target == "actor":
            return [one for one in self.processes() if is_trial(title(one))]
        return [one for one in self.processes() if title(one).startswith(NAMES[target]) or ends(one, NAMES[target])]

    def attempts(self) -> Iterator[Path]:
        """Folders of stage runs under way."""
        for folder in self.store.root.glob("*/*/"):
            if not (folder.parent / DONE).exists():
                yield folder

    def is_at(self, moment: Moment) -> bool:
        """Whether the study is there now, by what is on the disk."""
        if not self._is_at_work():
            return False
        if moment == "start":
            return not self._has_begun() and not self._whole()
        if moment in LATE:
            return self._whole() and self._is_late(moment)
        return any(self._stage_is_at(moment, folder) for folder in self.attempts())

    def _stage_is_at(self, moment: Moment, folder: Path) -> bool:
        outputs = (folder / WEIGHTS).exists(), (folder / TEST_IMAGES).exists()
        if moment == "state":
            return (folder / f"{STATE}.tmp").exists()
        if moment == "training":
            return (folder / STATE).exists() and not any(outputs)
        return outputs[0] if moment == "entry" else outputs[1]

    def _is_late(self, moment: Moment) -> bool:
        results = self.out / "results.parquet"
        if moment == "tables":
            return any(self.out.glob(".*.tmp"))
        written = results.exists() and results.stat().st_mtime > self._began
        return written if moment == "report" else not written

    def _is_at_work(self) -> bool:
        """Whether the driver is past its imports: its lock names it."""
        assert self.driver is not None
        lock = self.out / ".lock"
        return lock.exists() and f'"pid": {self.driver.pid},' in lock.read_text()

    def _has_begun(self) -> bool:
        """Whether this driver has given a stage run to Ray; lines of what is reused come before Ray does."""
        return b" started " in self._log()[self._lines :]

    def _whole(self) -> bool:
        return all((self.store.root / key / DONE).exists() for key in self.expected)

    def _said(self) -> int:
        """Letters of the driver's output without lines that only say how much time went by."""
        lines = self.words[-1].read_text(errors="replace").splitlines()
        return sum(len(line) for line in lines if " elapsed" not in line)

    def _log(self) -> bytes:
        return self.log.read_bytes() if self.log.exists() else b""

    def sign(self) -> bool:
        """Whether there is one of the study that was not there at the last call; fails where none came for long."""
        newest = max((stamp(path) for path in self.store.root.glob("*/*/*")), default=0.0)
        now = (len(self._log()), self._said(), newest)
        silence = time.monotonic() - self._since
        self.longest = max(self.longest, silence)
        assert silence < SILENT, f"nothing for {silence:.0f} s; the driver's words are in {self.words[-1]}"
        if now == self._seen:
            return False
        self._seen, self._since = now, time.monotonic()
        return True

    # ------------------------------------------------------------------------------------------------------- signals

    def wait_for(self, happened: Callable[[], Any], pause: Callable[[], float] = lambda: 0.02) -> None:
        """Until it has; a driver that ended is started again."""
        looked = 0.0
        while not happened():
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                if self.over():
                    if self.ends and self.ends[-1] == 0 and not self._late_only:
                        pytest.fail("the study was over before the schedule: fewer signals than planned")
                    self.start()
                self.sign()
            time.sleep(pause())

    def finish(self) -> None:
        """Run the same command until it ends well."""
        self._late_only = True
        self.wait_for(lambda: self.over() and bool(self.ends) and self.ends[-1] == 0)

    def strike(self, blow: Blow, draw: random.Random) -> Struck:
        """Wait for the moment, send the signal, and look what comes of it."""
        self._late_only = blow.moment in LATE
        alive: list[psutil.Process] = []
        looked = 0.0

        def is_there() -> bool:
            nonlocal alive, looked
            if self.driver is None:
                return False
            if blow.moment == "start" and self._has_begun():
                self.driver.kill()  # it is past its start, before this schedule looked or while it did: another one
                self.driver.wait()
                return False
            if time.monotonic() - looked > LOOK:
                alive, looked = self.victims(blow.target), time.monotonic()
            return bool(alive) and self.is_at(blow.moment)

        while True:
            self.wait_for(is_there, lambda: self._pause(blow.moment))
            if self._hit(blow, alive, draw):
                break
            alive = []
        inside = self.is_at(blow.moment)
        began = self._since = time.monotonic()
        self.sign()
        while not self.over() and (self._ends(blow) or not self.sign()):
            self.sign()
            time.sleep(0.02)
        silence = time.monotonic() - began
        if blow.target == "head" and self.driver is None:
            self.stop_cluster()
        return Struck(blow, inside, silence, self.driver is not None)

    def _pause(self, moment: Moment) -> float:
        """Short where the moment is, and may come: looking takes time from the study, too."""
        near = moment in ("ended", "tables") or (moment in ("state", "evaluation", "entry") and any(self.attempts()))
        return 0.002 if near else 0.05

    def _ends(self, blow: Blow) -> bool:
        """Whether the driver must end by it."""
        fatal = ("driver", "machine", "head") if self.nodes else ("driver", "raylet", "head")
        return blow.number != signal.SIGSTOP and blow.target in fatal

    def _hit(self, blow: Blow, alive: list[psutil.Process], draw: random.Random) -> bool:
        if blow.target == "node":
            self.cluster.remove_node(self.workers.pop(draw.randrange(len(self.workers))), allow_graceful=False)
            return True
        below = self.processes() if blow.target == "machine" else []
        if not send(draw.choice(alive), blow.number, draw.uniform(*STOPPED)):
            return False
        for one in below:
            send(one, signal.SIGKILL)
        if below:
            self.stop_cluster()
        return True


def is_trial(name: str) -> bool:
    return name.startswith("ray::") and name.endswith(".train")


def family(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def ends(process: psutil.Process, names: tuple[str, ...]) -> bool:
    return title(process).endswith(names)


def stamp(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def send(process: psutil.Process, number: signal.Signals, stopped: float = 0.0) -> bool:
    """psutil knows a process by its start as well: a pid that was given away again gets nothing."""
    try:
        process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(stopped)
            process.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return False
    return True
