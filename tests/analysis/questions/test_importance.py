"""Importance beside what chance reaches, on scores of which is known what made them."""

import json
import math

import numpy as np
import optuna
import pytest

from pretune.analysis.questions import importance as module
from pretune.analysis.questions.importance import importance
from pretune.analysis.questions.searched import ScoredTrial, SearchRuns
from pretune.search_spaces.space import Int, Uniform, suggest_from, to_plain

LR, LOSS = "finetune.optimizer.lr", "finetune.loss"
RANGES = {LR: {"log_uniform": [1e-4, 1e-1]}, LOSS: {"choice": ["dice", "cross-entropy"]}}


def draw():
    return np.random.default_rng(0)


def made(count, score, seed=0, names=("a", "b", "c")):
    generator = np.random.default_rng(seed)
    drawn = [{name: float(generator.uniform()) for name in names} for _ in range(count)]
    return SearchRuns(f"s{seed}", "m", False, tuple(ScoredTrial(v, score(v, generator), 1) for v in drawn))


def uniform(*names):
    return {name: {"uniform": [0.0, 1.0]} for name in names}


def test_main_effects_are_shares_of_the_variance():
    """Score = 2 a + b on a grid of 6 x 6: variances 4 to 1, so a explains 0.8 and b 0.2, exactly."""
    places = [i / 5 for i in range(6)]
    trials = tuple(ScoredTrial({"a": a, "b": b}, 2 * a + b, 1) for a in places for b in places)
    found = importance([SearchRuns("s", "m", False, trials)], uniform("a", "b"), draw())
    assert found.parameters == ("a", "b")
    assert found.share == pytest.approx([0.8, 0.2])
    assert found.above == ("a",)


def test_a_cells_own_level_is_no_importance():
    cells = [made(12, lambda v, g, c=c: 5 * c + v["a"], c) for c in range(3)]
    found = importance(cells, uniform("a", "b", "c"), draw())
    assert found.parameters[0] == "a"
    assert found.share[0] == pytest.approx(1)
    assert (found.trials, found.above) == (36, ("a",))


def test_one_parameter_has_an_importance_too():
    found = importance([made(12, lambda v, g: v["a"] + 0.1 * g.normal(), names=("a",))], uniform("a"), draw())
    assert found.above == ("a",)


def test_a_minimised_score_has_the_same_importance():
    up = made(20, lambda v, g: v["a"])
    down = up._replace(minimize=True, trials=tuple(t._replace(score=-t.score) for t in up.trials))
    first, second = (importance([one], uniform("a", "b", "c"), draw()) for one in (up, down))
    assert first.share == pytest.approx(second.share)


@pytest.mark.parametrize(("trials", "cells"), [(8, 1), (16, 1), (12, 4)])
def test_above_the_floor_is_nothing_in_95_percent_of_studies_without_effects(trials, cells):
    """Skewed noise too; 120 studies, up to three standard errors."""
    above = 0
    for study in range(120):
        noise = [lambda v, g: float(g.normal()), lambda v, g: float(g.exponential())][study % 2]
        found = importance(
            [made(trials, noise, 1000 * study + c) for c in range(cells)], uniform("a", "b", "c"),
            np.random.default_rng(study),
        )  # fmt: skip
        above += bool(found.above)
    assert above / 120 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)


def test_a_parameter_that_makes_the_score_is_above_the_floor():
    found = sum(
        importance([made(16, lambda v, g: v["b"] + 0.1 * g.normal(), s)], uniform("a", "b", "c"), draw()).above
        == ("b",)
        for s in range(20)
    )
    assert found >= 18


