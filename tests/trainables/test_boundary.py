"""Boundary F1, against arithmetic by hand and scipy's distance transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pretune.trainables.distributed import ALONE, World
from pretune.trainables.metrics.boundary import (
    TOLERANCE,
    BoundaryScorer,
    boundary_counts,
    boundary_f1,
    split_scores,
)

CPU = torch.device("cpu")
IGNORED = 255
ONE_PX = 1 / math.hypot(5, 5)  # of a 5 x 5 image


def f1_of(predicted: torch.Tensor, truth: torch.Tensor, classes: int, tolerance: float) -> list[list[float]]:
    found: list[list[float]] = boundary_f1(boundary_counts(predicted, truth, classes, tolerance)).tolist()
    return found


def by_distance_transform(predicted: NDArray, truth: NDArray, label: int, tolerance: float) -> float:  # type: ignore[type-arg]
    """F1 of one class of one image or volume: erosion gives the boundary, scipy the distances to it."""
    counted = truth != IGNORED
    masks = [(labels == label) & counted for labels in (predicted, truth)]
    if not (masks[0].any() or masks[1].any()):
        return math.nan
    # Outside the image and at ignored pixels the class is taken to go on, so that erosion leaves these sides alone.
    edges = [mask & ~ndimage.binary_erosion(mask | ~counted, border_value=1) for mask in masks]
    if not (edges[0].any() or edges[1].any()):
        return float(np.array_equal(*masks))
    if not (edges[0].any() and edges[1].any()):
        return 0.0
    far = [ndimage.distance_transform_edt(~edge) for edge in edges]
    theta = tolerance * math.hypot(*truth.shape) + 1e-9
    precision, recall = (far[1][edges[0]] <= theta).mean(), (far[0][edges[1]] <= theta).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


@st.composite
def labels(draw: st.DrawFn, shape: tuple[int, ...] = (2, 6, 7), ignored: bool = True) -> torch.Tensor:
    """Blobs of three classes, smooth enough to have an inside, and ignored pixels."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(st.sampled_from([0.0, 1.0, 2.0]))
    noise = generator.normal(size=(3, *shape))
    found = ndimage.gaussian_filter(noise, (0, 0, *[width] * (len(shape) - 1))).argmax(axis=0)
    if ignored:
        found[generator.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.6]))] = IGNORED
    return torch.from_numpy(found)


tolerances = st.sampled_from([0.0, TOLERANCE, 0.05, 0.1, 0.15, 0.3, 1.0])


def test_a_case_worked_by_hand() -> None:
    """A square of 3 x 3 in the middle of 5 x 5, and the same one pixel to the right.

    The true square has 8 boundary pixels. The predicted one has 7: it ends at the image, where nothing is known. They
    share 4, two in the top row and two in the bottom row; one pixel apart all others match too. The true background has
    12 boundary pixels and the predicted one 9; they share 4. One pixel apart the true one at the right is left alone.
    """
    truth = torch.zeros(1, 5, 5, dtype=torch.int64)
    predicted = truth.clone()
    truth[0, 1:4, 1:4] = 1
    predicted[0, 1:4, 2:5] = 1
    assert boundary_counts(predicted, truth, 2, 0.0).tolist() == [[[4, 9, 4, 12], [4, 7, 4, 8]]]
    assert boundary_counts(predicted, truth, 2, ONE_PX).tolist() == [[[9, 9, 11, 12], [7, 7, 8, 8]]]
    (background, square), (near_background, near_square) = (f1_of(predicted, truth, 2, t)[0] for t in (0.0, ONE_PX))
    assert background == pytest.approx(2 * 4 / (9 + 12))
    assert square == pytest.approx(2 * 4 / (7 + 8))
    assert near_background == pytest.approx(2 * (11 / 12) / (1 + 11 / 12))
    assert near_square == 1


