"""A study's stage runs, exported as an experiment and read by Ray's own readers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from studies import write_study

from pretune.cluster.experiment import stage_runs

READ = """
import json, sys
from ray import tune
from ray.tune import ExperimentAnalysis, ResultGrid
from pretune.cluster.replay import Replay

grid = ResultGrid(ExperimentAnalysis(sys.argv[1]))
restored = tune.Tuner.restore(sys.argv[1], Replay).get_results()
assert [r.config for r in restored] == [r.config for r in grid]
assert grid.num_errors == 0, grid.errors
read = [{"config": r.config, "metrics": r.metrics, "curve": r.metrics_dataframe.to_dict("list")} for r in grid]
print(json.dumps(read))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cells at two seeds, one of which diverged, with a tuned value."""
    scores = {"freeze=none": [0.5, math.nan], "freeze=encoder": [0.25, 0.75]}
    made = write_study(tmp_path / "study", scores, {"freeze": ["none", "encoder"]}, also=2)
    results = pd.read_parquet(made / "results.parquet")
    levels = results["cell"].str.removeprefix("freeze=")
    chosen = json.dumps({"finetune.optimizer.lr": 0.003})
    results.assign(**{"factor.freeze": levels, "chosen": chosen}).to_parquet(made / "results.parquet", index=False)
    return made


def test_a_stage_run_is_configured_as_its_rows_say_and_ends_with_its_scores(folder: Path) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    runs = stage_runs(folder)
    assert len(runs) == len(results.groupby(["phase", "cell", "seed", "stage", "fingerprint"]))
    for run in runs:
        own = results[(results["fingerprint"] == run.config["fingerprint"])]
        first = own.iloc[0]
        assert run.config["label"] == f"{first['stage']} {first['cell']} seed {first['seed']}".replace("  ", " ")
        assert {name: value for name, value in run.config.items() if name.startswith("factor.")} == {
            name: first[name] for name in results if name.startswith("factor.") and isinstance(first[name], str)
        }
        assert json.loads(first["chosen"]).items() <= run.config.items()
        for metric, value in zip(own["metric"], own["value"], strict=True):
            assert metric == "" or math.isclose(run.points[-1][metric], value)
        assert run.points[-1]["outcome"] == first["outcome"]


@pytest.mark.ray
def test_rays_result_grid_reads_an_exported_study(folder: Path, tmp_path: Path) -> None:
    expected = stage_runs(folder)
    target = tmp_path / "exported"
    words = [sys.executable, "-m", "pretune", "export", str(folder), "--format", "ray-tune", "--out", str(target)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"wrote {len(expected)} stage runs to {target}\n"
    read = subprocess.run([sys.executable, "-c", READ, str(target)], capture_output=True, text=True, timeout=300)
    assert read.returncode == 0, read.stderr
    found = {one["config"]["run"]: one for one in json.loads(read.stdout.splitlines()[-1])}
    assert len(found) == len(expected)
    for place, run in enumerate(expected):
        assert run.config.items() <= found[place]["config"].items()
        last = {name: value for name, value in run.points[-1].items() if value == value}
        assert last.items() <= found[place]["metrics"].items()
        assert len(found[place]["curve"]["outcome"]) == len(run.points)
