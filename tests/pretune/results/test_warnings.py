"""Warnings about the best model, to be read before it is used: facts beside its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pretune.analysis.load.counts import Counts
from pretune.analysis.load.results import load_header
from pretune.cli import cli
from pretune.dispatch.scheduler import Scheduler
from pretune.model.model_card import model_card
from pretune.model.predict import Model
from pretune.outcomes import Outcome
from pretune.results import tables
from pretune.results.warnings import warnings_of
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run
from pretune.search_spaces.resolve import from_dict

ONE_CLASS = Counts(("bg", "leaf"), np.array([0]), np.array([[[70, 70, 100], [0, 30, 0]]]))  # jaccard 0.35
BOTH = Counts(("bg", "leaf"), np.array([0]), np.array([[[65, 70, 70], [25, 30, 30]]]))


def said(
    tiny: dict[str, Any], counts: Counts | None, score: float, signs: float = 0.0, fail: int | None = None
) -> list[str]:
    """Warnings of the first replicate; `fail` is the report seed whose fine-tunings diverge."""
    study = from_dict(tiny)
    run = Run(study, lambda data: "digest", open_storage(None))
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(run))
    seed_of = {s.fingerprint: use.replicate.seed for use in run.replicates for s in use.stages.values()}
    while (stage := scheduler.take()) is not None:
        diverges = stage.kind == "finetune" and seed_of[stage.fingerprint] == fail
        metrics = {"test/jaccard": score, "val/jaccard": score, "train/collapse_signs": signs}
        scheduler.complete(stage, Outcome("diverged", {}, "nan") if diverges else Outcome("finished", metrics))
    return warnings_of(study, run.replicates[0], run.replicates, scheduler.outcomes, counts)


@pytest.mark.parametrize(
    ("counts", "score", "signs", "fail", "expected"),
    [
        (BOTH, 0.8, 0.0, None, []),
        (None, 0.1, 0.0, None, []),
        (
            ONE_CLASS, 0.35, 0.0, None,
            ["it never predicts leaf on the test images",
             "its test/jaccard of 0.3500 is not above 0.3500, the score of predicting bg everywhere"],
        ),
        (
            BOTH, 0.30, 0.0, None,
            ["its test/jaccard of 0.3000 is not above 0.3500, the score of predicting bg everywhere"],
        ),
        (BOTH, 0.8, 2.0, None, ["its pretraining showed signs of collapse"]),
        (
            BOTH, 0.8, 0.0, 1,
            ["1 of 2 replicates of its cell failed; the cell's mean may be too good, because failed replicates are not "
             "in it"],
        ),
    ],
    ids=["nothing", "no counts", "one class", "below", "collapse", "failed"],
)  # fmt: skip
def test_what_is_said_of_a_model(
    tiny: dict[str, Any], counts: Counts | None, score: float, signs: float, fail: int | None, expected: list[str]
) -> None:
    assert said(tiny, counts, score, signs, fail) == expected


def test_predict_and_the_model_card_say_it(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "images").mkdir()
    warning = "it never predicts leaf on the test images"
    card = {"study": "s", "cell": "", "question": "", "seed": 0, "fingerprint": "f", "pretraining": [], "chosen": {}}
    card |= {"model": {"name": "unet"}, "data": {"dataset": "scenes"}, "finetune": {}, "warnings": [warning]}
    (tmp_path / "best" / "model.json").write_text(json.dumps(card))
    ran = CliRunner().invoke(cli, ["predict", str(tmp_path), str(tmp_path / "images"), str(tmp_path / "out")])
    assert f"warning: {warning}" in ran.output
    model = Model(None, ("bg", "leaf"), 8, 8, "squash", card)  # type: ignore[arg-type]
    text = model_card(model, tmp_path, "f", "checked", "masks", "use")
    assert f"## Warnings\n\n- {warning}\n" in text
    del card["warnings"]
    assert "Warnings" not in model_card(model, tmp_path, "f", "checked", "masks", "use")


@pytest.mark.parametrize(
    ("target", "direction", "expected"),
    [
        (
            "val/recall/bg",
            "minimize",
            {"test/recall/bg": "minimize", "test@64/recall/bg": "minimize", "test/recall": "maximize"},
        ),
        (
            "val/recall/bg",
            None,
            {"test/recall/bg": "maximize", "test@64/recall/bg": "maximize", "test/recall": "maximize"},
        ),
        (
            "val/jaccard",
            "minimize",
            {"test/jaccard": "minimize", "test/dice": "maximize", "test/jaccard/bg": "maximize"},
        ),
    ],
)
def test_the_direction_of_the_study_reaches_its_table(
    tiny: dict[str, Any], tmp_path: Path, target: str, direction: str | None, expected: dict[str, str]
) -> None:
    tiny["tune"] = {"target": target, "direction": direction}
    tiny["finetune"]["optimizer"] = {"lr": {"log_uniform": [0.001, 0.1]}}
    tiny["report"] = {"metrics": [name for name in expected if "@" not in name]}
    tables.write_header(from_dict(tiny), tmp_path)
    header = load_header(tmp_path)
    assert {name: header.definition(name).direction for name in expected} == expected


def test_the_header_says_which_checkpoint_each_cell_is_scored_by(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["factors"] = {"kept": {"last": {"finetune.checkpoint": "last"}, "best": {"finetune.checkpoint": "best"}}}
    tiny["report"] = {"metrics": ["test/jaccard"]}
    tables.write_header(from_dict(tiny), tmp_path, lambda data: f"digest of {data.dataset}")
    assert load_header(tmp_path).checkpoints == {"kept=last": "last", "kept=best": "best"}
    assert json.loads((tmp_path / "study.json").read_text())["data"] == {"scenes": ["digest of scenes"]}
