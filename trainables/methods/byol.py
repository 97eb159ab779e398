"""BYOL: an online network predicts what its own moving average makes of another view. No negatives.

Grill et al.: "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020; details from
deepmind-research/byol.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.methods.heads import pooled, pooled_width, two_layers
from pretune.trainables.methods.momentum import follow, momentum_at, momentum_copy
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.models.interface import Encoder


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(prediction, target), averaged over the batch (equation 2): the squared distance of the unit vectors.

    Args:
        prediction: q(z) of the online network on one view, (B, D).
        target: z' of the target network on the other view, (B, D); pass it without a gradient.

    Returns:
        A scalar in [0, 4], computed in float32 whatever the precision of the inputs.
    """
    p, z = F.normalize(prediction.float(), dim=1), F.normalize(target.float(), dim=1)
    return 2 - 2 * (p * z).sum(dim=1).mean()


class BYOL(nn.Module):
    """The online encoder, projector and predictor, and the target encoder and projector that follow them.

    The two views go through the networks one after the other, as in the authors' code: each is normalised by its own
    statistics, since the views' recipes differ. `encoder` is the online one, which the authors evaluate.
    """

    requirements = frozenset(schema.BYOL.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        *,
        hidden: int,
        dim: int,
        momentum: float,
        momentum_end: float,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.levels = levels
        self.projector = two_layers(pooled_width(encoder, levels), hidden, dim)
        self.predictor = two_layers(dim, hidden, dim)
        self.target_encoder = momentum_copy(self.encoder)
        self.target_projector = momentum_copy(self.projector)
        self.recipes = recipes
        self.momentum, self.momentum_end = momentum, momentum_end

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W) -> the sum of both directions' losses (equation 3), and signs of collapse."""
        x1, x2 = (view.pixels for view in batch.views)
        z1, z2 = (self.projector(pooled(self.encoder(x), self.levels)) for x in (x1, x2))
        with torch.no_grad():
            t1, t2 = (self.target_projector(pooled(self.target_encoder(x), self.levels)) for x in (x1, x2))
        loss = byol_loss(self.predictor(z1), t2) + byol_loss(self.predictor(z2), t1)
        return loss, diagnostics(z1, z2, batch.world) if batch.diagnosed else {}

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """The target follows the online network."""
        momentum = momentum_at(self.momentum, self.momentum_end, progress)
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)


def build_byol(method: schema.BYOL, views: schema.Views, parts: Parts) -> BYOL:
    return BYOL(
        parts.encoder,
        asymmetric(views, method.blur, method.solarize),
        hidden=method.hidden,
        dim=method.dim,
        momentum=method.momentum,
        momentum_end=method.momentum_end,
        levels=method.projection_levels,
    )
