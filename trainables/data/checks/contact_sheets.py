"""Contact sheets: what a data set holds, and what a network will see of it, as one image to look at."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import printable
from pretune.trainables.data.image_set import shown_in_color

TILE = 128  # px, side of an image on the sheet
GAP, LINE = 6, 14  # px between images; px of a line of text
SHOWN_CLASSES = 24  # in the legend
OPACITY = 0.55  # of a mask over its image
PAPER, INK, VOID = (250, 250, 250), (40, 40, 40), (128, 128, 128)
BOXES = ((230, 40, 40), (40, 110, 230), (20, 150, 70), (200, 120, 0))  # of the views' crops
BORDER = (255, 220, 0)  # of regions

RGB = NDArray[np.uint8]  # (S, S, 3)
Color = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _hue(number: int) -> Color:
    """Hues a golden angle apart in five brightnesses, so that neighbours differ."""
    rgb = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.85, (0.95, 0.6, 0.35, 0.8, 0.5)[number % 5])
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue


# Black for the background, Okabe and Ito's colours, then hues, so that no two classes share one.
CLASS_COLORS: tuple[Color, ...] = (
    *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115)),
    *((240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    *map(_hue, range(248)),
)


def class_color(number: int, background: int) -> Color:
    """The colour of a class wherever people see it; the background is black, the others take colours in their order."""
    return CLASS_COLORS[0 if number == background else 1 + number - (number > background)]


def palette(classes: int, background: int) -> NDArray[np.uint8]:
    """(256, 3): the colours of the classes; IGNORE and what is no class are grey."""
    colors = np.full((256, 3), VOID, np.uint8)
    colors[: min(classes, IGNORE)] = [class_color(i, background) for i in range(min(classes, IGNORE))]
    return colors


def overlay(image: RGB, mask: NDArray[np.uint8], colors: NDArray[np.uint8], clear: int | None = None) -> RGB:
    """The mask (S, S) in colour over the image (S, S, 3); class `clear` is left as it is."""
    mixed = (1 - OPACITY) * image.astype(np.float32) + OPACITY * colors[mask].astype(np.float32)
    tinted = np.rint(mixed).astype(np.uint8)
    return tinted if clear is None else np.where((mask == clear)[..., None], image, tinted)


def data_sheet(
    images: Sequence[RGB],
    masks: Sequence[NDArray[np.uint8]] | None,
    captions: Sequence[str],
    classes: Sequence[str],
    columns: int = 4,
    regions: Sequence[NDArray[np.uint16]] | None = None,
) -> Image.Image:
    """Every image, beside it itself under its mask where there are masks, and with the outlines of its regions where
    there are regions. The legend shows each class in the mean colour of its pixels on the sheet, as it looks there."""
    rows: list[list[RGB]] = [[image] for image in images]
    legend: list[tuple[str, Color]] = []
    if masks is not None:
        clear = list(classes).index("background") if "background" in classes else None
        colors = palette(len(classes), clear or 0)
        tinted = [overlay(image, mask, colors, clear) for image, mask in zip(images, masks, strict=True)]
        rows = [[*row, one] for row, one in zip(rows, tinted, strict=True)]
        legend = _mean_colors(tinted, masks, classes, clear)
    if regions is not None:
        rows = [[*row, outlined(row[0], found)] for row, found in zip(rows, regions, strict=True)]
        legend = [*legend, ("border of a region", BORDER)]
    return _grid(rows, captions, columns, legend)


def _mean_colors(
    tinted: Sequence[RGB], masks: Sequence[NDArray[np.uint8]], classes: Sequence[str], clear: int | None
) -> list[tuple[str, Color]]:
    """Mean colour of every class that is seen, tints included: tints of images have no colour of their own."""
    counts, sums = np.zeros(256, np.int64), np.zeros((256, 3))
    for tint, mask in zip(tinted, masks, strict=True):
        counts += np.bincount(mask.ravel(), minlength=256)
        for channel in range(3):
            sums[:, channel] += np.bincount(mask.ravel(), tint[..., channel].ravel(), minlength=256)
    seen = [int(i) for i in np.flatnonzero(counts) if i != clear]
    means = np.rint(sums / np.maximum(counts, 1)[:, None])
    return [("not scored" if i == IGNORE else classes[i], _color(means[i])) for i in seen]


def outlined(image: RGB, regions: NDArray[np.uint16]) -> RGB:
    """The image (S, S, 3) at TILE px with the outlines of its regions (S, S), 0 being none."""
    drawn = _scaled(image).copy()
    large = np.asarray(Image.fromarray(regions.astype(np.int32)).resize((TILE, TILE), Image.Resampling.NEAREST))
    border = np.zeros(large.shape, np.bool_)
    border[:, 1:] |= large[:, 1:] != large[:, :-1]
    border[1:] |= large[1:] != large[:-1]
    drawn[border] = BORDER
    return drawn


class Strip(NamedTuple):
    """One image of a sheet of views."""

    image: RGB
    views: Sequence[RGB]
    boxes: Sequence[NDArray[np.float32]]  # of the views: top, left, height, width as shares of the image
    caption: str
    regions: NDArray[np.uint16] | None = None  # (S, S), where views are cut from these


def view_sheet(strips: Sequence[Strip], titles: Sequence[str]) -> Image.Image:
    """One row for each image: the image with its crops drawn in, then its views, each under its title and the colour
    of its crop. `titles`: of the views; there may be more of these than boxes, whose titles have no colour."""
    rows = [
        [_with_boxes(s.image if s.regions is None else outlined(s.image, s.regions), s.boxes), *s.views] for s in strips
    ]
    drawn = len(strips[0].boxes)
    colors = [BOXES[v % len(BOXES)] if v < drawn else None for v in range(len(titles))]
    head = [("image with crops", None), *zip(titles, colors, strict=True)]
    legend = [("border of a region", BORDER)] if any(strip.regions is not None for strip in strips) else []
    return _grid(rows, [strip.caption for strip in strips], 1, legend, head)


def _with_boxes(image: RGB, boxes: Sequence[NDArray[np.float32]]) -> RGB:
    drawn = Image.fromarray(_scaled(image))
    draw = ImageDraw.Draw(drawn)
    for v, (top, left, height, width) in enumerate(boxes):
        corners = [left * TILE, top * TILE, (left + width) * TILE - 1, (top + height) * TILE - 1]
        draw.rectangle([float(corner) for corner in corners], outline=BOXES[v % len(BOXES)], width=2)
    return np.asarray(drawn)


def _grid(
    rows: Sequence[Sequence[RGB]],
    captions: Sequence[str],
    columns: int,
    legend: Sequence[tuple[str, Color]],
    titles: Sequence[tuple[str, Color | None]] = (),
) -> Image.Image:
    """`columns` groups of images side by side, each with its caption below; `titles` stand above the first."""
    columns = max(1, min(columns, len(rows)))
    width = max(map(len, rows)) * (TILE + 2) + GAP
    height = TILE + LINE + GAP
    lines = -(-len(rows) // columns)
    per_line = max(1, (columns * width + GAP) // (TILE + 2))
    legend = [
        *legend[:SHOWN_CLASSES],
        *([(f"and {len(legend) - SHOWN_CLASSES} more", PAPER)] if len(legend) > SHOWN_CLASSES else []),
    ]
    head = LINE if titles else 0
    below = head + lines * height
    sheet = Image.new("RGB", (columns * width + GAP, below + GAP + LINE * -(-len(legend) // per_line)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for k, (title, color) in enumerate(titles):
        _label(draw, font, (GAP + k * (TILE + 2), GAP // 2), title, color)
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        left, top = GAP + i % columns * width, head + GAP + i // columns * height
        for k, image in enumerate(row):
            sheet.paste(Image.fromarray(_scaled(image)), (left + k * (TILE + 2), top))
        draw.text((left, top + TILE), _short(caption, len(row) * (TILE + 2) - 2, font), INK, font)
    for i, (name, color) in enumerate(legend):
        left, top = GAP + i % per_line * (TILE + 2), below + GAP + i // per_line * LINE
        _label(draw, font, (left, top), name, color)
    return sheet


def _label(draw: ImageDraw.ImageDraw, font: Font, corner: tuple[int, int], text: str, color: Color | None) -> None:
    """A text with a square of its colour before it."""
    left, top = corner
    if color is not None:
        draw.rectangle([left, top + 2, left + 9, top + 11], fill=color)
        left += 13
    draw.text((left, top), _short(text, TILE - 13, font), INK, font)


def _scaled(image: RGB) -> RGB:
    """To TILE px; enlarged without smoothing, so that what is seen are the pixels."""
    resample = Image.Resampling.NEAREST if image.shape[0] < TILE else Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((TILE, TILE), resample))


def _short(text: str, width: int, font: Font) -> str:
    """As much of the end of a text as fits into `width` px."""
    plain = printable(text).encode("latin-1", "replace").decode("latin-1")  # the built-in font has no more
    if font.getlength(plain) <= width:
        return plain
    while plain and font.getlength(f"...{plain}") > width:
        plain = plain[1:]
    return f"...{plain}"


def _color(values: NDArray[Any]) -> Color:
    return int(values[0]), int(values[1]), int(values[2])


# ------------------------------------------------------------------------------------------------ slices of volumes


def telling_slice(mask: NDArray[np.uint8]) -> int:
    """The slice of (D, H, W) with the most foreground, which is all but class 0; the middle one where there is none."""
    counts = ((mask > 0) & (mask < 255)).sum(axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(mask) // 2


def slice_image(volume: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """Slice `at` of a grey volume (D, H, W, 1) as (H, W, 3)."""
    return np.repeat(volume[at], 3, axis=-1)


def image_to_show(
    image: NDArray[np.uint8], mask: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """An image and its mask as they are; of a volume (D, H, W, 1) its telling slice, or the middle one without mask."""
    if image.ndim == 3:
        return np.ascontiguousarray(shown_in_color(image)), mask
    at = len(image) // 2 if mask is None else telling_slice(mask)
    return slice_image(image, at), None if mask is None else mask[at]
