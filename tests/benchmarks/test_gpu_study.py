"""Tables on one GPU without Ray: order, resuming and means, and a whole tiny study on a CPU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_study
from pretune.outcomes import Outcome
from pretune.plan import simulate
from pretune.search_spaces.resolve import load
from pretune.worker.execute import execute
from pretune.worker.task import StageTask

STUDY = """
study: t
data: {s: {dataset: scenes, images: 24, cache_size: 16, split: {test: 0.25, val: 0.0}}}
model: {name: unet, widths: [4, 8]}
pretrain: {data: s, method: {name: simclr, hidden: 8, dim: 4}, views: {size: 16}, batch_size: 8, steps: 1}
finetune: {data: s, size: 16, batch_size: 8, steps: 1}
factors: {freeze: {finetune.freeze: [none, encoder]}}
seeds: {report: 2}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "t.yaml"
    file.write_text(STUDY)
    return file


def test_a_seed_is_finished_before_the_next_and_pretrainings_are_shared(study: Path) -> None:
    run, _ = simulate(load(study), lambda data: "digest")
    stages = gpu_study.in_order(run.replicates)
    assert [stage.name for _, stage in stages] == ["pretrain", "finetune", "finetune"] * 2


def test_what_needs_a_crashed_stage_is_left_out_and_nothing_runs_after_the_time(study: Path) -> None:
    run, _ = simulate(load(study), lambda data: "digest")
    stages, ran = gpu_study.in_order(run.replicates), []

    def one(stage: gpu_study.Stage, name: str) -> Outcome:
        ran.append(name)
        return Outcome("crashed" if len(ran) == 1 else "finished", {"test/jaccard": 0.5})

    over = iter([False] * 5 + [True])
    outcomes = gpu_study.run_until(stages, one, lambda: next(over))
    assert [outcome.state for outcome in outcomes.values()] == ["crashed", "blocked", "blocked", "finished", "finished"]
    assert len(ran) == 3
    assert [row["seed"] for row in gpu_study.scores(run.replicates, outcomes)] == [
        run.replicates[-1].replicate.pretrain
    ]


def test_means_of_cells() -> None:
    rows = [{"cell": "a", "m": 0.5}, {"cell": "a", "m": 0.7}, {"cell": "b", "m": 0.25}, {"cell": "c"}]
    assert gpu_study.means(rows, "m") == ["a | 0.600 ± 0.141 (n = 2)", "b | 0.250 (n = 1)"]


def test_a_study_runs_without_ray_and_again_from_its_store(study: Path, tmp_path: Path) -> None:
    where = gpu_study.folders(argparse.Namespace(out=tmp_path / "out", data=tmp_path))
    loaded = load(study)
    run, _ = simulate(loaded, gpu_study.prepared(loaded, where))
    stages = gpu_study.in_order(run.replicates)[:3]
    before = set(sys.modules)

    def one(stage: gpu_study.Stage, name: str) -> Outcome:
        return execute(StageTask(stage, name, 0.0, where), lambda values: None)

    first, second = (gpu_study.run_until(stages, one, lambda: False) for _ in range(2))
    assert [outcome.state for outcome in first.values()] == ["finished"] * 3, first
    assert {key: outcome.metrics for key, outcome in first.items()} == {
        key: outcome.metrics for key, outcome in second.items()
    }
    assert len(list(gpu_study.scores(run.replicates, first))) == 2
    assert "ray" in before or "ray" not in sys.modules
