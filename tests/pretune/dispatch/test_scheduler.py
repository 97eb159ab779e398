"""The scheduler against a fake trainable: order, gating, failure, divergence, and whole studies under random timing,
crashes and restarts.

A fake world answers for every fingerprint how its stage ends; a fake store remembers what ended.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome, Program
from pretune.search import program
from pretune.search.replicates import Run
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage

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


def test_a_child_is_dispatched_only_after_its_parent_finished() -> None:
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


def test_only_what_fits_is_dispatched() -> None:
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
    task = []
    while (one := s.take()) is not None:
        task.append(one)
        s.complete(one, FINISHED)
    assert task == [eldest, middle, youngest]


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


# ------------------------------------------------------------------------------------------- seed by seed, all cells

CELLS: dict[str, Any] = {
    "study": "cells",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "batch_size": 8, "steps": 5},
    "finetune": {"data": "d", "steps": 5},
    "factors": {
        "start": {"random": {"finetune.transfer": "none"}, "pretrained": {"finetune.transfer": "encoder"}},
        "labels": {"finetune.labels": ["all", 4]},
    },
    "seeds": {"report": 3},
}


def started(study: dict[str, Any], slots: int, ends: Sequence[int] = (0,)) -> list[tuple[Stage, set[Stage], bool]]:
    """Every stage in the order of dispatch, with all that were ready then, and whether others ran. `ends` chooses which
    running stage ends next, again and again."""
    run = Run(from_dict(copy.deepcopy(study)), lambda data: "digest", optuna.storages.InMemoryStorage())
    s = Scheduler(lambda key: None, 0)
    s.start(program.start(run))
    asked = {one for use in run.replicates for one in use.stages.values()}
    running: list[Stage] = []
    history: list[tuple[Stage, set[Stage], bool]] = []
    for turn in range(1000):
        while len(running) < slots:
            begun = {one for one, _, _ in history}
            ready = {one for one in asked - begun if all(parent.fingerprint in s.outcomes for parent in one.parents)}
            others = bool(s.running)
            if (one := s.take()) is None:
                break
            history.append((one, ready, others))
            running.append(one)
        if not running:
            break
        s.complete(running.pop(ends[turn % len(ends)] % len(running)), FINISHED)
    assert s.finished
    assert len(history) == len(asked)
    return history


def test_a_study_stopped_after_a_third_has_one_seed_of_every_cell() -> None:
    """4 cells x 3 seeds, one stage at a time: each third is a pretraining and the 4 fine-tunings of its seed."""
    kinds = [(one.seed_rank, one.kind) for one, _, _ in started(CELLS, 1)]
    assert kinds == [(seed, kind) for seed in range(3) for kind in ["pretrain", *["finetune"] * 4]]


@settings(max_examples=30, deadline=None)
@given(slots=st.integers(1, 9), ends=st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_with_room_for_several_pretrainings_come_first_and_then_the_first_seed(slots: int, ends: list[int]) -> None:
    """None is started while one that comes before it is ready: pretrainings since others wait for them, then by seed.

    While nothing else runs the seed counts more: the pretraining of a later seed would make nobody ready earlier.
    """
    for one, ready, others in started(CELLS, slots, ends):
        for other in ready:
            mine, its = (one.kind != "pretrain", one.seed_rank), (other.kind != "pretrain", other.seed_rank)
            assert (mine <= its) if others else (mine[::-1] <= its[::-1])


def test_the_seed_decides_among_shapes_and_a_retry_keeps_its_place() -> None:
    """Late ones are asked first; one needs two CPUs, so it stands in a line of its own."""
    late, early = replace(stage("late"), seed_rank=1), stage("early")
    wide = replace(stage("wide"), seed_rank=1, resources=schema.StageResources(cpus=2))
    s = scheduler(wide, late, early, retries=1)
    s.complete(taken(s), CRASHED)
    assert taken(s) == early
    assert [taken(s), taken(s)] == [wide, late]


def test_stages_of_a_search_keep_the_order_of_asking_and_come_before_later_report_seeds() -> None:
    """Trials wait for one another, and reports for them: no seed of a search is behind another."""
    run = Run(from_dict(copy.deepcopy(STUDY)), lambda data: "digest", optuna.storages.InMemoryStorage())
    s = Scheduler(lambda key: None, 0)
    s.start(program.start(run))
    ranks: list[tuple[str, int, int]] = []
    while (one := s.take()) is not None:
        use = next(use for use in run.replicates if one in use.stages.values())
        ranks.append((use.phase, use.replicate.seed, one.seed_rank))
        s.complete(one, FINISHED)
    assert {rank for phase, _, rank in ranks if phase == "search"} == {0}
    assert {(seed, rank) for phase, seed, rank in ranks if phase == "confirm"} == {(0, 0), (1, 1)}
    searched = max(place for place, (phase, _, _) in enumerate(ranks) if phase == "search")
    assert searched < min(place for place, (_, _, rank) in enumerate(ranks) if rank)


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
    """How a stage ends, a function of its fingerprint and its rate: about one in thirty fine-tunings diverges."""
    luck = int.from_bytes(hashlib.sha256(one.fingerprint.encode()).digest()[:4], "big") / 2**32
    if one.kind == "finetune" and luck > 0.97:
        return DIVERGED
    assert isinstance(one.settings, schema.Pretrain | schema.Finetune)
    value = 1 - abs(math.log10(one.settings.optimizer.lr) + 2) / 2 + 0.05 * luck
    return Outcome("finished", {"val/jaccard": value, "test/jaccard": value})


WAYS: dict[str, dict[str, Any]] = {
    "all seeds": {},
    "racing": {"racing": {"first": 2}, "batch": 3},
    "halving": {"rungs": {"epochs": [1, 2], "keep": 0.5}, "batch": 3},
    "median": {"rungs": {"epochs": [2], "rule": "median"}, "sampler": "random"},
    "racing and top_k": {"racing": {"first": 2}, "top_k": 2},
    "genetic": {"sampler": "genetic", "population": 3},
}


def study_of(way: str) -> dict[str, Any]:
    study = copy.deepcopy(STUDY)
    study["tune"] |= WAYS[way]
    if "racing" in WAYS[way]:
        study["seeds"]["search"] = 3
    if "rungs" in WAYS[way]:
        for part in ("pretrain", "finetune"):
            del study[part]["steps"]
            study[part]["epochs"] = 4
    return study


class World:
    """What outlives a driver: the store and Optuna's storage."""

    def __init__(self) -> None:
        self.store: dict[str, Outcome] = {}
        self.storage = optuna.storages.InMemoryStorage()

    def drive(
        self, seed: int, crashes: float, kill_after: int | None, study: dict[str, Any] = STUDY
    ) -> tuple[Scheduler, Run]:
        """Run the study with random parallelism, order of completion and crashes; or be killed after some ends."""
        draw = random.Random(seed)
        run = Run(from_dict(copy.deepcopy(study)), lambda data: "digest", self.storage)
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
            assert one.fingerprint not in self.store, "trained twice"
            self.store[one.fingerprint] = truth(one)
            s.complete(one, truth(one))
        return s, run


