"""A study's stage runs as an experiment of Ray Tune, for its `ResultGrid` and `ExperimentAnalysis`.

Tune writes it itself: one trial for each stage run says again what the study's folder holds of it, so that the files
are those that the installed Ray reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pretune.analysis.load.curves import load_curves
from pretune.analysis.load.results import load, load_header
from pretune.cluster.tune import start_ray, stop_ray

PLACE = ["phase", "cell", "seed", "stage", "fingerprint"]  # columns that tell a stage run's places in the results
NAMES = ["stage", "phase", "cell", "seed", "seed_pretrain", "seed_finetune", "configuration", "until"]


@dataclass(frozen=True)
class StageRun:
    """A stage run, as a trial: what it was for, and what it said, point by point."""

    config: dict[
        str, Any
    ]  # label, stage, phase, cell, seeds, factor.NAME, chosen values by their dotted keys, fingerprint
    points: list[dict[str, Any]]  # of the curves: step, epoch and metrics; the last has its final metrics and outcome


def stage_runs(folder: Path) -> list[StageRun]:
    """The stage runs of a study's folder, in the order of its results. Raises ResultsError where there are none."""
    results, curves = load(folder), load_curves(folder)
    drawn = {key: _curve(rows) for key, rows in curves.groupby(PLACE, sort=False)}
    found = []
    for key, rows in results.groupby(PLACE, sort=False, dropna=False):
        first = rows.iloc[0]
        names = [*NAMES, *(column for column in results.columns if column.startswith("factor."))]
        config = {name: _plain(first[name]) for name in names if name in rows and not pd.isna(first[name])}
        config |= json.loads(first["chosen"]) | {"fingerprint": first["fingerprint"]}
        cell = f" {first['cell']}" if first["cell"] else ""
        config = {"label": f"{first['stage']}{cell} seed {first['seed']}"} | config
        scores = {name: float(value) for name, value in zip(rows["metric"], rows["value"], strict=True) if name}
        points = drawn.get(key, [])
        last = {name: points[-1][name] for name in ("step", "epoch")} if points else {}
        ended = last | scores | {"outcome": first["outcome"], "cause": first["cause"]}
        found.append(StageRun(config, [*points, ended]))
    return found


def _curve(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict of metrics a step, in order."""
    points: dict[tuple[int, float], dict[str, Any]] = {}
    for step, epoch, metric, value in zip(*(rows[name] for name in ("step", "epoch", "metric", "value")), strict=True):
        place = (int(step), float(epoch))
        points.setdefault(place, {"step": place[0], "epoch": place[1]})[metric] = float(value)
    return [points[place] for place in sorted(points)]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def write_experiment(folder: Path, target: Path) -> int:
    """Write the stage runs of a study as a Tune experiment at `target`; how many. Starts a Ray of its own for it.

    Raises:
        ResultsError: the study has no results.
        ClusterError: Ray does not start.
    """
    runs, study = stage_runs(folder), load_header(folder).study
    start_ray(None, 1)
    try:
        from pretune.cluster.replay import replay

        replay([run.config | {"study": study} for run in runs], [run.points for run in runs], target)
    finally:
        stop_ray()
    return len(runs)
