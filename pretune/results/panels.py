"""Test images for the report: image, truth, prediction and error of the best model, for its best, median and worst.

Which is which goes by the image's own Jaccard index, the mean over the classes that are in its truth or prediction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.errors import ModelError
from pretune.model.predict import Mask, Model, colored, load_model, logits_of
from pretune.search_spaces.words import counted
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.checks.contact_sheets import slice_image, telling_slice
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet, shown_in_color
from pretune.trainables.data.resident.open import open_cached

COLUMNS = ("image", "truth", "prediction", "error")
_BATCH, _VOLUMES = 64, 8  # put through the network together
_WRONG, _RIGHT, _IGNORED = (213, 94, 0), (240, 240, 240), (150, 150, 150)

Legend = Sequence[tuple[str, str]]  # name, colour


class PanelRow(NamedTuple):
    """One row of images, with what it is and what is to be said of it."""

    label: str
    note: str
    images: Sequence[Image.Image]


class Panel(NamedTuple):
    """Rows of images below a title and a caption."""

    title: str
    caption: str
    columns: Sequence[str]  # of every row's images
    rows: Sequence[PanelRow]
    legend: Legend = ()


def write_panels(study: Path, cache: Path) -> str:
    """Write panels/ unless it shows this model already; answers why not, "" where it is there.

    Args:
        study: a study's output folder.
        cache: where the study's images are decoded (`ROOT/cache`).
    """
    try:
        model = load_model(study)
        data = open_cached(str(model.card["data_digest"]), cache)
    except (ModelError, DataError) as error:
        return str(error)
    path, key = study / "panels" / "panels.json", str(model.card["fingerprint"])
    if is_current(path, key):
        return ""
    if data is None or data.masks is None:
        return f"{cache} does not hold the study's images; say where with --cache"
    if not model.card["test"]:
        return "the best model was not measured on test images"
    test = [int(index) for index in model.card["test"]]
    caption, rows = _caption(model, len(test)), _rows(model, data, test)
    write_panel(path, key, Panel("Test images", caption, COLUMNS, rows, _legend(model)))
    return ""


def is_current(path: Path, key: str) -> bool:
    """Whether a panel is there whole, and shows what `key` names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = all((path.parent / name).is_file() for row in content["rows"] for name in row["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return whole and bool(content.get("fingerprint") == key)


def write_panel(path: Path, key: str, panel: Panel) -> None:
    """A panel as `pretune.analysis.report.panels` reads it: PNG files beside a JSON file, which is written last."""
    path.parent.mkdir(exist_ok=True)
    listed = []
    for number, row in enumerate(panel.rows):
        names = [f"{path.stem}_{number}_{column}.png".replace(" ", "-") for column in panel.columns]
        for name, image in zip(names, row.images, strict=True):
            image.save(path.parent / name)
        listed.append({"label": row.label, "note": row.note, "images": names})
    content = panel._asdict() | {"rows": listed, "fingerprint": key}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ test images


def _rows(model: Model, data: ImageSet, test: Sequence[int]) -> list[PanelRow]:
    assert data.masks is not None
    predicted = predict_cached(model, data, test)
    solid = len(data.images.shape) == 5
    truths = [np.asarray(data.masks[i]) if solid else resized(data.masks[i], predicted[0].shape[-1]) for i in test]
    jaccards = [image_jaccard(mask, truth) for mask, truth in zip(predicted, truths, strict=True)]
    rows = []
    for label, place in chosen(jaccards).items():
        image, truth, mask = data.images[test[place]], truths[place], predicted[place]
        if solid:
            at = telling_slice(truth)
            image, truth, mask = slice_image(image, at), truth[at], mask[at]
        images = _panel(shown_in_color(image), truth, mask, model.background)
        rows.append(PanelRow(label, f"{data.names[test[place]]}, Jaccard {jaccards[place]:.3f}", images))
    return rows


def predict_cached(model: Model, data: ImageSet, indices: Sequence[int]) -> list[Mask]:
    """Masks (size, size) of images of the cache, or (D, size, size) of volumes, in the order of `indices`."""
    masks: list[Mask] = []
    at_once = _BATCH if len(data.images.shape) == 4 else _VOLUMES
    for first in range(0, len(indices), at_once):
        squares = [data.images[index] for index in indices[first : first + at_once]]
        masks += list(logits_of(model, squares).argmax(dim=1).to("cpu").numpy().astype(np.uint8))
    return masks


def image_jaccard(mask: Mask, truth: Mask) -> float:
    """Mean over the classes in either mask of intersection over union; pixels of truth IGNORE do not count."""
    seen = truth != IGNORE
    mask, truth = mask[seen], truth[seen]
    classes = np.union1d(mask, truth)
    if not len(classes):
        return float("nan")
    both = [((mask == k) & (truth == k)).sum() / ((mask == k) | (truth == k)).sum() for k in classes]
    return float(np.mean(both))


def chosen(jaccards: Sequence[float]) -> dict[str, int]:
    """Positions of the best, the (upper) median and the worst; images without a score come last, as the worst would."""
    order = np.argsort(-np.nan_to_num(np.array(jaccards), nan=-1.0), kind="stable")
    return {"best": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}


def resized(mask: NDArray[np.uint8], size: int) -> Mask:
    """A mask of the cache at the model's size, by nearest neighbour."""
    return np.asarray(Image.fromarray(np.asarray(mask)).resize((size, size), Image.Resampling.NEAREST))


def _panel(image: NDArray[np.uint8], truth: Mask, mask: Mask, background: int) -> tuple[Image.Image, ...]:
    """In the order of COLUMNS; error: wrong pixels orange. Grey does not count; in the prediction padding alone."""
    error = np.where((mask != truth)[..., None], np.array(_WRONG, np.uint8), np.array(_RIGHT, np.uint8))
    error[truth == IGNORE] = _IGNORED
    shown, predicted = (np.array(colored(classes, background).convert("RGB")) for classes in (truth, mask))
    shown[truth == IGNORE] = _IGNORED
    predicted[padding(truth)] = _IGNORED
    return (
        Image.fromarray(np.asarray(image)),
        Image.fromarray(shown),
        Image.fromarray(predicted),
        Image.fromarray(error),
    )


def padding(truth: Mask) -> NDArray[np.bool_]:
    """Outer rows and columns without any pixel that counts, where models fill in a class; none if nothing counts."""
    seen = truth != IGNORE
    outside = np.full(truth.shape, seen.any())
    outside[_span(seen.any(axis=1)), _span(seen.any(axis=0))] = False
    return outside


def _span(kept: NDArray[np.bool_]) -> slice:
    """From the first to the last True."""
    places = np.flatnonzero(kept)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _caption(model: Model, count: int) -> str:
    card = model.card
    return (
        f"The kept model ({card['cell']}, seed {card['seed']}; chosen by {card['target']} on validation data) on three "
        f"of {counted(count, 'test image')}: those with its best, median and worst Jaccard of a single image."
    )


def _legend(model: Model) -> list[tuple[str, str]]:
    colors = colored(np.arange(len(model.classes), dtype=np.uint8)[None], model.background).convert("RGB")
    pixels = np.asarray(colors)[0]
    classes = [(name, _hex(tuple(map(int, pixel)))) for name, pixel in zip(model.classes, pixels, strict=True)]
    return [*classes, ("wrong (error column)", _hex(_WRONG)), ("does not count", _hex(_IGNORED))]


def _hex(color: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in color)
