"""What the loops share: orders, lengths, metering, feeds and optimisers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import loop, upload
from pretune.trainables.constants import RESUMED
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.distributed import World
from pretune.trainables.files import CONTINUE, HISTORY, NOTES, STATE, WEIGHTS
from pretune.trainables.loop import (
    CheckpointTimer,
    CollapsedError,
    DataFeed,
    DivergedError,
    Length,
    LossMeter,
    PreemptedError,
    Progress,
    RunContext,
    build_optimizer,
    epoch_order,
    set_lr,
    training_length,
)

CPU = torch.device("cpu")


def test_an_order_is_a_permutation_and_a_function_of_seed_and_epoch() -> None:
    first = epoch_order(50, 7, 3)
    assert sorted(first.tolist()) == list(range(50))
    assert np.array_equal(first, epoch_order(50, 7, 3))
    assert not np.array_equal(first, epoch_order(50, 7, 4))
    assert not np.array_equal(first, epoch_order(50, 8, 3))


@pytest.mark.parametrize(
    ("length", "until", "expected"),
    [
        ({"epochs": 3}, None, (4, 12, 12)),
        ({"steps": 7}, None, (4, 7, 7)),
        ({"epochs": 3}, 2, (4, 12, 8)),
        ({"steps": 7}, 1, (4, 7, 4)),
        ({"steps": 7}, 2, (4, 7, 7)),
    ],
)
def test_length_is_epochs_times_steps_per_epoch_or_the_steps_and_a_run_may_end_sooner(
    length: dict[str, int], until: int | None, expected: tuple[int, int, int]
) -> None:
    settings = schema.Finetune.model_validate({"data": "d"} | length)
    assert training_length(settings, 4, until) == expected


def test_epochs_start_and_end_where_they_should_and_a_run_ends_its_last() -> None:
    """Three steps to an epoch, seven steps."""
    length = Length(3, 7, 7)
    assert [step for step in range(7) if length.starts_epoch(step)] == [0, 3, 6]
    assert [step for step in range(7) if length.ends_epoch(step)] == [2, 5, 6]


def test_a_loss_meter_means_since_the_last_call() -> None:
    meter = LossMeter("loss")
    for value in (1.0, 2.0, 6.0):
        meter.add(torch.tensor(value))
    assert meter.mean() == 3.0
    meter.add(torch.tensor(5.0))
    assert meter.mean() == 5.0
    assert meter.first_step == 4


def test_a_loss_meter_keeps_no_graph() -> None:
    meter = LossMeter("loss")
    meter.add(torch.ones((), requires_grad=True) * 2)
    assert not meter.losses[0].requires_grad


def test_a_window_of_all_images_is_no_window() -> None:
    assert np.array_equal(epoch_order(50, 7, 3, 50), epoch_order(50, 7, 3))
    assert not np.array_equal(epoch_order(50, 7, 3, 49), epoch_order(50, 7, 3))


def test_a_collapse_names_its_signs_and_its_step_and_has_no_value() -> None:
    error = CollapsedError(("no spread", "no rank"), 4)
    assert str(error) == "collapsed, stopped after step 4: no spread; no rank"
    assert (error.metric, error.step) == ("collapse", 4)
    assert math.isnan(error.value)


def test_images_are_shuffled_within_their_window_beyond_the_runs_that_were_drawn() -> None:
    """64 images in windows of 32: runs of two neighbours, of which chance leaves about one in 32 together."""
    order = epoch_order(64, 7, 3, 32).reshape(-1, 2)
    assert (order[:, 0] + 1 == order[:, 1]).sum() < 8
    windows = order.reshape(2, 32)
    assert all(len(np.unique(window // 2)) == 16 for window in windows)  # whole runs, each in one window


def test_whole_epochs_are_announced_to_a_stream_until_they_hold_so_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of two batches of four: 16 images are two of them, and the training is five."""
    announced: list[list[int]] = []

    class Streamed:
        streamed, shuffle_window = True, None

        def coming(self, orders: list[Any], batch: int) -> None:
            announced.append([len(order) for order in orders])

    monkeypatch.setattr(loop, "ANNOUNCED", 16)
    epochs = loop.Epochs(np.arange(9), 4, 7, Length(2, 10, 10), cast(ImageSet, Streamed()), loop.ALONE)
    for step in range(10):
        epochs.batch(step)
    assert announced == [[8, 8], [8, 8], [8]]


