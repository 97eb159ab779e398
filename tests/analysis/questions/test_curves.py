"""A band is mean ± sample standard deviation: of 1 and 3 that is 2 ± sqrt(2)."""

import math

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.load.curves import load_curves
from pretune.analysis.load.results import ResultsError
from pretune.analysis.questions.curves import (
    amount_curves,
    amount_factor,
    amounts,
    band,
    curve_metrics,
    learning_curves,
)

LABELS = {"encoder": ["frozen", "free"], "labels": ["all", "10%", "1%"]}


def curve(cell, seed, step, value, phase="confirm", stage="finetune", metric="val/jaccard"):
    return {
        "phase": phase, "cell": cell, "seed": seed, "stage": stage, "fingerprint": f"{cell}{seed}",
        "step": step, "epoch": step / 2, "metric": metric, "value": value,
    }  # fmt: skip


def test_a_band_is_mean_and_standard_deviation_over_seeds_at_every_step():
    rows = pandas.DataFrame([curve("a", seed, step, v) for seed, v in ((0, 1.0), (1, 3.0)) for step in (20, 10)])
    found = learning_curves(rows, "finetune", "val/jaccard").bands[0]
    assert found.label == "a"
    assert found.x.tolist() == [10, 20]
    assert found.mean.tolist() == [2, 2]
    assert found.low == pytest.approx([2 - math.sqrt(2)] * 2)
    assert found.high == pytest.approx([2 + math.sqrt(2)] * 2)
    assert found.n.tolist() == [2, 2]


def test_one_seed_has_a_mean_and_no_band():
    found = band("a", [(1.0, np.array([0.5]))])
    assert found.mean.tolist() == [0.5]
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_values_that_are_not_finite_are_left_out_and_counted_so():
    found = band("a", [(1.0, np.array([0.5, np.nan])), (2.0, np.array([np.nan]))])
    assert (found.x.tolist(), found.n.tolist()) == ([1.0], [1])


def test_search_runs_and_other_stages_are_not_in_a_curve_and_cells_keep_the_studys_order():
    rows = [curve("b", 0, 1, 0.1), curve("a", 0, 1, 0.2), curve("a", 0, 1, 9.0, phase="search")]
    rows += [curve("a", 0, 1, 9.0, stage="pretrain")]
    found = learning_curves(pandas.DataFrame(rows), "finetune", "val/jaccard", ["b", "a"]).bands
    assert [(item.label, item.mean.tolist()) for item in found] == [("b", [0.1]), ("a", [0.2])]


def test_a_metric_is_a_curve_from_its_second_step_on_and_classes_are_left_out():
    rows = [curve("a", 0, step, 0.1, metric=m) for m in ("val/jaccard", "val/jaccard/cat") for step in (1, 2)]
    rows.append(curve("a", 0, 1, 0.1, metric="val/dice"))
    assert curve_metrics(pandas.DataFrame(rows)) == (("finetune", "val/jaccard"),)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_band_agrees_with_numpy_and_holds_its_mean(groups):
    found = band("a", [(float(i), np.array(values)) for i, values in enumerate(groups)])
    for i, values in enumerate(groups):
        assert found.mean[i] == pytest.approx(np.mean(values), abs=1e-9)
        if len(values) > 1:
            assert found.high[i] - found.low[i] == pytest.approx(2 * np.std(values, ddof=1), abs=1e-6)


# ------------------------------------------------------------------------------------------------ metric and amount


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["90%", "10%", "1%"], ("percent", (90.0, 10.0, 1.0))),
        (["all", "10%"], ("percent", (100.0, 10.0))),
        (["74", "368"], ("count", (74.0, 368.0))),
        (["all", "0.1"], ("", (1.0, 0.1))),
        (["0.07", "0.2"], ("", (0.07, 0.2))),
        (["all", "74"], None),  # how many are all is not known here
        (["74", "10%"], None),
        (["true", "false"], None),
        (["10%"], None),
        (["1.0", "1.00"], None),
        (["nan", "0.1"], None),
    ],
)
def test_levels_are_amounts_only_where_all_are_of_one_kind(levels, expected):
    assert amounts(levels) == expected


def test_a_metric_over_labels_has_one_band_for_each_combination_of_other_factors(tmp_path):
    scores = {
        "encoder=frozen labels=all": [0.7, 0.9], "encoder=frozen labels=10%": [0.5, 0.5],
        "encoder=frozen labels=1%": [0.2], "encoder=free labels=all": [0.6], "encoder=free labels=10%": [math.nan],
        "encoder=free labels=1%": [0.3],
    }  # fmt: skip
    folder = write_study(tmp_path, scores, LABELS)
    header = load_header(folder)
    assert amount_factor(header) == "labels"
    found = amount_curves(load(folder), header, "labels", JACCARD)
    assert (found.unit, found.levels, found.log) == ("percent", ("1%", "10%", "all"), True)
    frozen, free = found.bands
    assert frozen.label == "encoder=frozen"
    assert frozen.x.tolist() == [1, 10, 100]
    assert frozen.mean == pytest.approx([0.2, 0.5, 0.8])
    assert frozen.high[2] == pytest.approx(0.8 + math.sqrt(0.02))
    assert free.x.tolist() == [1, 100]  # the diverged cell is no point


def test_a_factor_that_is_no_amount_is_an_error(tmp_path):
    folder = write_study(tmp_path, {"encoder=frozen labels=all": [0.5]}, LABELS)
    with pytest.raises(ResultsError, match="levels of 'encoder' are not amounts"):
        amount_curves(load(folder), load_header(folder), "encoder", JACCARD)


def test_no_curves_are_an_empty_frame_and_damaged_ones_an_error(tmp_path):
    assert load_curves(tmp_path).empty
    (tmp_path / "curves.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ResultsError, match="cut off or damaged"):
        load_curves(tmp_path)
    pandas.DataFrame({"step": [1]}).to_parquet(tmp_path / "curves.parquet")
    with pytest.raises(ResultsError, match="lacks the columns"):
        load_curves(tmp_path)
