"""Random numbers, per-sample transforms, views, joint transforms; the reference is torchvision, image by image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import map_coordinates
from torch import Tensor
from torchvision.transforms import ElasticTransform, InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as TV

from pretune.search_spaces import schema
from pretune.trainables.views import color, geometry, two_views
from pretune.trainables.views.drawn import View, blur_kernel
from pretune.trainables.views.joint import evaluation_batch, fine_tune_batch
from pretune.trainables.views.random import _mix, uniforms, uniforms_on
from pretune.trainables.views.two_views import jitter, jitter_factors, make_views

B = 12
INDICES = np.arange(100, 100 + B)
NEUTRAL = schema.Views(size=16, crop=(1, 1), aspect=(1, 1), flip=0, color_jitter=0)
ALL = schema.Views(size=16, gray=0.3, blur=0.5, extra=("elastic", "rotation", "posterize", "solarize"))


def photos(height: int = 20, width: int = 24, count: int = B) -> Tensor:
    """uint8 (count, H, W, 3): smooth gradients of many hues with noise; sample 0 is plain grey, 1 black, 2 white."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    x = F.interpolate(coarse, (height, width), mode="bilinear") + 0.1 * torch.rand(
        count, 3, height, width, generator=generator
    )
    images = (x / x.max() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    for sample, value in enumerate((128, 0, 255)):
        images[sample] = value
    return images


def floats() -> Tensor:
    return photos().permute(0, 3, 1, 2).float().div(255).contiguous()


def drawn(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, B, dtype=torch.float32)


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# -------------------------------------------------------------------------------------------------------- random


def test_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 seeded with 1234567 (rosettacode.org, Pseudo-random numbers/Splitmix64)."""
    state = [(1234567 + (k + 1) * 0x9E3779B97F4A7C15) % 2**64 for k in range(5)]
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert _mix(np.array(state, dtype=np.uint64)).tolist() == expected


@given(seed=st.integers(0, 2**63), order=st.permutations(range(8)), cut=st.integers(0, 8))
@settings(deadline=None, max_examples=30)
def test_uniforms_do_not_depend_on_the_batch(seed: int, order: list[int], cut: int) -> None:
    images = np.arange(5, 13)
    whole = uniforms(seed, "a", 3, images, 1, 4)
    assert np.array_equal(uniforms(seed, "a", 3, images[order], 1, 4), whole[order])
    parts = [uniforms(seed, "a", 3, part, 1, 4) for part in (images[:cut], images[cut:])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(uniforms(seed, "a", 3, images, 1, 9)[:, :4], whole)


@given(
    seed=st.integers(-(2**62), 2**63), epoch=st.integers(0, 10**6), view=st.integers(0, 9), image=st.integers(0, 2**40)
)
@settings(deadline=None, max_examples=30)
def test_a_device_draws_the_same_bits(seed: int, epoch: int, view: int, image: int) -> None:
    images = np.array([image, 0, 7, 123_456_789])
    found = uniforms_on(torch.device("cpu"), seed, "a/b", epoch, images, view, 70)
    assert np.array_equal(found.numpy(), uniforms(seed, "a/b", epoch, images, view, 70))


def test_uniforms_differ_in_every_argument() -> None:
    one = np.array([1])
    arguments = [
        (0, "a", 0, one, 0),
        (1, "a", 0, one, 0),
        (0, "b", 0, one, 0),
        (0, "a", 1, one, 0),
        (0, "a", 0, one + 1, 0),
        (0, "a", 0, one, 1),
        (-1, "a", 0, one, 0),
    ]
    draws = {
        float(uniforms(seed, stream, epoch, images, view, 1)[0, 0]) for seed, stream, epoch, images, view in arguments
    }
    assert len(draws) == len(arguments)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    """20,000 draws; |r| < 0.028 is four standard errors of a correlation of independent numbers."""
    base = uniforms(0, "a", 0, np.arange(20_000), 0, 2)
    assert base.min() >= 0
    assert base.max() < 1
    assert stats.kstest(base[:, 0], "uniform").pvalue > 1e-3
    assert stats.kstest(uniforms(0, "a", 0, np.array([7]), 0, 20_000)[0], "uniform").pvalue > 1e-3
    neighbours = {
        "image": base[1:, 0],
        "draw": base[:, 1],
        "epoch": uniforms(0, "a", 1, np.arange(20_000), 0, 1)[:, 0],
        "view": uniforms(0, "a", 0, np.arange(20_000), 1, 1)[:, 0],
        "seed": uniforms(1, "a", 0, np.arange(20_000), 0, 1)[:, 0],
    }
    for name, other in neighbours.items():
        assert abs(np.corrcoef(base[: len(other), 0], other)[0, 1]) < 0.028, name


# --------------------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("ours", "reference", "low", "high", "tolerance"),
    [
        (color.adjust_brightness, TV.adjust_brightness, 0.0, 2.0, 1e-4),
        (color.adjust_contrast, TV.adjust_contrast, 0.0, 2.0, 1e-4),
        (color.adjust_saturation, TV.adjust_saturation, 0.0, 2.0, 1e-4),
        (color.adjust_hue, TV.adjust_hue, -0.5, 0.5, 1e-3),
        (color.solarize, TV.solarize, 0.0, 1.0, 1e-4),
    ],
)
def test_color_transform_equals_torchvision_sample_by_sample(ours, reference, low, high, tolerance) -> None:  # type: ignore[no-untyped-def]
    x, parameters = floats(), drawn(low, high)
    before = x.clone()
    expected = torch.stack([reference(image, float(p)) for image, p in zip(x, parameters, strict=True)])
    assert max_difference(ours(x, parameters), expected) < tolerance
    assert torch.equal(x, before), "the input was changed"


@given(pixel=st.tuples(*[st.integers(0, 255)] * 3), shift=st.floats(-0.5, 0.5, width=32))
@settings(deadline=None, max_examples=100)
def test_hue_of_any_color_equals_torchvision(pixel: tuple[int, int, int], shift: float) -> None:
    x = torch.tensor(pixel, dtype=torch.float32).div(255).reshape(1, 3, 1, 1)
    assert max_difference(color.adjust_hue(x, torch.tensor([shift]))[0], TV.adjust_hue(x[0], shift)) < 1e-3


def test_hue_by_a_third_turns_red_into_green() -> None:
    red = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    assert color.adjust_hue(red, torch.tensor([1 / 3])).flatten().tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_to_gray_equals_torchvision() -> None:
    assert max_difference(color.to_gray(floats()), TV.rgb_to_grayscale(floats(), num_output_channels=3)) < 1e-5


@pytest.mark.parametrize("kernel", [3, 7])
def test_blur_equals_torchvision_sample_by_sample(kernel: int) -> None:
    x, sigmas = floats(), drawn(0.1, 2.0)
    expected = [TV.gaussian_blur(image, [kernel, kernel], [float(s)]) for image, s in zip(x, sigmas, strict=True)]
    assert max_difference(color.gaussian_blur(x, sigmas, kernel), torch.stack(expected)) < 1e-4


@pytest.mark.parametrize("dim", [2, 3])
def test_both_ways_to_filter_agree(dim: int) -> None:
    """The depthwise convolution is what runs on a GPU; the parity test above sees the sum of shifts."""
    x, weights = floats(), color._gaussian(drawn(0.1, 2.0), 7)
    turned = x if dim == 2 else x.transpose(2, 3)
    convolved = color._filter_columns(turned, weights)
    expected = convolved if dim == 2 else convolved.transpose(2, 3)
    assert max_difference(color._sum_of_shifts(x, weights, dim), expected) < 1e-6


@pytest.mark.parametrize("kernel", [4, 41])
def test_blur_refuses_a_kernel_that_is_even_or_too_large(kernel: int) -> None:
    with pytest.raises(ValueError, match="kernel must be odd"):
        color.gaussian_blur(floats(), drawn(1, 1), kernel)


def test_posterize_equals_torchvision_sample_by_sample() -> None:
    x, bits = floats(), torch.arange(B) % 8 + 1
    expected = [TV.posterize(image, int(b)) for image, b in zip(x, bits, strict=True)]
    assert max_difference(color.posterize(x, bits), torch.stack(expected)) < 1e-4


# ------------------------------------------------------------------------------------------------------- geometry


def reference_box(draws: np.ndarray, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]):  # type: ignore[no-untyped-def]
    """torchvision's loop, with given random numbers."""
    for k in range(10):
        target = height * width * (area[0] + (area[1] - area[0]) * draws[k])
        ratio = math.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * draws[10 + k])
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w]
    return None


