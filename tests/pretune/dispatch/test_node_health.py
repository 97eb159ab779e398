"""Machines on which stages crash that run well elsewhere."""

from __future__ import annotations

from pretune.dispatch.node_health import CRASHES, NO_GPU, NOT_THERE, Health, is_the_machines

BOTH = {"bad", "good"}


def test_a_machine_is_left_out_after_different_stages_crashed_there_in_a_row() -> None:
    health = Health()
    for stage in ("a", "a", "b"):
        health.crashed(stage, "bad", "RuntimeError: CUDA error")
    assert health.left_out(BOTH) == {}
    health.crashed("c", "bad", "RuntimeError: no device")
    why = f"{CRASHES} stages crashed there in a row, the last with RuntimeError: no device"
    assert health.left_out(BOTH) == {"bad": why}


def test_one_that_ends_well_starts_the_count_anew() -> None:
    health = Health()
    for stage in ("a", "b"):
        health.crashed(stage, "bad", "x")
    health.ended_well("bad")
    for stage in ("c", "d"):
        health.crashed(stage, "bad", "x")
    assert health.left_out(BOTH) == {}


def test_a_stage_that_crashes_everywhere_has_itself_to_blame() -> None:
    health = Health()
    for stage in ("a", "b", "c"):
        health.crashed(stage, "bad", "x")
    assert health.left_out(BOTH).keys() == {"bad"}
    health.crashed("a", "good", "x")
    assert health.left_out(BOTH) == {}


def test_the_last_machine_is_never_left_out() -> None:
    health = Health()
    for machine in ("bad", "worse"):
        for stage in ("a", "b", "c"):
            health.crashed(stage + machine, machine, "x")
    assert health.left_out({"bad"}) == {}
    assert health.left_out({"bad", "worse"}) == {}
    assert health.left_out({"bad", "worse", "good"}).keys() == {"bad", "worse"}
    assert health.left_out({"worse", "good"}).keys() == {"worse"}


def test_a_machine_without_the_shared_folder_is_left_out_at_once_and_no_stage_is_blamed() -> None:
    health = Health()
    health.crashed("a", "bad", f"{NOT_THERE}: host-1 does not see /shared")
    health.crashed("a", "worse", f"{NOT_THERE}: host-2 does not see /shared")
    assert health.left_out({"bad", "worse", "good"}) == {
        "bad": f"{NOT_THERE}: host-1 does not see /shared",
        "worse": f"{NOT_THERE}: host-2 does not see /shared",
    }
    assert health.where == {}


def test_a_machine_whose_gpu_does_not_work_is_left_out_at_once() -> None:
    health, cause = Health(), f"RuntimeError: {NO_GPU} on bad: its driver does not work"
    assert is_the_machines(cause)
    assert not is_the_machines("RuntimeError: CUDA error")
    health.crashed("a", "bad", cause)
    assert health.left_out(BOTH) == {"bad": cause}
    assert health.left_out({"bad"}) == {}
