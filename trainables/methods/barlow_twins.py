"""Barlow Twins: the cross-correlation of two views' outputs over a batch is driven to the identity.

Zbontar, Jing, Misra, LeCun, Deny: "Barlow Twins: self-supervised learning via redundancy reduction", ICML 2021; details
from facebookresearch/barlowtwins.

The loss is our own and not Lightly's, which normalises each worker's rows by themselves: here the statistics are those
of the whole batch, in float32 under autocast; tests/trainables/test_barlow_twins.py holds the two equal on one worker.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.heads import pooled, pooled_width
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.methods.vicreg import expander, off_diagonal
from pretune.trainables.models.interface import Encoder


def cross_correlation(z1: Tensor, z2: Tensor, world: World = ALONE) -> Tensor:
    """C (D, D) of outputs (B, D) of two views: correlations over the images of all workers, in float32 (equation 2)."""
    a, b = (F.batch_norm(world.gather(z.float()), None, None, training=True) for z in (z1, z2))
    with torch.autocast(a.device.type, enabled=False):
        return a.T @ b / len(a)


class BarlowTwins(nn.Module):
    """The encoder and its projector. Views go through them one after the other, as in the authors' code."""

    requirements = frozenset(schema.BarlowTwins.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        *,
        redundancy: float,
        hidden: int,
        dim: int,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = expander(pooled_width(encoder, levels), hidden=hidden, outputs=dim)
        self.redundancy, self.levels = redundancy, levels
        self.recipes = recipes

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W) -> the loss (equation 1), its two parts, and signs of collapse."""
        z1, z2 = (self.projector(pooled(self.encoder(view.pixels), self.levels)) for view in batch.views)
        c = cross_correlation(z1, z2, batch.world)
        on, off = (1 - c.diagonal()).square().sum(), off_diagonal(c).square().sum()
        loss = on + self.redundancy * off
        if not batch.diagnosed:
            return loss, {}
        parts = {"on_diagonal_loss": on.detach(), "off_diagonal_loss": off.detach()}
        return loss, diagnostics(z1, z2, batch.world) | parts

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def build_barlow_twins(method: schema.BarlowTwins, views: schema.Views, parts: Parts) -> BarlowTwins:
    return BarlowTwins(
        parts.encoder,
        asymmetric(views, method.blur, method.solarize),
        redundancy=method.redundancy,
        hidden=method.hidden,
        dim=method.dim,
        levels=method.projection_levels,
    )
