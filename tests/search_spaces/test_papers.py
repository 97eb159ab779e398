"""The published numbers in the papers' studies are those of the transcription beside the repository."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune import search_spaces
from pretune.search_spaces.cells import level_label
from pretune.search_spaces.resolve import load

FOLDER = Path(search_spaces.__file__).parent / "papers"
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "papers"
CLASSIFICATION = [f"{probe} {data}" for probe in ("knn", "linear") for data in ("CIFAR-10", "STL10", "ImageNette")]
FRACTIONS = ("1%", "5%", "20%")
BOTH = [f"{data} {fraction}" for data in ("flowers", "pets") for fraction in FRACTIONS]

# file, key in it, key in tables.yaml, {our column: the transcription's column}; "" is a table's only column.
TABLES = [
    *(
        (f"p1_table1_{form}", key, "P1.table1", {"": column})
        for form in ("text", "code")
        for key, column in (
            ("P1.table1", "accuracy"),
            ("P1.table1.iou", "iou"),
            ("P1.table1.dice", "dice"),
            ("P1.table1.precision", "precision"),
            ("P1.table1.recall", "recall"),
        )
    ),
    ("p2_table1", "P2.table1", "P2.table1", {"": "jaccard"}),
    ("p2_table1", "P2.table1.f1", "P2.table1", {"": "f1"}),
    ("p3_table2_pets", "P3.table2", "P3.table2", {fraction: f"pets {fraction}" for fraction in FRACTIONS}),
    ("p3_table2_flowers", "P3.table2", "P3.table2", {fraction: f"flowers {fraction}" for fraction in FRACTIONS}),
    ("p3_table3", "P3.table3", "P3.table3", {"": "dice"}),
    ("p3_table3", "P3.table3.iou", "P3.table3", {"": "iou"}),
    ("p3_table4", "P3.table4", "P3.table4", {"bus": "bus", "airplane": "airplane"}),
    ("p3_table5", "P3.table5", "P3.table5", {"VOC cat": "VOC cat", "VOC horse": "VOC horse"}),
    ("p3_table6", "P3.table6", "P3.table6", {name: name for name in BOTH}),
    ("p4_table1", "P4.table1", "P4.table1", {name: name for name in CLASSIFICATION}),
    ("p4_table2", "P4.table2", "P4.table2", {name: name for name in CLASSIFICATION}),
    ("p4_table3", "P4.table3", "P4.table3", {"knn": "knn", "linear": "linear"}),
    ("p5_table1", "P5.table1", "P5.table1", {name: f"{name} mean iou" for name in ("roof", "cityscapes")}),
    ("p5_table1", "P5.table1.precision", "P5.table1", {name: f"{name} precision" for name in ("roof", "cityscapes")}),
]
CELLS = {
    "p1_table1_text": 9,
    "p1_table1_code": 9,
    "p1_figure3": 2,
    "p1_figure5": 20,
    "p1_outlook_genetic": 2,
    "p1_outlook_optimizer_batch": 9,
    "p1_outlook_pretraining_size": 6,
    "p1_outlook_resnet50": 4,
    "p2_table1": 4,
    "p2_table2": 12,
    "p2_outlook_pretraining_data": 15,
    "p2_outlook_resolution": 4,
    "p2_outlook_projection": 18,
    "p3_figure4a": 4,
    "p3_figure4b": 4,
    "p3_figure5c": 1,
    "p3_figure6": 4,
    "p3_figure7": 6,
    "p3_outlook_architectures": 12,
    "p3_outlook_methods": 15,
    "p3_outlook_tasks": 15,
    "p3_table2_pets": 18,
    "p3_table2_flowers": 18,
    "p3_table3": 3,
    "p3_table4": 24,
    "p3_table5": 14,
    "p3_table6": 12,
    "p4_figure2": 42,
    "p4_table1": 24,
    "p4_table2": 24,
    "p4_table3": 8,
    "p4_regions_x_temperature": 24,
    "p4_outlook_regions": 16,
    "p4_outlook_segmentation": 12,
    "p5_figure1": 2,
    "p5_table1": 4,
}
BESIDE_OURS = {  # studies that show more than one published metric
    "p2_table1": ["test/jaccard_batches", "test/dice_batches"],
    "p3_table3": ["test/soft_dice", "test/jaccard_thresholds"],
    "p5_table1": ["test/jaccard", "test/precision"],
}
UNPUBLISHED = {name for name in CELLS if "outlook" in name or "figure" in name}


@pytest.fixture(scope="module")
def transcribed() -> dict[str, Any]:
    path = Path(os.environ.get("PRETUNE_TEST_PAPERS", SHARED)) / "tables.yaml"
    if not path.is_file():
        pytest.skip("no ../shared/papers/tables.yaml beside the repository (PRETUNE_TEST_PAPERS names its folder)")
    tables: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return tables


def printed(table: dict[str, Any], row: str, column: str) -> tuple[float, float | None]:
    """Mean and std (None where the paper prints none) as transcribed."""
    values, i = table["rows"][row], table["columns"].index(column)
    if not isinstance(values, dict):
        return values[i], None
    return values["mean"][i], values["std"][i] if "std" in values else None


def carried(values: list[list[Any]]) -> dict[tuple[str, ...], tuple[float, float | None]]:
    """Level labels -> mean and std, of a study's published section."""
    rows = {tuple(map(level_label, labels)): value for *labels, value in values}
    assert len(rows) == len(values), "a cell is published twice"
    return {
        labels: (value[0], value[1]) if isinstance(value, list) else (value, None) for labels, value in rows.items()
    }


