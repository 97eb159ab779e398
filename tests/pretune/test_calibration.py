"""Costs of a plan, from timed steps."""

from __future__ import annotations

from typing import Any

from pretune.calibration import calibrate
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict

STUDY: dict[str, Any] = {
    "study": "s",
    "data": {"d": {"dataset": "scenes", "images": 40, "cache_size": 32}},
    "model": {"widths": [4, 8]},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "views": {"size": 16}, "batch_size": 8, "steps": 5},
    "finetune": {"data": "d", "size": 32, "batch_size": 8, "steps": 5},
    "seeds": {"report": 3},
}


def test_costs_grow_with_the_stages_and_count_the_weights() -> None:
    """Timings are not asserted; weights are: the stage kinds' own tensors at 4 bytes (8 for a step counter)."""
    _, stages = make_plan(from_dict(STUDY), lambda data: "digest")
    pretrain = [stage for stage in stages if stage.kind == "pretrain"]
    seconds, gpu_hours, disk, peaks, checkpointed = calibrate(pretrain[:1], lambda data: 40)
    three = calibrate(pretrain, lambda data: 40).disk_bytes
    assert peaks.keys() == checkpointed.keys() == {"pretrain"}
    assert checkpointed["pretrain"] < peaks["pretrain"]
    assert seconds > 0
    assert gpu_hours == 0
    # two levels of two 3x3 convolutions without bias (3-4-4, 4-8-8) and their norms (4 vectors and a counter each)
    weights = 4 * (9 * (3 * 4 + 4 * 4 + 4 * 8 + 8 * 8) + 4 * (4 + 4 + 8 + 8)) + 4 * 8
    assert disk == weights
    assert three == 3 * weights


def test_a_stage_that_checkpoints_is_planned_so() -> None:
    """Its peak is the lower one; a compiled stage cannot be checkpointed."""
    asked = {"resources": {"finetune": {"activation_checkpointing": True}}}
    compiled = {"finetune": STUDY["finetune"] | {"compile": True}}
    plain, checkpointed, other = (
        calibrate(make_plan(from_dict(STUDY | more), lambda data: "digest")[1][-1:], lambda data: 40)
        for more in ({}, asked, compiled)
    )
    assert checkpointed.peak_bytes == checkpointed.checkpointed_bytes == plain.checkpointed_bytes
    assert other.peak_bytes == other.checkpointed_bytes == plain.peak_bytes != plain.checkpointed_bytes
