"""A study on a cluster that starts with nothing: a head without CPUs, and nodes that Ray's autoscaler starts for it.

The autoscaler is Ray's own; its nodes are sets of Ray's processes on this one, by Ray's provider for its own tests.
`ray.cluster_utils.AutoscalingCluster` is not used: Ray's wheel lacks the file it reads, and it stops all Ray there is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pretune.heads import TOKEN, started_head

pytestmark = pytest.mark.ray
MACHINES = 2
HEAD_ID = "f" * 51 + "00000"  # of Ray's fake nodes


def autoscaler_of(folder: Path, address: str) -> list[str]:
    """Up to two nodes with a CPU each; the option that names the file."""
    config = {
        "cluster_name": "grow",
        "max_workers": MACHINES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MACHINES},
        },
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "auth": {},
        "rsync_exclude": [], "rsync_filter": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    file = folder / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config))
    return [f"--autoscaling-config={file}"]


@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_study_makes_a_cluster_grow_from_nothing_and_ends(version: int, tiny: dict[str, Any], tmp_path: Path) -> None:
    environment = os.environ | TOKEN | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": str(version - 1),
    }  # fmt: skip
    if version == 2:  # it knows the head by these
        environment |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    with started_head(environment, "--num-cpus=0", prepare=autoscaler_of) as (address, folder):
        words = ["run", tmp_path / "tiny.yaml", "--root", tmp_path / "runs", "--address", address]
        done = subprocess.run(
            [sys.executable, "-m", "pretune", *map(str, words)],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        events = (folder / "session_latest" / "logs" / "events" / "event_AUTOSCALER.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"1 node, {MACHINES} more may come" in done.stdout
    assert json.loads((tmp_path / "runs" / "tiny" / "status.json").read_text())["finished"] == 6
    assert f"Adding {MACHINES} node(s) of type worker." in events  # at once, not one after the other's first stage