def published_of(name: str) -> dict[str, Any]:
    sections: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8")).get("published", {})
    return sections


@pytest.mark.parametrize(
    ("name", "key", "source", "columns"), TABLES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_published_value_is_the_transcribed_one(name, key, source, columns, transcribed):
    table = transcribed[source]
    expected = {
        ((row, ours) if ours else (row,)): printed(table, row, theirs)
        for row in table["rows"]
        for ours, theirs in columns.items()
    }
    assert carried(published_of(name)[key]["values"]) == expected


def test_p4_figure_2_ends_in_the_numbers_of_table_1():
    table = carried(published_of("p4_table1")["P4.table1"]["values"])
    ends = carried(published_of("p4_figure2")["P4.figure2"]["values"])
    methods, sets = ("SimCLR", "SAMCLR"), ("ImageNette", "CIFAR-10", "STL10")
    assert ends == {(m, s, "1600"): table[m, f"knn {s}"] for m in methods for s in sets}


def test_p2_table_2_is_the_transcribed_one(transcribed):
    rows = transcribed["P2.table2"]["rows"]
    expected = {(encoder, skip, f"{share:.0%}"): (mean, None) for encoder, skip, share, mean in rows}
    assert carried(published_of("p2_table2")["P2.table2"]["values"]) == expected


def test_the_corners_of_regions_by_temperature_are_simclr_and_samclr(transcribed):
    table, corners = transcribed["P4.table1"], {"SimCLR": ("image", "0.5"), "SAMCLR": ("region", "0.07")}
    expected = {
        (*corner, column): printed(table, row, column) for row, corner in corners.items() for column in CLASSIFICATION
    }
    assert carried(published_of("p4_regions_x_temperature")["P4.table1"]["values"]) == expected


def test_percent_is_said_where_the_paper_prints_percent():
    sections = [section for name in CELLS for section in published_of(name).values()]
    for section in sections:
        means = [mean for mean, _ in carried(section["values"]).values()]
        assert section.get("percent", False) == (min(means) > 1), section
    assert len(sections) == len(TABLES) + 3


def test_every_file_is_counted():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CELLS)


@pytest.mark.parametrize(("name", "count"), CELLS.items())
def test_cells_are_those_of_the_table_and_hold_every_published_value(name, count):
    study = load(FOLDER / f"{name}.yaml")
    assert len(study.cells) == count
    report = study.header.report
    labels = {tuple(cell.levels[factor] for factor in (*report.rows, *report.columns)) for cell in study.cells}
    for key, section in published_of(name).items():
        assert carried(section["values"]).keys() <= labels, key
        assert study.header.published[key].metric in report.metrics, key


@pytest.mark.parametrize("name", sorted(CELLS.keys() - UNPUBLISHED))
def test_the_report_shows_a_published_table_at_both_scales(name):
    for scale in (None, "small"):
        study = load(FOLDER / f"{name}.yaml", scale)
        shown = [table["metric"] for table in study.published]
        assert shown[0] == study.header.report.metrics[0]
        assert shown == BESIDE_OURS.get(name, shown[:1])
