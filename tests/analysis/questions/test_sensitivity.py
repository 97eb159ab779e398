"""Scores are made from known parameters, so what must be found is known too."""

import json
import math

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pretune.analysis.questions.searched import BIASED, DESIGNED, ScoredTrial, SearchRuns, origin, searches, varied
from pretune.analysis.questions.sensitivity import failures, panel_groups, panels, response_curve

LR, T, LOSS = "finetune.optimizer.lr", "pretrain.method.temperature", "finetune.loss"
RANGES = {LR: {"log_uniform": [1e-4, 1e-1]}, T: {"uniform": [0.0, 1.0]}, LOSS: {"choice": ["dice", "cross-entropy"]}}
TUNE = {"target": "val/jaccard", "direction": None, "pretrain": {"target": "cells"}}
CONTENT = {"tune": TUNE, "ranges": RANGES}
NAN = math.nan


def row(chosen, value=NAN, search="finetune for a=x", told="complete", scores=None, confirmed=False):
    return {
        "search": f"search of {search}", "told": told, "value": value, "confirmed": confirmed,
        "scores": json.dumps([value] if scores is None else scores), "chosen": json.dumps(chosen),
    }  # fmt: skip


def read(*rows, **tune):
    return searches(pandas.DataFrame(rows), CONTENT | {"tune": TUNE | tune})


def line(points, options=False, log=False, group=None):
    x, y = np.array(points, np.float64).T
    return response_curve(x, y, np.zeros(len(x), int) if group is None else np.array(group), options, log)


# ----------------------------------------------------------------------------------------------------------- reading


def test_a_shared_pretraining_is_a_search_of_its_own_with_its_own_target():
    rows = row({T: 0.1}, 0.9, "pretrain for a=x and a=y ..."), row({LR: 0.1}, 0.5)
    pretraining, finetuning = read(*rows, pretrain={"target": "probe.knn"})
    assert (pretraining.name, finetuning.name) == ("pretraining of a=x and a=y ...", "fine-tuning of a=x")
    assert (pretraining.metric, finetuning.metric) == ("probe/knn/accuracy", "val/jaccard")
    assert (pretraining.stage, finetuning.stage) == ("pretrain", "finetune")
    groups = panel_groups(read(*rows, row({T: 0.2}, 0.8, "pretrain for a=x and a=y ..."), pretrain={}), RANGES)
    assert [(group.stage, [panel.parameter for panel in group.panels]) for group in groups] == [("pretrain", [T])]


def test_a_pretext_loss_is_minimised():
    (found,) = read(row({T: 0.1}, 0.9, "pretrain for a=x"), pretrain={"target": "pretext"})
    assert (found.metric, found.minimize) == ("val/pretext_loss", True)


@pytest.mark.parametrize(
    ("told", "value", "ending", "score"),
    [
        ("infeasible", NAN, "diverged", NAN),
        ("infeasible", 0.4, "beyond a constraint", 0.4),
        ("failed", NAN, "crashed", NAN),
        ("unscored", NAN, "without a score", NAN),
        ("partial", 0.3, "raced out", 0.3),
    ],
)
def test_every_ending_is_kept_as_what_it_is(told, value, ending, score):
    (found,) = read(row({LR: 0.1}, value, told=told, scores=[]))
    (lost,) = found.lost
    assert found.trials == ()
    assert (lost.ending, lost.score) == (ending, pytest.approx(score, nan_ok=True))


def test_scores_by_seed_an_option_by_its_place_and_what_was_confirmed_are_read():
    (found,) = read(row({LOSS: "cross-entropy"}, 0.5, scores=[0.4, None, 0.6], confirmed=True))
    (trial,) = found.trials
    assert (trial.values, dict(trial.by_seed), trial.n) == ({LOSS: 1}, {0: 0.4, 2: 0.6}, 2)
    assert trial.confirmed


def test_a_parameter_counts_as_varied_by_trials_of_any_ending():
    (found,) = read(row({LR: 0.1, T: 0.5}, 0.3), row({LR: 0.2, T: 0.5}, told="infeasible"))
    assert varied(found) == (LR,)
    assert searches(pandas.DataFrame(), CONTENT) == ()


def test_only_points_laid_out_beforehand_are_a_design():
    kinds = {"grid": DESIGNED, "qmc": DESIGNED, "random": DESIGNED, "tpe": BIASED, "gp": BIASED, "nsga2": BIASED}
    for sampler, text in kinds.items():
        assert origin(read(row({LR: 0.1}, 0.9), sampler=sampler)) == text


# ------------------------------------------------------------------------------------------------------------- panels


def test_a_panel_holds_all_cells_and_each_trial_as_what_it_is():
    rows = [row({LR: 10.0**-i}, i / 10, scores=[i / 10 - 0.1, i / 10 + 0.1], confirmed=i == 3) for i in (1, 2, 3)]
    rows += [row({LR: 0.05}, told="infeasible"), row({LR: 0.02}, 0.2, told="partial")]
    rows += [row({LR: 0.01}, 0.7, "finetune for a=y"), row({LR: 0.02}, 0.8, "finetune for a=y")]
    (panel,) = panels(read(*rows), RANGES)
    first, second = panel.searches
    assert (panel.parameter, panel.metric, panel.log) == (LR, "val/jaccard", True)
    assert first.x == pytest.approx([0.001, 0.01, 0.1])
    assert first.score == pytest.approx([0.3, 0.2, 0.1])
    assert first.std == pytest.approx([0.2 / math.sqrt(2)] * 3)
    assert first.confirmed.tolist() == [True, False, False]
    assert (first.partial_x.tolist(), first.partial_score.tolist()) == ([0.02], [0.2])
    assert [(end, x.tolist()) for end, x in first.failed] == [("diverged", [0.05])]
    assert second.x.tolist() == [0.01, 0.02]
    assert panel.failures == "1 of 7 diverged, at 0.05"


