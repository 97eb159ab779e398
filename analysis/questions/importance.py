"""The importance of each searched parameter, beside what chance alone would show under the same design.

main effects: the share of the variance of the scores that one parameter explains by itself (R squared of its means, or
of a natural spline), each search's own level taken out. Shares need not add up to one: noise stays what it is. Its
interval is exact under normal noise (noncentral F).
PED-ANOVA (Watanabe et al. 2023) and fANOVA (Hutter et al. 2014), by Optuna's evaluators, of one search: shares that
add up to one, with the 5th to 95th percentile over resampled trials.

The floor is what chance reaches: scores are permuted over the trials of their search, so that no parameter matters.
Only in 5 % of such permutations is any parameter above its floor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy import optimize, stats

from pretune.analysis.questions.searched import ScoredTrial, SearchRuns, place_of, varied
from pretune.analysis.questions.sensitivity import basis_of, knots_of
from pretune.analysis.statistics import ALPHA, Array
from pretune.search_spaces.words import counted

ImportanceMethod = Literal["main effects", "PED-ANOVA", "fANOVA"]

_PERMUTATIONS = {"main effects": 999, "PED-ANOVA": 59, "fANOVA": 19}  # Optuna's take 0.02 to 2 s each
_RESAMPLES = {"PED-ANOVA": 20, "fANOVA": 4}
_TREES = 32  # of fANOVA's forest
_FEWEST = 8


class Importance(NamedTuple):
    """Shares, their intervals, and the share that chance reaches: arrays (parameters,), the largest share first."""

    search: str
    parameters: tuple[str, ...]
    share: Array
    low: Array
    high: Array
    trials: int
    note: str  # why there are no numbers, where there are none
    method: ImportanceMethod = "main effects"
    floor: Array = np.empty(0)

    @property
    def above(self) -> tuple[str, ...]:
        """Parameters that matter more than chance would show."""
        return tuple(n for n, s, f in zip(self.parameters, self.share, self.floor, strict=True) if s > f)


def importance(
    found: Sequence[SearchRuns],
    ranges: Mapping[str, Any],
    generator: np.random.Generator,
    method: ImportanceMethod = "main effects",
    name: str = "",
) -> Importance:
    """Over the parameters that every trial has and that took several values.

    Main effects take several searches of one metric together; Optuna's methods take one search. Without numbers there
    is a note. Raises ValueError for several searches under Optuna's methods.
    """
    if method != "main effects" and len(found) != 1:
        raise ValueError(f"{method} ranks within one search, and these are {len(found)}")
    trials = [trial for search in found for trial in search.trials]
    name = name or " and ".join(search.name for search in found)
    every = dict.fromkeys(parameter for search in found for parameter in varied(search))
    shared = [parameter for parameter in every if all(parameter in trial.values for trial in trials)]
    if why := _no_importance(found, trials, shared):
        return _without(name, len(trials), why, method)
    if method == "main effects":
        return _main_effects(found, ranges, shared, generator, name)
    search = found[0]
    names = [parameter for parameter in shared if not isinstance(trials[0].values[parameter], list)]
    if why := _no_common_range(trials, names, ranges) or _nothing_to_rank(names):
        return _without(name, len(trials), why, method)
    return _by_optuna(search, ranges, names, generator, method)


def _without(name: str, trials: int, why: str, method: ImportanceMethod) -> Importance:
    return Importance(name, (), *(np.empty(0),) * 3, trials, why, method)


def _no_importance(found: Sequence[SearchRuns], trials: Sequence[ScoredTrial], shared: Sequence[str]) -> str:
    fewest = _FEWEST + len(found) - 1
    if len(trials) < fewest:
        there, are = counted(len(trials), "finished trial"), "is" if len(trials) == 1 else "are"
        return f"{there} {are} too few to rank parameters ({fewest} are needed)"
    if all(len({trial.score for trial in search.trials}) < 2 for search in found):
        return "every trial scored the same"
    return "" if shared else "no parameter is common to all trials"


def _nothing_to_rank(names: Sequence[str]) -> str:
    return "" if len(names) > 1 else "there is one parameter, so nothing to rank"


def _floor(permuted: Array) -> Array:
    """The share that chance reaches, `(parameters,)`, from `(permutations, parameters)`.

    A multiple of each parameter's mean, such that in 5 % of permutations any parameter is above it: the largest ratio
    of each permutation counts, as in max-T tests.
    """
    mean = np.maximum(permuted.mean(axis=0), 1e-12)
    largest = np.sort((permuted / mean).max(axis=1))
    rank = math.ceil((1 - ALPHA) * (len(largest) + 1))  # the observed one counts as a permutation
    return np.asarray(mean * largest[min(rank, len(largest)) - 1], np.float64)


def _in_order(name: str, names: Sequence[str], trials: int, method: ImportanceMethod, *arrays: Array) -> Importance:
    order = np.argsort(-arrays[0], kind="stable")
    share, low, high, floor = (part[order] for part in arrays)
    return Importance(name, tuple(names[i] for i in order), share, low, high, trials, "", method, floor)


# ----------------------------------------------------------------------------------------------------- main effects


def _main_effects(
    found: Sequence[SearchRuns],
    ranges: Mapping[str, Any],
    names: Sequence[str],
    generator: np.random.Generator,
    name: str,
) -> Importance:
    sizes = [len(search.trials) for search in found]
    group = np.repeat(np.arange(len(sizes)), sizes)
    trials = [trial for search in found for trial in search.trials]
    y = _centred(np.array([trial.score for trial in trials], np.float64), group)
    spaces = [_space(trials, parameter, ranges.get(parameter, {}), group) for parameter in names]
    share = _explained(spaces, y[:, None])[:, 0]
    chance = _explained(spaces, _permuted(y, group, _PERMUTATIONS["main effects"], generator)).T
    rest = len(y) - len(sizes)
    bounds = [_interval(float(r), q.shape[1], rest - q.shape[1]) for r, q in zip(share, spaces, strict=True)]
    low, high = np.array(bounds, np.float64).reshape(-1, 2).T
    return _in_order(name, names, len(y), "main effects", share, low, high, _floor(chance))


def _centred(values: Array, group: NDArray[np.intp]) -> Array:
    """Less the mean of the own group; `(trials,)` or `(trials, columns)`."""
    member = group[:, None] == np.unique(group)
    return np.asarray(values - member @ ((member / member.sum(axis=0)).T @ values), np.float64)


def _permuted(y: Array, group: NDArray[np.intp], times: int, generator: np.random.Generator) -> Array:
    """(trials, times): permuted within each group."""
    shuffled = np.tile(y, (times, 1))
    for one in np.unique(group):
        shuffled[:, group == one] = generator.permuted(shuffled[:, group == one], axis=1)
    return shuffled.T


def _space(trials: Sequence[ScoredTrial], name: str, described: Mapping[str, Any], group: NDArray[np.intp]) -> Array:
    """An orthonormal basis `(trials, degrees)` of the functions of one parameter that are centred in every group."""
    x = np.array([place_of(trial.values[name]) for trial in trials], np.float64)
    place = np.log(x) if described.keys() & {"log_uniform", "log_int"} else x
    columns = _centred(basis_of(place, *knots_of(place, "choice" in described)), group)
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-9 * max(1.0, float(sizes.max()))], np.float64)


def _explained(spaces: Sequence[Array], scores: Array) -> Array:
    """(parameters, columns): the share of each column's sum of squares that lies in each space."""
    total = np.maximum((scores**2).sum(axis=0), 1e-300)
    return np.stack([((space.T @ scores) ** 2).sum(axis=0) / total for space in spaces])


