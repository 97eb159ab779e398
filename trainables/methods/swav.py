"""SwAV: each view predicts the cluster assignment of another; assignments are balanced by Sinkhorn-Knopp.

Caron et al.: "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020; details from
facebookresearch/swav.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.dino import GLOBAL_VIEWS, cross_view_entropy
from pretune.trainables.methods.heads import pooled
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.queue import FeatureQueue
from pretune.trainables.methods.recipes import multi_crop
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.models.interface import Encoder


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, world: World = ALONE) -> Tensor:
    """Soft assignments that use all prototypes equally: Q = Diag(u) exp(scores / epsilon) Diag(v) (equations 3 to 5).

    Args:
        scores: (N, K) cosines of N samples with K prototypes. A row of -inf takes no part; its result is 0.
        epsilon: smoothness > 0.
        iterations: of normalising prototypes, then samples.
        world: who has more samples; prototypes are balanced over those of all workers.

    Returns:
        (N, K) float32 without a gradient; each row sums to 1.
    """
    scores = scores.float()
    if epsilon < schema.SINKHORN_EXACT_FROM:
        return _sinkhorn_of_logarithms(scores / epsilon, iterations, world)
    highest = world.gather(scores.max()[None]).max()
    q = ((scores - highest) / epsilon).exp()  # a common factor cancels; without it small epsilons overflow
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(iterations):
        q = q / world.sum(q.sum(dim=0, keepdim=True)).clamp(min=tiny)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=tiny)
    return q


def _sinkhorn_of_logarithms(q: Tensor, iterations: int, world: World) -> Tensor:
    """`sinkhorn` of exp(q), (N, K), which underflows in whole rows: each is then normalised in its own range."""
    absent = torch.isneginf(q).all(dim=1, keepdim=True)
    for _ in range(iterations):
        highest = world.gather(q.amax(dim=0, keepdim=True)).amax(dim=0, keepdim=True)
        q = q - highest - world.sum((q - highest).exp().sum(dim=0, keepdim=True)).log()
        q = torch.log_softmax(q.masked_fill(absent, 0.0), dim=1).masked_fill(absent, -math.inf)
    return q.exp()


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each code with the predictions of every other view (equations 1 and 2, with multi-crop).

    -sum over prototypes of q log softmax(scores / T), averaged over images, other views, and the views with codes.

    Args:
        scores: (V, B, K) cosines with the prototypes, the views that have codes first.
        codes: (G, B, K) assignments of the first G views, without a gradient; V >= 2.
        temperature: T > 0.

    Returns:
        A scalar, computed in float32 whatever the precision of the inputs.
    """
    log_p = F.log_softmax(scores.float() / temperature, dim=-1)
    return cross_view_entropy(codes, log_p)


