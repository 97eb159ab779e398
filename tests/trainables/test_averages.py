"""Mean scores of single images and of batches, beside scikit-learn's of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from pretune.search_spaces.metrics import RATIOS
from pretune.search_spaces.schema.scores import AVERAGED
from pretune.trainables.metrics.averages import average_scores
from pretune.trainables.metrics.segmentation import confusion_by_image, hits_truth_predicted

CLASSES = ("ground", "leaf", "spot")
SCORES = {"jaccard": jaccard_score, "dice": f1_score, "precision": precision_score, "recall": recall_score}


def counted(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return hits_truth_predicted(confusion_by_image(predicted, target, len(CLASSES))[0])


@given(seed=st.integers(0, 500), average=st.sampled_from(["image", "batch"]), batch_size=st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_they_are_the_means_of_scikit_learns_scores(seed: int, average: str, batch_size: int) -> None:
    """Means over images, and over batches with all their pixels; few pixels, so that classes are often missing."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, 3, (5, 2, 3), generator=generator)
    target = torch.randint(0, 3, (5, 2, 3), generator=generator)
    target[:, 0, 0] = 255
    found = average_scores(counted(predicted, target), CLASSES, average, batch_size)
    size, suffix = (1, "images") if average == "image" else (batch_size, "batches")
    parts = [slice(first, first + size) for first in range(0, 5, size)]
    pairs = [(target[p][target[p] != 255].numpy(), predicted[p][target[p] != 255].numpy()) for p in parts]
    expected = {f"accuracy_{suffix}": np.mean([np.mean(truth == guess) for truth, guess in pairs])}
    for name, of in SCORES.items():
        means, per_class = [], {label: [] for label in CLASSES}  # type: ignore[var-annotated]
        for truth, guess in pairs:
            present = np.union1d(truth, guess)
            values = of(truth, guess, labels=present, average=None, zero_division=0)
            means.append(np.mean(values))
            for index, value in zip(present, values, strict=True):
                per_class[CLASSES[index]].append(value)
        expected |= {f"{name}_{suffix}/{label}": np.mean(values) for label, values in per_class.items() if values}
        expected[f"{name}_{suffix}"] = np.mean(means)
    assert found == pytest.approx(expected)


def test_an_image_without_a_pixel_that_counts_has_no_say() -> None:
    """One image is right, one all ignored: 1, not a half."""
    predicted, target = torch.ones(2, 2, 2, dtype=torch.int64), torch.full((2, 2, 2), 255)
    target[0] = 1
    names = {f"{name}_images{of}": 1.0 for name in SCORES for of in ("", "/leaf")}
    assert average_scores(counted(predicted, target), CLASSES, "image", 1) == names | {"accuracy_images": 1.0}


def test_a_mean_over_batches_is_neither_that_of_images_nor_that_of_the_set() -> None:
    """By hand: images of 4 px, class 1 right in 4, 0, 2 px of 4, and nothing else there; batches of two and of one.

    Class 1: 4/8 and 2/4. Class 0 is predicted where 1 is meant: 0 in both. Their mean: 1/4 and 1/4.
    Images: the first has class 1 alone (1), the second both (0 and 0), the third 0 and 1/2 (1/4): 5/12.
    """
    predicted = torch.tensor([[[1, 1, 1, 1]], [[0, 0, 0, 0]], [[1, 1, 0, 0]]])
    counts = counted(predicted, torch.ones_like(predicted))
    assert average_scores(counts, CLASSES, "batch", 2)["jaccard_batches"] == pytest.approx(1 / 4)
    assert average_scores(counts, CLASSES, "image", 2)["jaccard_images"] == pytest.approx(5 / 12)


def test_every_ratio_has_its_averages() -> None:
    assert AVERAGED.keys() == RATIOS.keys()
