"""Whether more stage runs would fit on one GPU than the study put there: advice, from the memory that they took.

Nothing is packed by itself. Whether several on one GPU are faster than one after the other depends on how busy one
keeps it, which only trying shows; a share that is too small ends a stage run for want of memory. No share changes a
result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from pretune.search_spaces.stages import Stage
from pretune.trainables.constants import CONTEXT

HEADROOM = 1.3  # the allocator keeps more than what tensors took at their most
MOST = 8  # on one GPU


class Taken(NamedTuple):
    """GPU memory (bytes) of one kind of stage run."""

    stage: Stage  # any of the kind
    most: float  # of one stage run, of all that ended
    total: float  # of the GPU


def fitting(taken: Taken) -> int:
    """Count the stage runs of this kind that one GPU has room for, 8 at most."""
    return max(1, min(MOST, int(taken.total / (taken.most * HEADROOM + CONTEXT))))


def advice(kinds: Mapping[str, Taken]) -> list[str]:
    """A sentence for each kind of stage run that left at least half of its GPU's memory to nobody."""
    found = []
    for name, taken in kinds.items():
        asked = taken.stage.resources.gpus_each
        share = 1.0 if asked is None else asked
        fit = fitting(taken)
        if taken.stage.resources.workers > 1 or share > 1 or fit < 2 * round(1 / share):
            continue
        each = math.floor(1000 / fit) / 1000  # rounded up, the last of them would have no room
        found.append(
            f"{name}: at most {taken.most / 1e9:.1f} of the GPU's {taken.total / 1e9:.0f} GB were used; with "
            f"resources.{taken.stage.kind}.gpus: {each:g} up to {fit} stage runs share one (results stay; faster "
            "where one alone leaves the GPU waiting)"
        )
    return found
