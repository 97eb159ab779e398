"""Models Genesis' corruptions against slow references written from the paper and its description of the code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.methods.genesis import Genesis
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.restored import restored
from pretune.trainables.models import genesis_unet
from pretune.trainables.views import genesis
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of
from pretune.trainables.views.volumes import MIRROR_DRAWS, drawn_mirrors, mirror

few = settings(max_examples=30, deadline=None)
PUBLISHED = genesis.Rates(shuffle=0.5, blocks=10000, intensity=0.9, paint=0.9, in_paint=0.2)
ALWAYS = genesis.Rates(shuffle=1.0, blocks=50, intensity=1.0, paint=1.0, in_paint=0.5)
shapes = st.sampled_from([(16, 32, 32), (32, 64, 64), (24, 40), (9, 12, 30)])
seeds = st.integers(0, 2**32)


def draws(indices: NDArray[np.int64], seed: int = 0) -> genesis.Draw:
    return lambda name, count: uniforms(seed, name, 0, indices, 0, count)


def test_the_defaults_are_the_published_chances() -> None:
    """Their `config.py`: nonlinear 0.9, paint 0.9, outpaint 0.8, local 0.5, flip 0.4; 10000 blocks."""
    method = schema.Genesis(name="genesis")
    assert (method.intensity, method.paint, method.in_paint, method.shuffle) == (0.9, 0.9, 0.2, 0.5)
    assert (method.flip, method.shuffle_blocks) == (0.4, 10000)


# --------------------------------------------------------------------------------------------------------- intensity


def bezier(points: list[float], falling: bool, count: int = 100_000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """De Casteljau's construction at `count` places; x in rising order, y in rising order unless falling."""
    p = [np.array(point)[:, None] for point in ((0, 0), points[:2], points[2:], (1, 1))]
    t = np.linspace(0, 1, count)
    while len(p) > 1:
        p = [(1 - t) * a + t * b for a, b in pairwise(p)]
    x, y = p[0]
    return np.sort(x), np.sort(y)[::-1] if falling else np.sort(y)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.booleans(), seeds)
