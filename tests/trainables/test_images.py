"""Mean scores of single images, beside scikit-learn's of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from pretune.trainables.distributed import ALONE
from pretune.trainables.metrics.images import ImageScorer

CLASSES = ("ground", "leaf", "spot")
SCORES = {"jaccard_images": jaccard_score, "dice_images": f1_score}


@given(seed=st.integers(0, 500), first=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_they_are_the_means_of_scikit_learns_scores_of_the_images(seed: int, first: int) -> None:
    """In batches of any size; few pixels, so that classes are missing in many images."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, 2, 3, generator=generator)
    target = torch.randint(0, 3, (5, 2, 3), generator=generator)
    target[:, 0, 0] = 255
    scorer = ImageScorer(True, CLASSES, 5, torch.device("cpu"))
    for rows in (slice(0, first), slice(first, 5)):
        scorer.add(rows, logits[rows], target[rows])
    found = scorer.scores(ALONE)
    pairs = [(t[t != 255].numpy(), p[t != 255].numpy()) for t, p in zip(target, logits.argmax(1), strict=True)]
    for name, of in SCORES.items():
        means, per_class = [], {label: [] for label in CLASSES}  # type: ignore[var-annotated]
        for truth, predicted in pairs:
            present = np.union1d(truth, predicted)
            values = of(truth, predicted, labels=present, average=None, zero_division=0)
            means.append(np.mean(values))
            for index, value in zip(present, values, strict=True):
                per_class[CLASSES[index]].append(value)
        expected = {f"{name}/{label}": np.mean(values) for label, values in per_class.items() if values}
        assert {key: value for key, value in found.items() if key.startswith(name)} == pytest.approx(
            expected | {name: np.mean(means)}
        )


def test_an_image_without_a_pixel_that_counts_has_no_say() -> None:
    """One image is right, one all ignored: 1, not a half."""
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1
    target = torch.full((2, 2, 2), 255)
    target[0] = 1
    scorer = ImageScorer(True, CLASSES, 2, torch.device("cpu"))
    scorer.add(slice(0, 2), logits, target)
    expected = {"jaccard_images": 1.0, "jaccard_images/leaf": 1.0, "dice_images": 1.0, "dice_images/leaf": 1.0}
    assert scorer.scores(ALONE) == expected
