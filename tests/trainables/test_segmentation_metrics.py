"""Scores of a confusion matrix, against arithmetic by hand, scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassJaccardIndex

from pretune.trainables.metrics.segmentation import (
    confusion,
    confusion_by_image,
    hits_truth_predicted,
    most_frequent_class,
    scores,
)

NAMES = ("pet", "background", "border", "other")


def labels(highest: int, size: int = 60) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, highest), min_size=size, max_size=size)


def test_a_case_worked_by_hand() -> None:
    """Truth 0 0 0 1 | 1 1 2 2, predicted 0 0 1 1 | 1 0 2 1.

    Hits 2, 2, 1 of truth 3, 3, 2 and predictions 3, 4, 1. Jaccard 2/4, 2/5, 1/2; dice 4/6, 4/7, 2/3.
    """
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 2]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 1]])
    matrix = confusion(predicted, truth, 3)
    assert matrix.tolist() == [[2, 1, 0], [1, 2, 0], [0, 1, 1]]
    result = scores(matrix, ("a", "b", "c"))
    assert result["accuracy"] == pytest.approx(5 / 8)
    assert result["jaccard"] == pytest.approx((1 / 2 + 2 / 5 + 1 / 2) / 3)
    assert result["dice"] == pytest.approx((2 / 3 + 4 / 7 + 2 / 3) / 3)
    assert result["precision"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert result["recall"] == result["mean_accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    per_class = [result[f"{metric}/b"] for metric in ("jaccard", "dice", "precision", "recall")]
    assert per_class == pytest.approx([2 / 5, 4 / 7, 1 / 2, 2 / 3])


@given(truth=labels(3), predicted=labels(3))
@settings(deadline=None, max_examples=50)
def test_scores_equal_scikit_learn(truth: list[int], predicted: list[int]) -> None:
    """scikit-learn's own default takes the labels that occur in either, and 0 / 0 as 0."""
    matrix = confusion(torch.tensor(predicted), torch.tensor(truth), 4)
    assert np.array_equal(matrix.numpy(), sk.confusion_matrix(truth, predicted, labels=range(4)))
    result, options = scores(matrix, NAMES), {"average": "macro", "zero_division": 0.0}
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert result["jaccard"] == pytest.approx(sk.jaccard_score(truth, predicted, **options))
    assert result["dice"] == pytest.approx(sk.f1_score(truth, predicted, **options))
    assert result["precision"] == pytest.approx(sk.precision_score(truth, predicted, **options))
    assert result["recall"] == pytest.approx(sk.recall_score(truth, predicted, **options))


@given(truth=labels(2), predicted=labels(2), ignored=st.lists(st.booleans(), min_size=60, max_size=60))
@settings(deadline=None, max_examples=30)
def test_jaccard_equals_torchmetrics_over_batches(truth: list[int], predicted: list[int], ignored: list[bool]) -> None:
    assume(not all(ignored))
    t = torch.where(torch.tensor(ignored), 255, torch.tensor(truth)).reshape(3, 4, 5)
    p = torch.tensor(predicted).reshape(3, 4, 5)
    reference = MulticlassJaccardIndex(3, average="macro", ignore_index=255)
    for one_p, one_t in zip(p, t, strict=True):
        reference.update(one_p[None], one_t[None])
    matrix = confusion(p[:1], t[:1], 3) + confusion(p[1:], t[1:], 3)
    assert scores(matrix, NAMES[:3])["jaccard"] == pytest.approx(float(reference.compute()), abs=1e-6)


def test_counts_of_single_images_are_those_of_scikit_learn_and_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 4, (5, 6, 7), generator=generator) for _ in range(2))
    truth[truth == 3] = 255
    predicted[predicted == 3] = 0
    by_image, wrong = confusion_by_image(predicted, truth, 3)
    assert int(wrong) == 0
    for t, p, matrix in zip(truth, predicted, by_image, strict=True):
        kept = (t != 255).numpy()
        assert np.array_equal(matrix, sk.confusion_matrix(t.numpy()[kept], p.numpy()[kept], labels=range(3)))
    assert torch.equal(by_image.sum(0), confusion(predicted, truth, 3))
    right, true, guessed = hits_truth_predicted(by_image).unbind(-1)
    for k in range(3):
        assert right[:, k].tolist() == ((truth == k) & (predicted == k)).sum((1, 2)).tolist()
        assert true[:, k].tolist() == (truth == k).sum((1, 2)).tolist()
        assert guessed[:, k].tolist() == ((predicted == k) & (truth != 255)).sum((1, 2)).tolist()


def test_ignored_pixels_do_not_count() -> None:
    truth, predicted = torch.tensor([[0, 255, 1]]), torch.tensor([[0, 1, 1]])
    assert confusion(predicted, truth, 2).tolist() == [[1, 0], [0, 1]]
    assert confusion(predicted, torch.tensor([[0, 9, 1]]), 2, ignore=9).tolist() == [[1, 0], [0, 1]]


def test_counts_beyond_float32_stay_exact() -> None:
    """2^24 + 1 is the first whole number float32 cannot hold: 16,777,217 of 16,777,218 pixels right."""
    result = scores(torch.tensor([[2**24 + 1, 1], [0, 0]]), ("a", "b"))
    assert 1 - result["accuracy"] == pytest.approx(1 / (2**24 + 2), rel=1e-6)


def test_an_absent_class_is_left_out_and_a_false_alarm_is_not() -> None:
    """Class b occurs nowhere; class c is predicted once though never true, so it scores 0 and counts."""
    result = scores(torch.tensor([[3, 0, 1], [0, 0, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert result["jaccard"] == pytest.approx((3 / 4 + 0) / 2)
    assert result["recall"] == pytest.approx((3 / 4 + 0) / 2)
    assert result["recall/c"] == 0
    assert "jaccard/b" not in result


def test_the_commonest_class_is_what_to_beat() -> None:
    """Predicting background on 30 / 58 / 12: accuracy 0.58, Jaccard 0.58 / 3, recall 1 / 3."""
    result = most_frequent_class(torch.tensor([30, 58, 12]), NAMES[:3])
    assert result["accuracy"] == pytest.approx(0.58)
    assert result["jaccard"] == pytest.approx(0.58 / 3)
    assert result["mean_accuracy"] == pytest.approx(1 / 3)
    assert result["dice/background"] == pytest.approx(2 * 58 / 158)


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        ([[0, 1]], [[0, 3]], "1 labels are none of the 3 classes"),
        ([[0, 3]], [[0, 1]], "1 labels are none"),
        ([[0, 1]], [[-1, 3]], "2 labels are none"),
        ([[0, 1]], [[0, 1, 1]], "differ in shape"),
    ],
)
def test_confusion_refuses_wrong_labels_and_shapes(predicted: list, truth: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        confusion(torch.tensor(predicted), torch.tensor(truth), 3)


def test_counting_reads_nothing_back_from_the_device() -> None:
    """A meta tensor holds no data: whoever reads one raises."""
    labels = torch.empty((2, 4, 4), dtype=torch.int64, device="meta")
    counts, wrong = confusion_by_image(labels, labels.to(torch.uint8), 3)
    assert (counts.shape, wrong.shape) == ((2, 3, 3), ())


def test_scores_refuse_an_empty_matrix_and_missing_names() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        scores(torch.zeros(2, 2, dtype=torch.int64), ("a", "b"))
    with pytest.raises(ValueError, match="confusion must be"):
        scores(torch.ones(3, 3, dtype=torch.int64), ("a", "b"))
