"""SimCLR: agreement of two views of an image against all other views of the batch.

Chen, Kornblith, Norouzi, Hinton: "A simple framework for contrastive learning of visual representations", ICML 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.heads import pooled, pooled_width
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.models.heads import ProjectionHead
from pretune.trainables.models.interface import Encoder


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, world: World = ALONE) -> Tensor:
    """Normalised temperature-scaled cross entropy (equation 1), averaged over the 2B views.

    With several workers the candidates are the views of all; a worker averages over its own 2B.

    l(i, j) = -log( exp(sim(z_i, z_j) / T) / sum over k != i of exp(sim(z_i, z_k) / T) ), sim the cosine.

    Args:
        z1, z2: projections (B, D) of the two views; row i of both comes from image i.
        temperature: T > 0.

    Returns:
        A scalar, computed in float32 whatever the precision of the inputs.
    """
    z = F.normalize(torch.cat([z1, z2]).float(), dim=1)  # 2B, D
    all_z = torch.cat([world.gather(view) for view in z.chunk(2)])  # 2N, D: first views of all workers, then second
    with torch.autocast(z.device.type, enabled=False):  # it would round the cosines to bfloat16, steps of 0.004 near 1
        logits = z @ all_z.T / temperature  # 2B, 2N
    half = len(all_z) // 2
    first = world.rank * len(z1) + torch.arange(len(z1), device=z.device)
    own = torch.cat([first, first + half])  # where this worker's views are among all
    logits = logits.scatter(1, own[:, None], -math.inf)  # a view is no candidate for itself
    return F.cross_entropy(logits, own.roll(len(z1)))  # i <-> i + N


class SimCLR(nn.Module):
    """The encoder and its projection head."""

    requirements = frozenset(schema.SimCLR.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        views: schema.Views,
        *,
        temperature: float,
        hidden: int,
        dim: int,
        levels: int = 1,
        norm: bool = True,
    ) -> None:
        """`norm`: whether the head has batch norm."""
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(pooled_width(encoder, levels), hidden, dim, norm)
        self.temperature, self.levels = temperature, levels
        self.recipes = (views, views)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W) -> the loss, and diagnostics that show a collapse.

        Both views go through the network as one batch, so that batch norm sees them together.
        """
        pixels = torch.cat([view.pixels for view in batch.views])
        features = pooled(self.encoder(pixels), self.levels)  # 2B, C
        z1, z2 = self.head(features[:, :, None, None]).chunk(2)
        loss = nt_xent(z1, z2, self.temperature, batch.world)
        if not batch.diagnosed:
            return loss, {}
        share = loss.detach() / self.uniform_loss(len(z1) * batch.world.size)
        return loss, diagnostics(z1, z2, batch.world) | {"loss_over_uniform": share}

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""

    @staticmethod
    def uniform_loss(batch_size: int) -> float:
        """The loss of an encoder that maps everything to one point: log(2B - 1)."""
        return math.log(2 * batch_size - 1)


@torch.no_grad()
def diagnostics(z1: Tensor, z2: Tensor, world: World = ALONE) -> dict[str, Tensor]:
    """Signs of collapse in the whole batch: spread of the normalised projections (1/sqrt(D) when they fill the sphere,
    0 when collapsed) and how alike the two views of an image are."""
    both = torch.cat([F.normalize(z1.float(), dim=1), F.normalize(z2.float(), dim=1)], dim=1)
    a, b = world.gather(both).chunk(2, dim=1)
    return {"feature_std": torch.cat([a, b]).std(dim=0).mean(), "positive_similarity": (a * b).sum(dim=1).mean()}


def build_simclr(method: schema.SimCLR, views: schema.Views, parts: Parts) -> SimCLR:
    return SimCLR(
        parts.encoder,
        views,
        temperature=method.temperature,
        hidden=method.hidden,
        dim=method.dim,
        levels=method.projection_levels,
        norm=method.head_norm is not False,
    )
