"""Image panels that `pretune report` left in a study's `panels/`: read for the page, and as one PNG for a paper.

One JSON file per panel: {"title", "caption", "columns", "rows": [{"label", "note", "images": [PNG names]}], "legend"}.
"""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pretune.analysis.load.results import ResultsError

_SIDE, _GAP, _LEFT, _TOP = 256, 8, 200, 34  # px of a sheet
_INK = (31, 41, 51)


class ShownRow(NamedTuple):
    label: str
    note: str
    images: tuple[Path, ...]

    @property
    def urls(self) -> tuple[str, ...]:
        """data: URLs, so that the page needs no other file."""
        encoded = (base64.b64encode(path.read_bytes()).decode() for path in self.images)
        return tuple(f"data:image/png;base64,{text}" for text in encoded)


class Panels(NamedTuple):
    """Images in rows and columns with a legend of colours."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[ShownRow, ...]
    legend: tuple[tuple[str, str], ...]  # class, colour


def load_panels(folder: Path) -> tuple[Panels, ...]:
    """All panels of a study, test images first; () where there are none. Raises ResultsError for a damaged one."""
    files = sorted((folder / "panels").glob("*.json"), key=lambda path: (path.stem != "panels", path.stem))
    return tuple(_load(path) for path in files)


def _load(path: Path) -> Panels:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(_row(path.parent, row) for row in content["rows"])
        legend = tuple((str(name), str(color)) for name, color in content["legend"])
        title, caption = str(content.get("title", "Test images")), str(content["caption"])
        return Panels(path.stem, title, caption, tuple(map(str, content["columns"])), rows, legend)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path.parent} is damaged ({error}): delete it and report again") from error


def _row(folder: Path, row: Mapping[str, Any]) -> ShownRow:
    paths = tuple(folder / Path(name).name for name in row["images"])
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{missing[0]} is missing")
    return ShownRow(str(row["label"]), str(row["note"]), paths)


def write_sheets(folder: Path, out: Path) -> list[Path]:
    """Every panel as one PNG in `out`, at a size that prints well."""
    written = []
    for found in load_panels(folder):
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{'test-images' if found.name == 'panels' else found.name}.png"
        sheet(found).save(path)
        written.append(path)
    return written


def sheet(panels: Panels) -> Image.Image:
    """Rows and columns with their names, and the legend beneath; images enlarged without smoothing."""
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)
    step = _SIDE + _GAP
    width, height = _LEFT + step * len(panels.columns), _TOP + step * len(panels.rows) + (40 if panels.legend else 0)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for x, name in enumerate(panels.columns):
        draw.text((_LEFT + x * step + _SIDE / 2, _TOP - 8), name, _INK, font, anchor="ms")
    for y, row in enumerate(panels.rows):
        top = _TOP + y * step
        draw.text((8, top + 4), row.label, _INK, font)
        draw.multiline_text((8, top + 30), _wrapped(row.note), _INK, small)
        for x, path in enumerate(row.images):
            with Image.open(path) as image:
                page.paste(
                    image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (_LEFT + x * step, top)
                )
    left = 8.0
    for name, color in panels.legend:
        draw.rectangle((left, height - 26, left + 14, height - 12), fill=color, outline=_INK)
        draw.text((left + 20, height - 28), name, _INK, small)
        left += 40 + draw.textlength(name, small)
    return page


def _wrapped(text: str, width: int = 26) -> str:
    return textwrap.fill(text, width)