def _interval(share: float, degrees: int, rest: int) -> tuple[float, float]:
    """95 % interval of an explained share, by inverting the noncentral F test; NaN where it has none."""
    if degrees < 1 or rest < 1 or share > 1 - 1e-6:  # nothing is left over
        return math.nan, math.nan
    f = share / (1 - share) * rest / degrees
    size = degrees + rest + 1

    def bound(level: float) -> float:
        def excess(noncentrality: float) -> float:
            return float(stats.ncf.cdf(f, degrees, rest, noncentrality)) - level

        if float(stats.f.cdf(f, degrees, rest)) <= level:
            return 0.0
        top = 1.0
        while excess(top) > 0:  # it ends: far beyond `f` nothing is left of the distribution
            top *= 2
        found = float(optimize.brentq(excess, 0.0, top))
        return found / (found + size)

    return bound(1 - ALPHA / 2), bound(ALPHA / 2)


# ---------------------------------------------------------------------------------------------------------- Optuna's


def _by_optuna(
    search: SearchRuns,
    ranges: Mapping[str, Any],
    names: Sequence[str],
    generator: np.random.Generator,
    method: ImportanceMethod,
) -> Importance:
    trials, count = search.trials, len(search.trials)
    scores = np.array([trial.score for trial in trials], np.float64)
    raw = _evaluation(search, trials, names, ranges, method)
    whole, draws = raw(scores), generator.integers(count, size=(_RESAMPLES[method], count))
    chance = np.stack([raw(generator.permutation(scores)) for _ in range(_PERMUTATIONS[method])])
    again = [
        _shares(_evaluation(search, [trials[i] for i in draw], names, ranges, method)(scores[draw]))
        for draw in draws
        if len(set(scores[draw])) > 1
    ]
    low, high = np.nanpercentile(np.array(again), (5, 95), axis=0)
    floor = _floor(chance) / max(float(whole.sum()), 1e-300)
    return _in_order(search.name, names, count, method, _shares(whole), low, high, floor)


