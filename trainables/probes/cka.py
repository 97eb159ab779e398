"""Centred kernel alignment: how alike the features of two encoders are, whatever the rotation and scale.

Kornblith, Norouzi, Lee, Hinton: "Similarity of neural network representations revisited", ICML 2019; linear kernels.
Debiased by the unbiased HSIC of Song et al. (JMLR 2012), and over mini-batches as in Nguyen, Raghu, Kornblith, "Do wide
and deep networks learn the same things?", ICLR 2021: the three HSICs are averaged over batches before they are divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.constants import MIN_CKA_BATCH
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.loop import DataFeed, DivergedError, IntArray, Lookup, epoch_order
from pretune.trainables.models.interface import Encoder
from pretune.trainables.probes.features import PROBE_SEED, load_encoder, pixels_of


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 (the paper's name)
    """Song et al., equation 5, of two kernel matrices (n, n), n >= 4.

    [tr(K L) + (1'K1)(1'L1) / ((n - 1)(n - 2)) - 2 / (n - 2) * 1'KL1] / (n (n - 3)), diagonals set to 0 before.
    """
    n = len(k)
    if n < MIN_CKA_BATCH:
        raise ValueError(f"the unbiased HSIC needs at least {MIN_CKA_BATCH} images in a batch, got {n}")
    a, b = (m.double() - torch.diag(m.double().diagonal()) for m in (k, l))
    trace, sums = (a * b.T).sum(), a.sum() * b.sum() / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (a.sum(dim=0) @ b.sum(dim=1))) / (n * (n - 3))


def _kernel(features: Tensor) -> Tensor:
    """Inner products (n, n) of centred features. The shift changes no HSIC; constant features give exactly 0."""
    x = features.flatten(1).double()
    x = x - x.mean(dim=0)
    return x @ x.T


def hsics(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSICs (3,), float64, of two sides' features (n, ...): across, within the first, within the second."""
    k, l = (_kernel(f) for f in (x, y))  # noqa: E741
    return torch.stack([unbiased_hsic(*pair).cpu() for pair in ((k, l), (k, k), (l, l))])


def cka_from(sums: Tensor) -> float:
    """CKA from summed `hsics`. Raises ValueError where the features of one side do not vary, DivergedError where they
    are not finite."""
    both, first, second = map(float, sums)
    if not math.isfinite(first + second):
        raise DivergedError("features", 0, math.nan)
    if first <= 0 or second <= 0:
        raise ValueError("CKA needs features that vary over the images; those of one encoder do not")
    return both / math.sqrt(first * second)


def linear_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Debiased linear CKA from batches of features (n, C1) and (n, C2) of the same images.

    Returns:
        1 for features that are equal up to rotation and scale; about 0, and possibly below, for unrelated ones.

    Raises:
        ValueError: no batch, a batch of fewer than four images, or features that do not vary.
    """
    return cka_from(sum((hsics(x, y) for x, y in batches), torch.zeros(3, dtype=torch.float64)))


@torch.no_grad()
def cka_between(
    encoders: tuple[Encoder, Encoder], feed: Lookup, images: IntArray, size: int, levels: Sequence[int], batch: int
) -> list[float]:
    """CKA of the feature maps of two encoders (in eval mode, on the feed's device), one for each of the levels.

    `images` are put into equal batches of at most `batch` by a fixed random order, whatever order they are stored in:
    a batch of neighbours, which often are of one class or one scene, would hide what tells classes apart (Nguyen et
    al. draw their batches at random). They are resized to `size` px.
    """
    images = images[epoch_order(len(images), PROBE_SEED, 0)]
    sums = torch.zeros(len(levels), 3, dtype=torch.float64)
    for part in np.array_split(images, -(-len(images) // batch)):
        pixels = pixels_of(feed, part, size)
        a, b = (encoder(pixels) for encoder in encoders)
        sums += torch.stack([hsics(a[level], b[level]) for level in levels])
    return [cka_from(row) for row in sums]


def compare_encoders(
    settings: schema.CKA,
    models: tuple[schema.Model, schema.Model],
    weights: tuple[Path, Path],
    data: ImageSet,
    split: Split,
    device: torch.device,
) -> dict[str, float]:
    """CKA of two stored encoders, on the same images.

    Returns:
        `probe/output`, of the coarsest level; and, where both have equally many, `probe/level1`, ... from the finest.

    Raises:
        ValueError: fewer than four images in a batch, or features that do not vary.
    """
    first, second = (load_encoder(model, path, device) for model, path in zip(models, weights, strict=True))
    images = split.val if settings.images == "val" else np.arange(len(data.images))
    if len(images) < MIN_CKA_BATCH:
        raise ValueError(f"CKA needs at least {MIN_CKA_BATCH} images, there are {len(images)}")
    alike = len(first.widths) == len(second.widths)
    finer = len(first.widths) - 1 if alike and settings.layers == "all" else 0
    names = [*(f"probe/level{level + 1}" for level in range(finer)), "probe/output"]
    levels = [*range(finer), -1]
    feed = DataFeed(data.images, device)
    values = cka_between((first, second), feed, images, settings.size, levels, settings.batch_size)
    return dict(zip(names, values, strict=True))
