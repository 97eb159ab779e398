"""A plan on the terminal."""

from __future__ import annotations

import pytest

from pretune.cli.plan_table import counted_stages, disk, duration, less_memory
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
        (0, "100 MB of weights; up to 60 MB more for checkpoints during the run"),
        (
            24,
            "100 MB: 76 MB of weights, 24 MB of checkpoints that stay; up to 60 MB more for checkpoints during the run",
        ),
    ],
)
def test_disk_names_weights_and_states(kept: int, expected: str) -> None:
    counts = dict.fromkeys(("cells", "configurations", "replicates", "stage_runs", "stage_runs_without_sharing"), 1)
    made = Plan(
        study="s", **counts, by_stage={}, stored=None, continuing="", seconds=9.0, gpu_hours=0.0,
        disk_bytes=100_000_000, warnings=(), kept_bytes=kept * 1_000_000, state_bytes=30_000_000,
    )  # fmt: skip
    assert disk(made, parallel=2) == expected


def test_checkpointing_is_named_where_it_saves_a_tenth() -> None:
    said = less_memory("pretrain", 12_000_000_000, 5_100_000_000)
    assert "resources.pretrain.activation_checkpointing: true" in said
    assert "5.1 GB" in said
    assert less_memory("pretrain", 100, 90)
    assert not less_memory("pretrain", 100, 91)
