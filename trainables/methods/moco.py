"""MoCo v2 and v3: keys come from a momentum encoder; v2 compares with a queue of them, v3 with the batch's.

He et al.: "Momentum contrast for unsupervised visual representation learning", CVPR 2020; Chen et al.: "Improved
baselines with momentum contrastive learning", arXiv 2003.04297 (v2); Chen, Xie, He: "An empirical study of training
self-supervised vision transformers", ICCV 2021 (v3). Details from facebookresearch/moco and moco-v3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.heads import pooled, pooled_width
from pretune.trainables.methods.momentum import follow, momentum_at, momentum_copy
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.queue import FeatureQueue
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.models.interface import Encoder
from pretune.trainables.upload import upload


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a queue (MoCo, equation 1), averaged over the batch.

    l(q) = -log( exp(q.k / T) / (exp(q.k / T) + sum over the queue's n of exp(q.n / T)) ), all L2-normalised.

    Args:
        q: queries (B, D).
        k: keys of the same images (B, D), without a gradient.
        queue: keys of earlier batches (K, D), normalised already.
        temperature: T > 0.

    Returns:
        A scalar, computed in float32 whatever the precision of the inputs.
    """
    q, k = F.normalize(q.float(), dim=1), F.normalize(k.float(), dim=1)
    positive = (q * k).sum(dim=1, keepdim=True)  # B, 1
    with torch.autocast(q.device.type, enabled=False):
        logits = torch.cat([positive, q @ queue.T], dim=1) / temperature  # B, 1 + K
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def batch_contrast(q: Tensor, k: Tensor, temperature: float, world: World = ALONE) -> Tensor:
    """MoCo v3's loss of one direction (algorithm 1): each query against all keys of the batch, times 2 T.

    Args:
        q, k: queries and keys (B, D); row i of both comes from image i; k without a gradient.
        world: who has the batch's other keys.
        temperature: T > 0.

    Returns:
        A scalar, computed in float32 whatever the precision of the inputs.
    """
    q, k = F.normalize(q.float(), dim=1), F.normalize(k.float(), dim=1)
    with torch.autocast(q.device.type, enabled=False):
        logits = q @ world.gather(k).T / temperature  # B, N
    same = world.rank * len(q) + torch.arange(len(q), device=q.device)
    return 2 * temperature * F.cross_entropy(logits, same)


