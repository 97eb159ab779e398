"""dispatching by the count of resources and taking outcomes back, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pretune.dispatch.dispatcher import (
    FIRST_SECONDS,
    LAUNCHER,
    LOST_SECONDS,
    QUIET_SECONDS,
    TRANSPORT,
    WAIT_SECONDS,
    Dispatcher,
    outcome_of,
)
from pretune.dispatch.resources import ClusterNode, ClusterResources
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import FAILURES, Failure, Outcome, Program
from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage
from pretune.store.lookup import find_in
from pretune.store.store import Store
from pretune.trainables.constants import RESUMED
from pretune.worker.task import Folders, StageTask

FINISHED = Outcome("finished", {"val/jaccard": 0.5})
DIED = "the process that ran it died (killed, or out of memory)"


def stage(name: str, cpus: int = 1, gpus: float | None = None, parent: Stage | None = None) -> Stage:
    resources = schema.StageResources(cpus=cpus, gpus=gpus)
    data, settings = schema.Scenes(dataset="scenes"), schema.Finetune(data="d", steps=1)
    return Stage("finetune", name, settings, schema.UNet(), data, "", {}, parent, resources, False, name)


def task_for(one: Stage, gpus: float) -> StageTask:
    return StageTask(one, one.name, gpus, Folders("store", "cache", None))


def dispatcher(
    stages: list[Stage], resources: ClusterResources, held: dict[str, Outcome] | None = None, retries: int = 0
) -> Dispatcher:
    def wants() -> Program:
        yield stages
        return []

    scheduler = Scheduler((held if held is not None else {}).get, retries)
    scheduler.start([wants()])
    return Dispatcher(scheduler, resources, task_for, {})


# ------------------------------------------------------------------------------------------------------ by resources


def test_no_more_is_dispatched_than_the_node_has() -> None:
    """4 CPUs: two stages of 2, not three; when one ends, the third."""
    h = dispatcher([stage(n, 2) for n in "abc"], ClusterResources([ClusterNode({"CPU": 4.0})]))
    assert h.take("1") is not None
    assert h.take("2") is not None
    assert h.take("3") is None
    h.end("1", {"state": "crashed", "cause": "x"})
    assert h.take("3") is not None


def test_ten_tenths_of_a_gpu_are_one() -> None:
    h = dispatcher(
        [stage(str(i), gpus=0.1) for i in range(11)], ClusterResources([ClusterNode({"CPU": 99.0, "GPU": 1.0})])
    )
    assert [h.take(str(i)) is not None for i in range(11)] == [True] * 10 + [False]


def test_parallel_limits_how_many_run_at_once() -> None:
    h = dispatcher([stage("a"), stage("b")], ClusterResources([ClusterNode({"CPU": 8.0})], parallel=1))
    assert h.take("1") is not None
    assert h.take("2") is None


def group(name: str, workers: int, cpus: int = 1, gpus: float | None = None) -> Stage:
    """A stage on several workers."""
    one = stage(name)
    resources = schema.StageResources(cpus=cpus, workers=workers, gpus_per_worker=gpus)
    return dataclasses.replace(one, resources=resources)


def test_a_gang_counts_with_all_its_workers_and_its_trial_holds_none_of_it() -> None:
    """8 CPUs, 4 GPUs: a group of two with 2 CPUs and a GPU each leaves 4 CPUs and 2 GPUs, enough for one more."""
    h = dispatcher(
        [group(n, 2, cpus=2, gpus=1) for n in "abc"], ClusterResources([ClusterNode({"CPU": 8.0, "GPU": 4.0})])
    )
    config = h.take("1")
    assert config is not None
    assert config[TRANSPORT]["resources"] == {"memory": 1048576}
    task = StageTask.from_json(config[TRANSPORT]["task"])
    assert (task.stage.resources.workers, task.stage.resources.cpus, task.gpus) == (2, 2, 1.0)
    assert h.take("2") is not None
    assert h.take("3") is None


# --------------------------------------------------------------------------------------------------------- dispatcher


def test_a_trial_carries_the_order_and_its_resources() -> None:
    h = dispatcher([stage("a", 2)], ClusterResources([ClusterNode({"CPU": 2.0})]))
    config = h.take("1")
    assert config is not None
    assert config[TRANSPORT]["resources"] == {"CPU": 2.0, "GPU": 0.0}
    assert StageTask.from_json(config[TRANSPORT]["task"]).fingerprint == "a"


def test_an_end_told_twice_counts_once_and_frees_its_resources_once() -> None:
    h = dispatcher([stage("a"), stage("b")], ClusterResources([ClusterNode({"CPU": 1.0})]), retries=1)
    h.take("1")
    h.end("1", None)
    h.end("1", None)
    assert h.scheduler.attempts == {"a": 1}
    assert h.resources.running == {}
    assert h.resources.fits(stage("c"))
    assert not h.resources.fits(stage("c", cpus=2))
    assert h.scheduler.outcomes == {}


def test_over_only_when_nothing_is_live_and_nothing_can_come() -> None:
    parent = stage("p")
    held: dict[str, Outcome] = {}
    h = dispatcher([stage("c", parent=parent)], ClusterResources([ClusterNode({"CPU": 1.0})]), held)
    assert not h.over
    h.take("1")
    assert h.take("2") is None
    assert not h.over
    held["p"] = FINISHED
    h.end("1", {})
    assert not h.over
    h.take("3")
    h.end("3", {"state": "crashed", "cause": "x"})
    assert h.over


def test_a_trial_that_ended_without_a_word_counts_as_crashed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pretune.dispatch.dispatcher.time.monotonic", lambda: now[0])
    h = dispatcher([stage("a")], ClusterResources([ClusterNode({"CPU": 1.0})]))
    h.take("1")
    h.reap({"1", "unknown"})
    now[0] += LOST_SECONDS - 1
    h.reap({"1"})
    assert "1" in h.live
    now[0] += 2
    h.reap({"1"})
    assert h.live == {}
    assert h.scheduler.outcomes["a"] == Outcome("crashed", {}, DIED, failure=Failure.LOST)


# --------------------------------------------------------------------------------------------------------- outcomes


UNSEEN = "the stage finished but its result is not visible in the store; is the store shared by all nodes?"


@pytest.mark.parametrize(
    ("held", "result", "state", "cause"),
    [
        (FINISHED, {"state": "crashed", "cause": "late"}, "finished", ""),  # the store has the last word
        (None, {"state": "crashed", "cause": "KeyError: x"}, "crashed", "KeyError: x"),
        (None, {"state": "finished"}, "crashed", UNSEEN),
        (None, {}, "crashed", DIED),
    ],
)
def test_how_a_trial_ended(held: Outcome | None, result: dict[str, str], state: str, cause: str) -> None:
    scheduler = Scheduler(lambda key: held, 0)
    outcome = outcome_of(stage("a"), result, scheduler)
    assert (outcome.state, outcome.cause) == (state, cause)


def test_the_store_as_the_scheduler_sees_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    find = find_in(store)
    assert find("a") is None
    store.finish(store.begin("a"), "finetune", "finished", "", {"m": 1.0}, 1.0, {})
    store.finish(store.begin("b"), "finetune", "diverged", "loss is nan", {}, 1.0, {})
    costs = {"cost/seconds": 1.0, "cost/gpu_seconds": 0.0}
    assert find("a") == Outcome("finished", {"m": 1.0}, costs=costs)
    assert find("b") == Outcome("diverged", {}, "loss is nan", costs=costs)


def test_a_fault_of_ours_ends_the_study_and_is_not_swallowed_by_tune() -> None:
    """Tune logs what a searcher raises and goes on; the fault is kept, and nothing more is dispatched."""

    def fail(kind: str, one: Stage, text: str) -> None:
        if kind == "crashed":
            raise OSError("no space left on device")

    h = dispatcher([stage("a"), stage("b")], ClusterResources([ClusterNode({"CPU": 1.0})]))
    h.scheduler.on_event = fail
    assert h.take("1") is not None
    h.end("1", {"state": "crashed", "cause": "x"})
    assert h.over
    assert isinstance(h.fault, OSError)


# -------------------------------------------------------------------------------------------------- bad nodes


def two_nodes(cpus: float = 4.0) -> ClusterResources:
    return ClusterResources(
        [ClusterNode({"CPU": cpus}, "bad", "host-bad"), ClusterNode({"CPU": cpus}, "good", "host-good")]
    )


def crash(h: Dispatcher, trial: str, node: str, failure: Failure = Failure.ERROR) -> None:
    h.end(trial, {"state": "crashed", "cause": "it failed", "failure": str(failure), "node": node})


def test_a_stage_that_crashed_is_tried_again_on_another_node() -> None:
    h = dispatcher([stage("a")], two_nodes(), retries=1)
    config = h.take("1")
    assert config is not None
    assert config[TRANSPORT]["excluded"] == []
    crash(h, "1", "bad")
    config = h.take("2")
    assert config is not None
    assert config[TRANSPORT]["excluded"] == ["bad"]
    assert h.resources.running["a"].places == (1,)


def test_where_no_other_node_could_hold_it_the_same_is_tried_again() -> None:
    resources = ClusterResources([ClusterNode({"CPU": 4.0}, "bad"), ClusterNode({"CPU": 1.0}, "small")])
    h = dispatcher([stage("a", cpus=2)], resources, retries=1)
    h.take("1")
    crash(h, "1", "bad")
    config = h.take("2")
    assert config is not None
    assert config[TRANSPORT]["excluded"] == []


def test_nobody_waits_for_a_node_that_may_never_come() -> None:
    """Ray's first autoscaler sees room on the node to be kept off, and starts none."""
    resources = ClusterResources([ClusterNode({"CPU": 4.0}, "only"), ClusterNode({"CPU": 4.0})])
    h = dispatcher([stage("a")], resources, retries=1)
    h.take("1")
    crash(h, "1", "only")
    config = h.take("2")
    assert config is not None
    assert config[TRANSPORT]["excluded"] == []


