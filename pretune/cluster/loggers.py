"""TensorBoard, MLflow and Weights & Biases through the callbacks that Ray Tune has for them.

Ray's loggers get a trial of ours in place of Tune's: one with a readable name, the stage's settings as
parameters and a folder that stays. Besides what a stage reports under way they get its final metrics.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.logger import LoggerCallback
from ray.tune.utils import flatten_dict

from pretune.cluster.log_to import LogTo
from pretune.dispatch.dispatcher import TRANSPORT
from pretune.dispatch.scheduler import Scheduler
from pretune.errors import LoggerError
from pretune.worker.task import StageTask


@dataclass(frozen=True, eq=False)  # a key of the loggers' dicts, by identity
class Shown:
    """A trial, as far as loggers look at it."""

    trial_id: str
    name: str  # stage, cell and seed
    fingerprint: str
    config: dict[str, Any]  # flat settings
    local_path: str  # where TensorBoard writes
    experiment_dir_name: str  # the group of W&B's runs: the study

    def __str__(self) -> str:
        return self.name

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


def shown(trial: Any, to: LogTo) -> Shown:
    """A Tune trial as its logger sees it: what tells it from others of its study first, then all of its settings."""
    task = StageTask.from_json(trial.config[TRANSPORT]["task"])
    record = task.record()
    own = {name: value for name, value in trial.config.items() if name != TRANSPORT}
    parts = own | {name: record[name] for name in ("settings", "model", "streams")}
    safe = "".join(c if c.isalnum() or c in "-_=. " else "_" for c in task.label)[:150]
    folder = to.out / to.name / f"{safe} {task.fingerprint[:8]}"
    return Shown(trial.trial_id, task.label, task.fingerprint, flatten_dict(parts), str(folder), to.study)


class Forward(tune.Callback):
    """Hands what happens to trials on to one of Ray's loggers."""

    def __init__(self, to: LogTo, logger: Any, scheduler: Scheduler) -> None:
        self.to, self.logger, self.scheduler = to, logger, scheduler
        self.broken = False
        self.trials: dict[str, Shown] = {}

    def setup(self, *args: Any, **info: Any) -> None:
        """Raises LoggerError: a logger that does not answer at the start is better said than missed."""
        try:
            self.logger.setup(*args, **info)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LoggerError(f"--log-to {self.to.name} cannot be used: {why}") from error

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """A logger that fails under way is said once and left out from then on: it never stops the study."""
        try:
            yield
        except Exception as error:
            if not self.broken:
                logging.getLogger("pretune").warning("--log-to %s left out from now on: %s", self.to.name, error)
            self.broken = True

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials[trial.trial_id] = found = shown(trial, self.to)
        with self._unless_broken():
            self.logger.log_trial_start(found)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "step" in result and "state" not in result and trial.trial_id in self.trials:
            self._log(self.trials[trial.trial_id], iteration, numbers(result), result["step"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(iteration, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(iteration, trial)

    def _end(self, iteration: int, trial: Any) -> None:
        if found := self.trials.pop(trial.trial_id, None):
            outcome = self.scheduler.outcomes.get(found.fingerprint)
            finished = outcome is not None and outcome.state == "finished"
            if outcome is not None and outcome.metrics:
                self._log(found, iteration, dict(outcome.metrics), (trial.last_result or {}).get("step", 1))
            with self._unless_broken():
                self.logger.log_trial_end(found, failed=not finished)

    def _log(self, found: Shown, iteration: int, values: dict[str, float], step: float) -> None:
        """Steps of training are the axis of all loggers, in place of Tune's count of reports."""
        steps = {"training_iteration": step, "timesteps_total": step}
        if not self.broken:
            with self._unless_broken():
                self.logger.log_trial_result(iteration, found, values | steps)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        with self._unless_broken():
            self.logger.on_experiment_end(list(self.trials.values()), **info)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks into its own folder; nothing of ours belongs there


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return the values that a stage itself reported: names such as `train/loss`, without Tune's books."""
    return {key: value for key, value in result.items() if "/" in key and isinstance(value, int | float)}


def callbacks(destinations: Sequence[LogTo], scheduler: Scheduler) -> list[Forward]:
    return [Forward(to, MAKERS[to.name](to), scheduler) for to in destinations]


def _tensorboard(to: LogTo) -> LoggerCallback:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()  # type: ignore[no-untyped-call]


def _mlflow(to: LogTo) -> LoggerCallback:
    """Log to MLFLOW_TRACKING_URI; without it, into a database in the study's folder."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{to.out}/mlflow.db"
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=to.study)


def _wandb(to: LogTo) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=os.environ.get("WANDB_PROJECT", "pretune"), group=to.study)


MAKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
