"""What Tune's actors are really given: their environment and their place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pretune.cluster import held_places, tune
from pretune.cluster.tune import ACTOR_ENVIRONMENT, NODE_ID, SHOWN_ENVIRONMENT, place_of
from pretune.dispatch.dispatcher import TRANSPORT
from pretune.worker import ray_private
from tests.pretune.heads import TOKEN, started_head

SECRET = "k3y-of-this-user"
DRIVER = """
import json, os, sys, ray
from ray import tune
from pretune.cluster.tune import keep_keys_to_ourselves, place_of, start_ray, stop_ray

def trial(config):
    given = ray.get_runtime_context().runtime_env.get("env_vars", {})
    tune.report({"found": json.dumps({"environment": dict(os.environ), "given": given})})

start_ray(sys.argv[2] or None, 1)
keep_keys_to_ourselves()
place = tune.with_resources(trial, place_of)
run = tune.RunConfig(storage_path=sys.argv[1], verbose=0)
space = {"pretune": {"resources": {"CPU": 1.0}, "excluded": []}}
print(tune.Tuner(place, param_space=space, run_config=run).fit()[0].metrics["found"])
stop_ray()
"""


@pytest.mark.ray
@pytest.mark.parametrize("joined", [False, True], ids=["started here", "joined"])
def test_an_actor_has_our_settings_and_is_handed_no_key(joined: bool, tmp_path: Path) -> None:
    """Of a cluster that others started, too, whose processes do not have this driver's environment."""
    ours = {name: value for name, value in os.environ.items() if name not in ACTOR_ENVIRONMENT} | TOKEN
    keys = {"AWS_ACCESS_KEY_ID": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    with ExitStack() as stack:
        address = stack.enter_context(started_head(ours, "--num-cpus=1"))[0] if joined else ""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path), address],
            env=ours | keys, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found["environment"].get(name) for name in ACTOR_ENVIRONMENT} == ACTOR_ENVIRONMENT
    assert SECRET not in str(found["given"])
    assert (SECRET in str(found["environment"])) is not joined  # here it is inherited, as by any child; there it is not


@pytest.mark.parametrize("before", [None, "1"])
def test_what_a_cluster_starts_has_the_settings_and_nothing_afterwards(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the dashboard join the cluster themselves; without the setting they look for it on another address."""
    name = next(iter(tune.LOOPBACK_ONLY))
    monkeypatch.setattr(os, "environ", {} if before is None else {name: before})
    monkeypatch.setattr(ray_private, "settings_read_again", nullcontext)
    with tune._in_force(tune.LOOPBACK_ONLY):
        assert os.environ[name] == "0"
    assert os.environ.get(name) == before


@pytest.mark.parametrize(("shown", "expected"), [(True, SHOWN_ENVIRONMENT), (False, ACTOR_ENVIRONMENT)])
def test_ray_train_tells_the_dashboard_of_its_runs_where_there_is_one(
    shown: bool, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both for a cluster that others started and for one of ours."""
    monkeypatch.setattr(os, "environ", {})
    assert tune._there("HOST:6379", shown)["runtime_env"]["env_vars"] == expected
    os.environ["RAY_ADDRESS"] = "http://another:8265"  # which Ray Train in its workers would ask
    assert tune._here(1, shown)["include_dashboard"] is shown
    assert os.environ == expected
    assert (expected["RAY_TRAIN_ENABLE_STATE_TRACKING"] == "1") is shown


def asking(resources: dict[str, float], *excluded: str) -> dict[str, Any]:
    return {"label": "a stage", TRANSPORT: {"resources": resources, "excluded": list(excluded)}}


def test_a_trial_asks_for_its_resources_and_for_another_node_where_it_is_kept_off_some() -> None:
    free = place_of(asking({"CPU": 2.0, "GPU": 0.0}))
    assert free.bundles == [{"CPU": 2.0}]
    assert free == place_of(asking({"CPU": 2.0}))
    kept = place_of(asking({"CPU": 2.0}, "a1", "b2"))
    assert kept.bundles == [{"CPU": 2.0}]
    assert kept._bound.kwargs == {"bundle_label_selector": [{NODE_ID: "!in(a1,b2)"}]}
    assert kept != free


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Any]:
    """A cluster of three sets of Ray's processes, and this process connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_places_a_trial_on_none_of_the_nodes_that_it_is_kept_off(three_nodes: Any) -> None:
    """By its own placement groups, with the labels that Ray gives."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ids = [node["NodeID"] for node in ray.nodes()]  # type: ignore[no-untyped-call]
    assert {node.node_id for node in three_nodes.worker_nodes} < set(ids)
    for wanted in ids:
        others = sorted(set(ids) - {wanted})
        group = place_of(asking({"CPU": 1.0}, *others)).to_placement_group()
        ray.get(group.ready(), timeout=30)
        where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
        place = PlacementGroupSchedulingStrategy(group)
        assert ray.get(where.options(num_cpus=1, scheduling_strategy=place).remote(), timeout=60) == wanted
        ray.util.remove_placement_group(group)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_places_with_the_mark_of_a_lost_stage_are_given_back_and_no_others(three_nodes: Any) -> None:
    """A place that workers have, one that waits for room, and places of another stage and of Tune."""
    import ray

    mark = 2**20 + 7
    of_other = ray.util.placement_group([{"CPU": 1.0, "memory": mark + 1}])
    tunes = place_of(asking({"memory": 2**20})).to_placement_group()
    held = ray.util.placement_group([{"CPU": 1.0, "memory": mark}] * 2)
    ray.get([group.ready() for group in (of_other, tunes, held)], timeout=60)
    waiting, next_one = (ray.util.placement_group([{"CPU": 1.0, "memory": mark + more}] * 2) for more in (0, 2))
    assert held_places.give_back(mark)
    assert next_one.wait(60)  # the room is free again
    states = [ray.util.placement_group_table(one)["state"] for one in (held, waiting, of_other, tunes)]
    assert states == ["REMOVED", "REMOVED", "CREATED", "CREATED"]
    assert not held_places.give_back(mark)


