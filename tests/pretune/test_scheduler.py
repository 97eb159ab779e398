"""The scheduler against a fake trainable: order, gating, failure, divergence, and whole studies under random timing,
crashes and restarts.

A fake world answers for every fingerprint how its stage ends; a fake store remembers what ended.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune import program
from pretune.outcomes import Outcome, Program, Run
from pretune.scheduler import Scheduler
from search_spaces import schema
from search_spaces.resolve import from_dict
from search_spaces.stages import Stage

FINISHED = Outcome("finished", {"val/jaccard": 0.5})
CRASHED = Outcome("crashed", {}, "out of memory")
DIVERGED = Outcome("diverged", {}, "loss is nan at step 3")


def stage(name: str, parent: Stage | None = None, fingerprint: str = "") -> Stage:
    """A stage that nobody will run; its kind is the start of its name."""
    kind = "pretrain" if name.startswith("pretrain") else "finetune"
    data = schema.Scenes(dataset="scenes")
    chosen = schema.Finetune(data="d", steps=1)
    resources = schema.StageResources()
    return Stage(
        kind, name, chosen, schema.UNet(), data, "", {}, parent, resources, False, fingerprint or name  # type: ignore[arg-type]
    )  # fmt: skip


def wants(*stages: Stage) -> Program:
    """A program that waits for some stages and then ends."""
    yield list(stages)
    return []


def scheduler(*stages: Stage, retries: int = 0, held: dict[str, Outcome] | None = None) -> Scheduler:
    made = Scheduler((held or {}).get, retries)
    made.start([wants(*stages)])
    return made


def taken(scheduler: Scheduler) -> Stage:
    found = scheduler.take()
    assert found is not None
    return found


# --------------------------------------------------------------------------------------------- order and gating


def test_a_child_is_handed_out_only_after_its_parent_finished() -> None:
    parent = stage("pretrain")
    child = stage("finetune", parent)
    s = scheduler(child)
    assert taken(s) == parent
    assert s.take() is None
    assert not s.stuck()
    s.complete(parent, FINISHED)
    assert taken(s) == child
    s.complete(child, FINISHED)
    assert s.finished
    assert s.outcomes == {"pretrain": FINISHED, "finetune": FINISHED}


def test_pretrainings_go_first_and_equals_in_the_order_of_asking() -> None:
    first, second = stage("finetune a"), stage("finetune b")
    late = stage("pretrain")
    s = scheduler(first, second, late)
    assert [taken(s), taken(s), taken(s)] == [late, first, second]


def test_only_what_fits_is_handed_out() -> None:
    big, small = stage("pretrain"), stage("finetune")
    s = scheduler(big, small)
    assert s.take(lambda one: one != big) == small
    assert s.take(lambda one: one != big) is None
    assert s.take() == big


def test_a_chain_runs_from_the_eldest() -> None:
    eldest = stage("pretrain.0")
    middle = stage("pretrain.1", eldest)
    youngest = stage("finetune", middle)
    s = scheduler(youngest)
    order = []
    while (one := s.take()) is not None:
        order.append(one)
        s.complete(one, FINISHED)
    assert order == [eldest, middle, youngest]


def test_equal_fingerprints_run_once_for_all_programs_that_wait() -> None:
    s = Scheduler(lambda key: None, 0)
    s.start([wants(stage("finetune", fingerprint="x")), wants(stage("finetune other", fingerprint="x"))])
    one = taken(s)
    assert s.take() is None
    s.complete(one, FINISHED)
    assert s.finished
    assert s.attempts == {"x": 1}


def test_a_program_that_follows_may_wait_for_what_has_already_ended() -> None:
    one = stage("finetune")

    def first() -> Program:
        answers = yield [one]
        assert answers == {"finetune": FINISHED}
        return [wants(one), wants()]

    s = Scheduler(lambda key: None, 0)
    s.start([first()])
    s.complete(taken(s), FINISHED)
    assert s.finished
    assert s.attempts["finetune"] == 1


def test_what_the_store_holds_is_not_run_nor_are_its_parents() -> None:
    child = stage("finetune", stage("pretrain"))
    s = scheduler(child, held={"finetune": FINISHED})
    assert s.finished
    assert s.reused == {"finetune"}
    assert "pretrain" not in s.outcomes


def test_a_parent_that_the_store_holds_too_is_shown_beside_its_child() -> None:
    """Else results after a restart would lack the rows of pretrainings."""
    s = scheduler(stage("finetune", stage("pretrain")), held={"finetune": FINISHED, "pretrain": FINISHED})
    assert s.reused == {"finetune", "pretrain"}
    assert s.outcomes == {"finetune": FINISHED, "pretrain": FINISHED}


def test_a_missing_child_takes_its_parent_from_the_store() -> None:
    child = stage("finetune", stage("pretrain"))
    s = scheduler(child, held={"pretrain": FINISHED})
    assert taken(s) == child
    assert s.reused == {"pretrain"}


# ------------------------------------------------------------------------------------------- failure, divergence


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_crash_is_tried_again_as_often_as_the_study_says(retries: int) -> None:
    s = scheduler(stage("finetune"), retries=retries)
    for _ in range(retries + 1):
        assert not s.finished
        s.complete(taken(s), CRASHED)
    assert s.take() is None
    assert s.finished
    assert s.outcomes["finetune"] == CRASHED
    assert s.attempts["finetune"] == retries + 1


def test_a_crash_that_a_retry_mends_leaves_no_trace_in_the_outcome() -> None:
    s = scheduler(stage("finetune"), retries=2)
    s.complete(taken(s), CRASHED)
    s.complete(taken(s), FINISHED)
    assert s.outcomes["finetune"] == FINISHED


def test_a_divergence_is_never_tried_again() -> None:
    s = scheduler(stage("finetune"), retries=5)
    s.complete(taken(s), DIVERGED)
    assert s.finished
    assert s.attempts["finetune"] == 1


def test_descendants_of_a_failure_are_blocked_with_its_cause_and_the_rest_goes_on() -> None:
    parent = stage("pretrain")
    child, grandchild, other = stage("finetune", parent), stage("probe"), stage("finetune other")
    grandchild = stage("finetune late", stage("pretrain.1", parent))
    s = scheduler(child, grandchild, other)
    s.complete(taken(s), CRASHED)
    for name in ("finetune", "finetune late", "pretrain.1"):
        assert s.outcomes[name].state == "blocked"
        assert s.outcomes[name].root == "crashed"
        assert s.outcomes[name].cause == "its pretrain crashed: out of memory"
    assert taken(s) == other
    s.complete(other, FINISHED)
    assert s.finished


def test_a_divergence_found_in_the_store_blocks_as_a_new_one_would() -> None:
    s = scheduler(stage("finetune", stage("pretrain")), held={"pretrain": DIVERGED})
    assert s.finished
    assert s.outcomes["finetune"].root == "diverged"


def test_an_end_that_is_told_twice_counts_once() -> None:
    s = scheduler(stage("finetune"), retries=1)
    one = taken(s)
    s.complete(one, CRASHED)
    s.complete(one, FINISHED)  # nothing of it is running: the watchdog was late
    assert "finetune" not in s.outcomes
    s.complete(taken(s), FINISHED)
    assert s.outcomes["finetune"] == FINISHED


def test_events_tell_the_story() -> None:
    told: list[tuple[str, str, str]] = []
    s = Scheduler({"old": FINISHED}.get, 1, lambda kind, one, text: told.append((kind, one.name, text)))
    parent = stage("pretrain")
    s.start([wants(stage("old"), stage("finetune", parent))])
    s.complete(taken(s), CRASHED)
    s.complete(taken(s), CRASHED)
    assert told == [
        ("reused", "old", ""),
        ("started", "pretrain", ""),
        ("retried", "pretrain", "out of memory"),
        ("started", "pretrain", ""),
        ("crashed", "pretrain", "out of memory"),
        ("blocked", "finetune", "its pretrain crashed: out of memory"),
    ]


def test_stuck_is_true_exactly_when_nothing_runs_and_nothing_can() -> None:
    s = scheduler(stage("finetune", stage("pretrain")))
    assert not s.stuck()  # the pretraining is ready
    parent = taken(s)
    assert not s.stuck()  # it runs
    s.complete(parent, FINISHED)
    assert not s.stuck()  # the fine-tuning is ready
    child = taken(s)
    s.complete(child, FINISHED)
    assert s.stuck()
    assert s.finished


# --------------------------------------------------------------------------------- a whole study, under any timing

STUDY: dict[str, Any] = {
    "study": "tuned",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "pretrain": {
        "data": "d",
        "method": {"name": "simclr", "temperature": {"log_uniform": [0.05, 1.0]}},
        "batch_size": 8,
        "steps": 5,
    },
    "finetune": {"data": "d", "steps": 5, "optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}}},
    "factors": {"skip": {"model.skip_connections": [True, False]}},
    "seeds": {"search": 2, "report": 2},
    "tune": {"trials": 5, "batch": 2, "startup": 2, "pretrain": {"trials": 3}},
    "retries": 2,
}


def truth(one: Stage) -> Outcome:
    """How a stage ends, a function of its fingerprint: about one in eight fine-tunings diverges."""
    value = int.from_bytes(hashlib.sha256(one.fingerprint.encode()).digest()[:4], "big") / 2**32
    if one.kind == "finetune" and value > 0.875:
        return DIVERGED
    return Outcome("finished", {"val/jaccard": value, "test/jaccard": value})


class World:
    """What outlives a driver: the store and Optuna's storage."""

    def __init__(self) -> None:
        self.store: dict[str, Outcome] = {}
        self.storage = optuna.storages.InMemoryStorage()

    def drive(self, seed: int, crashes: float, kill_after: int | None) -> tuple[Scheduler, Run]:
        """Run the study with random parallelism, order of completion and crashes; or be killed after some ends."""
        draw = random.Random(seed)
        run = Run(from_dict(copy.deepcopy(STUDY)), lambda data: "digest", self.storage)
        s = Scheduler(self.store.get, run.study.header.retries)
        s.start(program.start(run))
        running: list[Stage] = []
        ends, crashed = 0, dict[str, int]()
        while not s.finished:
            while len(running) < draw.randint(1, 4) and (one := s.take()) is not None:
                running.append(one)
            assert running, "stuck before the end"
            if ends == kill_after:
                return s, run
            one = running.pop(draw.randrange(len(running)))
            ends += 1
            if draw.random() < crashes and crashed.get(one.fingerprint, 0) < 2:
                crashed[one.fingerprint] = crashed.get(one.fingerprint, 0) + 1
                s.complete(one, CRASHED)
                continue
            self.store[one.fingerprint] = truth(one)
            s.complete(one, truth(one))
        return s, run


