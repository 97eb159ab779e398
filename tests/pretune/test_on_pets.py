"""A small study of real pets, once, and everything that is made from it: report, panels, predict, export."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import browse, find
from inline import run_inline
from PIL import Image

from analysis.panels import load_panels
from analysis.report_html import write
from pretune.cli import draw_panels
from search_spaces.resolve import from_dict

STUDY = {
    "study": "pets",
    "question": "Which start helps to segment pets?",
    "data": {
        "pets": {
            "dataset": "oxford-iiit-pet", "labels": "trimap", "limit": 120, "cache_size": 32,
            "split": {"test": 0.25, "val": 0.1, "seed": 0},
        }
    },
    "model": {"name": "unet", "widths": [8, 16, 32]},
    "pretrain": {
        "data": "pets", "method": {"name": "mae", "ratio": 0.5, "patch": 8}, "batch_size": 16, "steps": 10,
        "views": {"size": 32, "crop": [0.5, 1.0], "color_jitter": 0.0}, "optimizer": {"name": "adam", "lr": 3.0e-3},
    },
    "finetune": {
        "data": "pets", "size": 32, "batch_size": 8, "steps": 10, "validate_every": 1,
        "optimizer": {"name": "adam", "lr": {"log_uniform": [1.0e-3, 3.0e-2]}},
    },
    "factors": {
        "start": {"random": {"finetune.transfer": "none"}, "masked autoencoder": {}},
        "labels": {"finetune.labels": ["all", "10%"]},
    },
    "seeds": {"search": 1, "report": 2},
    "tune": {"trials": 4, "batch": 2, "startup": 2},
    "report": {"rows": "start", "columns": "labels", "metrics": ["test/jaccard", "test/dice"],
               "baseline": {"start": "random"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def pets(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that `pretune run` would leave: pets/, store/, cache/."""
    root = tmp_path_factory.mktemp("runs")
    ended = run_inline(from_dict(STUDY), root, shared_data)
    assert ended.exit_code == 0, ended.failed
    return root


# ------------------------------------------------------------------------------------------------- panels and report


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_restored_images_show_the_view_its_masked_form_and_what_came_of_it(pets: Path) -> None:
    assert draw_panels(pets / "pets", pets / "cache", pets / "store") == []
    test_images, restored = load_panels(pets / "pets")
    assert (test_images.title, restored.title) == ("Test images", "Restored images")
    assert [len(row.images) for row in restored.rows] == [3, 3, 3]
    for row in restored.rows:
        image, shown, output = map(pixels, row.images)
        black = (shown == 0).all(axis=2)
        assert 0.4 < black.mean() < 0.6  # the ratio of the study; some pixels are black of themselves
        assert (shown[~black] == image[~black]).all()
        assert output.shape == image.shape


def test_panels_are_not_drawn_again_and_need_the_images(pets: Path, tmp_path: Path) -> None:
    draw_panels(pets / "pets", pets / "cache", pets / "store")
    before = (pets / "pets" / "panels" / "reconstructions.json").stat().st_mtime_ns
    assert draw_panels(pets / "pets", tmp_path / "nowhere", pets / "store") == []
    assert (pets / "pets" / "panels" / "reconstructions.json").stat().st_mtime_ns == before
    shutil.copytree(pets / "pets", tmp_path / "pets", ignore=shutil.ignore_patterns("panels"))
    missing = draw_panels(tmp_path / "pets", tmp_path / "nowhere", pets / "store")
    assert len(missing) == 2
    assert all("does not hold the study's images; say where with --cache" in why for why in missing)


def test_the_report_of_real_pets_opens_without_an_error_or_a_request(pets: Path, tmp_path: Path) -> None:
    binary = find()
    if binary is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    draw_panels(pets / "pets", pets / "cache", pets / "store")
    path = write(pets / "pets")
    with browse(binary, tmp_path / "profile") as page:
        page.open(path)
        page.run("window.dispatchEvent(new Event('beforeprint'))")
        page.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))")
        titles = page.run("[...document.querySelectorAll('#figures h3')].map((title) => title.textContent)")
        assert titles == [
            "Every seed", "Differences to the baseline", "Over labels", "Pairs of factors", "Trade-offs",
            "Learning curves", "Sensitivity",
        ]  # fmt: skip
        loaded = page.run("[...document.querySelectorAll('main img')].map((image) => image.naturalWidth)")
        assert loaded == [32] * 21  # 3 x 4 of the test set, 3 x 3 restored
        assert page.problems() == []
        assert page.requests() == [path.as_uri()]
