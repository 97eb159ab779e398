"""Probes by accuracy: how well image classes can be read off a frozen encoder's features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.loop import DataFeed, Lookup, RunContext
from pretune.trainables.probes.features import embed, load_encoder, pooled_features
from pretune.trainables.probes.linear import Labelled, linear_probe

SIMILARITIES_BYTES = 2**29  # of queries and the bank that are compared at once


def probe_accuracy(
    settings: schema.KNN | schema.LinearProbe, model: schema.Model, data: ImageSet, split: Split, context: RunContext
) -> dict[str, float]:
    """Accuracy of the parent's encoder on the validation images, taught by the training images.

    With `on: test` on the test images, taught by all others.

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
    encoder = load_encoder(model, context.parent, context.device)
    feed = DataFeed(data.images, context.device, context.residency)
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
    """Accuracy on validation images by their neighbours among training images. Leaves the encoder in eval mode."""
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
    """Accuracy of a linear classifier on validation images: after its last epoch, and the best of all epochs."""
    features = [pooled_features(encoder, feed, part, settings.size, world) for part in (split.train, split.val)]
    classes = [torch.from_numpy(labels[part]).to(features[0].device) for part in (split.train, split.val)]
    train, val = map(Labelled, features, classes)
    scores = linear_probe(train, val, settings.epochs, settings.lr, settings.batch_size, settings.batch_norm)
    return {"probe/accuracy": scores.last, "probe/accuracy_best": scores.best}


def knn(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """Weighted vote of the k nearest by cosine, weight exp(sim / T) (Wu et al., CVPR 2018).

    Args:
        queries, bank: L2-normalised features (Q, C) and (N, C).
        labels: classes (N,) of the bank; k is cut to N.

    Returns:
        Predicted classes (Q,).
    """
    rows = max(1, SIMILARITIES_BYTES // (len(bank) * bank.element_size()))
    parts = [_nearest_vote(part, bank, labels, k, temperature) for part in queries.split(rows)]  # type: ignore[no-untyped-call]
    return torch.cat(parts)


def _nearest_vote(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    similarity, neighbours = (queries @ bank.T).topk(min(k, len(bank)), dim=1)  # Q, k
    if temperature < schema.KNN_EXACT_FROM:  # a common factor cancels, and no weight is inf, nor all of them 0
        similarity = similarity - similarity[:, :1]
    votes = torch.zeros(len(queries), int(labels.max()) + 1, device=queries.device)
    votes.scatter_add_(1, labels[neighbours], (similarity / temperature).exp())
    return votes.argmax(dim=1)
