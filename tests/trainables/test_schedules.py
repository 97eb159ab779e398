"""Learning rates against torch's schedulers and arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, PolynomialLR, StepLR

from pretune.search_spaces import schema
from pretune.trainables.schedules import cosine_ramp, learning_rate

STEPS_PER_EPOCH, TOTAL = 4, 40


def rates(schedule: schema.Schedule, base: float = 0.5) -> list[float]:
    return [learning_rate(schedule, base, step, STEPS_PER_EPOCH, TOTAL) for step in range(TOTAL)]


def torch_rates(scheduler: LRScheduler, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return values


def sgd(base: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)


def test_constant_is_constant() -> None:
    assert rates(schema.Constant()) == [0.5] * TOTAL


def test_step_equals_torch() -> None:
    """Every 3 epochs of 4 steps is every 12 steps."""
    ours = rates(schema.Step(name="step", every=3, gamma=0.5))
    assert ours == pytest.approx(torch_rates(StepLR(sgd(), 12, 0.5), TOTAL))
    assert (ours[11], ours[12], ours[24]) == pytest.approx((0.5, 0.25, 0.125))


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_equals_torch(final: float) -> None:
    expected = torch_rates(CosineAnnealingLR(sgd(), TOTAL, eta_min=0.5 * final), TOTAL)
    assert rates(schema.Cosine(name="cosine", final=final)) == pytest.approx(expected)


@pytest.mark.parametrize("power", [0.5, 0.9, 2.0])
def test_polynomial_equals_torch_and_starts_after_the_warm_up(power: float) -> None:
    expected = torch_rates(PolynomialLR(sgd(), TOTAL, power), TOTAL)
    assert rates(schema.Polynomial(name="polynomial", power=power)) == pytest.approx(expected)
    warmed = rates(schema.Polynomial(name="polynomial", power=power, warmup_epochs=2))
    assert warmed[:8] == pytest.approx([0.5 * k / 8 for k in range(1, 9)])
    assert warmed[8:] == pytest.approx(torch_rates(PolynomialLR(sgd(), 32, power), 32))


def test_warm_up_then_cosine_over_the_rest() -> None:
    """Two epochs of 4 steps rise by eighths; then torch's cosine over the other 32 steps."""
    ours = rates(schema.Cosine(name="cosine", warmup_epochs=2))
    assert ours[:8] == pytest.approx([0.5 * k / 8 for k in range(1, 9)])
    assert ours[8:] == pytest.approx(torch_rates(CosineAnnealingLR(sgd(), 32), 32))


def test_warm_up_then_constant_and_step() -> None:
    constant = rates(schema.Constant(warmup_epochs=1))
    assert constant == pytest.approx([0.125, 0.25, 0.375, *[0.5] * (TOTAL - 3)])
    step = rates(schema.Step(name="step", every=5, gamma=0.1, warmup_epochs=1))
    assert step == pytest.approx([0.125, 0.25, 0.375, *[0.5] * 17, *[0.05] * 20])


@given(
    schedule=st.one_of(
        st.builds(schema.Constant, warmup_epochs=st.integers(0, 5)),
        st.builds(
            schema.Step,
            name=st.just("step"),
            every=st.integers(1, 9),
            gamma=st.floats(0.1, 1),
            warmup_epochs=st.integers(0, 5),
        ),
        st.builds(schema.Cosine, name=st.just("cosine"), final=st.floats(0, 1), warmup_epochs=st.integers(0, 5)),
    ),
    base=st.floats(1e-6, 10),
)
@settings(deadline=None, max_examples=60)
def test_rates_are_positive_rise_in_warm_up_and_never_after(schedule: schema.Schedule, base: float) -> None:
    ours, warmup = rates(schedule, base), schedule.warmup_epochs * STEPS_PER_EPOCH
    assert all(0 < rate <= base * (1 + 1e-12) for rate in ours)
    assert all(a >= b * (1 - 1e-12) for a, b in pairwise(ours[warmup:]))
    if not isinstance(schedule, schema.Step):
        assert all(a < b for a, b in pairwise(ours[:warmup]))


def test_learning_rate_refuses_steps_and_warm_ups_beyond_the_end() -> None:
    with pytest.raises(ValueError, match="step must be in 0 to 39"):
        learning_rate(schema.Constant(), 0.1, 40, 4, 40)
    with pytest.raises(ValueError, match="warmup_epochs 10 is 40 steps, training only 40"):
        learning_rate(schema.Constant(warmup_epochs=10), 0.1, 0, 4, 40)


def test_cosine_ramp_is_byols_momentum() -> None:
    """BYOL: 1 - (1 - tau) (cos(pi k / K) + 1) / 2."""
    for k in range(11):
        expected = 1 - (1 - 0.99) * (math.cos(math.pi * k / 10) + 1) / 2
        assert cosine_ramp(0.99, 1.0, k, 10) == pytest.approx(expected)
    ends = cosine_ramp(0.99, 1.0, 0, 10), cosine_ramp(0.99, 1.0, 5, 10), cosine_ramp(0.99, 1.0, 10, 10)
    assert ends == pytest.approx((0.99, 0.995, 1.0))


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (11, 10), (0, 0)])
def test_cosine_ramp_refuses_steps_outside(step: int, total: int) -> None:
    with pytest.raises(ValueError, match="0 to total"):
        cosine_ramp(0.0, 1.0, step, total)
