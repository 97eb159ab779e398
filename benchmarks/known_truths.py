"""Simulated studies whose truth is known, written as `pretune run` leaves them, and the figures that they get.

    python -m benchmarks.known_truths FOLDER

writes each study into FOLDER, and its figures as PNG into `figures/` of its own folder.
What must be seen in each is its `TRUTHS`; `tests/benchmarks/test_known_truths.py` holds the computed quantities.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

Row = dict[str, Any]
LR, DECAY, SIZE, LOSS = (
    "finetune.optimizer.lr",
    "finetune.optimizer.weight_decay",
    "finetune.batch_size",
    "finetune.loss",
)
TEMPERATURE = "pretrain.method.temperature"
RANGES = {
    LR: {"log_uniform": [1e-4, 1e-1]},
    DECAY: {"log_uniform": [1e-6, 1e-2]},
    LOSS: {"choice": ["dice", "cross-entropy"]},
    TEMPERATURE: {"log_uniform": [0.05, 1.0]},
}
LABELS = {"labels": ["50", "100", "200", "400"], "start": ["random", "pretrained"]}
NAN = math.nan


def searched(
    cells: Sequence[str],
    trials: int,
    score: Callable[[Mapping[str, Any], int], float],
    generator: np.random.Generator,
    names: Sequence[str] = (LR, DECAY),
    seeds: int = 2,
    noise: float = 0.01,
    stage: str = "finetune",
) -> list[Row]:
    """Rows of searches.parquet of a random search in each cell. `score`: (values, cell's number) -> expected score;
    NaN diverges, -1 has no score, below -1 is raced out at minus it, less one."""
    rows = []
    for number, cell in enumerate(cells):
        found = [_trial(names, number, score, generator, seeds, noise) for _ in range(trials)]
        best = max((row["value"] for row in found if row["told"] == "complete"), default=NAN)
        rows += [
            {"search": f"search of {stage} for {cell}", "cells": json.dumps([cell]), "index": index}
            | row
            | {"selected": False, "confirmed": row["value"] == best and row["told"] == "complete"}
            for index, row in enumerate(found)
        ]
    return rows


def _trial(
    names: Sequence[str],
    cell: int,
    score: Callable[[Mapping[str, Any], int], float],
    generator: np.random.Generator,
    seeds: int,
    noise: float,
) -> Row:
    values = {name: _drawn(RANGES[name], generator) for name in names}
    mean, reached = score(values, cell), float("nan")
    state = "infeasible" if math.isnan(mean) else "unscored" if mean == -1 else "partial" if mean < -1 else "complete"
    scores = list((abs(mean) - (mean < -1)) + noise * generator.normal(size=seeds)) if state != "infeasible" else []
    value = float(np.mean(scores)) if state in ("complete", "partial") else NAN
    shown = {"told": state, "value": value, "reason": "", "reached": 1.0 if state == "partial" else reached}
    return shown | {"scores": json.dumps(scores if state == "complete" else []), "chosen": json.dumps(values)}


def _drawn(described: Mapping[str, Any], generator: np.random.Generator) -> Any:
    if "choice" in described:
        return str(generator.choice(described["choice"]))
    low, high = next(iter(described.values()))
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


def write_study(
    folder: Path,
    factors: Mapping[str, Sequence[str]],
    score: Callable[[Mapping[str, str]], float],
    generator: np.random.Generator,
    tried: Sequence[Row] = (),
    seeds: int = 5,
    noise: float = 0.01,
    failing: float = 0.0,
    **report: Any,
) -> Path:
    """A study's folder: results of `seeds` paired replicates in each cell, of which a share `failing` diverged."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    shared = noise * generator.normal(size=seeds)
    rows = []
    for number, levels in enumerate(cells):
        values = score(levels) + shared + noise * generator.normal(size=seeds)
        lost = generator.uniform(size=seeds) < failing
        rows += [_result(levels, number, seed, NAN if lost[seed] else values[seed]) for seed in range(seeds)]
    content = {
        "study": folder.name, "question": "What is true?", "factors": {name: list(of) for name, of in factors.items()},
        "cells": [{"label": label_of(levels), "levels": levels} for levels in cells], "seeds": {"report": seeds},
        "report": {"metrics": ["test/jaccard"]} | report, "published": None, "ranges": RANGES,
        "tune": {"target": "val/jaccard", "sampler": "random"},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(content))
    (folder / "study.yaml").write_text(f"study: {folder.name}\n")
    pandas.DataFrame(rows).to_parquet(folder / "results.parquet", index=False)
    if tried:
        pandas.DataFrame(tried).to_parquet(folder / "searches.parquet", index=False)
    return folder


def label_of(levels: Mapping[str, str]) -> str:
    return " ".join(f"{factor}={level}" for factor, level in levels.items())


def _result(levels: Mapping[str, str], number: int, seed: int, value: float) -> Row:
    failed = math.isnan(value)
    head = {"study": "known", "phase": "confirm", "cell": label_of(levels), "configuration": "c", "seed": seed}
    head |= {f"factor.{name}": level for name, level in levels.items()} | {"stage": "finetune", "chosen": "{}"}
    head |= {"fingerprint": f"{number}-{seed}", "outcome": "diverged" if failed else "finished"}
    return head | {"cause": "loss is NaN" if failed else "", "metric": "" if failed else "test/jaccard", "value": value}


# ------------------------------------------------------------------------------------------------------- the truths

FOUR = ("encoder=free skip=true", "encoder=free skip=false", "encoder=frozen skip=true", "encoder=frozen skip=false")
CROSSED = {"encoder": ["free", "frozen"], "skip": ["true", "false"]}


def _peak(values: Mapping[str, Any]) -> float:
    """0.7 at a learning rate of 0.003, 0.05 less a decade away."""
    return 0.7 - 0.05 * (math.log10(values[LR]) - math.log10(3e-3)) ** 2


def cliff(folder: Path, generator: np.random.Generator) -> Path:
    """Above 0.02 nothing trains (0.3); weight decay does nothing; cells differ by a constant."""
    tried = searched(FOUR, 20, lambda v, c: (_peak(v) if v[LR] < 0.02 else 0.3) + 0.05 * c, generator)
    return write_study(folder, CROSSED, lambda levels: 0.7, generator, tried)


def failing(folder: Path, generator: np.random.Generator) -> Path:
    """Every trial above 0.008 diverges; weight decay has nothing to do with it."""
    tried = searched(FOUR, 12, lambda v, c: _peak(v) if v[LR] < 8e-3 else NAN, generator)
    return write_study(folder, CROSSED, lambda levels: 0.7, generator, tried)


def irrelevant(folder: Path, generator: np.random.Generator) -> Path:
    """Neither learning rate nor weight decay nor loss does anything: no importance, flat curves."""
    tried = searched(FOUR, 16, lambda v, c: 0.6 + 0.02 * c, generator, (LR, DECAY, LOSS))
    return write_study(folder, CROSSED, lambda levels: 0.7, generator, tried)


def interaction(folder: Path, generator: np.random.Generator) -> Path:
    """Skip connections help by 0.08 where the encoder is free, and do nothing where it is frozen."""
    return write_study(
        folder, CROSSED,
        lambda levels: 0.6 + 0.08 * (levels["encoder"] == "free" and levels["skip"] == "true"), generator,
    )  # fmt: skip


def rare_class(folder: Path, generator: np.random.Generator) -> Path:
    """Every fourth trial has no score, whatever its learning rate; one pretraining serves all cells."""
    tried = searched(
        ["encoder=free skip=true and encoder=free skip=false ..."], 24,
        lambda v, c: -1.0 if generator.uniform() < 0.25 else 0.5 + 0.1 * math.log10(v[TEMPERATURE]), generator,
        (TEMPERATURE,), stage="pretrain",
    )  # fmt: skip
    return write_study(folder, CROSSED, lambda levels: 0.7, generator, tried)


def saving(folder: Path, generator: np.random.Generator) -> Path:
    """0.05 more per doubling of labels, and a pretraining worth two doublings: 4 times as few labels do as well."""
    return write_study(
        folder, LABELS,
        lambda levels: 0.5 + 0.05 * (math.log2(int(levels["labels"]) / 50) + 2 * (levels["start"] == "pretrained")),
        generator, rows=["start"], columns="labels", baseline={"start": "random"},
    )  # fmt: skip


TRUTHS: dict[str, Callable[[Path, np.random.Generator], Path]] = {
    "cliff": cliff,
    "failing": failing,
    "irrelevant": irrelevant,
    "interaction": interaction,
    "rare-class": rare_class,
    "saving": saving,
}


def main(folder: Path) -> None:
    from pretune.analysis.report.figures import write_figures

    for name, write in TRUTHS.items():
        study = write(folder / name, np.random.default_rng(7))
        print(f"{name}: {(write.__doc__ or '').strip()}")
        print(f"  {len(write_figures(study, 'png'))} figures in {study / 'figures'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