@given(
    seed=st.integers(0, 1000),
    height=st.integers(4, 60),
    width=st.integers(4, 60),
    area=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    aspect=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
)
@settings(deadline=None, max_examples=60)
def test_crop_boxes_follow_torchvisions_rule(seed: int, height: int, width: int, area, aspect) -> None:  # type: ignore[no-untyped-def]
    draws = uniforms(seed, "crop", 0, np.arange(6), 0, geometry.CROP_DRAWS)
    boxes = geometry.crop_boxes(draws, height, width, area, aspect)
    for box, row in zip(boxes.tolist(), draws, strict=True):
        expected = reference_box(row, height, width, area, aspect)
        assert box == (expected or geometry.central_box(height, width, aspect).tolist())
        top, left, h, w = box
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width


@pytest.mark.parametrize(("height", "width", "aspect"), [(20, 30, (1.0, 1.0)), (31, 20, (1.0, 1.2)), (20, 20, (2, 3))])
def test_crop_falls_back_to_torchvisions_central_box(height: int, width: int, aspect: tuple[float, float]) -> None:
    """The whole area at an aspect that the image does not have never fits: torchvision's own fallback is certain."""
    expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], list(aspect))
    draws = uniforms(0, "crop", 0, np.arange(2), 0, geometry.CROP_DRAWS)
    assert geometry.crop_boxes(draws, height, width, (1.0, 1.0), aspect).tolist() == [list(expected)] * 2


def test_crop_boxes_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 64, 48)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)])
    draws = uniforms(0, "crop", 0, np.arange(1500), 0, geometry.CROP_DRAWS)
    ours = geometry.crop_boxes(draws, 64, 48, (0.08, 1.0), (3 / 4, 4 / 3))
    for k, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(ours[:, k], theirs[:, k]).pvalue > 1e-3, name


