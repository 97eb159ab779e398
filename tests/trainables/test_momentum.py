"""Momentum encoders and feature queues, against arithmetic by hand and Lightly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.models.utils import update_momentum
from torch import nn

from pretune.trainables.methods.momentum import follow, momentum_at, momentum_copy
from pretune.trainables.methods.queue import FeatureQueue


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_copy_is_equal_separate_and_not_trained() -> None:
    original = network(0)
    copied = momentum_copy(original)
    assert torch.equal(copied[0].weight, original[0].weight)
    assert copied[0].weight.data_ptr() != original[0].weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert all(parameter.requires_grad for parameter in original.parameters())


def test_average_worked_by_hand() -> None:
    """0.9 * 2 + 0.1 * 5 = 2.3."""
    average, current = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 2.0)
    nn.init.constant_(current.weight, 5.0)
    follow(average, current, 0.9)
    assert average.weight.item() == pytest.approx(2.3)
    assert current.weight.item() == 5.0


@given(momentum=st.floats(0, 1), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_average_equals_lightlys(momentum: float, seed: int) -> None:
    current, ours = network(seed), momentum_copy(network(seed + 1))
    theirs = copy.deepcopy(ours)
    follow(ours, current, momentum)
    update_momentum(current, theirs, momentum)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_statistics_are_the_copys_own() -> None:
    """Batch norm's buffers are not averaged."""
    current = network(0)
    average = momentum_copy(current)
    current(torch.randn(8, 3))
    follow(average, current, 0.5)
    assert torch.equal(average[1].running_mean, torch.zeros(4))
    assert not torch.equal(current[1].running_mean, torch.zeros(4))


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.996), (0.5, 0.998), (1.0, 1.0), (0.25, 1 - 0.004 * (1 + math.cos(math.pi / 4)) / 2)],
)
def test_momentum_rises_along_half_a_cosine(progress: float, expected: float) -> None:
    """BYOL: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2."""
    assert momentum_at(0.996, 1.0, progress) == pytest.approx(expected, abs=1e-12)


def test_constant_momentum() -> None:
    assert {momentum_at(0.999, 0.999, progress) for progress in (0.0, 0.3, 1.0)} == {0.999}


def test_queue_starts_with_random_directions() -> None:
    torch.manual_seed(0)
    queue = FeatureQueue(50, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(50))
    assert len(queue.rows.unique(dim=0)) == 50
    assert not queue.full


@given(length=st.integers(1, 12), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12))
@settings(deadline=None, max_examples=50)
def test_queue_holds_the_latest_rows(length: int, sizes: list[int]) -> None:
    """Whatever the batches' sizes: rows are numbered, and the last `length` numbers must be there."""
    queue, pushed = FeatureQueue(length, 1), 0
    for size in (size for size in sizes if size <= length):
        queue.push(torch.arange(pushed, pushed + size, dtype=torch.float32)[:, None] + 10)
        pushed += size
    held = {float(row) for row in queue.rows[:, 0] if row >= 10}
    assert held == {float(number + 10) for number in range(max(0, pushed - length), pushed)}
    assert bool(queue.full) == (pushed >= length)


def test_a_reloaded_queue_goes_on_where_it_was() -> None:
    first, second = FeatureQueue(5, 2), FeatureQueue(5, 2)
    first.push(torch.rand(3, 2))
    second.load_state_dict(first.state_dict())
    rows = torch.rand(4, 2)
    first.push(rows)
    second.push(rows)
    assert torch.equal(first.rows, second.rows)
    assert bool(second.full)
