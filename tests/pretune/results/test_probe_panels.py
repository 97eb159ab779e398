"""Map probes from the study file to image panels: a whole study with a pretraining by classification, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretune.analysis.report.panels import load_panels
from pretune.dispatch.scheduler import Scheduler
from pretune.results import tables
from pretune.results.probe_panels import mark, write_probe_panels
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Store
from pretune.trainables.data.resident.digest import content_digest
from pretune.worker.execute import execute
from pretune.worker.task import Folders, StageTask

VIEWS = {"size": 16}


def study(folder: Path, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "study": "s",
        "data": {"d": {"dataset": "npz", "root": str(folder / "d.npz"), "cache_size": 16, "split": {"val": 8}}},
        "model": {"widths": [4, 8]},
        "pretrain": {"data": "d", "method": {"name": "classification"}, "views": VIEWS, "batch_size": 8, "steps": 3},
        "probe": {
            "where": {"kind": "cam", "data": "d", "size": 16},
            "seen": {"kind": "maps", "data": "d", "size": 16, "count": 2},
        },
        "factors": {"rate": {"pretrain.optimizer.lr": [0.01, 0.001]}},
        "seeds": {"report": 1},
        "report": {"metrics": ["probe/where/accuracy", "probe/seen/explained_variance"]},
    }
    return made | changes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 images of two classes."""
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(40) % 2)
    return tmp_path


def run(data: Path) -> Store:
    made = from_dict(study(data))
    folders, store = Folders(str(data / "store"), str(data / "cache"), None), Store(data / "store")
    chosen = program.Run(made, lambda settings: content_digest(settings, None), open_storage(None))
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(chosen))
    while (stage := scheduler.take()) is not None:
        outcome = execute(StageTask(stage, stage.name, 0.0, folders), lambda values: None)
        assert outcome.state == "finished", outcome.cause
        scheduler.complete(stage, outcome)
    tables.write_header(made, data / "s")
    tables.write_results(made, chosen.replicates, scheduler.outcomes, store, data / "s")
    return store


def test_maps_of_a_study_become_panels_and_are_drawn_once(data: Path) -> None:
    (data / "s").mkdir()
    store = run(data)
    assert write_probe_panels(data / "s", store) == ""
    panels = {found.name: found for found in load_panels(data / "s")}
    assert panels.keys() == {"probe-where", "probe-seen"}
    assert panels["probe-where"].columns == ("image", "class activation")
    assert panels["probe-seen"].columns == ("image", "components", "similarity")
    assert len(panels["probe-where"].rows) == 2 * 3  # two cells, three of eight images
    assert len(panels["probe-seen"].rows) == 2 * 2
    listed = json.loads((data / "s" / "panels" / "probe-seen.json").read_text())["rows"]
    for name in (name for row in listed for name in row["images"]):
        with Image.open(data / "s" / "panels" / name) as image:
            assert image.size == (16, 16)
    written = (data / "s" / "panels" / "probe-seen.json").stat().st_mtime_ns
    assert write_probe_panels(data / "s", store) == ""
    assert (data / "s" / "panels" / "probe-seen.json").stat().st_mtime_ns == written


def test_the_place_is_marked_where_it_is() -> None:
    """Field (1, 2) of a 2 x 4 map drawn at 8 px: rows 4 to 8, columns 4 to 6."""
    image = Image.new("RGB", (8, 8))
    mark(image, np.array([1, 2]), (2, 4))
    white = np.argwhere(np.asarray(image)[..., 0] == 255)
    assert (white.min(axis=0).tolist(), white.max(axis=0).tolist(), len(white)) == ([4, 4], [7, 5], 8)


def test_class_activation_needs_a_classification_on_the_same_data(data: Path) -> None:
    pretrain = study(data)["pretrain"] | {"method": {"name": "simclr"}}
    with pytest.raises(StudyError, match="class-activation maps need"):
        from_dict(study(data, pretrain=pretrain))