def started_by(
    fails: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[subprocess.Popen[bytes]], list[str], Any]:
    """Start a Ray that leaves a process behind at every try, and fails at the first ones."""
    tries: list[subprocess.Popen[bytes]] = []
    said: list[str] = []

    def init(**given: Any) -> str:
        tries.append(subprocess.Popen(["sleep", "60"]))
        if fails:
            raise fails.pop(0)
        return "up"

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    return tries, said, lambda: tune._init_here({}, said.append)


def test_a_ray_that_does_not_start_here_is_started_once_more_without_the_rest_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = subprocess.Popen(["sleep", "60"])  # of whoever calls us from a notebook
    tries, said, start = started_by([RuntimeError("timed out")], monkeypatch)
    try:
        assert start() == "up"
        assert (len(tries), len(said)) == (2, 1)
        assert tries[0].wait(10) == -signal.SIGKILL
        assert (tries[1].poll(), other.poll()) == (None, None)
    finally:
        for one in (*tries, other):
            one.kill()
            one.wait()


@pytest.mark.parametrize(
    ("fault", "count"), [(RuntimeError("timed out"), 2), (OSError(28, "No space left on device"), 1)]
)
def test_a_ray_is_started_at_most_twice_and_once_where_a_disk_is_full(
    fault: Exception, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, said, start = started_by([fault, fault, fault], monkeypatch)
    with pytest.raises(type(fault)) as raised:
        start()
    assert raised.value is fault
    assert (len(tries), len(said)) == (count, count - 1)
    assert [one.wait(10) for one in tries] == [-signal.SIGKILL] * count


SLOW_AGENTS = """
import os, signal, threading, time
from pathlib import Path
from pretune.cluster import reaper
from pretune.cluster.tune import start_ray, stop_ray

def stop_agents():
    nodes = {}
    while True:
        for pid in reaper.below(os.getpid()):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\\0")
            except OSError:
                continue
            if words[0].endswith(b"/raylet"):
                nodes.setdefault(pid)
            elif len(nodes) == 1 and any(word.endswith((b"/agent/main.py", b"/agent.py")) for word in words[:4]):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01)

threading.Thread(target=stop_agents, daemon=True).start()
start_ray(None, 1)
import ray
print("answer", ray.get(ray.remote(lambda: 7).remote()))
stop_ray()
print("left", [pid for pid in reaper.below(os.getpid()) if Path(f"/proc/{pid}/cmdline").read_bytes()])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_whose_agents_do_not_start_in_its_time_is_started_once_more() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_AGENTS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3, lines  # the second start is said
    assert lines[1:] == ["answer 7", "left []"]
