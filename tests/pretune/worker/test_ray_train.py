"""A stage on two workers of Ray Train: the same numbers as on one, also where a worker is killed midway."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from pretune.cluster.tune import start_ray, stop_ray
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Entry, Store
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.files import STATE
from pretune.worker import preemption
from pretune.worker.execute import execute
from pretune.worker.failures import StageFailedError
from pretune.worker.ray_train import FINAL, run_name, run_worker_group
from pretune.worker.task import Folders, StageTask

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray(None, 2)
    yield
    stop_ray()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("pretrain seed 0", "pretrain-seed-0"),
        ("finetune encoder=frozen, size=1/2 seed 1", "finetune-encoder=frozen-size=1-2-seed-1"),
        ("../.. ", "train"),
        ("x" * 300, "x" * 100),
    ],
)
def test_ray_train_names_its_run_by_the_stage(label: str, name: str) -> None:
    assert run_name(label) == name


def task(tiny: dict[str, Any], store: Path, workers: int, kind: str = "pretrain", **resources: Any) -> StageTask:
    """The first stage of its kind."""
    if workers > 1:
        tiny["resources"] = {kind: {"workers": workers} | resources}
    _, stages = make_plan(from_dict(tiny), lambda data: content_digest(data, None))
    first = next(stage for stage in stages if stage.kind == kind)
    return StageTask(first, "a stage", 0.0, Folders(str(store), str(store.parent / "cache"), None))


def ignore(values: dict[str, float]) -> None:
    return None


def finished(one: StageTask) -> Entry:
    outcome = execute(one, ignore)
    assert outcome.state == "finished", outcome.cause
    entry = Store(Path(one.folders.store)).find(one.fingerprint)
    assert entry is not None
    return entry


def weights(one: StageTask) -> dict[str, torch.Tensor]:
    store = Store(Path(one.folders.store))
    entry = store.find(one.fingerprint)
    assert entry is not None
    return load_file(store.file(entry, "model.safetensors"))


def test_two_workers_train_what_one_trains(tiny: dict[str, Any], tmp_path: Path) -> None:
    """In float32: rounding in another order moves weights by about 1e-6 within six steps of plain SGD."""
    tiny["pretrain"] |= {"optimizer": {"name": "sgd", "lr": 0.01}, "method": {"name": "mae", "patch": 4}}
    alone, both = task(tiny, tmp_path / "store", 1), task(tiny, tmp_path / "store", 2)
    assert alone.fingerprint != both.fingerprint
    one, two = finished(alone), finished(both)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-4)
    assert two.files.keys() == one.files.keys()
    assert not [path for path in (tmp_path / "store" / both.fingerprint / two.attempt).iterdir() if path.is_dir()]
    for name, tensor in weights(alone).items():
        assert torch.allclose(weights(both)[name], tensor, rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
def test_a_divergence_on_two_workers_is_the_same_outcome(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["pretrain"]["optimizer"] = {"name": "sgd", "lr": 1e30}
    outcome = execute(task(tiny, tmp_path / "store", 2), ignore)
    assert outcome.state == "diverged"
    assert "pretext_loss is " in outcome.cause


@pytest.mark.slow
def test_what_the_data_do_not_have_is_refused_by_all_workers_and_not_tried_again(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["pretrain"]["method"] = {"name": "classification"}
    outcome = execute(task(tiny, tmp_path / "store", 2), ignore)
    assert (outcome.state, outcome.failure) == ("crashed", "bad_data")
    assert "pretrain.method: classification needs image classes, but data.scenes (scenes) has none" in outcome.cause


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    """It is replaced, both go on from the last state, and the weights are those of the undisturbed run, bit by bit."""
    tiny["pretrain"] |= {"steps": 200}
    calm = dataclasses.replace(task(tiny, tmp_path / "calm", 2), checkpoint_seconds=0.2)
    whole = finished(calm)
    hit = task(tiny, tmp_path / "hit", 2)
    hit = dataclasses.replace(hit, checkpoint_seconds=0.2)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "hit" / hit.fingerprint, killed))
    killer.start()
    entry = finished(hit)
    killer.join()
    assert killed
    assert (whole.about["resumed"], entry.about["resumed"]) == (False, True)
    assert entry.metrics == whole.metrics
    assert dict.fromkeys(weights(calm), True) == {
        name: torch.equal(tensor, weights(hit)[name]) for name, tensor in weights(calm).items()
    }


@pytest.mark.slow
def test_workers_of_a_stopped_study_write_their_state_and_leave_together(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Asked as `pretune stop` does, once there is a state; the same task then goes on from it."""
    tiny["pretrain"] |= {"steps": 3000}
    one = dataclasses.replace(task(tiny, tmp_path / "store", 2), checkpoint_seconds=0.2)

    def ask() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and not list((tmp_path / "store" / one.fingerprint).glob(f"*/{STATE}")):
            time.sleep(0.05)
        preemption.ask_to_stop()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        outcome = execute(one, ignore)
    finally:
        asking.join()
        ray.kill(preemption._message)
        while preemption.is_stopping():
            time.sleep(0.1)
    assert outcome.state == "preempted"
    assert outcome.cause.startswith("state written after step ")
    assert finished(dataclasses.replace(one, checkpoint_seconds=60.0)).about["resumed"]


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """SIGKILL one of the training processes as soon as there is a state to go on from."""
    until = time.monotonic() + 120
    while time.monotonic() < until and not list(folder.glob(f"*/{STATE}")):
        time.sleep(0.05)
    for process in descendants(os.getpid()):
        if "RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_text():
            os.kill(process, signal.SIGKILL)
            killed.append(process)
            return


def descendants(process: int) -> list[int]:
    """The processes that this one started, and those that they did: nobody else's Ray."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
    found = children.get(process, [])
    return found + [grandchild for child in found for grandchild in descendants(child)]


@pytest.mark.slow
def test_workers_that_are_started_again_after_a_defect_end_at_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Workers that are started again after such a failure end at once, with its kind."""
    asked = task(tiny, tmp_path / "store", 2)
    store = Store(tmp_path / "store")
    attempt = store.begin(asked.fingerprint)
    (attempt / FINAL).write_text(json.dumps(["ValueError: it cannot be", "defect"]))
    with pytest.raises(StageFailedError, match="it cannot be"):
        run_worker_group(asked, attempt, ignore)
    assert not (attempt / FINAL).exists()
