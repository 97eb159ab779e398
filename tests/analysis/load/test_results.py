import json

import pandas
import pytest

from pretune import analysis
from pretune.analysis.load.results import RESULT_COLUMNS, ResultsError, load, load_header, parse_header

HEADER = {
    "study": "freeze",
    "question": "Does freezing help?",
    "factors": {"encoder": ["unfrozen", "frozen"], "skip": [True, False]},
    "cells": [{"label": "encoder=unfrozen skip=true", "levels": {"encoder": "unfrozen", "skip": True}}],
    "report": {
        "rows": "encoder",
        "columns": None,
        "metrics": ["test/jaccard"],
        "baseline": {"skip": True},
        "percent": True,
    },
    "seeds": {"report": 3},
}


def write_results(folder, columns=RESULT_COLUMNS):
    folder.mkdir(exist_ok=True)
    row = dict.fromkeys(columns, "x") | {"value": 0.5, "seed": 1}
    pandas.DataFrame([{name: row[name] for name in columns}]).to_parquet(folder / "results.parquet")
    return folder


def test_load_reads_what_was_written(tmp_path):
    results = analysis.load(write_results(tmp_path))
    assert list(results.columns) == list(RESULT_COLUMNS)
    assert results["value"].tolist() == [0.5]


@pytest.mark.parametrize("read", [load, load_header])
def test_a_missing_folder_is_said_so(tmp_path, read):
    with pytest.raises(ResultsError, match=r"no study folder .*nowhere"):
        read(tmp_path / "nowhere")


def test_a_study_without_results_is_said_so(tmp_path):
    with pytest.raises(ResultsError, match=r"holds no results\.parquet: no stage"):
        load(tmp_path)
    with pytest.raises(ResultsError, match=r"holds no study\.json"):
        load_header(tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_truncated_file_is_said_so_in_one_sentence(tmp_path, kept):
    path = write_results(tmp_path) / "results.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ResultsError, match=r"cannot be read .*run the study again") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_foreign_file_is_said_so(tmp_path):
    with pytest.raises(ResultsError, match="lacks the columns cause, value"):
        load(write_results(tmp_path, [name for name in RESULT_COLUMNS if name not in ("cause", "value")]))


def test_header_by_hand(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(HEADER))
    header = load_header(tmp_path)
    assert (header.study, header.question, header.replicates, header.pretrainings) == (
        "freeze",
        HEADER["question"],
        3,
        3,
    )
    assert header.factors == {"encoder": ("unfrozen", "frozen"), "skip": ("true", "false")}
    assert header.cells[0].levels == {"encoder": "unfrozen", "skip": "true"}
    assert (header.report.rows, header.report.columns) == (("encoder",), None)
    assert (header.report.baseline, header.report.percent) == ({"skip": "true"}, True)
    assert header.published == ()


def test_nested_seeds_multiply():
    header = parse_header(HEADER | {"seeds": {"report": {"pretrain": 3, "finetune": 2}, "hold": {"labels": 4}}})
    assert (header.replicates, header.pretrainings) == (6, 3)
    assert header.held == {"labels": 4}


@pytest.mark.parametrize(("percent", "mean"), [({}, 0.716), ({"percent": True}, 0.716), ({"percent": False}, 71.6)])
def test_published_values_become_fractions(percent, mean):
    """The report prints percent, so a published table does too unless it says otherwise."""
    published = {"values": [["unfrozen", True, 71.6], ["frozen", True, [64.6, 1.2]]], "note": "P2"} | percent
    (found,) = parse_header(HEADER | {"published": published}).published
    assert (found.metric, found.note) == ("test/jaccard", "P2")
    assert found.values[0].labels == ("unfrozen", "true")
    assert found.values[0].mean == pytest.approx(mean)
    assert found.values[0].std is None
    assert found.values[1].std == pytest.approx(mean / 71.6 * 1.2)


def test_several_published_tables_are_each_of_their_metric():
    tables = [{"values": [["unfrozen", True, 71.6]], "metric": f"test/{name}"} for name in ("jaccard", "dice")]
    assert [found.metric for found in parse_header(HEADER | {"published": tables}).published] == [
        "test/jaccard",
        "test/dice",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"study": "fr', "cannot be read .*cut off or damaged"),
        ("[]", "does not describe a study"),
        ('{"format": 2, "study": "x"}', "is of format 2 and this version of Pretune reads format 1: read it with"),
        ('{"study": "x"}', r"does not describe a study \(KeyError\('seeds'\)\)"),
    ],
)
def test_a_damaged_header_is_said_so(tmp_path, text, message):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        load_header(tmp_path)