@given(
    box=st.tuples(st.integers(0, 12), st.integers(0, 15), st.integers(1, 8), st.integers(1, 9)),
    size=st.integers(1, 20),
    flipped=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_crop_resize_equals_torchvision(box: tuple[int, int, int, int], size: int, flipped: bool) -> None:
    x = floats()[3:5]
    boxes, mirrored = torch.tensor([box, (0, 0, 20, 24)]), torch.tensor([flipped, not flipped])
    ours = geometry.crop_resize(x, boxes, mirrored, size)
    for image, given_box, mirror, result in zip(x, boxes.tolist(), mirrored, ours, strict=True):
        expected = TV.resized_crop(image, *given_box, [size, size], antialias=False)
        assert max_difference(result, expected.flip(-1) if mirror else expected) < 1e-4


def test_crop_resize_of_bytes_is_that_of_floats_in_any_memory_format() -> None:
    images = photos().permute(0, 3, 1, 2)  # uint8, channels last
    boxes = torch.tensor([(i, i, 20 - i, 24 - 2 * i) for i in range(8)] + [(0, 0, 20, 24)] * 4)
    flipped = torch.arange(B) % 2 == 0
    results = [
        geometry.crop_resize(given_, boxes, flipped, 16)
        for given_ in (images, images.contiguous(), images.float(), images.float().contiguous())
    ]
    for result in results:
        assert result.dtype == torch.float32
        assert torch.equal(result, results[0])


@given(
    box=st.tuples(st.integers(0, 12), st.integers(0, 15), st.integers(1, 8), st.integers(1, 9)),
    size=st.integers(1, 20),
    flipped=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_crop_resize_masks_takes_the_nearest_pixel(box: tuple[int, int, int, int], size: int, flipped: bool) -> None:
    """Output pixel i covers the source from i h / S; its centre (2i + 1) h / 2S lies in source pixel floor of that."""
    mask = torch.randint(0, 256, (1, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    top, left, h, w = box
    ours = geometry.crop_resize_masks(mask, torch.tensor([box]), torch.tensor([flipped]), size)[0]
    for i in range(size):
        for j in range(size):
            column = size - 1 - j if flipped else j
            assert ours[i, j] == mask[0, top + (2 * i + 1) * h // (2 * size), left + (2 * column + 1) * w // (2 * size)]


def test_rotation_equals_torchvision_sample_by_sample() -> None:
    x, degrees = photos(20, 20).permute(0, 3, 1, 2).float().div(255).contiguous(), drawn(-180, 180)
    bilinear = InterpolationMode.BILINEAR
    expected = [TV.rotate(image, float(d), bilinear) for image, d in zip(x, degrees, strict=True)]
    assert max_difference(geometry.rotate(x, degrees), torch.stack(expected)) < 1e-4


def test_a_quarter_turn_takes_the_right_column_to_the_top_row() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, :, 3] = torch.tensor([1.0, 2, 3, 4])
    assert geometry.rotate(x, torch.tensor([90.0]))[0, 0, 0].tolist() == pytest.approx([1, 2, 3, 4], abs=1e-5)


def test_elastic_equals_torchvision_sample_by_sample() -> None:
    x = floats()
    displacement = 0.3 * torch.randn(B, 20, 24, 2, generator=torch.Generator().manual_seed(0))
    expected = [TV.elastic(image, d[None]) for image, d in zip(x, displacement, strict=True)]
    assert max_difference(geometry.elastic(x, displacement), torch.stack(expected)) < 1e-4


@pytest.mark.parametrize("size", [64, 96])
def test_elastic_field_has_torchvisions_spread_and_smoothness(size: int) -> None:
    torch.manual_seed(0)
    alpha, sigma = 50 * size / 224, 5 * size / 224
    theirs = torch.cat([ElasticTransform.get_params([alpha] * 2, [sigma] * 2, [size, size]) for _ in range(200)])
    draws = uniforms(0, "elastic", 0, np.arange(200), 0, 2 * geometry.elastic_nodes(size) ** 2)
    ours = geometry.elastic_field(torch.from_numpy(draws), size)
    inner = slice(10, -10)  # torchvision reflects its noise at the border, and so doubles the variance there
    assert ours.shape == theirs.shape
    for axis in (0, 1):
        a, b = (field[:, inner, inner, axis].double() for field in (ours, theirs))
        assert float(a.std() / b.std()) == pytest.approx(1, abs=0.05)
        for lag in (1, 2, 4):
            correlations = [np.corrcoef(f[..., lag:].flatten(), f[..., :-lag].flatten())[0, 1] for f in (a, b)]
            assert correlations[0] == pytest.approx(correlations[1], abs=0.04), lag
    assert abs(np.corrcoef(ours[..., 0].flatten(), ours[..., 1].flatten())[0, 1]) < 0.05


def test_elastic_field_is_correlated_like_blurred_white_noise() -> None:
    """White noise blurred with a Gaussian of sigma has correlation exp(-d^2 / 4 sigma^2) at distance d."""
    weights = geometry._node_weights(64, geometry.elastic_nodes(64))
    covariance, sigma = weights @ weights.T, 5 * 64 / 224
    distance = torch.arange(64.0)[:, None] - torch.arange(64.0)
    expected = torch.exp(-(distance**2) / (4 * sigma**2)) / (2 * math.sqrt(math.pi) * sigma)
    assert max_difference(covariance / covariance[0, 0], expected.double() / expected[0, 0].double()) < 0.04
    assert covariance.diagonal().numpy() == pytest.approx(float(expected[0, 0]))


# ---------------------------------------------------------------------------------------------------------- views


def test_views_without_randomness_are_the_resized_images() -> None:
    images = photos(20, 20)
    expected = F.interpolate(images.permute(0, 3, 1, 2).float() / 255, (16, 16), mode="bilinear")
    for view in make_views(images, INDICES, NEUTRAL, seed=0, epoch=0):
        assert max_difference(view.pixels, expected) < 1e-5
        assert view.boxes.tolist() == [[0, 0, 1, 1]] * B
        assert not view.flipped.any()


def test_views_are_float32_channels_last_and_in_range() -> None:
    views = make_views(photos(), INDICES, ALL, seed=0, epoch=0, views=3)
    assert len(views) == 3
    for view in views:
        assert view.pixels.shape == (B, 3, 16, 16)
        assert view.pixels.dtype == view.boxes.dtype == torch.float32
        assert view.pixels.is_contiguous(memory_format=torch.channels_last)
        assert view.pixels.min() >= 0
        assert view.pixels.max() <= 1 + 1e-6


def test_a_view_is_the_crop_that_its_box_describes() -> None:
    images = photos()
    settings_ = schema.Views(size=16, color_jitter=0)
    for view in make_views(images, INDICES, settings_, seed=4, epoch=2):
        assert 0 < int(view.flipped.sum()) < B
        for image, pixels, box, flipped in zip(images, view.pixels, view.boxes, view.flipped, strict=True):
            top, left, h, w = (box * torch.tensor([20, 24, 20, 24])).round().int().tolist()
            planes = image.permute(2, 0, 1).float() / 255
            expected = TV.resized_crop(planes, top, left, h, w, [16, 16], antialias=False)
            assert max_difference(pixels, expected.flip(-1) if flipped else expected) < 1e-4


def test_color_jitter_is_torchvisions_four_adjustments_in_order() -> None:
    images = photos(16, 16)
    settings_ = NEUTRAL.model_copy(update={"color_jitter": 1.0, "color_jitter_probability": 0.5})
    [view] = make_views(images, INDICES, settings_, seed=2, epoch=0, views=1)
    factors = jitter_factors(uniforms(2, "views/jitter", 0, INDICES, 0, 4), 1.0)
    changed = 0
    for image, pixels, (b, c, s, h) in zip(images[3:], view.pixels[3:], factors[3:].tolist(), strict=True):
        plain = image.permute(2, 0, 1).float() / 255
        jittered = TV.adjust_brightness(plain, b)
        jittered = TV.adjust_saturation(TV.adjust_contrast(jittered, c), s)
        jittered = TV.adjust_hue(jittered, h)
        untouched = max_difference(pixels, plain) < 1e-4
        assert untouched or max_difference(pixels, jittered) < 1e-3
        changed += not untouched
    assert 0 < changed < B - 3


def test_jitter_factors_span_torchvisions_ranges() -> None:
    """s = 0.5: factors in 1 ± 0.4, hue ± 0.1; s = 1.25: factors in [0, 2], hue ± 0.25."""
    low, middle = np.zeros((1, 4)), np.full((1, 4), 0.5)
    assert jitter_factors(low, 0.5)[0] == pytest.approx([0.6, 0.6, 0.6, -0.1])
    assert jitter_factors(middle, 0.5)[0] == pytest.approx([1, 1, 1, 0])
    assert jitter_factors(np.ones((1, 4)), 1.25)[0] == pytest.approx([2, 2, 2, 0.25])
    assert jitter_factors(low, 1.25)[0] == pytest.approx([0, 0, 0, -0.25])
    assert jitter_factors(low, 2.0)[0, :3] == pytest.approx([0, 0, 0]), "no factor may be negative"


def test_a_view_does_not_depend_on_its_batch() -> None:
    images = photos()
    settings_ = schema.Views(size=16, gray=0.3, blur=0.5, extra=("elastic",))
    whole = make_views(images, INDICES, settings_, seed=0, epoch=5)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:5], order[5:]):
        parts = make_views(images[rows], INDICES[rows.numpy()], settings_, seed=0, epoch=5)
        for part, view in zip(parts, whole, strict=True):
            assert max_difference(part.pixels, view.pixels[rows]) < 1e-5
            assert torch.equal(part.boxes, view.boxes[rows])
            assert torch.equal(part.flipped, view.flipped[rows])


@pytest.mark.parametrize("block", [1, 5, 11])
def test_a_view_does_not_depend_on_the_block_it_is_made_in(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve samples fit one block of the usual length; here they fall into several, the last one shorter."""
    whole = make_views(photos(), INDICES, ALL, seed=0, epoch=5)
    monkeypatch.setattr(two_views, "CPU_BLOCK", block)
    for part, view in zip(make_views(photos(), INDICES, ALL, seed=0, epoch=5), whole, strict=True):
        assert max_difference(part.pixels, view.pixels) < 1e-5
        assert torch.equal(part.boxes, view.boxes)
        assert torch.equal(part.flipped, view.flipped)


def test_views_repeat_and_differ_by_view_epoch_and_seed() -> None:
    images = photos()
    first, second = make_views(images, INDICES, ALL, seed=0, epoch=0)
    again = make_views(images, INDICES, ALL, seed=0, epoch=0)[0]
    assert torch.equal(first.pixels, again.pixels)
    other_epoch = make_views(images, INDICES, ALL, seed=0, epoch=1)[0]
    other_seed = make_views(images, INDICES, ALL, seed=1, epoch=0)[0]
    for other in (second, other_epoch, other_seed):
        assert not torch.equal(first.boxes, other.boxes)


@pytest.mark.parametrize(
    "change",
    [
        {"gray": 0.25},
        {"blur": 0.25},
        {"color_jitter": 1.0, "color_jitter_probability": 0.25},
        {"extra": ("elastic",), "extra_probability": 0.25},
        {"extra": ("posterize",), "extra_probability": 0.25},
        {"extra": ("solarize",), "extra_probability": 0.25},
    ],
)
def test_a_transform_touches_its_share_of_samples(change: dict[str, object]) -> None:
    """Of 400 samples at probability 0.25: 100 ± 35 is four standard deviations."""
    images = photos(16, 16, count=5)[3:4].expand(400, -1, -1, -1)
    plain, changed = (
        make_views(images, np.arange(400), NEUTRAL.model_copy(update=update), seed=0, epoch=0, views=1)[0].pixels
        for update in ({}, change)
    )
    touched = int(((plain - changed).abs().flatten(1).amax(1) > 1e-6).sum())
    assert 65 <= touched <= 135


def test_posterize_keeps_three_to_five_bits() -> None:
    """Thirds of the draws: 3, 4 and 5 bits."""
    settings_ = NEUTRAL.model_copy(update={"extra": ("posterize",), "extra_probability": 1.0})
    images = photos(16, 16)
    [view] = make_views(images, INDICES, settings_, seed=0, epoch=0, views=1)
    bits = [3 + int(3 * u) for u in uniforms(0, "views/posterize", 0, INDICES, 0, 1)[:, 0]]
    assert set(bits) == {3, 4, 5}
    plain = make_views(images, INDICES, NEUTRAL, seed=0, epoch=0, views=1)[0].pixels
    expected = [TV.posterize(image, b) for image, b in zip(plain, bits, strict=True)]
    assert max_difference(view.pixels, torch.stack(expected)) < 1e-6


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bits_of_posterize_may_be_given(bits: int) -> None:
    given = {"extra": ("posterize",), "extra_probability": 1.0, "posterize_bits": bits}
    images = photos(16, 16)
    plain, [view] = (
        make_views(images, INDICES, NEUTRAL.model_copy(update=update), 0, 0, views=1) for update in ({}, given)
    )
    expected = [TV.posterize(image, bits) for image in plain[0].pixels]
    assert max_difference(view.pixels, torch.stack(expected)) < 1e-6


@pytest.mark.parametrize("on", [{"extra": ("solarize",), "extra_probability": 1.0}, {"solarize": 1.0}])
@pytest.mark.parametrize("threshold", [0.0, 0.7529, 1.0])
def test_the_threshold_of_solarize_may_be_given(on: dict[str, object], threshold: float) -> None:
    images = photos(16, 16)
    plain, [view] = (
        make_views(images, INDICES, NEUTRAL.model_copy(update=update), 0, 0, views=1)
        for update in ({}, on | {"solarize_threshold": threshold})
    )
    expected = torch.where(plain[0].pixels >= threshold, 1 - plain[0].pixels, plain[0].pixels)
    assert torch.equal(view.pixels, expected)


def test_views_take_the_turn_of_the_hue_that_is_given() -> None:
    jitter = {"color_jitter": 0.01, "color_jitter_probability": 1.0}
    images = photos(16, 16)
    little, none, much = (
        make_views(images, INDICES, NEUTRAL.model_copy(update=jitter | {"color_jitter_hue": hue}), 0, 0, views=1)[0]
        for hue in (None, 0.0, 0.5)
    )
    assert max_difference(little.pixels, none.pixels) < 0.02
    assert max_difference(little.pixels, much.pixels) > 0.2


def test_one_transform_leaves_the_draws_of_others_alone() -> None:
    plain = make_views(photos(), INDICES, NEUTRAL.model_copy(update={"flip": 0.5, "crop": (0.2, 1)}), 0, 0)[0]
    with_more = make_views(photos(), INDICES, ALL.model_copy(update={"crop": (0.2, 1), "aspect": (1, 1)}), 0, 0)[0]
    assert torch.equal(plain.boxes, with_more.boxes)
    assert torch.equal(plain.flipped, with_more.flipped)


def test_the_order_of_extra_transforms_does_not_matter() -> None:
    mirrored = ALL.model_copy(update={"extra": ALL.extra[::-1]})
    a, b = (make_views(photos(), INDICES, settings_, seed=0, epoch=0)[0].pixels for settings_ in (ALL, mirrored))
    assert torch.equal(a, b)


def test_blur_kernel_is_an_odd_tenth() -> None:
    assert [blur_kernel(size) for size in (16, 32, 64, 128, 224)] == [3, 3, 7, 13, 23]


def test_views_refuse_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        make_views(photos().float(), INDICES, NEUTRAL, 0, 0)
    with pytest.raises(ValueError, match="indices must name the 12 images"):
        make_views(photos(), INDICES[:3], NEUTRAL, 0, 0)


# ---------------------------------------------------------------------------------------------------------- joint


def labelled(height: int = 20, width: int = 20) -> tuple[Tensor, Tensor]:
    """Images whose red channel is 80 times the label of a mask of large areas."""
    coarse = torch.randint(0, 4, (B, 4, 4), generator=torch.Generator().manual_seed(1))
    masks = coarse.repeat_interleave(height // 4, 1).repeat_interleave(width // 4, 2).to(torch.uint8)
    images = photos(height, width)
    images[..., 0] = masks * 80
    return images, masks


def test_an_evaluation_batch_of_the_right_size_is_exact() -> None:
    images, masks = labelled()
    pixels, target = evaluation_batch(images, masks, 20)
    expected = images.numpy().astype(np.float32) / np.float32(255)
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), expected)
    assert torch.equal(target, masks.long())
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert target.dtype == torch.int64


@pytest.mark.parametrize("size", [10, 13, 32])
def test_an_evaluation_batch_is_resized_as_torchvision_does(size: int) -> None:
    images, masks = labelled()
    pixels, target = evaluation_batch(images, masks, size)
    planes = images.permute(0, 3, 1, 2).float() / 255
    assert max_difference(pixels, TV.resize(planes, [size, size], antialias=True)) < 1e-5
    nearest = F.interpolate(masks[:, None].float(), (size, size), mode="nearest-exact")[:, 0]
    assert torch.equal(target, nearest.long())
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [10, 20])
def test_fine_tuning_without_augmentation_is_evaluation(size: int) -> None:
    images, masks = labelled()
    ours = fine_tune_batch(images, masks, INDICES, size, schema.Augment(), seed=0, epoch=0)
    for a, b in zip(ours, evaluation_batch(images, masks, size), strict=True):
        assert torch.equal(a, b)


def test_a_flip_takes_image_and_mask() -> None:
    images, masks = labelled()
    pixels, target = fine_tune_batch(images, masks, INDICES, 16, schema.Augment(flip=0.5), seed=0, epoch=0)
    straight, mirrored = evaluation_batch(images, masks, 16), evaluation_batch(images.flip(2), masks.flip(2), 16)
    flips = [not torch.equal(pixels[b], straight[0][b]) for b in range(3, B)]
    assert 0 < sum(flips) < B - 3
    for b, flipped in enumerate(flips, start=3):
        expected = mirrored if flipped else straight
        assert torch.equal(pixels[b], expected[0][b])
        assert torch.equal(target[b], expected[1][b])


def test_a_crop_takes_image_and_mask_from_the_same_place() -> None:
    """Red is 80 times the label: away from label edges, where bilinear mixes, the two must agree in every pixel."""
    images, masks = labelled(40, 40)
    augment = schema.Augment(flip=0.5, crop=(0.2, 0.8), aspect=(0.75, 1.33))
    pixels, target = fine_tune_batch(images, masks, INDICES, 32, augment, seed=0, epoch=0)
    red = pixels[:, 0] * 255 / 80
    pure = (red - red.round()).abs() < 1e-3
    agree = red.round().long() == target
    assert pure.float().mean() > 0.6
    assert agree[pure].float().mean() > 0.99  # a blend of labels 0 and 2 may also read as a pure 1
    assert not torch.equal(target, evaluation_batch(images, masks, 32)[1])


def test_fine_tuning_does_not_depend_on_the_batch_but_on_the_epoch() -> None:
    images, masks = labelled()
    augment = schema.Augment(flip=0.5, crop=(0.2, 0.8))
    whole = fine_tune_batch(images, masks, INDICES, 16, augment, seed=0, epoch=0)
    part = fine_tune_batch(images[5:], masks[5:], INDICES[5:], 16, augment, seed=0, epoch=0)
    assert max_difference(part[0], whole[0][5:]) < 1e-5
    assert torch.equal(part[1], whole[1][5:])
    for change in ({"flip": 0.0}, {"crop": (1.0, 1.0)}):  # the crop alone, then the flip alone
        alone = augment.model_copy(update=change)
        epochs = [fine_tune_batch(images, masks, INDICES, 16, alone, seed=0, epoch=epoch)[1] for epoch in (0, 1)]
        assert not torch.equal(*epochs)


def test_joint_transforms_refuse_what_they_cannot_read() -> None:
    images, masks = labelled()
    with pytest.raises(ValueError, match="masks must be uint8"):
        evaluation_batch(images, masks[:, :-1], 16)
    with pytest.raises(ValueError, match="images must be uint8"):
        evaluation_batch(images.float(), masks, 16)
    with pytest.raises(ValueError, match="indices must name the 12 images"):
        fine_tune_batch(images, masks, INDICES[:2], 16, schema.Augment(), 0, 0)


def augmented(count: int, epoch: int = 0, size: int = 16, **augment: Any) -> tuple[Tensor, Tensor]:
    """Random images of 20 px with masks of four classes and ignored pixels, through these transforms."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (6, 20, 20, 3), np.uint8))[:count]
    masks = torch.from_numpy(rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (6, 20, 20)))[:count]
    settings = schema.Augment.model_validate(augment)
    return fine_tune_batch(images, masks, np.arange(count), size, settings, seed=5, epoch=epoch)


@pytest.mark.parametrize("size", [5, 16, 40])
def test_antialiased_crops_are_those_of_torch(size: int) -> None:
    """Smaller and larger than the crop, mirrored or not: F.interpolate's triangle over the crop alone."""
    images, _ = labelled(24, 32)
    planes = images.permute(0, 3, 1, 2)
    draws = np.random.default_rng(0).random((B, geometry.CROP_DRAWS))
    boxes = torch.from_numpy(geometry.crop_boxes(draws, 24, 32, (0.1, 1.0), (0.5, 2.0)))
    flipped = torch.arange(B) % 2 == 0
    found = geometry.crop_resize_antialiased(planes, boxes, flipped, size)
    for b, (top, left, height, width) in enumerate(boxes.tolist()):
        crop = planes[b : b + 1, :, top : top + height, left : left + width].float()
        expected = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        assert max_difference(found[b], expected.flip(2) if flipped[b] else expected) < 1e-3  # of 255


def test_antialiased_crops_of_the_whole_image_are_evaluation() -> None:
    images, masks = labelled(24, 24)
    how = schema.Augment(crop=(0.9999, 1.0), antialias=True)
    for ours, theirs in zip(
        fine_tune_batch(images, masks, INDICES, 10, how, 0, 0), evaluation_batch(images, masks, 10), strict=True
    ):
        assert max_difference(ours.float(), theirs.float()) < 1e-5


def test_a_displaced_image_is_scipys_and_its_mask_moves_with_it() -> None:
    """`map_coordinates` with the same displacement: linear for the image, the nearest neighbour for the mask."""
    images, masks = torch.rand(2, 3, 20, 20), torch.randint(0, 5, (2, 20, 20))
    field = geometry.smooth_field(torch.from_numpy(np.random.default_rng(0).random((2, 18))), 20, 0.05)
    grid = geometry.affine(images, torch.zeros(2), torch.ones(2)) + field
    pixels, labels = geometry.moved(images, masks, grid, outside=255)
    y, x = np.mgrid[:20, :20]
    for b in range(2):
        at = [y + field[b, ..., 1].numpy() * 10, x + field[b, ..., 0].numpy() * 10]  # half a side is a unit
        for channel in range(3):
            expected = map_coordinates(images[b, channel].numpy(), at, order=1, mode="grid-constant")
            assert np.abs(pixels[b, channel].numpy() - expected).max() < 1e-4
        nearest = map_coordinates(masks[b].numpy(), at, order=0, mode="grid-constant", cval=255)
        assert float((labels[b].numpy() == nearest).mean()) > 0.99  # but for ties
    assert (labels == 255).any()


def test_displacements_are_as_large_as_asked_and_smooth() -> None:
    """At the corners, which are nodes, the standard deviation is 0.02 of the side; neighbours differ by little."""
    draws = torch.from_numpy(np.random.default_rng(0).random((4000, 18)))
    field = geometry.smooth_field(draws, 32, 0.02) / 2  # in sides
    corners = field[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.std()) == pytest.approx(0.02, rel=0.02)
    assert float(corners.mean().abs()) < 0.001
    assert float(field.diff(dim=1).abs().max() * 32) < 1  # px: no fold
    assert not torch.isfinite(geometry.smooth_field(torch.tensor([[0.0] * 18]), 8, 0.02)).logical_not().any()


@pytest.mark.parametrize(("degrees", "factor"), [(0.0, 1.0), (23.7, 1.0), (-71.3, 1.31), (0.0, 0.63), (151.9, 2.2)])
def test_turned_and_scaled_images_and_masks_are_torchvisions(degrees: float, factor: float) -> None:
    """torchvision's angle is clockwise. Without a turn and a scale nothing moves."""
    images, masks = torch.rand(2, 3, 17, 17), torch.randint(0, 5, (2, 17, 17))
    masks[0, :5] = 255
    moved, labels = geometry.rotate_and_scale(
        images, masks, torch.full((2,), degrees), torch.full((2,), factor), outside=255
    )
    how: dict[str, Any] = {"angle": -degrees, "translate": [0, 0], "scale": factor, "shear": [0.0, 0.0]}
    expected = TV.affine(images, interpolation=InterpolationMode.BILINEAR, **how)
    assert torch.allclose(moved, expected, atol=1e-4)
    nearest = TV.affine(masks, interpolation=InterpolationMode.NEAREST, fill=[255.0], **how)
    assert float((labels == nearest).float().mean()) > 0.99  # but for ties between two neighbours
    if (degrees, factor) == (0.0, 1.0):
        assert torch.equal(labels, masks)


def test_masks_move_with_their_images_and_only_what_comes_from_outside_is_ignored() -> None:
    """Masks drawn from the red channel: red is 1 where the class is 1, and still is after all transforms."""
    images = np.zeros((64, 24, 24, 3), np.uint8)
    images[:, 4:15, 3:12, 0] = 255
    masks = torch.from_numpy((images[..., 0] > 0).astype(np.uint8))
    how = {"flip": 0.5, "flip_vertical": 0.5, "elastic": 0.02, "rotation": 40, "scale": [0.7, 1.5], "crop": [0.5, 1.0]}
    pixels, target = fine_tune_batch(
        torch.from_numpy(images), masks, np.arange(64), 24, schema.Augment.model_validate(how), seed=1, epoch=0
    )
    counted = target != 255
    assert 0.6 < float(counted.float().mean()) < 1
    assert float(((pixels[:, 0] > 0.5) == (target == 1))[counted].float().mean()) > 0.98
    assert set(target.unique().tolist()) == {0, 1, 255}


@pytest.mark.parametrize(
    "how",
    [
        {"flip_vertical": 0.5}, {"rotation": 30}, {"scale": [0.5, 2.0]}, {"color_jitter": 0.5}, {"blur": 0.5},
        {"elastic": 0.05}, {"antialias": True, "crop": [0.3, 1.0]},
    ],
    ids=lambda how: next(iter(how)),
)  # fmt: skip
def test_an_augmentation_depends_on_image_and_epoch_and_not_on_the_batch(how: dict[str, Any]) -> None:
    pixels, target = augmented(6, **how)
    alone, alone_target = augmented(3, **how)
    assert torch.equal(pixels[:3], alone)
    assert torch.equal(target[:3], alone_target)
    other, _ = augmented(6, epoch=1, **how)
    plain, plain_target = augmented(6)
    assert not torch.equal(pixels, other)
    assert not torch.equal(pixels, plain)
    if set(how) <= {"color_jitter", "blur"}:
        assert torch.equal(target, plain_target)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1 + 1e-6


def test_a_vertical_flip_is_that_of_the_plain_batch() -> None:
    plain, plain_target = augmented(4)
    pixels, target = augmented(4, flip_vertical=1.0)
    assert torch.equal(pixels, plain.flip(2))
    assert torch.equal(target, plain_target.flip(1))


def test_jitter_and_blur_are_those_of_views() -> None:
    """As in pretraining: factors by `jitter_factors` and a Gaussian of 0.1 to 2 px, each tested above."""
    plain, _ = augmented(3)
    draws = uniforms(5, "joint/jitter", 0, np.arange(3), 0, 4)
    factors = torch.from_numpy(jitter_factors(draws, 0.5)).float()
    assert torch.allclose(augmented(3, color_jitter=0.5)[0], jitter(plain, factors), atol=1e-5)
    sigma = torch.from_numpy(0.1 + 1.9 * uniforms(5, "joint/blur", 0, np.arange(3), 0, 1)[:, 0]).float()
    expected = color.gaussian_blur(plain, sigma, blur_kernel(16))
    assert torch.allclose(augmented(3, blur=1.0)[0], expected, atol=1e-5)


def test_new_augmentations_are_in_no_fingerprint_until_they_are_named() -> None:
    assert schema.Augment().model_dump(exclude_none=True) == {"flip": 0.0, "crop": (1.0, 1.0), "aspect": (1.0, 1.0)}
    with pytest.raises(ValueError, match=r"scale: .* 2\.0 is above .* 1\.0"):
        schema.Augment(scale=(2.0, 1.0))


# ------------------------------------------------------------------------------------------ views on an accelerator

RECIPES: dict[str, dict[str, object]] = {
    "crops": {"color_jitter": 0},
    "colour": {"color_jitter_probability": 0.6},
    "strong colour": {"color_jitter": 1.25, "color_jitter_probability": 1.0},
    "grey": {"color_jitter": 0, "gray": 0.5},
    "blur": {"color_jitter": 0, "blur": 0.5},
    "elastic": {"color_jitter": 0, "extra": ("elastic",)},
    "rotation": {"color_jitter": 0, "extra": ("rotation",)},
    "solarize": {"solarize": 0.5},
    "posterize": {"color_jitter": 0, "extra": ("posterize",)},
    "all": {"gray": 0.3, "blur": 0.5, "solarize": 0.2, "extra": ("elastic", "rotation", "posterize", "solarize")},
}
STEEP = {"solarize", "posterize", "all"}  # where a rounding error may turn a value over


def on_an_accelerator(monkeypatch: pytest.MonkeyPatch, images: Tensor, recipes: list[schema.Views]) -> list[View]:
    """Views as an accelerator would make them, with their pixels computed here."""
    with monkeypatch.context() as patched:
        patched.setattr(two_views, "_make_view", None)
        patched.setattr(two_views, "runs_here", lambda images: False)
        return two_views.views_of(images, INDICES, recipes, seed=1, epoch=2)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("channels", [3, 1, 4])
def test_an_accelerator_makes_the_same_views(monkeypatch: pytest.MonkeyPatch, name: str, channels: int) -> None:
    recipes = [schema.Views(size=32, **RECIPES[name]), schema.Views(size=16, **RECIPES[name]), schema.Views(size=32)]  # type: ignore[arg-type]
    images = torch.cat([photos(40, 56), photos(40, 56).flip(1)], dim=-1)[..., :channels].contiguous()
    expected = two_views.views_of(images, INDICES, recipes, seed=1, epoch=2)
    for view, other in zip(on_an_accelerator(monkeypatch, images, recipes), expected, strict=True):
        assert view.pixels.shape == other.pixels.shape
        assert view.pixels.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(view.flipped, other.flipped)
        assert max_difference(view.boxes, other.boxes) < 1e-6
        off = ((view.pixels - other.pixels).abs() > 2e-4).float().mean()
        assert float(off) <= (0.005 if name in STEEP else 0)


def test_an_accelerator_makes_views_that_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples share kernels, and not their values."""
    images, recipe = photos(40, 56), schema.Views(size=16, gray=0.3, blur=0.5, extra=("elastic",))
    whole = on_an_accelerator(monkeypatch, images, [recipe] * 2)
    other = images.clone()
    other[1:] = 255 - other[1:]
    changed = on_an_accelerator(monkeypatch, other, [recipe] * 2)
    for view, again in zip(whole, changed, strict=True):
        assert max_difference(view.pixels[:1], again.pixels[:1]) < 1e-5
        assert max_difference(view.pixels[1:], again.pixels[1:]) > 0.1