def test_one_that_cannot_be_sent_to_another_node_yet_holds_up_nobody() -> None:
    """The good node is busy: the stage that crashed waits for it, and the next goes to the one it crashed on."""
    h = dispatcher([stage(name) for name in "abc"], two_nodes(cpus=1.0), retries=1)
    h.take("1")
    h.take("2")
    crash(h, "1", "bad")
    config = h.take("3")
    assert config is not None
    assert StageTask.from_json(config[TRANSPORT]["task"]).fingerprint == "c"
    assert h.take("4") is None
    h.end("2", {"state": "crashed", "cause": "x", "node": "good"})
    config = h.take("4")
    assert config is not None
    assert (StageTask.from_json(config[TRANSPORT]["task"]).fingerprint, config[TRANSPORT]["excluded"]) == ("a", ["bad"])


def test_one_that_was_sent_to_another_node_comes_before_others(now: list[float]) -> None:
    """Where the count of resources's guess is wrong it waits in Ray's queue; Tune would let every other stage pass."""
    h = dispatcher([stage(name) for name in "ab"], two_nodes(), retries=1)
    h.take("1")
    crash(h, "1", "bad")
    h.take("2")
    assert {live.stage.fingerprint for live in h.live.values()} == {"b"}
    h.take("3")
    assert h.live["3"].rerouted
    crash(h, "2", "bad")
    assert h.take("4") is None
    h.progress("3", {"step": 1, "node": "good"})
    assert h.take("4") is not None


