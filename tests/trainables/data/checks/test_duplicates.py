"""Pictures that are there twice, on generated scenes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.checks.duplicates import (
    difference_hash,
    duplicates_among,
    find_alike,
    find_duplicates,
    pairs,
    summarised,
)
from pretune.trainables.data.sets.scenes import generate_scene


def scene(index: int) -> NDArray[np.uint8]:
    return generate_scene(0, index, 64, 4).image


def again(image: NDArray[np.uint8], how: str) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    if how == "compressed":
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=60)
        return np.asarray(Image.open(stream).convert("RGB"))
    if how == "scaled":
        return np.asarray(picture.resize((48, 48)).resize((64, 64)))
    if how == "brighter":
        return np.clip(image.astype(np.int16) + 12, 0, 255).astype(np.uint8)
    return image[:, ::-1]


LOOKS = {
    (i, how): scene(i) if how == "as it is" else again(scene(i), how)
    for i in range(4)
    for how in ("as it is", "brighter")
}


def test_the_hash_asks_whether_pixels_are_darker_than_their_right_neighbour() -> None:
    """Rising to the right: every bit is set; falling: none; even: none."""
    ramp = np.repeat(np.arange(72, dtype=np.uint8)[None, :, None], 72, 0).repeat(3, 2)
    assert difference_hash(ramp).tolist() == [255] * 8
    assert difference_hash(ramp[:, ::-1]).tolist() == [0] * 8
    assert difference_hash(np.full((8, 9, 3), 7, np.uint8)).tolist() == [0] * 8


@pytest.mark.parametrize("how", ["compressed", "scaled", "brighter"])
def test_the_same_picture_in_another_form_is_found(how: str) -> None:
    images = np.stack([*(scene(i) for i in range(40)), again(scene(7), how)])
    assert [(pair.first, pair.second) for pair in find_duplicates(images)] == [(7, 40)]


def test_other_scenes_and_mirrored_ones_are_not_duplicates() -> None:
    images = np.stack([*(scene(i) for i in range(40)), again(scene(7), "mirrored")])
    assert find_duplicates(images) == []


def test_plain_images_of_different_structure_are_told_apart_by_a_second_look() -> None:
    """A dark upper half and an even field have the same hash: rows never change sideways."""
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[32:] = 200
    images = np.stack([halves, np.full((64, 64, 3), 100, np.uint8)])
    assert (difference_hash(images[0]) == difference_hash(images[1])).all()
    assert find_duplicates(images) == []


def test_equal_images_are_paired_with_the_first_of_them() -> None:
    """A thousand blank frames are 999 pairs, not half a million."""
    blank = np.zeros((1000, *scene(1).shape), np.uint8)
    found = find_duplicates(np.concatenate([blank[:500], scene(1)[None], blank[500:]]))
    assert [(pair.first, pair.second) for pair in found] == [(0, row) for row in range(1, 1001) if row != 500]


@settings(deadline=None)  # under load the first of them takes longer
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["as it is", "brighter"]), st.integers(0, 2)), max_size=12)
)
def test_every_image_with_a_duplicate_on_the_other_side_is_found_once(drawn: list[tuple[int, str, int]]) -> None:
    """Images of four scenes, each on side 1, side 2 or neither (0). Duplicates are those of one scene, so that the
    expected rows follow from the scenes alone."""
    scenes, sides = [which for which, _, _ in drawn], np.array([side for *_, side in drawn], np.int64)
    images = np.array([LOOKS[which, how] for which, how, _ in drawn], np.uint8).reshape(-1, 64, 64, 3)
    found = duplicates_among(find_alike(summarised(images)), sides == 1, sides == 2)
    others = {row: [k for k in np.flatnonzero(sides == 2) if scenes[k] == scenes[row]] for row in range(len(drawn))}
    assert found == [(row, others[row][0]) for row in np.flatnonzero(sides == 1) if others[row]]


def test_two_images_that_equal_one_on_the_other_side_are_two() -> None:
    """Pairs name the first of three equals, so of these two only one; what is across counts both."""
    images = np.stack([scene(1), scene(1), scene(1), scene(2)])
    alike = find_alike(summarised(images))
    assert [(pair.first, pair.second) for pair in pairs(alike)] == [(0, 1), (0, 2)]
    assert duplicates_among(alike, np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)) == [(0, 2), (1, 2)]
