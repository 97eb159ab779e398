"""What people look at, where the data are volumes: panels, restored slices, exports, `pretune data check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from pretune.analysis.report.panels import load_panels
from pretune.cli import cli
from pretune.errors import ModelError
from pretune.model.check_images import CheckImages, generated_images
from pretune.model.export import compare
from pretune.model.predict import load_model
from pretune.model.predict_folder import How, predict_folder
from pretune.results.panels import write_panels
from pretune.search_spaces import schema
from pretune.trainables.data.checks.contact_sheets import image_to_show, telling_slice
from pretune.trainables.data.resident.build import ensure_built
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.models.table import build_unet


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An untrained model of volumes, and the cache with its volumes of 8 x 16 x 16."""
    data = schema.Volumes(dataset="volumes", images=6, cache_size=16, slices=8)
    digest = ensure_built(data, None, tmp_path / "cache")
    card: dict[str, Any] = {
        "study": "s", "cell": "a=x", "seed": 0, "fingerprint": "f", "target": "val/jaccard", "data_digest": digest,
        "model": {"name": "genesis-unet", "widths": [4, 8]}, "data": data.model_dump(mode="json"),
        "input": {"size": 16}, "classes": ["background", "body"], "test": [0, 2, 5],
    }  # fmt: skip
    torch.manual_seed(0)
    (tmp_path / "best").mkdir()
    network = build_unet(schema.GenesisUNet.model_validate(card["model"]), 2)
    save_file(dict(network.state_dict()), tmp_path / "best" / "model.safetensors")
    (tmp_path / "best" / "model.json").write_text(json.dumps(card))
    return tmp_path


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_panels_show_the_slice_with_most_of_the_truth(study: Path) -> None:
    assert write_panels(study, study / "cache") == ""
    (panels,) = load_panels(study)
    data = open_cached(json.loads((study / "best" / "model.json").read_text())["data_digest"], study / "cache")
    assert data is not None
    assert data.masks is not None
    for number, row in enumerate(panels.rows):
        mask = data.masks[data.names.index(row.note.split(",")[0])]
        truth = pixels(study / "panels" / f"panels_{number}_truth.png").any(axis=2)
        assert truth.sum() == (mask > 0).sum(axis=(1, 2)).max()


def test_a_bare_volume_shows_its_middle() -> None:
    assert telling_slice(np.zeros((6, 4, 4), np.uint8)) == 3
    volume = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
    image, mask = image_to_show(volume, None)
    assert mask is None
    assert np.array_equal(image, np.repeat(volume[3], 3, axis=-1))


def test_an_export_is_checked_on_volumes(study: Path) -> None:
    model = load_model(study)
    assert model.shape == (1, 8, 16, 16)
    volumes = generated_images(model, 3)
    assert volumes.shape == (3, 1, 8, 16, 16)
    assert 0 <= float(volumes.min()) < float(volumes.max()) <= 1
    check = compare(model, model.network, CheckImages(generated_images(model, 8), ""))
    assert (check.different, check.pixels) == (0, 8 * 8 * 16 * 16)


def test_a_folder_of_images_is_refused_by_a_model_of_volumes(study: Path) -> None:
    with pytest.raises(ModelError, match=r"takes volumes \(1, 8, 16, 16\), not images"):
        predict_folder(study, study, study / "out", How(), Console(quiet=True))


def test_data_check_draws_slices(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    settings = ["--set", "images=4", "--set", "cache_size=16", "--set", "slices=8"]
    result = CliRunner().invoke(
        cli, ["data", "check", "volumes", *settings, "--root", str(tmp_path / "runs"), "--out", str(sheet)]
    )
    assert result.exit_code == 0, result.output
    assert "4 images, cached at 8 x 16 x 16 voxels" in result.output
    assert sheet.is_file()
