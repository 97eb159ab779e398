"""Draws the picture of the README: score over labels for every start, beside predicted masks.

    python docs/showcase.py                                 from benchmarks/results/studies/few-labels/results.parquet
    python docs/showcase.py runs/few-labels/results.parquet
    python docs/showcase.py --masks CACHE RUN_A RUN_B       draw the masks anew, with the best models of two studies

Writes docs/images/few_labels.svg. The masks are kept in docs/images/few_labels_masks.png, so that a new curve needs no
model. RUN_A and RUN_B are folders of studies on the same data, CACHE is their `ROOT/cache`.
"""

from __future__ import annotations

import base64
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

import pandas as pd

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "benchmarks" / "results" / "studies" / "few-labels" / "results.parquet"
PICTURE = TOP / "docs" / "images" / "few_labels.svg"
MASKS = TOP / "docs" / "images" / "few_labels_masks.png"
METRIC = "test/jaccard"
COLUMNS = ("image", "truth", "random start", "ImageNet, frozen")
SHARES = (0.25, 0.5, 0.75)  # the images at these quantiles of the second model's Jaccard
COLORS = ("#7a7a7a", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito, one for each start
WIDTH, HEIGHT, LEFT, RIGHT, TOP_EDGE, BOTTOM = 520, 330, 52, 190, 26, 44  # px of the chart and its margins
TILE, GAP = 84, 6  # px of one mask in the picture, and between two


class Line(NamedTuple):
    """One line of the chart: the mean over seeds at every number of labels, and the seeds themselves."""

    start: str
    frozen: bool
    means: dict[int, float]
    seeds: dict[int, list[float]]


def lines_of(results: pd.DataFrame) -> list[Line]:
    """The confirmed scores by start and encoder, over the counts of labels. `all` labels have no place on the axis."""
    rows = results[(results.phase == "confirm") & (results.metric == METRIC) & (results.outcome == "finished")]
    rows = rows[rows["factor.labels"].astype(str).str.isdigit()]
    lines = []
    for (start, encoder), group in rows.groupby(["factor.start", "factor.encoder"], sort=False):
        by_labels = {int(labels): part.value.tolist() for labels, part in group.groupby("factor.labels")}
        seeds = dict(sorted(by_labels.items()))
        means = {labels: sum(values) / len(values) for labels, values in seeds.items()}
        lines.append(Line(str(start), encoder == "frozen", means, seeds))
    return lines


def apart(places: list[float], least: float) -> list[float]:
    """The places, moved down so that two neighbours are at least so far apart; the order stays."""
    moved: dict[int, float] = {}
    last = float("-inf")
    for index in sorted(range(len(places)), key=places.__getitem__):
        last = max(places[index], last + least)
        moved[index] = last
    return [moved[index] for index in range(len(places))]


def chart(lines: list[Line]) -> list[str]:
    """The SVG elements of the chart."""
    labels = sorted({count for line in lines for count in line.seeds})
    values = [value for line in lines for seeds in line.seeds.values() for value in seeds]
    low, high = int(min(values) * 20) / 20, int(max(values) * 20 + 1) / 20  # steps of 0.05

    def x(count: int) -> float:
        span = WIDTH - LEFT - RIGHT - 30
        return LEFT + 15 + span * labels.index(count) / max(1, len(labels) - 1)

    def y(value: float) -> float:
        return TOP_EDGE + (high - value) / (high - low) * (HEIGHT - TOP_EDGE - BOTTOM)

    parts = []
    for step in range(round((high - low) * 20) + 1):
        at = low + step / 20
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}" stroke="#e3e3e3"/>')
        parts.append(text(f"{at:.2f}", LEFT - 6, y(at) + 4, anchor="end", size=12))
    parts += [text(str(count), x(count), HEIGHT - BOTTOM + 18, anchor="middle", size=12) for count in labels]
    parts.append(text("labelled images", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, anchor="middle"))
    parts.append(text("test Jaccard", 6, 14))
    names = list(dict.fromkeys(line.start for line in lines))
    ends = apart([y(line.means[max(line.means)]) for line in lines], 15)
    for line, end in zip(lines, ends, strict=True):
        color = COLORS[names.index(line.start) % len(COLORS)]
        points = " ".join(f"{x(count):.1f},{y(mean):.1f}" for count, mean in line.means.items())
        dash = ' stroke-dasharray="6 4"' if line.frozen else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2.5"{dash}/>')
        for count, seeds in line.seeds.items():
            for value in seeds:
                place = f'cx="{x(count):.1f}" cy="{y(value):.1f}"'
                parts.append(f'<circle {place} r="3" fill="{color}" fill-opacity="0.55"/>')
        name = f"{line.start}, {'frozen' if line.frozen else 'free'}"
        parts.append(text(name, WIDTH - RIGHT + 4, end + 4, color=color, size=12))
    return parts


