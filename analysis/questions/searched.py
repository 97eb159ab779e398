"""The searches of a study, trial by trial, from `searches.parquet`: what was tried, and how each trial ended.

A grid, random points and a quasi-random sequence are designs: laid out whatever is found, so that an average over them
is the effect of a parameter over all values of the others. A sampler that learns visits good regions more often than
bad ones: what is shown then is where scores were found. `origin` says which, wherever these numbers are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas

from pretune.analysis.load.results import is_design, known_definition, stored_definitions
from pretune.search_spaces.metrics import scored_by

BIASED = (
    "From the sampler's trials, which crowd where scores are good and move all parameters at once: "
    "a map of where good scores were found, not the effect of one parameter alone."
)
DESIGNED = (
    "From points laid out beforehand, whatever was found: an average is the effect of a parameter over all values of "
    "the others."
)
PARTIAL = "raced out"
_ENDINGS = {"partial": PARTIAL, "failed": "crashed", "unscored": "without a score"}


class ScoredTrial(NamedTuple):
    """A configuration that went the whole way: the mean score over its cells and search seeds."""

    values: Mapping[str, Any]  # dotted key -> value; a choice is the position of its option
    score: float
    n: int  # scores behind the mean
    by_seed: Mapping[int, float] = MappingProxyType({})  # place of a search seed -> its score; {}: not known
    confirmed: bool = False  # whether it went into the table
    position: int = -1  # in its search, from 0
    chosen: str = "{}"  # its values as JSON, as searches.parquet has them


class LostTrial(NamedTuple):
    """A configuration that did not go the whole way, or may not be used."""

    values: Mapping[str, Any]
    ending: str  # diverged, beyond a constraint, crashed, without a score, raced out
    score: float  # of a raced-out one as far as it went, of one beyond a constraint its own; else NaN
    position: int = -1


class SearchRuns(NamedTuple):
    """One search: of a pretraining for the cells that share it, or of a cell's fine-tuning."""

    name: str
    metric: str
    minimize: bool
    trials: tuple[ScoredTrial, ...]
    designed: bool = False  # laid out beforehand, not by a sampler that learns
    lost: tuple[LostTrial, ...] = ()
    stage: str = "finetune"
    cells: tuple[str, ...] = ()  # that it is for
    sampler: str = ""


def origin(found: Sequence[SearchRuns]) -> str:
    """A sentence on what may be read from these searches: `DESIGNED` where all of them are, else `BIASED`."""
    return DESIGNED if found and all(search.designed for search in found) else BIASED


def searches(tried: pandas.DataFrame, content: Mapping[str, Any]) -> tuple[SearchRuns, ...]:
    """Every search of a study. `tried` is its searches.parquet, `content` its study.json (tune, ranges, metrics).

    Raises ResultsError for a target that neither the study nor this version knows.
    """
    if tried.empty:
        return ()
    return tuple(_search(str(name), rows, content) for name, rows in tried.groupby("search", sort=False))


def _search(name: str, rows: pandas.DataFrame, content: Mapping[str, Any]) -> SearchRuns:
    tune, ranges = content.get("tune") or {}, content.get("ranges") or {}
    part, _, cells = name.removeprefix("search of ").partition(" for ")
    stage = "finetune" if part.startswith("finetune") else "pretrain"
    target = str(tune.get("target", "val/jaccard"))
    asked = str((tune.get("pretrain") or {}).get("target", "cells")) if stage == "pretrain" else "cells"
    metric = scored_by(asked, target)
    direction = (tune.get("direction") if metric == target else None) or known_definition(
        stored_definitions(content), metric
    ).direction
    whole: list[ScoredTrial] = []
    lost: list[LostTrial] = []
    for row in rows.to_dict("records"):
        values = _numbered(json.loads(row["chosen"]), ranges)
        if row["told"] == "complete":
            whole.append(_scored(values, {str(key): value for key, value in row.items()}))
        else:
            lost.append(LostTrial(values, *_ending(str(row["told"]), _number(row.get("value"))), row.get("index", -1)))
    shown = f"{'fine-tuning' if stage == 'finetune' else 'pretraining'} of {cells}" if cells else name
    return SearchRuns(
        shown, metric, direction == "minimize", tuple(whole), is_design(tune), tuple(lost), stage,
        tuple(json.loads(str(rows["cells"].iloc[0]))) if "cells" in rows else (), str(tune.get("sampler", "")),
    )  # fmt: skip


def _scored(values: dict[str, Any], row: Mapping[str, Any]) -> ScoredTrial:
    scores = [_number(score) for score in json.loads(row.get("scores") or "[]")]
    by_seed = {place: score for place, score in enumerate(scores) if math.isfinite(score)}
    went_on, index = bool(row.get("confirmed", False)), int(row.get("index", -1))
    return ScoredTrial(values, float(row["value"]), max(1, len(by_seed)), by_seed, went_on, index, str(row["chosen"]))


def _ending(state: str, value: float) -> tuple[str, float]:
    if state == "infeasible":  # with a score it finished, beyond a bound of `tune.constraints`
        return ("beyond a constraint", value) if math.isfinite(value) else ("diverged", math.nan)
    return _ENDINGS.get(state, state), value if state == "partial" else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None or value is pandas.NA else float(value)


def _numbered(values: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """An option of a choice by its position."""
    options = {name: list(described["choice"]) for name, described in ranges.items() if "choice" in described}
    return {
        name: options[name].index(value) if value in options.get(name, ()) else value for name, value in values.items()
    }


def varied(search: SearchRuns) -> tuple[str, ...]:
    """Parameters that took more than one value, in trials of any ending."""
    tried = [*(trial.values for trial in search.trials), *(trial.values for trial in search.lost)]
    seen: dict[str, set[str]] = {}
    for values in tried:
        for name, value in values.items():
            seen.setdefault(name, set()).add(json.dumps(value))
    return tuple(name for name, found in seen.items() if len(found) > 1)


def place_of(value: Any) -> float:
    """A number; how many items of a subset."""
    return float(len(value)) if isinstance(value, list) else float(value)


def seed_std(trial: ScoredTrial) -> float:
    """Over the search seeds; NaN below two."""
    return float(np.std(list(trial.by_seed.values()), ddof=1)) if len(trial.by_seed) > 1 else math.nan
