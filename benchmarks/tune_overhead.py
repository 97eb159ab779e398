"""Cost of transport per stage run: an empty trainable through Pretune's engine, and through plain Ray Tune.

python -m benchmarks.tune_overhead search      250 configurations x 4 seeds: Pretune, and OptunaSearch with Repeater
python -m benchmarks.tune_overhead growth      2000: stage runs without a search, by how many there were before
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray

from pretune.cluster.tune import run_trials, start_ray
from pretune.dispatch.resources import ClusterNode, ClusterResources
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run, stages_in
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage
from pretune.store.store import DONE
from pretune.worker.task import Folders, StageTask

PARALLEL = 2
MARKS = (250, 500, 1000, 1500, 2000, 3000, 4000)
SEEDS, STAGE_RUNS = 4, 1000
BASE: Mapping[str, Any] = {"study": "empty", "data": {"d": {"dataset": "scenes"}}}
SEARCH = BASE | {
    "finetune": {
        "data": "d",
        "epochs": 1,
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}, "weight_decay": {"log_uniform": [1e-6, 1e-2]}},
    },
    "seeds": {"search": SEEDS, "report": 1},
    "tune": {"trials": STAGE_RUNS // SEEDS, "batch": 4},
}


class Moment(NamedTuple):
    """Wall time, and CPU time of the driver, which others on the machine disturb less; seconds."""

    wall: float
    cpu: float


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


def plain(count: int) -> Mapping[str, Any]:
    factor = {"epochs": {"finetune.epochs": list(range(1, 41))}}
    return BASE | {"finetune": {"data": "d", "epochs": 1}, "factors": factor, "seeds": {"report": count // 40}}


def value_of(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def pretune_times(study: Mapping[str, Any]) -> list[Moment]:
    """When each stage run ended. Every stage is in the store when its actor looks."""
    ended: list[Moment] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)

        def task_for(stage: Stage, gpus: float) -> StageTask:
            folder = root / "store" / stage.fingerprint
            folder.mkdir(parents=True)
            (folder / DONE).write_text(
                json.dumps(
                    {"fingerprint": stage.fingerprint, "attempt": "a", "stage": stage.name, "outcome": "finished"}
                    | {"cause": "", "metrics": {}, "seconds": 0.0}
                )
            )
            return StageTask(stage, stage.name, gpus, Folders(str(root / "store"), str(root / "cache"), None))

        def find(fingerprint: str) -> Outcome | None:
            if fingerprint not in scheduler.running:
                return None
            return Outcome("finished", {"val/jaccard": value_of(fingerprint)})

        def on_event(kind: str, stage: Stage, text: str) -> None:
            if kind == "finished":
                ended.append(now())
                print_cost(ended)

        run = Run(from_dict(dict(study)), lambda data: "content", open_storage(root / "optuna.journal"))
        scheduler = Scheduler(find, 0, on_event)
        scheduler.start(program.start(run))
        run_trials(scheduler, ClusterResources([ClusterNode({"CPU": float(PARALLEL)})]), task_for, {})
        assert len(ended) == len(stages_in(run.replicates)), "a stage run is missing"
    return ended


def tune_times(count: int, reuse: bool) -> list[Moment]:
    """The same of plain Ray Tune with its Optuna and its repetition over seeds."""
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter, Repeater
    from ray.tune.search.optuna import OptunaSearch

    class Watch(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ended.append(now())

    def empty(config: dict[str, Any]) -> None:
        tune.report({"jaccard": value_of(str(sorted(config.items())))})

    ended: list[Moment] = []
    space = {"lr": tune.loguniform(1e-4, 1e-1), "weight_decay": tune.loguniform(1e-6, 1e-2)}
    with tempfile.TemporaryDirectory() as scratch:
        tune.Tuner(
            tune.with_resources(empty, {"CPU": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="jaccard",
                mode="max",
                search_alg=ConcurrencyLimiter(Repeater(OptunaSearch(), repeat=SEEDS), 4 * SEEDS),
                num_samples=count,
                reuse_actors=reuse,
            ),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0, callbacks=[Watch()]),
        ).fit()
    return ended


def print_cost(times: list[Moment]) -> None:
    """The cost of the stage runs since the mark before."""
    if len(times) in MARKS:
        first = max([0, *(mark for mark in MARKS if mark < len(times))])
        print(f"  from {first:4} to {len(times):4}: {per_run(times, first, len(times))}", flush=True)


def per_run(times: list[Moment], first: int, last: int) -> str:
    """Milliseconds per stage run between two of them."""
    start, end = times[first], times[min(last, len(times) - 1)]
    wall, cpu = (1000 * (end[k] - start[k]) / (last - first) for k in (0, 1))
    return f"{wall:.1f} ms per stage run, {cpu:.1f} ms of them the driver's CPU time"


def main(what: str, count: int) -> None:
    if what == "plain":
        ray.init(address="local", num_cpus=PARALLEL, include_dashboard=False, log_to_driver=False)
        for reuse in (True, False):
            times = tune_times(count if reuse else count // 10, reuse)
            name = f"Ray Tune, OptunaSearch, Repeater, reuse_actors={reuse}"
            print(f"{name}: {per_run(times, 0, len(times))}, n = {len(times)}", flush=True)
        return
    start_ray(None, PARALLEL)
    times = pretune_times(SEARCH if what == "search" else plain(count))
    print(f"Pretune, {what}: {per_run(times, 0, len(times))}, n = {len(times)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else STAGE_RUNS)
