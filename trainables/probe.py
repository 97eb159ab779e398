"""Probes: what a frozen encoder knows, measured without training it further."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search_spaces import schema
from trainables import checkpoints
from trainables.data.images import ImageSet
from trainables.data.splits import Split
from trainables.loop import Feed, IntArray, Place, build_encoder
from trainables.models.interface import Encoder


def probe(settings: schema.KNN, model: schema.Model, data: ImageSet, split: Split, place: Place) -> dict[str, float]:
    """kNN accuracy of the parent's encoder: neighbours from the training images, scored on the validation images.

    Returns:
        `probe/accuracy`.

    Raises:
        ValueError: the data set has no image classes.
    """
    if data.labels is None or place.parent is None:
        raise ValueError("a kNN probe needs image classes and a pretrained encoder")
    encoder = build_encoder(model)
    checkpoints.load_part(encoder, place.parent, "encoder")
    encoder.to(place.device).to(memory_format=torch.channels_last).eval()
    feed = Feed(data.images, place.device)
    bank, queries = (embed(encoder, feed, images, settings.size) for images in (split.train, split.val))
    labels = torch.from_numpy(np.asarray(data.labels)).to(place.device)
    train, val = torch.from_numpy(split.train), torch.from_numpy(split.val)
    predicted = knn(queries, bank, labels[train], settings.k, settings.temperature)
    return {"probe/accuracy": float((predicted == labels[val]).double().mean())}


@torch.no_grad()
def embed(encoder: Encoder, feed: Feed, images: IntArray, size: int) -> Tensor:
    """Global average pooled, L2-normalised features (N, C) of the coarsest level."""
    parts = []
    for batch in np.array_split(images, math.ceil(len(images) / 256)):
        pixels = feed(batch).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
        parts.append(encoder(pixels.contiguous(memory_format=torch.channels_last))[-1].mean(dim=(2, 3)))
    return F.normalize(torch.cat(parts), dim=1)


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
