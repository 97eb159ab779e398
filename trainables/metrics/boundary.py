"""Boundary F1: how much of two boundaries lies within a tolerance of each other, for each image and class.

G. Csurka, D. Larlus, F. Perronnin: What is a good evaluation measure for semantic segmentation? BMVC 2013. MATLAB's
`bfscore` has the same default tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pretune.trainables.constants import IGNORE
from pretune.trainables.distributed import World

TOLERANCE = 0.0075  # share of the image diagonal
_SLACK = 1e-9  # of a squared distance in px: rounding puts no pixel beyond a tolerance that it has exactly


def boundary_counts(
    predicted: Tensor, truth: Tensor, classes: int, tolerance: float = TOLERANCE, ignore: int = IGNORE
) -> Tensor:
    """Boundary pixels, int64 (B, classes, 4): predicted and near the truth's, predicted, true and near, true.

    A pixel is on the boundary of its class if one of its neighbours across an edge (4 in an image, 6 in a volume) is of
    another class. Outside the image, and at ignored pixels, nothing is known: they make no boundary. A class that has a
    boundary in neither truth nor prediction counts as one pixel, near if both have the class at the same pixels.

    Args:
        predicted: integers (B, *size).
        truth: the same; pixels of `ignore` do not count in either.
        tolerance: the largest Euclidean distance of two boundary pixels that match, as a share of the image diagonal.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and truth {tuple(truth.shape)} differ in shape")
    limit = math.floor(tolerance**2 * sum(side**2 for side in truth.shape[1:]) + _SLACK)  # px, squared
    counted = truth != ignore
    return torch.stack([_counts_of((predicted == k) & counted, truth == k, counted, limit) for k in range(classes)], 1)


def boundary_f1(counts: Tensor) -> Tensor:
    """F1 (...), float64, of `boundary_counts` (..., 4); NaN where a class occurs in neither truth nor prediction."""
    near_predicted, predicted, near_true, true = counts.double().unbind(-1)
    precision, recall = near_predicted / predicted.clamp(min=1), near_true / true.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return f1.where(predicted + true > 0, math.nan)


def _counts_of(predicted: Tensor, truth: Tensor, counted: Tensor, limit: int) -> Tensor:
    """(B, 4) of the masks of one class."""
    edges = [_boundary(mask, counted) for mask in (predicted, truth)]
    near = [edge & (_squared_distances(other, limit) <= limit) for edge, other in zip(edges, edges[::-1], strict=True)]
    counts = torch.stack([part.flatten(1).sum(1) for part in (near[0], edges[0], near[1], edges[1])], dim=1)
    occurs, equal = (predicted | truth).flatten(1).any(1), (predicted == truth).flatten(1).all(1)
    without = occurs & (counts.sum(1) == 0)
    one = torch.stack([equal, torch.ones_like(equal)] * 2, dim=1)
    return torch.where(without[:, None], one.long(), counts)


def _boundary(mask: Tensor, counted: Tensor) -> Tensor:
    """The pixels of a mask (B, *size) that have a counted neighbour outside it."""
    other, beside = counted & ~mask, torch.zeros_like(mask)
    for axis in range(1, mask.ndim):
        kept = mask.shape[axis] - 1
        beside.narrow(axis, 1, kept).logical_or_(other.narrow(axis, 0, kept))
        beside.narrow(axis, 0, kept).logical_or_(other.narrow(axis, 1, kept))
    return mask & beside


def _squared_distances(points: Tensor, limit: int) -> Tensor:
    """Squared distance of every pixel to the nearest of `points` (B, *size), exact up to `limit`, above it beyond.

    Axis by axis: the nearest in a row, then the nearest of the rows (Felzenszwalb and Huttenlocher 2012, cut off).
    """
    small = torch.int16 if 2 * limit < 2**15 - 1 else torch.int32
    distances = (~points).to(small) * (limit + 1)
    for axis in range(1, points.ndim):
        nearest = distances.clone()
        for step in range(1, min(math.isqrt(limit), points.shape[axis] - 1) + 1):
            kept = points.shape[axis] - step
            for first, second in ((0, step), (step, 0)):
                here, there = nearest.narrow(axis, first, kept), distances.narrow(axis, second, kept)
                torch.minimum(here, there + step**2, out=here)
        distances = nearest
    return distances


class BoundaryScorer:
    """boundary_f1 of a split: a score for each image, as Csurka et al. advise, and the mean of them."""

    def __init__(self, tolerance: float, classes: Sequence[str], images: int, device: torch.device) -> None:
        self._tolerance, self._classes = tolerance, classes
        self._counts = torch.zeros((images, len(classes), 4), dtype=torch.int64, device=device)

    def add(self, rows: slice, logits: Tensor, target: Tensor) -> None:
        self._counts[rows] = boundary_counts(logits.argmax(dim=1), target, len(self._classes), self._tolerance)

    def scores(self, world: World) -> dict[str, float]:
        return split_scores(boundary_f1(world.sum(self._counts).cpu()), self._classes)


def split_scores(f1: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Means of F1 (images, classes): boundary_f1, and boundary_f1/NAME over the images where that class occurs.

    Sums are rounded once, so that the order of images does not matter. A class that occurs in no image has no score.
    """
    present = {name: f1[:, k][~f1[:, k].isnan()].tolist() for k, name in enumerate(classes)}
    result = {f"boundary_f1/{name}": _mean(values) for name, values in present.items() if values}
    of_images = [_mean(image[~image.isnan()].tolist()) for image in f1 if not image.isnan().all()]
    return result | ({"boundary_f1": _mean(of_images)} if of_images else {})


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