def _shares(raw: Array) -> Array:
    """Adding up to 1; NaN where the evaluator sees no difference at all."""
    return raw / raw.sum() if raw.sum() > 0 else np.full(len(raw), math.nan)


def _no_common_range(trials: Sequence[ScoredTrial], names: Sequence[str], ranges: Mapping[str, Any]) -> str:
    """Optuna needs one space for all trials; levels of a factor may give the same parameter different ranges."""
    outside = [name for name in names if not all(_in_range(trial.values[name], ranges[name]) for trial in trials)]
    return f"the range of {outside[0]} differs between cells, so there is no common space to rank in" if outside else ""


def _in_range(value: Any, described: Mapping[str, Any]) -> bool:
    kind, body = _kind_of(described)
    return bool(value < len(body) if kind == "choice" else body[0] <= value <= body[1])


def _evaluation(
    search: SearchRuns,
    trials: Sequence[ScoredTrial],
    names: Sequence[str],
    ranges: Mapping[str, Any],
    method: ImportanceMethod,
) -> Callable[[Array], Array]:
    """Scores of the trials -> unnormalised importances in the order of `names`."""
    space = {name: _distribution(ranges[name]) for name in names}
    study = _silent_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: _value(trial.values[name], ranges[name]) for name in names},
                distributions=space,
                value=trial.score,
            )
            for trial in trials
        ]
    )
    sign = 1 if search.minimize else -1  # a target is minimised

    def evaluate(scores: Array) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental; that a target is minimised
            found = optuna.importance.get_param_importances(
                study, evaluator=_evaluator(method), normalize=False, target=lambda t: sign * float(scores[t.number])
            )
        return np.array([found[name] for name in names], np.float64)

    return evaluate


def _evaluator(method: ImportanceMethod) -> optuna.importance.BaseImportanceEvaluator:
    if method == "fANOVA":
        return optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    return optuna.importance.PedAnovaImportanceEvaluator()


def _silent_study() -> optuna.Study:
    """In memory, without Optuna's line to the terminal for each."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="minimize")
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(described: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    (kind, body), step = _kind_of(described), described.get("step")
    if kind == "choice":
        return optuna.distributions.CategoricalDistribution(tuple(body))
    if kind in ("int", "log_int"):
        return optuna.distributions.IntDistribution(body[0], body[1], log=kind == "log_int", step=step or 1)
    return optuna.distributions.FloatDistribution(body[0], body[1], log=kind == "log_uniform", step=step)


def _kind_of(described: Mapping[str, Any]) -> tuple[str, Any]:
    """The kind of a range and its bounds or options; `step` may be stored before or behind them."""
    return next((kind, body) for kind, body in described.items() if kind != "step")


def _value(value: Any, described: Mapping[str, Any]) -> Any:
    return described["choice"][value] if "choice" in described else value
