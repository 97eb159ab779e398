"""P1's Table 1: all eight sets of three transforms, so that adding one is four pairs; and a row without pretraining."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.questions.marginal import marginal_effects
from pretune.analysis.report.tables import write_tables
from pretune.results.tables import sets_of_levels
from pretune.search_spaces.resolve import load as load_study

ITEMS = ("elastic", "posterize", "solarize")
SETS = {"+".join(part) or "none": list(part) for n in range(4) for part in itertools.combinations(ITEMS, n)}
GAIN = {"elastic": 0.05, "posterize": 0.0, "solarize": -0.02}


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 0.05, 4)
    scores = {
        f"views={name}": list(0.5 + sum(GAIN[item] for item in part) + shared + generator.normal(0, 0.004, 4))
        for name, part in SETS.items()
    }
    scores["views=random"] = [0.1, 0.2, 0.3, 0.4]
    write_study(tmp_path, scores, {"views": [*SETS, "random"]})
    header = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(header | {"sets": {"views": SETS}}))
    return tmp_path


def test_each_gain_is_the_mean_of_its_four_pairs(folder):
    results = load(folder)
    (table,) = marginal_effects(results, load_header(folder), JACCARD)
    value = results.set_index(["cell", "seed"])["value"]
    for row, item in zip(table.rows, ITEMS, strict=True):
        others = [part for part in SETS.values() if item not in part]
        with_it = [next(name for name, part in SETS.items() if set(part) == {*other, item}) for other in others]
        without = ["+".join(other) or "none" for other in others]
        gains = [
            np.mean(
                [value[f"views={a}", seed] - value[f"views={b}", seed] for a, b in zip(with_it, without, strict=True)]
            )
            for seed in range(4)
        ]
        assert (row.cell, row.n) == (f"with {item}", 4)
        assert row.difference == pytest.approx(np.mean(gains))
        assert row.p == pytest.approx(stats.ttest_1samp(gains, 0).pvalue)
        assert row.difference == pytest.approx(GAIN[item], abs=0.01)
    assert "elastic: 4 pairs of cells" in table.notes[0]


def test_a_seed_that_failed_in_one_pair_is_left_out(folder):
    results = load(folder)
    results.loc[(results["cell"] == "views=elastic") & (results["seed"] == 1), "outcome"] = "crashed"
    (table,) = marginal_effects(results, load_header(folder), JACCARD)
    assert [row.n for row in table.rows] == [3, 3, 3]


def test_the_table_is_written(folder):
    write_tables(folder)
    assert "paired difference to the same views without it" in (folder / "table.md").read_text()
    assert (folder / "marginal.csv").read_text().splitlines()[1].startswith("test/jaccard,with elastic,without,0.0")


def test_p1s_study_says_its_sets():
    study = load_study("search_spaces/papers/p1_table1_text.yaml")
    found = sets_of_levels(study)
    assert list(found) == ["model"]
    assert found["model"]["ET+RP"] == ["elastic", "posterize"]
    assert found["model"]["SimCLR"] == []
    assert "Baseline" not in found["model"]


def test_gains_without_any_spread_have_no_interval_and_the_reason(folder):
    header, results = load_header(folder), load(folder)
    results["value"] = results["cell"].map(len) / 100
    (table,) = marginal_effects(results, replace(header, held={"labels": 0}), JACCARD)
    assert all(np.isnan(row.low) for row in table.rows)
    assert "no spread at all, so no interval: with elastic, with posterize, with solarize" in table.notes
    assert table.notes[-1].startswith("held at one seed: labels (0)")
