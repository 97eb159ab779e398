"""Which failures of a worker group are final: Ray Train restarts workers whatever they failed of."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.outcomes import Failure
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.trainables.data.errors import DataError, RequirementsError, Unopened
from pretune.worker.failures import StageFailedError, failed
from pretune.worker.ray_train import final_failure, note_if_final
from pretune.worker.task import Folders, StageTask


def task(tiny: dict[str, Any], store: Path) -> StageTask:
    _, stages = make_plan(from_dict(tiny), lambda data: "digest")
    return StageTask(stages[0], "a stage", 0.0, Folders(str(store), str(store.parent / "cache"), None))


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ValueError("a shape that fits nothing"), Failure.DEFECT),
        (KeyError("no such class"), Failure.DEFECT),
        (DataError("two files are damaged", ["a.png: cut off"]), Failure.BAD_DATA),
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.OUT_OF_MEMORY),
        (DataError("one file", [Unopened("a.png: cannot be opened (Input/output error)")]), None),
        (OSError(errno.EIO, "Input/output error"), None),
        (RuntimeError("connection reset by peer"), None),
        (json.JSONDecodeError("half a file", "", 0), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_ray_train_restarts_no_worker_for_a_failure_that_would_repeat(
    error: Exception, final: Failure | None, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Ray Train restarts workers whatever they failed of: one that would repeat is noted, and the next start ends."""
    asked = task(tiny, tmp_path / "store")
    note_if_final(error, asked, tmp_path)
    found = final_failure(tmp_path)
    if final is None:
        assert found == []
        return
    cause, kind = found
    assert Failure(kind) is final
    outcome = failed(StageFailedError(cause, Failure(kind)), None, tmp_path)
    assert (outcome.state, outcome.failure, outcome.policy and outcome.policy.retried) == ("crashed", final, False)
    assert str(error.args[0]).split(" ")[0] in outcome.cause


UNOPENED = Unopened("a.png: cannot be opened (Input/output error)")


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (DataError("s", ["a.png: cut off"]), True),
        (DataError("s", ["the words cannot be opened stand in a name.png: cut off"]), True),
        (DataError("s", [UNOPENED]), False),
        (DataError("s", ["b.png: cut off", UNOPENED]), False),
        (DataError("no folder there"), False),
        (RequirementsError("classification needs classes"), True),
    ],
)
def test_whether_an_error_of_data_stays_goes_by_its_kind_also_after_it_crossed_a_process(
    error: DataError, stays: bool
) -> None:
    assert (error.stays, pickle.loads(pickle.dumps(error)).stays) == (stays, stays)
