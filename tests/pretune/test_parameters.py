"""Names of stage runs in Ray's and others' tables, and the driver for which each counts as trained."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run, stages_in
from pretune.search_spaces.resolve import from_dict
from pretune.status import State
from pretune.store.lookup import DRIVER
from pretune.store.store import Store

DONE = Outcome("finished", {"val/jaccard": 0.5, "val/pretext_loss": 1.0, "test/jaccard": 0.5})


def test_parameters_are_stage_phase_seed_levels_and_chosen_values(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A pretraining that both cells share carries no level, and no value of a fine-tuning."""
    tiny["finetune"]["optimizer"] = {"lr": {"choice": [0.01, 0.1]}}
    tiny["factors"] = {"encoder": {"finetune.freeze": ["none", "encoder"]}}
    tiny["seeds"] = {"search": 1, "report": 2}
    tiny["tune"] = {"trials": 2, "batch": 2, "startup": 1}
    study = from_dict(tiny)
    run = Run(study, lambda data: "digest", open_storage(None))
    state = State(study, run, Store(tmp_path), tmp_path, 0.0, io.StringIO())
    scheduler = state.scheduler = Scheduler(lambda key: None, 0, state.event)
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        scheduler.complete(stage, DONE)
    found = {state.label(one): state.parameters(one) for one in stages_in(run.replicates).values()}
    assert found["pretrain simclr seed 1"] == {"stage": "pretrain", "phase": "confirm", "seed": 1}
    confirmed = found["finetune encoder=encoder seed 1"]
    assert {name: value for name, value in confirmed.items() if name != "finetune.optimizer.lr"} == {
        "stage": "finetune", "phase": "confirm", "seed": 1, "factor.encoder": "encoder",
    }  # fmt: skip
    assert confirmed["finetune.optimizer.lr"] in ("0.01", "0.1")
    assert all(parameters["stage"] == label.split(" ")[0] for label, parameters in found.items())


@pytest.mark.parametrize(("driver", "counts"), [("own", (1, 0)), ("another", (0, 1)), (None, (1, 0))])
def test_each_driver_on_one_store_counts_what_it_trained(
    driver: str | None, counts: tuple[int, int], tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Entries of before 2026-11-29 name no driver."""
    study = from_dict(tiny)
    run = Run(study, lambda data: "digest", open_storage(None))
    state = State(study, run, Store(tmp_path), tmp_path, 0.0, io.StringIO())
    scheduler = state.scheduler = Scheduler(lambda key: None, 0, state.event)
    scheduler.start(program.start(run))
    stage = scheduler.take()
    assert stage is not None
    about = {} if driver is None else {DRIVER: state.driver if driver == "own" else driver}
    state.store.finish(state.store.begin(stage.fingerprint), stage.name, "finished", "", {}, 1.0, about)
    scheduler.complete(stage, DONE)
    assert (state.trained, state.taken_over) == counts