def test_a_resumed_stage_stands_where_it_goes_on_and_counts_only_the_images_since(now: list[float]) -> None:
    one = stage("a")
    h = dispatcher([one], ClusterResources([ClusterNode({"CPU": 1.0})]))
    h.take("1")
    h.progress("1", {"step": 40, "total": 100, RESUMED: 1.0})
    assert (h.live["1"].latest["step"], h.images) == (40, {one.title: 0})
    h.progress("1", {"step": 50, "total": 100})
    assert h.images == {one.title: 10 * one.settings.batch_size}  # type: ignore[union-attr]


def test_it_does_not_hold_up_others_for_ever(now: list[float]) -> None:
    h = dispatcher([stage(name) for name in "abc"], two_nodes(), retries=1)
    h.take("1")
    crash(h, "1", "bad")
    for trial in "23":
        h.take(trial)
    h.take("4")
    assert h.live["4"].rerouted
    crash(h, "2", "bad")
    assert h.take("5") is None
    now[0] += FIRST_SECONDS + 1
    assert h.take("5") is not None


def test_a_node_on_which_stages_crash_is_excluded_and_named() -> None:
    """Three stages crash on one node and end well on the other; nothing is lost, and nothing more goes there."""
    said: list[str] = []
    held: dict[str, Outcome] = {}
    h = dispatcher([stage(name) for name in "abcdef"], two_nodes(), held, retries=1)
    h.say = said.append
    for name in "abc":
        assert h.take(name) is not None
        crash(h, name, "bad")
    assert said == ["host-bad gets no more stages: 3 stages crashed there in a row, the last with it failed"]
    for trial in range(6):
        config = h.take(str(trial))
        assert config is not None
        assert config[TRANSPORT]["excluded"] == ["bad"]
        name = StageTask.from_json(config[TRANSPORT]["task"]).fingerprint
        held[name] = FINISHED
        h.end(str(trial), {"state": "finished", "node": "good"})
    assert h.scheduler.outcomes == dict.fromkeys("abcdef", FINISHED)
    assert len(said) == 1


