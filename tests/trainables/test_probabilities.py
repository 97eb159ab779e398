"""Scores of probabilities against scikit-learn, threshold by threshold, and the foreground's dice by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from pretune.trainables.losses import foreground_dice_loss
from pretune.trainables.metrics.probabilities import THRESHOLDS, probability_scores, probability_sums

few = settings(max_examples=25, deadline=None)
IGNORE = 255


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, 2, 2, 4, 5) and a target with both classes and some voxels that do not count."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(3, 2, 4, 5, generator=generator) < 0.3).long()
    logits = torch.randn(3, 2, 2, 4, 5, generator=generator)
    logits[:, 1] += 2 * target
    target[0, 0, 0, :2] = IGNORE
    target[1, 0, 0, 0], target[1, 0, 0, 1] = 0, 1
    return logits, target


def test_thresholds_are_numpys_arange() -> None:
    """np.arange(0.5, 1.0, 0.05), as the published code has them."""
    np.testing.assert_allclose(THRESHOLDS, np.arange(0.5, 1.0, 0.05))


@given(st.integers(0, 1000))
@few
def test_scores_are_those_of_scikit_learn_at_each_threshold(seed: int) -> None:
    logits, target = drawn(seed)
    found = probability_scores(probability_sums(logits, target))
    p = torch.sigmoid((logits[:, 1] - logits[:, 0]).double())[target != IGNORE].numpy()
    g = target[target != IGNORE].numpy()
    jaccards = [jaccard_score(g, p > t, average="macro", labels=[0, 1], zero_division=0) for t in THRESHOLDS]
    assert found["jaccard_thresholds"] == pytest.approx(np.mean(jaccards))
    assert found["soft_dice"] == pytest.approx((2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))


@given(st.integers(0, 1000))
@few
def test_batches_add_up(seed: int) -> None:
    logits, target = drawn(seed)
    whole = probability_scores(probability_sums(logits, target))
    sums = probability_sums(logits[1:], target[1:], probability_sums(logits[:1], target[:1]))
    assert probability_scores(sums) == pytest.approx(whole)


def test_worked_by_hand() -> None:
    """p = 0.9, 0.6, 0.2 for truth 1, 0, 0. Up to 0.55 the middle voxel is wrong: IoU 1/2 and 1/2. From 0.6 on (0.6 is
    not above itself) all is right, until 0.9 calls everything background: IoU 2/3 and 0. So 2 x 1/2, 6 x 1 and
    2 x 1/3, of ten. Soft dice (2 * 0.9 + 1) / (1.7 + 1 + 1)."""
    p = torch.tensor([0.9, 0.6, 0.2], dtype=torch.float64)
    logits = torch.stack((torch.zeros(3).double(), torch.log(p / (1 - p)) - 1e-9))[None]  # 1e-9 below: not above
    found = probability_scores(probability_sums(logits, torch.tensor([[1, 0, 0]])))
    assert found["jaccard_thresholds"] == pytest.approx((2 * 0.5 + 6 * 1 + 2 * (2 / 3 + 0) / 2) / 10)
    assert found["soft_dice"] == pytest.approx(2.8 / 3.7)


@given(st.integers(0, 1000))
@few
def test_the_foregrounds_dice_of_two_classes_is_that_of_a_sigmoid(seed: int) -> None:
    """Models Genesis' dice_coef_loss: 1 - (2 sum(p g) + 1) / (sum p + sum g + 1), over the whole batch."""
    logits, target = drawn(seed)
    kept = target != IGNORE
    p, g = torch.sigmoid(logits[:, 1] - logits[:, 0])[kept], target[kept].float()
    expected = 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
    torch.testing.assert_close(foreground_dice_loss(logits, target), expected)