def text(words: str, x: float, y: float, anchor: str = "start", size: int = 13, color: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">{escape(words)}</text>'
    )


def picture(lines: list[Line], masks: Path) -> str:
    """The whole SVG; without the masks where their file is not there."""
    parts, width = chart(lines), WIDTH
    if masks.is_file():
        left, wide, high = WIDTH + 14, len(COLUMNS) * (TILE + GAP) - GAP, len(SHARES) * (TILE + GAP) - GAP
        for number, name in enumerate(COLUMNS):
            parts.append(text(name, left + number * (TILE + GAP) + TILE / 2, 18, anchor="middle", size=11))
        data = base64.b64encode(masks.read_bytes()).decode("ascii")
        place = f'x="{left}" y="{TOP_EDGE}" width="{wide}" height="{high}"'
        parts.append(f'<image {place} href="data:image/png;base64,{data}"/>')
        parts.append(text("both trained on 50 labels", left + wide / 2, HEIGHT - 16, anchor="middle", size=12))
        width = left + wide + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
    return "\n".join([f'{head} font-family="sans-serif">', '<rect width="100%" height="100%" fill="white"/>',
                      *parts, "</svg>\n"])  # fmt: skip


def draw_masks(cache: Path, first: Path, second: Path) -> None:
    """Keep image, truth and the masks of two models for three test images, as one PNG."""
    from PIL import Image

    from pretune.model.predict import colored, load_model
    from pretune.results.panels import image_jaccard, predict_cached, resized
    from pretune.trainables.data.resident.open import open_cached

    models = [load_model(study) for study in (first, second)]
    data = open_cached(str(models[1].card["data_digest"]), cache)
    if data is None or data.masks is None:
        raise SystemExit(f"{cache} does not hold the images of {second}")
    test = [int(index) for index in models[1].card["test"]]
    if test != [int(index) for index in models[0].card["test"]]:
        raise SystemExit(f"{first} and {second} have other test images")
    size = models[1].size
    truths = [resized(data.masks[index], size) for index in test]
    masks = [predict_cached(model, data, test) for model in models]
    scores = [image_jaccard(mask, truth) for mask, truth in zip(masks[1], truths, strict=True)]
    order = sorted(range(len(test)), key=scores.__getitem__)
    sheet = Image.new("RGB", (len(COLUMNS) * (2 * (TILE + GAP)), len(SHARES) * (2 * (TILE + GAP))), "white")
    for row, share in enumerate(SHARES):
        at = order[round(share * (len(order) - 1))]
        shown = [Image.fromarray(data.images[test[at]])]
        shown += [colored(mask, 0).convert("RGB") for mask in (truths[at], masks[0][at], masks[1][at])]
        for column, image in enumerate(shown):
            tile = image.resize((2 * TILE, 2 * TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * 2 * (TILE + GAP), row * 2 * (TILE + GAP)))
    sheet = sheet.crop((0, 0, sheet.width - 2 * GAP, sheet.height - 2 * GAP))
    sheet.quantize(64).save(MASKS, optimize=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["--masks"]:
        draw_masks(*map(Path, given[1:4]))
        given = given[4:]
    PICTURE.write_text(picture(lines_of(pd.read_parquet(given[0] if given else RESULTS)), MASKS), "utf-8")
