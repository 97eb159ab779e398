"""Handing out by the ledger and taking outcomes back, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pretune.execute import Folders, Order, order_of
from pretune.handout import LOST_SECONDS, Handout, Ledger, ResourceError, find_in, outcome_of
from pretune.outcomes import Outcome, Program
from pretune.scheduler import Scheduler
from pretune.store import Store
from search_spaces import schema
from search_spaces.stages import Stage

FINISHED = Outcome("finished", {"val/jaccard": 0.5})
DIED = "the process that ran it died (killed, or out of memory)"


def stage(name: str, cpus: int = 1, gpus: float | None = None, parent: Stage | None = None) -> Stage:
    resources = schema.StageResources(cpus=cpus, gpus=gpus)
    data, settings = schema.Scenes(dataset="scenes"), schema.Finetune(data="d", steps=1)
    return Stage("finetune", name, settings, schema.UNet(), data, "", {}, parent, resources, False, name)


def order_for(one: Stage, gpus: float) -> Order:
    return order_of(one, one.name, gpus, Folders("store", "cache", None))


def handout(stages: list[Stage], ledger: Ledger, held: dict[str, Outcome] | None = None, retries: int = 0) -> Handout:
    def wants() -> Program:
        yield stages
        return []

    scheduler = Scheduler((held if held is not None else {}).get, retries)
    scheduler.start([wants()])
    return Handout(scheduler, ledger, order_for, {})


# ---------------------------------------------------------------------------------------------------------- ledger


def test_a_stage_needs_its_cpus_and_a_gpu_where_there_are_any() -> None:
    assert Ledger({"CPU": 4.0}).needs(stage("a", 2)) == {"CPU": 2.0, "GPU": 0.0}
    assert Ledger({"CPU": 4.0, "GPU": 2.0}).needs(stage("a")) == {"CPU": 1.0, "GPU": 1.0}
    assert Ledger({"CPU": 4.0, "GPU": 2.0}).needs(stage("a", gpus=0.25)) == {"CPU": 1.0, "GPU": 0.25}
    assert Ledger({"CPU": 4.0, "GPU": 2.0}).needs(stage("a", gpus=0)) == {"CPU": 1.0, "GPU": 0.0}


def test_no_more_is_handed_out_than_the_machine_has() -> None:
    """4 CPUs: two stages of 2, not three; when one ends, the third."""
    h = handout([stage(n, 2) for n in "abc"], Ledger({"CPU": 4.0}))
    assert h.take("1") is not None
    assert h.take("2") is not None
    assert h.take("3") is None
    h.end("1", {"state": "crashed", "cause": "x"}, error=False)
    assert h.take("3") is not None


def test_ten_tenths_of_a_gpu_are_one() -> None:
    h = handout([stage(str(i), gpus=0.1) for i in range(11)], Ledger({"CPU": 99.0, "GPU": 1.0}))
    assert [h.take(str(i)) is not None for i in range(11)] == [True] * 10 + [False]


def test_parallel_limits_how_many_run_at_once() -> None:
    h = handout([stage("a"), stage("b")], Ledger({"CPU": 8.0}, parallel=1))
    assert h.take("1") is not None
    assert h.take("2") is None


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (stage("a", cpus=8), r"resources.finetune.cpus: a stage needs 8 CPU, there are 4"),
        (stage("a", gpus=1), r"resources.finetune.gpus: a stage needs 1 GPU, there are 0"),
    ],
)
def test_what_can_never_be_placed_is_refused_at_once(one: Stage, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        Ledger({"CPU": 4.0}).check({"a": one})
    Ledger({"CPU": 8.0, "GPU": 1.0}).check({"a": one})


def gang(name: str, workers: int, cpus: int = 1, gpus: float | None = None) -> Stage:
    """A stage on several workers."""
    one = stage(name)
    resources = schema.StageResources(cpus=cpus, workers=workers, gpus_per_worker=gpus)
    return dataclasses.replace(one, resources=resources)


def test_a_gang_counts_with_all_its_workers_and_its_trial_holds_none_of_it() -> None:
    """8 CPUs, 4 GPUs: a gang of two with 2 CPUs and a GPU each leaves 4 CPUs and 2 GPUs, enough for one more."""
    h = handout([gang(n, 2, cpus=2, gpus=1) for n in "abc"], Ledger({"CPU": 8.0, "GPU": 4.0}))
    config = h.take("1")
    assert config is not None
    assert config["resources"] == {"memory": 1048576}
    order = Order.from_json(config["order"])
    assert (order.workers, order.min_workers, order.threads, order.gpus) == (2, 2, 2, 1.0)
    assert h.take("2") is not None
    assert h.take("3") is None


@pytest.mark.parametrize(("asked", "counted"), [(0.25, 0.25), (0.3, 1 / 3), (0.4, 0.5), (0.6, 1.0), (1.0, 1.0), (2, 2)])
def test_a_share_of_a_gpu_counts_as_what_it_leaves_no_use_for(asked: float, counted: float) -> None:
    assert Ledger({"CPU": 1.0, "GPU": 2.0}).each(stage("a", gpus=asked))["GPU"] == pytest.approx(counted)


TWO_MACHINES = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"memory": 1e9}]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            stage("a", cpus=6),
            r"resources.finetune.cpus: a stage needs 6 CPU, no machine has more than 4; lower it or add",
        ),
        (gang("a", 2, gpus=4), r"resources.finetune.gpus_per_worker: a stage needs 4 GPU, no machine has more than 2"),
        (gang("a", 4), r"resources.finetune.workers: 4 workers with 1 CPU and 1 GPU each, there is room for 3"),
        (gang("a", 3, cpus=3, gpus=0), r"resources.finetune.workers: 3 workers with 3 CPU each, there is room for 2"),
    ],
)
def test_what_fits_no_machine_is_refused_though_the_sum_would_do(one: Stage, message: str) -> None:
    ledger = Ledger({"CPU": 8.0, "GPU": 3.0}, nodes=TWO_MACHINES)
    with pytest.raises(ResourceError, match=message):
        ledger.check({"a": one})
    ledger.check({"a": gang("a", 3), "b": gang("b", 8, gpus=0), "c": stage("c", cpus=4, gpus=2)})


# --------------------------------------------------------------------------------------------------------- handout


def test_a_trial_carries_the_order_and_its_resources() -> None:
    h = handout([stage("a", 2)], Ledger({"CPU": 2.0}))
    config = h.take("1")
    assert config is not None
    assert config["resources"] == {"CPU": 2.0, "GPU": 0.0}
    assert Order.from_json(config["order"]).fingerprint == "a"


def test_an_end_told_twice_counts_once_and_frees_its_resources_once() -> None:
    h = handout([stage("a"), stage("b")], Ledger({"CPU": 1.0}), retries=1)
    h.take("1")
    h.end("1", None, error=True)
    h.end("1", None, error=True)
    assert h.scheduler.attempts == {"a": 1}
    assert h.ledger.running == {}
    assert h.scheduler.outcomes == {}


def test_over_only_when_nothing_is_live_and_nothing_can_come() -> None:
    parent = stage("p")
    held: dict[str, Outcome] = {}
    h = handout([stage("c", parent=parent)], Ledger({"CPU": 1.0}), held)
    assert not h.over
    h.take("1")
    assert h.take("2") is None
    assert not h.over
    held["p"] = FINISHED
    h.end("1", {}, error=False)
    assert not h.over
    h.take("3")
    h.end("3", {"state": "crashed", "cause": "x"}, error=False)
    assert h.over


def test_a_trial_that_ended_without_a_word_counts_as_crashed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pretune.handout.time.monotonic", lambda: now[0])
    h = handout([stage("a")], Ledger({"CPU": 1.0}))
    h.take("1")
    h.reap({"1", "unknown"})
    now[0] += LOST_SECONDS - 1
    h.reap({"1"})
    assert "1" in h.live
    now[0] += 2
    h.reap({"1"})
    assert h.live == {}
    assert h.scheduler.outcomes["a"] == Outcome("crashed", {}, DIED)


# --------------------------------------------------------------------------------------------------------- outcomes


UNSEEN = "it ended well, but the store does not show it: is it on a disk that all nodes share?"


@pytest.mark.parametrize(
    ("held", "result", "error", "state", "cause"),
    [
        (FINISHED, {"state": "crashed", "cause": "late"}, True, "finished", ""),  # the store has the last word
        (None, {"state": "crashed", "cause": "KeyError: x"}, False, "crashed", "KeyError: x"),
        (None, {"state": "finished"}, False, "crashed", UNSEEN),
        # a trial raises after it has told its cause, so that its actor is not used again
        (None, {"state": "crashed", "cause": "KeyError: x"}, True, "crashed", "KeyError: x"),
        (None, {}, True, "crashed", DIED),
    ],
)
def test_how_a_trial_ended(held: Outcome | None, result: dict[str, str], error: bool, state: str, cause: str) -> None:
    scheduler = Scheduler(lambda key: held, 0)
    outcome = outcome_of(stage("a"), result, error, scheduler)
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
    """Tune logs what a searcher raises and goes on; the fault is kept, and nothing more is handed out."""

    def fail(kind: str, one: Stage, text: str) -> None:
        if kind == "crashed":
            raise OSError("no space left on device")

    h = handout([stage("a"), stage("b")], Ledger({"CPU": 1.0}))
    h.scheduler.on_event = fail
    assert h.take("1") is not None
    h.end("1", {"state": "crashed", "cause": "x"}, error=False)
    assert h.over
    assert isinstance(h.fault, OSError)
