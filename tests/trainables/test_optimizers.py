"""LARS against arithmetic by hand and Lightly's, and how settings become an optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.lars import LARS as LightlyLARS  # noqa: N811
from torch import nn

from search_spaces import schema
from trainables.loop import build_optimizer
from trainables.optimizers import LARS


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def single(value: list[list[float]], gradient: list[list[float]]) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor(value))
    parameter.grad = torch.tensor(gradient)
    return parameter


def test_a_step_worked_by_hand() -> None:
    """||w|| = 5, ||g|| = 1, beta 0.2: r = 0.1 * 5 / (1 + 1) = 0.25; u = 0.25 (0 + 0.6, 1 + 0.8); w - 2 u."""
    w = single([[3.0, 4.0]], [[0.0, 1.0]])
    LARS([w], lr=2.0, momentum=0.9, weight_decay=0.2, trust_coefficient=0.1).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[3 - 2 * 0.15, 4 - 2 * 0.45]]))


def test_momentum_worked_by_hand() -> None:
    """Of a bias: u = 1 twice, v = 1 then 1.5, so 10 - 1 - 1.5."""
    b = nn.Parameter(torch.tensor([10.0]))
    optimizer = LARS([b], lr=1.0, momentum=0.5, weight_decay=0.3)
    for _ in range(2):
        b.grad = torch.tensor([1.0])
        optimizer.step()
    assert b.item() == pytest.approx(7.5)


@given(seed=st.integers(0, 100), momentum=st.sampled_from([0.0, 0.9]), decay=st.sampled_from([1e-6, 1e-4, 0.1]))
@settings(deadline=None, max_examples=8)
def test_five_steps_are_lightlys(seed: int, momentum: float, decay: float) -> None:
    """Lightly leaves out what has no weight decay: biases and norms, in a group of their own."""
    ours = network(seed)
    theirs = copy.deepcopy(ours)
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = LARS(ours.parameters(), 0.5, momentum, decay), LightlyLARS(groups, 0.5, momentum)
    for step in range(5):
        x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_weight_of_zeros_takes_the_plain_gradient() -> None:
    w = single([[0.0, 0.0]], [[1.0, 2.0]])
    LARS([w], lr=0.1, momentum=0.0, weight_decay=0.1).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[-0.1, -0.2]]))


def test_what_has_no_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(2, 2)), single([[1.0]], [[1.0]])
    LARS([still, moved], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert moved.item() != 1.0


def test_state_resumes_to_the_same_bits() -> None:
    first = network(0)
    optimizer = LARS(first.parameters(), 0.1, 0.9, 1e-4)
    x = torch.randn(6, 3, 4, 4)

    def step(model: nn.Module, with_optimizer: LARS) -> None:
        with_optimizer.zero_grad()
        model(x).square().mean().backward()
        with_optimizer.step()

    step(first, optimizer)
    second = copy.deepcopy(first)
    resumed = LARS(second.parameters(), 0.1, 0.9, 1e-4)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(first, optimizer)
    step(second, resumed)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_settings_become_lars_over_what_is_trained() -> None:
    model = network(0)
    model[0].requires_grad_(False)
    chosen = schema.LARS(name="lars", lr=0.2, momentum=0.8, weight_decay=1e-4, trust_coefficient=0.01)
    optimizer = build_optimizer(chosen, model.parameters())
    assert isinstance(optimizer, LARS)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["trust"]) == (0.2, 0.8, 1e-4, 0.01)
    assert len(group["params"]) == 4  # norm and linear layer, weight and bias each
