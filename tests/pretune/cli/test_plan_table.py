"""A plan on the terminal."""

from __future__ import annotations

import pytest

from pretune.cli.plan_table import duration


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (89, "89 s"), (420, "7 min"), (7500, "2 h 05 min"), (5400, "1 h 30 min")]
)
def test_durations_are_written_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