def test_the_interval_of_a_share_covers_it():
    """Truth: three values 0, 1, 2 with unit noise explain (2/3) / (2/3 + 1) = 0.4 of a balanced design."""
    generator, covered = np.random.default_rng(3), 0
    for _ in range(200):
        trials = tuple(ScoredTrial({"a": i % 3}, i % 3 + float(generator.normal()), 1) for i in range(30))
        found = importance([SearchRuns("s", "m", False, trials)], {"a": {"int": [0, 2]}}, generator)
        covered += bool(found.low[0] <= 0.4 <= found.high[0])
    assert covered / 200 == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_a_parameter_that_explains_all_but_all_has_an_interval_around_its_share(noise):
    generator = np.random.default_rng(0)
    trials = tuple(ScoredTrial({"a": i % 3}, i % 3 + noise * float(generator.normal()), 1) for i in range(60))
    found = importance([SearchRuns("s", "m", False, trials)], {"a": {"int": [0, 2]}}, generator)
    if found.share[0] > 1 - 1e-6:
        assert math.isnan(found.low[0])
    else:
        assert found.low[0] < found.share[0] < found.high[0] <= 1
        assert 1 - found.low[0] < 3 * (1 - found.share[0])


def test_where_there_is_nothing_to_rank_a_note_says_why():
    ranges = uniform("a", "b", "c")
    assert "7 finished trials are too few" in importance([made(7, lambda v, g: v["a"])], ranges, draw()).note
    assert "(9 are needed)" in importance([made(4, lambda v, g: v["a"], i) for i in (0, 1)], ranges, draw()).note
    assert importance([made(9, lambda v, g: 0.5)], ranges, draw()).note == "every trial scored the same"
    branch = made(9, lambda v, g: v["a"], names=("a",)), made(9, lambda v, g: v["b"], 1, names=("b",))
    assert importance(branch, ranges, draw()).note == "no parameter is common to all trials"
    single = made(9, lambda v, g: v["a"], names=("a",))
    assert "there is one parameter, so nothing to rank" in importance([single], ranges, draw(), "PED-ANOVA").note


# ----------------------------------------------------------------------------------------------------------- Optuna's


def test_optunas_methods_take_one_search_and_say_their_name():
    several = [made(9, lambda v, g: v["a"], i) for i in (0, 1)]
    with pytest.raises(ValueError, match=r"within one search, .* 2"):
        importance(several, uniform("a", "b", "c"), draw(), "PED-ANOVA")


def test_ped_anova_adds_up_to_one_and_has_a_floor():
    found = importance([made(40, lambda v, g: v["a"])], uniform("a", "b", "c"), draw(), "PED-ANOVA")
    assert (found.method, found.parameters[0]) == ("PED-ANOVA", "a")
    assert found.share.sum() == pytest.approx(1)
    assert found.above == ("a",)
    assert (found.low <= found.high).all()


@pytest.mark.slow
def test_fanova_is_the_share_of_the_variance():
    """Score = 2 a + b with a and b uniform on 0 to 1 and a grid of 7 x 7: variances 4 to 1, shares 0.8 and 0.2."""
    places = [i / 6 for i in range(7)]
    trials = tuple(ScoredTrial({"a": a, "b": b}, 2 * a + b, 1) for a in places for b in places)
    found = importance([SearchRuns("s", "m", False, trials)], uniform("a", "b"), draw(), "fANOVA")
    assert found.parameters == ("a", "b")
    assert found.share[0] == pytest.approx(0.8, abs=0.08)  # a forest of 32 trees, not the formula
    assert "a" in found.above


def test_cells_with_ranges_of_their_own_are_not_ranked_by_optuna():
    trials = tuple(ScoredTrial({LR: 0.1 * i, LOSS: i % 2}, float(i), 1) for i in range(1, 11))  # LR up to 1.0
    found = importance([SearchRuns("s", "m", False, trials)], RANGES, draw(), "PED-ANOVA")
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
    distribution = module._distribution(json.loads(json.dumps(stored)))
    assert all(module._in_range(value, stored) for value in values)
    assert not module._in_range(values[-1] + 1, stored)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    suggest_from(trial)("x", item)
    assert distribution == trial.distributions["x"]
    assert [value for value in values if distribution._contains(value)] == values
    assert not distribution._contains(values[0] + distribution.step / 2)
