"""Generated volumes: deterministic, exactly masked, and what tells a body from a tube is the third dimension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pretune.search_spaces import schema
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets import volumes
from pretune.trainables.data.sets.table import count_images

few = settings(max_examples=25, deadline=None)
volume = st.builds(
    volumes.generate_volume,
    st.integers(0, 2**32),
    st.integers(0, 10_000),
    st.sampled_from([8, 16]),
    st.sampled_from([16, 32]),
    st.integers(2, 3),
)


@few
@given(volume)
def test_shapes_types_and_at_most_two_objects_per_class(made: volumes.Volume) -> None:
    assert made.image.shape == made.mask.shape
    assert (made.image.dtype, made.mask.dtype) == (np.uint8, np.uint8)
    for kind in (1, 2):
        assert ndimage.label(made.mask == kind, np.ones((3, 3, 3)))[1] <= 4  # a later object may cut an earlier one


def test_a_volume_is_a_function_of_seed_and_index_alone() -> None:
    first = volumes.generate_volume(3, 11, 8, 16, 3)
    volumes.generate_volume(3, 12, 16, 32, 2)
    again = volumes.generate_volume(3, 11, 8, 16, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image, volumes.generate_volume(3, 12, 8, 16, 3).image)
    assert not np.array_equal(first.image, volumes.generate_volume(4, 11, 8, 16, 3).image)


@pytest.mark.parametrize("classes", [2, 3])
def test_every_class_occurs_and_no_other(classes: int) -> None:
    masks = np.stack([volumes.generate_volume(0, i, 8, 16, classes).mask for i in range(40)])
    assert np.unique(masks).tolist() == list(range(classes))


def test_brightness_alone_does_not_find_the_bodies() -> None:
    """The best single threshold over 60 volumes has a Dice far below 1: tubes are as bright."""
    made = [volumes.generate_volume(1, i, 16, 32, 2) for i in range(60)]
    values = np.stack([volume.image for volume in made]).ravel()
    truth = np.stack([volume.mask for volume in made]).ravel() == 1
    dice = [2 * (truth & (values > t)).sum() / (truth.sum() + (values > t).sum()) for t in range(0, 256, 4)]
    assert max(dice) < 0.4


def test_the_noise_is_trilinear_interpolation_of_its_lattice() -> None:
    """Against scipy's, at the same places of the same lattice."""
    found = volumes._noise(np.random.default_rng(5), 6, 10)
    lattice = np.random.default_rng(5).random((5, 5, 5), np.float32)
    places = [(np.arange(n) + 0.5) / n * 4 for n in (6, 10, 10)]
    expected = ndimage.map_coordinates(lattice, np.meshgrid(*places, indexing="ij"), order=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_they_are_cached_as_grey_volumes_with_slices_first(tmp_path: Path) -> None:
    chosen = schema.Volumes(dataset="volumes", images=5, cache_size=16, slices=8, limit=3)
    held = load_images(chosen, None, tmp_path)
    assert held.images.shape == (3, 8, 16, 16, 1)
    assert held.masks is not None
    assert held.masks.shape == (3, 8, 16, 16)
    assert held.classes == ("background", "body")
    assert count_images(chosen, None) == 3
    made = volumes.generate_volume(0, int(held.names[0].removeprefix("volume-")), 8, 16, 2)
    assert np.array_equal(held.images[0, ..., 0], made.image)
    assert np.array_equal(held.masks[0], made.mask)


@pytest.mark.parametrize("change", [{"slices": 16}, {"cache_size": 8}, {"seed": 1}, {"classes": 3}, {"images": 6}])
def test_whatever_changes_the_volumes_changes_their_digest(change: dict[str, int]) -> None:
    chosen = schema.Volumes(dataset="volumes", images=5, cache_size=16, slices=8)
    assert content_digest(chosen, None) != content_digest(chosen.model_copy(update=change), None)
