"""Stage runs said again as trials of Ray Tune: what Tune calls. Needs Ray started (`experiment`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.search import Searcher

RUN = "run"  # key of a trial's configuration: the place of its stage run
LONGEST = 150  # characters of a folder's name


class Replay(tune.Trainable):
    """A trial that reports the points of one stage run, one a step."""

    def setup(self, config: dict[str, Any], points: Sequence[Sequence[dict[str, Any]]] = ()) -> None:
        self.points = points
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.left = list(self.points[new_config[RUN]])
        return True

    def step(self) -> dict[str, Any]:
        point = self.left.pop(0)
        return {**point, "done": not self.left}


class InOrder(Searcher):
    """Gives every stage run once."""

    def __init__(self, configs: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self.left = list(configs)

    def suggest(self, trial_id: str) -> Any:
        return self.left.pop(0) if self.left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned from it."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials hold all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def folder_of(trial: Any) -> str:
    safe = "".join(c if c.isalnum() or c in "-_=. " else "_" for c in str(trial.config["label"]))[:LONGEST]
    return f"{trial.config[RUN]:05d} {safe}"


def replay(configs: Sequence[dict[str, Any]], points: Sequence[Sequence[dict[str, Any]]], target: Path) -> None:
    """Run a trial for each configuration and its points. They leave their experiment at `target`."""
    trainable = tune.with_parameters(Replay, points=points)
    tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=InOrder([config | {RUN: i} for i, config in enumerate(configs)]),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.config["label"]),
            trial_dirname_creator=folder_of,
        ),
        run_config=tune.RunConfig(
            name=target.name,
            storage_path=str(target.resolve().parent),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[JsonLoggerCallback(), CSVLoggerCallback(), TBXLoggerCallback()],  # type: ignore[no-untyped-call]
        ),
    ).fit()