@given(truth=labels(), predicted=labels(ignored=False), tolerance=tolerances)
@settings(deadline=None, max_examples=100)
def test_f1_equals_that_of_a_distance_transform(truth: torch.Tensor, predicted: torch.Tensor, tolerance: float) -> None:
    expected = [
        [by_distance_transform(p, t, k, tolerance) for k in range(3)]
        for p, t in zip(predicted.numpy(), truth.numpy(), strict=True)
    ]
    assert np.allclose(f1_of(predicted, truth, 3, tolerance), expected, rtol=1e-12, atol=0, equal_nan=True)


@given(truth=labels((1, 4, 5, 6)), predicted=labels((1, 4, 5, 6), ignored=False), tolerance=tolerances)
@settings(deadline=None, max_examples=30)
def test_f1_of_volumes_equals_that_of_a_distance_transform(
    truth: torch.Tensor, predicted: torch.Tensor, tolerance: float
) -> None:
    expected = [by_distance_transform(predicted[0].numpy(), truth[0].numpy(), k, tolerance) for k in range(3)]
    assert np.allclose(f1_of(predicted, truth, 3, tolerance)[0], expected, rtol=1e-12, atol=0, equal_nan=True)


def test_f1_of_images_of_a_real_size_equals_that_of_a_distance_transform() -> None:
    """128 px at the default tolerance (1.4 px), and at one of 9 px."""
    generator = np.random.default_rng(0)
    truth, predicted = (ndimage.gaussian_filter(generator.normal(size=(3, 2, 128, 128)), (0, 0, s, s)).argmax(0)
                        for s in (6, 5))  # fmt: skip
    truth[:, 40:50] = IGNORED
    for tolerance in (TOLERANCE, 0.05):
        found = f1_of(torch.from_numpy(predicted), torch.from_numpy(truth), 3, tolerance)
        expected = [[by_distance_transform(p, t, k, tolerance) for k in range(3)]
                    for p, t in zip(predicted, truth, strict=True)]  # fmt: skip
        assert np.allclose(found, expected, rtol=1e-12, atol=0)
        assert 0 < np.min(expected) < np.max(expected) < 1


@given(truth=labels(), tolerance=tolerances)
@settings(deadline=None, max_examples=50)
def test_a_perfect_prediction_scores_1_and_an_absent_class_has_no_score(truth: torch.Tensor, tolerance: float) -> None:
    predicted = torch.where(truth == IGNORED, 0, truth)
    for image, scored in zip(truth, f1_of(predicted, truth, 4, tolerance), strict=True):
        assert [math.isnan(value) for value in scored] == [not (image == k).any() for k in range(4)]
        assert all(value == 1 for value in scored if not math.isnan(value))


@given(truth=labels(ignored=False), predicted=labels(ignored=False), tolerance=tolerances)
@settings(deadline=None, max_examples=50)
def test_prediction_and_truth_can_be_swapped(truth: torch.Tensor, predicted: torch.Tensor, tolerance: float) -> None:
    one, other = f1_of(predicted, truth, 3, tolerance), f1_of(truth, predicted, 3, tolerance)
    assert np.array_equal(one, other, equal_nan=True)


@given(truth=labels(), predicted=labels(ignored=False))
@settings(deadline=None, max_examples=50)
def test_a_larger_tolerance_scores_no_less(truth: torch.Tensor, predicted: torch.Tensor) -> None:
    small, large = (np.asarray(f1_of(predicted, truth, 3, tolerance)) for tolerance in (0.1, 0.2))
    assert (np.isnan(small) | (small <= large)).all()


@given(truth=labels(), predicted=labels(ignored=False), other=labels(ignored=False))
@settings(deadline=None, max_examples=50)
def test_what_is_predicted_at_ignored_pixels_does_not_count(
    truth: torch.Tensor, predicted: torch.Tensor, other: torch.Tensor
) -> None:
    changed = torch.where(truth == IGNORED, other, predicted)
    assert torch.equal(boundary_counts(changed, truth, 3), boundary_counts(predicted, truth, 3))


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([[0, 0]], [[0, 0]], [1, math.nan]),  # fills the image: no boundary, and right
        ([[1, 1]], [[0, 0]], [0, 0]),
        ([[0, 0]], [[255, 255]], [math.nan, math.nan]),
        ([[0, 1]], [[0, 0]], [0, 0]),  # a boundary where the truth has none
        ([[0, 0]], [[0, 1]], [0, 0]),
        ([[0, 0, 1]], [[0, 255, 1]], [1, 1]),  # apart: no boundary, the same pixels
        ([[1, 0, 0]], [[0, 255, 1]], [0, 0]),
    ],
)
def test_classes_without_a_boundary(predicted: list[list[int]], truth: list[list[int]], expected: list[float]) -> None:
    found = f1_of(torch.tensor([predicted]), torch.tensor([truth]), 2, TOLERANCE)[0]
    assert np.array_equal(found, expected, equal_nan=True)


