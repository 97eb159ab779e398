"""The best of n trials: worked by hand, against all orders by brute force, and silent where nothing can be said."""

import itertools
import json
import math

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.known_truths import FOUR, LR, RANGES, searched
from pretune.analysis.figures.budget import budget_plot
from pretune.analysis.questions.budget import budgets, chances
from pretune.analysis.questions.searched import LostTrial, ScoredTrial, SearchRuns, searches

AHEAD = "what as many trials again may bring"


def search(scores, lost=(), minimize=False, sampler="random", **changed):
    """`scores`: one row of seeds per trial; `lost`: places of trials that diverged."""
    places = iter(i for i in range(len(scores) + len(lost)) if i not in lost)
    trials = tuple(
        ScoredTrial({"lr": 0.1}, float(np.mean(row)), len(row), dict(enumerate(row)), position=next(places))
        for row in scores
    )
    gone = tuple(LostTrial({"lr": 0.1}, "diverged", math.nan, place) for place in lost)
    return SearchRuns("s", "m", minimize, trials, sampler in ("random", "qmc", "grid"), gone, sampler=sampler)._replace(
        **changed
    )


def test_the_chances_of_four_trials_by_hand():
    """Two of four: the largest is 2, 3 or 4 in 1, 2 and 3 of 6 pairs."""
    assert chances(4, np.array([1, 2, 4])).tolist() == [
        pytest.approx([1 / 4] * 4), pytest.approx([0, 1 / 6, 2 / 6, 3 / 6]), pytest.approx([0, 0, 0, 1]),
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6), st.booleans())
def test_the_expected_best_is_the_mean_over_all_orders(scores, minimize):
    (found,) = budgets([search([[score] for score in scores], minimize=minimize)])
    best = min if minimize else max
    for place, n in enumerate(found.n):
        orders = [best(order[:n]) for order in itertools.permutations(scores)]
        assert found.expected[place] == pytest.approx(np.mean(orders), abs=1e-12)


def test_what_chooses_does_not_score():
    """Seeds (0.9, 0.1), (0.5, 0.6), (0.4, 0.4): seed 0 chooses the first, which seed 1 scores 0.1; seed 1 chooses the
    second, which seed 0 scores 0.5: 0.3 of all three. The best mean, 0.55, is what the choice saw."""
    (found,) = budgets([search([[0.9, 0.1], [0.5, 0.6], [0.4, 0.4]])])
    assert found.held_out
    assert found.expected[-1] == pytest.approx(0.3)
    assert found.best.tolist() == pytest.approx([0.5, 0.55, 0.55])
    assert found.expected[0] == pytest.approx(np.mean([0.5, 0.55, 0.4]))


def test_lost_trials_take_their_place_in_the_budget():
    """The first of four trials diverged. One at random that has a score has 0.5; of the 6 pairs all have one: 0.4 is
    the best in 1, 0.5 in 2 and 0.6 in 3."""
    (found,) = budgets([search([[0.4], [0.6], [0.5]], lost=[0])])
    assert found.best.tolist() == pytest.approx([math.nan, 0.4, 0.6, 0.6], nan_ok=True)
    assert found.expected[0] == pytest.approx(0.5)
    assert found.expected[1] == pytest.approx((0.4 + 2 * 0.5 + 3 * 0.6) / 6)
    assert found.sentence.startswith("the best of 4 trials was number 3")


def rows(score, trials=48, seeds=3, noise=0.01, cells=FOUR[:1]):
    return searched(cells, trials, score, np.random.default_rng(1), seeds=seeds, noise=noise)


def found_in(score, sampler="random", **more):
    content = {"tune": {"sampler": sampler}, "ranges": RANGES}
    return budgets(searches(pandas.DataFrame(rows(score, **more)), content))[0]


def test_a_search_in_which_nothing_matters_is_not_rising():
    found = found_in(lambda values, cell: 0.6)
    assert found.gain.low < 0 < found.gain.high
    assert found.trend == "flat"
    short = found_in(lambda values, cell: 0.6, trials=8, seeds=2)
    assert short.trend == "open"
    assert short.sentence.startswith(
        "it is open whether more trials help: the second half of 8 trials improved the best by "
    )


def test_one_good_region_that_many_trials_find_is_flat():
    found = found_in(lambda values, cell: 0.7 if values[LR] > 1e-3 else 0.4, noise=0.02)
    assert found.trend == "flat"
    assert found.ahead < found.noise == pytest.approx(0.02, rel=0.3)
    assert found.sentence.startswith("flat: 48 more trials would bring at most 0.0")
    assert ", which is less than the noise of seeds (0.0" in found.sentence


def test_a_needle_that_luck_finds_is_still_rising():
    found = found_in(lambda values, cell: 0.5 + 0.1 * math.log10(values[LR] / 1e-4) ** 3, trials=16, noise=0.005)
    assert found.trend == "rising"
    assert found.gain.low > 0
    assert found.ahead == pytest.approx(2 * found.gain.high)
    assert "the second half of 16 trials improved the best by +" in found.sentence


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler": "tpe"}, "more trials cannot be predicted"), ({"sampler": "grid"}, ""),
        ({"seeds": 1}, "the noise in this rise is unknown"), ({"trials": 7}, "too few to say"),
    ],
)  # fmt: skip
def test_nothing_is_said_of_more_trials_where_nothing_is_known(changed, said):
    found = found_in(lambda values, cell: 0.6 + 0.1 * values[LR], **changed)
    assert (found.trend, math.isnan(found.ahead), math.isnan(found.gain.high)) == ("", True, True)
    assert said in found.sentence
    assert len(found.n) == (0 if changed.get("sampler") == "tpe" else len(found.n))
    names = {trace.name for trace in budget_plot([found]).data if trace.name}
    assert AHEAD not in names


def test_two_trials_or_none_with_a_score_have_no_curve():
    assert budgets([search([[0.5], [0.6]])]) == ()
    assert budgets([search([], lost=[0, 1, 2, 3])]) == ()


def test_of_a_loss_the_wedge_points_down():
    found = found_in(lambda values, cell: 0.5 + 0.1 * math.log10(values[LR] / 1e-4) ** 3, trials=16, noise=0.005)
    (wedge,) = [trace for trace in budget_plot([found._replace(minimize=True)]).data if trace.name == AHEAD]
    assert wedge.y[1] == pytest.approx(found.expected[-1] - found.ahead)


def test_the_wedge_is_drawn_to_twice_the_trials_and_on_the_side_that_is_better():
    found = found_in(lambda values, cell: 0.5 + 0.1 * math.log10(values[LR] / 1e-4) ** 3, trials=16, noise=0.005)
    figure = budget_plot([found, found])
    json.dumps(figure.to_plotly_json(), allow_nan=False, default=list)
    (wedge, _) = [trace for trace in figure.data if trace.name == AHEAD]
    last = found.expected[-1]
    assert list(wedge.x) == [16, 32, 32, 16]
    assert list(wedge.y) == pytest.approx([last, last + found.ahead, last, last])
    assert [trace.showlegend for trace in figure.data if trace.name].count(True) == 3
