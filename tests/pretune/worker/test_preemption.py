"""Stages that must leave write their state first: a terminated process, a drained node, a stopped study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from pretune.dispatch.dispatcher import Dispatcher, RunningTrial, outcome_of
from pretune.dispatch.resources import ClusterNode, ClusterResources
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.store.lookup import find_in
from pretune.store.store import Store
from pretune.trainables.data.resident.digest import content_digest
from pretune.worker import preemption
from pretune.worker.execute import execute
from pretune.worker.ray_train import news_of
from pretune.worker.task import NEWS, Folders, StageTask


@pytest.fixture(autouse=True)
def nobody_was_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_terminated", threading.Event())
    monkeypatch.setattr(preemption, "_busy", threading.Event())


def stage_of(tiny: dict[str, Any], kind: str) -> Any:
    _, stages = make_plan(from_dict(tiny), lambda data: content_digest(data, None))
    return next(stage for stage in stages if stage.kind == kind)


@pytest.mark.parametrize("after", [1, 4, 6])
def test_a_preempted_stage_goes_on_where_it_left_and_ends_in_the_same_bits(
    tiny: dict[str, Any], tmp_path: Path, after: int
) -> None:
    """It is asked after each of 6 steps, and told to leave after the step `after`; then it runs undisturbed."""
    torch.set_num_threads(1)
    ended = {}
    for name in ("preempted", "undisturbed"):
        store = Store(tmp_path / name)
        task = StageTask(stage_of(tiny, "pretrain"), "", 0.0, Folders(str(store.root), str(tmp_path / "cache"), None))
        if name == "preempted":
            outcome = execute(task, lambda values: None, map(after.__le__, range(1, 100)).__next__)
            assert outcome == Outcome("preempted", {}, f"state written after step {after}")
            assert store.find(task.fingerprint) is None
            assert store.resumable(task.fingerprint) is not None
        ended[name] = execute(task, lambda values: None)._replace(costs={})  # wall times are its own
        entry = store.find(task.fingerprint)
        assert entry is not None
        ended[name + " weights"] = entry.files["model.safetensors"]["sha256"]
    assert ended["preempted"] == ended["undisturbed"]
    assert ended["preempted weights"] == ended["undisturbed weights"]


def test_a_preempted_stage_is_dispatched_again_and_costs_no_retry(tiny: dict[str, Any], tmp_path: Path) -> None:
    stage, told = stage_of(tiny, "pretrain"), []
    scheduler = Scheduler(lambda key: None, 0, lambda kind, stage, text: told.append((kind, text)))
    scheduler.start([program_of(stage)])
    for _ in range(3):
        assert scheduler.take() == stage
        scheduler.complete(stage, outcome_of(stage, {"state": "preempted", "cause": "asked to leave"}, scheduler))
    assert told == [("started", ""), ("preempted", "asked to leave")] * 3
    assert scheduler.take() == stage
    scheduler.complete(stage, Outcome("crashed", {}, "a fault"))  # no retry is left, and none was used up
    assert told[-1] == ("crashed", "a fault")
    assert scheduler.finished


def program_of(stage: Any) -> Any:
    yield [stage]
    return []


def test_a_stopped_dispatcher_dispatches_no_more_and_is_over_when_nothing_is_under_way(tiny: dict[str, Any]) -> None:
    stage = stage_of(tiny, "pretrain")
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start([program_of(stage)])
    folders = Folders("store", "cache", None)
    dispatcher = Dispatcher(
        scheduler,
        ClusterResources([ClusterNode({"CPU": 4.0})]),
        lambda stage, gpus: StageTask(stage, "", gpus, folders),
        {},
    )
    assert dispatcher.take("a") is not None
    dispatcher.stop()
    assert not dispatcher.over
    dispatcher.end("a", {"state": "preempted", "cause": ""})
    assert dispatcher.take("b") is None
    assert dispatcher.over
    assert not scheduler.finished


def test_sigterm_is_held_back_while_a_stage_runs_and_obeyed_otherwise() -> None:
    obeyed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: obeyed.append(number))
    try:
        preemption.listen()
        with preemption.at_work() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            assert asked()
            assert obeyed == []
            signal.raise_signal(signal.SIGTERM)  # a second one is meant
        assert obeyed == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert len(obeyed) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_first_signal_to_a_driver_stops_and_the_second_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    said: list[str] = []
    monkeypatch.setattr(preemption, "end_at_once", lambda: said.append("at once"))
    monkeypatch.setattr(preemption, "without_terminal", lambda: said.append("no terminal"))
    before = {number: signal.signal(number, signal.SIG_DFL) for number in preemption.STOP_SIGNALS}  # some shells ignore
    request.addfinalizer(lambda: [signal.signal(number, handler) for number, handler in before.items()])
    handlers = [signal.getsignal(number) for number in preemption.STOP_SIGNALS]
    with preemption.stopped_by_signals(lambda: said.append("stop")):
        signal.raise_signal(signal.SIGTERM)
        assert said == ["stop"]
        signal.raise_signal(signal.SIGINT)
        assert said == ["stop", "at once", "stop"]
        signal.raise_signal(signal.SIGHUP)
    assert said == ["stop", "at once", "stop", "no terminal", "at once", "stop"]
    assert [signal.getsignal(number) for number in preemption.STOP_SIGNALS] == handlers


# -------------------------------------------------------------------------------------------------------- real Ray


def until(what: str, ready: Callable[[], Any], driver: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 240
    while not (found := ready()):
        assert driver.poll() is None, f"the driver ended before {what}: {driver.stdout.read() if driver.stdout else ''}"
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)
    return found


def trials_of(driver: int) -> list[int]:
    """Processes below the driver that run a trial, by the name that Ray gives them."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue

    def below(pid: int) -> bool:
        return pid == driver or (pid in parents and below(parents[pid]))

    return [pid for pid, name in names.items() if name.startswith("ray::") and ".train" in name and below(pid)]


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="finds the stage's process in /proc")
def test_a_terminated_stage_and_a_stopped_study_lose_nothing_and_change_nothing(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """SIGTERM to the process of a pretraining, then `pretune stop` of the study, then the same command again."""
    tiny["pretrain"] |= {"steps": 1500, "batch_size": 16}
    tiny["seeds"] = {"search": 1, "report": 1}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    pretune = [sys.executable, "-m", "pretune"]
    out, log = tmp_path / "a" / "tiny", tmp_path / "a" / "tiny" / "pretune.log"

    def events(text: str) -> int:
        return log.read_text().count(text) if log.exists() else 0

    with subprocess.Popen(
        [*pretune, "run", str(file), "--root", str(tmp_path / "a")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[3],
    ) as driver:  # fmt: skip
        pid = until("trial", lambda: trials_of(driver.pid), driver)[0]
        until("attempt", lambda: list((tmp_path / "a" / "store").glob("*/*/")), driver)
        time.sleep(1)  # a few steps
        os.kill(pid, signal.SIGTERM)
        until("retry", lambda: events("preempted pretrain simclr seed 0: state written after step"), driver)
        until("second start", lambda: events("started   pretrain simclr seed 0") == 2, driver)
        until("second attempt", lambda: len(list((tmp_path / "a" / "store").glob("*/*/"))) == 2, driver)
        stopped = subprocess.run([*pretune, "stop", str(out)], capture_output=True, text=True, timeout=120)
        assert stopped.returncode == 0, stopped.stderr
        assert driver.wait(60) == 130
        assert events("preempted pretrain simclr seed 0: ") == 2
        assert not list(Store(tmp_path / "a" / "store").entries())

    for root in ("a", "b"):
        again = subprocess.run(
            [*pretune, "run", str(file), "--root", str(tmp_path / root)], capture_output=True, text=True, timeout=300
        )
        assert again.returncode == 0, again.stdout + again.stderr
    tables = [pd.read_parquet(tmp_path / root / "tiny" / "results.parquet") for root in ("a", "b")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_what_a_worker_group_lost_is_said_and_counts_as_a_sign_of_life_and_not_as_progress(
    tiny: dict[str, Any],
) -> None:
    stage, said = stage_of(tiny, "pretrain"), list[str]()
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start([program_of(stage)])
    folders = Folders("store", "cache", None)
    nodes, live = ClusterResources([ClusterNode({"CPU": 4.0})]), dict[str, RunningTrial]()
    task_for = lambda stage, gpus: StageTask(stage, "pretrain seed 0", gpus, folders)  # noqa: E731
    dispatcher = Dispatcher(scheduler, nodes, task_for, live, say=said.append)
    dispatcher.take("a")
    dispatcher.progress("a", {"step": 3})
    live["a"].heard = 0.0
    dispatcher.progress("a", {NEWS: news_of({1: RuntimeError("killed"), 0: ValueError("a fault")})})
    assert live["a"].latest == {"step": 3}
    assert live["a"].heard > 0
    assert said == [
        "pretrain seed 0: workers 0, 1 were lost (ValueError: a fault); Ray Train starts all workers again from the "
        "last saved state, 3 times at most"
    ]
    lost = RuntimeError("A worker health check failed.")
    lost.health_check_failure = OSError("The actor died.\nclass: RayTrainWorker")  # type: ignore[attr-defined]
    assert news_of({1: lost}).startswith("worker 1 was lost (OSError: The actor died.); ")


def test_the_store_shows_what_ended_whatever_the_trial_said_last(tiny: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    stage = stage_of(tiny, "pretrain")
    store = Store(tmp_path / "store")
    execute(StageTask(stage, "", 0.0, Folders(str(store.root), str(tmp_path / "cache"), None)), lambda values: None)
    scheduler = Scheduler(find_in(store), 0)
    assert outcome_of(stage, {"state": "preempted"}, scheduler).state == "finished"


@pytest.mark.parametrize(
    ("said", "looked_again", "expected"),
    [
        ("finished", True, "finished"),
        ("diverged", True, "finished"),
        ("crashed", False, "crashed"),
        (None, False, "crashed"),
    ],
)
def test_only_what_a_trial_says_it_has_ended_well_is_looked_for_again(
    said: str | None, looked_again: bool, expected: str, tiny: dict[str, Any]
) -> None:
    """The store shows it at the second, patient look alone."""
    looks: list[str] = []

    def announced(key: str) -> Outcome:
        looks.append(key)
        return Outcome("finished", {}, "")

    stage = stage_of(tiny, "pretrain")
    scheduler = Scheduler(lambda key: None, 0, find_announced=announced)
    assert outcome_of(stage, {"state": said, "cause": "x"}, scheduler).state == expected
    assert looks == ([stage.fingerprint] if looked_again else [])
