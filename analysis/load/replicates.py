"""From stored rows to replicates: what every cell of a study came to at every seed, failed ones included."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
import pandas

from pretune.analysis.load.results import ResultsError, StudyHeader
from pretune.search_spaces.metrics import parts_of

FINISHED = "finished"  # every other outcome leaves no value, whatever its name


class ReplicateResult(NamedTuple):
    """The result of one replicate of a cell; `value` is NaN where there is none."""

    seeds: tuple[int, int, int]  # seed, pretraining seed, fine-tuning seed; -1 where seeds are not nested
    outcome: str
    cause: str
    value: float
    weights: str = ""  # SHA-256 of the model's weights; "" where it is not known

    @property
    def pretraining(self) -> int:
        """The seed that separates independent replicates: that of the pretraining, where seeds are nested."""
        seed, pretrain, _ = self.seeds
        return seed if pretrain < 0 else pretrain


def replicate_results(
    results: pandas.DataFrame, header: StudyHeader, metric: str
) -> dict[str, tuple[ReplicateResult, ...]]:
    """Cell label -> its replicates of the confirm phase in seed order, failed ones included."""
    runs = _stage_runs(results, metric)
    _require_metric(runs, metric)
    collected: dict[str, dict[tuple[int, int, int], ReplicateResult]] = {cell.label: {} for cell in header.cells}
    for row in _records(_one_row_each(runs, metric)):
        replicate = _replicate(row, metric)
        for label in [row["cell"]] if row["cell"] in collected else cells_of(row, header):
            known = collected[label].get(replicate.seeds)
            if known is None or math.isnan(known.value):  # a run has one row per metric: keep the one asked for
                collected[label][replicate.seeds] = replicate
    return {label: tuple(by_seed[seeds] for seeds in sorted(by_seed)) for label, by_seed in collected.items()}


def _one_row_each(runs: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """The rows of the metric, and one of each run's other rows, which say only that the run is there."""
    asked = runs["metric"].astype(str).map(lambda name: _same_metric(name, metric)).astype(bool)
    other = runs.drop(columns=["metric", "value"])
    kept: pandas.DataFrame = runs[asked | ~other.assign(asked=asked).duplicated(keep="last")]
    return kept


def _records(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in runs.to_dict("records")]


def independent_values(found: tuple[ReplicateResult, ...]) -> dict[int, float]:
    """Pretraining seed -> value; nested fine-tunings are averaged, since only pretrainings are independent."""
    groups: dict[int, list[float]] = {}
    for replicate in found:
        if math.isfinite(replicate.value):
            groups.setdefault(replicate.pretraining, []).append(replicate.value)
    return {seed: float(np.mean(values)) for seed, values in groups.items()}


def any_failed(found: tuple[ReplicateResult, ...]) -> bool:
    """Whether replicates failed: they may be the ones that would have scored worst."""
    return any(run.outcome != FINISHED for run in found)


def held_note(header: StudyHeader) -> tuple[str, ...]:
    """A note on what seeds that are held keep out of every spread, interval and test."""
    if not header.held:
        return ()
    streams = ", ".join(f"{name} ({seed})" for name, seed in header.held.items())
    return (
        f"held at one seed: {streams}; standard deviations, intervals and tests do not include what these would add",
    )


def is_probe(metric: str) -> bool:
    return parts_of(metric).part == "probe"


def runs_expected(header: StudyHeader, metric: str) -> int:
    """Stage runs of a cell in the confirm phase that report `metric`: a probe runs once for each pretraining."""
    return header.pretrainings if is_probe(metric) else header.replicates


def _stage_runs(results: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Confirm-phase rows of the stage that reports `metric`; a probe named in the metric leaves out the others."""
    confirm = results[results["phase"] == "confirm"]
    if not is_probe(metric):
        return confirm[confirm["stage"] == "finetune"]
    probes = confirm[confirm["stage"].str.startswith("probe:")]
    named = probes[probes["stage"] == f"probe:{parts_of(metric).probe}"]
    runs = probes if named.empty else named
    reporting = sorted(set(runs.loc[runs["metric"].map(lambda name: _same_metric(name, metric)), "stage"]))
    if len(reporting) > 1:
        raise ResultsError(f"{metric} is reported by {', '.join(reporting)}: name one of them, as probe/NAME/METRIC")
    return runs[runs["stage"] == reporting[0]] if reporting else runs


def _same_metric(name: str, metric: str) -> bool:
    """A probe's accuracy may be stored under its full name or as the last part alone."""
    return name == metric or (is_probe(metric) and name == metric.split("/", 2)[-1])


def _require_metric(runs: pandas.DataFrame, metric: str) -> None:
    """A metric that no finished run reports is a mistake in its name; without finished runs nobody can say."""
    names = sorted({name for name in runs.loc[runs["outcome"] == FINISHED, "metric"] if name})
    if names and not any(_same_metric(name, metric) for name in names):
        raise ResultsError(f"no confirmed run reports {metric!r}: choose from {', '.join(names)}")


def _replicate(row: dict[str, Any], metric: str) -> ReplicateResult:
    asked = _same_metric(str(row["metric"]), metric) and row["outcome"] == FINISHED
    seeds = (_seed(row["seed"]), _seed(row.get("seed_pretrain")), _seed(row.get("seed_finetune")))
    value = float(row["value"]) if asked and isinstance(row["value"], (int, float)) else math.nan
    cause = "" if _is_missing(row["cause"]) else str(row["cause"])
    if math.isinf(value):  # no mean can hold it
        value, cause = math.nan, "the value is infinite"
    weights = row.get("weights")
    return ReplicateResult(seeds, str(row["outcome"]), cause, value, "" if _is_missing(weights) else str(weights))


def _is_missing(value: object) -> bool:
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))


def _seed(value: Any) -> int:
    return -1 if _is_missing(value) else int(value)


def cells_of(row: dict[str, Any], header: StudyHeader) -> list[str]:
    """The cell a row names; a run shared by several cells names none, and belongs to those with its factor levels."""
    if not _is_missing(row.get("cells")) and row.get("cells"):
        return [str(label) for label in json.loads(row["cells"])]
    if row["cell"] and not _is_missing(row["cell"]):
        return [cell.label for cell in header.cells if cell.label == row["cell"]]
    levels = {factor: row.get(f"factor.{factor}") for factor in header.factors}
    known = {factor: level for factor, level in levels.items() if not _is_missing(level)}
    return [cell.label for cell in header.cells if all(cell.levels.get(f) == level for f, level in known.items())]