class SwAV(nn.Module):
    """The encoder, its projection head, the prototypes, and a queue of projections for each of the two large views.

    With batches much smaller than the number of prototypes the queue makes balanced assignments possible; it is filled
    from epoch `queue_from_epoch` on and used once it is full. Views of one size go through the network as one batch.
    """

    requirements = frozenset(schema.SwAV.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        *,
        hidden: int,
        dim: int,
        prototypes: int,
        temperature: float,
        epsilon: float,
        iterations: int,
        queue: int,
        queue_from_epoch: int,
        freeze_prototypes_epochs: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(encoder.widths[-1], hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.queues = nn.ModuleList(FeatureQueue(queue, dim) for _ in range(GLOBAL_VIEWS if queue else 0))
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_from_epoch, self.freeze_prototypes_epochs = queue_from_epoch, freeze_prototypes_epochs
        self.recipes = recipes
        self.new_rows: list[Tensor] = []  # of this step, on their way into the queues
        self._normalise_prototypes()

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two large views (B, 3, S, S) and any number of small ones -> the loss, and signs of collapse."""
        pixels = [view.pixels for view in batch.views]
        sizes = [pixels[:GLOBAL_VIEWS], pixels[GLOBAL_VIEWS:]]
        features = torch.cat([pooled(self.encoder(torch.cat(views))) for views in sizes if views])
        z = F.normalize(self.head(features).float(), dim=1)
        scores = self._scores(z).view(len(pixels), -1, self.prototypes.out_features)  # V, B, K
        large = z.detach().view(len(pixels), -1, z.shape[1])[:GLOBAL_VIEWS]  # G, B, D
        codes = self._codes(scores.detach()[:GLOBAL_VIEWS], large, batch.epoch, batch.world)
        loss = swapped_prediction(scores, codes, self.temperature)
        if not batch.diagnosed:
            return loss, {}
        return loss, diagnostics(large[0], large[1], batch.world) | self._signs(loss, codes, batch.world)

    def after_backward(self, epoch: int) -> None:
        """The prototypes stay as they are at first: their gradient is dropped."""
        if epoch < self.freeze_prototypes_epochs:
            self.prototypes.weight.grad = None

    def after_step(self, progress: float) -> None:
        """Projections join the queues, and prototypes return to the unit sphere."""
        for queue, rows in zip(self.queues, self.new_rows, strict=False):
            assert isinstance(queue, FeatureQueue)
            queue.push(rows)
        self.new_rows = []
        self._normalise_prototypes()

    @torch.no_grad()
    def _codes(self, scores: Tensor, projections: Tensor, epoch: int, world: World = ALONE) -> Tensor:
        """Assignments (G, B, K) of the large views, balanced over the batch and whatever their queue holds."""
        balanced = list(scores)
        if self.training and self.queues and epoch >= self.queue_from_epoch:
            self.new_rows = [world.gather(view) for view in projections]
            self._check(len(self.new_rows[0]))
            balanced = [torch.cat([view, self._queued(i, world)]) for i, view in enumerate(scores)]
        codes = [sinkhorn(view, self.epsilon, self.iterations, world) for view in balanced]
        return torch.stack([view[: scores.shape[1]] for view in codes])

    def _queued(self, view: int, world: World) -> Tensor:
        """Scores (L, K) of a worker's share of a queue; -inf, so that they take no part, until it is full."""
        queue = self.queues[view]
        assert isinstance(queue, FeatureQueue)
        scores = self._scores(queue.rows.tensor_split(world.size)[world.rank])
        return scores.masked_fill(~queue.full, -math.inf)

    def _scores(self, z: Tensor) -> Tensor:
        """Cosines (N, K) of projections (N, D) with the prototypes, in float32 whatever the precision around."""
        with torch.autocast(z.device.type, enabled=False):
            scores: Tensor = self.prototypes(z)
        return scores

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def _check(self, batch_size: int) -> None:
        queue = self.queues[0]
        assert isinstance(queue, FeatureQueue)
        if batch_size > len(queue.rows):
            raise ValueError(f"swav: a queue of {len(queue.rows)} cannot hold a batch of {batch_size}")

    @torch.no_grad()
    def _signs(self, loss: Tensor, codes: Tensor, world: World = ALONE) -> dict[str, Tensor]:
        """A loss stuck at log K is a uniform collapse; the prototypes that are any image's first choice, as a share and
        as a number, which at 1 is another."""
        used = codes.new_zeros(codes.shape[-1])
        used[codes.argmax(dim=-1).flatten()] = 1.0
        used = world.sum(used).clamp(max=1)
        share = loss.detach() / math.log(codes.shape[-1])
        return {"loss_over_uniform": share, "prototypes_used": used.mean(), "prototypes_chosen": used.sum()}


def build_swav(method: schema.SwAV, views: schema.Views, parts: Parts) -> SwAV:
    return SwAV(
        parts.encoder,
        multi_crop(method, (views, views), views, parts.encoder, None),
        hidden=method.hidden,
        dim=method.dim,
        prototypes=method.prototypes,
        temperature=method.temperature,
        epsilon=method.epsilon,
        iterations=method.iterations,
        queue=method.queue,
        queue_from_epoch=method.queue_from_epoch,
        freeze_prototypes_epochs=method.freeze_prototypes_epochs,
    )