def test_one_node_alone_is_never_excluded() -> None:
    said: list[str] = []
    h = dispatcher(
        [stage(name) for name in "abcd"], ClusterResources([ClusterNode({"CPU": 4.0}, "only", "host")]), retries=0
    )
    h.say = said.append
    for name in "abcd":
        config = h.take(name)
        assert config is not None
        assert config[TRANSPORT]["excluded"] == []
        crash(h, name, "only")
    assert said == []
    assert h.scheduler.finished


def test_a_node_without_the_shared_folder_costs_no_attempt() -> None:
    h = dispatcher([stage("a")], two_nodes(), retries=0)
    h.take("1")
    crash(h, "1", "bad", Failure.NOT_SHARED)
    assert h.scheduler.attempts["a"] == 0
    config = h.take("2")
    assert config is not None
    assert config[TRANSPORT]["excluded"] == ["bad"]
    crash(h, "2", "good", Failure.NOT_SHARED)
    assert h.scheduler.outcomes["a"].state == "crashed"  # no node is left: the end, not a loop


@pytest.mark.parametrize("failure", list(Failure))
def test_every_kind_of_failure_has_its_policy(failure: Failure) -> None:
    """One node, one retry: what is retried is ready again, what is the node's fault costs no attempt, a full store ends
    the study, and the rest is final at once."""
    h = dispatcher([stage("a")], two_nodes(), retries=1)
    h.take("1")
    crash(h, "1", "bad", failure)
    policy = FAILURES[failure]
    assert (h.fault is not None) is policy.stops_study
    if not policy.stops_study:
        assert ("a" in h.scheduler.outcomes) is not policy.retried
        assert h.scheduler.attempts["a"] == (0 if policy.of_node else 1)
    assert ("bad" in h.health.against) is policy.counts
    assert ("bad" in h.health.without) is policy.of_node


