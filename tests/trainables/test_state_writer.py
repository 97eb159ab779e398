"""States written beside the training: one at a time, each of its moment; what a write fails of is raised."""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretune.trainables import checkpoints, loop
from pretune.trainables.checkpoints import StateWriter, load_state, on_host, save_state
from pretune.trainables.files import STATE
from pretune.trainables.loop import CheckpointTimer, Length, PreemptedError, Progress, RunContext

CPU = torch.device("cpu")


class Disk:
    """A slow one: each write waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.begun, self.writes = threading.Semaphore(0), threading.Semaphore(0), 0

    def save(self, state: dict[str, Any], folder: Path) -> None:
        self.begun.release()
        self.go.acquire()
        self.writes += 1
        save_state(state, folder)


def ignore(seconds: float) -> None:
    return None


def test_a_state_is_that_of_the_moment_it_was_taken(tmp_path: Path) -> None:
    """The training goes on in place while the write is under way."""
    weights, history, disk = torch.arange(4.0), [{"step": 1.0}], Disk()
    with StateWriter(beside=True) as writer:
        writer.write(disk.save, {"weights": weights, "history": history}, tmp_path, ignore)
        disk.begun.acquire()
        assert writer.busy
        weights.add_(100)
        history[-1]["step"] = 2.0
        history.append({"step": 3.0})
        disk.go.release()
    loaded = load_state(tmp_path / STATE, CPU)
    assert loaded is not None
    assert loaded["weights"].tolist() == [0, 1, 2, 3]
    assert loaded["history"] == [{"step": 1.0}]


def test_one_state_is_written_at_a_time_and_the_next_waits_for_it(tmp_path: Path) -> None:
    disk, order = Disk(), []

    def save(state: dict[str, Any], folder: Path) -> None:
        order.append(("begins", state["step"]))
        disk.save(state, folder)
        order.append(("ends", state["step"]))

    with StateWriter(beside=True) as writer:
        writer.write(save, {"step": 1}, tmp_path, ignore)
        disk.begun.acquire()
        threading.Timer(0.05, disk.go.release).start()
        writer.write(save, {"step": 2}, tmp_path, ignore)
        disk.go.release()
    assert order == [("begins", 1), ("ends", 1), ("begins", 2), ("ends", 2)]
    assert load_state(tmp_path / STATE, CPU) == {"step": 2}


def full(state: dict[str, Any], folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(folder / STATE))


def next_state(writer: StateWriter, folder: Path) -> None:
    writer.write(save_state, {}, folder, ignore)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("moment", [lambda writer, _: writer.wait(), next_state])
def test_an_error_of_the_write_is_raised_once_by_whoever_trains(
    beside: bool, moment: Callable[[StateWriter, Path], None], tmp_path: Path
) -> None:
    """With its class and its words."""
    with StateWriter(beside) as writer:
        with pytest.raises(OSError, match="No space left on device") as caught:  # noqa: PT012
            writer.write(full, {}, tmp_path, ignore)
            moment(writer, tmp_path)
        assert (type(caught.value), caught.value.errno) == (OSError, errno.ENOSPC)
        assert caught.value.filename == str(tmp_path / STATE)
        writer.wait()


def test_a_training_that_ends_waits_for_its_state_and_is_told_of_a_failed_one(tmp_path: Path) -> None:

    def train(save: Callable[[dict[str, Any], Path], None], *ends: Exception) -> None:
        with StateWriter(beside=True) as writer:
            writer.write(save, {"step": 7}, tmp_path, ignore)
            for end in ends:
                raise end

    with pytest.raises(OSError, match="No space left"):
        train(full)
    with pytest.raises(KeyError, match="what ended it"):
        train(full, KeyError("what ended it"))
    disk = Disk()
    threading.Timer(0.05, disk.go.release).start()
    with pytest.raises(KeyError, match="what ended it"):
        train(disk.save, KeyError("what ended it"))
    assert load_state(tmp_path / STATE, CPU) == {"step": 7}


def test_a_copy_keeps_what_torch_notes_on_a_module_and_shares_nothing() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters(), betas=(0.5, 0.9))
    module(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    state = {
        "method": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": None,
        "losses": [torch.ones(())],
    }
    copied = on_host(state)
    assert isinstance(copied["method"], OrderedDict)
    assert copied["method"]._metadata == module.state_dict()._metadata
    assert copied["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    before = [tensor.clone() for tensor in copied["method"].values()]
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(copied["method"].values(), before, strict=True))
    slots = optimizer.state_dict()["state"][0]["exp_avg"], copied["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(*slots)
    assert slots[0].data_ptr() != slots[1].data_ptr()
    assert (copied["best"], copied["losses"][0].item()) == (None, 1.0)


@pytest.mark.parametrize(("seconds", "due"), [(60.0, False), (0.0, True)])
def test_no_state_is_due_while_one_is_written_unless_each_step_has_one(
    seconds: float, due: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write of 80 s; with it the next comes 1,600 s after this one began."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    disk = Disk()
    with StateWriter(beside=True) as writer:
        timer = CheckpointTimer(RunContext(tmp_path, CPU, checkpoint_seconds=seconds, writer=writer))
        now[0] += 60.0
        assert timer.due()
        writer.write(disk.save, {}, tmp_path, timer.took)
        now[0] += 80.0
        assert timer.due() is due
        disk.go.release()
        writer.wait()
        now[0] += 1.0
        assert timer.due() is due
        now[0] += 1600.0
        assert timer.due()


class Steps:
    count = 0

    def state_dict(self) -> int:
        return self.count

    def load_state_dict(self, state: int, /) -> None:
        self.count = state


def test_a_preempted_training_leaves_when_its_state_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, part = Disk(), Steps()
    monkeypatch.setattr(checkpoints, "save_state", disk.save)
    with StateWriter(beside=True) as writer:
        context = RunContext(tmp_path, CPU, writer=writer, preempted=lambda: part.count == 2)
        progress = Progress(context, Length(5, 5, 5), "loss", {"part": part})
        for step in range(2):
            part.count += 1
            progress.meter.add(torch.tensor(0.0))
            if step == 1:
                threading.Timer(0.05, disk.go.release).start()
                with pytest.raises(PreemptedError, match=r"^state written after step 2$"):
                    progress.save_if_due(step)
                assert disk.writes == 1
                assert not writer.busy
            else:
                progress.save_if_due(step)
    loaded = load_state(tmp_path / STATE, CPU)
    assert loaded is not None
    assert (loaded["step"], loaded["part"]) == (2, 2)


def test_a_failed_write_ends_the_training_at_its_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no state is due at it."""
    monkeypatch.setattr(checkpoints, "save_state", full)
    due = iter([True, False])
    monkeypatch.setattr(CheckpointTimer, "due", lambda timer: next(due))
    with StateWriter(beside=True) as writer:
        progress = Progress(RunContext(tmp_path, CPU, writer=writer), Length(5, 5, 5), "loss", {})
        progress.save_if_due(0)
        while writer.busy:
            pass
        with pytest.raises(OSError, match="No space left on device"):
            progress.save_if_due(1)
