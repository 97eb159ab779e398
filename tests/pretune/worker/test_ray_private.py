"""What Pretune uses of Ray without Ray publishing it: each by name, here and in the Ray that is installed."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray._private import ray_constants
from ray._private.state import GlobalState
from ray.train import WorkerGroupError
from ray.tune.execution import class_cache

from pretune.cluster.tune import keep_keys_to_ourselves
from pretune.cluster.tune_callbacks import Watchdog
from pretune.dispatch.dispatcher import Dispatcher
from pretune.worker import preemption, ray_private
from pretune.worker.ray_private import MissingInRayError

PACKAGE = Path(ray_private.__file__).resolve().parents[1]
KNOWS = r"it was tried with 2\.52 to 2\.60: pip install 'ray\[default,data,train,tune\]~=2\.60\.0'$"


def test_no_other_module_uses_what_ray_keeps_to_itself() -> None:
    private = ("ray._private", "ray._raylet", "ray._common", "ray.experimental", "ray.tune.execution", "_do_request")
    files = [Path(folder) / name for folder, _, names in os.walk(PACKAGE, followlinks=True) for name in names]
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in files
        if file.suffix == ".py" and any(word in file.read_text(encoding="utf-8") for word in private)
    }
    assert len(files) > 200
    assert found == {"worker/ray_private.py"}


# ---------------------------------------------------------------------------------------------- in the Ray that is here


def test_a_ray_that_was_imported_before_reads_its_settings_again() -> None:
    """Whether it obeys: tests/pretune/cluster/test_listening.py. In a process of its own, which it changes."""
    code = """
from ray._private import ray_constants
from pretune.worker.ray_private import settings_read_again
assert ray_constants.ENABLE_RAY_CLUSTER
with settings_read_again():
    assert not ray_constants.ENABLE_RAY_CLUSTER
assert ray_constants.ENABLE_RAY_CLUSTER
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_ray_has_the_list_of_variables_that_tune_sends_to_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {"AWS_ACCESS_KEY_ID", "OTHER"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    keep_keys_to_ourselves()
    assert {"OTHER"} == class_cache.ENV_VARS_TO_PROPAGATE


def test_ray_train_keeps_the_exception_of_a_worker() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    wrapped = UserExceptionWithTraceback(KeyError("no such class"), "Traceback ...")
    found = ray_private.worker_exception(WorkerGroupError("failed", {0: wrapped}))
    assert (type(found), found.args) == (KeyError, ("no such class",))
    lost = OSError("the actor died")
    assert ray_private.worker_exception(WorkerGroupError("failed", {1: lost})) is lost


def test_ray_train_keeps_why_a_worker_is_held_for_dead() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost = OSError("the actor died")
    assert ray_private.cause_of_death(WorkerHealthCheckFailedError("it does not answer", lost)) is lost
    assert ray_private.cause_of_death(lost) is lost


QUESTIONS = """
import logging, sys, ray
from pretune.cluster.tune import start_ray, stop_ray
from pretune.worker import preemption, ray_private
start_ray(None, 1)
ray_private.check_head(ray.get_runtime_context().gcs_address)
assert preemption.warnings_of_ray() == [], preemption.warnings_of_ray()
assert not ray_private.is_draining()
assert not preemption.is_stopping()
preemption.ask_to_stop()
assert preemption.is_stopping()
stop_ray()
"""


@pytest.mark.ray
def test_ray_answers_who_drains_and_keeps_that_a_study_stops_and_tells_its_version(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    script = [sys.executable, "-c", QUESTIONS]
    done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- where Ray lacks it


OPEN = "a cluster on this machine would be open to others, so none is started; `pretune run` starts one"


@pytest.mark.parametrize(
    ("owner", "name", "use", "sentence"),
    [
        (ray_constants, "ENABLE_RAY_CLUSTER", lambda: ray_private.settings_read_again().__enter__(), OPEN),
        (ray._raylet, "Config", lambda: ray_private.settings_read_again().__enter__(), OPEN),
        (class_cache, "ENV_VARS_TO_PROPAGATE", lambda: ray_private.keep_from_actors({"AWS_SECRET_ACCESS_KEY"}),
         "AWS_SECRET_ACCESS_KEY would be shown on Ray's dashboard, so no stage is started"),
        (GlobalState, "get_draining_nodes", ray_private.is_draining,
         "drain notices are not seen; stages of a drained node go on from their last saved state"),
    ],
    ids=["loopback", "authentication", "keys", "drain notices"],
)  # fmt: skip
def test_what_ray_lacks_is_named_with_what_is_lost(
    owner: Any, name: str, use: Callable[[], Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(
        MissingInRayError, match=rf"Ray {re.escape(ray.__version__)} lacks .*{name}.*: {sentence}; {KNOWS}"
    ):
        use()


def test_a_study_without_keys_needs_no_list_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(class_cache, "ENV_VARS_TO_PROPAGATE")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    keep_keys_to_ourselves()


def test_a_cluster_is_joined_unchecked_where_ray_cannot_check_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(ray._raylet, "GcsClient")
    ray_private.check_head("127.0.0.1:1")
    assert "the cluster is not checked first; joining it may take minutes to fail" in caplog.text


def test_a_worker_whose_exception_ray_keeps_elsewhere_is_said(caplog: pytest.LogCaptureFixture) -> None:
    hidden = type("UserExceptionWithTraceback", (Exception,), {})("Traceback ...")
    whole = WorkerGroupError("failed", {0: hidden})
    assert ray_private.worker_exception(whole) is whole
    assert "_base_exc" in caplog.text
    assert "the kind of a worker's failure is not known, so the stage is tried again" in caplog.text


def test_the_driver_says_before_the_first_stage_which_notices_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GlobalState, "get_draining_nodes")
    monkeypatch.setattr(ray, "get_actor", lambda name: None)
    (drained,) = preemption.warnings_of_ray()
    assert "drain notices are not seen" in drained


def test_a_stage_says_once_that_ray_does_not_answer_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One question fails for good and one now and then: the other is still asked, and so is this one."""

    def draining() -> bool:
        raise AttributeError("no attribute 'get_draining_nodes'")

    answers = [OSError("the head is away"), OSError("the head is away"), True]

    def stopping() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked = {draining: "this node is draining", stopping: "the study is being stopped"}
    monkeypatch.setattr(preemption, "QUESTIONS", asked)
    monkeypatch.setattr(preemption, "ASK_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING), preemption.at_work() as preempted:
        assert [preempted(), preempted(), preempted()] == [False, False, True]
    assert [record.message for record in caplog.records] == [
        "Ray does not answer whether this node is draining (no attribute 'get_draining_nodes'); it is asked again",
        "Ray does not answer whether the study is being stopped (the head is away); it is asked again",
    ]


def test_a_stopped_study_whose_stages_cannot_be_asked_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ended: list[int] = []
    monkeypatch.setattr(ray, "remote", lambda what: 1 / 0)
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(number))
    dispatcher = SimpleNamespace(live={}, reap=lambda ended: None, stopping=1.0, overdue=False, say=said.append)
    watchdog = Watchdog(cast(Dispatcher, dispatcher))
    for step in range(2):
        watchdog.on_step_end(step, [])
    assert ended == [signal.SIGUSR1]
    assert len(said) == 1
    assert said[0].endswith("division by zero: stages stop now, and will continue from their last saved state")
