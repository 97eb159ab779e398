"""Scores are made from known parameters, so what must be found is known too."""

import json
import math

import numpy as np
import optuna
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.analysis.questions import sensitivity
from pretune.analysis.questions.sensitivity import (
    BIASED,
    DESIGNED,
    ScoredTrial,
    SearchRuns,
    importance,
    origin,
    response,
    searches,
    varied,
)
from pretune.search_spaces.space import Int, Uniform, suggest_from, to_plain

LR, T, LOSS = "finetune.optimizer.lr", "pretrain.method.temperature", "finetune.loss"
RANGES = {LR: {"log_uniform": [1e-4, 1e-1]}, T: {"uniform": [0.0, 1.0]}, LOSS: {"choice": ["dice", "cross-entropy"]}}
TUNE = {"target": "val/jaccard", "direction": None, "pretrain": {"target": "cells"}}
CONTENT = {"tune": TUNE, "ranges": RANGES}


def row(chosen, value, cell="a=x", phase="search", outcome="finished", stage="finetune", metric="val/jaccard", seed=0):
    return {
        "phase": phase, "cell": cell, "stage": stage, "chosen": json.dumps(chosen, sort_keys=True), "outcome": outcome,
        "metric": metric, "value": value, "seed": seed,
    }  # fmt: skip


def made(count, score):
    generator = np.random.default_rng(0)
    drawn = [{LR: float(10 ** generator.uniform(-4, -1)), LOSS: int(generator.integers(2))} for _ in range(count)]
    return SearchRuns("s", "val/jaccard", False, tuple(ScoredTrial(values, score(values), 1) for values in drawn))


def test_a_trial_is_the_mean_over_its_seeds_and_cells_and_searches_are_kept_apart():
    rows = [row({T: 0.1}, 0.4), row({T: 0.1}, 0.6, cell="a=y"), row({T: 0.2}, 0.9)]
    rows += [row({T: 0.2, LR: 0.01}, 0.7), row({T: 0.2, LR: 0.01}, 0.1, phase="confirm")]
    pretraining, finetuning = searches(pandas.DataFrame(rows), CONTENT)
    assert (pretraining.name, finetuning.name) == ("pretraining", "fine-tuning of a=x")
    assert [(trial.values, trial.score, trial.n) for trial in pretraining.trials] == [
        ({T: 0.1}, pytest.approx(0.5), 2),
        ({T: 0.2}, 0.9, 1),
    ]
    assert [trial.score for trial in finetuning.trials] == [0.7]


def test_an_option_s_name_is_read_back_as_its_place():
    rows = [row({LR: 0.1, LOSS: "cross-entropy"}, 0.9), row({LR: 0.2, LOSS: "dice"}, 0.5)]
    (found,) = searches(pandas.DataFrame(rows), CONTENT)
    assert [trial.values for trial in found.trials] == [{LR: 0.1, LOSS: 1}, {LR: 0.2, LOSS: 0}]
    assert response(found, LOSS, RANGES).x.tolist() == [0.0, 1.0]


def test_a_trial_with_a_failed_replicate_is_left_out_and_never_a_mean_over_survivors():
    rows = [row({LR: 0.1}, 0.9), row({LR: 0.1}, math.nan, outcome="diverged", metric=""), row({LR: 0.2}, 0.5)]
    (found,) = searches(pandas.DataFrame(rows), CONTENT)
    assert [trial.values for trial in found.trials] == [{LR: 0.2}]


def test_a_pretraining_is_scored_by_its_own_target():
    probe = row({T: 0.1}, 0.8, stage="probe:knn", metric="probe/knn/accuracy")
    content = {"tune": TUNE | {"pretrain": {"target": "probe.knn"}}, "ranges": RANGES}
    (found,) = searches(pandas.DataFrame([row({T: 0.1}, 0.3), probe]), content)
    assert (found.metric, found.trials[0].score) == ("probe/knn/accuracy", 0.8)


