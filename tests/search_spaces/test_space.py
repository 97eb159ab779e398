"""Ranges: their parsing, their Optuna distributions, branches, and the order in which they are asked."""

import math
import re
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pretune.search.samplers import at, values_of
from pretune.search_spaces.space import (
    Choice,
    Int,
    LogUniform,
    Subset,
    Uniform,
    centre,
    fill,
    is_range,
    parse_ranges,
    ranges,
    representatives,
    suggest_from,
    to_plain,
)

BRANCHES = {
    "method": {"choice": [{"name": "simclr", "temperature": {"uniform": [0.1, 0.5]}}, {"name": "byol", "tau": 0.99}]},
    "lr": {"log_uniform": [1e-4, 1e-2]},
}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"choice": ["adam", "sgd"]}, Choice(("adam", "sgd"))),
        ({"uniform": [0, 1]}, Uniform(0.0, 1.0)),
        ({"log_uniform": ["1e-4", 0.01]}, LogUniform(1e-4, 0.01)),  # YAML reads 1e-4, without a dot, as a word
        ({"int": [2, 8]}, Int(2, 8)),
        ({"log_int": [2, 8]}, Int(2, 8, log=True)),
        ({"subset": ["elastic", "solarize"]}, Subset(("elastic", "solarize"))),
        ({"choice": [{"int": [1, 2]}, 9]}, Choice((Int(1, 2), 9))),
        ({"lr": {"uniform": [0, 1]}, "b": [{"int": [1, 2]}]}, {"lr": Uniform(0.0, 1.0), "b": [Int(1, 2)]}),
        ({"int": 3, "uniform": 4}, {"int": 3, "uniform": 4}),  # two keys: settings, not a range
    ],
)
def test_ranges_are_parsed_wherever_they_stand_and_written_back(written, meant):
    assert parse_ranges(written) == meant
    assert parse_ranges(to_plain(meant)) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"uniform": [1, 0]}, r"uniform needs low < high, received \[1, 0\]"),
        ({"uniform": [1, 1]}, "uniform needs low < high"),
        ({"uniform": [1]}, r"uniform needs two numbers \[low, high\], received \[1\]"),
        ({"uniform": ["a", 2]}, "uniform needs two numbers"),
        ({"uniform": [1, 10**400]}, "uniform needs two numbers"),
        ({"uniform": [0, math.inf]}, "uniform needs low < high"),
        ({"uniform": [math.nan, 1]}, "uniform needs low < high"),
        ({"log_uniform": [0, 1]}, "log_uniform needs bounds above 0"),
        ({"log_int": [0, 4]}, "log_int needs bounds above 0"),
        ({"int": [1, 2.5]}, r"int needs whole numbers, received \[1, 2.5\]"),
        ({"choice": []}, "choice needs a list"),
        ({"subset": "elastic"}, "subset needs a list, received 'elastic'"),
        ({"subset": ["a", "b", "a"]}, "subset names an item twice"),
        ({"choice": [{"uniform": [2, 1]}]}, "uniform needs low < high"),
        (Uniform(2, 1), "uniform needs low < high"),
    ],
)
def test_a_malformed_range_says_the_rule_and_what_was_received(written, message):
    with pytest.raises(ValueError, match=message):
        parse_ranges({"key": written})


@pytest.mark.parametrize(
    ("item", "distributions"),
    [
        (Uniform(0.1, 0.5), {"x": FloatDistribution(0.1, 0.5)}),
        (LogUniform(1e-4, 1e-2), {"x": FloatDistribution(1e-4, 1e-2, log=True)}),
        (Int(2, 8), {"x": IntDistribution(2, 8)}),
        (Int(2, 8, log=True), {"x": IntDistribution(2, 8, log=True)}),
        (Choice(("adam", 3, True)), {"x": CategoricalDistribution(("adam", "3", "true"))}),
        (
            Subset(("elastic", "solarize")),
            {f"x[{name}]": CategoricalDistribution((False, True)) for name in ("elastic", "solarize")},
        ),
    ],
)
def test_each_range_is_this_optuna_distribution(item, distributions):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    fill({"x": item}, suggest_from(trial))
    assert trial.distributions == distributions


