"""Sliding windows: where they lie, their weights, and the mean of their logits, worked by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretune.search_spaces.schema import Evaluate
from pretune.trainables.windows import importance, slide, starts


def nnunet_steps(length: int, window: int, step: float) -> list[int]:
    """`compute_steps_for_sliding_window` of nnU-Net 2 along one side; its step is 1 - overlap.

    In exact fractions: its float of a place between two pixels, as 61.5, may lie on either side.
    """
    count = math.ceil((length - window) / (window * step)) + 1
    actual = Fraction(length - window, max(1, count - 1))
    return [round(actual * i) for i in range(count)]


@given(window=st.integers(1, 32), more=st.integers(0, 200), eighths=st.integers(0, 7))
@settings(deadline=None)
def test_windows_lie_where_nnunet_has_them(window: int, more: int, eighths: int) -> None:
    window *= 8  # so that both steps are whole numbers
    assert starts(window + more, window, eighths / 8) == nnunet_steps(window + more, window, 1 - eighths / 8)


@pytest.mark.parametrize(("length", "window", "overlap"), [(8, 9, 0.5), (8, 0, 0.5), (8, 4, 1.0), (8, 4, -0.1)])
def test_windows_that_cannot_lie_are_refused(length: int, window: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="need 1 <= tile"):
        starts(length, window, overlap)


@pytest.mark.parametrize("size", [4, 5, 32])
def test_the_gaussian_is_that_of_monai(size: int) -> None:
    """`compute_importance_map(mode="gaussian", sigma_scale=0.125)`: written out, pixel by pixel."""
    sigma, centre = size / 8, (size - 1) / 2
    expected = [
        [max(math.exp(-((y - centre) ** 2 + (x - centre) ** 2) / (2 * sigma**2)), 1e-3) for x in range(size)]
        for y in range(size)
    ]
    torch.testing.assert_close(importance(size, "gaussian"), torch.tensor(expected), rtol=1e-5, atol=1e-9)


def columns(windows: Tensor) -> Tensor:
    """Logits that depend on the place in the window: its column, and minus that."""
    n, size = windows.shape[:2]
    at = torch.arange(size).float().expand(n, 1, size, size)
    return torch.cat([at, -at], dim=1)


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_logits_of_two_uniform_windows_are_their_mean(at_once: int) -> None:
    """4 x 6 px, windows of 4 px from columns 0 and 2: columns 2 and 3 have (2 + 0) / 2 and (3 + 1) / 2."""
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    found = slide(image, 4, Evaluate(overlap=0.5, weights="uniform"), columns, at_once)
    row = torch.tensor([0.0, 1, 1, 2, 2, 3])
    assert torch.equal(found, torch.stack([row.expand(4, 6), -row.expand(4, 6)]))


def test_logits_of_two_gaussian_windows_are_weighted_by_their_distance_from_the_centre() -> None:
    """The same: a window's columns weigh exp(-4.5), exp(-0.5), exp(-0.5), exp(-4.5) at sigma 0.5.

    In row 1 two windows over column 2 weigh exp(-1) and exp(-5); in row 0 exp(-5), and 0.001 in place of exp(-9).
    """
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    found = slide(image, 4, Evaluate(), columns, 8)[0]
    near, far = math.exp(-0.5), math.exp(-4.5)
    assert float(found[1, 2]) == pytest.approx(2 * near * near / (near * near + near * far))
    assert float(found[0, 2]) == pytest.approx(2 * far * near / (far * near + 1e-3))
    assert found[1, [0, 1, 4, 5]].tolist() == pytest.approx([0, 1, 2, 3])


@given(
    height=st.integers(5, 14), width=st.integers(5, 14), overlap=st.floats(0, 0.9), at_once=st.integers(1, 9),
    weights=st.sampled_from(["gaussian", "uniform"]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_network_that_knows_no_place_gives_its_answer_whatever_the_overlap(
    height: int, width: int, overlap: float, at_once: int, weights: str
) -> None:
    """A pointwise network: the logits are those of one pass over the image."""
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    found = slide(image, 5, Evaluate(overlap=overlap, weights=weights), lambda x: x.float().movedim(-1, 1), at_once)  # type: ignore[arg-type]
    torch.testing.assert_close(found, image.float().movedim(-1, 0))