def test_a_study_without_ranges_has_no_searches():
    assert searches(pandas.DataFrame([row({}, 0.3, phase="confirm")]), {}) == ()


def test_what_an_earlier_search_fixed_is_not_varied():
    trials = tuple(ScoredTrial({T: 0.2, LR: lr}, lr, 1) for lr in (0.1, 0.2))
    assert varied(SearchRuns("s", "m", False, trials)) == (LR,)


def test_bins_hold_equally_many_neighbours_and_their_means():
    trials = tuple(
        ScoredTrial({T: t}, score, 1) for t, score in zip((6, 1, 2, 3, 4, 5), (6.0, 1, 2, 3, 4, 5), strict=True)
    )
    found = response(SearchRuns("s", "m", False, trials), T, RANGES)
    assert found.x.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.bin_x.tolist() == [2, 5]
    assert found.bin_mean.tolist() == [2, 5]
    assert found.bin_std.tolist() == [1, 1]
    assert not found.log


def test_a_logarithmic_bin_lies_at_its_geometric_mean_and_a_choice_has_a_bin_for_each_option():
    trials = tuple(ScoredTrial({LR: lr, LOSS: k}, 0.5, 1) for lr, k in ((1e-4, 0), (1e-3, 1), (1e-2, 1)))
    search = SearchRuns("s", "m", False, trials)
    assert response(search, LR, RANGES).bin_x == pytest.approx([1e-3])
    choice = response(search, LOSS, RANGES)
    assert (choice.options, choice.bin_x.tolist()) == (("dice", "cross-entropy"), [0, 1])


def test_the_spread_over_search_seeds_is_that_of_each_seeds_own_curve():
    """Six trials in two bins, two search seeds, of which the second scores 0.1 x bin more: bins' means 0.2 and 0.5 of
    the first, 0.3 and 0.7 of the second; stds 0.1 / sqrt 2 and 0.2 / sqrt 2. Two cells per seed are averaged first."""
    t = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    rows = [
        row({T: x}, i / 10 + (0.1 * (i > 3) + 0.1) * seed + part, seed=seed, cell="a=x")
        for i, x in enumerate(t, start=1)
        for seed in (0, 1)
        for part in (-0.05, 0.05)
    ]
    (search,) = searches(pandas.DataFrame(rows), CONTENT)
    found = response(search, T, RANGES)
    assert (found.seeds, found.bin_x.tolist()) == (2, pytest.approx([0.2, 0.5]))
    assert found.seed_std == pytest.approx([0.1 / math.sqrt(2), 0.2 / math.sqrt(2)])
    assert found.bin_mean == pytest.approx([0.25, 0.6])


def test_one_search_seed_has_no_spread_over_seeds():
    (search,) = searches(pandas.DataFrame([row({T: x}, x, seed=0) for x in (0.1, 0.2, 0.3)]), CONTENT)
    found = response(search, T, RANGES)
    assert (found.seeds, len(found.seed_std)) == (1, 0)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(-1, 1)), min_size=1, max_size=40))
def test_bins_lose_no_trial(points):
    search = SearchRuns("s", "m", False, tuple(ScoredTrial({T: x}, y, 1) for x, y in points))
    found = response(search, T, RANGES)
    sizes = [len(part) for part in np.array_split(np.arange(len(points)), len(found.bin_mean))]
    assert np.average(found.bin_mean, weights=sizes) == pytest.approx(np.mean([y for _, y in points]), abs=1e-9)


def test_the_parameter_that_makes_the_score_is_the_important_one():
    found = importance(made(40, lambda values: -abs(math.log10(values[LR]) + 2)), RANGES, np.random.default_rng(0), 5)
    assert found.parameters[0] == LR
    assert found.share[0] > 0.8
    assert found.share.sum() == pytest.approx(1)
    assert (found.low <= found.share + 0.2).all()
    assert (found.low <= found.high).all()


