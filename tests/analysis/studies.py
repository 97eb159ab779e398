"""Study folders as `pretune run` leaves them, with invented numbers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas

JACCARD = "test/jaccard"
MACHINE = json.dumps({"gpu": None, "cpu": "abacus", "threads": 1, "python": "3.12.0", "torch": "2.15.0"})


def write_study(
    folder: Path,
    scores: dict[str, list[float]],
    factors: dict[str, list[str]],
    study: str = "invented",
    question: str = "Which?",
    cause: str = "loss is NaN",
    metrics: tuple[str, ...] = (JACCARD,),
    also: int = 0,
    scale: str = "",
    **report: Any,
) -> Path:
    """`scores`: cell label -> one value per seed; NaN is a diverged replicate; `also`: more metrics per run."""
    folder.mkdir(parents=True, exist_ok=True)
    every = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    content = {
        "study": study, "scale": scale, "question": question, "factors": factors,
        "seeds": {"report": max(map(len, scores.values()))}, "published": None,
        "cells": [{"label": label_of(levels), "levels": levels} for levels in every],
        "report": {"metrics": list(metrics)} | report, "tune": {"target": "val/jaccard"}, "ranges": {},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(content))
    (folder / "study.yaml").write_text(f"study: {json.dumps(study)}\n")
    runs = [(cell, seed, value) for cell, values in scores.items() for seed, value in enumerate(values)]
    rows = [
        row
        for number, run in enumerate(runs)
        for row in _rows(study, number, *run, cause, (*metrics, *(f"val/{i}" for i in range(also))))
    ]
    pandas.DataFrame(rows).to_parquet(folder / "results.parquet", index=False)
    pandas.DataFrame([_stage_run(number, run[2]) for number, run in enumerate(runs)]).to_parquet(
        folder / "stage_runs.parquet", index=False
    )
    pandas.DataFrame(_curves(runs)).to_parquet(folder / "curves.parquet", index=False)
    return folder


def label_of(levels: dict[str, str]) -> str:
    return " ".join(f"{factor}={level}" for factor, level in levels.items())


def _rows(study, number, cell, seed, value, cause, metrics):
    failed = math.isnan(value)
    row = {"study": study, "phase": "confirm", "cell": cell, "configuration": "c", "seed": seed, "stage": "finetune"}
    row |= {"fingerprint": f"run{number:06d}", "outcome": "diverged" if failed else "finished"}
    row |= {"cause": cause if failed else "", "chosen": "{}"}
    if failed:
        return [row | {"metric": "", "value": math.nan}]
    return [row | {"metric": metric, "value": value + 0.01 * place} for place, metric in enumerate(metrics)]


def _stage_run(number, value):
    row = {"fingerprint": f"run{number:06d}", "stage": "finetune", "outcome": "finished", "seconds": 2.0}
    return row | {"bytes": 1000, "attempt": "a", "machine": MACHINE}


def _curves(runs):
    for number, (cell, seed, value) in enumerate(runs):
        for step in (10, 20) if number < 200 else ():
            row = {"phase": "confirm", "cell": cell, "seed": seed, "stage": "finetune", "step": step}
            row |= {"fingerprint": f"run{number:06d}", "epoch": step / 10, "metric": "train/loss"}
            yield row | {"value": float(np.nan_to_num(value)) / step}