# ------------------------------------------------------------------------------------------------- what is mentioned


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("pretune.dispatch.dispatcher.time.monotonic", lambda: clock[0])
    return clock


def test_a_stage_of_which_nothing_is_heard_is_mentioned_once_and_not_ended(now: list[float]) -> None:
    said: list[str] = []
    h = dispatcher([stage("a"), stage("b")], ClusterResources([ClusterNode({"CPU": 2.0})]))
    h.say = said.append
    h.take("1")
    h.take("2")
    now[0] += QUIET_SECONDS / 2
    h.progress("1", {"step": 1})
    now[0] += QUIET_SECONDS / 2 + 1
    h.reap()
    assert said == ["b: Ray has not started it for 10 min; it may wait for free CPUs or GPUs"]
    now[0] += QUIET_SECONDS / 2
    h.reap()
    h.reap()
    assert said[1:] == ["a: no progress report for 10 min; it may be slow"]
    assert h.live.keys() == {"1", "2"}
    h.progress("1", {"step": 2})
    now[0] += QUIET_SECONDS + 1
    h.reap()
    assert said[2:] == ["a: no progress report for 10 min; it may be slow"]


def test_what_is_waited_for_is_said_once_where_nothing_runs(now: list[float]) -> None:
    """The only node with a GPU has left: the study waits for one, not silently, and not on the CPU."""
    said: list[str] = []
    there = [ClusterNode({"CPU": 1.0}, "1", "a")]
    h = dispatcher([stage("a", gpus=1)], ClusterResources(there))
    h.nodes, h.say = lambda: there, said.append
    for _ in range(3):
        assert h.take("1") is None
        now[0] += WAIT_SECONDS + 1
    assert said == ["nothing can run: no node has room for 1 CPU and 1 GPU; waiting for such a node"]
    there = [*there, ClusterNode({"CPU": 1.0, "GPU": 1.0}, "2", "b")]
    assert h.take("1") is not None
    assert said[1:] == ["a node with a GPU has joined: stages without an explicit `gpus` now use a GPU"]


def test_many_stages_at_once_report_less_often() -> None:
    """The driver takes 50 reports a second: one a second from each of up to 50, one in 2 s from a hundred."""
    h = dispatcher([stage(str(i)) for i in range(100)], ClusterResources([ClusterNode({"CPU": 100.0})]))
    pauses = [taken[TRANSPORT]["pause"] for i in range(100) if (taken := h.take(str(i)))]
    assert pauses == [1.0] * 50 + [n / 50 for n in range(51, 101)]


def test_a_trial_is_configured_by_what_tells_its_stage_run_from_others() -> None:
    """As people read it in Tune's tables; what carries the stage stands under a key of its own."""
    h = dispatcher([stage("a")], ClusterResources([ClusterNode({"CPU": 1.0})]))
    h.task_for = lambda one, gpus: dataclasses.replace(task_for(one, gpus), parameters={"stage": "finetune", "seed": 2})
    config = h.take("1")
    assert config is not None
    transport = config.pop(TRANSPORT)
    assert config == {"label": "a", "stage": "finetune", "seed": 2}
    assert StageTask.from_json(transport["task"]).parameters == {"stage": "finetune", "seed": 2}


def test_stages_on_several_workers_are_told_apart_by_a_mark_and_others_have_none() -> None:
    nodes = ClusterResources([ClusterNode({"CPU": 99.0})])
    h = dispatcher([group("a", 2), group("b", 2), stage("c")], nodes)
    configs = [h.take(trial) for trial in "123"]
    marks = []
    for config in configs:
        assert config is not None
        assert StageTask.from_json(config[TRANSPORT]["task"]).mark == config[TRANSPORT]["mark"]
        marks.append(config[TRANSPORT]["mark"])
    assert marks[2] == 0
    assert marks[0] != marks[1]
    assert min(marks[:2]) > LAUNCHER["memory"]  # Tune's own place for such a stage has that
