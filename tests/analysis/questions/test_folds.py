"""Means over folds: of each fold's mean over seeds, in every combination of the other factors."""

import numpy as np
import pytest
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.questions.folds import fold_factor, over_folds
from pretune.analysis.report.tables import write_tables

FOLDS = ("1/3", "2/3", "3/3")
SCORES = {
    "encoder=frozen fold=1/3": [0.3, 0.5],
    "encoder=frozen fold=2/3": [0.6, 0.8],
    "encoder=frozen fold=3/3": [0.4, 0.6],
    "encoder=free fold=1/3": [0.7, 0.9],
    "encoder=free fold=2/3": [0.5, 0.7],
    "encoder=free fold=3/3": [0.8, 1.0],
}


@pytest.fixture
def folder(tmp_path):
    write_study(tmp_path, SCORES, {"encoder": ["frozen", "free"], "fold": list(FOLDS)})
    return tmp_path


def test_the_mean_is_over_folds_and_so_is_the_spread(folder):
    """Frozen: folds 0.4, 0.7, 0.5; free: 0.8, 0.6, 0.9."""
    (table,) = over_folds(load(folder), load_header(folder), JACCARD)
    assert [row.cell for row in table.rows] == ["encoder=frozen", "encoder=free"]
    for row, values in zip(table.rows, ([0.4, 0.7, 0.5], [0.8, 0.6, 0.9]), strict=True):
        assert row.mean == pytest.approx(np.mean(values))
        assert row.std == pytest.approx(np.std(values, ddof=1))
        assert (row.folds, row.folds_expected, row.seeds) == (3, 3, 2)


def test_a_fold_that_failed_is_counted_and_named(folder):
    results = load(folder)
    results.loc[results["cell"] == "encoder=free fold=3/3", "outcome"] = "crashed"
    results.loc[(results["cell"] == "encoder=free fold=2/3") & (results["seed"] == 0), "outcome"] = "crashed"
    (table,) = over_folds(results, load_header(folder), JACCARD)
    row = table.rows[1]
    assert (row.mean, row.folds, row.seeds) == (pytest.approx((0.8 + 0.7) / 2), 2, 1)
    assert "encoder=free: 2 of 3 folds" in table.notes


def test_folds_stand_in_every_form(folder):
    write_tables(folder)
    text = (folder / "table.md").read_text()
    assert "test/jaccard: mean ± standard deviation over folds (factor fold)" in text
    assert "| encoder=frozen | 0.53 ± 0.15 | 3 |" in text
    assert "each fold is its mean over seeds (n=2); folds share" in text
    lines = (folder / "folds.csv").read_text().splitlines()
    assert lines[0] == "metric,cell,mean,std,folds,folds_expected,seeds"
    assert lines[1].startswith("test/jaccard,encoder=frozen,0.533333333333")


@pytest.mark.parametrize(
    ("levels", "found"),
    [(["1/2", "2/2"], "x"), (["1/2", "2/3"], None), (["1/2"], None), (["1/2", "other"], None), (["10%", "1%"], None)],
)
def test_folds_are_known_by_their_levels(tmp_path, levels, found):
    write_study(tmp_path, {f"x={level}": [0.1, 0.2] for level in levels}, {"x": levels})
    assert fold_factor(load_header(tmp_path)) == found


def test_a_study_without_folds_has_no_such_table(tmp_path):
    write_study(tmp_path, {"x=a": [0.1, 0.2], "x=b": [0.1, 0.3]}, {"x": ["a", "b"]})
    assert over_folds(load(tmp_path), load_header(tmp_path), JACCARD) == ()
    write_tables(tmp_path)
    assert not (tmp_path / "folds.csv").exists()