@pytest.mark.parametrize(
    ("params", "filled", "asked"),
    [
        (
            {"method": "simclr", "method[simclr].temperature": 0.3, "lr": 1e-3},
            {"method": {"name": "simclr", "temperature": 0.3}, "lr": 1e-3},
            ["method", "method[simclr].temperature", "lr"],
        ),
        ({"method": "byol", "lr": 1e-3}, {"method": {"name": "byol", "tau": 0.99}, "lr": 1e-3}, ["method", "lr"]),
    ],
)
def test_a_branch_has_its_own_ranges_only_where_it_was_chosen(params, filled, asked):
    trial = optuna.trial.FixedTrial(params)
    assert fill(parse_ranges(BRANCHES), suggest_from(trial)) == filled
    assert list(trial.params) == asked


def test_all_ranges_are_listed_those_of_every_branch_included():
    found = dict(ranges(parse_ranges({"a": [BRANCHES]})))
    assert list(found) == ["a.0.method", "a.0.method[simclr].temperature", "a.0.lr"]
    assert found["a.0.method[simclr].temperature"] == Uniform(0.1, 0.5)


def test_subset_is_one_yes_or_no_per_item_in_the_order_of_the_file():
    trial = optuna.trial.FixedTrial({"x[c]": True, "x[a]": False, "x[b]": True})
    assert fill({"x": Subset(("c", "a", "b"))}, suggest_from(trial)) == {"x": ["c", "b"]}


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (("adam", 0.5, None, True), ("adam", "0.5", "null", "true")),
        (({"name": "sgd", "lr": 1}, {"name": "sgd", "lr": 2}, "adam"), ("sgd#0", "sgd#1", "adam")),
        ((1, "1"), ("1#0", "1#1")),
        (({"dataset": "scenes"}, {"b": 2, "a": 1}), ("scenes", '{"a": 1, "b": 2}')),
        (([8, 16], [8, 32]), ("[8, 16]", "[8, 32]")),
    ],
)
def test_options_have_distinct_readable_labels(options, labels):
    assert Choice(options).labels() == labels


@pytest.mark.parametrize(
    ("item", "middle"),
    [
        (Uniform(0.0, 1.0), 0.5),
        (LogUniform(0.01, 1.0), 0.1),
        (Int(2, 8), 5),
        (Int(2, 8, log=True), 4),
        (Choice(("a", "b")), 0),
        (Subset(("a",)), []),
    ],
)
def test_centres(item, middle):
    assert centre("x", item) == pytest.approx(middle)
    assert fill({"x": item}, centre)["x"] == ("a" if isinstance(item, Choice) else pytest.approx(middle))


@pytest.mark.parametrize(
    ("item", "ends"),
    [
        (Choice(("a", "b", "c")), (0, 1, 2)),
        (Subset(("a", "b")), ((), ("a", "b"))),
        (Int(1, 9), (1, 9, 2, 3, 4, 5, 6, 7, 8)),
        (Int(8, 16, step=4), (8, 16, 12)),
        (Int(1, 100), (1, 100, 2, 51, 99)),
        (Uniform(0.5, 1.0, 0.25), (0.5, 1.0, 0.75)),
    ],
)
def test_representatives_are_the_ends_every_option_and_points_inside(item, ends):
    assert representatives(item) == ends


