"""Training crops: cut out of whole images whatever tiles they lie in, spread over them, around foreground pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.crops import REMEMBERED, Places, TrainingCrops
from pretune.trainables.loop import DataFeed

CPU = torch.device("cpu")
SIDE = 8  # px of a tile
SIZES = {"a": (20, 13), "b": (8, 27), "c": (6, 5)}  # height, width; c is smaller than a tile
NUMBER = {name: k + 1 for k, name in enumerate(SIZES)}


class Cut:
    """Images whose pixels say which image, row and column they are, cut into tiles in a mixed order."""

    def __init__(self, masks: dict[str, Any] | None = None) -> None:
        entries = []
        for name, (height, width) in SIZES.items():
            y, x = np.mgrid[:height, :width]
            image = np.stack([np.full_like(y, NUMBER[name]), y, x], axis=-1).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8) if masks is None else masks[name]
            down, right = -height % SIDE, -width % SIDE
            image = np.pad(image, [(0, down), (0, right), (0, 0)])
            mask = np.pad(mask, [(0, down), (0, right)], constant_values=IGNORE)
            for top in range(0, height, SIDE):
                for left in range(0, width, SIDE):
                    box = (slice(top, top + SIDE), slice(left, left + SIDE))
                    entries.append((f"{name}#r{top // SIDE:03d}c{left // SIDE:03d}", image[box], mask[box]))
        order = np.random.default_rng(0).permutation(len(entries))
        self.names, pixels, labels = zip(*(entries[i] for i in order), strict=True)
        self.feeds = (DataFeed(np.stack(pixels), CPU), DataFeed(np.stack(labels), CPU))
        self.rows = np.arange(len(entries))

    def crops(self, rows: Any = None, size: int = SIDE, foreground: float = 0.0, classes: int = 4) -> TrainingCrops:
        chosen = {"data": "d", "epochs": 1, "size": size, "crops": {"foreground": foreground}}
        places = Places(self.names, self.rows if rows is None else rows, self.feeds[1], classes)
        return TrainingCrops(schema.Finetune.model_validate(chosen), self.feeds, places, 5)


@pytest.mark.parametrize("size", [SIDE, 4])
def test_a_crop_is_a_part_of_its_image_across_its_tiles(size: int) -> None:
    """Each pixel is its neighbour's neighbour, and belongs to the image of the row."""
    cut = Cut()
    crops = cut.crops(size=size)
    for epoch in range(20):
        pixels, masks = crops(cut.rows, epoch)
        for row, image, mask in zip(cut.rows, pixels.numpy(), masks.numpy(), strict=True):
            name = cut.names[row].partition("#")[0]
            height, width = SIZES[name]
            inside = image[..., 0] == NUMBER[name]
            assert (mask[inside] == 0).all()
            assert (mask[~inside] == IGNORE).all()
            if min(height, width) >= size:
                assert inside.all()
            y, x = (int(start) for start in image[0, 0, 1:])
            rows, columns = np.mgrid[y : y + size, x : x + size]
            assert (image[inside][:, 1] == rows[inside]).all()
            assert (image[inside][:, 2] == columns[inside]).all()


def test_crops_of_many_epochs_begin_everywhere_alike() -> None:
    """20 x 13 px hold 13 x 6 crops of 8 px: each of the six tiles has its share of the places."""
    cut = Cut()
    rows = np.array([row for row in cut.rows if cut.names[row].startswith("a")])
    crops, epochs = cut.crops(), 400
    counts = np.zeros((13, 6))
    for epoch in range(epochs):
        for y, x in crops.corners(rows, epoch):
            counts[y, x] += 1
    expected = epochs * len(rows) / counts.size
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def masks_with_spots() -> dict[str, Any]:
    """Class 1 in half of a, class 3 in one pixel of it; class 2 in a row of b; nothing in c."""
    found = {name: np.zeros(size, np.uint8) for name, size in SIZES.items()}
    found["a"][:10] = 1
    found["a"][17, 11] = 3
    found["b"][4] = 2
    return found


