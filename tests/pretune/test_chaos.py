"""A small real study under SIGKILLs at random moments: drivers, trial actors, Ray nodes and whole machines.

A seeded schedule says what is killed and when. After all of it, the study that was merely run again each time must hold
exactly what an undisturbed one does.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import optuna
import pandas as pd
import psutil
import pytest
import yaml

from pretune.store.store import Store

Kind = Literal["driver", "actor", "node", "machine"]
EPOCHS = 60  # of a fine-tuning: about a second and a half
PATIENCE = 240.0  # seconds without a new stage run after which the study counts as hanging; this machine is shared


@dataclass(frozen=True)
class Kill:
    """One planned kill: after so many more stage runs and so much of one more, or at the next write from then on."""

    kind: Kind
    ends: int
    wait: float  # in mean stage runs: a kill costs the study about as many of them on a fast machine as on a slow one
    at_write: bool


def schedule(seed: int, counts: Mapping[Kind, int]) -> list[Kill]:
    """A random order and random moments; a third of them in the middle of a stage's writes."""
    draw = random.Random(seed)
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    draw.shuffle(kinds)
    return [Kill(kind, draw.randint(0, 1), draw.uniform(0.0, 1.0), draw.random() < 1 / 3) for kind in kinds]


# -------------------------------------------------------------------------------------------------------- the world


