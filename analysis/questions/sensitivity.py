"""Sensitivity to what was tuned, from the trials of searches.

A grid, random points and a quasi-random sequence are designs: laid out whatever is found, so that an average over them
is the effect of a parameter over all values of the others. A sampler that learns visits good regions more often than
bad ones: what is shown then is where scores were found. `origin` says which, wherever these numbers are shown.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
import pandas
from numpy.typing import NDArray

from pretune.analysis.load.results import is_design, known_definition, stored_definitions
from pretune.analysis.statistics import Array
from pretune.search_spaces.metrics import MetricDefinition, scored_by

BIASED = (
    "From the sampler's trials, which crowd where scores are good and move all parameters at once: "
    "a map of where good scores were found, not the effect of one parameter alone."
)
DESIGNED = (
    "From points laid out beforehand, whatever was found: an average is the effect of a parameter over all values of "
    "the others."
)
_TREES = 32  # of fANOVA's forest
_FEWEST_FOR_IMPORTANCE = 8
_MOST_BINS = 6
_FLAT = "every trial scored the same"


ImportanceMethod = Literal["PED-ANOVA", "fANOVA"]


class ScoredTrial(NamedTuple):
    """One configuration that a search tried: the mean score over its cells and search seeds."""

    values: Mapping[str, Any]  # dotted key -> value; a choice is the position of its option
    score: float
    n: int  # scores behind the mean
    by_seed: Mapping[int, float] = MappingProxyType({})  # search seed -> mean score over the cells; {}: not known


class SearchRuns(NamedTuple):
    """One search: of the pretraining, or of one cell's fine-tuning."""

    name: str
    metric: str
    minimize: bool
    trials: tuple[ScoredTrial, ...]  # those whose every replicate finished with a finite score
    designed: bool = False  # laid out beforehand, not by a sampler that learns


class Response(NamedTuple):
    """Scores over one parameter; arrays (trials,) and, for the means of equally filled bins, (bins,)."""

    search: str
    parameter: str
    metric: str
    options: tuple[str, ...]  # of a choice, whose x is a position in it; () for numbers
    log: bool
    x: Array
    score: Array
    bin_x: Array
    bin_mean: Array
    bin_std: Array  # over the trials of a bin; NaN for one
    seed_std: Array = np.empty(0)  # (bins,) of a bin's mean over the search seeds; () below two seeds common to all
    seeds: int = 0  # how many


class Importance(NamedTuple):
    """Importances (they sum to 1) with their 5th to 95th percentile over resampled trials."""

    search: str
    parameters: tuple[str, ...]  # the most important first
    share: Array
    low: Array
    high: Array
    trials: int
    note: str  # why there are no numbers, where there are none
    method: ImportanceMethod = "PED-ANOVA"
    top: float = math.nan  # share of the resamples in which the first parameter is first too


def origin(found: Sequence[SearchRuns]) -> str:
    """A sentence on what may be read from these searches: `DESIGNED` where all of them are, else `BIASED`."""
    return DESIGNED if found and all(search.designed for search in found) else BIASED


def searches(results: pandas.DataFrame, content: Mapping[str, Any]) -> tuple[SearchRuns, ...]:
    """Every search of a study. `content` is its `study.json` (keys `tune`, `ranges` and `metrics`)."""
    tune, ranges = content.get("tune") or {}, content.get("ranges") or {}
    rows = results[(results["phase"] == "search")] if "chosen" in results.columns else results.iloc[:0]
    if "until" in rows.columns:
        rows = rows[rows["until"].isna()]  # a rung is not a whole run
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        groups.setdefault(_search_of(row, ranges), []).append({str(key): value for key, value in row.items()})
    groups.pop("", None)
    stored = stored_definitions(content)
    return tuple(_search(name, part, tune, ranges, stored) for name, part in groups.items())


def _search_of(row: Mapping[Any, Any], ranges: Mapping[str, Any]) -> str:
    """The search that asked for a row: a fine-tuning's values name ranges of the fine-tuning too.

    A pretraining that cells share has no cell, and its own values alone.
    """
    names = list(json.loads(row["chosen"] or "{}"))
    if not names or not ranges:
        return ""
    tuned_with_finetune = any(name.startswith("finetune") for name in names)
    return f"fine-tuning of {row['cell']}" if tuned_with_finetune else "pretraining"


