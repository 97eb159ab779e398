"""Costs of a plan, from timed steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretune.calibration import busy_note, calibrate, validations
from pretune.plan import make_plan
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import from_dict
from pretune.trainables.models.table import build_unet

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
    found = calibrate(pretrain[:1], lambda data: 40)
    three = calibrate(pretrain, lambda data: 40).disk_bytes
    assert found.peak_bytes.keys() == found.checkpointed_bytes.keys() == {"pretrain"}
    assert found.checkpointed_bytes["pretrain"] < found.peak_bytes["pretrain"]
    assert found.seconds > 0
    assert found.gpu_hours == 0
    # two levels of two 3x3 convolutions without bias (3-4-4, 4-8-8) and their norms (4 vectors and a counter each)
    weights = 4 * (9 * (3 * 4 + 4 * 4 + 4 * 8 + 8 * 8) + 4 * (4 + 4 + 8 + 8)) + 4 * 8
    assert found.disk_bytes == weights
    assert found.kept_bytes == 0
    assert three == 3 * weights


def test_the_time_of_a_plan_is_parted_by_what_takes_it() -> None:
    _, stages = make_plan(from_dict(STUDY), lambda data: "digest")
    found = calibrate(stages, lambda data: 40)
    assert list(found.seconds_by_part) == ["pretraining", "fine-tuning", "evaluation"]
    assert sum(found.seconds_by_part.values()) == pytest.approx(found.seconds)
    alone = calibrate([stage for stage in stages if stage.kind == "pretrain"], lambda data: 40)
    assert "fine-tuning" not in alone.seconds_by_part


@pytest.mark.parametrize(
    ("changes", "epochs", "expected"),
    [
        ({}, 5, 1),
        ({"checkpoint": "best"}, 5, 5),
        ({"checkpoint": "best", "validate_every": 2}, 5, 3),  # and once at the end
        ({"validate_every": 2}, 4, 2),
        ({"validate_every": 9}, 4, 1),
    ],
)
def test_how_often_validation_images_are_scored(changes: dict[str, Any], epochs: int, expected: int) -> None:
    settings = schema.Finetune.model_validate({"data": "d", "size": 32, "batch_size": 8, "epochs": epochs, **changes})
    assert validations(settings, epochs) == expected


@pytest.mark.parametrize(("changes", "copies"), [({}, 1), ({"checkpoint": "best"}, 2)])
def test_disk_counts_the_states_that_are_kept(changes: dict[str, Any], copies: int) -> None:
    """A state is the weights, Adam's two averages of each, and the best weights where these are scored."""
    finetune = {"finetune": STUDY["finetune"] | changes}
    plain, kept = (
        calibrate(make_plan(from_dict(STUDY | finetune | more), lambda data: "digest")[1], lambda data: 40)
        for more in ({}, {"keep_states": True})
    )
    network = build_unet(schema.UNet.model_validate({"name": "unet", "widths": [4, 8]}), 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    averages = [one for held in optimizer.state.values() for name, one in held.items() if name != "step"]
    weights = list(network.state_dict().values())
    state = sum(t.numel() * t.element_size() for t in [*averages, *copies * weights])
    assert kept.disk_bytes == plain.disk_bytes + kept.kept_bytes
    assert kept.kept_bytes > 3 * state
    assert kept.state_bytes == plain.state_bytes >= state
    finetunings = [s for s in make_plan(from_dict(STUDY | finetune), lambda data: "digest")[1] if s.kind == "finetune"]
    assert calibrate(finetunings, lambda data: 40).state_bytes == state


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


@pytest.mark.parametrize(("load", "cores", "said"), [(0.0, 1, False), (2.0, 2, False), (2.1, 2, True), (7.9, 8, False)])
def test_a_plan_says_that_the_machine_is_busy_where_more_programs_want_a_core_than_there_are(
    load: float, cores: int, said: bool
) -> None:
    assert [f"load {load} on {cores}" in note for note in busy_note(load, cores)] == [True] * said
