"""What the loops share: orders, lengths, tracking, feeds and optimisers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.loop import (
    CheckpointTimer,
    DataFeed,
    DivergedError,
    LossMeter,
    PreemptedError,
    RunContext,
    build_optimizer,
    epoch_order,
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


def test_a_loop_that_must_leave_writes_its_state_first_however_patient_its_clock(tmp_path: Path) -> None:
    asked: list[bool] = []
    place = RunContext(tmp_path, torch.device("cpu"), checkpoint_seconds=3600.0, leaving=lambda: bool(asked))
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
