"""Scores of foreground probabilities, for two classes: what Models Genesis' evaluation prints and P3's Table 3 holds.

`mean_iou` and `dice_coef` of their `downstream_tasks/utils.py`, with sums over the whole data set where theirs are over
batches: the IoU accumulates in TensorFlow's streaming metric, of which they report the mean over batches; the Dice is a
mean over batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pretune.trainables.constants import IGNORE
from pretune.trainables.distributed import World
from pretune.trainables.metrics.segmentation import confusion, scores

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))  # 0.5, 0.55, ..., 0.95
SMOOTH = 1.0
CLASSES = ("background", "foreground")


class Sums(NamedTuple):
    """Added up over batches."""

    confusions: Tensor  # (10, 2, 2) int64: a confusion matrix for each threshold
    overlap: Tensor  # () float64: sum of p g
    total: Tensor  # () float64: sum of p + g


def no_sums(device: torch.device) -> Sums:
    """The sums of no voxels."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    return Sums(torch.zeros((len(THRESHOLDS), 2, 2), dtype=torch.int64, device=device), zero, zero)


def probability_sums(logits: Tensor, target: Tensor, before: Sums | None = None) -> Sums:
    """Sums of logits (B, 2, ...) and target (B, ...), on top of those of `before`; voxels of IGNORE do not count."""
    p = torch.softmax(logits.double(), dim=1)[:, 1]
    matrices = torch.stack([confusion((p > t).long(), target, 2) for t in THRESHOLDS])
    counted, g = target != IGNORE, (target == 1).double()
    sums = Sums(matrices, (p * g)[counted].sum(), (p + g)[counted].sum())
    return sums if before is None else Sums(*(a + b for a, b in zip(before, sums, strict=True)))


def probability_scores(sums: Sums) -> dict[str, float]:
    """jaccard_thresholds: the mean IoU of both classes, averaged over THRESHOLDS. soft_dice: 2 sum(p g) / sum(p + g),
    both with 1 added."""
    jaccards = [scores(matrix, CLASSES)["jaccard"] for matrix in sums.confusions]
    soft = (2 * sums.overlap + SMOOTH) / (sums.total + SMOOTH)
    return {"jaccard_thresholds": sum(jaccards) / len(jaccards), "soft_dice": float(soft)}


class ProbabilityScorer:
    """Both scores of a split of two classes."""

    def __init__(self, _: bool, classes: Sequence[str], images: int, device: torch.device) -> None:
        self._sums = no_sums(device)

    def add(self, rows: slice, logits: Tensor, target: Tensor) -> None:
        self._sums = probability_sums(logits, target, self._sums)

    def scores(self, world: World) -> dict[str, float]:
        return probability_scores(Sums(*(world.sum(part) for part in self._sums)))
