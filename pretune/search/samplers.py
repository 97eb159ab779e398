"""The samplers by name, which suggest the values of a trial.

Two kinds. A *design* lays its points out beforehand, whatever is found: a grid, or a quasi-random sequence (Sobol,
scrambled; Bergstra and Bengio 2012 for why not a grid). A *sampler* of Optuna learns from trial results. Both are
functions of (study seed, search, index of the trial, earlier trial results), never of timing.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState

from pretune.search.replicates import Values
from pretune.search_spaces import schema, space

OVER = "pretune:over"  # user attribute: by how much each constraint is exceeded
MAX_GRID = 100_000

Params = dict[str, Any]  # as Optuna knows them: one for each item of a subset, labels for a choice
SpaceVisitor = Callable[[space.Suggest], object]  # calls the function that it is given for every range of the space


def sampler(tune: schema.Tune, name: str, index: int, visit: SpaceVisitor, attempt: int = 0) -> BaseSampler:
    """The sampler that suggests trial `index` of the search `name`.

    The first `startup` trials of one that learns are random; of a population the first generation is.
    """
    seed = seed_of(tune, name, f"{index}" if attempt == 0 else f"{index}.{attempt}")
    if tune.sampler == "grid":
        point = grid_order(grid_size(visit, tune.points), seed_of(tune, name, "grid"))[index]
        return fixed(nth(grid(visit, tune.points), point), RandomSampler(seed=seed))
    if tune.sampler == "qmc":
        return fixed(sobol(visit, index, seed_of(tune, name, "sobol")), RandomSampler(seed=seed))
    begins_at_random = tune.sampler not in ("nsga2", "genetic")  # these draw their first population themselves
    if tune.sampler == "random" or (index < tune.startup and begins_at_random):
        return RandomSampler(seed=seed)
    if tune.sampler == "cmaes":
        seed = (seed - index) % 2**31  # as searches were seeded from the start: another seed is another search
    with announcements_ignored():
        return LEARNING[tune.sampler](tune, seed)


def seed_of(tune: schema.Tune, name: str, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{tune.seed}:{name}:{what}".encode()).digest()[:4], "big")


def fixed(params: Params, other: BaseSampler) -> BaseSampler:
    """A sampler that suggests what is given; `other` suggests the rest."""
    with announcements_ignored():
        return PartialFixedSampler(params, other)


@contextlib.contextmanager
def announcements_ignored() -> Iterator[None]:
    """Silence Optuna's announcements: `constraints_func` is experimental in Optuna 4 and to be replaced in 7."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


class SearchSampler(BaseSampler):
    """The one sampler of a search's Optuna study: each trial is drawn by a sampler of its own, made anew for it.

    Optuna writes a trial's constraints down when it is told, and only if the study's sampler has a `constraints_func`.
    This one has, whichever sampler drew the trial and whether or not that was in this process.
    """

    def __init__(self, tune: schema.Tune) -> None:
        with announcements_ignored():
            self._recorder = TPESampler(constraints_func=constraint_of(tune))
        self._drawing: BaseSampler = RandomSampler()
        self._index = 0

    def draw_next(self, sampler: BaseSampler, index: int) -> None:
        """Let `sampler` draw the next trial, which is number `index` of the search."""
        self._drawing, self._index = sampler, index

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._drawing.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if isinstance(
            self._drawing, CmaEsSampler
        ):  # it adds the trial's number to its seed, which counts failed trials
            trial = copy.copy(trial)
            trial.number = self._index
        return self._drawing.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._drawing.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._drawing.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._recorder.after_trial(study, trial, state, values)


# --------------------------------------------------------------------------------------------------- that learn


def tpe(tune: schema.Tune, seed: int) -> BaseSampler:
    return TPESampler(
        n_startup_trials=1, seed=seed, multivariate=False, constant_liar=True, constraints_func=constraint_of(tune)
    )


def gp(tune: schema.Tune, seed: int) -> BaseSampler:
    return GPSampler(n_startup_trials=1, seed=seed, deterministic_objective=False, constraints_func=constraint_of(tune))


def cmaes(tune: schema.Tune, seed: int) -> BaseSampler:
    return CmaEsSampler(n_startup_trials=1, seed=seed, popsize=max(tune.batch, 4), warn_independent_sampling=False)


def nsga2(tune: schema.Tune, seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=tune.population, seed=seed, constraints_func=constraint_of(tune))


# With a single target NSGA-II is an elitist genetic algorithm: tournaments, uniform crossover, mutation.
LEARNING: dict[str, Callable[[schema.Tune, int], BaseSampler]] = {
    "tpe": tpe,
    "gp": gp,
    "cmaes": cmaes,
    "nsga2": nsga2,
    "genetic": nsga2,
}


def constraint_of(tune: schema.Tune) -> Callable[[FrozenTrial], Sequence[float]]:
    """Constraint values of a trial; running trials count as feasible."""
    none = [-1.0] * (1 + len(tune.constraints))
    return lambda trial: [float(value) for value in trial.user_attrs.get(OVER, none)]


# ---------------------------------------------------------------------------------------------- laid out beforehand


