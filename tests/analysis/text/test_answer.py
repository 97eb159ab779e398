"""What the sentences claim is what the statistics say, and no more."""

import math

import pytest
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.load.replicates import ReplicateResult, independent_values
from pretune.analysis.statistics import t_interval
from pretune.analysis.text.answer import answer

FACTORS = {"a": ["x", "y", "z"]}


def sentences(tmp_path, scores, metric=JACCARD, **report):
    folder = write_study(tmp_path, scores, FACTORS, metrics=(metric,), **report)
    return answer(load(folder), load_header(folder), metric)


def test_the_best_cell_is_named_with_its_interval_and_those_not_shown_to_be_worse(tmp_path):
    scores = {"a=x": [0.70, 0.71, 0.72], "a=y": [0.69, 0.72, 0.70], "a=z": [0.10, 0.12, 0.11]}
    first, second, third = sentences(tmp_path, scores)
    _, low, high = t_interval(scores["a=x"])
    assert first == f"a=x has the highest mean {JACCARD}: 0.710 (95 % t interval {low:.3f} to {high:.3f}, 3 seeds)."
    assert "1 of the 2 other cells is not shown to be worse" in second
    assert second.endswith("a=y.")
    assert third.startswith("Each interval is for one number alone.")


def test_each_column_has_its_own_answer_as_the_table_marks_it(tmp_path):
    factors = {"a": ["x", "y"], "labels": ["all", "1%"]}
    scores = {
        "a=x labels=all": [0.70, 0.71, 0.72], "a=y labels=all": [0.60, 0.612, 0.62],
        "a=x labels=1%": [0.30, 0.33, 0.31], "a=y labels=1%": [0.32, 0.315, 0.325],
    }  # fmt: skip
    folder = write_study(tmp_path, scores, factors, rows=["a"], columns=["labels"], percent=True)
    said = answer(load(folder), load_header(folder), JACCARD)
    assert said[0].startswith(f"At labels=all: a=x has the highest mean {JACCARD}: 71.0 % (95 % t interval ")
    assert said[1].startswith("At labels=all: every other cell is shown to be worse (paired t-tests of all pairs, n=3")
    assert said[2].startswith(f"At labels=1%: a=y has the highest mean {JACCARD}: 32.0 %")
    assert said[3].startswith("At labels=1%: no other cell is shown to be worse")
    assert said[4].startswith("a ")
    assert "The effect depends on labels: read the cells, not the averages." in said[4]
    assert said[5].startswith("labels has an effect on average (p ")
    assert "from 31.7 (1%) to 66.0 (all) percent" in said[5]


def test_a_loss_is_best_where_it_is_lowest(tmp_path):
    first, *_ = sentences(tmp_path, {"a=x": [0.3, 0.4], "a=y": [0.1, 0.2], "a=z": [0.9, 1.0]}, "val/pretext_loss")
    assert first.startswith("a=y has the lowest mean val/pretext_loss")


def test_a_tie_is_said(tmp_path):
    first, *_ = sentences(tmp_path, {"a=x": [0.5, 0.5], "a=y": [0.5, 0.5], "a=z": [0.1, 0.2]})
    assert "(a tie with 1 more)" in first


def test_cells_that_tie_are_not_among_those_that_are_worse(tmp_path):
    x = [0.7, 0.71, 0.72, 0.73, 0.74]
    first, second, *_ = sentences(tmp_path, {"a=x": x, "a=y": x[::-1], "a=z": [0.3, 0.31, 0.32, 0.3, 0.33]})
    assert "(a tie with 1 more)" in first
    assert second.lower().startswith("every cell below these is shown to be worse")


def test_with_one_common_seed_nothing_is_claimed_of_the_others(tmp_path):
    _, second, missing = sentences(tmp_path, {"a=x": [0.7], "a=y": [0.5], "a=z": [math.nan]})
    assert second == "It is unknown which other cells are worse (fewer than two seeds in common)."
    assert missing == "Cells without any value: a=z (0 of 1 seeds; 1 diverged (loss is NaN))."


def test_the_baseline_sentence_counts_what_holms_test_shows(tmp_path):
    scores = {"a=x": [0.50, 0.51, 0.52], "a=y": [0.701, 0.711, 0.723], "a=z": [0.49, 0.53, 0.51]}
    last = sentences(tmp_path, scores, baseline={"a": "x"})[-2]
    assert "1 is shown to be higher and 0 are shown to be lower" in last
    assert "The largest difference is +0.2017 ([+0.198" in last  # digits as in the table of differences
    assert "a=y" in last


def test_nested_fine_tunings_are_averaged_for_each_pretraining():
    seeds = [((0, 0, 0), 0.2), ((1, 0, 1), 0.4), ((2, 1, 2), 0.6), ((3, 1, 3), math.nan)]
    found = independent_values(tuple(ReplicateResult(s, "finished", "", value) for s, value in seeds))
    assert found == pytest.approx({0: 0.3, 1: 0.6})