def told(run: Run, s: Scheduler) -> list[tuple[Any, ...]]:
    """Everything that results could show: per use, what was chosen and how its stages ended. Programs of different
    cells interleave, so the order is that of cells and phases, within a cell that of asking."""
    ends = [[s.outcomes[one.fingerprint] for one in use.stages.values()] for use in run.uses]
    rows = [
        (use.cell.label, use.phase, use.replicate.seed, use.values, end)
        for use, end in zip(run.uses, ends, strict=True)
    ]
    return sorted(rows, key=lambda row: row[:2])  # stable


@functools.cache
def undisturbed() -> list[tuple[Any, ...]]:
    s, run = World().drive(0, 0.0, None)
    return told(run, s)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), crashes=st.floats(0, 0.5), kills=st.lists(st.integers(0, 30), max_size=4))
def test_any_timing_crashes_and_restarts_give_the_same_questions_and_outcomes(
    seed: int, crashes: float, kills: Sequence[int]
) -> None:
    world = World()
    for i, kill_after in enumerate(kills):
        world.drive(seed + i, crashes, kill_after)
    s, run = world.drive(seed - 1, crashes, None)
    assert told(run, s) == undisturbed()


def test_running_a_finished_study_again_runs_nothing() -> None:
    world = World()
    first, _ = world.drive(1, 0.0, None)
    again, _ = world.drive(2, 0.0, 0)
    assert again.finished
    assert not again.attempts
    assert again.outcomes == {key: first.outcomes[key] for key in again.outcomes}


