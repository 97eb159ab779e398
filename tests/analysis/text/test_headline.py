"""Short sentences: what is shown, and nothing that is not."""

import math
import shlex
from dataclasses import replace

import numpy as np
import pandas
import pytest
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.questions.facts import SIGNS
from pretune.analysis.statistics import seeds_needed
from pretune.analysis.text.headline import headline, left_open
from pretune.search_spaces.document import parse_value

NAN = math.nan
FACTORS = {"a": ["x", "y", "z"]}
X, Y, Z = [0.50, 0.51, 0.52], [0.70, 0.712, 0.72], [0.49, 0.52, 0.51]


def said(folder, x, y, z, metric=JACCARD, **report):
    write_study(folder, {"a=x": x, "a=y": y, "a=z": z}, FACTORS, metrics=(metric,), **report)
    return headline(load(folder), load_header(folder), metric)


def test_an_improvement_on_the_baseline_is_shown_with_its_size_interval_and_meaning(tmp_path):
    """y is 0.2, 0.202 and 0.2 above x: mean 0.2007, std 0.00115, t interval ± 4.303 x 0.00115 / sqrt 3 = 0.0029; the
    baseline lacks 0.49 to 1, of which the gain is 41 %."""
    text = said(tmp_path, X, Y, Z, baseline={"a": "x"})
    assert text.startswith("Shown: a=y has test/jaccard 0.71")
    assert "3 paired seeds. The gain is 41 % of the way from the baseline to a perfect" in text
    assert text.endswith("seeds.report=6. 1 of 2 comparisons shows an improvement. Not clear: a=z (−0.0033).")
    low, high = (float(part) for part in text.split("difference: ")[1].split(",")[0].split(" to "))
    assert (low, high) == pytest.approx((0.1978, 0.2035), abs=6e-4)


@pytest.mark.parametrize(
    ("baseline", "others", "expected"),
    [
        ("x", {"u": [0.30, 0.311, 0.32]}, "Not clear: a=z (-0.0033). Shown to be worse: a=u (-0.1997)."),
        ("z", {"u": [0.30, 0.311, 0.32]}, "Not clear: a=x (+0.003). Shown to be worse: a=u (-0.196)."),
        ("x", {"u": [0.80, 0.811, 0.82]}, "3 comparisons show an improvement. Not clear: a=z (-0.0033)."),
        ("x", dict.fromkeys("uvw", Z), "Not clear: a=z (-0.003), a=u (-0.003), a=v (-0.003) and 1 more."),
    ],
)
def test_cells_that_are_neither_best_nor_shown_are_named_with_their_difference(tmp_path, baseline, others, expected):
    """Means of x, y, z: 0.51, 0.711, 0.5067; of u 0.3103 or 0.8103. An improvement besides the largest is counted."""
    scores = {"x": X, "y": Y, "z": Z} | others
    cells = {f"a={level}": values for level, values in scores.items()}
    write_study(tmp_path, cells, {"a": list(scores)}, baseline={"a": baseline})
    text = headline(load(tmp_path), load_header(tmp_path), JACCARD).replace("−", "-")
    assert text.endswith(expected)


def test_a_larger_mean_that_is_not_shown_stands_before_the_others(tmp_path):
    """A new user's study: 0.012 was shown, since three seeds agreed by chance, and 0.097 was not.

    z - x is 0.02, 0.10 and 0.171: std 0.0755; t of 0.097 = 2.2 < 4.3.
    """
    x, y = [0.570, 0.580, 0.578], [0.582, 0.5921, 0.590]
    text = said(tmp_path, x, y, [0.59, 0.68, 0.749], baseline={"a": "x"}).replace("−", "-")
    assert text.startswith("Shown: a=y has test/jaccard 0.588")
    assert ". 3 seeds can agree by chance: run again with --set seeds.report=6. 1 of 2 comparisons" in text
    assert " an improvement. Larger, but not clear: a=z (+0.097" in text
    assert f"If the true difference is +0.097, about {seeds_needed(0.097, 0.0755, 0.8, 0.05 / 2)} seeds are " in text


