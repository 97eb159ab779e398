"""Segmentation scores of one confusion matrix over a whole data set (average: `dataset`).

Counting first and dividing once means that a score depends neither on the batch size nor on the order of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretune.search_spaces.metrics import RATIOS
from pretune.trainables.constants import IGNORE


def confusion(predicted: Tensor, truth: Tensor, classes: int, ignore: int = IGNORE) -> Tensor:
    """Pixel counts, int64 (classes, classes): rows are the truth, columns the prediction. Add them up over batches.

    predicted and truth: integer tensors of one shape, such as (B, H, W). Pixels whose truth is `ignore` do not count.
    Raises ValueError for a label that is no class.
    """
    counts, wrong = confusion_by_image(predicted[None], truth[None], classes, ignore)
    check_labels(wrong, classes)
    return counts[0]


def confusion_by_image(predicted: Tensor, truth: Tensor, classes: int, ignore: int = IGNORE) -> tuple[Tensor, Tensor]:
    """As `confusion`, but of every image alone: int64 (B, classes, classes), and how many labels are no class: ().

    Nothing is read back from the device: what does not count goes to two places of its own.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and truth {tuple(truth.shape)} differ in shape")
    t, p = truth.flatten(1).long(), predicted.flatten(1).long()
    image = torch.arange(len(t), device=t.device).unsqueeze(1)
    ignored = len(t) * classes * classes
    no_class = (t < 0) | (t >= classes) | (p < 0) | (p >= classes)
    places = torch.where(no_class, ignored + 1, (image * classes + t) * classes + p)
    places = torch.where(t == ignore, ignored, places).flatten()
    counts = torch.zeros(ignored + 2, dtype=torch.int64, device=t.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    return counts[:ignored].reshape(len(t), classes, classes), counts[-1]


def check_labels(wrong: Tensor, classes: int) -> None:
    """Raises ValueError where labels were no class."""
    if int(wrong) > 0:
        raise ValueError(f"{int(wrong)} labels are none of the {classes} classes (0 to {classes - 1})")


def hits_truth_predicted(confusion: Tensor) -> Tensor:
    """(..., C, C) -> (..., C, 3): of each class its right pixels, those of the truth, those predicted.

    All that `scores` needs, for images to be resampled by.
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], dim=-1)


def scores(confusion: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Scores in [0, 1] of a confusion matrix (C, C), rows truth, whose classes have these names.

    accuracy: share of pixels that are right. jaccard, dice, precision, recall: means over classes, and under
    "jaccard/NAME" and so on those of each class. mean_accuracy is recall by the name segmentation papers give it.
    A class that occurs in neither truth nor prediction has no score and is excluded from the means. One that occurs in
    only one of them scores 0 in everything, also where its precision or recall would be 0 / 0.
    """
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion must be {(len(classes),) * 2} for {len(classes)} classes, got {confusion.shape}")
    if int(confusion.sum()) == 0:
        raise ValueError("nothing to score: the confusion matrix is empty (is every pixel of the masks ignored?)")
    counts = confusion.double().cpu()
    per_class = _per_class(counts)
    present = [c for c in range(len(classes)) if float(counts[c].sum() + counts[:, c].sum()) > 0]
    result = {"accuracy": float(counts.diagonal().sum() / counts.sum())}
    result |= {name: float(values[present].mean()) for name, values in per_class.items()}
    result["mean_accuracy"] = result["recall"]
    result |= {f"{name}/{classes[c]}": float(values[c]) for name, values in per_class.items() for c in present}
    return result


def _per_class(counts: Tensor) -> dict[str, Tensor]:
    """Scores (C,) each; 0 where there is nothing to divide by."""
    ratios = {name: ratio(*hits_truth_predicted(counts).unbind(-1)) for name, ratio in RATIOS.items()}
    return {name: above / below.clamp(min=1) for name, (above, below) in ratios.items()}


def most_frequent_class(truth_counts: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Scores of predicting the commonest class everywhere, from pixels per class (C,): what a model has to beat."""
    counts = torch.zeros(len(truth_counts), len(truth_counts), dtype=torch.int64)
    counts[:, int(truth_counts.argmax())] = truth_counts.cpu().long()
    return scores(counts, classes)
