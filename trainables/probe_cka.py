"""Centred kernel alignment: how alike the features of two encoders are, whatever the rotation and scale.

Kornblith, Norouzi, Lee, Hinton: "Similarity of neural network representations revisited", ICML 2019; linear kernels.
Debiased by the unbiased HSIC of Song et al. (JMLR 2012), and over mini-batches as in Nguyen, Raghu, Kornblith, "Do wide
and deep networks learn the same things?", ICLR 2021: the three HSICs are averaged over batches before they are divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from trainables.loop import IntArray, Lookup
from trainables.models.interface import Encoder
from trainables.probe import pixels_of

MIN_BATCH = 4  # the unbiased estimate takes four different images


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 (the paper's name)
    """Song et al., equation 5, of two kernel matrices (n, n), n >= 4.

    [tr(K L) + (1'K1)(1'L1) / ((n - 1)(n - 2)) - 2 / (n - 2) * 1'KL1] / (n (n - 3)), diagonals set to 0 before.
    """
    n = len(k)
    if n < MIN_BATCH:
        raise ValueError(f"the unbiased HSIC needs at least {MIN_BATCH} images in a batch, got {n}")
    a, b = (m.double() - torch.diag(m.double().diagonal()) for m in (k, l))
    trace, sums = (a * b.T).sum(), a.sum() * b.sum() / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (a.sum(dim=0) @ b.sum(dim=1))) / (n * (n - 3))


def _kernel(features: Tensor) -> Tensor:
    """Inner products (n, n) of centred features: the shift changes no HSIC, and leaves exactly 0 of constant ones."""
    x = features.flatten(1).double()
    x = x - x.mean(dim=0)
    return x @ x.T


def linear_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Debiased linear CKA from batches of features (n, C1) and (n, C2) of the same images.

    Returns:
        1 for features that are equal up to rotation and scale; about 0, and possibly below, for unrelated ones.

    Raises:
        ValueError: no batch, a batch of fewer than four images, or features that do not vary.
    """
    sums = [torch.zeros((), dtype=torch.float64)] * 3
    for x, y in batches:
        k, l = (_kernel(f) for f in (x, y))  # noqa: E741
        sums = [total + unbiased_hsic(*pair).cpu() for total, pair in zip(sums, ((k, l), (k, k), (l, l)), strict=True)]
    both, first, second = map(float, sums)
    if first <= 0 or second <= 0:
        raise ValueError("CKA needs features that vary over the images; those of one encoder do not")
    return both / math.sqrt(first * second)


@torch.no_grad()
def cka_between(
    first: Encoder, second: Encoder, feed: Lookup, images: IntArray, size: int, level: int = -1, batch: int = 256
) -> float:
    """CKA of the feature maps of two encoders (in eval mode, on the feed's device) at one level of each.

    `images` are taken in their order, in equal batches of at most `batch`, resized to `size` px.
    """
    parts = [part for part in np.array_split(images, -(-len(images) // batch)) if len(part)]
    pixels = (pixels_of(feed, part, size) for part in parts)
    return linear_cka((first(x)[level], second(x)[level]) for x in pixels)
