"""VICReg beside Lightly's loss, and its terms on cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import VICRegLoss

from pretune.trainables.methods.vicreg import off_diagonal, vicreg_terms


def outputs(count: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(count, dim, generator=generator) * 0.8
    return z1.requires_grad_(), (z1.detach() + 0.3 * torch.randn(count, dim, generator=generator)).requires_grad_()


@given(st.integers(2, 20), st.integers(2, 12), st.integers(0, 1000))
def test_loss_and_gradients_are_those_of_lightly(count: int, dim: int, seed: int) -> None:
    """Other weights than the default, so that none stands for another."""
    z1, z2 = outputs(count, dim, seed)
    terms = vicreg_terms(z1, z2)
    ours = 11.0 * terms.invariance + 7.0 * terms.variance + 3.0 * terms.covariance
    theirs = VICRegLoss(lambda_param=11.0, mu_param=7.0, nu_param=3.0)(z1, z2)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(theirs, (z1, z2)), strict=True):
        torch.testing.assert_close(mine, other)


def test_one_point_for_all_images_costs_the_variance_and_nothing_else() -> None:
    """The deviation is sqrt(1e-4) = 0.01, which is 0.99 below 1."""
    terms = vicreg_terms(torch.ones(6, 4), torch.ones(6, 4))
    assert [float(term) for term in terms] == pytest.approx([0.0, 0.99, 0.0], abs=1e-6)


def test_two_outputs_that_say_the_same_cost_their_covariance() -> None:
    """Columns (1, -1): variance 2, covariance 2; 2 of 4 elements are off the diagonal: 2 * 2^2 / 2 = 4 in each view."""
    z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    terms = vicreg_terms(z, z + 0.5)
    assert float(terms.covariance) == pytest.approx(8.0)
    assert float(terms.variance) == 0.0
    assert math.isclose(float(terms.invariance), 0.25)


def test_off_the_diagonal_is_everything_else() -> None:
    assert sorted(off_diagonal(torch.arange(9).view(3, 3)).flatten().tolist()) == [1, 2, 3, 5, 6, 7]
