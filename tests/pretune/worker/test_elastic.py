"""A node that is lost for good while it trains with another: with `min_workers` the stage ends on what is left.

Ray's own stand-in for nodes: two sets of its processes on this one. Ray Train goes by what the nodes have, not by
what is free on them, so that only a node that is gone makes the group smaller.
"""

from __future__ import annotations

import dataclasses
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from rich.console import Console
from safetensors.torch import load_file

from pretune.cluster.tune import ACTOR_ENVIRONMENT
from pretune.plan import make_plan
from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Entry, Store
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.files import STATE
from pretune.worker.execute import execute
from pretune.worker.task import Folders, StageTask

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each; answers what takes the second away."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": ACTOR_ENVIRONMENT})
    cluster.wait_for_nodes()
    yield lambda: cluster.remove_node(second, allow_graceful=False)
    ray.shutdown()
    cluster.shutdown()


def task(tiny: dict[str, Any], store: Path, **resources: int) -> StageTask:
    """The pretraining, with a state every 0.2 s."""
    _, stages = make_plan(
        from_dict(tiny | {"resources": {"pretrain": resources}}), lambda data: content_digest(data, None)
    )
    first = next(stage for stage in stages if stage.kind == "pretrain")
    made = StageTask(first, "a stage", 0.0, Folders(str(store), str(store.parent / "cache"), None))
    return dataclasses.replace(made, checkpoint_seconds=0.2)


def ended(one: StageTask) -> tuple[Entry, dict[str, torch.Tensor]]:
    outcome = execute(one, lambda values: None)
    assert outcome.state == "finished", outcome.cause
    store = Store(Path(one.folders.store))
    entry = store.find(one.fingerprint)
    assert entry is not None
    return entry, load_file(store.file(entry, "model.safetensors"))


def test_one_node_ends_what_two_began(nodes: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    """In float32, plain SGD: sums in another order move things a little, over 100 steps running means by 4e-4 and the
    encoder's rank by 0.3 %."""
    tiny["pretrain"] |= {"steps": 100, "optimizer": {"name": "sgd", "lr": 0.01}, "method": {"name": "mae", "patch": 4}}
    calm, hit = task(tiny, tmp_path / "calm", workers=2), task(tiny, tmp_path / "hit", workers=2, min_workers=1)
    assert hit.fingerprint == calm.fingerprint
    whole, expected = ended(calm)

    def lose() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list((tmp_path / "hit" / hit.fingerprint).glob(f"*/{STATE}")):
            time.sleep(0.05)
        nodes()

    loss = threading.Thread(target=lose)
    loss.start()
    entry, weights = ended(hit)
    loss.join()
    assert whole.about["workers"] == 2
    assert (entry.about["workers"], entry.about["resumed"]) == (1, True)
    assert entry.metrics == pytest.approx(whole.metrics, rel=1e-2)
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, rtol=1e-2, atol=1e-3), name


def test_a_group_that_lost_a_node_gets_the_room_of_a_process_that_idles(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Three workers and a fine-tuning of its own on two nodes of two CPUs. It ends, and Tune keeps its process for
    the next; then a node is lost, and the workers that come back need what that process holds."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    tiny["resources"] = {"pretrain": {"workers": 3, "min_workers": 1}}
    tiny["pretrain"] |= {"steps": 300, "batch_size": 12, "method": {"name": "mae", "patch": 4}}
    tiny["factors"] = {"start": {"random": {"finetune.transfer": "none"}, "trained": {"finetune.transfer": "encoder"}}}
    tiny["report"] = {"rows": "start"}
    tiny["seeds"]["report"] = 1
    options = Options(tmp_path / "out", tmp_path / "store", tmp_path / "cache", address=cluster.address)

    def lose() -> None:
        """The second node, once the fine-tuning has ended and the group has written a state."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if list((tmp_path / "store").glob("*/done.json")) and list((tmp_path / "store").glob(f"*/*/{STATE}")):
                break
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)

    loss = threading.Thread(target=lose)
    loss.start()
    try:
        often = lambda *given, **named: dataclasses.replace(StageTask(*given, **named), checkpoint_seconds=0.2)  # noqa: E731
        with mock.patch("pretune.run.StageTask", often):
            ended = run_study(from_dict(tiny), options, Console(file=io.StringIO()))
    finally:
        loss.join()
        cluster.shutdown()
    assert (ended.exit_code, ended.trained) == (0, 3)


def test_a_group_larger_than_the_cluster_is_not_refused_and_runs_on_what_there_is(
    nodes: Any, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Two to three workers on two CPUs: the study asks for room for two, as Ray Train does."""
    tiny["resources"] = {"pretrain": {"workers": 3, "min_workers": 2}}
    tiny["pretrain"]["batch_size"] = 12
    tiny["seeds"]["report"] = 1
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    options = Options(tmp_path / "out", tmp_path / "store", tmp_path / "cache", address=address)
    ended = run_study(from_dict(tiny), options, Console(file=io.StringIO()))
    assert (ended.exit_code, ended.trained) == (0, 3)
    entries = [json.loads(path.read_text()) for path in (tmp_path / "store").glob("*/done.json")]
    assert [entry["about"]["workers"] for entry in entries if entry["stage"] == "pretrain"] == [2]