def test_fanova_is_the_share_of_the_variance():
    """Score = 2 a + b with a and b uniform on 0 to 1 and a grid of 7 x 7: variances 4 to 1, shares 0.8 and 0.2."""
    places = [i / 6 for i in range(7)]
    trials = tuple(ScoredTrial({"a": a, "b": b}, 2 * a + b, 1) for a in places for b in places)
    ranges = {"a": {"uniform": [0.0, 1.0]}, "b": {"uniform": [0.0, 1.0]}}
    search = SearchRuns("s", "m", False, trials, designed=True)
    found = importance(search, ranges, np.random.default_rng(0), 4, "fANOVA")
    assert found.parameters == ("a", "b")
    assert found.share[0] == pytest.approx(0.8, abs=0.08)  # a forest of 32 trees, not the formula
    assert found.top == 1.0
    assert (found.method, origin([search])) == ("fANOVA", DESIGNED)


def test_only_points_laid_out_beforehand_are_a_design():
    kinds = {"grid": DESIGNED, "qmc": DESIGNED, "random": DESIGNED, "tpe": BIASED, "gp": BIASED, "nsga2": BIASED}
    for sampler, text in kinds.items():
        found = searches(pandas.DataFrame([row({LR: 0.1}, 0.9)]), CONTENT | {"tune": TUNE | {"sampler": sampler}})
        assert origin(found) == text


def test_a_rung_is_no_trial():
    """What a configuration scored when it was stopped after two epochs is not its score."""
    rows = [row({LR: 0.1}, 0.3) | {"until": "finetune 2"}, row({LR: 0.1}, 0.9) | {"until": None}]
    (found,) = searches(pandas.DataFrame(rows), CONTENT)
    assert [trial.score for trial in found.trials] == [0.9]


def test_a_minimised_score_ranks_the_same_when_its_sign_is_turned():
    up = made(30, lambda values: -abs(math.log10(values[LR]) + 2))
    turned = tuple(trial._replace(score=-trial.score) for trial in up.trials)
    down = up._replace(minimize=True, trials=turned)
    first, second = (importance(item, RANGES, np.random.default_rng(0), 2) for item in (up, down))
    assert first.share == pytest.approx(second.share)


def test_where_there_is_nothing_to_rank_a_note_says_why():
    generator = np.random.default_rng(0)
    assert "too few" in importance(made(7, lambda values: values[LR]), RANGES, generator).note
    assert "scored the same" in importance(made(9, lambda values: 0.5), RANGES, generator).note
    single = tuple(ScoredTrial({LR: 0.001 * i}, float(i), 1) for i in range(1, 10))
    assert "one parameter" in importance(SearchRuns("s", "m", False, single), RANGES, generator).note


def test_cells_with_ranges_of_their_own_are_not_ranked_together():
    trials = tuple(ScoredTrial({LR: 0.1 * i, LOSS: i % 2}, float(i), 1) for i in range(1, 11))  # LR up to 1.0
    found = importance(SearchRuns("s", "m", False, trials), RANGES, np.random.default_rng(0))
    assert "optimizer.lr differs between cells" in found.note
    assert not found.parameters


@pytest.mark.parametrize(
    ("item", "values"),
    [(Int(8, 32, step=8), [8, 16, 24, 32]), (Uniform(0.0, 1.0, 0.25), [0.0, 0.25, 0.5, 0.75, 1.0])],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_range_with_steps_is_optunas_distribution_in_whatever_order_its_keys_are_stored(item, values, backwards):
    described = to_plain(item)
    stored = dict(reversed(described.items())) if backwards else described
    distribution = sensitivity._distribution(json.loads(json.dumps(stored)))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    suggest_from(trial)("x", item)
    assert distribution == trial.distributions["x"]
    assert [value for value in values if distribution._contains(value)] == values
    assert not distribution._contains(values[0] + distribution.step / 2)