@dataclass
class World:
    """A study on this machine: its driver, and the Ray cluster where the driver does not start its own."""

    file: Path
    root: Path
    nodes: int = 0  # of a cluster of our own; 0: the driver starts Ray
    driver: subprocess.Popen[bytes] | None = None
    cluster: Any = None
    workers: list[Any] = field(default_factory=list)
    started: list[psutil.Process] = field(default_factory=list)
    starts: int = 0

    def start(self) -> None:
        """Whatever is not there: the cluster, its nodes, the driver."""
        if self.nodes and self.cluster is None:
            from ray.cluster_utils import Cluster

            quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 2000}
            head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
            self.cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": quick})
        while len(self.workers) < self.nodes:
            self.workers.append(self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
        if self.driver is None or self.driver.poll() is not None:
            self.starts += 1
            with Path(f"{self.root}.txt").open("ab") as words:
                call = command(self.file, self.root, self.address)
                self.driver = subprocess.Popen(call, stdout=words, stderr=subprocess.STDOUT)
            self.started.append(psutil.Process(self.driver.pid))

    @property
    def address(self) -> str | None:
        return self.cluster.address if self.cluster is not None else None

    def actors(self) -> list[psutil.Process]:
        """Processes that Ray gave a trial."""
        return [one for one in self.processes() if title(one).startswith("ray::") and "train" in title(one).lower()]

    def processes(self) -> list[psutil.Process]:
        """Everything below the driver, or below the cluster's nodes."""
        assert self.driver is not None
        tops = [self.driver.pid] if self.cluster is None else [pid for node in self.all_nodes() for pid in pids(node)]
        mine = {child.pid for child in psutil.Process().children()}  # a reaped one's pid may be somebody else's by now
        found = [one for pid in tops if pid in mine for one in family(pid)]
        self.started += [one for one in found if one not in self.started]
        return found

    def all_nodes(self) -> list[Any]:
        return [*self.workers, *([self.cluster.head_node] if self.cluster.head_node else [])]

    def kill(self, kind: Kind, draw: random.Random) -> bool:
        """Whether there was something to kill."""
        assert self.driver is not None
        if kind == "actor":
            if not (alive := self.actors()):
                return False
            return end(draw.choice(alive))
        if self.driver.poll() is not None:
            return False
        if kind == "node":
            node = self.workers.pop(draw.randrange(len(self.workers)))
            self.cluster.remove_node(node, allow_graceful=False)
            return True
        below = self.processes()  # a driver's own cluster notices within seconds; a machine's processes end with it
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()
        if kind == "machine":
            for one in below:
                end(one)
            self.stop_cluster()
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
            end(one)


def command(file: Path, root: Path, address: str | None) -> list[str]:
    run = [sys.executable, "-c", "from pretune.cli import main; main()", "run", str(file), "--root", str(root)]
    return [*run, "--address", address] if address else [*run, "--parallel", "2"]


def pids(node: Any) -> list[int]:
    return [one.process.pid for kind in node.all_processes.values() for one in kind]


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


def end(process: psutil.Process) -> bool:
    """psutil knows a process by its start as well: a pid that was given away again is not killed."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


# -------------------------------------------------------------------------------------------------------- the storm


def storm(world: World, kills: list[Kill], stage: float, draw: random.Random) -> Counter[Kind]:
    """Run the study and kill by the schedule, starting again whatever was killed; how often each kind was.

    `stage`: seconds of a mean stage run.
    """
    done, store = Counter[Kind](), Store(world.root / "store")
    seen: dict[str, Any] = {}
    for kill in kills:
        world.start()
        print(
            f"{time.strftime('%H:%M:%S')} {sum(done.values())} kills, {len(seen)} stage runs; next {kill}", flush=True
        )
        before = len(finished(store, seen))
        wait_for(lambda before=before, kill=kill: len(finished(store, seen)) >= before + kill.ends, world)
        time.sleep(kill.wait * stage)
        if kill.at_write:
            wait_for(lambda: any(writing(store)), world, pause=0.0005)
        wait_for(lambda kill=kill: world.kill(kill.kind, draw), world)
        done[kill.kind] += 1
    while world.driver is None or world.driver.poll() != 0:
        world.start()
        before = len(finished(store, seen))
        wait_for(lambda before=before: len(finished(store, seen)) > before or over(world), world)
    final = finished(store, {})
    assert seen.keys() <= final.keys(), "a result was lost"
    assert all(final[key] == metrics for key, metrics in seen.items()), "a result changed"
    return done


def over(world: World) -> bool:
    assert world.driver is not None
    return world.driver.poll() is not None


def wait_for(happened: Any, world: World, pause: float = 0.02) -> None:
    """Until it has; the driver is started again where it fell with a node."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"nothing happens; the driver's words are in {world.root}.txt"
        if over(world):
            assert world.driver is not None
            if world.driver.returncode == 0:
                pytest.fail("the study was over before the schedule: fewer kills than planned")
            world.start()
        time.sleep(pause)


def finished(store: Store, seen: dict[str, Any]) -> dict[str, Any]:
    """What is in the store, added to what was seen before."""
    for entry in store.entries():
        seen[entry.fingerprint] = entry.metrics
    return seen


def writing(store: Store) -> Iterator[Path]:
    """Stage runs in the middle of their writes: files of an attempt are there, its mark is not."""
    for folder in store.root.glob("*/*/"):
        if not (folder.parent / "done.json").exists() and any(folder.iterdir()):
            yield folder


# ------------------------------------------------------------------------------------------------------- the studies


def searched(tiny: dict[str, Any], cells: int, trials: int, seeds: int) -> dict[str, Any]:
    """Rungs in every cell: half of each batch of three goes on from half its epochs to all.

    Stage runs long beside their writes: most kills meet a training in its middle, as they would in a study of a user.
    """
    del tiny["finetune"]["steps"]
    tiny["pretrain"]["steps"] = EPOCHS
    tiny["finetune"] |= {"epochs": EPOCHS, "optimizer": {"lr": {"log_uniform": [0.001, 0.1]}}}
    tiny["factors"] = {"encoder": tiny["factors"]["encoder"]}
    if cells == 4:
        tiny["factors"]["skip"] = {"model.skip_connections": [True, False]}
        tiny["report"]["rows"] = ["encoder", "skip"]
    tiny["tune"] = {"trials": trials, "batch": 3, "startup": 2, "rungs": {"epochs": [EPOCHS // 2], "keep": 0.5}}
    tiny["seeds"] = {"search": 1, "report": seeds}
    tiny["retries"] = 100
    return tiny


def check_equal(disturbed: Path, undisturbed: Path) -> None:
    tables = [pd.read_parquet(root / "tiny" / "results.parquet") for root in (disturbed, undisturbed)]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    contents = [(root / "tiny" / "results.parquet").read_bytes() for root in (disturbed, undisturbed)]
    assert contents[0] == contents[1]
    assert not tables[0].drop(columns="value").duplicated().any()


def check_counted_once(root: Path) -> None:
    """No stage run was trained to its end twice, and no question has two answers."""
    log = [line.split() for line in (root / "tiny" / "pretune.log").read_text().splitlines()]
    ends = Counter(words[2] for words in log if words[3] == "finished")
    assert ends.most_common(1)[0][1] == 1
    journal = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(root / "tiny" / "optuna.journal"))
    )
    for summary in optuna.get_all_study_summaries(journal):
        trials = optuna.load_study(study_name=summary.study_name, storage=journal).get_trials()
        answered = [trial.user_attrs["pretune:index"] for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
        assert len(answered) == len(set(answered)) > 0


def storm_and_compare(study: dict[str, Any], tmp_path: Path, kills: list[Kill], nodes: int) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(study))
    began = time.monotonic()
    subprocess.run(command(file, tmp_path / "calm", None), check=True, capture_output=True, timeout=PATIENCE * 2)
    calm = time.monotonic() - began
    stage = mean(entry.seconds for entry in Store(tmp_path / "calm" / "store").entries())
    world = World(file, tmp_path / "storm", nodes)
    try:
        done = storm(world, kills, stage, random.Random(1))
    finally:
        world.stop()
    check_equal(tmp_path / "storm", tmp_path / "calm")
    check_counted_once(tmp_path / "storm")
    assert sum(done.values()) == len(kills)
    text = (tmp_path / "storm" / "tiny" / "pretune.log").read_text()
    return json.dumps(
        {
            "kills": done,
            "driver starts": world.starts,
            "stage runs": text.count(" finished "),
            "seconds calm": calm,
            "of a stage": stage,
        }
        | {"retried": text.count(" retried "), "seconds": time.monotonic() - began - calm}
    )


@pytest.mark.ray
def test_six_kills_of_drivers_and_actors_change_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    kills = schedule(0, {"driver": 2, "actor": 4})
    print(storm_and_compare(searched(tiny, 2, 3, 2), tmp_path, kills, nodes=0))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
def test_fifty_kills_of_drivers_actors_nodes_and_machines_change_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a cluster of this test alone, gone with it
    kills = schedule(5, {"driver": 8, "actor": 30, "node": 10, "machine": 2})
    print(storm_and_compare(searched(tiny, 4, 15, 3), tmp_path, kills, nodes=2))