def _numbered(values: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """An option of a choice by its position."""
    options = {name: list(described["choice"]) for name, described in ranges.items() if "choice" in described}
    return {
        name: options[name].index(value) if value in options.get(name, ()) else value for name, value in values.items()
    }


def _search(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    tune: Mapping[str, Any],
    ranges: Mapping[str, Any],
    stored: Mapping[str, MetricDefinition],
) -> SearchRuns:
    target = str(tune.get("target", "val/jaccard"))
    asked = str((tune.get("pretrain") or {}).get("target", "cells")) if name == "pretraining" else "cells"
    metric = scored_by(asked, target)
    direction = (tune.get("direction") if metric == target else None) or known_definition(stored, metric).direction
    scores: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        failed = row["outcome"] != "finished" and row["stage"] in ("finetune", "pretrain")
        if row["metric"] == metric or failed:
            found = int(row["seed"]), math.nan if failed else float(row["value"])
            scores.setdefault(str(row["chosen"]), []).append(found)
    whole = {chosen: found for chosen, found in scores.items() if all(math.isfinite(value) for _, value in found)}
    if tune.get("racing"):  # what left the race ran on fewer seeds, and its mean may be over the easier ones
        most = max(map(len, whole.values()), default=0)
        whole = {chosen: values for chosen, values in whole.items() if len(values) == most}
    trials = (_trial(_numbered(json.loads(chosen), ranges), found) for chosen, found in whole.items())
    return SearchRuns(name, metric, direction == "minimize", tuple(trials), is_design(tune))


def _trial(values: Mapping[str, Any], found: Sequence[tuple[int, float]]) -> ScoredTrial:
    by_seed = {seed: float(np.mean([v for s, v in found if s == seed])) for seed in sorted({s for s, _ in found})}
    return ScoredTrial(values, float(np.mean([value for _, value in found])), len(found), by_seed)


def varied(search: SearchRuns) -> tuple[str, ...]:
    """Parameters that took more than one value: what an earlier search fixed is excluded."""
    names = dict.fromkeys(name for trial in search.trials for name in trial.values)
    seen = {name: {json.dumps(t.values[name]) for t in search.trials if name in t.values} for name in names}
    return tuple(name for name in names if len(seen[name]) > 1)


def response(search: SearchRuns, parameter: str, ranges: Mapping[str, Any]) -> Response:
    """Scores over one parameter, and how far its bins' means differ between the search seeds.

    A subset's x is how many of its items were chosen.
    """
    described = ranges.get(parameter, {})
    options = tuple(str(option) for option in described.get("choice", ()))
    tried = [(_place(trial.values[parameter]), trial) for trial in search.trials if parameter in trial.values]
    tried.sort(key=lambda item: (item[0], item[1].score))
    x, score = np.array([(place, trial.score) for place, trial in tried], np.float64).reshape(-1, 2).T
    log = bool(described.keys() & {"log_uniform", "log_int"})
    bins = _by_option(x) if options else _equally_filled(len(x))
    means = [(_middle(x[part], log), score[part].mean(), _std(score[part])) for part in bins]
    bin_x, bin_mean, bin_std = np.array(means, np.float64).reshape(-1, 3).T
    seeds = sorted(set.intersection(*(set(trial.by_seed) for _, trial in tried)))
    by_seed = np.array([[trial.by_seed[seed] for seed in seeds] for _, trial in tried], np.float64)  # (trials, seeds)
    seed_std = np.array([_std(by_seed[part].mean(axis=0)) for part in bins]) if len(seeds) > 1 else np.empty(0)
    shown = (x, score, bin_x, bin_mean, bin_std, seed_std)
    return Response(search.name, parameter, search.metric, options, log, *shown, len(seeds))


def _place(value: Any) -> float:
    return float(len(value)) if isinstance(value, list) else float(value)


def _by_option(x: Array) -> list[NDArray[np.intp]]:
    return [np.flatnonzero(x == option) for option in np.unique(x)]


def _equally_filled(count: int) -> list[NDArray[np.intp]]:
    """At most six bins of neighbours, with three trials or more in each."""
    return list(np.array_split(np.arange(count), max(1, min(_MOST_BINS, count // 3))))


def _middle(x: Array, log: bool) -> float:
    return float(np.exp(np.log(x).mean()) if log else x.mean())


def _std(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


# ------------------------------------------------------------------------------------------------------- importance


def importance(
    search: SearchRuns,
    ranges: Mapping[str, Any],
    generator: np.random.Generator,
    resamples: int = 20,
    method: ImportanceMethod = "PED-ANOVA",
) -> Importance:
    """Over the parameters that every trial has, by Optuna's evaluators; its spread is that over resampled trials.

    PED-ANOVA (Watanabe et al. 2023): what tells the best tenth of trials from the rest. fANOVA (Hutter et al. 2014):
    the share of the variance of all scores, by a random forest. Below eight trials, or where cells have ranges of their
    own for one parameter (an optimiser's rates), there are no numbers, and a note.
    """
    shared = [name for name in varied(search) if all(name in trial.values for trial in search.trials)]
    names = [name for name in shared if name in ranges and not isinstance(search.trials[0].values[name], list)]
    if why := _no_importance(search, names) or _no_common_range(search, names, ranges):
        return Importance(search.name, (), np.empty(0), np.empty(0), np.empty(0), len(search.trials), why, method)
    whole = _shares(search, search.trials, names, ranges, method)
    draws = generator.integers(len(search.trials), size=(resamples, len(search.trials)))
    several = [[search.trials[i] for i in draw] for draw in draws]
    again = np.array([_shares(search, part, names, ranges, method) for part in several if not _flat(part)])
    low, high = np.nanpercentile(again, (5, 95), axis=0)
    order = np.argsort(-whole, kind="stable")
    parameters = tuple(names[i] for i in order)
    top = float(np.mean(np.nan_to_num(again).argmax(axis=1) == order[0]))
    shares = whole[order], low[order], high[order]
    return Importance(search.name, parameters, *shares, len(search.trials), "", method, top)


def _no_importance(search: SearchRuns, names: Sequence[str]) -> str:
    if len(search.trials) < _FEWEST_FOR_IMPORTANCE:
        return f"{len(search.trials)} finished trials are too few to rank parameters (8 are needed)"
    if _flat(search.trials):
        return _FLAT
    return "" if len(names) > 1 else "there is one parameter, so nothing to rank"


def _no_common_range(search: SearchRuns, names: Sequence[str], ranges: Mapping[str, Any]) -> str:
    """PED-ANOVA needs one space for all trials; levels of a factor may give the same parameter different ranges."""
    outside = [name for name in names if not all(_within(trial.values[name], ranges[name]) for trial in search.trials)]
    return f"the range of {outside[0]} differs between cells, so there is no common space to rank in" if outside else ""


def _within(value: Any, described: Mapping[str, Any]) -> bool:
    kind, body = next(iter(described.items()))
    return bool(value < len(body) if kind == "choice" else body[0] <= value <= body[1])


def _flat(trials: Sequence[ScoredTrial]) -> bool:
    return len({trial.score for trial in trials}) < 2


def _shares(
    search: SearchRuns,
    trials: Sequence[ScoredTrial],
    names: Sequence[str],
    ranges: Mapping[str, Any],
    method: ImportanceMethod,
) -> NDArray[np.float64]:
    """Importances that sum to 1, in the order of `names`; NaN where the evaluator sees no difference at all."""
    space = {name: _distribution(ranges[name]) for name in names}
    study = _silent_study("minimize" if search.minimize else "maximize")
    for trial in trials:
        values = {name: _value(trial.values[name], ranges[name]) for name in names}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=trial.score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(study, evaluator=_evaluator(method), normalize=False)
    shares = np.array([found[name] for name in names], np.float64)
    return shares / shares.sum() if shares.sum() > 0 else np.full(len(names), math.nan)


def _evaluator(method: ImportanceMethod) -> optuna.importance.BaseImportanceEvaluator:
    if method == "fANOVA":
        return optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    return optuna.importance.PedAnovaImportanceEvaluator()


def _silent_study(direction: Literal["minimize", "maximize"]) -> optuna.Study:
    """In memory, without Optuna's line to the terminal for each."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction=direction)
    finally:
        optuna.logging.set_verbosity(before)


def _distribution(described: Mapping[str, Any]) -> optuna.distributions.BaseDistribution:
    kind, body = next((kind, body) for kind, body in described.items() if kind != "step")  # in whatever order
    step = described.get("step")
    if kind == "choice":
        return optuna.distributions.CategoricalDistribution(tuple(body))
    if kind in ("int", "log_int"):
        return optuna.distributions.IntDistribution(body[0], body[1], log=kind == "log_int", step=step or 1)
    return optuna.distributions.FloatDistribution(body[0], body[1], log=kind == "log_uniform", step=step)


def _value(value: Any, described: Mapping[str, Any]) -> Any:
    return described["choice"][value] if "choice" in described else value