def test_a_stage_of_two_parents_waits_for_both_in_whichever_order_they_end() -> None:
    for turned in (False, True):
        first, second = stage("pretrain a"), stage("pretrain b")
        s = scheduler(replace(stage("probe", first), other=second))
        running = [taken(s), taken(s)]
        assert s.take() is None
        for parent in reversed(running) if turned else running:
            assert s.take() is None
            s.complete(parent, FINISHED)
        assert taken(s).name == "probe"


def test_a_stage_whose_second_parent_failed_is_blocked_by_it() -> None:
    first, second = stage("pretrain a"), stage("pretrain b")
    child = replace(stage("probe", first), other=second)
    s = scheduler(child)
    for parent, outcome in ((taken(s), FINISHED), (taken(s), DIVERGED)):
        s.complete(parent, outcome)
    assert s.finished
    assert s.outcomes[child.fingerprint].state == "blocked"
    assert "pretrain b" in s.outcomes[child.fingerprint].cause


# ------------------------------------------------------------------------------------------------------ continuing


def test_trainings_of_several_lengths_wait_for_the_longest_shorter_one() -> None:
    """Levels named long to short: run short to long, each after the one that it continues."""
    body = {"study": "s", "data": {"d": {"dataset": "scenes"}}}
    body |= {
        "pretrain": {"data": "d", "method": {"name": "simclr"}, "epochs": 1},
        "finetune": {"data": "d", "epochs": 1},
    }
    body |= {"factors": {"epochs": {"pretrain.epochs": [200, 50, 100]}}, "seeds": {"report": 1}}
    run = Run(from_dict(body), lambda data: "digest", optuna.storages.InMemoryStorage())
    s = Scheduler(lambda key: None, 0)
    s.start(program.start(run))
    order = []
    while (stage := s.take()) is not None:
        if stage.kind == "pretrain":
            assert all(other.kind != "pretrain" for key, other in s.running.items() if key != stage.fingerprint)
            order.append((stage.reach, stage.keep_state))
        s.complete(stage, Outcome("finished", {}))
    assert order == [(50, True), (100, True), (200, True)]
    assert s.finished


def test_a_longer_training_runs_all_the_same_where_the_shorter_one_failed() -> None:
    body = {"study": "s", "data": {"d": {"dataset": "scenes"}}, "seeds": {"report": 1}}
    body |= {"finetune": {"data": "d", "epochs": 1}, "factors": {"epochs": {"finetune.epochs": [2, 4]}}}
    run = Run(from_dict(body), lambda data: "digest", optuna.storages.InMemoryStorage())
    s = Scheduler(lambda key: None, 0)
    s.start(program.start(run))
    ends = []
    while (stage := s.take()) is not None:
        ends.append(stage.reach)
        s.complete(stage, Outcome("diverged" if stage.reach == 2 else "finished", {}))
    assert ends == [2, 4]
