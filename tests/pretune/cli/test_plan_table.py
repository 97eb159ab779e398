"""A plan on the terminal."""

from __future__ import annotations

import pytest

from pretune.cli.plan_table import duration, memory_of_step


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (89, "89 s"), (420, "7 min"), (7500, "2 h 05 min"), (5400, "1 h 30 min")]
)
def test_durations_are_written_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_memory_of_a_step_names_checkpointing_where_it_saves_a_tenth() -> None:
    assert memory_of_step("pretrain", 12_000_000_000, 5_100_000_000) == (
        "12 GB in float32, by formula; 5.1 GB with resources.pretrain.activation_checkpointing"
    )
    assert memory_of_step("pretrain", 100, 91) == "1e-07 GB in float32, by formula"