def grid(visit: SpaceVisitor, points: int) -> Iterator[Params]:
    """Every combination, ranges inside a branch only with it; `points` values of a continuous range, ends included.

    An odometer: each round gives the ranges it meets the digits so far and zeros, then turns the last digit.
    """
    digits: list[int] = []
    while True:
        sizes: list[int] = []
        params: Params = {}

        def suggest(name: str, item: space.Range, sizes: list[int] = sizes, params: Params = params) -> Any:
            if len(sizes) == len(digits):
                digits.append(0)
            options = values_of(item, points)
            value = options[digits[len(sizes)]]
            sizes.append(len(options))
            params |= params_of(name, item, value)
            return value

        visit(suggest)
        yield params
        del digits[len(sizes) :]
        while digits and digits[-1] == sizes[len(digits) - 1] - 1:
            digits.pop()
        if not digits:
            return
        digits[-1] += 1


def grid_size(visit: SpaceVisitor, points: int) -> int:
    """Count the points of the grid, up to MAX_GRID."""
    return sum(1 for _, _ in zip(range(MAX_GRID), grid(visit, points), strict=False))


def grid_order(size: int, seed: int) -> list[int]:
    """Points in random order: a search of fewer trials than points sees all of the space, not a corner of it."""
    order: list[int] = np.random.default_rng(seed).permutation(size).tolist()
    return order


def nth(points: Iterator[Params], index: int) -> Params:
    for i, params in enumerate(points):
        if i == index:
            return params
    raise IndexError(f"the grid has no point {index}")


def values_of(item: space.Range, points: int) -> list[Any]:
    """The values of one axis of a grid."""
    if isinstance(item, space.Choice):
        return list(range(len(item.options)))
    if isinstance(item, space.Subset):
        return [[o for k, o in enumerate(item.of) if mask >> k & 1] for mask in range(2 ** len(item.of))]
    if isinstance(item, space.Int):
        steps = range(item.low, item.high + 1, item.step)
        if len(steps) <= points:
            return list(steps)
        if item.step > 1:
            return sorted({steps[round(float(at))] for at in np.linspace(0, len(steps) - 1, points)})
        spaced = (np.geomspace if item.log else np.linspace)(item.low, item.high, points)
        return sorted({round(float(value)) for value in spaced})
    if isinstance(item, space.Uniform) and item.step is not None:
        return list(dict.fromkeys(space.stepped(item, float(v)) for v in np.linspace(item.low, item.high, points)))
    spaced = (np.geomspace if isinstance(item, space.LogUniform) else np.linspace)(item.low, item.high, points)
    return [item.low, *(float(value) for value in spaced[1:-1]), item.high]


def sobol(visit: SpaceVisitor, index: int, seed: int) -> Params:
    """Point `index` of a scrambled Sobol sequence over all ranges, in the order of the visit.

    A range that is met only inside a branch takes the next free coordinate, so the sequence stays balanced over the
    ranges that are always there.
    """
    from scipy.stats import qmc

    sequence = qmc.Sobol(d=64, scramble=True, seed=seed)
    if index:  # SciPy counts 0 steps forward wrongly
        sequence.fast_forward(index)
    coordinates = sequence.random(1)[0]
    params: Params = {}
    used = 0

    def suggest(name: str, item: space.Range) -> Any:
        nonlocal used
        width = len(item.of) if isinstance(item, space.Subset) else 1
        own = [float(coordinates[(used + k) % len(coordinates)]) for k in range(width)]
        used += width
        value = at(item, own)
        params.update(params_of(name, item, value))
        return value

    visit(suggest)
    return params


def at(item: space.Range, u: Sequence[float]) -> Any:
    """The value of a range at coordinate(s) in [0, 1)."""
    if isinstance(item, space.Choice):
        return int(u[0] * len(item.options))
    if isinstance(item, space.Subset):
        return [option for option, share in zip(item.of, u, strict=True) if share >= 0.5]
    if isinstance(item, space.Int):
        if item.log:
            low, high = math.log(item.low), math.log(item.high + 1)
            return min(item.high, int(math.exp(low + u[0] * (high - low))))
        return min(item.high, item.low + item.step * int(u[0] * ((item.high - item.low) // item.step + 1)))
    if isinstance(item, space.LogUniform):
        return min(item.high, item.low * (item.high / item.low) ** u[0])
    if item.step is not None:
        return min(item.high, item.low + item.step * int(u[0] * (round((item.high - item.low) / item.step) + 1)))
    return item.low + u[0] * (item.high - item.low)


def params_of(name: str, item: space.Range, value: Any) -> Params:
    """A value of a range as Optuna's parameters: what `space.suggest_from` asks for."""
    if isinstance(item, space.Choice):
        return {name: item.labels()[value]}
    if isinstance(item, space.Subset):
        return {f"{name}[{option}]": option in value for option in item.of}
    return {name: value}


def values_from(params: Params, visit: SpaceVisitor) -> Values:
    """The values of every range that `params` lead to."""
    return suggested(space.suggest_from(optuna.trial.FixedTrial(params)), visit)


def suggested(suggest: space.Suggest, visit: SpaceVisitor) -> Values:
    """Return the answer of `suggest` for each range that is visited."""
    values: Values = {}

    def remember(name: str, item: space.Range) -> Any:
        values[name] = suggest(name, item)
        return values[name]

    visit(remember)
    return values
