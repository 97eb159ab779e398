"""Generated scenes: deterministic, and image, mask, regions and depth tell the same story."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.trainables.data.sets import scenes
from pretune.trainables.data.sets.scenes import generate_scene

scene = st.builds(
    generate_scene,
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([32, 48, 64]),
    st.integers(2, 6),
)
few = settings(max_examples=40, deadline=None)


@few
@given(scene)
def test_shapes_and_types(made: scenes.Scene) -> None:
    size = len(made.image)
    assert (made.image.shape, made.image.dtype) == ((size, size, 3), np.uint8)
    assert [(part.shape, part.dtype) for part in made[1:]] == [
        ((size, size), np.uint8),
        ((size, size), np.uint16),
        ((size, size), np.float16),
    ]


@few
@given(scene)
def test_mask_and_regions_agree(made: scenes.Scene) -> None:
    assert np.array_equal(made.mask > 0, made.regions > 0)
    for region in np.unique(made.regions):
        assert len(np.unique(made.mask[made.regions == region])) == 1


@few
@given(scene)
def test_regions_are_numbered_without_gaps(made: scenes.Scene) -> None:
    found = np.setdiff1d(made.regions, [0])
    assert 1 <= len(found) <= 4
    assert found.tolist() == list(range(1, len(found) + 1))


@few
@given(scene)
def test_depth_is_in_range_and_objects_lie_in_order_before_the_background(made: scenes.Scene) -> None:
    depth = made.depth.astype(np.float64)
    assert depth.min() >= 0
    assert depth.max() <= 1
    nearest = 1.01
    for region in np.unique(made.regions):  # background first, then far to near: no two overlap in depth
        here = depth[made.regions == region]
        assert here.max() < nearest
        nearest = here.min()


def test_a_scene_is_a_function_of_seed_and_index_alone() -> None:
    first = generate_scene(3, 11, 64, 4)
    for other in range(5):
        generate_scene(3, other, 48, 6)
    again = generate_scene(3, 11, 64, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("seed", "index"), [(3, 12), (4, 11)])
def test_another_seed_or_index_is_another_scene(seed: int, index: int) -> None:
    assert not np.array_equal(generate_scene(seed, index, 64, 4).image, generate_scene(3, 11, 64, 4).image)


def test_more_noise_changes_the_image_alone_and_has_the_deviation_asked_for() -> None:
    """Over 20 scenes. A pixel near 0 or 255 is cut off, so the middle ones are counted. Own noise is 0.01 to 0.05."""
    deviations = []
    for index in range(20):
        plain, noisy = generate_scene(3, index, 64, 4), generate_scene(3, index, 64, 4, noise=0.1)
        for a, b in zip(plain[1:], noisy[1:], strict=True):
            assert np.array_equal(a, b)
        middle = (plain.image > 100) & (plain.image < 155)
        deviations.append((noisy.image.astype(float) - plain.image)[middle].std() / 255)
    assert np.mean(deviations) == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_every_class_occurs_and_no_other(classes: int) -> None:
    masks = np.stack([generate_scene(0, i, 32, classes).mask for i in range(40)])
    assert np.unique(masks).tolist() == list(range(classes))


def test_no_colour_gives_a_class_away() -> None:
    """Mean colours of a class spread widely over scenes, and two classes' averages lie well within that spread."""
    means: dict[int, list[np.ndarray]] = {1: [], 2: []}
    for i in range(200):
        made = generate_scene(5, i, 32, 3)
        for kind, found in means.items():
            if np.any(made.mask == kind):
                found.append(made.image[made.mask == kind].mean(0))
    one, two = np.array(means[1]), np.array(means[2])
    assert np.all(np.abs(one.mean(0) - two.mean(0)) < 0.5 * one.std(0))
    assert one.std(0).min() > 20  # of 255


def test_most_pixels_are_background_but_not_nearly_all() -> None:
    masks = np.stack([generate_scene(0, i, 64, 3).mask for i in range(60)])
    assert 0.5 < np.mean(masks == 0) < 0.85
