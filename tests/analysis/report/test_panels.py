"""Panels are read as they were written, and laid out as one picture."""

import json

import numpy as np
import pytest
from PIL import Image

from pretune.analysis.load.results import ResultsError
from pretune.analysis.report.panels import load_panels, sheet, write_sheets

COLORS = {"image": (255, 0, 0), "truth": (0, 255, 0)}


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "panels"
    folder.mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (8, 8), color).save(folder / f"{name}.png")
    rows = [{"label": "best", "note": "a" * 60, "images": ["image.png", "truth.png"]}]
    content = {"caption": "c", "columns": list(COLORS), "rows": rows, "legend": [["pet", "#0072b2"]]}
    (folder / "panels.json").write_text(json.dumps(content))
    (folder / "maps.json").write_text(json.dumps(content | {"title": "Maps", "legend": []}))
    return tmp_path


def test_test_images_come_first_and_others_have_their_title(study):
    assert [(panel.name, panel.title) for panel in load_panels(study)] == [("panels", "Test images"), ("maps", "Maps")]
    assert load_panels(study / "nowhere") == ()


def test_a_sheet_has_every_image_in_its_place(study):
    pixels = np.asarray(sheet(load_panels(study)[0]))
    assert pixels[34 + 128, 200 + 128].tolist() == [255, 0, 0]
    assert pixels[34 + 128, 200 + 264 + 128].tolist() == [0, 255, 0]
    assert (pixels == (0, 114, 178)).all(axis=2).any()  # the legend's square
    assert [path.name for path in write_sheets(study, study / "out")] == ["test-images.png", "maps.png"]


def test_a_damaged_panel_is_one_sentence(study):
    (study / "panels" / "truth.png").unlink()
    with pytest.raises(ResultsError, match=r"damaged \(truth\.png .*delete it"):
        load_panels(study)
    (study / "panels" / "panels.json").write_text("{")
    with pytest.raises(ResultsError, match="is damaged"):
        load_panels(study)