def test_a_share_of_crops_lies_around_foreground_and_rare_classes_count_as_others() -> None:
    """All balanced: half of a's crops hold its one pixel of class 3. By chance 3 x 2 of the 13 x 6 places do."""
    cut = Cut(masks_with_spots())
    rows = np.array([row for row in cut.rows if cut.names[row].startswith("a")])
    shares = []
    for foreground in (0.0, 0.5, 1.0):
        crops = cut.crops(foreground=foreground)
        seen = [int((crops(rows, epoch)[1] == 3).any(dim=(1, 2)).sum()) for epoch in range(200)]
        shares.append(sum(seen) / (200 * len(rows)))
    assert shares == pytest.approx([6 / 78, (6 / 78 + 0.5) / 2, 0.5], abs=0.05)
    crops = cut.crops(foreground=1.0)
    of_b = np.array([row for row in cut.rows if cut.names[row].startswith("b")])
    assert all((crops(of_b, epoch)[1] == 2).any(dim=(1, 2)).all() for epoch in range(10))


def test_an_image_without_foreground_is_cropped_anywhere() -> None:
    cut = Cut()
    assert np.array_equal(cut.crops(foreground=1.0).corners(cut.rows, 3), cut.crops().corners(cut.rows, 3))


def test_masks_of_tiles_without_labels_are_never_read() -> None:
    """The first tile of image a alone is labelled: its crops hold no pixel of another."""
    masks = masks_with_spots()
    cut = Cut(masks)
    own = np.array([row for row in cut.rows if cut.names[row] == "a#r000c000"])
    crops = cut.crops(rows=own, foreground=0.5)
    for epoch in range(30):
        pixels, labels = crops(own, epoch)
        assert (pixels[labels != IGNORE][:, 1:] < SIDE).all()
        assert not (labels == 3).any()


def test_crops_depend_on_the_image_and_the_epoch_alone() -> None:
    cut = Cut(masks_with_spots())
    crops = cut.crops(foreground=0.5)
    together = crops(cut.rows, 4)
    for row in cut.rows:
        for whole, alone in zip(together, crops(np.array([row]), 4), strict=True):
            assert torch.equal(whole[row], alone[0])
    assert not torch.equal(together[0], crops(cut.rows, 5)[0])


def test_images_that_are_no_tiles_are_cropped_alike() -> None:
    """32 px in the cache, crops of 12: all of one image, at 21 x 21 places."""
    random = np.random.default_rng(0)
    images, masks = (
        random.integers(0, 256, (3, 32, 32, 3), np.uint8),
        random.integers(0, 3, (3, 32, 32)).astype(np.uint8),
    )
    feeds = (DataFeed(images, CPU), DataFeed(masks, CPU))
    places = Places(("x", "y", "z"), np.arange(3), feeds[1], 3)
    assert len(places.pixels.drawn(np.arange(3), np.zeros((3, 2)))[0]) == 3
    chosen = schema.Finetune.model_validate({"data": "d", "epochs": 1, "size": 12, "crops": {"foreground": 0.33}})
    crops = TrainingCrops(chosen, feeds, places, 0)
    for epoch in range(5):
        pixels, labels = crops(np.arange(3), epoch)
        for row, (y, x) in enumerate(crops.corners(np.arange(3), epoch)):
            assert np.array_equal(pixels[row], images[row, y : y + 12, x : x + 12])
            assert np.array_equal(labels[row], masks[row, y : y + 12, x : x + 12])


def test_few_pixels_of_a_large_class_are_remembered() -> None:
    """All of a class that has fewer than REMEMBERED, else so many of all its parts."""
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, :32], mask[0, 40, 5] = 1, 2
    places = Places(("x",), np.array([0]), DataFeed(mask, CPU), 3)
    draws = np.stack([np.repeat([0.0, 0.6], 500), np.tile(np.linspace(0, 0.999, 500), 2)], axis=1)
    found, exists = places.pixels.drawn(np.zeros(1000, np.int64), draws)
    assert exists.all()
    assert len(np.unique(found[:500], axis=0)) == REMEMBERED
    assert found[:500, 0].max() == 31
    assert np.unique(found[500:], axis=0).tolist() == [[40, 5]]
