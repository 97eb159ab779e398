"""Beginning a search with what the store holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import SEEN_BEFORE, open_storage
from pretune.search.replicates import Run
from pretune.search.samplers import OVER
from pretune.search.warm_start import in_space
from pretune.search_spaces import schema, space
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import FIRST_SEARCH_SEED, stream_seed
from pretune.worker.task import Folders, StageTask

BASE: dict[str, Any] = {
    "study": "s",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "finetune": {"data": "d", "epochs": 2, "optimizer": {"name": "adam", "lr": {"log_uniform": [1e-4, 1e-1]}}},
    "seeds": {"search": 2, "report": 2},
    "tune": {"trials": 8, "batch": 4, "startup": 4},
}


def run_study(entries: list[dict[str, Any]], **changes: Any) -> tuple[Run, list[dict[str, Any]], Any]:
    """Drive a study; also what the store would tell of its stage runs.

    A score depends on the learning rate and, much more, on the seed: validation images differ. Every stage run below
    a rate of 1e-3 takes 9 seconds, others 1.
    """
    storage = open_storage(None)
    run = Run(from_dict(BASE | changes), lambda data: "digest", storage)
    run.earlier = lambda: entries
    scheduler, left = Scheduler(lambda key: None, 0), []
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        assert isinstance(stage.settings, schema.Finetune)
        lr = stage.settings.optimizer.lr
        metrics = {"val/jaccard": -abs(np.log10(lr) + 2) + stage.streams["init"] % 7}
        spent = {"cost/seconds": 9.0 if lr < 1e-3 else 1.0}
        task = StageTask(stage, "", 0.0, Folders("", "", None))
        left.append({"order": task.record(), "metrics": metrics | spent})
        scheduler.complete(stage, Outcome("finished", metrics, "", "", spent))
    return run, left, storage


def seen_before(storage: Any) -> list[optuna.trial.FrozenTrial]:
    [summary] = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()
    return [trial for trial in trials if SEEN_BEFORE in trial.user_attrs]


def test_a_search_begins_with_what_an_earlier_study_measured_and_says_so() -> None:
    first, entries, _ = run_study([])
    warm = BASE["tune"] | {"warm_start": True, "seed": 5}
    second, _, storage = run_study(entries, tune=warm, seeds={"search": 2, "report": 3})
    taken = seen_before(storage)
    asked = {round(value, 12) for answer in first.trials for value in answer.values.values()}
    assert {round(trial.params["finetune.optimizer.lr"], 12) for trial in taken} == asked
    seeds = [stream_seed("init", FIRST_SEARCH_SEED + i) % 7 for i in range(2)]
    assert [trial.value for trial in taken] == pytest.approx(
        [-abs(np.log10(t.params["finetune.optimizer.lr"]) + 2) + np.mean(seeds) for t in taken]
    )
    said = f"warm start: {len(taken)} stored trials added to the sampler"
    assert f"{said} (of its own pretraining, mean over 2 seeds of 2), not counted as trials" in second.notes[0]
    assert len(second.trials) == 8  # what was taken is not counted as asked
    new = {round(value, 12) for answer in second.trials for value in answer.values.values()}
    assert len(new - asked) == 8  # nor asked again, under the same study seed too


def test_scores_of_other_seeds_are_no_part_of_what_is_told() -> None:
    """The selection of an earlier study has seeds of its own; the sampler is told of the seeds that all have."""
    _, entries, _ = run_study([], tune=BASE["tune"] | {"top_k": 3}, seeds={"search": 3, "select": 5, "report": 2})
    changes: dict[str, Any] = {"tune": BASE["tune"] | {"warm_start": True}}
    _, _, storage = run_study(entries, **changes)
    everywhere = {t.params["finetune.optimizer.lr"]: t.value for t in seen_before(storage)}
    lost = entries[0]["order"]["settings"]["optimizer"]["lr"]
    streams = entries[0]["order"]["streams"]
    fewer = [
        e for e in entries if e["order"]["streams"] == streams or e["order"]["settings"]["optimizer"]["lr"] != lost
    ]
    run, _, storage = run_study(fewer, **changes)
    first = {t.params["finetune.optimizer.lr"]: t.value for t in seen_before(storage)}
    assert everywhere.keys() == first.keys()
    assert "mean over 1 seed of 2" in run.notes[0]
    offset = [stream_seed("init", FIRST_SEARCH_SEED + i) % 7 for i in range(2)]
    for lr, value in everywhere.items():
        assert value == pytest.approx(-abs(np.log10(lr) + 2) + np.mean(offset))
        assert first[lr] == pytest.approx(-abs(np.log10(lr) + 2) + offset[0])


def test_what_diverged_at_a_seed_is_not_averaged_over_its_survivors() -> None:
    _, entries, _ = run_study([])
    lost = entries[0]["order"]["settings"]["optimizer"]["lr"]
    entries[0]["metrics"] = {}
    _, _, storage = run_study(entries, tune=BASE["tune"] | {"warm_start": True})
    taken = {trial.params["finetune.optimizer.lr"] for trial in seen_before(storage)}
    assert len(taken) == 7
    assert lost not in taken


def test_what_broke_a_constraint_is_told_so() -> None:
    _, entries, _ = run_study([])
    tune = BASE["tune"] | {"warm_start": True, "constraints": {"cost/seconds": 3.0}}
    _, _, storage = run_study(entries, tune=tune)
    for trial in seen_before(storage):
        over = 2.0 if trial.params["finetune.optimizer.lr"] < 1e-3 else -2 / 3  # in shares of the bound
        assert trial.user_attrs[OVER] == pytest.approx([-1.0, over])
    assert {trial.user_attrs[OVER][1] > 0 for trial in seen_before(storage)} == {True, False}


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune": BASE["finetune"] | {"epochs": 3}},
        {"finetune": BASE["finetune"] | {"loss": "cross-entropy"}},
        {"model": {"name": "unet", "widths": [8, 16]}},
        {"finetune": BASE["finetune"] | {"optimizer": {"name": "sgd", "lr": {"log_uniform": [1e-4, 1e-1]}}}},
    ],
)
def test_what_differs_in_more_than_the_ranges_is_not_taken(changes: dict[str, Any]) -> None:
    _, entries, _ = run_study([])
    _, _, storage = run_study(entries, tune=BASE["tune"] | {"warm_start": True}, **changes)
    assert seen_before(storage) == []


def test_values_are_read_back_from_settings() -> None:
    template = {
        "lr": space.Uniform(0.0, 1.0),
        "method": space.Choice(({"name": "a", "k": space.Int(1, 5)}, {"name": "b"})),
        "extra": space.Subset(("x", "y")),
    }
    found = in_space(template, {"lr": 0.5, "method": {"name": "a", "k": 3}, "extra": ["y"], "other": 1})
    assert found == {"lr": 0.5, "method": 0, "method[a].k": 3, "extra": ["y"]}
    assert in_space(template, {"lr": 0.5, "method": {"name": "b"}, "extra": []}) == {
        "lr": 0.5,
        "method": 1,
        "extra": [],
    }
    assert in_space(template, {"lr": 2.0, "method": {"name": "b"}, "extra": []}) is None
    assert in_space(template, {"lr": 0.5, "method": {"name": "a", "k": 9}, "extra": []}) is None
