"""Pictures that are there twice, on generated scenes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainables.data.duplicates import Duplicate, across, difference_hash, find_duplicates
from trainables.data.scenes import generate


def scene(index: int) -> NDArray[np.uint8]:
    return generate(0, index, 64, 4).image


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


def test_plain_pictures_of_different_structure_are_told_apart_by_a_second_look() -> None:
    """A dark upper half and an even field have the same hash: rows never change sideways."""
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[32:] = 200
    images = np.stack([halves, np.full((64, 64, 3), 100, np.uint8)])
    assert (difference_hash(images[0]) == difference_hash(images[1])).all()
    assert find_duplicates(images) == []


def test_equal_pictures_are_paired_with_the_first_of_them() -> None:
    """A thousand blank frames are 999 pairs, not half a million."""
    blank = np.zeros((1000, *scene(1).shape), np.uint8)
    found = find_duplicates(np.concatenate([blank[:500], scene(1)[None], blank[500:]]))
    assert [(pair.first, pair.second) for pair in found] == [(0, row) for row in range(1, 1001) if row != 500]


def test_pairs_on_both_sides_are_those_in_different_parts() -> None:
    pairs = [Duplicate(0, 1, 0), Duplicate(1, 2, 0)]
    assert across(pairs, np.array([0, 0, 1])) == [Duplicate(1, 2, 0)]
