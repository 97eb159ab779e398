"""Scores of single images, or of batches of them, and their mean (average: `image`, `batch`).

Medical papers report the mean of images. A mean over batches depends on the batch size, and some papers have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretune.search_spaces.metrics import RATIOS
from pretune.search_spaces.schema.scores import AVERAGES


def average_scores(counts: Tensor, classes: Sequence[str], average: str, batch_size: int) -> dict[str, float]:
    """jaccard_images, dice_images and so on of all images and of each class; jaccard_batches for `batch`.

    The score of an image, or of a batch, is the mean over the classes that occur in its truth or prediction; the
    split's is the mean over those with a pixel that counts. A class's is the mean over those in which it occurs; one
    that occurs in none has no score.

    Args:
        counts: (images, classes, 3) int64, right, true and predicted pixels, in the order of the split.
        average: image or batch.
        batch_size: images that follow each other; the last batch may have fewer.
    """
    suffix = AVERAGES[average].suffix
    parts = counts.double().cpu()
    if average == "batch":
        parts = parts.new_zeros((-(-len(parts) // batch_size), *parts.shape[1:])).index_add_(
            0, _numbers(len(parts), batch_size), parts
        )
    occurs = parts[..., 1] + parts[..., 2] > 0  # parts, classes
    scored = occurs.any(dim=1)
    found: dict[str, float] = {}
    for name, ratio in RATIOS.items():
        above, below = ratio(*parts.unbind(-1))
        values = above / below.clamp(min=1)  # 0 for a class that does not occur
        of_classes = {label: values[occurs[:, k], k] for k, label in enumerate(classes)}
        found |= {f"{name}_{suffix}/{label}": float(part.mean()) for label, part in of_classes.items() if len(part)}
        found[f"{name}_{suffix}"] = float((values.sum(1)[scored] / occurs.sum(1)[scored]).mean())
    right, true, _ = parts.sum(dim=1).unbind(-1)
    has_pixels = true > 0
    return found | {f"accuracy_{suffix}": float((right[has_pixels] / true[has_pixels]).mean())}


def _numbers(images: int, batch_size: int) -> Tensor:
    """The batch of each image."""
    return torch.arange(images) // batch_size
