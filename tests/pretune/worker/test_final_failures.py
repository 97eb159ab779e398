"""Which failures of a worker group are final: Ray Train restarts workers whatever they failed of."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.train.torch
import torch
import torch.distributed as dist

from pretune.outcomes import Failure
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.trainables.data.errors import DataError, RequirementsError, Unopened
from pretune.worker import ray_train, stage_memory
from pretune.worker.failures import StageFailedError, failed
from pretune.worker.ray_train import final_failure, note_if_final, run_as_worker
from pretune.worker.task import Folders, StageTask


def task(tiny: dict[str, Any], store: Path) -> StageTask:
    _, stages = make_plan(from_dict(tiny), lambda data: "digest")
    return StageTask(stages[0], "a stage", 0.0, Folders(str(store), str(store.parent / "cache"), None))


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ValueError("a shape that fits nothing"), Failure.DEFECT),
        (KeyError("no such class"), Failure.DEFECT),
        (DataError("two files are damaged", ["a.png: cut off"]), Failure.BAD_DATA),
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.OUT_OF_MEMORY),
        (DataError("one file", [Unopened("a.png: cannot be opened (Input/output error)")]), None),
        (OSError(errno.EIO, "Input/output error"), None),
        (RuntimeError("connection reset by peer"), None),
        (json.JSONDecodeError("half a file", "", 0), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_ray_train_restarts_no_worker_for_a_failure_that_would_repeat(
    error: Exception, final: Failure | None, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Ray Train restarts workers whatever they failed of: one that would repeat is noted, and the next start ends."""
    asked = task(tiny, tmp_path / "store")
    note_if_final(error, asked, tmp_path)
    found = final_failure(tmp_path)
    if final is None:
        assert found == []
        return
    cause, kind = found
    assert Failure(kind) is final
    outcome = failed(StageFailedError(cause, Failure(kind)), None, tmp_path)
    assert (outcome.state, outcome.failure, outcome.policy and outcome.policy.retried) == ("crashed", final, False)
    assert str(error.args[0]).split(" ")[0] in outcome.cause


UNOPENED = Unopened("a.png: cannot be opened (Input/output error)")


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (DataError("s", ["a.png: cut off"]), True),
        (DataError("s", ["the words cannot be opened stand in a name.png: cut off"]), True),
        (DataError("s", [UNOPENED]), False),
        (DataError("s", ["b.png: cut off", UNOPENED]), False),
        (DataError("no folder there"), False),
        (RequirementsError("classification needs classes"), True),
    ],
)
def test_whether_an_error_of_data_stays_goes_by_its_kind_also_after_it_crossed_a_process(
    error: DataError, stays: bool
) -> None:
    assert (error.stays, pickle.loads(pickle.dumps(error)).stays) == (stays, stays)


class Group:
    """The only worker of a group on a GPU that Ray Train starts again and again, and how each start is to end."""

    def __init__(self, asked: StageTask, attempt: Path) -> None:
        self.config = {"task": asked.to_json(), "attempt": str(attempt)}
        self.ends: list[Exception | None] = []
        self.resident: list[bool] = []

    def run_worker(self, *given: Any) -> dict[str, float]:
        self.resident.append(given[-1])
        if end := self.ends.pop(0):
            raise end
        return {"x": 1.0}

    def start(self) -> dict[str, Any]:
        return run_as_worker(self.config)


@pytest.fixture
def group(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    (tmp_path / "attempt").mkdir()
    made = Group(task(tiny, tmp_path / "store"), tmp_path / "attempt")
    gpu = torch.device("cuda")
    monkeypatch.setattr(ray_train, "run_worker", made.run_worker)
    monkeypatch.setattr(ray_train, "device_for", lambda gpus: gpu)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: gpu)
    monkeypatch.setattr(stage_memory, "what_fits", lambda *asked: f"; asked for {asked[1:]}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 2))
    monkeypatch.setattr(ray_train, "hardware", lambda task: {"gpu": "one"})
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield made
    dist.destroy_process_group()


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def test_workers_without_memory_start_once_more_with_their_images_on_the_host(group: Group) -> None:
    """The record says so. A worker that is lost in between changes nothing."""
    group.ends = [FULL, RuntimeError("connection reset by peer"), None]
    for _ in range(2):
        with pytest.raises(RuntimeError):
            group.start()
    answer = group.start()
    assert group.resident == [True, False, False]
    assert answer["metrics"] == {"x": 1.0}
    assert answer["about"]["machine"] == {"gpu": "one", "images_kept_on_host": True}


def test_workers_that_are_out_of_memory_twice_end_with_what_would_fit(group: Group) -> None:
    group.config["task"] = group.config["task"].replace('"gpus":0.0', '"gpus":0.5')
    group.ends = [FULL, FULL]
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            group.start()
    cause, kind = group.start()["failed"]
    assert group.resident == [True, False]
    assert Failure(kind) is Failure.OUT_OF_MEMORY
    assert "lower batch_size (now " in cause
    assert cause.endswith("or set precision: bfloat16; asked for (2, 0.5, 1)")


def test_workers_with_enough_memory_keep_their_images_on_the_gpu(group: Group) -> None:
    group.ends = [ValueError("a shape that fits nothing")]
    with pytest.raises(ValueError, match="fits nothing"):
        group.start()
    assert group.start()["failed"][1] == Failure.DEFECT
    assert group.resident == [True]
