"""VICReg: two views get the same outputs, while each output varies over images and no two outputs go together.

Bardes, Ponce, LeCun: "VICReg: variance-invariance-covariance regularization for self-supervised learning", ICLR 2022;
details from facebookresearch/vicreg.

The loss is our own and not Lightly's, since its statistics must be those of the whole batch whatever the number of
workers, in float32 under autocast, and its three terms are reported; tests/trainables/test_vicreg.py holds them equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.heads import pooled, pooled_width
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.models.interface import Encoder

EPSILON = 1e-4  # below the root of the variance, as in the authors' code


class Terms(NamedTuple):
    """Scalars in float32, each at least 0."""

    invariance: Tensor  # mean squared difference of the two views
    variance: Tensor  # how far the outputs' standard deviations are below 1, averaged over outputs and views
    covariance: Tensor  # squared covariances of different outputs, summed, over the number of outputs; of both views


def vicreg_terms(z1: Tensor, z2: Tensor, world: World = ALONE) -> Terms:
    """The three terms of VICReg (equations 1 to 5), of outputs (B, D) of two views, B >= 2.

    With several workers variance and covariance are those of all workers' rows; the invariance is this worker's mean.
    """
    z1, z2 = z1.float(), z2.float()
    spread = [hinged_deviation(z) for z in (world.gather(z1), world.gather(z2))]
    together = [off_diagonal_covariance(z) for z in (world.gather(z1), world.gather(z2))]
    return Terms(F.mse_loss(z1, z2), (spread[0] + spread[1]) / 2, together[0] + together[1])


def hinged_deviation(z: Tensor) -> Tensor:
    """max(0, 1 - sqrt(var + 1e-4)), averaged over the outputs (N, D) (equation 1)."""
    return F.relu(1 - (z.var(dim=0) + EPSILON).sqrt()).mean()


def off_diagonal_covariance(z: Tensor) -> Tensor:
    """The squared covariances of all pairs of different outputs (N, D), summed, divided by D (equations 3 and 4)."""
    z = z - z.mean(dim=0)
    with torch.autocast(z.device.type, enabled=False):
        covariance = z.T @ z / (len(z) - 1)
    return off_diagonal(covariance).square().sum() / z.shape[1]


def off_diagonal(square: Tensor) -> Tensor:
    """All elements of (D, D) but the diagonal's, as (D - 1, D)."""
    return square.flatten()[1:].view(len(square) - 1, len(square) + 1)[:, :-1]


def expander(inputs: int, *, hidden: int, outputs: int) -> nn.Sequential:
    """Linear - BN - ReLU twice, Linear without bias."""
    hidden_layers = [(nn.Linear(i, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)) for i in (inputs, hidden)]
    return nn.Sequential(*hidden_layers[0], *hidden_layers[1], nn.Linear(hidden, outputs, bias=False))


class VICReg(nn.Module):
    """The encoder and its expander. Views go through them one after the other, as in the authors' code."""

    requirements = frozenset(schema.VICReg.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        *,
        invariance: float,
        variance: float,
        covariance: float,
        hidden: int,
        dim: int,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.expander = expander(pooled_width(encoder, levels), hidden=hidden, outputs=dim)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.levels = levels
        self.recipes = recipes

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W) -> the weighted sum of the terms (equation 6), the terms, and signs of collapse."""
        z1, z2 = (self.expander(pooled(self.encoder(view.pixels), self.levels)) for view in batch.views)
        terms = vicreg_terms(z1, z2, batch.world)
        loss = self.invariance * terms.invariance + self.variance * terms.variance + self.covariance * terms.covariance
        if not batch.diagnosed:
            return loss, {}
        named = {f"{name}_loss": value.detach() for name, value in terms._asdict().items()}
        return loss, diagnostics(z1, z2, batch.world) | named

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def build_vicreg(method: schema.VICReg, views: schema.Views, parts: Parts) -> VICReg:
    return VICReg(
        parts.encoder,
        asymmetric(views, method.blur, method.solarize),
        invariance=method.invariance,
        variance=method.variance,
        covariance=method.covariance,
        hidden=method.hidden,
        dim=method.dim,
        levels=method.projection_levels,
    )
