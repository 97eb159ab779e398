"""A small study of real pets, once, and everything that is made from it: report, panels, predict, export."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import browse, find
from inline import run_inline
from PIL import Image

from pretune.analysis.load.counts import load_counts
from pretune.analysis.load.results import load, load_header
from pretune.analysis.questions.image_bootstrap import intervals
from pretune.analysis.report.html import write
from pretune.analysis.report.panels import load_panels
from pretune.cli import main
from pretune.cli.results import draw_panels
from pretune.model.predict import load_model
from pretune.results.panels import predict_cached
from pretune.search_spaces.resolve import from_dict
from pretune.trainables.data.resident.open import open_cached

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


def test_every_cell_has_an_interval_over_the_test_images(pets: Path) -> None:
    """120 images, a quarter of them for testing; the stored scores are those of the stored counts, or there were no
    rows."""
    results, header, counts = load(pets / "pets"), load_header(pets / "pets"), load_counts(pets / "pets")
    for metric in ("test/jaccard", "test/dice"):
        rows = intervals(results, header, metric, counts).rows
        assert [row.images for row in rows] == [30] * 4
        assert all(row.image_low < row.mean < row.image_high for row in rows)


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
            "Every seed", "Differences to the baseline", "Over labels", "Interactions", "Pairs of factors",
            "Trade-offs", "Score against cost", "Learning curves", "Sensitivity", "Importance", "Budget",
            "Timeline of stage runs",
        ]  # fmt: skip
        loaded = page.run("[...document.querySelectorAll('main img')].map((image) => image.naturalWidth)")
        assert loaded == [32] * 21  # 3 x 4 of the test set, 3 x 3 restored
        assert page.problems() == []
        assert page.requests() == [path.as_uri()]


# --------------------------------------------------------------------------------------------------- predict, export


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pretune", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def photos(shared_data: Path, tmp_path: Path) -> Path:
    """Six pets whose aspect ratio was kept, and a file that is no image."""
    (tmp_path / "photos").mkdir()
    found = sorted((shared_data / "pets-short160" / "oxford-iiit-pet" / "images").glob("*.jpg"))[:6]
    for path in found:
        shutil.copyfile(path, tmp_path / "photos" / path.name)
    return tmp_path / "photos"


def test_predict_segments_real_photographs_whole_and_in_tiles(
    pets: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "predict", pets / "pets", photos, tmp_path / "whole", "--device", "cpu") == 0
    assert called(monkeypatch, "predict", pets / "pets", photos, tmp_path / "tiles", "--tile", "96") == 0
    assert "6 images segmented, 0 failed" in capsys.readouterr().out
    for path in photos.iterdir():
        with Image.open(path) as image:
            for out in ("whole", "tiles"):
                with Image.open(tmp_path / out / "masks" / f"{path.stem}.png") as mask:
                    assert mask.size == image.size
                    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
                assert (tmp_path / out / "overlays" / f"{path.stem}.jpg").is_file()
    (photos / "broken.jpg").write_text("no image")
    assert called(monkeypatch, "predict", pets / "pets", photos, tmp_path / "whole") == 3
    assert "failed broken.jpg: " in capsys.readouterr().err


def test_an_exported_model_gives_the_masks_of_real_pets(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under onnxruntime, on the study's own test images, prepared as the card says."""
    onnxruntime = pytest.importorskip("onnxruntime")
    assert called(monkeypatch, "export", pets / "pets", "--format", "onnx", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "the same masks" in said
    assert "pixels of 8 of the study's 30 test images, in which the model finds " in said
    model = load_model(pets / "pets")
    data = open_cached(model.card["data_digest"], pets / "cache")
    assert data is not None
    test = model.card["test"]
    images = data.images[test].transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    assert (logits.argmax(1) == np.stack(predict_cached(model, data, test))).all()
    card = (tmp_path / "README.md").read_text()
    assert "| licence of the data | CC BY-SA 4.0 |" in card
    assert "| pretraining | mae |" in card or "| pretraining | none (from scratch) |" in card
    assert "± " in card.partition("## Scores")[2]
