"""What a study leaves in its output folder, for `analysis` and for people.

study.yaml          the study as resolved: scales and --set applied
study.json          header for analysis: factors, cells, report
results.parquet     tidy: one row per (cell, replicate, stage run, metric); equal for equal results
stage_runs.parquet  one row per stage run: seconds, attempt, machine
table.md table.csv  the result table (written by analysis)
best/               the best model: weights, settings, scores
optuna.journal      the searches, readable by optuna-dashboard
status.json         for `pretune status`
pretune.log         every event, with its time
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pretune.program import Outcome, Outcomes, Use, stages_in
from pretune.store import Store, write_atomically
from search_spaces.resolve import Study
from search_spaces.stages import Stage

Row = dict[str, Any]
SEARCH_ONLY = ("test/",)


def write_header(study: Study, folder: Path) -> None:
    """study.yaml and study.json."""
    write_atomically(folder / "study.yaml", study.to_yaml())
    report = study.header.report
    content = {
        "study": study.name,
        "question": study.header.question,
        "factors": {name: list(levels) for name, levels in study.factors.items()},
        "cells": [{"label": cell.label, "levels": cell.levels} for cell in study.cells],
        "report": report.model_dump(mode="json"),
        "seeds": study.header.seeds.model_dump(mode="json"),
        "published": study.published,
    }
    write_atomically(folder / "study.json", json.dumps(content, indent=1))


def result_rows(study: Study, uses: Sequence[Use], outcomes: Outcomes) -> list[Row]:
    """One row per (cell, replicate, stage run, metric), in the order in which they were asked for.

    A pretraining that several cells share stands there once per phase, with an empty cell; failed stage runs are
    rows without a metric. What has not ended is left out.
    """
    shared = _shared(uses)
    rows: list[Row] = []
    seen: set[tuple[str, str, str, str]] = set()
    for use in uses:
        for name, stage in use.stages.items():
            outcome = outcomes.get(stage.fingerprint)
            cell = "" if stage.fingerprint in shared else use.cell.label
            key = (use.phase, cell, stage.fingerprint, "" if not cell else str(use.replicate.seed))
            if outcome is None or key in seen:
                continue
            seen.add(key)
            rows += _rows(study, use, name, stage, outcome, cell)
    return rows


def _shared(uses: Sequence[Use]) -> set[str]:
    """Fingerprints of pretrainings that more than one cell uses."""
    cells: dict[str, set[str]] = {}
    for use in uses:
        for stage in use.stages.values():
            if stage.kind != "finetune":
                cells.setdefault(stage.fingerprint, set()).add(use.cell.label)
    return {key for key, labels in cells.items() if len(labels) > 1}


def _rows(study: Study, use: Use, name: str, stage: Stage, outcome: Outcome, cell: str) -> Iterator[Row]:
    head: Row = {"study": study.name, "phase": use.phase, "cell": cell}
    head |= {f"factor.{factor}": use.cell.levels[factor] if cell else None for factor in study.factors}
    head |= {"configuration": use.configuration if cell else "", "seed": use.replicate.seed}
    head |= {"seed_pretrain": use.replicate.pretrain, "seed_finetune": use.replicate.finetune}
    head |= {"stage": name, "fingerprint": stage.fingerprint, "outcome": outcome.state, "cause": outcome.cause}
    head |= {"chosen": json.dumps(use.values, sort_keys=True) if cell else "{}"}
    metrics = {metric_name(name, metric): value for metric, value in outcome.metrics.items()}
    for metric, value in (metrics or {"": math.nan}).items():
        yield head | {"metric": metric, "value": float(value)}


def metric_name(stage: str, metric: str) -> str:
    """A probe's metric carries the probe's name, which its fingerprint does not: probe/NAME/accuracy."""
    if stage.startswith("probe:"):
        return metric.replace("probe/", f"probe/{stage.removeprefix('probe:')}/", 1)
    return metric


def write_results(study: Study, uses: Sequence[Use], outcomes: Outcomes, store: Store, folder: Path) -> None:
    """results.parquet and stage_runs.parquet, each replaced whole."""
    rows = result_rows(study, uses, outcomes)
    if rows:
        _write_parquet(pd.DataFrame(rows), folder / "results.parquet")
        _write_parquet(pd.DataFrame(list(_stage_runs(uses, store))), folder / "stage_runs.parquet")


def _stage_runs(uses: Sequence[Use], store: Store) -> Iterator[Row]:
    for fingerprint in stages_in(uses):
        if entry := store.find(fingerprint):
            size = sum(int(about["size"]) for about in entry.files.values())
            row = {"fingerprint": fingerprint, "stage": entry.stage, "outcome": entry.outcome, "seconds": entry.seconds}
            yield row | {"bytes": size, "attempt": entry.attempt, "machine": json.dumps(entry.about.get("machine"))}


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


# -------------------------------------------------------------------------------------------------------- the model


def keep_best(study: Study, uses: Sequence[Use], outcomes: Outcomes, store: Store, folder: Path) -> Path | None:
    """Copy the weights of the best fine-tuning to `best/`: the cell with the best mean validation score, and in it
    the replicate with the best; the test set has no say in it."""
    from pretune.search import direction_of

    target = study.header.tune.target
    sign = -1.0 if direction_of(target, study.header.tune.direction) == "minimize" else 1.0
    scored: dict[str, list[tuple[float, Use]]] = {}
    for use in uses:
        outcome = outcomes.get(use.stages["finetune"].fingerprint) if "finetune" in use.stages else None
        if use.phase == "confirm" and outcome is not None and target in outcome.metrics:
            scored.setdefault(use.cell.label, []).append((sign * outcome.metrics[target], use))
    if not scored:
        return None
    label = max(scored, key=lambda name: float(np.mean([value for value, _ in scored[name]])))
    _, use = max(scored[label], key=lambda item: item[0])
    entry = store.find(use.stages["finetune"].fingerprint)
    return None if entry is None else _copy_model(study, use, outcomes, store.file(entry, ""), folder / "best")


def _copy_model(study: Study, use: Use, outcomes: Outcomes, source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    stage = use.stages["finetune"]
    shutil.copyfile(source / "model.safetensors", target / "model.safetensors")
    notes: Mapping[str, Any] = json.loads((source / "notes.json").read_text())
    card = {
        "study": study.name,
        "cell": use.cell.label,
        "seed": use.replicate.seed,
        "fingerprint": stage.fingerprint,
        "chosen": use.values,
        "model": stage.model.model_dump(mode="json"),
        "finetune": stage.settings.model_dump(mode="json"),
        "classes": notes["classes"],
        "input": {"size": notes["size"], "range": [0.0, 1.0], "order": "RGB, channels first"},
        "scores": dict(outcomes[stage.fingerprint].metrics),
    }
    write_atomically(target / "model.json", json.dumps(card, indent=1))
    return target
