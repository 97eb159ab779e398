"""Barlow Twins beside Lightly's loss, and the identity at its end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import BarlowTwinsLoss

from pretune.trainables.methods.barlow_twins import cross_correlation
from pretune.trainables.methods.vicreg import off_diagonal


def loss_of(z1: torch.Tensor, z2: torch.Tensor, redundancy: float) -> torch.Tensor:
    c = cross_correlation(z1, z2)
    return (1 - c.diagonal()).square().sum() + redundancy * off_diagonal(c).square().sum()


@given(st.integers(3, 20), st.integers(2, 12), st.integers(0, 1000))
def test_loss_and_gradients_are_those_of_lightly(count: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(count, dim, generator=generator).requires_grad_() for _ in range(2))
    ours, theirs = loss_of(z1, z2, 0.02), BarlowTwinsLoss(lambda_param=0.02)(z1, z2)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, (z1, z2)), torch.autograd.grad(theirs, (z1, z2)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)  # both through batch norm, in another order


def test_equal_views_with_outputs_that_do_not_go_together_have_the_identity() -> None:
    """Columns (1, -1, 1, -1) and (1, 1, -1, -1) are uncorrelated."""
    z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    torch.testing.assert_close(cross_correlation(z, 3 * z + 1), torch.eye(2), rtol=0, atol=1e-4)
    assert float(loss_of(z, 3 * z + 1, 1.0)) == pytest.approx(0.0, abs=1e-6)
