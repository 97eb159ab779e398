"""Seconds of work against the score: of cells in the confirm phase, and of the configurations of a search.

What a replicate of a cell costs is its fine-tuning and every pretraining before it, also one that other cells share;
probes are left aside. Differences of seconds are noise until shown: cells by an analysis of variance over seeds,
configurations by `importance` of the parameters for the seconds. Where none is shown there is no front to draw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
from scipy import stats

from pretune.analysis.load.replicates import FINISHED, cells_of, independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.importance import importance
from pretune.analysis.questions.pairs import Tradeoff, pareto, tradeoff_of
from pretune.analysis.questions.searched import SearchRuns
from pretune.analysis.statistics import ALPHA

SECONDS = "seconds of work"
_LOGARITHMIC = 5.0  # span of seconds from which on the axis is logarithmic


class Costs(NamedTuple):
    """All there is to draw, and a sentence for each thing that is not drawn."""

    shown: tuple[tuple[str, Tradeoff], ...]
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------------- cells


def cell_seconds(
    results: pandas.DataFrame, stage_runs: pandas.DataFrame, header: StudyHeader
) -> dict[str, dict[int, float]]:
    """Cell -> pretraining seed -> seconds of one fine-tuning (a mean, of nested ones) and all pretrainings before it.

    A pretraining stage that every seed shares counts for each. Seeds without seconds of some stage are excluded.
    """
    took = _seconds(stage_runs)
    confirm = results[(results["phase"] == "confirm") & ~results["stage"].str.startswith("probe:")]
    runs = confirm[confirm["outcome"] == FINISHED].drop_duplicates(["cell", "seed", "stage", "fingerprint"])
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {cell.label: {} for cell in header.cells}
    for row in runs.to_dict("records"):
        fingerprint, seed = str(row["fingerprint"]), row.get("seed_pretrain")
        place = int(row["seed"]) if seed is None or math.isnan(seed) or seed < 0 else int(seed)
        for label in cells_of({str(key): value for key, value in row.items()}, header):
            stage = found[label].setdefault(str(row["stage"]), {}).setdefault(place, {})
            stage[fingerprint] = took.get(fingerprint, math.nan)
    return {label: _per_seed(stages) for label, stages in found.items()}


def _per_seed(stages: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[int, float]:
    """Sums over stages; a stage of which one run serves all seeds has that run at each."""
    totals: dict[int, float] = {}
    for seed in stages.get("finetune", {}):
        total = 0.0
        for by_seed in stages.values():
            shared = {fingerprint for runs in by_seed.values() for fingerprint in runs}
            runs = by_seed.get(seed) or (next(iter(by_seed.values())) if len(shared) == 1 else {"": math.nan})
            total += float(np.mean(list(runs.values())))
        if math.isfinite(total):
            totals[seed] = total
    return totals


def cost_tradeoffs(results: pandas.DataFrame, stage_runs: pandas.DataFrame, header: StudyHeader) -> Costs:
    """Each metric that has a direction against the seconds of a replicate, over all cells with both."""
    seconds = {label: of for label, of in cell_seconds(results, stage_runs, header).items() if of}
    if len(seconds) < 2:
        return Costs((), ())
    if not _differ([list(of.values()) for of in seconds.values()]):
        why = "the seconds of cells do not differ significantly (analysis of variance of their logarithms, p ≥ 0.05)"
        return Costs((), (f"No figure of scores against cost: {why}.",))
    metrics = [metric for metric in header.report.metrics if header.definition(metric).direction is not None]
    values = {
        metric: {label: independent_values(of) for label, of in replicate_results(results, header, metric).items()}
        for metric in metrics
    }
    made = [(metric, _cells(seconds, values[metric], metric, header)) for metric in metrics]
    return Costs(tuple((metric, one) for metric, one in made if len(one.labels) > 1), ())


def _cells(
    seconds: Mapping[str, Mapping[int, float]],
    values: Mapping[str, Mapping[int, float]],
    metric: str,
    header: StudyHeader,
) -> Tradeoff:
    """Over the cells that have both."""
    labels = [cell.label for cell in header.cells if seconds.get(cell.label) and values[cell.label]]
    x, y = ({label: of[label] for label in labels} for of in (seconds, values))
    found = tradeoff_of((SECONDS, metric), x, y, ("minimize", header.definition(metric).direction))
    return found._replace(log=_spread(found.x))


def _differ(groups: Sequence[Sequence[float]]) -> bool:
    """Whether mean logarithms differ; with one run each nobody can say, and they are shown."""
    known = [np.log(np.maximum(group, 1e-9)) for group in groups if len(group) > 1]
    if len(known) < 2:
        return True
    if all(np.ptp(group) == 0 for group in known):
        return len({float(group[0]) for group in known}) > 1
    return bool(stats.f_oneway(*known).pvalue < ALPHA)


# ---------------------------------------------------------------------------------------------------------- searches


def search_costs(
    found: Sequence[SearchRuns],
    ranges: Mapping[str, Any],
    results: pandas.DataFrame,
    stage_runs: pandas.DataFrame,
    header: StudyHeader,
) -> Costs:
    """The scores of each search against the seconds of one replicate of its own stage, for each of its configurations.

    Only of searches in which some parameter changes the seconds beyond chance; the others are named in a note.
    """
    runs = _search_runs(results, stage_runs)
    shown: list[tuple[str, Tradeoff]] = []
    flat: list[str] = []
    for search in found:
        seconds = [_of_trial(search, trial.chosen, runs, header) for trial in search.trials]
        timed = [(trial, s) for trial, s in zip(search.trials, seconds, strict=True) if s > 0]
        if len(timed) < 2:
            continue
        as_score = tuple(trial._replace(score=math.log(s), by_seed={}) for trial, s in timed)
        shares = importance([search._replace(trials=as_score)], ranges, np.random.default_rng(0))
        if not shares.note and shares.above:
            shown.append((search.name, _trials(search, timed)))
        else:
            flat.append(search.name)
    why = "no tuned parameter changes the seconds significantly"
    more = f" and {len(flat) - 3} more" if len(flat) > 3 else ""
    return Costs(tuple(shown), (f"No figure of cost: {why} ({'; '.join(flat[:3])}{more}).",) if flat else ())


def _trials(search: SearchRuns, timed: Sequence[tuple[Any, float]]) -> Tradeoff:
    x = np.array([s for _, s in timed], np.float64)
    y = np.array([trial.score for trial, _ in timed], np.float64)
    none = np.full(len(x), math.nan)
    front = pareto(np.stack([-x, -y if search.minimize else y], axis=1))
    labels = tuple(trial.chosen for trial, _ in timed)
    return Tradeoff(SECONDS, search.metric, labels, x, y, none, none, front, log=_spread(x))


def _search_runs(results: pandas.DataFrame, stage_runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """Finished stage runs of the search phase, once each, with their seconds and what was chosen."""
    rows = results[(results["phase"] == "search") & (results["outcome"] == FINISHED)]
    rows = rows.drop_duplicates(["fingerprint", "cell", "seed"])
    took = rows["fingerprint"].map(_seconds(stage_runs))
    timed = rows.assign(seconds=took)[took.notna()]
    records = [{str(key): value for key, value in row.items()} for row in timed.to_dict("records")]
    return [row | {"values": json.loads(str(row.get("chosen") or "{}"))} for row in records]


def _of_trial(search: SearchRuns, chosen: str, runs: Sequence[Mapping[str, Any]], header: StudyHeader) -> float:
    """Mean over search seeds of the seconds of a configuration's own stage, rungs together; 0 where not known."""
    asked = json.loads(chosen)
    by_seed: dict[int, dict[str, float]] = {}
    for row in runs:
        mine = str(row["stage"]).startswith(search.stage) and asked.items() <= row["values"].items()
        exact = search.stage != "finetune" or row["values"] == asked
        if mine and exact and not set(search.cells).isdisjoint(cells_of(dict(row), header)):
            by_seed.setdefault(int(row["seed"]), {})[str(row["fingerprint"])] = float(row["seconds"])
    return float(np.mean([sum(of.values()) for of in by_seed.values()])) if by_seed else 0.0


# ------------------------------------------------------------------------------------------------------------- parts


def _seconds(stage_runs: pandas.DataFrame) -> dict[str, float]:
    pairs = zip(stage_runs["fingerprint"], stage_runs["seconds"], strict=True)
    return {str(key): float(value) for key, value in pairs}


def _spread(seconds: np.ndarray[Any, Any]) -> bool:
    return bool(len(seconds) and seconds.min() > 0 and seconds.max() >= _LOGARITHMIC * seconds.min())
