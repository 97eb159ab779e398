"""ConRec's corruptions: what they change, what they leave, and that each image's are its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pretune.trainables.views import corruptions
from pretune.trainables.views.corruptions import (
    Blocks,
    corrupt,
    covered,
    draw_blocks,
    in_paint,
    integers,
    out_paint,
    shuffle_pixels,
    shuffled_sources,
)
from pretune.trainables.views.random import uniforms

Draw = Callable[[str, int], NDArray[Any]]
CPU = torch.device("cpu")


def drawing(images: NDArray[np.int64], seed: int = 3) -> Draw:
    return lambda purpose, count: uniforms(seed, purpose, 0, images, 0, count)


def pictures(count: int, size: int) -> Tensor:
    """Every pixel has a value of its own, below 1."""
    return (torch.arange(count * 3 * size * size, dtype=torch.float64) / (count * 3 * size * size)).view(
        count, 3, size, size
    )


def one_block(top: int, left: int, height: int, width: int, used: bool = True) -> Blocks:
    parts = (np.array([[value]], np.int64) for value in (top, left, height, width))
    return Blocks(*parts, np.array([[used]]))


def test_a_block_of_two_by_two_is_permuted_by_its_keys() -> None:
    """3 x 3 pixels 0..8; the block at (1, 1) holds 4, 5, 7, 8. Keys .3 .1 .4 .2 sort its places as 1, 3, 0, 2."""
    source = shuffled_sources(one_block(1, 1, 2, 2), np.array([[[0.3, 0.1, 0.4, 0.2, 0.0]]]), 3)
    assert source.tolist() == [[0, 1, 2, 3, 5, 8, 6, 4, 7]]


def test_an_unused_block_moves_nothing() -> None:
    source = shuffled_sources(one_block(0, 0, 2, 2, used=False), np.array([[[0.4, 0.3, 0.2, 0.1]]]), 3)
    assert source.tolist() == [list(range(9))]


def test_a_later_block_takes_its_pixels_from_the_original() -> None:
    """Both blocks are the row 0, 1 and swap it; composed they would cancel."""
    block = one_block(0, 0, 1, 2)
    twice = Blocks(*(np.repeat(part, 2, axis=1) for part in block))
    assert shuffled_sources(twice, np.array([[[0.2, 0.1], [0.2, 0.1]]]), 2).tolist() == [[1, 0, 2, 3]]


@settings(max_examples=40, deadline=None)
@given(size=st.integers(6, 40), seed=st.integers(0, 10**6))
def test_an_accelerator_shuffles_the_same_pixels(size: int, seed: int) -> None:
    """Blocks overlap: 15 of them in each image."""
    draw = drawing(np.arange(4), seed)
    blocks = corruptions._shuffled_blocks(draw, size)
    keys = draw("shuffle/order", corruptions._keys_of_shuffling(size)).reshape(4, corruptions.SHUFFLE_BLOCKS, -1)
    found = corruptions.sources_on_device(blocks, torch.from_numpy(keys), size)
    assert np.array_equal(found.numpy(), shuffled_sources(blocks, keys, size))


def test_the_pixels_that_a_block_covers() -> None:
    expected = [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert covered(one_block(1, 1, 2, 3), 4, CPU)[0, 0].int().tolist() == expected
    assert not covered(one_block(1, 1, 2, 3, used=False), 4, CPU).any()


@settings(max_examples=25, deadline=None)
@given(size=st.integers(8, 48), seed=st.integers(0, 10**6))
def test_shuffling_takes_every_pixel_from_the_blocks_alone(size: int, seed: int) -> None:
    x = pictures(3, size)
    found = shuffle_pixels(x, drawing(np.arange(3), seed))
    changed = (found.pixels != x).any(dim=1, keepdim=True)
    assert bool(found.mask[changed].all())
    for before, after in zip(x, found.pixels, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())


@settings(max_examples=25, deadline=None)
@given(size=st.integers(8, 70), seed=st.integers(0, 10**6))
def test_in_painting_leaves_all_outside_its_few_colours(size: int, seed: int) -> None:
    x = pictures(4, size)
    found = in_paint(x, drawing(np.arange(4), seed))
    assert torch.equal(found.pixels.masked_fill(found.mask, 0), x.masked_fill(found.mask, 0))
    for image, mask in zip(found.pixels, found.mask, strict=True):
        assert len(image[:, mask[0]].T.unique(dim=0)) <= corruptions.PAINT_BLOCKS


@settings(max_examples=25, deadline=None)
@given(size=st.integers(8, 70), seed=st.integers(0, 10**6))
def test_out_painting_keeps_a_window_and_gives_the_rest_one_colour(size: int, seed: int) -> None:
    x = pictures(4, size)
    found = out_paint(x, drawing(np.arange(4), seed))
    assert torch.equal(found.pixels.masked_fill(found.mask, 0), x.masked_fill(found.mask, 0))
    kept = (~found.mask).sum(dim=(1, 2, 3))
    assert int(kept.min()) >= (size - 3 * size // 7) ** 2  # the smallest side of one window
    for image, mask in zip(found.pixels, found.mask, strict=True):
        assert len(image[:, mask[0]].T.unique(dim=0)) <= 1


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(4, 80),
    low=st.integers(1, 8),
    more=st.integers(1, 8),
    margin=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_blocks_lie_in_the_image_and_sides_in_their_range(
    size: int, low: int, more: int, margin: int, seed: int
) -> None:
    low, high = min(low, size), min(low + more, size + 1)
    blocks = draw_blocks(drawing(np.arange(5), seed), "test", 4, (low, high), size, margin, 0.9)
    for start, side in ((blocks.top, blocks.height), (blocks.left, blocks.width)):
        assert (side >= low).all()
        assert (side < max(high, low + 1)).all()
        inner = np.minimum(margin, (size - side) // 2)
        assert (start >= inner).all()
        assert (start + side <= size - inner + (size - side - 2 * inner == 0)).all()
    assert (np.diff(blocks.used.astype(int), axis=1) <= 0).all()  # once stopped, it stays stopped


def test_in_painted_blocks_of_64_px_keep_3_px_from_the_edge_and_have_the_sides_of_the_public_code() -> None:
    """int(64 * .14) = 8 to int(64 * .2) - 1 = 11; out-painted windows 64 - 26 = 38 to 64 - 18 = 46."""
    draw = drawing(np.arange(400))
    blocks = draw_blocks(draw, "in", 5, (8, 12), 64, 3, 0.95)
    assert (set(np.unique(blocks.height)), int(blocks.top.min())) == ({8, 9, 10, 11}, 3)
    mask = in_paint(torch.zeros(400, 3, 64, 64), draw).mask
    assert not mask[..., :3].any()
    assert not mask[..., :3, :].any()
    rows = (~out_paint(torch.zeros(400, 3, 64, 64), draw).mask).any(dim=3).sum(dim=2)
    assert int(rows.min()) >= 38


def test_whole_numbers_from_draws() -> None:
    """[3, 7) has four numbers, a quarter of [0, 1) each; an empty range gives its lower end."""
    draws = np.array([0.0, 0.24, 0.25, 0.74, 0.99])
    assert integers(draws, 3, 7).tolist() == [3, 3, 4, 5, 6]
    assert integers(draws, 3, 3).tolist() == [3] * 5


def test_about_a_third_of_the_images_get_each_corruption() -> None:
    """2000 images with all-white pixels: out-painting covers much, in-painting some, shuffled white stays white."""
    x = torch.ones(2000, 3, 16, 16)
    found = corrupt(x, drawing(np.arange(2000)))
    changed = (found.pixels != x).flatten(1).any(dim=1)
    white = float((~changed).float().mean())
    assert white == pytest.approx(0.33 + 0.33 * 0.05, abs=0.03)  # in-painting stops before its first block 1 in 20
    assert float((found.mask.float().mean(dim=(1, 2, 3)) == 0).float().mean()) == pytest.approx(0.02, abs=0.02)


def test_an_images_corruption_depends_on_the_image_and_not_on_its_batch() -> None:
    x = pictures(6, 24)
    order = np.array([4, 0, 5, 2])
    whole = corrupt(x, drawing(np.arange(6)))
    part = corrupt(x[torch.from_numpy(order)], drawing(order))
    assert torch.equal(part.pixels, whole.pixels[order])
    assert torch.equal(part.mask, whole.mask[order])


def test_the_original_is_left_as_it_is() -> None:
    x = pictures(8, 16)
    before = x.clone()
    corrupt(x, drawing(np.arange(8)))
    assert torch.equal(x, before)
