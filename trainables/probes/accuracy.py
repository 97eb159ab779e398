"""Probes: what a frozen encoder knows, measured without training it further."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.loop import DataFeed, IntArray, Lookup, RunContext, build_encoder, layout
from pretune.trainables.probes.linear import linear_probe


def probe(
    settings: schema.KNN | schema.LinearProbe, model: schema.Model, data: ImageSet, split: Split, context: RunContext
) -> dict[str, float]:
    """Accuracy of the parent's encoder on the validation images, by what the training images teach; with `on: test` on
    the test images, by what all others do.

    Returns:
        `probe/accuracy`; of a linear probe also `probe/accuracy_best`, that of its best epoch.

    Raises:
        ValueError: the data set has no image classes, or there are no images to score.
    """
    if data.labels is None or context.parent is None:
        raise ValueError("a probe needs image classes and a pretrained encoder")
    if settings.on == "test":
        split = Split(np.sort(np.concatenate((split.train, split.val))), split.test, split.test)
    if len(split.val) == 0 and settings.on == "test":
        raise ValueError("a probe with on: test is scored on test images, and split.test leaves none")
    if len(split.val) == 0:
        raise ValueError("a probe is scored on validation images, and split.val leaves none")
    encoder = build_encoder(model)
    checkpoints.load_part(encoder, context.parent, "encoder")
    encoder.to(context.device).to(memory_format=layout(encoder))
    feed = DataFeed(data.images, context.device)
    if isinstance(settings, schema.KNN):
        return {"probe/accuracy": knn_accuracy(encoder, feed, data.labels, split, settings, context.world)}
    return linear_accuracy(encoder, feed, data.labels, split, settings, context.world)


def knn_accuracy(
    encoder: nn.Module,
    feed: Lookup,
    labels: NDArray[np.int64],
    split: Split,
    settings: schema.KNN,
    world: World = ALONE,
) -> float:
    """Neighbours from the training images, scored on the validation images; the encoder comes back in eval mode."""
    bank, queries = (embed(encoder, feed, part, settings.size, world) for part in (split.train, split.val))
    train, val = (torch.from_numpy(labels[part]).to(bank.device) for part in (split.train, split.val))
    predicted = knn(queries, bank, train, settings.k, settings.temperature)
    return float((predicted == val).double().mean())


def linear_accuracy(
    encoder: nn.Module,
    feed: Lookup,
    labels: NDArray[np.int64],
    split: Split,
    settings: schema.LinearProbe,
    world: World = ALONE,
) -> dict[str, float]:
    """The last epoch's accuracy and the best, under their own names."""
    x, val_x = (pooled_features(encoder, feed, part, settings.size, world) for part in (split.train, split.val))
    y, val_y = (torch.from_numpy(labels[part]).to(x.device) for part in (split.train, split.val))
    batch_size, batch_norm = settings.batch_size, settings.batch_norm
    scores = linear_probe(x, y, val_x, val_y, settings.epochs, settings.lr, batch_size, batch_norm)
    return {"probe/accuracy": scores.last, "probe/accuracy_best": scores.best}


def embed(encoder: nn.Module, feed: Lookup, images: IntArray, size: int, world: World = ALONE) -> Tensor:
    """L2-normalised `pooled_features` (N, C)."""
    return F.normalize(pooled_features(encoder, feed, images, size, world), dim=1)


@torch.no_grad()
def pooled_features(encoder: nn.Module, feed: Lookup, images: IntArray, size: int, world: World = ALONE) -> Tensor:
    """Global average pooled features (N, C) of the coarsest level, in eval mode; every worker does its part."""
    encoder.eval()
    if len(images) < world.size:  # some would have none
        world = ALONE
    own = world.part(np.arange(len(images)))
    batches = np.array_split(images[own], math.ceil(len(own) / 256))
    features = torch.cat([encoder(pixels_of(feed, batch, size))[-1].mean(dim=(2, 3)) for batch in batches])
    if world.size == 1:
        return features
    everyone = features.new_zeros((len(images), features.shape[1]))
    everyone[torch.from_numpy(own).to(features.device)] = features
    return world.sum(everyone)


def pixels_of(feed: Lookup, images: IntArray, size: int) -> Tensor:
    """Whole images (B, 3, size, size) in [0, 1], resized with antialiasing, channels_last."""
    pixels = feed(images).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return pixels.contiguous(memory_format=torch.channels_last)


def knn(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """Weighted vote of the k nearest by cosine, weight exp(sim / T) (Wu et al., CVPR 2018).

    Args:
        queries, bank: L2-normalised features (Q, C) and (N, C).
        labels: classes (N,) of the bank; k is cut to N.

    Returns:
        Predicted classes (Q,).
    """
    similarity, neighbours = (queries @ bank.T).topk(min(k, len(bank)), dim=1)  # Q, k
    votes = torch.zeros(len(queries), int(labels.max()) + 1, device=queries.device)
    votes.scatter_add_(1, labels[neighbours], (similarity / temperature).exp())
    return votes.argmax(dim=1)
