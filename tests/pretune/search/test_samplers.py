"""Designs and samplers: what they lay out, and that each of them learns or covers as it should."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.search.optuna_study import open_search
from pretune.search.replicates import TrialResult
from pretune.search.samplers import at, grid, grid_size, sampler, sobol, values_from, values_of
from pretune.search_spaces import schema, space

TEMPLATE = {
    "lr": space.LogUniform(1e-4, 1e-1),
    "depth": space.Int(1, 3),
    "extra": space.Subset(("a", "b")),
    "method": space.Choice(({"name": "x", "temperature": space.Uniform(0.0, 1.0)}, {"name": "y"})),
}


def walk(suggest: space.Suggest) -> object:
    return space.fill(TEMPLATE, suggest)


def test_a_grid_is_the_product_of_its_axes_with_branches_only_where_they_are() -> None:
    points = [values_from(params, walk) for params in grid(walk, 3)]
    assert len(points) == 3 * 3 * 4 * (3 + 1) == grid_size(walk, 3)
    plain = [tuple(sorted((k, str(v)) for k, v in point.items())) for point in points]
    assert len(set(plain)) == len(points)
    rates = sorted({point["lr"] for point in points})
    assert rates == pytest.approx([1e-4, 10**-2.5, 1e-1])
    assert all(("method[x].temperature" in point) == (point["method"] == 0) for point in points)


def test_a_grid_of_plain_axes_is_itertools_product() -> None:
    flat = {"a": space.Int(1, 3), "b": space.Choice(("u", "v")), "c": space.Uniform(0.0, 1.0)}

    def flat_walk(suggest: space.Suggest) -> object:
        return space.fill(flat, suggest)

    points = [tuple(values_from(p, flat_walk).values()) for p in grid(flat_walk, 3)]
    assert points == list(itertools.product([1, 2, 3], [0, 1], [0.0, 0.5, 1.0]))


def test_a_grid_cut_short_is_no_corner_and_a_longer_one_begins_alike() -> None:
    """Of 36 points over four decades the first nine are not the nine lowest."""
    tune = schema.Tune(sampler="grid", trials=9, points=36)
    item = {"lr": space.LogUniform(1e-4, 1e-1)}

    def line(suggest: space.Suggest) -> object:
        return space.fill(item, suggest)

    def asked(count: int) -> list[float]:
        study = optuna.create_study()
        found = []
        for index in range(count):
            study.sampler = sampler(tune, "s", index, line)
            found.append(study.ask().suggest_float("lr", 1e-4, 1e-1, log=True))
        return found

    assert asked(36)[:9] == asked(9)
    assert sorted(asked(36)) == pytest.approx(list(np.geomspace(1e-4, 1e-1, 36)))
    assert min(asked(9)) < 1e-3
    assert max(asked(9)) > 1e-2


def test_axes_end_at_the_ends_of_their_ranges() -> None:
    assert values_of(space.Uniform(0.25, 0.75), 3) == [0.25, 0.5, 0.75]
    assert values_of(space.Int(1, 100, log=True), 3) == [1, 10, 100]
    assert values_of(space.Int(1, 4), 5) == [1, 2, 3, 4]


def test_a_quasi_random_sequence_covers_evenly_and_each_point_stands_alone() -> None:
    points = [values_from(sobol(walk, index, 7), walk) for index in range(32)]
    cells = np.histogram([np.log10(point["lr"]) for point in points], bins=8, range=(-4, -1))[0]
    assert list(cells) == [4] * 8  # a Sobol sequence of 2^5 points has as many in each 8th
    assert sum(point["method"] for point in points) == 16
    assert points[17] == values_from(sobol(walk, 17, 7), walk)
    assert points[0] != values_from(sobol(walk, 0, 8), walk)


@given(u=st.floats(0, 1, exclude_max=True))
def test_every_coordinate_gives_a_value_of_the_range(u: float) -> None:
    assert at(space.Choice(("a", "b", "c")), [u]) in (0, 1, 2)
    assert 1 <= at(space.Int(1, 5), [u]) <= 5
    assert 1 <= at(space.Int(1, 1000, log=True), [u]) <= 1000
    assert 0.1 <= at(space.Uniform(0.1, 0.3), [u]) <= 0.3
    assert 1e-4 <= at(space.LogUniform(1e-4, 1e-1), [u]) <= 1e-1


BOWL = {"a": space.Uniform(0.0, 1.0), "b": space.Uniform(0.0, 1.0)}


def close(name: str) -> float:
    """The mean distance to the best point of the nearest third of the trials after the random ones."""
    tune = schema.Tune.model_validate({"sampler": name, "startup": 12, "batch": 4, "population": 8, "seed": 3})
    search = open_search(optuna.storages.InMemoryStorage(), name, tune, ["maximize"])
    distances: list[float] = []
    for first in range(0, 48, 4):
        batch = range(first, first + 4)
        asked = {i: search.suggest(i, lambda suggest: space.fill(BOWL, suggest)) for i in batch}
        for i, values in asked.items():
            distances.append(float(np.hypot(values["a"] - 0.7, values["b"] - 0.2)))
            search.tell(i, TrialResult("complete", -distances[-1]))
    return float(np.mean(sorted(distances[12:])[:12]))


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "genetic"])
def test_a_sampler_that_learns_does_better_than_chance_in_batches(name: str) -> None:
    """On average: the nearest, since some look far off on purpose. 12 of 36 random points are within about 0.22."""
    assert close(name) < 0.7 * close("random")


def test_stored_suggestions_are_preferred_and_counted() -> None:
    tune = schema.Tune.model_validate({"sampler": "random", "prefer_stored": 8})
    template = {"size": space.Choice(("s", "m", "l", "xl"))}

    def sizes_of_trials() -> tuple[list[Any], int]:
        search = open_search(optuna.storages.InMemoryStorage(), "s", tune, ["maximize"])
        asked = [
            search.suggest(i, lambda suggest: space.fill(template, suggest), lambda v: v["size"] == 2)
            for i in range(12)
        ]
        return [values["size"] for values in asked], search.preferred

    sizes, preferred = sizes_of_trials()
    assert sizes.count(2) >= 10
    assert 0 < preferred <= 12
    assert sizes_of_trials() == (sizes, preferred)
