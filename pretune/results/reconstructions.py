"""Images that restoring pretrainings (MAE, Genesis, ConRec, reconstruction) made of unseen ones (P2, Figure 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from pretune.analysis.load.results import ResultsError, load
from pretune.results.panels import Panel, PanelRow, is_current, write_panel
from pretune.search_spaces import schema
from pretune.store.lookup import task_of
from pretune.store.store import Entry, Store
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet, shown_in_color
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.files import NOTES, WEIGHTS
from pretune.trainables.loop import RunContext
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.restored import Restored, restored
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.pretrain import VALIDATION_VIEWS, image_classes, make_batch, make_feeds

COLUMNS = ("image", "shown", "restored")
CAPTION = (
    "Views of images that pretraining did not see, what the network was shown of them, and what it restored. "
    "One pretraining of each setting, its first seed."
)
_MOST, _IMAGES = 6, 3  # pretrainings; images of each


def write_reconstructions(study: Path, store: Store, cache: Path) -> str:
    """Write panels/reconstructions.json unless it is there already; answers why not, "" also where nothing restores."""
    path = study / "panels" / "reconstructions.json"
    try:
        entries = restoring(load(study), store)[:_MOST]
        key = " ".join(entry.fingerprint for entry in entries)
        if not entries or is_current(path, key):
            return ""
        rows = [row for entry in entries for row in _rows(entry, store, cache)]
    except (ResultsError, DataError, OSError, ValueError, KeyError, RuntimeError) as error:
        return str(error)
    if not rows:
        return f"{cache} does not hold the study's images; say where with --cache"
    write_panel(path, key, Panel("Restored images", CAPTION, COLUMNS, rows))
    return ""


def restoring(results: pandas.DataFrame, store: Store) -> list[Entry]:
    """Finished confirmed pretrainings by a restoring method, the first of each setting."""
    rows = results[(results["phase"] == "confirm") & results["stage"].str.startswith("pretrain")]
    found: dict[str, Entry] = {}
    for fingerprint in rows.drop_duplicates("fingerprint").sort_values("seed", kind="stable")["fingerprint"]:
        entry = store.find(str(fingerprint))
        if entry is None or entry.outcome != "finished" or not _restores(task_of(entry)["settings"]):
            continue
        task = task_of(entry)
        found.setdefault(json.dumps([task["settings"], task["model"], task["digest"]], sort_keys=True), entry)
    return list(found.values())


def _restores(settings: dict[str, Any]) -> bool:
    if not schema.FACTS[settings["method"]["name"]].trains:  # weights, whose file may be gone
        return False
    return schema.restores_views(TypeAdapter(schema.Pretrain).validate_python(settings).method)


def _rows(entry: Entry, store: Store, cache: Path) -> list[PanelRow]:
    task = task_of(entry)
    data = open_cached(task["digest"], cache)
    if data is None:
        return []
    settings = TypeAdapter(schema.Pretrain).validate_python(task["settings"])
    seen = json.loads(store.file(entry, NOTES).read_text(encoding="utf-8"))["images"]
    indices = chosen(len(data.images), seen)
    method = _method(entry, store, settings, data)
    context = RunContext(Path(), torch.device("cpu"), None, None)
    batch = make_batch(method, make_feeds(data, context), indices, VALIDATION_VIEWS, 0)
    found, name = restored(method, batch), f"{settings.method.name}, {entry.fingerprint[:8]}"
    return [PanelRow(name, data.names[index], _images(found, row)) for row, index in enumerate(indices)]


def chosen(count: int, seen: list[int]) -> NDArray[np.int64]:
    """A few images spread over those that pretraining did not see, or over all where it saw all of them."""
    unseen = np.setdiff1d(np.arange(count), seen)
    kept = unseen if len(unseen) else np.arange(count)
    return kept[np.unique(np.linspace(0, len(kept) - 1, _IMAGES).round().astype(np.int64))]


def _method(entry: Entry, store: Store, settings: schema.Pretrain, data: ImageSet) -> Any:
    model: schema.Model = TypeAdapter(schema.Model).validate_python(task_of(entry)["model"])
    parts = Parts(build_encoder(model), lambda: build_decoder(model), len(data.classes), image_classes(data))
    method = build_method(settings.method, settings.views, parts)
    assert isinstance(method, nn.Module)
    method.load_state_dict(load_file(store.file(entry, WEIGHTS)))
    return method.eval()


def _images(found: Restored, row: int) -> tuple[Image.Image, ...]:
    return tuple(_image(part[row]) for part in found)


def _image(pixels: Tensor) -> Image.Image:
    """(C, S, S), or (1, D, S, S) by its middle slice, in about [0, 1] -> an image; what lies outside is cut off."""
    if pixels.ndim == 4:
        pixels = pixels[:, pixels.shape[1] // 2]
    scaled = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(shown_in_color(scaled.numpy())))