def test_more_seeds_are_advised_where_few_agree(tmp_path):
    text = said(tmp_path, [*X, 0.5, 0.5], [*Y, 0.7, 0.71], [*Z, 0.5, 0.51], baseline={"a": "x"})
    assert text.startswith("Shown: a=y ")
    assert "seeds.report" not in text


def test_a_pretraining_that_collapsed_is_said_beside_what_is_shown(tmp_path):
    said(tmp_path, X, Y, Z, baseline={"a": "x"})
    results, header = load(tmp_path), load_header(tmp_path)
    stage = {"stage": "pretrain", "metric": SIGNS, "cell": "a=y", "cells": ""}
    signs = [
        results.iloc[[0]].assign(**stage, fingerprint=f"p{i}", seed=i, value=value) for i, value in enumerate([2, 0])
    ]
    for cell, doubted in (("a=y", True), ("a=x", True), ("a=z", False)):  # what is shown, its baseline, another
        text = headline(pandas.concat([results, *(one.assign(cell=cell) for one in signs)]), header, JACCARD)
        assert (f". But 1 of 2 pretraining runs of {cell} showed signs of collapse. " in text) == doubted


def test_a_larger_mean_without_its_failed_replicates_needs_no_more_seeds(tmp_path):
    x, y = [0.50, 0.51, 0.52, 0.50, 0.51], [0.70, 0.712, 0.72, 0.70, 0.71]
    text = said(tmp_path, x, y, [0.80, 0.812, 0.82, 0.80, NAN], baseline={"a": "x"})
    assert ". Larger, but not clear: a=z (+0.3" in text
    assert "are needed" not in text


@pytest.mark.parametrize(
    ("planned", "advice"),
    [(3, "run again with --set seeds.report=6"), (8, "let the study finish")],
)
def test_few_seeds_of_a_stopped_study_are_to_be_finished(tmp_path, planned, advice):
    write_study(tmp_path, {"a=x": X, "a=y": Y}, {"a": ["x", "y"]}, baseline={"a": "x"})
    header = replace(load_header(tmp_path), replicates=planned, pretrainings=planned)
    assert f". 3 seeds can agree by chance: {advice}." in headline(load(tmp_path), header, JACCARD)


