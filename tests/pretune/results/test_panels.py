"""Jaccard by hand: of masks 0011 and 0111 class 0 is 1/2, class 1 is 2/3, and their mean 7/12."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pretune.analysis.load.results import ResultsError
from pretune.analysis.report.panels import load_panels
from pretune.results.panels import chosen, image_jaccard, padding, write_panels
from pretune.search_spaces import schema
from pretune.trainables.data.resident.build import ensure_built
from pretune.trainables.models.table import build_unet

IGNORE = 255


def test_an_images_jaccard_is_the_mean_over_the_classes_it_shows():
    mask, truth = np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8)
    assert image_jaccard(mask, truth) == pytest.approx(7 / 12)
    assert image_jaccard(truth, truth) == 1
    ignored = np.array([[0, IGNORE, 1, 1]], np.uint8)
    assert image_jaccard(mask, ignored) == 1
    assert math.isnan(image_jaccard(mask, np.full_like(mask, IGNORE)))


def test_padding_is_what_lies_outside_of_all_pixels_that_count():
    truth = np.full((4, 5), IGNORE, np.uint8)
    assert not padding(truth).any()  # nothing is known of this image, so its prediction is shown
    truth[1:3, 1:4] = [[0, IGNORE, 1], [IGNORE, 1, 0]]  # a void pixel inside is no padding
    expected = np.ones((4, 5), bool)
    expected[1:3, 1:4] = False
    assert (padding(truth) == expected).all()
    assert not padding(np.zeros((4, 5), np.uint8)).any()


def test_best_median_and_worst():
    assert chosen([0.2, 0.9, 0.5]) == {"best": 1, "median": 2, "worst": 0}
    assert chosen([0.2, 0.9, 0.5, 0.6]) == {"best": 1, "median": 3, "worst": 0}
    assert chosen([0.5]) == {"best": 0, "median": 0, "worst": 0}
    assert chosen([math.nan, 0.1])["worst"] == 0


@pytest.fixture
def study(tmp_path):
    """An untrained model and the cache with its images."""
    data = schema.Scenes(dataset="scenes", images=8, classes=3, cache_size=32)
    digest = ensure_built(data, None, tmp_path / "cache")
    card = {
        "study": "s", "cell": "a=x", "seed": 0, "fingerprint": "f", "target": "val/jaccard", "data_digest": digest,
        "model": {"name": "unet", "widths": [4, 8]}, "data": data.model_dump(mode="json"), "input": {"size": 32},
        "classes": ["background", "one", "two"], "test": [1, 4, 6],
    }  # fmt: skip
    torch.manual_seed(0)
    (tmp_path / "best").mkdir()
    network = build_unet(schema.UNet.model_validate(card["model"]), 3)
    save_file(dict(network.state_dict()), tmp_path / "best" / "model.safetensors")
    (tmp_path / "best" / "model.json").write_text(json.dumps(card))
    return tmp_path


def test_panels_are_written_once_and_read_by_the_report(study):
    assert write_panels(study, study / "cache") == ""
    (panels,) = load_panels(study)
    assert panels.columns == ("image", "truth", "prediction", "error")
    assert [row.label for row in panels.rows] == ["best", "median", "worst"]
    assert all(image.startswith("data:image/png;base64,") for row in panels.rows for image in row.urls)
    assert panels.legend[0] == ("background", "#000000")
    scores = [float(row.note.split()[-1]) for row in panels.rows]
    assert scores == sorted(scores, reverse=True)
    (study / "panels" / "panels_0_image.png").unlink()
    assert write_panels(study, study / "nowhere") != ""  # the images are asked for again
    with pytest.raises(ResultsError, match="is damaged"):
        load_panels(study)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_error_panel_marks_the_pixels_in_which_truth_and_prediction_differ(study):
    write_panels(study, study / "cache")
    for number in (0, 2):
        truth, found, error = (
            pixels(study / "panels" / f"panels_{number}_{name}.png") for name in ("truth", "prediction", "error")
        )
        assert ((error == (213, 94, 0)).all(axis=2) == (truth != found).any(axis=2)).all()


def test_padding_is_grey_in_truth_prediction_and_error(tmp_path, study):
    """A photograph of 20 x 40 px in a square of 32: 8 rows of padding above and below."""
    folder = tmp_path / "photos"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (20, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(rng.integers(0, 2, (20, 40), dtype=np.uint8)).save(folder / "masks" / f"{number}.png")
    data = schema.ImageMaskFolder(
        dataset="image-mask-folder", root="photos", classes=("background", "one"), cache_size=32, fit="pad"
    )
    digest = ensure_built(data, tmp_path, tmp_path / "cache")
    card = json.loads((study / "best" / "model.json").read_text())
    card |= {"data": data.model_dump(mode="json"), "data_digest": digest, "test": [0, 1, 2, 3]}
    (study / "best" / "model.json").write_text(json.dumps(card))
    assert write_panels(study, study / "cache") == ""
    for name in ("truth", "prediction", "error"):
        grey = (pixels(study / "panels" / f"panels_0_{name}.png") == 150).all(axis=(1, 2))
        assert grey.tolist() == [True] * 8 + [False] * 16 + [True] * 8


def test_why_there_are_none_is_said(study):
    assert "does not hold the study's images; say where with --cache" in write_panels(study, study / "nowhere")
    assert "no best/model.json" in write_panels(study / "nowhere", study / "cache")
    assert load_panels(study) == ()