def test_a_distance_of_exactly_the_tolerance_is_within_it() -> None:
    """400 px: 0.75 % of the diagonal is the distance of (3, 3), the square root of 18."""
    truth, predicted = torch.zeros(2, 1, 400, 400, dtype=torch.int64)
    truth[0, 100, 100] = predicted[0, 103, 103] = 1
    assert f1_of(predicted, truth, 2, TOLERANCE)[0][1] == 1
    assert f1_of(predicted.roll(1, 1), truth, 2, TOLERANCE)[0][1] == 0


@pytest.mark.parametrize("reach", [127, 128])
def test_far_distances_do_not_overflow(reach: int) -> None:
    """Squared distances are 16-bit numbers where the tolerance is below 128 px."""
    tolerance = reach / math.hypot(3, 400)
    for apart, expected in ((reach, 1.0), (reach + 1, 0.0), (300, 0.0)):
        truth, predicted = torch.zeros(2, 1, 3, 400, dtype=torch.int64)
        truth[0, 1, 10] = predicted[0, 1, 10 + apart] = 1
        assert f1_of(predicted, truth, 2, tolerance)[0][1] == expected


def test_scores_of_a_split_are_means_over_images() -> None:
    """Image scores are (1 + 0.5) / 2, 0.25 and none; class b occurs in one image, class c in none."""
    f1 = torch.tensor([[1, 0.5, math.nan], [0.25, math.nan, math.nan], [math.nan] * 3], dtype=torch.float64)
    expected = {"boundary_f1": (0.75 + 0.25) / 2, "boundary_f1/a": (1 + 0.25) / 2, "boundary_f1/b": 0.5}
    assert split_scores(f1, ("a", "b", "c")) == expected
    assert split_scores(f1[2:], ("a", "b", "c")) == {}


def test_batches_and_their_order_change_no_digit() -> None:
    generator = np.random.default_rng(1)
    truth = torch.from_numpy(generator.integers(0, 3, (7, 8, 8)))
    logits = torch.from_numpy(generator.normal(size=(7, 3, 8, 8)))
    found = []
    for order, cut in ((range(7), 7), (range(7), 2), (range(6, -1, -1), 3)):
        scorer = BoundaryScorer(0.05, ("a", "b", "c"), 7, CPU)
        for rows in (slice(0, cut), slice(cut, 7)):
            scorer.add(rows, logits[list(order)[rows]], truth[list(order)[rows]])
        found.append(scorer.scores(ALONE))
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {"boundary_f1", "boundary_f1/a", "boundary_f1/b", "boundary_f1/c"}


def test_several_workers_score_as_one() -> None:
    """Each worker has its batch; the sum over workers is what makes one split of them."""
    generator = np.random.default_rng(2)
    truth = torch.from_numpy(generator.integers(0, 3, (5, 8, 8)))
    logits = torch.from_numpy(generator.normal(size=(5, 3, 8, 8)))
    one, first, second = (BoundaryScorer(0.05, ("a", "b", "c"), 5, CPU) for _ in range(3))
    one.add(slice(0, 5), logits, truth)
    first.add(slice(0, 3), logits[:3], truth[:3])
    second.add(slice(3, 5), logits[3:], truth[3:])
    sent: list[torch.Tensor] = []

    class Sending(World):
        def sum(self, x: torch.Tensor) -> torch.Tensor:
            sent.append(x)
            return sum(sent, torch.zeros_like(x))

    first.scores(Sending())
    assert second.scores(Sending()) == one.scores(ALONE)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        boundary_counts(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), 2)
