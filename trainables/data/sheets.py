"""Contact sheets: what a data set holds, and what a network will see of it, as one picture to look at."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trainables.data.listing import IGNORE

TILE = 128  # px, side of a picture on the sheet
GAP, LINE = 6, 14  # px between pictures; px of a line of text
SHOWN_CLASSES = 24  # in the legend
OPACITY = 0.55  # of a mask over its image
PAPER, INK, VOID = (250, 250, 250), (40, 40, 40), (128, 128, 128)
BOXES = ((230, 40, 40), (40, 110, 230), (20, 150, 70), (200, 120, 0))  # of the views' crops

Pixels = NDArray[np.uint8]  # (S, S, 3)
Color = tuple[int, int, int]


def palette(classes: int) -> NDArray[np.uint8]:
    """(256, 3): hues a golden angle apart in five brightnesses, so that neighbours differ; IGNORE is grey."""
    colors = np.full((256, 3), VOID, np.uint8)
    for i in range(min(classes, IGNORE)):
        hsv = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.85, (0.95, 0.6, 0.35, 0.8, 0.5)[i % 5])
        colors[i] = np.rint(255 * np.array(hsv)).astype(np.uint8)
    return colors


def overlay(image: Pixels, mask: NDArray[np.uint8], colors: NDArray[np.uint8], clear: int | None = None) -> Pixels:
    """The mask (S, S) in colour over the image (S, S, 3); class `clear` is left as it is."""
    mixed = (1 - OPACITY) * image.astype(np.float32) + OPACITY * colors[mask].astype(np.float32)
    tinted = np.rint(mixed).astype(np.uint8)
    return tinted if clear is None else np.where((mask == clear)[..., None], image, tinted)


def data_sheet(
    images: Sequence[Pixels],
    masks: Sequence[NDArray[np.uint8]] | None,
    captions: Sequence[str],
    classes: Sequence[str],
    columns: int = 4,
) -> Image.Image:
    """Every image, beside it itself under its mask where there are masks, and which colour is which class."""
    if masks is None:
        return _grid([[image] for image in images], captions, columns, [])
    colors = palette(len(classes))
    clear = list(classes).index("background") if "background" in classes else None
    rows = [[image, overlay(image, mask, colors, clear)] for image, mask in zip(images, masks, strict=True)]
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, np.int64))
    seen = [int(i) for i in np.flatnonzero(counts) if i != clear]
    legend = [("ignored" if i == IGNORE else classes[i], _color(colors[i])) for i in seen]
    return _grid(rows, captions, columns, legend)


def view_sheet(
    images: Sequence[Pixels],
    views: Sequence[Sequence[Pixels]],
    boxes: Sequence[NDArray[np.float32]],
    captions: Sequence[str],
) -> Image.Image:
    """One row for each image: the image with its crops drawn in, then its views. `boxes[v]` (B, 4) as shares."""
    rows = []
    for i, image in enumerate(images):
        crops = [box[i] for box in boxes]
        rows.append([_with_boxes(image, crops), *(view[i] for view in views)])
    legend = [(f"crop of view {v + 1}", BOXES[v % len(BOXES)]) for v in range(len(views))]
    return _grid(rows, captions, 1, legend)


def _with_boxes(image: Pixels, boxes: Sequence[NDArray[np.float32]]) -> Pixels:
    picture = Image.fromarray(_scaled(image))
    draw = ImageDraw.Draw(picture)
    for v, (top, left, height, width) in enumerate(boxes):
        corners = [left * TILE, top * TILE, (left + width) * TILE - 1, (top + height) * TILE - 1]
        draw.rectangle([float(corner) for corner in corners], outline=BOXES[v % len(BOXES)], width=2)
    return np.asarray(picture)


def _grid(
    rows: Sequence[Sequence[Pixels]], captions: Sequence[str], columns: int, legend: Sequence[tuple[str, Color]]
) -> Image.Image:
    """`columns` groups of pictures side by side, each with its caption below."""
    columns = max(1, min(columns, len(rows)))
    width = max(map(len, rows)) * (TILE + 2) + GAP
    height = TILE + LINE + GAP
    lines = -(-len(rows) // columns)
    per_line = max(1, (columns * width + GAP) // (TILE + 2))
    legend = [
        *legend[:SHOWN_CLASSES],
        *([(f"and {len(legend) - SHOWN_CLASSES} more", PAPER)] if len(legend) > SHOWN_CLASSES else []),
    ]
    sheet = Image.new("RGB", (columns * width + GAP, lines * height + GAP + LINE * -(-len(legend) // per_line)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        left, top = GAP + i % columns * width, GAP + i // columns * height
        for k, picture in enumerate(row):
            sheet.paste(Image.fromarray(_scaled(picture)), (left + k * (TILE + 2), top))
        draw.text((left, top + TILE), _short(caption, len(row)), INK, font)
    for i, (name, color) in enumerate(legend):
        left, top = GAP + i % per_line * (TILE + 2), lines * height + GAP + i // per_line * LINE
        draw.rectangle([left, top + 2, left + 9, top + 11], fill=color)
        draw.text((left + 13, top), _short(name, 1), INK, font)
    return sheet


def _scaled(image: Pixels) -> Pixels:
    """To TILE px; enlarged without smoothing, so that what is seen are the pixels."""
    resample = Image.Resampling.NEAREST if image.shape[0] < TILE else Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((TILE, TILE), resample))


def _short(text: str, tiles: int) -> str:
    """As much of the end of a caption as fits below its pictures."""
    most = tiles * TILE // 7
    plain = text.encode("latin-1", "replace").decode("latin-1")  # the built-in font has no more
    return plain if len(plain) <= most else "..." + plain[-most + 3 :]


def _color(values: NDArray[np.uint8]) -> Color:
    return int(values[0]), int(values[1]), int(values[2])