def test_few_pretrainings_of_nested_seeds_name_their_own_setting(tmp_path):
    write_study(tmp_path, {"a=x": X + X, "a=y": Y + Y}, {"a": ["x", "y"]}, baseline={"a": "x"})
    header, results = replace(load_header(tmp_path), replicates=6, pretrainings=3), load(tmp_path)
    results = results.assign(seed_pretrain=results["seed"] % 3, seed_finetune=results["seed"] // 3)
    text = headline(results, header, JACCARD)
    assert "3 pretrainings can agree by chance: run again with --set seeds.report.pretrain=6" in text


def test_where_no_cell_is_better_the_rest_stands_beside_the_best_other(tmp_path):
    text = said(tmp_path / "1", X, [0.51, 0.50, 0.54], Z, baseline={"a": "x"})
    assert text.endswith(" in 80 % of studies. Not clear: a=z (−0.003).")
    text = said(tmp_path / "2", X, [0.51, 0.50, 0.54], [0.30, 0.311, 0.32], baseline={"a": "x"})
    assert text.endswith(". Shown to be worse: a=z (−0.1997).")


def test_an_untested_difference_closes_no_share_of_the_gap(tmp_path):
    text = said(tmp_path, [0.5], [0.6], [0.4], baseline={"a": "x"})
    assert text.startswith("No clear answer: ")
    assert "The gain is" not in text


def test_without_a_baseline_the_cells_that_may_be_as_good_are_named_and_none_without_a_value(tmp_path):
    text = said(tmp_path / "1", X, [0.5, 0.53, 0.52], Z)
    assert "2 of the 2 other cells are not shown to be worse (a=x, a=z). " in text
    text = said(tmp_path / "2", X, Y, [NAN, NAN, NAN])
    assert text.startswith("Shown: a=y is better in test/jaccard (0.7107) than the other cell with a value. ")


def test_levels_that_both_cells_share_are_said_once(tmp_path):
    scores = {"a=x b=u": X, "a=y b=u": Y, "a=x b=v": Z, "a=y b=v": Z}
    factors = {"a": ["x", "y"], "b": ["u", "v"]}
    write_study(tmp_path, scores, factors, metrics=(JACCARD,), baseline={"a": "x"})
    text = headline(load(tmp_path), load_header(tmp_path), JACCARD)
    assert text.startswith("Shown: a=y has test/jaccard 0.71")
    assert " above a=x (both with b=u). 95 % interval" in text


def test_a_difference_that_is_not_that_of_the_means_says_of_which_seeds_it_is(tmp_path):
    """y lacks seed 0: its mean 0.716 is 0.206 above x's 0.510, and 0.201 above x in the seeds 1 and 2."""
    text = said(tmp_path, X, [NAN, 0.712, 0.72], Z, baseline={"a": "x"})
    assert "a=y has test/jaccard 0.7160; it is 0.2010 above a=x in the 2 seeds that both have. " in text
    assert "that both have" not in said(tmp_path / "whole", X, Y, Z, baseline={"a": "x"})


def test_where_nothing_is_shown_the_seeds_that_would_show_it_are_named(tmp_path):
    text = said(tmp_path, X, [0.51, 0.50, 0.54], Z, baseline={"a": "x"})
    assert text.startswith("No clear answer: no cell is shown to be better than the baseline a=x. ")
    assert "The best other cell: a=y has " in text
    assert "If the true difference is +0.007, about " in text
    assert "seeds are needed to show it in 80 % of studies" in text


@pytest.mark.parametrize(
    ("baseline", "metric", "expected"),
    [
        (
            {"a": "x"},
            JACCARD,
            "the answer compares each cell only with a=x. To compare with a=y, add --set 'report.baseline={a: y}' to "
            "your `pretune run` command; nothing is trained again. p then holds only if you chose this pair before "
            "you saw the table",
        ),
        (
            {"a": "y"},
            JACCARD,
            "To compare with a=z, add --set 'report.baseline={a: z}' to your",
        ),
        ({"a": "y"}, "val/pretext_loss", "To compare with a=x,"),
        ({}, JACCARD, ""),
    ],
)
def test_pairs_without_the_baseline_are_said_to_be_open(tmp_path, baseline, metric, expected):
    """The means of x, y, z are 0.51, 0.711, 0.52."""
    write_study(
        tmp_path, {"a=x": X, "a=y": Y, "a=z": [0.51, 0.52, 0.53]}, FACTORS, metrics=(metric,), baseline=baseline
    )
    found = left_open(load(tmp_path), load_header(tmp_path))
    assert bool(found) == bool(expected)
    assert expected in found
    assert not baseline or f"compares each cell only with a={baseline['a']}." in found


def test_with_two_levels_nothing_is_left_open(tmp_path):
    scores = {"a=x b=u": X, "a=y b=u": Y, "a=x b=v": Z, "a=y b=v": Z}
    write_study(tmp_path, scores, {"a": ["x", "y"], "b": ["u", "v"]}, metrics=(JACCARD,), baseline={"a": "x"})
    assert left_open(load(tmp_path), load_header(tmp_path)) == ""


@pytest.mark.parametrize("level", ["ImageNet and frozen", "10%", "true", "it's", "1/3", "a: b", "[x", "ü"])
def test_the_advised_setting_is_read_as_the_level_that_it_names(tmp_path, level):
    scores = {"a=x": X, "a=z": X, f"a={level}": Y}
    write_study(tmp_path, scores, {"a": ["x", "z", level]}, metrics=(JACCARD,), baseline={"a": "x"})
    words = shlex.split(
        left_open(load(tmp_path), load_header(tmp_path)).split("add --set ")[1].rpartition(" to your ")[0]
    )
    key, _, value = words[0].partition("=")
    assert (key, parse_value(value)) == ("report.baseline", {"a": level})


def test_missing_replicates_stand_beside_the_answer(tmp_path):
    text = said(tmp_path, X, Y, [0.5, NAN, NAN], baseline={"a": "x"})
    assert text.startswith("Shown: a=y")
    assert text.endswith(". 2 of 9 replicates have no value (2 diverged).")


def test_a_cell_that_lost_replicates_is_not_shown_to_be_better(tmp_path):
    y = [0.70, 0.711, 0.72, NAN]
    text = said(tmp_path, [*X, 0.5], y, [*Z, 0.5], baseline={"a": "x"})
    assert text.startswith("Not settled: a=y has ")
    assert "But 1 of its 4 runs failed. A failed run might have scored worst." in text
    text = said(tmp_path, [*X, 0.5], y, [0.3, 0.31, 0.32, 0.3])
    assert text.startswith("Not settled: a=y has the best mean, but 1 of its 4 runs failed")


def test_a_baseline_that_lost_replicates_shows_no_cell_to_be_worse(tmp_path):
    """Both cells are below the baseline; of a baseline without failures that is an answer."""
    above = {"a": "y"}
    text = said(tmp_path / "1", X, Y, [0.30, 0.311, 0.32], baseline=above)
    assert text.startswith("Shown: every compared cell is worse than the baseline a=y.")
    text = said(tmp_path / "2", [*X, 0.5], [*Y, NAN], [0.30, 0.311, 0.32, 0.3], baseline=above)
    assert text.startswith("No clear answer: no cell is shown to be better than the baseline a=y. The best")
    assert "a worse score" not in text


def test_without_a_baseline_the_best_is_compared_with_all_others(tmp_path):
    text = said(tmp_path, X, Y, [0.30, 0.311, 0.32])
    assert text.startswith("Shown: a=y is better in test/jaccard (0.7")
    assert "than each of the 2 others. The closest: a=x has " in text
    text = said(tmp_path, X, [0.5, 0.53, 0.52], Z)
    assert text.startswith(
        "No clear answer: a=y has the best mean, but 2 of the 2 other cells are not shown to be worse"
    )


def test_a_lower_loss_is_the_better_one(tmp_path):
    text = said(tmp_path, Y, X, Y, "val/pretext_loss", baseline={"a": "x"})
    assert text.startswith("Shown: a=y has val/pretext_loss 0.5")
    assert "below a=x" in text
    assert "perfect score" not in text


@pytest.mark.parametrize(
    ("scores", "start"),
    [
        (
            {"a=x": [0.5], "a=y": [0.6]},
            "Not answered: a=y has test/jaccard 0.600. No other cell can be compared with it",
        ),
        ({"a=x": [NAN], "a=y": [NAN]}, "No replicate has finished with a value of test/jaccard yet"),
        ({"a=x": [0.5] * 3, "a=y": [0.6] * 3}, "Not answered: a=y has test/jaccard 0.600"),
    ],
)
def test_where_nothing_can_be_tested_nothing_is_shown(tmp_path, scores, start):
    write_study(tmp_path, scores, {"a": ["x", "y"]})
    text = headline(load(tmp_path), load_header(tmp_path), JACCARD)
    assert text.startswith(start)
    assert "Shown" not in text


def test_the_other_ways_to_end(tmp_path):
    """All worse than the baseline; a baseline without values; one paired seed, of which no spread is known."""
    text = said(tmp_path, Y, X, [0.30, 0.31, 0.32], baseline={"a": "x"})
    assert text.startswith("Shown: every compared cell is worse than the baseline a=x. The closest: a=y has ")
    text = said(tmp_path, [NAN] * 3, X, Y, baseline={"a": "x"})
    assert text.startswith("Not answered: no cell can be compared with the baseline a=x. 3 of 9 replicates have no")
    text = said(tmp_path, [0.5], [0.6], [0.4], baseline={"a": "x"})
    assert "The number of seeds needed is unknown" in text
    assert "1 paired seed." in text


@pytest.mark.parametrize("baseline", [{}, {"a": "x"}])
def test_shown_is_said_in_five_percent_of_studies_without_any_difference(tmp_path, baseline):
    """Three equal cells, paired, three seeds; 20 studies, up to three standard errors."""
    generator, claims = np.random.default_rng(0), 0
    said(tmp_path, X, Y, Z, baseline=baseline)
    results, header = load(tmp_path), load_header(tmp_path)
    for _ in range(20):
        drawn = results.assign(value=0.5 + 0.01 * generator.normal(size=9))
        claims += headline(drawn, header, JACCARD).startswith("Shown")
    assert claims / 20 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20)


