"""Contact sheets: where the pictures stand, and that masks and crops are drawn where they belong."""

from __future__ import annotations

import numpy as np

from trainables.data.listing import IGNORE
from trainables.data.sheets import BOXES, GAP, TILE, VOID, data_sheet, overlay, palette, view_sheet


def test_neighbouring_classes_have_different_colours_and_ignored_pixels_are_grey() -> None:
    colors = palette(30).astype(int)
    apart = np.abs(colors[:30, None] - colors[None, :30]).sum(-1)
    assert apart[~np.eye(30, dtype=bool)].min() > 20
    assert tuple(colors[IGNORE]) == VOID


def test_an_overlay_tints_every_class_but_the_clear_one() -> None:
    """45 % of the image and 55 % of the colour: 0.45 * 100 + 0.55 * (200, 0, 0) = (155, 45, 45)."""
    colors = np.zeros((256, 3), np.uint8)
    colors[1] = (200, 0, 0)
    image, mask = np.full((1, 2, 3), 100, np.uint8), np.array([[0, 1]], np.uint8)
    assert overlay(image, mask, colors, clear=0).tolist() == [[[100] * 3, [155, 45, 45]]]


def test_images_stand_beside_their_overlays() -> None:
    image = np.full((8, 8, 3), 90, np.uint8)
    sheet = np.asarray(
        data_sheet([image] * 3, [np.ones((8, 8), np.uint8)] * 3, ["a", "b", "c"], ("background", "x"), 2)
    )
    middle = GAP + TILE // 2
    assert sheet[middle, middle].tolist() == [90, 90, 90]
    tinted = np.rint(0.45 * 90 + 0.55 * palette(2)[1].astype(float))
    assert sheet[middle, middle + TILE + 2].tolist() == tinted.tolist()
    assert sheet.shape[1] == 2 * (2 * (TILE + 2) + GAP) + GAP


def test_a_sheet_without_masks_holds_the_images_alone() -> None:
    sheet = np.asarray(data_sheet([np.full((8, 8, 3), 90, np.uint8)], None, ["name that is not Latin: 猫"], (), 8))
    assert sheet.shape[1] == TILE + 2 + 2 * GAP
    assert (sheet[GAP : GAP + TILE, GAP : GAP + TILE] == 90).all()


def test_crops_are_drawn_where_they_lie() -> None:
    """Half the image from its centre: the frame's first line is at a quarter."""
    image = np.full((32, 32, 3), 90, np.uint8)
    view = np.full((16, 16, 3), 10, np.uint8)
    box = np.array([[0.25, 0.25, 0.5, 0.5]], np.float32)
    sheet = np.asarray(view_sheet([image], [[view]], [box], ["a"]))
    assert tuple(sheet[GAP + TILE // 4, GAP + TILE // 2]) == BOXES[0]
    assert tuple(sheet[GAP + TILE // 2, GAP + TILE // 4]) == BOXES[0]
    assert sheet[GAP + TILE // 2, GAP + TILE // 2].tolist() == [90, 90, 90]
    assert sheet[GAP + TILE // 2, GAP + TILE + 2 + TILE // 2].tolist() == [10, 10, 10]
