"""A sample of many files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def evenly_spread(of: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of them, evenly spread over their order."""
    at: Iterable[int] = np.linspace(0, len(of) - 1, min(most, len(of))).astype(int).tolist()
    return [of[i] for i in at]