def test_a_tie_is_no_cell_that_is_shown_to_be_beaten(tmp_path):
    x, low = [0.7, 0.71, 0.72, 0.73, 0.74], [0.3, 0.31, 0.32, 0.3, 0.33]
    text = said(tmp_path / "three", x, x[::-1], low)
    assert text.startswith(
        "No clear answer: a=x has the best mean, but 1 of the 2 other cells is not shown to be worse (a=y)"
    )
    write_study(tmp_path / "two", {"a=x": x, "a=y": x[::-1]}, {"a": ["x", "y"]})
    text = headline(load(tmp_path / "two"), load_header(tmp_path / "two"), JACCARD)
    assert text.startswith("No clear answer: a=x has the best mean, but the other cell is not shown to be worse (a=y)")


def test_seeds_are_asked_for_what_is_not_shown_and_not_for_what_is(tmp_path):
    """y is 0.0094 below x in every seed: shown to be worse. z is 0.044 below it, with a large spread: open."""
    x, y, z = [0.7, 0.71, 0.72, 0.70, 0.71], [0.69, 0.701, 0.711, 0.69, 0.701], [0.60, 0.80, 0.72, 0.50, 0.70]
    text = said(tmp_path / "against", x, y, z, baseline={"a": "x"}).replace("\u2212", "-")
    assert "1 of 2 comparisons shows a worse score. The best cell that is not: a=z has test/jaccard 0.66" in text
    assert "If the true difference is -0.044, about" in text
    assert text.endswith("Shown to be worse: a=y (-0.009).")
    text = said(tmp_path / "among", x, y, z).replace("\u2212", "-")
    assert "not shown to be worse (a=z). The closest: a=z" in text
    assert "If the true difference is -0.044, about" in text


