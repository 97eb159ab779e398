"""Nodes on which stages crash that run well elsewhere."""

from __future__ import annotations

from pretune.dispatch.node_health import CRASHES, Health
from pretune.outcomes import Failure, Outcome

BOTH = {"bad", "good"}


def crash(cause: str, failure: Failure = Failure.ERROR) -> Outcome:
    return Outcome("crashed", {}, cause, failure=failure)


def test_a_node_is_excluded_after_different_stages_crashed_there_in_a_row() -> None:
    health = Health()
    for stage in ("a", "a", "b"):
        health.crashed(stage, "bad", crash("RuntimeError: CUDA error"))
    assert health.excluded(BOTH) == {}
    health.crashed("c", "bad", crash("RuntimeError: no device"))
    why = f"{CRASHES} stages crashed there in a row, the last with RuntimeError: no device"
    assert health.excluded(BOTH) == {"bad": why}


def test_one_that_ends_well_starts_the_count_anew() -> None:
    health = Health()
    for stage in ("a", "b"):
        health.crashed(stage, "bad", crash("x"))
    health.ended_well("bad")
    for stage in ("c", "d"):
        health.crashed(stage, "bad", crash("x"))
    assert health.excluded(BOTH) == {}


def test_a_stage_that_crashes_everywhere_has_itself_to_blame() -> None:
    health = Health()
    for stage in ("a", "b", "c"):
        health.crashed(stage, "bad", crash("x"))
    assert health.excluded(BOTH).keys() == {"bad"}
    health.crashed("a", "good", crash("x"))
    assert health.excluded(BOTH) == {}


def test_the_last_node_is_never_excluded() -> None:
    health = Health()
    for node in ("bad", "worse"):
        for stage in ("a", "b", "c"):
            health.crashed(stage + node, node, crash("x"))
    assert health.excluded({"bad"}) == {}
    assert health.excluded({"bad", "worse"}) == {}
    assert health.excluded({"bad", "worse", "good"}).keys() == {"bad", "worse"}
    assert health.excluded({"worse", "good"}).keys() == {"worse"}


def test_a_node_without_the_shared_folder_is_excluded_at_once_and_no_stage_is_blamed() -> None:
    health = Health()
    health.crashed("a", "bad", crash("host-1 does not see /shared", Failure.NOT_SHARED))
    health.crashed("a", "worse", crash("host-2 does not see /shared", Failure.NOT_SHARED))
    assert health.excluded({"bad", "worse", "good"}) == {
        "bad": "host-1 does not see /shared",
        "worse": "host-2 does not see /shared",
    }
    assert health.where == {}


def test_a_node_whose_gpu_does_not_work_is_excluded_at_once() -> None:
    health = Health()
    health.crashed("a", "bad", crash("no GPU on bad", Failure.NO_GPU))
    assert health.excluded(BOTH) == {"bad": "no GPU on bad"}
    assert health.excluded({"bad"}) == {}


def test_a_stage_that_is_too_large_or_lacks_data_does_not_count_against_its_node() -> None:
    health = Health()
    for stage in ("a", "b", "c"):
        health.crashed(stage, "good", crash("x", Failure.OUT_OF_MEMORY))
        health.crashed(stage, "good", crash("x", Failure.BAD_DATA))
    assert health.excluded(BOTH) == {}