@pytest.mark.parametrize("other", [True, False])
def test_a_worker_stops_where_another_is_preempted(other: bool, tmp_path: Path) -> None:
    """The sum over two workers of (preempted, steps to the next exchange, state due); this one is not preempted."""

    class Two(World):
        def sum(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tensor([float(other), 0.0, 0.0])

    timer = CheckpointTimer(RunContext(tmp_path, CPU, checkpoint_seconds=3600.0, world=Two(0, 2)))
    assert timer.due() == other
    if other:
        with pytest.raises(PreemptedError, match=r"after step 1$"):
            timer.stop_if_preempted(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named(bad: float) -> None:
    meter = LossMeter("pretext_loss", 10, [torch.tensor(1.0)])
    for value in (2.0, bad, 3.0, math.nan):
        meter.add(torch.tensor(value))
    with pytest.raises(DivergedError, match=r"^pretext_loss is -?(nan|inf) at step 12$") as caught:
        meter.mean()
    assert (caught.value.metric, caught.value.step) == ("pretext_loss", 12)


def test_a_timer_of_no_seconds_is_always_due_and_one_of_an_hour_not_yet(tmp_path: Path) -> None:
    always, later = (CheckpointTimer(RunContext(tmp_path, CPU, checkpoint_seconds=s)) for s in (0.0, 3600.0))
    assert [always.due(), always.due(), later.due()] == [True, True, False]


def test_a_state_is_due_again_when_the_interval_has_passed_since_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 10 s, asked every 5 s."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    timer, found = CheckpointTimer(RunContext(tmp_path, CPU, checkpoint_seconds=10.0)), []
    for _ in range(5):
        now[0] += 5.0
        found.append(timer.due())
    assert found == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("asked", "took", "pause"), [(60.0, 0.5, 60.0), (60.0, 9.0, 180.0), (0.2, 1.0, 20.0), (0.0, 9.0, 0.0)]
)
def test_a_state_that_takes_long_to_write_is_written_less_often(
    asked: float, took: float, pause: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing takes a twentieth of the time at most; 0 asks for a state after every step."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    timer = CheckpointTimer(RunContext(tmp_path, CPU, checkpoint_seconds=asked))
    timer.took(took)
    now[0] += max(pause - 0.01, 0.0)
    assert timer.due() is (asked == 0)
    now[0] += 0.02
    assert timer.due()


def test_a_preempted_loop_writes_its_state_first_however_long_its_timer(tmp_path: Path) -> None:
    preempted: list[bool] = []
    timer = CheckpointTimer(RunContext(tmp_path, CPU, checkpoint_seconds=3600.0, preempted=lambda: bool(preempted)))
    assert not timer.due()
    timer.stop_if_preempted(1)
    preempted.append(True)
    assert timer.due()
    with pytest.raises(PreemptedError, match=r"^state written after step 2$"):
        timer.stop_if_preempted(2)


# --------------------------------------------------------------------------------------------------------- progress


class Counter:
    """A part of a training that counts its steps."""

    count = 0

    def state_dict(self) -> int:
        return self.count

    def load_state_dict(self, state: int, /) -> None:
        self.count = state


def counted(length: Length, counter: Counter, context: RunContext) -> Progress:
    """A training whose loss is the number of the step; its progress at the end."""
    progress = Progress(context, length, "loss", {"counter": counter})
    progress.resume()
    for step in range(progress.first, length.end):
        counter.count += 1
        progress.meter.add(torch.tensor(float(step)))
        if length.ends_epoch(step):
            progress.record(step, {"train/loss": progress.meter.mean(), "seconds": 0.0})
        progress.save_if_due(step)
    return progress


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_a_preempted_training_goes_on_where_it_stopped(tmp_path: Path, stopped: int) -> None:
    """Losses 0, 1, 2 and 3, 4: means 1 and 3.5, also of an epoch that was cut in two."""
    length, steps = Length(3, 5, 5), itertools.count(1)
    context = RunContext(tmp_path, CPU, preempted=lambda: next(steps) == stopped)
    with pytest.raises(PreemptedError, match=f"after step {stopped}$"):
        counted(length, Counter(), context)
    reports: list[dict[str, float]] = []
    resumed = RunContext(tmp_path, CPU, resume=tmp_path / STATE, report=reports.append)
    counter = Counter()
    progress = counted(length, counter, resumed)
    assert counter.count == 5
    assert [(row["step"], row["epoch"], row["train/loss"]) for row in progress.history] == [(3, 1, 1), (5, 5 / 3, 3.5)]
    assert reports[0] == {"step": stopped, "total": 5, RESUMED: 1.0}
    assert [(row["step"], row["total"]) for row in reports[1:]] == [(3, 5), (5, 5)][1 if stopped > 2 else 0 :]
    assert progress.metrics() == {"train/loss": 3.5}


def test_the_state_at_the_end_of_a_run_is_kept_where_a_longer_training_may_follow(tmp_path: Path) -> None:
    """Two epochs of three, then the third."""
    counted(Length(3, 9, 6), Counter(), RunContext(tmp_path, CPU, keep_state=True))
    assert [file.name for file in tmp_path.iterdir()] == [CONTINUE]
    counter = Counter()
    progress = counted(Length(3, 9, 9), counter, RunContext(tmp_path, CPU, resume=tmp_path / CONTINUE))
    assert (progress.first, counter.count, len(progress.history)) == (6, 9, 3)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_worker_alone_writes_outputs(tmp_path: Path, rank: int) -> None:
    progress = Progress(RunContext(tmp_path, CPU, world=World(rank, 2)), Length(1, 1, 1), "loss", {})
    progress.finish(nn.Linear(1, 1), {"steps": 1})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == (sorted([HISTORY, WEIGHTS, NOTES]) if rank == 0 else [])
    if rank == 0:
        assert json.loads((tmp_path / NOTES).read_text()) == {"steps": 1, "workers": 2}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_a_divergence_at_the_last_step_and_are_not_written(
    tmp_path: Path, value: float
) -> None:
    """A buffer counts too: the running statistics of a batch norm."""
    progress, model = Progress(RunContext(tmp_path, CPU), Length(1, 3, 3), "loss", {}), nn.BatchNorm1d(2)
    progress.record(2, {"train/loss": 0.5})
    assert isinstance(model.running_var, torch.Tensor)
    model.running_var[1] = value
    with pytest.raises(DivergedError) as caught:
        progress.finish(model, {})
    assert (caught.value.metric, caught.value.step) == ("weights", 2)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- feeds and optimisers


def test_a_feed_hands_out_the_rows_asked_for_in_their_type() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    batch = DataFeed(array, CPU)(np.array([4, 1]))
    assert batch.dtype == torch.uint8
    assert batch.tolist() == [[[16, 17], [18, 19]], [[4, 5], [6, 7]]]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Shapes of what is pinned and of what goes to a GPU of 100 free bytes, where there is none: all stays here."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def noting(word: str) -> Any:
        return lambda tensor, *_, **__: found.append((word, tuple(tensor.shape))) or tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", noting("pinned"))
    monkeypatch.setattr(torch.Tensor, "to", noting("moved"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(loop, "upload_whole", lambda array, _: noting("whole")(torch.from_numpy(array)))
    return found


@pytest.mark.parametrize(("rows", "fits"), [(24, True), (25, False)])
def test_an_array_below_half_of_a_gpus_free_memory_goes_there_once_else_its_batches_do(
    rows: int, fits: bool, moved: list[tuple[str, tuple[int, ...]]]
) -> None:
    """Rows of two bytes: 24 are 48 of 100 bytes. What goes there later is pinned, or the copy would wait."""
    array = np.arange(2 * rows, dtype=np.uint8).reshape(rows, 2)
    feed = DataFeed(array, torch.device("cuda"))
    assert moved == []  # an array that no batch needs takes no memory
    for first in (True, False):
        assert feed(np.array([4, 1])).tolist() == [[8, 9], [2, 3]]
        of_batch = [("pinned", (2,)), ("moved", (2,))] if fits else [("pinned", (2, 2)), ("moved", (2, 2))]
        assert moved == [("whole", (rows, 2))] * (fits and first) + of_batch
        moved.clear()


@pytest.mark.parametrize("part", [1, 60, 64, 100, 10**6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.int64])
def test_a_whole_array_goes_up_in_parts_from_one_buffer(
    part: int, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a mapped file of seven rows that may only be read."""
    rows = np.arange(7 * 6).reshape(7, 2, 3).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    buffers: list[tuple[int, ...]] = []
    monkeypatch.setattr(upload, "PART", part)
    monkeypatch.setattr(upload, "page_locked", lambda x, device: buffers.append(tuple(x.shape)) or x)
    whole = upload.upload_whole(np.load(tmp_path / "rows.npy", mmap_mode="r"), CPU)
    assert np.array_equal(whole.numpy(), rows)
    assert whole.numpy().dtype == dtype
    ((count, *_),) = buffers
    assert count == max(1, min(7, part // rows[:1].nbytes))


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        (schema.SGD(name="sgd", lr=0.5, momentum=0.8, weight_decay=0.1, nesterov=True), torch.optim.SGD,
         {"lr": 0.5, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
        (schema.Adam(lr=0.01, betas=(0.8, 0.9)), torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9)}),
        (schema.AdamW(name="adamw", weight_decay=0.2), torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.2}),
    ],
)  # fmt: skip
def test_an_optimizer_is_what_the_settings_say(
    settings: schema.Optimizer, kind: type, expected: dict[str, object]
) -> None:
    made = build_optimizer(settings, nn.Linear(2, 2).parameters())
    assert type(made).__mro__[1] is kind  # torch's, with a step that does not load its compiler
    assert expected.items() <= made.param_groups[0].items()


def test_an_optimizer_has_all_that_it_is_given_and_its_rate_can_be_set() -> None:
    """What is frozen now may thaw later, so nobody but the caller leaves a parameter out."""
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    optimizer = build_optimizer(schema.Adam(), layer.parameters())
    assert optimizer.param_groups[0]["params"] == [layer.weight, layer.bias]
    set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("settings", "slot"),
    [
        (schema.SGD(name="sgd", lr=0.5), "momentum_buffer"),
        (schema.SGD(name="sgd", lr=0.5, nesterov=True, decay="weights"), "momentum_buffer"),
        (schema.LARS(name="lars"), "velocity"),
        (schema.Adam(), "exp_avg"),
        (schema.AdamW(name="adamw", decay="weights"), "exp_avg"),
    ],
)
def test_a_parameter_may_begin_to_move_later_than_others(settings: schema.Optimizer, slot: str) -> None:
    """Its first step is that of one which moves for the first time beside it."""
    late, early = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = build_optimizer(settings, [late, early])
    early.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(late, torch.ones(2, 2))
    moved = 1 - early.detach()
    late.grad = torch.ones(2, 2)
    optimizer.step()
    assert moved.abs().min() > 0
    torch.testing.assert_close(1 - late.detach(), moved, rtol=1e-6, atol=0)
    assert optimizer.state[late][slot].shape == (2, 2)