def stage_ends(run: Run, s: Scheduler) -> list[tuple[Any, ...]]:
    """Everything that results could show: per use, what was chosen and how its stages ended. Programs of different
    cells interleave, so the order is that of cells and phases, within a cell that of asking."""
    ends = [[s.outcomes[one.fingerprint] for one in use.stages.values()] for use in run.replicates]
    rows = [
        (use.cell.label, use.phase, use.until, use.replicate.seed, use.values, end)
        for use, end in zip(run.replicates, ends, strict=True)
    ]
    return sorted(rows, key=lambda row: row[:2])  # stable


def trial_results(run: Run) -> list[tuple[Any, ...]]:
    return sorted(((one.search, one.index, one.values, one.result) for one in run.trials), key=lambda row: row[:2])


@functools.cache
def undisturbed(way: str) -> tuple[list[tuple[Any, ...]], ...]:
    s, run = World().drive(0, 0.0, None, study_of(way))
    return stage_ends(run, s), trial_results(run)


@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    seed=st.integers(0, 2**16),
    crashes=st.floats(0, 0.5),
    kills=st.lists(st.integers(0, 60), max_size=4),
)
def test_any_timing_crashes_and_restarts_give_the_same_questions_and_outcomes(
    way: str, seed: int, crashes: float, kills: Sequence[int]
) -> None:
    world, study = World(), study_of(way)
    for i, kill_after in enumerate(kills):
        world.drive(seed + i, crashes, kill_after, study)
    s, run = world.drive(seed - 1, crashes, None, study)
    assert (stage_ends(run, s), trial_results(run)) == undisturbed(way)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_every_way_of_measuring_does_what_it_is_for(way: str) -> None:
    """Else the property above would hold for six times the same study."""
    rows, found = undisturbed(way)
    assert any(result.state == "partial" for *_, result in found) == ("rac" in way or way in ("halving", "median"))
    assert any(row[1] == "select" for row in rows) == ("top_k" in way)
    assert any(row[2] is not None for row in rows) == (way in ("halving", "median"))


# --------------------------------------------------------------------------------------------- a study that grows


def more_trials(study: dict[str, Any]) -> None:
    study["tune"]["trials"] += 6


def more_seeds(study: dict[str, Any]) -> None:
    study["seeds"]["report"] += 2


def another_level(study: dict[str, Any]) -> None:
    study["factors"]["freeze"] = {"finetune.freeze": ["none", "encoder"]}


def another_cell(study: dict[str, Any]) -> None:
    study["factors"]["skip"] = {
        "with": {"model.skip_connections": True},
        "without": {"model.skip_connections": False},
        "scratch": {"finetune.transfer": "none"},
    }


@pytest.mark.parametrize("grow", [more_trials, more_seeds, another_level, another_cell])
@pytest.mark.parametrize("way", ["all seeds", "halving"])
def test_a_finished_study_that_grows_redoes_nothing_and_ends_as_if_it_had_been_so_from_the_start(
    way: str, grow: Any
) -> None:
    """Whole batches, since the first question of a batch that was cut short has its answer when the rest is asked."""
    world, study = World(), study_of(way)
    study["tune"]["trials"] = 6
    study["factors"]["skip"] = {
        "with": {"model.skip_connections": True},
        "without": {"model.skip_connections": False},
    }
    world.drive(1, 0.0, None, study)
    before = set(world.store)
    grow(study)
    s, run = world.drive(2, 0.0, None, study)
    fresh = World()
    expected, from_the_start = fresh.drive(3, 0.0, None, study)
    assert not before & set(s.attempts)
    assert len(s.attempts) == len(set(expected.attempts) - before)
    assert s.attempts
    assert (stage_ends(run, s), trial_results(run)) == (
        stage_ends(from_the_start, expected),
        trial_results(from_the_start),
    )


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
    task = []
    while (stage := s.take()) is not None:
        if stage.kind == "pretrain":
            assert all(other.kind != "pretrain" for key, other in s.running.items() if key != stage.fingerprint)
            task.append((stage.reach, stage.keep_state))
        s.complete(stage, Outcome("finished", {}))
    assert task == [(50, True), (100, True), (200, True)]
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
