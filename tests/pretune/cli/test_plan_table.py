"""A plan on the terminal."""

from __future__ import annotations

import pytest

from pretune.cli.plan_table import counted_stages, disk, duration, memory_of_step
from pretune.plan import Plan


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (89, "89 s"), (420, "7 min"), (7500, "2 h 05 min"), (5400, "1 h 30 min")]
)
def test_durations_are_written_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("title", "count", "expected"),
    [
        ("pretrain simclr", 3, "3 pretrainings (simclr)"),
        ("pretrain.1 weights", 1, "1 second pretraining (weights)"),
        ("finetune", 18, "18 fine-tunings"),
        ("probe:knn", 2, "2 knn probes"),
    ],
)
def test_stages_are_counted_by_what_they_do(title: str, count: int, expected: str) -> None:
    assert counted_stages(title, count) == expected


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (0, "100 MB of weights; up to 60 MB more of resumable states while it runs"),
        (24, "100 MB: 76 MB of weights, 24 MB of kept states; up to 60 MB more of resumable states while it runs"),
    ],
)
def test_disk_names_weights_and_states(kept: int, expected: str) -> None:
    counts = dict.fromkeys(("cells", "configurations", "replicates", "stage_runs", "stage_runs_without_sharing"), 1)
    made = Plan(
        study="s", **counts, by_stage={}, stored=None, sharing="", continuing="", seconds=9.0, gpu_hours=0.0,
        disk_bytes=100_000_000, warnings=(), kept_bytes=kept * 1_000_000, state_bytes=30_000_000,
    )  # fmt: skip
    assert disk(made, parallel=2) == expected


def test_the_memory_of_a_step_names_checkpointing_where_it_saves_a_tenth() -> None:
    assert memory_of_step("pretrain", 12_000_000_000, 5_100_000_000) == (
        "12 GB in float32, by formula; 5.1 GB with resources.pretrain.activation_checkpointing"
    )
    assert memory_of_step("pretrain", 100, 91) == "1e-07 GB in float32, by formula"
