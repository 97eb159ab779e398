"""Image panels of what map probes kept of a study's encoders: class-activation maps (P3, Figure 5c), principal
components and similarity of features (P5, Figure 1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb

from pretune.analysis.load.results import ResultsError, load
from pretune.results.panels import Panel, PanelRow, is_current, write_panel
from pretune.store.lookup import task_of
from pretune.store.store import Entry, Store
from pretune.trainables.files import MAPS

COLUMNS = {"cam": ("image", "class activation"), "maps": ("image", "components", "similarity")}
TITLES = {"cam": "Class activation", "maps": "Features"}
CAPTIONS = {
    "cam": "Where the classifier finds the class of the image (bright: for it). The first seed of each cell.",
    "maps": "The first three principal components of the features as red, green and blue, and the cosine of every "
    "place with the place marked in white (dark: 0 or less, bright: 1). The first seed of each cell.",
}
_MOST, _IMAGES = 8, 3  # probes of a name; images of each
_SCALE = np.array([unlabel_rgb(c) for c in sample_colorscale("Inferno", np.linspace(0, 1, 256).tolist())], np.uint8)


def write_probe_panels(study: Path, store: Store) -> str:
    """Write panels/probe-NAME.json for every map probe, unless it is there; answers why not, "" also without any."""
    try:
        found = map_probes(load(study), store)
        for name, entries in found.items():
            path, shown = study / "panels" / f"probe-{name}.json", dict(list(entries.items())[:_MOST])
            kind = _kind(next(iter(shown.values())))
            key = " ".join(entry.fingerprint for entry in shown.values())
            if not is_current(path, key):
                rows = [row for cell, entry in shown.items() for row in _rows(cell, kind, entry, store)]
                write_panel(path, key, Panel(f"{TITLES[kind]}: {name}", CAPTIONS[kind], COLUMNS[kind], rows))
    except (ResultsError, OSError, ValueError, KeyError) as error:
        return str(error)
    return ""


def map_probes(results: pandas.DataFrame, store: Store) -> dict[str, dict[str, Entry]]:
    """Probe name -> cell -> its confirmed run of the first seed, of the probes that keep maps."""
    rows = results[(results["phase"] == "confirm") & results["stage"].str.startswith("probe:")]
    found: dict[str, dict[str, Entry]] = {}
    for row in rows.drop_duplicates(["cell", "fingerprint"]).sort_values("seed", kind="stable").to_dict("records"):
        entry = store.find(str(row["fingerprint"]))
        if entry is not None and entry.outcome == "finished" and _kind(entry) in COLUMNS:
            name = str(row["stage"]).removeprefix("probe:")
            found.setdefault(name, {}).setdefault(str(row["cell"]) or "all cells", entry)
    return found


def _kind(entry: Entry) -> str:
    return str(task_of(entry)["settings"]["kind"])


def _rows(cell: str, kind: str, entry: Entry, store: Store) -> Iterator[PanelRow]:
    with np.load(store.file(entry, MAPS), allow_pickle=False) as file:
        kept: dict[str, NDArray[Any]] = {name: file[name][:_IMAGES] for name in file.files}
    for i, pixels in enumerate(kept["pixels"]):
        size = len(pixels)
        if kind == "cam":
            right = "right" if kept["labels"][i] == kept["predicted"][i] else f"taken for {kept['predicted'][i]}"
            low, high = kept["maps"][i].min(), kept["maps"][i].max()
            images = [_heat((kept["maps"][i] - low) / max(high - low, 1e-9), size)]
            note = f"image {kept['images'][i]}, class {kept['labels'][i]}, {right}"
        else:
            components = (kept["components"][i] * 255).round().astype(np.uint8)
            images = [_enlarged(components, size), _heat(kept["similarity"][i].clip(0, 1), size)]
            mark(images[1], kept["place"], kept["similarity"][i].shape)
            note = f"image {kept['images'][i]}"
        yield PanelRow(cell, note, [Image.fromarray(pixels), *images])


def _heat(values: NDArray[Any], size: int) -> Image.Image:
    """(h, w) in [0, 1] -> an image of `size` px."""
    return _enlarged(_SCALE[(values * 255).round().astype(np.int64)], size)


def _enlarged(pixels: NDArray[np.uint8], size: int) -> Image.Image:
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)


def mark(image: Image.Image, place: NDArray[Any], shape: tuple[int, ...]) -> None:
    """White over the field of a map of `shape` that `place` (row, column) names."""
    (top, bottom), (left, right) = (
        (round(at * side / n), max(round((at + 1) * side / n), round(at * side / n) + 1))
        for at, n, side in zip(place, shape, (image.height, image.width), strict=True)
    )
    image.paste((255, 255, 255), (left, top, right, bottom))
