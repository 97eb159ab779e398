"""The room on nodes: what fits, what could never fit, and nodes that come, go, or are kept off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.dispatch.resources import ClusterNode, ClusterResources, ResourceError
from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage


def stage(
    name: str, cpus: int = 1, gpus: float | None = None, workers: int = 1, min_workers: int | None = None
) -> Stage:
    several = {"gpus_per_worker": gpus} if workers > 1 else {"gpus": gpus}
    resources = schema.StageResources(cpus=cpus, workers=workers, min_workers=min_workers, **several)  # type: ignore[arg-type]
    data, settings = schema.Scenes(dataset="scenes"), schema.Finetune(data="d", steps=1)
    return Stage("finetune", name, settings, schema.UNet(), data, "", {}, None, resources, False, name)


def nodes(*resources: dict[str, float]) -> list[ClusterNode]:
    """Nodes with ids 0, 1, 2, ..."""
    return [ClusterNode(each, str(place), f"host-{place}") for place, each in enumerate(resources)]


def resources(*resources: dict[str, float]) -> ClusterResources:
    return ClusterResources(nodes(*resources))


# ------------------------------------------------------------------------------------------------ what a stage needs


def test_a_stage_needs_its_cpus_and_a_gpu_where_there_are_any() -> None:
    assert resources({"CPU": 4.0}).each(stage("a", 2)) == {"CPU": 2.0, "GPU": 0.0}
    assert resources({"CPU": 4.0, "GPU": 2.0}).each(stage("a")) == {"CPU": 1.0, "GPU": 1.0}
    assert resources({"CPU": 4.0, "GPU": 2.0}).each(stage("a", gpus=0.25)) == {"CPU": 1.0, "GPU": 0.25}
    assert resources({"CPU": 4.0, "GPU": 2.0}).each(stage("a", gpus=0)) == {"CPU": 1.0, "GPU": 0.0}


@pytest.mark.parametrize(("asked", "counted"), [(0.25, 0.25), (0.3, 1 / 3), (0.4, 0.5), (0.6, 1.0), (1.0, 1.0), (2, 2)])
def test_a_share_of_a_gpu_counts_as_what_it_leaves_no_use_for(asked: float, counted: float) -> None:
    assert resources({"CPU": 1.0, "GPU": 2.0}).each(stage("a", gpus=asked))["GPU"] == pytest.approx(counted)


def test_gpus_left_open_are_decided_by_what_may_come_and_not_undone_when_it_goes() -> None:
    """A head without GPUs, GPU nodes from 0: the first stages must not silently go to the CPU."""
    head, coming = ClusterNode({"CPU": 4.0}, "head"), ClusterNode({"CPU": 8.0, "GPU": 1.0})
    one = ClusterResources([head, coming])
    assert one.each(stage("a")) == {"CPU": 1.0, "GPU": 1.0}
    one.look([head])
    assert one.each(stage("a"))["GPU"] == 1.0
    assert not one.fits(stage("a"))
    late = ClusterResources([head])
    assert late.each(stage("a"))["GPU"] == 0.0
    late.look([head, coming])
    assert late.each(stage("a"))["GPU"] == 1.0


# ---------------------------------------------------------------------------------------------- what could never fit


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (stage("a", cpus=8), r"resources.finetune.cpus: a stage needs 8 CPU, there are 4"),
        (stage("a", gpus=1), r"resources.finetune.gpus: a stage needs 1 GPU, there are 0"),
    ],
)
def test_what_can_never_be_placed_is_refused_at_once(one: Stage, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        resources({"CPU": 4.0}).check({"a": one})
    resources({"CPU": 8.0, "GPU": 1.0}).check({"a": one})


TWO_NODES = ({"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"memory": 1e9})


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (stage("a", cpus=6), r"resources.finetune.cpus: a stage needs 6 CPU, no node has more than 4; lower it"),
        (
            stage("a", workers=2, gpus=4),
            r"resources.finetune.gpus_per_worker: a stage needs 4 GPU, no node has more than 2",
        ),
        (
            stage("a", workers=4),
            r"resources.finetune.workers: 4 workers with 1 CPU and 1 GPU each, there is room for 3",
        ),
        (
            stage("a", workers=3, cpus=3, gpus=0),
            r"resources.finetune.workers: 3 workers with 3 CPU each, there is room for 2",
        ),
        (
            stage("a", workers=6, min_workers=4),
            r"resources.finetune.min_workers: at least 4 workers with 1 CPU and 1 GPU each, there is room for 3",
        ),
    ],
)  # fmt: skip
def test_what_fits_no_node_is_refused_though_the_sum_would_do(one: Stage, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        resources(*TWO_NODES).check({"a": one})
    resources(*TWO_NODES).check(
        {
            "a": stage("a", workers=3),
            "b": stage("b", workers=8, gpus=0),
            "c": stage("c", cpus=4, gpus=2),
            "d": stage("d", workers=6, min_workers=3),
        }
    )


def test_cpus_on_one_node_and_gpus_on_another_are_named_together() -> None:
    with pytest.raises(ResourceError, match=r"resources\.finetune: .*4 CPU and 1 GPU"):
        resources({"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}).check({"a": stage("a", cpus=4)})


def test_a_group_that_lost_a_node_keeps_the_room_that_is_left_for_it() -> None:
    """Three workers on two nodes of 2 CPUs; on the node that is left nothing else gets in."""
    first, second = ClusterNode({"CPU": 2.0}, "first"), ClusterNode({"CPU": 2.0}, "second")
    both = ClusterResources([first, second])
    both.admit(stage("group", workers=3, min_workers=1))
    both.look([first])
    assert both.running["group"].places == (0, 0)
    assert not both.fits(stage("a"))
    both.release("group")
    assert both.fits(stage("a"))


def test_what_may_come_is_room_too() -> None:
    """As in cluster.yaml: a head without CPUs, workers from 0."""
    head = ClusterNode({"CPU": 0.0}, "head")
    one = stage("a", cpus=8, gpus=1)
    with pytest.raises(ResourceError, match="a stage needs 8 CPU, there are 0"):
        ClusterResources([head]).check({"a": one})
    growing = ClusterResources([head, *[ClusterNode({"CPU": 8.0, "GPU": 1.0})] * 8])
    growing.check({"a": one})
    for number in range(8):
        assert growing.fits(stage(str(number), cpus=8))
        growing.admit(stage(str(number), cpus=8))
    assert not growing.fits(one)


# --------------------------------------------------------------------------------------------------------- by node


def test_free_gpus_on_two_nodes_are_no_two_gpus_on_one() -> None:
    """Two nodes of two GPUs. Two stages of one GPU each: Ray puts them on different nodes, and so do we."""
    one = resources({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0})
    one.admit(stage("a", gpus=1))
    one.admit(stage("b", gpus=1))
    assert {taken.places for taken in one.running.values()} == {(0,), (1,)}
    assert not one.fits(stage("c", gpus=2))
    assert one.fits(stage("d", gpus=1))
    one.release("a")
    assert one.fits(stage("c", gpus=2))


def test_a_stage_that_says_where_it_is_puts_the_ledger_right() -> None:
    one = resources({"CPU": 2.0}, {"CPU": 2.0})
    one.admit(stage("a"))
    one.settle("a", "1")
    assert one.running["a"].places == (1,)
    one.settle("a", "unknown")
    one.settle("absent", "1")
    one.admit(stage("b", cpus=2))
    assert one.running["b"].places == (0,)
    one.release("a")
    one.release("b")
    assert one.fits(stage("c", cpus=2, workers=2))


def test_nodes_come_and_go_and_what_runs_keeps_its_place() -> None:
    first, second, third = nodes({"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0})
    one = ClusterResources([first, second])
    one.admit(stage("a", cpus=2))
    one.settle("a", second.id)
    one.look([second, third])
    assert one.running["a"].places == (0,)
    assert one.fits(stage("b", cpus=2))
    one.admit(stage("b", cpus=2))
    assert not one.fits(stage("c"))
    one.look([second])  # what ran on the third is lost, and takes nothing here
    one.release("b")
    assert not one.fits(stage("c"))
    one.release("a")
    assert one.fits(stage("c", cpus=2))


def test_a_stage_that_waits_for_a_node_is_on_it_once_it_has_come() -> None:
    head, coming = ClusterNode({"CPU": 0.0}, "head"), ClusterNode({"CPU": 2.0})
    one = ClusterResources([head, coming])
    one.admit(stage("a"))
    one.look([head, ClusterNode({"CPU": 2.0}, "new")])
    assert one.running["a"].places == (1,)
    assert one.fits(stage("b"))
    assert not one.fits(stage("c", cpus=2))


def test_nodes_that_are_there_are_taken_before_those_that_may_come() -> None:
    one = ClusterResources([ClusterNode({"CPU": 64.0}), *nodes({"CPU": 2.0})])
    one.admit(stage("a"))
    assert one.running["a"].places == (1,)


def test_nodes_to_keep_off_are_no_room() -> None:
    one = resources({"CPU": 1.0}, {"CPU": 1.0})
    one.admit(stage("a"), excluded={"0"})
    assert one.running["a"].places == (1,)
    assert not one.fits(stage("b"), excluded={"0"})
    assert one.fits(stage("b"))
    assert one.could_hold(stage("b"), excluded={"0"})
    assert not one.could_hold(stage("b"), excluded={"0", "1"})


def test_an_elastic_stage_takes_what_the_nodes_could_ever_hold_for_ray_train_waits_for_it() -> None:
    """Four to eight workers on six CPUs: room for six is needed, and with one CPU taken there is none."""
    one = resources({"CPU": 4.0}, {"CPU": 2.0})
    group = stage("g", workers=8, min_workers=4, gpus=0)
    one.check({"g": group})
    assert one.workers(group) == 6
    one.admit(stage("a"))
    assert not one.fits(group)
    one.release("a")
    one.admit(group)
    assert sorted(one.running["g"].places) == [0, 0, 0, 0, 1, 1]


SIZES = st.fixed_dictionaries({"CPU": st.integers(0, 4).map(float), "GPU": st.integers(0, 2).map(float)})
SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(1, 3))


@given(st.lists(SIZES, min_size=1, max_size=3), st.lists(SHAPES, min_size=1, max_size=8))
def test_never_more_is_taken_of_a_node_than_it_has_and_what_ends_gives_all_back(
    sizes: list[dict[str, float]], shapes: list[tuple[int, float, int]]
) -> None:
    """By an account of our own: what runs is summed up per node; what does not fit, fits none."""
    one = resources(*sizes)
    running: list[Stage] = []
    for number, (cpus, gpus, workers) in enumerate(shapes):
        new = stage(str(number), cpus, gpus, workers)
        used = [{"CPU": 0.0, "GPU": 0.0} for _ in sizes]
        for each in running:
            for place in one.running[each.fingerprint].places:
                used[place]["CPU"] += each.resources.cpus
                used[place]["GPU"] += each.resources.gpus_each or 0.0
        for size, taken in zip(sizes, used, strict=True):
            assert taken["CPU"] <= size["CPU"]
            assert taken["GPU"] <= size["GPU"]
        room = [
            sum(
                all(taken[name] + count * amount <= size[name] for name, amount in (("CPU", cpus), ("GPU", gpus)))
                for count in range(1, workers + 1)
            )
            for size, taken in zip(sizes, used, strict=True)
        ]
        assert one.fits(new) == (sum(room) >= workers)
        if one.fits(new):
            one.admit(new)
            running.append(new)
    for each in running:
        one.release(each.fingerprint)
    assert [one._free[place] for place in range(len(sizes))] == sizes
