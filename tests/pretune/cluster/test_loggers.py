"""Ray's own loggers for TensorBoard and MLflow, given a trial of ours; read back with each tool's own reader."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretune.cluster.log_to import LogTo
from pretune.cluster.loggers import Forward, callbacks
from pretune.dispatch.dispatcher import TRANSPORT
from pretune.dispatch.scheduler import Scheduler
from pretune.errors import LoggerError
from pretune.outcomes import Outcome
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.worker.task import Folders, StageTask


def played(tiny: dict[str, Any], name: str, out: Path) -> Forward:
    """One fine-tuning: two reports, then its end with final metrics."""
    _, stages = make_plan(from_dict(tiny), lambda data: "0" * 64)
    stage = next(stage for stage in stages if stage.kind == "finetune")
    task = StageTask(stage, "finetune a/b seed 0", 0.0, Folders("", "", None))
    scheduler = Scheduler(lambda key: None, 0, lambda *event: None)
    trial = SimpleNamespace(
        trial_id="1",
        config={"label": task.label, "seed": 0, "finetune.optimizer.lr": 0.01, TRANSPORT: {"task": task.to_json()}},
        last_result={"step": 6},
    )
    (forward,) = callbacks([LogTo(name, "tiny", out)], scheduler)
    forward.setup()
    forward.on_trial_start(0, [trial], trial)
    for step, loss in ((2, 0.5), (4, 0.25)):
        forward.on_trial_result(0, [trial], trial, {"step": step, "train/loss": loss, "time_total_s": 9.0})
    scheduler.outcomes[stage.fingerprint] = Outcome("finished", {"val/jaccard": 0.75})
    forward.on_trial_complete(0, [trial], trial)
    forward.on_experiment_end([trial])
    return forward


def test_tensorboard_gets_curves_over_training_steps_in_a_readable_folder(tiny: dict[str, Any], tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    played(tiny, "tensorboard", tmp_path)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name.startswith("finetune a_b seed 0 ")
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("ray/tune/train/loss")] == [(2, 0.5), (4, 0.25)]
    assert [(e.step, e.value) for e in found.Scalars("ray/tune/val/jaccard")] == [(6, 0.75)]
    assert "ray/tune/time_total_s" not in found.Tags()["scalars"]


def test_tensorboards_hparams_show_what_tells_a_stage_run_from_others(tiny: dict[str, Any], tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    hparams = pytest.importorskip("tensorboard.plugins.hparams.metadata")
    played(tiny, "tensorboard", tmp_path)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    written = found.PluginTagToContent("hparams")
    shown = hparams.parse_session_start_info_plugin_data(written[hparams.SESSION_START_INFO_TAG]).hparams
    assert shown["label"].string_value == "finetune a/b seed 0"
    assert (shown["seed"].number_value, shown["finetune.optimizer.lr"].number_value) == (0, 0.01)
    assert shown["settings/optimizer/lr"].number_value == 0.01
    assert not [name for name in shown if "task" in name]
    experiment = hparams.parse_experiment_plugin_data(written[hparams.EXPERIMENT_TAG])
    assert "ray/tune/val/jaccard" in {info.name.tag for info in experiment.metric_infos}


@pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports
def test_mlflow_gets_a_run_named_by_stage_with_its_settings(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    played(tiny, "mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert (run.info.run_name, run.info.status) == ("finetune a/b seed 0", "FINISHED")
    assert (run.data.params["settings/optimizer/lr"], run.data.metrics["val/jaccard"]) == ("0.01", 0.75)


def test_a_logger_that_fails_under_way_is_said_once_and_left_out(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("ray.tune.logger.TBXLoggerCallback.log_trial_result", full)
    with caplog.at_level(logging.WARNING, "pretune"):
        assert played(tiny, "tensorboard", tmp_path).broken
    assert caplog.messages == ["--log-to tensorboard left out from now on: no space left on device"]


def test_a_logger_that_does_not_answer_at_the_start_is_an_error(tmp_path: Path) -> None:
    def refuse(*args: Any, **info: Any) -> None:
        raise ConnectionRefusedError("connection refused by http://127.0.0.1:1\nand more")

    scheduler = Scheduler(lambda key: None, 0, lambda *event: None)
    forward = Forward(LogTo("mlflow", "tiny", tmp_path), SimpleNamespace(setup=refuse), scheduler)
    with pytest.raises(LoggerError, match=r"--log-to mlflow .*connection refused .*http://127\.0\.0\.1:1$"):
        forward.setup()