class MoCo(nn.Module):
    """MoCo v2: a query network, a key network that follows it, and a queue of keys.

    A query must not be told by batch statistics which keys share its batch. With several devices the authors shuffle
    the key batch between them; on one device, as in their CIFAR notebook, the batch is normalised in `bn_splits` parts
    of the batch and the keys' parts are drawn differently. Several workers have equal numbers of these parts, and the
    keys' are drawn from all workers' images. In eval mode there is nothing to split.
    """

    requirements = frozenset(schema.MoCo.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        views: schema.Views,
        *,
        temperature: float,
        hidden: int,
        dim: int,
        queue: int,
        momentum: float,
        momentum_end: float,
        bn_splits: int,
        symmetric: bool,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.levels = levels
        inputs = pooled_width(encoder, levels)
        self.head = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
        self.key_encoder, self.key_head = momentum_copy(self.encoder), momentum_copy(self.head)
        self.queue = FeatureQueue(queue, dim)
        self.temperature, self.bn_splits, self.symmetric = temperature, bn_splits, symmetric
        self.momentum, self.momentum_end = momentum, momentum_end
        self.recipes = (views, views)
        self.new_keys: list[Tensor] = []  # of this step, on their way into the queue

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W), queries from the first and keys from the second (or both ways: `symmetric`)."""
        x1, x2 = (view.pixels for view in batch.views)
        world = batch.world
        self._check(len(x1), world)
        draws = world.gather(upload(batch.draw("shuffle", 1)[:, 0], x1.device))  # N
        shuffle = draws.argsort(stable=True)
        directions = [(x1, x2), (x2, x1)] if self.symmetric else [(x1, x2)]
        queries = [self.head(self._features(self.encoder, queried, world)) for queried, _ in directions]
        keys = [self._keys(other, shuffle, world) for _, other in directions]  # of the whole batch, N, D
        pairs = [(q, world.own(k)) for q, k in zip(queries, keys, strict=True)]
        terms = [info_nce(q, k, self.queue.rows, self.temperature) for q, k in pairs]
        self.new_keys = keys if self.training else []
        loss = torch.stack(terms).mean()
        if not batch.diagnosed:
            return loss, {}
        return loss, diagnostics(*pairs[0], world) | {"loss_over_uniform": loss.detach() / self.uniform_loss()}

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """The keys join the queue, and the key network follows the query network.

        The authors average before the next forward rather than after this step: the same weights meet the same images.
        """
        for keys in self.new_keys:
            self.queue.push(keys)
        self.new_keys = []
        momentum = momentum_at(self.momentum, self.momentum_end, progress)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_head, self.head, momentum)

    def uniform_loss(self) -> float:
        """The loss of an encoder that maps everything to one point: log(1 + K)."""
        return math.log(1 + len(self.queue.rows))

    @torch.no_grad()
    def _keys(self, pixels: Tensor, shuffle: Tensor, world: World = ALONE) -> Tensor:
        """Normalised keys (N, D) in float32 of the whole batch, computed in a shuffled order."""
        shuffled = world.own(world.gather(pixels)[shuffle]).contiguous(memory_format=torch.channels_last)
        keys = self.key_head(self._features(self.key_encoder, shuffled, world))
        return world.gather(F.normalize(keys.float(), dim=1))[shuffle.argsort()]

    def _features(self, encoder: Encoder, pixels: Tensor, world: World = ALONE) -> Tensor:
        """(B, 3, H, W) -> (B, C), each part of the batch normalised by statistics of its own."""
        parts = pixels.tensor_split(max(1, self.bn_splits // world.size)) if self.training else (pixels,)
        return torch.cat([pooled(encoder(part), self.levels) for part in parts])

    def _check(self, rows: int, world: World) -> None:
        batch_size = rows * world.size
        if self.training and batch_size < 2 * self.bn_splits:
            raise ValueError(f"moco: bn_splits {self.bn_splits} needs {2 * self.bn_splits} images, got {batch_size}")
        if (
            self.training
            and world.size > 1
            and self.bn_splits > 1
            and (self.bn_splits % world.size or batch_size % self.bn_splits)
        ):
            raise ValueError(
                f"moco: with {world.size} workers bn_splits {self.bn_splits} must be a multiple of them and divide the "
                f"batch of {batch_size}: no part can lie on two workers"
            )
        if self.training and batch_size > len(self.queue.rows):  # in eval mode nothing joins the queue
            raise ValueError(f"moco: a queue of {len(self.queue.rows)} cannot hold a batch of {batch_size}")


class MoCoV3(nn.Module):
    """MoCo v3 for convolutional encoders: projector and predictor as in BYOL, negatives from the batch, no queue.

    Views go through the networks one after the other, as in the authors' code.
    """

    requirements = frozenset(schema.MoCoV3.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        *,
        temperature: float,
        hidden: int,
        dim: int,
        momentum: float,
        momentum_end: float,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.levels = levels
        self.projector = nn.Sequential(
            *_hidden_layer(pooled_width(encoder, levels), hidden),
            nn.Linear(hidden, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(*_hidden_layer(dim, hidden), nn.Linear(hidden, dim, bias=False))
        self.key_encoder, self.key_projector = momentum_copy(self.encoder), momentum_copy(self.projector)
        self.temperature = temperature
        self.momentum, self.momentum_end = momentum, momentum_end
        self.recipes = recipes

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W) -> the sum of both directions' losses, and signs of collapse."""
        x1, x2 = (view.pixels for view in batch.views)
        z1, z2 = (self.projector(pooled(self.encoder(x), self.levels)) for x in (x1, x2))
        with torch.no_grad():
            k1, k2 = (self.key_projector(pooled(self.key_encoder(x), self.levels)) for x in (x1, x2))
        q1, q2 = self.predictor(z1), self.predictor(z2)
        world = batch.world
        loss = batch_contrast(q1, k2, self.temperature, world) + batch_contrast(q2, k1, self.temperature, world)
        if not batch.diagnosed:
            return loss, {}
        uniform = 4 * self.temperature * math.log(len(x1) * world.size)  # two directions of 2 T log B
        return loss, diagnostics(z1, z2, world) | {"loss_over_uniform": loss.detach() / uniform}

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """The key network follows the query network."""
        momentum = momentum_at(self.momentum, self.momentum_end, progress)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_projector, self.projector, momentum)


def _hidden_layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)


def build_moco(method: schema.MoCo, views: schema.Views, parts: Parts) -> MoCo:
    return MoCo(
        parts.encoder,
        views,
        temperature=method.temperature,
        hidden=method.hidden,
        dim=method.dim,
        queue=method.queue,
        momentum=method.momentum,
        momentum_end=method.momentum if method.momentum_end is None else method.momentum_end,
        bn_splits=method.bn_splits,
        symmetric=method.symmetric,
        levels=method.projection_levels,
    )


def build_moco_v3(method: schema.MoCoV3, views: schema.Views, parts: Parts) -> MoCoV3:
    return MoCoV3(
        parts.encoder,
        asymmetric(views, method.blur, method.solarize),
        temperature=method.temperature,
        hidden=method.hidden,
        dim=method.dim,
        momentum=method.momentum,
        momentum_end=method.momentum_end,
        levels=method.projection_levels,
    )
