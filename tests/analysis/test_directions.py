"""Which direction of a metric is better comes from its definition, stored with the results or in the table.

Never from letters in the name: a class may be called `glossy`, `bone loss`, `loss` or `cost/x`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from studies import write_study

from pretune.analysis.load.results import ResultsError, load, load_header
from pretune.analysis.questions.compare import compare_folders
from pretune.analysis.questions.pairs import tradeoff
from pretune.analysis.questions.tables import build_table
from pretune.analysis.report.tables import write_tables
from pretune.analysis.text.answer import answer
from pretune.search_spaces.metrics import DEFINITIONS, to_json

FACTORS = {"encoder": ["good", "bad"]}
SCORES = {"encoder=good": [0.54, 0.55, 0.56], "encoder=bad": [0.25, 0.26, 0.27]}


def study(folder, metric, **report):
    return write_study(folder, SCORES, FACTORS, metrics=(metric,), **report)


def store(folder, definitions):
    content = json.loads((folder / "study.json").read_text()) | {"metrics": definitions}
    (folder / "study.json").write_text(json.dumps(content))


@pytest.mark.parametrize("label", ["glossy", "bone loss", "loss", "cost/x"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "stored before definitions were"])
def test_the_higher_jaccard_of_a_class_is_the_best_whatever_the_class_is_called(tmp_path, label, stored):
    metric = f"test/jaccard/{label}"
    folder = study(tmp_path / "a", metric, percent=True, columns=[])
    store(folder, {metric: to_json(DEFINITIONS["SPLIT/jaccard/CLASS"])} if stored else {})
    results, header = load(folder), load_header(folder)
    table = build_table(results, header, metric)
    assert [row[0] for row in table.best] == [True, False]
    assert table.percent
    assert f"encoder=good has the highest mean {metric}: 55.0 %" in answer(results, header, metric)[0]
    write_tables(folder)
    assert "**55.0 ± 1.0**" in (folder / "table.md").read_text()
    study(tmp_path / "b", metric, percent=True)
    assert compare_folders([folder, tmp_path / "b"]).metrics[0].percent


def test_a_trade_off_has_its_front_where_values_are_better(tmp_path):
    """`bad` is beaten in both; by letters of the names, neither would be."""
    metrics = ("test/jaccard", "test/jaccard/bone loss")
    folder = write_study(tmp_path, SCORES, FACTORS, metrics=metrics)
    found = tradeoff(load(folder), load_header(folder), *metrics)
    assert np.array_equal(found.front, [True, False])


def test_what_the_study_stored_holds_whatever_the_table_says_by_now(tmp_path):
    folder = study(tmp_path, "test/jaccard", columns=[])
    store(folder, {"test/jaccard": to_json(DEFINITIONS["SPLIT/jaccard"]._replace(direction="minimize"))})
    assert [row[0] for row in build_table(load(folder), load_header(folder), "test/jaccard").best] == [False, True]


def test_a_metric_of_an_unknown_direction_is_said_by_name(tmp_path):
    folder = study(tmp_path, "test/euros")
    with pytest.raises(ResultsError, match=r"no stage reports 'test/euros'.*search_spaces/metrics\.py"):
        write_tables(folder)


def test_a_damaged_definition_is_said(tmp_path):
    folder = study(tmp_path, "test/jaccard")
    store(folder, {"test/jaccard": {"direction": "up"}})
    with pytest.raises(ResultsError, match=r"study\.json (does not describe|cannot be read)"):
        load_header(folder)
