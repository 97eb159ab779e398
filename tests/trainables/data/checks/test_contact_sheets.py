"""Contact sheets: where the images stand, and that masks and crops are drawn where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from pretune.model.predict import colored
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.checks.contact_sheets import (
    BORDER,
    BOXES,
    GAP,
    LINE,
    TILE,
    VOID,
    Strip,
    _short,
    data_sheet,
    outlined,
    overlay,
    palette,
    view_sheet,
)


def test_neighbouring_classes_have_different_colours_and_ignored_pixels_are_grey() -> None:
    colors = palette(30, 0).astype(int)
    apart = np.abs(colors[:30, None] - colors[None, :30]).sum(-1)
    assert apart[~np.eye(30, dtype=bool)].min() > 20
    assert tuple(colors[IGNORE]) == VOID


@pytest.mark.parametrize("background", [0, 2])
def test_classes_have_the_colours_that_predicted_masks_have(background: int) -> None:
    shown = colored(np.arange(5, dtype=np.uint8)[None], background).convert("RGB")
    assert np.asarray(shown)[0].tolist() == palette(5, background)[:5].tolist()


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
    tinted = np.rint(0.45 * 90 + 0.55 * palette(2, 0)[1].astype(float))
    assert sheet[middle, middle + TILE + 2].tolist() == tinted.tolist()
    assert sheet.shape[1] == 2 * (2 * (TILE + 2) + GAP) + GAP


def test_a_sheet_without_masks_holds_the_images_alone() -> None:
    sheet = np.asarray(data_sheet([np.full((8, 8, 3), 90, np.uint8)], None, ["name that is not Latin: 猫"], (), 8))
    assert sheet.shape[1] == TILE + 2 + 2 * GAP
    assert (sheet[GAP : GAP + TILE, GAP : GAP + TILE] == 90).all()


def test_the_legend_shows_a_class_as_it_looks_on_the_sheet() -> None:
    """Class x on a grey of 90 and on one of 190, twice as many pixels: tints that no palette holds, and their mean."""
    images = [np.full((8, 8, 3), grey, np.uint8) for grey in (90, 190)]
    masks = [np.zeros((8, 8), np.uint8) for _ in images]
    masks[0][:, :2], masks[1][:, :4] = 1, 1
    sheet = np.asarray(data_sheet(images, masks, ["a", "b"], ("background", "x"), 2))
    tints = [np.rint(0.45 * grey + 0.55 * palette(2, 0)[1].astype(float)) for grey in (90, 190)]
    swatch = sheet[-(LINE // 2), GAP + 4].astype(float)
    assert np.abs(swatch - (tints[0] + 2 * tints[1]) / 3).max() <= 1


def test_regions_are_outlined() -> None:
    """Left half 1, right half 2, in 8 px shown at 128: the border is the first column of the right half."""
    regions = np.repeat(np.array([[1, 2]], np.uint16), 4, axis=1).repeat(8, axis=0)
    drawn = outlined(np.full((8, 8, 3), 90, np.uint8), regions)
    border = (drawn == BORDER).all(axis=-1)
    assert border[:, TILE // 2].all()
    assert border.sum() == TILE
    assert (drawn[~border] == 90).all()


def test_a_data_sheet_with_regions_has_a_picture_for_them() -> None:
    image, regions = np.full((8, 8, 3), 90, np.uint8), np.ones((8, 8), np.uint16)
    sheet = np.asarray(data_sheet([image], None, ["a"], (), 8, [regions]))
    assert sheet.shape[1] == 2 * (TILE + 2) + 2 * GAP


def test_a_text_keeps_its_end_where_it_does_not_fit() -> None:
    font = ImageFont.load_default(11)
    text = "folder/of/many/names/a_name_at_the_end.jpg"
    whole = int(font.getlength(text)) + 1
    assert _short(text, whole, font) == text
    short = _short(text, whole // 2, font)
    assert short.startswith("...")
    assert text.endswith(short[3:])
    assert whole // 2 - 12 < font.getlength(short) <= whole // 2


def test_crops_are_drawn_where_they_lie() -> None:
    """Half the image from its centre: the frame's first line is at a quarter."""
    image = np.full((32, 32, 3), 90, np.uint8)
    view = np.full((16, 16, 3), 10, np.uint8)
    box = np.array([[0.25, 0.25, 0.5, 0.5]], np.float32)
    sheet = np.asarray(view_sheet([Strip(image, [view], [box[0]], "a")], ["view 1, epoch 0"]))
    top = LINE + GAP  # below the titles
    assert tuple(sheet[top + TILE // 4, GAP + TILE // 2]) == BOXES[0]
    assert tuple(sheet[top + TILE // 2, GAP + TILE // 4]) == BOXES[0]
    assert sheet[top + TILE // 2, GAP + TILE // 2].tolist() == [90, 90, 90]
    assert sheet[top + TILE // 2, GAP + TILE + 2 + TILE // 2].tolist() == [10, 10, 10]
