"""Beginning a search with what the store holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from pretune import program
from pretune.execute import Folders, order_of
from pretune.outcomes import Outcome, Run
from pretune.scheduler import Scheduler
from pretune.search import SEEN_BEFORE, open_storage
from pretune.warm import in_space
from search_spaces import schema, space
from search_spaces.resolve import from_dict

BASE: dict[str, Any] = {
    "study": "s",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "finetune": {"data": "d", "epochs": 2, "optimizer": {"name": "adam", "lr": {"log_uniform": [1e-4, 1e-1]}}},
    "seeds": {"search": 2, "report": 2},
    "tune": {"trials": 8, "batch": 4, "startup": 4},
}


def run_study(entries: list[dict[str, Any]], **changes: Any) -> tuple[Run, list[dict[str, Any]], Any]:
    """Drive a study; also what the store would tell of its stage runs."""
    storage = open_storage(None)
    run = Run(from_dict(BASE | changes), lambda data: "digest", storage)
    run.earlier = lambda: entries
    scheduler, left = Scheduler(lambda key: None, 0), []
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        assert isinstance(stage.settings, schema.Finetune)
        metrics = {"val/jaccard": -abs(np.log10(stage.settings.optimizer.lr) + 2)}
        order = order_of(stage, "", 0.0, Folders("", "", None))
        left.append({"order": order.__dict__, "metrics": metrics})
        scheduler.complete(stage, Outcome("finished", metrics))
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
    asked = {round(value, 12) for answer in first.answers for value in answer.values.values()}
    assert {round(trial.params["finetune.optimizer.lr"], 12) for trial in taken} == asked
    assert [trial.value for trial in taken] == pytest.approx(
        [-abs(np.log10(t.params["finetune.optimizer.lr"]) + 2) for t in taken]
    )
    assert f"begins with {len(taken)} configurations" in second.notes[0]
    assert len(second.answers) == 8  # what was taken is not counted as asked


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