@few
def test_intensities_follow_the_bezier_curve(points: list[float], falling: bool, seed: int) -> None:
    """Between two of our points y changes by at most 3 / 4095, since |dy/ds| <= 3: a steep curve may be off by that."""
    x = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 50)))
    x[0, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    found = genesis.change_intensity(x, np.array([points]), np.array([falling]))
    expected = np.interp(x.numpy(), *bezier(points, falling))
    np.testing.assert_allclose(found.numpy(), expected, atol=8e-4)


def test_the_straight_curve_changes_nothing_and_the_falling_one_inverts() -> None:
    """Control points on the diagonal at 1/3 and 2/3: x(s) = y(s) = s."""
    x = torch.rand(2, 1, 4, 4, 4)
    points = np.array([[1 / 3, 1 / 3, 2 / 3, 2 / 3]] * 2)
    found = genesis.change_intensity(x, points, np.array([False, True]))
    torch.testing.assert_close(found[0], x[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], 1 - x[1], atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------------- shuffling


def shuffled(volume: NDArray[Any], blocks: int, rng: np.random.Generator) -> NDArray[Any]:
    """Block by block: a window of the original, its voxels in the order of their keys, into the result."""
    shape, result = volume.shape, volume.copy()
    sides = np.stack([rng.integers(1, max(1, n // 10) + 1, blocks) for n in shape], axis=1)
    starts = rng.integers(0, np.array(shape) - sides + 1)
    for start, side in zip(starts, sides, strict=True):
        window = tuple(slice(a, a + n) for a, n in zip(start, side, strict=True))
        values = volume[window].ravel()
        keys = rng.random(values.size)
        result[window] = values[np.argsort(keys)].reshape(side)
    return result


@given(shapes, st.integers(1, 200), seeds)
@few
def test_shuffling_is_the_block_by_block_one(shape: tuple[int, ...], blocks: int, seed: int) -> None:
    volume = np.arange(np.prod(shape)).reshape(shape)
    source = genesis.shuffled_sources(shape, blocks, np.random.default_rng(seed))
    expected = shuffled(volume, blocks, np.random.default_rng(seed))
    assert np.array_equal(volume.ravel()[source].reshape(shape), expected)


@given(shapes, seeds)
@few
def test_no_voxel_goes_further_than_a_tenth_of_the_side(shape: tuple[int, ...], seed: int) -> None:
    source = genesis.shuffled_sources(shape, 500, np.random.default_rng(seed))
    places, origins = (np.stack(np.unravel_index(flat, shape)) for flat in (np.arange(len(source)), source))
    assert np.all(np.abs(places - origins).max(axis=1) <= np.maximum(1, np.array(shape) // 10) - 1)


def test_ten_thousand_blocks_move_as_much_of_the_published_cube_as_the_slow_loop() -> None:
    """As many as the block-by-block loop moves."""
    source = genesis.shuffled_sources((32, 64, 64), 10000, np.random.default_rng(0))
    moved = np.mean(source != np.arange(len(source)))
    volume = np.arange(32 * 64 * 64).reshape(32, 64, 64)
    slow = np.mean(shuffled(volume, 10000, np.random.default_rng(1)) != volume)
    assert moved == pytest.approx(slow, abs=0.01)


# ---------------------------------------------------------------------------------------------------------- painting


def extent(inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last place along each axis."""
    return [(int(places.min()), int(places.max())) for places in np.nonzero(inside)]


@given(seeds)
@few
def test_an_in_painted_block_has_sides_of_a_sixth_to_a_third_away_from_the_faces(seed: int) -> None:
    """randint(n // 6, n // 3): 10 to 21 of 64, 5 to 10 of 32; starts at 3, ends before n - 3."""
    inside = genesis.covered((32, 64, 64), [(5, 10), (10, 21), (10, 21)], 1, np.random.default_rng(seed))
    for (first, last), n in zip(extent(inside), (32, 64, 64), strict=True):
        assert n // 6 <= last - first + 1 <= n // 3
        assert first >= 3
        assert last <= n - 4
    assert inside.sum() == np.prod([last - first + 1 for first, last in extent(inside)])


def test_both_ends_of_every_range_are_reached() -> None:
    """As by Python's randint, whose bounds are inclusive."""
    blocks = [extent(genesis.covered((12, 64), [(2, 4), (10, 21)], 1, np.random.default_rng(i))) for i in range(2000)]
    sides = np.array([[last - first + 1 for first, last in block] for block in blocks])
    assert (sides.min(axis=0).tolist(), sides.max(axis=0).tolist()) == ([2, 10], [4, 21])
    firsts = np.array([block[0][0] for block in blocks if block[0][1] - block[0][0] == 1])  # sides of 2
    assert (firsts.min(), firsts.max()) == (3, 7)  # 12 - 2 - 3


@given(seeds)
@few
def test_out_painting_keeps_windows_of_three_to_four_sevenths(seed: int) -> None:
    """n - randint(3 n // 7, 4 n // 7): 28 to 37 of 64, 14 to 19 of 32; the union of one to five of them."""
    kept = ~genesis.out_painted((32, 64, 64), np.random.default_rng(seed))
    for (first, last), n, least in zip(extent(kept), (32, 64, 64), (14, 28, 28), strict=True):
        assert first >= 3
        assert last <= n - 4
        assert last - first + 1 >= least
    one = genesis.covered((32, 64, 64), [(14, 19), (28, 37), (28, 37)], 1, np.random.default_rng(seed))
    assert 14 * 28 * 28 <= one.sum() <= 19 * 37 * 37


def test_how_many_blocks() -> None:
    """k < 5 blocks with the chance 0.05 * 0.95^k, five with 0.95^5."""
    rng = np.random.default_rng(0)
    counts = np.bincount([genesis.going_on(5, rng) for _ in range(20_000)], minlength=6) / 20_000
    expected = [0.05 * 0.95**k for k in range(5)] + [0.95**5]
    np.testing.assert_allclose(counts, expected, atol=0.01)  # 4 standard deviations of the largest: 0.012


@given(shapes, seeds)
@few
def test_small_volumes_are_painted_too(shape: tuple[int, ...], seed: int) -> None:
    small = tuple(max(2, n // 6) for n in shape)
    rng = np.random.default_rng(seed)
    assert genesis.in_painted(small, rng).shape == genesis.out_painted(small, rng).shape == small


# ---------------------------------------------------------------------------------------------------------- together


def corrupted(x: Tensor, index: int, rates: genesis.Rates) -> Tensor:
    """One volume (C, ...): shuffled, then changed in intensity, then painted."""
    draw = draws(np.array([index]))
    seed = [int(draw(f"{name}/seed", 1)[0, 0] * 2**53) for name in ("shuffle", "paint")]
    y = torch.from_numpy(np.stack([shuffled(c, rates.blocks, np.random.default_rng(seed[0])) for c in x.numpy()]))
    points = draw("intensity", 5)
    y = genesis.change_intensity(y[None], points[:, :4], points[:, 4] < 0.5)[0]
    rng = np.random.default_rng(seed[1])
    where = genesis.in_painted if draw("in-paint?", 1)[0, 0] < rates.in_paint else genesis.out_painted
    painted = where(tuple(x.shape[1:]), rng)
    noise = rng.random(x.shape, np.float32)
    return torch.where(torch.from_numpy(painted), torch.from_numpy(noise), y)


@pytest.mark.parametrize("shape", [(1, 12, 24, 24), (3, 24, 30)])
def test_the_order_is_shuffling_intensity_painting(shape: tuple[int, ...]) -> None:
    x = torch.rand(6, *shape)
    found = genesis.corrupt(x, draws(np.arange(6)), ALWAYS)
    for b in range(6):
        assert torch.equal(found[b], corrupted(x[b], b, ALWAYS))


def test_each_corruption_comes_with_its_own_chance() -> None:
    """Over 600 images, each alone: the share that is changed, within 4 standard deviations (0.08)."""
    x, draw = torch.rand(600, 1, 12, 20), draws(np.arange(600))
    off = genesis.Rates(0.0, 200, 0.0, 0.0, 0.0)
    for chance, rates in (
        (0.5, off._replace(shuffle=0.5)),
        (0.9, off._replace(intensity=0.9)),
        (0.9, off._replace(paint=0.9)),
    ):
        changed = (genesis.corrupt(x, draw, rates) != x).flatten(1).any(1).float().mean()
        assert float(changed) == pytest.approx(chance, abs=0.08)
    assert torch.equal(genesis.corrupt(x, draw, off), x)


def test_an_image_is_corrupted_by_its_index_whatever_stands_beside_it() -> None:
    x, order = torch.rand(8, 1, 8, 20, 20), np.array([5, 2, 7])
    rates = PUBLISHED._replace(blocks=100)
    whole = genesis.corrupt(x, draws(np.arange(8)), rates)
    assert torch.equal(genesis.corrupt(x[order], draws(order), rates), whole[order])
    assert not torch.equal(genesis.corrupt(x, draws(np.arange(8), seed=1), rates), whole)


@given(seeds, st.floats(0, 1), st.sampled_from([2, 3]))
@few
def test_mirroring_is_one_flip_after_the_other(seed: int, chance: float, axes: int) -> None:
    numbers = np.random.default_rng(seed).random((4, MIRROR_DRAWS))
    x = torch.rand(4, 1, *(3, 4, 5)[:axes])
    expected = x.clone()
    for b, row in enumerate(numbers):
        for going_on, along in zip(row[:3], row[3:], strict=True):
            if going_on >= chance:
                break
            expected[b] = expected[b].flip(1 + int(along * axes))
    assert torch.equal(mirror(x, drawn_mirrors(numbers, chance, axes), 2), expected)


def method_of(dimensions: int, **rates: Any) -> Genesis:
    torch.manual_seed(0)
    encoder = genesis_unet.Encoder((4, 8), dimensions)
    decoder = genesis_unet.Decoder((4, 8), dimensions, "nearest", True)
    channels = {2: 3, 3: 1}[dimensions]
    return Genesis(encoder, decoder, schema.Views(size=8), channels, rates=ALWAYS._replace(**rates), flip=1.0)


def test_the_loss_is_the_squared_error_to_the_mirrored_original() -> None:
    """Volumes are taken whole: the target is x / 255 under the same mirroring as what is corrupted."""
    volumes = torch.randint(0, 256, (3, 4, 8, 8, 1), dtype=torch.uint8)
    indices, method = np.arange(3), method_of(3).eval()
    draw = draws(indices)
    batch = Batch(views_of(volumes, indices, method.recipes, 0, 0), draw)
    target = volumes.permute(0, 4, 1, 2, 3).double() / 255
    target = mirror(target, drawn_mirrors(draw("flip", MIRROR_DRAWS), 1.0, 3), 2)
    with torch.no_grad():
        loss, diagnostics = method(batch, 0.0)
        given = genesis.corrupt(target.float(), draw, method.rates)
        restored = torch.sigmoid(method.output(method.decoder(method.encoder(given))))
    assert float(loss) == pytest.approx(float((restored.double() - target).square().mean()), rel=1e-5)
    variance = float(target.var(correction=0))
    assert float(diagnostics["loss_over_uniform"]) == pytest.approx(float(loss) / variance, rel=1e-4)


def test_images_in_two_dimensions_are_restored_in_colour() -> None:
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    method = method_of(2)
    assert isinstance(method.output, nn.Conv2d)
    loss, _ = method(Batch(views_of(images, np.arange(2), method.recipes, 0, 0), draws(np.arange(2))), 0.0)
    assert loss.shape == ()


def test_what_is_shown_and_restored_for_looking_at() -> None:
    volumes = torch.randint(0, 256, (3, 4, 8, 8, 1), dtype=torch.uint8)
    method = method_of(3).eval()
    batch = Batch(views_of(volumes, np.arange(3), method.recipes, 0, 0), draws(np.arange(3)))
    found, (loss, _) = restored(method, batch), method(batch, 0.0)
    assert found.original.shape == found.shown.shape == found.output.shape == (3, 1, 4, 8, 8)
    assert torch.equal(found.shown, genesis.corrupt(found.original, batch.draw, method.rates))
    error = (found.output - found.original).square().mean()
    torch.testing.assert_close(error, loss.detach())