@pytest.mark.parametrize("item", [Uniform(2, 8), LogUniform(1, 100)])
def test_a_representative_of_a_continuous_range_is_no_whole_number(item):
    low, high, inside = representatives(item)
    assert (low, high) == (item.low, item.high)
    assert low < inside < high
    assert not inside.is_integer()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"int": [8, 16], "step": 3}, "steps of 3 from 8 do not end at 16; end at 14, or choose another step"),
        ({"int": [8, 16], "step": 9}, "do not end at 16; choose another step"),
        ({"int": [8, 16], "step": 0}, "step should be a number above 0, received 0"),
        ({"int": [8, 16], "step": True}, "step should be a number above 0, received True"),
        ({"int": [8, 16], "step": 0.5}, "int needs whole numbers"),
        ({"log_int": [8, 16], "step": 4}, "log_int has no step"),
        ({"choice": [8, 16], "step": 4}, "choice has no step"),
        ({"uniform": [0.0, 1.0], "step": 0.3}, "end at 0.9, or"),
        ({"uniform": [True, 2]}, "uniform needs two numbers"),
        ({"choice": ["1#1", 1, "1"]}, "choice has options that are told apart by nothing"),
    ],
)
def test_a_step_leads_from_end_to_end(written, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_ranges(written)


@given(st.integers(-20, 20), st.integers(1, 7), st.integers(1, 30), st.booleans())
def test_whatever_asks_a_range_with_a_step_gets_one_of_its_values(low, step, count, whole):
    """Optuna, a grid, Sobol points, the centre and the values tried, for whole numbers and for halves of them."""
    scale = 1 if whole else 0.5
    item = parse_ranges(
        {"int" if whole else "uniform": [low * scale, (low + count * step) * scale], "step": step * scale}
    )
    assert parse_ranges(to_plain(item)) == item
    values = [(low + i * step) * scale for i in range(count + 1)]
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    asked = [suggest_from(trial)("x", item), centre("x", item), *representatives(item), *values_of(item, 5)]
    asked += [at(item, [u]) for u in (0.0, 0.3, 0.999)]
    assert all(min(abs(one - value) for value in values) < 1e-9 for one in asked)
    assert {at(item, [(i + 0.5) / len(values)]) for i in range(len(values))} == set(values)


@given(low=st.floats(-10, 10), step=st.floats(0.01, 3), count=st.integers(1, 40))
def test_the_last_step_is_tried_however_its_digits_are_rounded(low, step, count):
    """Optuna counts steps in decimal digits: pi / 4 to 15 pi / 4 by pi / 2 would end one step early."""
    item = parse_ranges({"uniform": [low, low + count * step], "step": step})
    assert parse_ranges(to_plain(item)) == item
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = optuna.distributions.FloatDistribution(item.low, item.high, step=item.step)
    assert known.high == pytest.approx(low + count * step, abs=1e-9 * step + 1e-12)


numbers = st.floats(1e-6, 1e6)
leaves = st.one_of(
    st.integers(0, 9),
    st.sampled_from(["adam", "sgd", "10%"]),
    st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: Uniform(*pair)),
    st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: LogUniform(*pair)),
    st.tuples(st.integers(1, 50), st.integers(51, 99), st.booleans()).map(lambda parts: Int(*parts)),
    st.lists(st.sampled_from("abcd"), min_size=1, unique=True).map(lambda items: Subset(tuple(items))),
)
templates = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["lr", "name", "views"]), inner, min_size=1),
        st.lists(inner, max_size=3),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: Choice(tuple(options))),
    ),
    max_leaves=8,
)


@given(templates)
def test_plain_form_and_ranges_are_the_same_thing(template):
    assert parse_ranges(to_plain(template)) == template


@given(templates, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_filling_leaves_no_range_and_asks_only_for_listed_ones(template, seed):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    asked = []

    def suggest(name, item):
        asked.append((name, item))
        return suggest_from(trial)(name, item)

    filled = fill(template, suggest, "x")
    assert not list(ranges(filled))
    listed = list(ranges(template, "x"))
    assert all(item in listed for item in asked)
    again = optuna.trial.FixedTrial(trial.params)
    assert fill(template, suggest_from(again), "x") == filled  # what Optuna stored says it all


@pytest.mark.parametrize(("value", "answer"), [(Int(1, 2), True), (Subset(("a",)), True), ({"int": [1, 2]}, False)])
def test_what_a_range_is(value, answer):
    assert is_range(value) is answer