def test_what_a_failure_holds_back_names_it_in_place_of_seeds(tmp_path):
    text = said(
        tmp_path, [0.7, 0.71, 0.72, 0.70, NAN], [0.3, 0.31, 0.33, 0.30, 0.31], [0.3] * 4 + [NAN], baseline={"a": "x"}
    )
    assert "This is not shown, since a=x lost runs: 1 of its 5 runs failed" in text
    assert "seeds are needed" not in text


def test_a_study_that_diverged_and_ended_is_not_to_be_finished(tmp_path):
    x, y = [0.5, 0.51, 0.52, NAN, NAN], [0.7, 0.712, 0.72, 0.7, 0.71]
    text = said(tmp_path, x, y, x, baseline={"a": "x"})
    assert "3 seeds can agree by chance: run again with --set seeds.report=6" in text
    assert "let the study finish" not in text


def test_the_seeds_needed_are_those_of_the_test_that_decides(tmp_path):
    """Both directions of a pair are tested, which is one two-sided test; untested rows do not count for Holm."""
    a = [0.5, 0.52, 0.51, 0.50, 0.53, 0.51]
    d = [0.01, -0.01, 0.02, 0.0, 0.015, -0.002]
    mean, std = sum(d) / 6, float(np.std(d, ddof=1))
    write_study(tmp_path / "two", {"a=x": a, "a=y": [p + q for p, q in zip(a, d, strict=True)]}, {"a": ["x", "y"]})
    text = headline(load(tmp_path / "two"), load_header(tmp_path / "two"), JACCARD)
    assert f"about {seeds_needed(mean, std, 0.8, 0.05)} seeds are needed" in text
    values = {"a=x": a, "a=y": [p + q for p, q in zip(a, d, strict=True)], "a=z": [0.4], "a=u": [0.3]}
    write_study(tmp_path / "more", values, {"a": ["x", "y", "z", "u"]}, baseline={"a": "x"})
    text = headline(load(tmp_path / "more"), load_header(tmp_path / "more"), JACCARD)
    assert f"about {seeds_needed(mean, std, 0.8, 0.05)} seeds are needed" in text


def test_a_best_cell_without_a_seed_in_common_cannot_be_compared(tmp_path):
    text = said(tmp_path, [0.7], [NAN, 0.5, 0.51, 0.52], [NAN, 0.4, 0.41, 0.43])
    assert text.startswith("Not answered: a=x has test/jaccard 0.700. No other cell can be compared with it")
