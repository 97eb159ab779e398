"""Region views and SAMCLR: tables and windows against a slow, obvious reading of P4, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.resident.segment_anything import coarsest
from pretune.trainables.views.geometry import CROP_DRAWS, crop_boxes, crop_boxes_within
from pretune.trainables.views.regions import draw_windows, enlarged, region_table
from pretune.trainables.views.two_views import views_of

H, W = 20, 24


def maps(seed: int, count: int = 3, regions: int = 4) -> NDArray[np.uint16]:
    """Rectangles painted over each other: (count, H, W)."""
    rng = np.random.default_rng(seed)
    result = np.zeros((count, H, W), np.uint16)
    for image in result:
        for number in range(1, int(rng.integers(0, regions + 1)) + 1):
            top, left = rng.integers(0, H - 2), rng.integers(0, W - 2)
            image[top : top + rng.integers(1, H), left : left + rng.integers(1, W)] = number
    return result


def obvious_regions(image: NDArray[np.uint16]) -> dict[int, tuple[int, ...]]:
    """number -> (top, left, height, width, area), by looking at every pixel."""
    found = {}
    for number in sorted({int(v) for v in image.ravel()} - {0}):
        pixels = [(y, x) for y in range(H) for x in range(W) if image[y, x] == number]
        ys, xs = [p[0] for p in pixels], [p[1] for p in pixels]
        found[number] = (min(ys), min(xs), max(ys) - min(ys) + 1, max(xs) - min(xs) + 1, len(pixels))
    return found


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_table_holds_every_regions_box_and_area(seed: int) -> None:
    images = maps(seed)
    table = region_table(images)
    for image, row in zip(images, table, strict=True):
        expected = obvious_regions(image)
        for number in range(1, len(row) + 1):
            assert tuple(row[number - 1]) == expected.get(number, (0, 0, 0, 0, 0))


def test_maps_without_regions_have_one_empty_row() -> None:
    assert region_table(np.zeros((2, H, W), np.uint16)).tolist() == [[[0] * 5]] * 2


@given(st.integers(0, 10_000), st.floats(0, 0.999), st.integers(0, 120))
@settings(max_examples=50, deadline=None)
def test_a_window_is_the_drawn_large_region_enlarged_by_its_factor(seed: int, draw: float, minimum: int) -> None:
    images = maps(seed, count=1)
    recipe = schema.Views(within="region", region_min_area=minimum)
    window = draw_windows(region_table(images), np.array([draw]), H, W, recipe)[0]
    large = [box for box in obvious_regions(images[0]).values() if box[4] >= minimum]
    if not large:
        assert window.tolist() == [0, 0, H, W]
        return
    top, left, height, width, _ = large[int(draw * len(large))]
    low_y, high_y = max(0.0, top - 0.15 * height), min(H, top + 1.15 * height)
    low_x, high_x = max(0.0, left - 0.15 * width), min(W, left + 1.15 * width)
    assert np.abs(window[:2] - (low_y, low_x)).max() <= 0.5 + 1e-9
    assert np.abs(window[:2] + window[2:] - (high_y, high_x)).max() <= 0.5 + 1e-9


def test_enlarging_by_hand() -> None:
    """A box of 10 x 4 at (5, 10) times 1.3 spans rows 3.5 to 16.5 and columns 9.4 to 14.6; numpy rounds to even."""
    boxes = enlarged(np.array([[5, 10, 10, 4]]), 1.3, H, W)
    assert boxes.tolist() == [[4, 9, 12, 6]]


def test_the_smallest_area_is_counted_at_the_source_scale() -> None:
    """12 px of a 20 x 24 image are 1200 px of a source with 100 times its area, and 1188 are 11.88 px."""
    image = np.zeros((1, H, W), np.uint16)
    image[0, 2:5, 3:7] = 1
    table = region_table(image)
    common = {"within": "region", "region_source_area": 100 * H * W, "region_enlarge": 1.0}
    kept = schema.Views.model_validate(common | {"region_min_area": 1200})
    dropped = schema.Views.model_validate(common | {"region_min_area": 1201})
    assert draw_windows(table, np.zeros(1), H, W, kept).tolist() == [[2, 3, 3, 4]]
    assert draw_windows(table, np.zeros(1), H, W, dropped).tolist() == [[0, 0, H, W]]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_boxes_lie_in_their_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, (H, W), size=(8, 2))
    corners = np.floor(rng.random((8, 2)) * (np.array((H, W)) - sizes)).astype(np.int64)
    windows = np.concatenate((corners, sizes), axis=1)
    boxes = crop_boxes_within(rng.random((8, CROP_DRAWS)), windows, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] >= windows[:, :2]).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= windows[:, :2] + windows[:, 2:]).all()


def test_a_window_shifts_the_box_that_an_image_of_its_size_would_get() -> None:
    draws = np.random.default_rng(0).random((6, CROP_DRAWS))
    windows = np.tile((3, 5, 12, 16), (6, 1))
    inside = crop_boxes_within(draws, windows, (0.1, 1.0), (3 / 4, 4 / 3))
    alone = crop_boxes(draws, 12, 16, (0.1, 1.0), (3 / 4, 4 / 3))
    assert (inside - alone).tolist() == [[3, 5, 0, 0]] * 6


def test_both_views_lie_in_the_same_region_and_regions_change_with_the_epoch() -> None:
    image = np.zeros((1, 32, 32), np.uint16)
    image[0, :, :10], image[0, :, 22:] = 1, 2
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    recipe = schema.Views(size=8, within="region", region_min_area=1, region_enlarge=1.0)
    sides = set()
    for epoch in range(12):
        views = views_of(images, np.array([7]), (recipe, recipe), 0, epoch, region_table(image))
        left, right = (float(view.boxes[0, 1]) for view in views)
        assert (left < 0.5) == (right < 0.5)
        sides.add(left < 0.5)
    assert sides == {True, False}


def test_a_missing_region_map_is_said() -> None:
    recipe = schema.Views(size=8, within="region")
    with pytest.raises(ValueError, match="need a region map"):
        views_of(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), np.array([0]), (recipe,), 0, 0)


def test_coarsest_keeps_large_masks_and_drops_what_lies_in_them() -> None:
    """A house, its door (inside), a tree that reaches behind the house by a third, and an empty mask."""
    house, door, tree = (np.zeros((10, 12), bool) for _ in range(3))
    house[2:10, 0:6], door[6:10, 2:4], tree[3:8, 4:10] = True, True, True
    regions = coarsest(np.stack((door, house, tree, np.zeros((10, 12), bool))))
    assert (regions[house] == 1).all()
    assert (regions[tree & ~house] == 2).all()
    assert regions.max() == 2
    assert (regions[~(house | tree)] == 0).all()
