"""How far a cluster may grow: by what the user says, and by the file that its autoscaler was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune.cluster.autoscaling import Autoscaling, Group, config_here, of_config, parse
from pretune.dispatch.resources import ClusterNode
from tests.pretune.cli.test_study import pretune as pretune  # the fixture

GPU = {"CPU": 8.0, "GPU": 1.0}


def test_what_the_user_says() -> None:
    assert parse("8xCPU=8,GPU=1") == Group(8, GPU)
    assert parse(" 2xCPU=16 ") == Group(2, {"CPU": 16.0})


@pytest.mark.parametrize(
    "text", ["", "8", "CPU=8", "8xCPU", "8xCPU=8,TPU=1", "8 x CPU=8", "-1xCPU=8", "8xCPU=8,GPU=1,GPU=2"]
)
def test_what_is_not_understood_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="--may-grow 8xCPU=8,GPU=1"):
        parse(text)


def test_nodes_that_are_there_are_no_longer_to_come() -> None:
    there = [ClusterNode({"CPU": 0.0, "memory": 1e9}, "head"), ClusterNode(GPU | {"memory": 1e9}, "1")]
    assert Autoscaling().coming(there) == []
    assert Autoscaling((Group(3, GPU),)).coming(there) == [ClusterNode(GPU)] * 2
    assert Autoscaling((Group(1, GPU),)).coming(there) == []
    assert Autoscaling((Group(2, GPU), Group(4, {"CPU": 64.0})), most=3).coming(there) == [
        ClusterNode(GPU),
        ClusterNode({"CPU": 64.0}),
    ]
    assert len(Autoscaling((Group(10**9, GPU),)).coming([])) == 10_000


def test_the_shipped_file_for_aws_grows_to_eight_gpu_nodes() -> None:
    config = yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text())
    assert of_config(config) == Autoscaling((Group(8, GPU),), most=8)


def test_own_nodes_over_ssh_are_known_only_once_they_are_there() -> None:
    """What `ray up` makes of cluster/local.yaml: kinds without resources."""
    kinds = {"local.cluster.node": {"node_config": {}, "resources": {}, "min_workers": 2, "max_workers": 2}}
    assert of_config({"available_node_types": kinds, "head_node_type": "local.cluster.node"}).groups == ()
    assert of_config({"available_node_types": {"other": {}} | kinds}).groups == ()
    assert of_config({}).groups == ()


def test_the_autoscaler_of_this_cluster_is_found_by_its_command_line(tmp_path: Path) -> None:
    def process(pid: str, *words: str) -> None:
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes("\0".join(words).encode() + b"\0")

    def config(name: str) -> str:
        (tmp_path / name).write_text(yaml.safe_dump({"cluster_name": name}))
        return f"--autoscaling-config={tmp_path / name}"

    process("1", "init")
    process("2", "python", "monitor.py", "--gcs-address=10.0.0.1:6379", config("theirs"))
    process("3", "python", "monitor.py", "--gcs-address=10.0.0.1:6380", config("ours"), "--monitor-ip=10.0.0.1")
    process("4", "python", "monitor.py", "--gcs-address=10.0.0.1:6381")
    (tmp_path / "5").mkdir()  # one that has just ended
    found: dict[str, Any] | None = config_here("10.0.0.1:6380", tmp_path)
    assert found == {"cluster_name": "ours"}
    assert config_here("10.0.0.1:6381", tmp_path) is None
    assert config_here("10.0.0.1:6382", tmp_path) is None
    process("6", "python", "monitor.py", "--gcs-address=10.0.0.1:6383", "--autoscaling-config=/absent/file")
    assert config_here("10.0.0.1:6383", tmp_path) is None


def test_the_option_is_checked_before_anything_starts(pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    code, _, err = pretune("run", file, "--root", tmp_path / "runs", "--may-grow", "8xCPU=8")
    assert (code, "--may-grow only works with a cluster: also give --address" in err) == (2, True)
    where = ["--address", "http://127.0.0.1:1", "--root", "/shared/runs"]
    code, _, err = pretune("submit", file, *where, "--may-grow", "eight")
    assert (code, "--may-grow eight: give a number of nodes and what each has" in err) == (2, True)
