"""What the loops share: orders, lengths, tracking, feeds and optimisers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import loop
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.distributed import World
from pretune.trainables.loop import (
    CheckpointTimer,
    CollapsedError,
    DataFeed,
    DivergedError,
    LossMeter,
    PreemptedError,
    RunContext,
    build_optimizer,
    epoch_order,
    last_step,
    set_lr,
    total_steps,
)


def test_an_order_is_a_permutation_and_a_function_of_seed_and_epoch() -> None:
    first = epoch_order(50, 7, 3)
    assert sorted(first.tolist()) == list(range(50))
    assert np.array_equal(first, epoch_order(50, 7, 3))
    assert not np.array_equal(first, epoch_order(50, 7, 4))
    assert not np.array_equal(first, epoch_order(50, 8, 3))


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(3, None, 12), (None, 7, 7)])
def test_length_is_epochs_times_steps_per_epoch_or_the_steps(
    epochs: int | None, steps: int | None, expected: int
) -> None:
    assert total_steps(epochs, steps, 4) == expected


def test_a_track_means_since_the_last_call() -> None:
    track = LossMeter("loss", 0, [])
    for value in (1.0, 2.0, 6.0):
        track.add(torch.tensor(value))
    assert track.mean() == 3.0
    track.add(torch.tensor(5.0))
    assert track.mean() == 5.0
    assert track.first_step == 4


def test_a_track_keeps_no_graph() -> None:
    track = LossMeter("loss", 0, [])
    track.add(torch.ones((), requires_grad=True) * 2)
    assert not track.losses[0].requires_grad


@pytest.mark.parametrize(("until", "expected"), [(None, 7), (1, 3), (2, 6), (3, 7)])
def test_a_run_ends_with_its_training_or_after_so_many_epochs(until: int | None, expected: int) -> None:
    assert last_step(7, until, 3) == expected


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


def test_a_stream_is_told_of_whole_epochs_until_they_hold_so_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of two batches of four: 16 images are two of them, and the training is five."""
    told: list[list[int]] = []

    class Streamed:
        streamed, shuffle_window = True, None

        def coming(self, orders: list[Any], batch: int) -> None:
            told.append([len(order) for order in orders])

    monkeypatch.setattr(loop, "ANNOUNCED", 16)
    epochs = loop.Epochs(np.arange(9), 4, 7, 10, 2, cast(ImageSet, Streamed()), loop.ALONE)
    for step in range(10):
        epochs.batch(step)
    assert told == [[8, 8], [8, 8], [8]]


@pytest.mark.parametrize("other", [True, False])
def test_a_worker_leaves_where_another_was_asked_to(other: bool, tmp_path: Path) -> None:
    """The sum over two workers of (asked, steps to the next exchange); this one was not asked."""

    class Two(World):
        def sum(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tensor([float(other), 0.0])

    clock = CheckpointTimer(RunContext(tmp_path, torch.device("cpu"), checkpoint_seconds=3600.0, world=Two(0, 2)))
    assert clock.due() == other
    if other:
        with pytest.raises(PreemptedError, match=r"after step 1$"):
            clock.leave_if_asked(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named(bad: float) -> None:
    track = LossMeter("pretext_loss", 10, [torch.tensor(1.0)])
    for value in (2.0, bad, 3.0, math.nan):
        track.add(torch.tensor(value))
    with pytest.raises(DivergedError, match=r"^pretext_loss is -?(nan|inf) at step 12$") as caught:
        track.mean()
    assert (caught.value.metric, caught.value.step) == ("pretext_loss", 12)


def test_a_clock_without_patience_is_always_due_and_a_patient_one_not_yet(tmp_path: Path) -> None:
    eager, patient = (
        CheckpointTimer(RunContext(tmp_path, torch.device("cpu"), checkpoint_seconds=s)) for s in (0.0, 3600.0)
    )
    assert [eager.due(), eager.due(), patient.due()] == [True, True, False]


def test_a_state_is_due_again_when_the_interval_has_passed_since_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 10 s, asked every 5 s."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock, found = CheckpointTimer(RunContext(tmp_path, torch.device("cpu"), checkpoint_seconds=10.0)), []
    for _ in range(5):
        now[0] += 5.0
        found.append(clock.due())
    assert found == [False, True, False, True, False]


def test_a_loop_that_must_leave_writes_its_state_first_however_patient_its_clock(tmp_path: Path) -> None:
    asked: list[bool] = []
    place = RunContext(tmp_path, torch.device("cpu"), checkpoint_seconds=3600.0, preempted=lambda: bool(asked))
    clock = CheckpointTimer(place)
    assert not clock.due()
    clock.leave_if_asked(1)
    asked.append(True)
    assert clock.due()
    with pytest.raises(PreemptedError, match=r"^asked to leave, state written after step 2$"):
        clock.leave_if_asked(2)


def test_a_feed_hands_out_the_rows_asked_for_in_their_type() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    batch = DataFeed(array, torch.device("cpu"))(np.array([4, 1]))
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
    return found


@pytest.mark.parametrize(("rows", "fits"), [(24, True), (25, False)])
def test_an_array_below_half_of_a_gpus_free_memory_goes_there_once_else_its_batches_do(
    rows: int, fits: bool, moved: list[tuple[str, tuple[int, ...]]]
) -> None:
    """Rows of two bytes: 24 are 48 of 100 bytes. What goes there later is pinned, or the copy would wait."""
    array = np.arange(2 * rows, dtype=np.uint8).reshape(rows, 2)
    feed = DataFeed(array, torch.device("cuda"))
    assert moved == ([("moved", (rows, 2))] if fits else [])
    moved.clear()
    assert feed(np.array([4, 1])).tolist() == [[8, 9], [2, 3]]
    assert moved == ([("pinned", (2,)), ("moved", (2,))] if fits else [("pinned", (2, 2)), ("moved", (2, 2))])


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
    assert type(made) is kind
    assert expected.items() <= made.param_groups[0].items()


def test_frozen_parameters_are_not_optimised_and_the_rate_can_be_set() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    optimizer = build_optimizer(schema.Adam(), layer.parameters())
    assert optimizer.param_groups[0]["params"] == [layer.bias]
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