def test_a_cell_that_is_better_everywhere_does_not_tilt_the_curve():
    """Cells a and b score x and x + 5; a has its trials on the left, b on the right, two of each in common."""
    points = [(1, 1), (2, 2), (3, 3), (3, 8), (2, 7), (4, 9)]
    found = line(points, group=[0, 0, 0, 1, 1, 1])
    assert found.x.tolist() == [1, 2, 3, 4]
    assert found.mean == pytest.approx([3.5, 4.5, 5.5, 6.5])


def test_few_values_have_their_means_and_students_interval_with_the_pooled_spread():
    found = line([(0, 1.0), (0, 3.0), (1, 6.0), (1, 8.0)])
    half = stats.t.ppf(0.975, 2) * math.sqrt(2) / math.sqrt(2)  # pooled variance 2, two trials each
    assert found.mean == pytest.approx([2, 7])
    assert found.low == pytest.approx([2 - half, 7 - half])


@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-3, 3))
def test_a_spline_holds_a_line_exactly(seed, slope, offset):
    x = np.exp(np.random.default_rng(seed).uniform(0, 5, 20))
    found = line(list(zip(x, offset + slope * np.log(x), strict=True)), log=True)
    assert found.mean == pytest.approx(offset + slope * np.log(found.x), abs=1e-6)
    assert (found.x.min(), found.x.max()) == (pytest.approx(x.min()), pytest.approx(x.max()))


def test_the_curves_interval_covers_the_truth():
    """It holds a smooth truth at every point in 95 % of 400 studies, up to four standard errors."""
    generator, covered = np.random.default_rng(0), []
    for _ in range(400):
        x = generator.uniform(0, 1, 24)
        found = line(list(zip(x, 2 * x + 0.3 * generator.normal(size=24), strict=True)))
        covered.append((found.low <= 2 * found.x) & (2 * found.x <= found.high))
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 400))


def test_too_few_trials_have_no_curve_and_one_value_has_none():
    assert line([(i, i) for i in range(7)], group=[0, 0, 0, 0, 1, 1, 1]) is None
    assert line([(1, 0.1), (1, 0.2)]) is None
    assert np.isnan(line([(1, 0.1), (2, 0.2)]).low).all()


# ----------------------------------------------------------------------------------------------------------- failures


def failed_at(lost, kept, options=(), parameters=1, told="infeasible"):
    names = options or ()
    rows = [row({LR: names[x] if names else x}, told=told) for x in lost]
    rows += [row({LR: names[x] if names else x}, 0.5) for x in kept]
    ranges = {LR: {"choice": list(options)}} if options else RANGES
    (search,) = searches(pandas.DataFrame(rows), {"tune": TUNE, "ranges": ranges})
    (panel,) = panels([search], ranges)
    return failures(panel.searches, panel.options, parameters)


def test_where_trials_failed_is_said():
    low, high = [0.0001 * i for i in range(1, 9)], [0.01 * i for i in range(1, 5)]
    assert failed_at(high, low) == "4 of 12 diverged, all above 0.0008"
    assert failed_at(low[:4], high, told="failed") == "4 of 8 crashed, all below 0.01"
    assert failed_at([0.005, *high], [*low, 0.007]) == "5 of 14 diverged, more often at high values (0.005 to 0.04)"
    assert failed_at([], low) == ""


def test_two_failures_that_happen_to_be_the_highest_are_no_cliff():
    """By chance two of six are the highest or lowest in 2 of 15 cases."""
    assert failed_at([0.05, 0.06], [0.01, 0.02, 0.03, 0.04]) == "2 of 6 diverged, from 0.05 to 0.06"
    assert failed_at([0.01 * i for i in (5, 6, 7, 8)], [0.01, 0.02, 0.03, 0.04], parameters=9).endswith("0.05 to 0.08")


def test_failures_of_an_option_are_counted_by_option():
    assert (
        failed_at([1, 1, 0], [0, 0, 0, 1], ("dice", "focal")) == "3 of 7 diverged, 1 of 4 with dice, 2 of 3 with focal"
    )


@pytest.mark.parametrize("n", [8, 24])
def test_that_failures_lie_on_one_side_is_claimed_in_five_percent_of_studies_without_any_cause(n):
    generator, claims = np.random.default_rng(n), 0
    for _ in range(300):
        x = np.exp(generator.uniform(-9, -2, n))
        lost = generator.uniform(size=n) < 0.3
        if lost.any() and not lost.all():
            trials = tuple(ScoredTrial({LR: float(v)}, 0.5, 1) for v in x[~lost])
            (search,) = read(*(row({LR: float(v)}, told="infeasible") for v in x[lost]))
            (panel,) = panels([SearchRuns("s", "m", False, trials, lost=search.lost)], RANGES)
            claims += "all" in panel.failures or "more often" in panel.failures
    assert claims / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
