"""A cluster with a node on which nothing runs: the study ends whole, and says which node it excluded and why.

Ray's own stand-in for nodes: sets of its processes on this one. On the bad one an installation is broken.
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

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BROKEN = "raise OSError('input/output error: the disk of this machine is broken')\n"
JOIN = """
import os, sys, ray
from ray._private.node import Node
from ray._private.parameter import RayParams
nodes = [Node(RayParams(num_cpus=1, redis_address=sys.argv[1], gcs_address=sys.argv[1], min_worker_port=0,
              max_worker_port=0, env_vars=env, dashboard_port=None, dashboard_agent_listen_port=0),
              head=False, shutdown_at_exit=True, spawn_reaper=False) for env in ({"PYTHONPATH": sys.argv[2]}, {})]
print(flush=True)
sys.stdin.read()
for node in nodes:
    node.kill_all_processes(check_alive=False, allow_graceful=True)
"""


def test_a_study_ends_whole_beside_a_node_on_which_everything_crashes(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken" / "safetensors").mkdir(parents=True)
    (tmp_path / "broken" / "safetensors" / "__init__.py").write_text(BROKEN)
    broken = os.pathsep.join([str(tmp_path / "broken"), *filter(None, [os.environ.get("PYTHONPATH")])])
    tiny["seeds"]["report"] = 3
    tiny["pretrain"]["steps"] = tiny["finetune"]["steps"] = 400  # longer than a new process on the bad one takes
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    environment = os.environ | TOKEN
    with (
        started_head(environment, "--num-cpus=0") as (address, _),
        subprocess.Popen(
            [sys.executable, "-c", JOIN, address, broken],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as nodes,
    ):  # fmt: skip
        assert nodes.stdout is not None
        nodes.stdout.readline()
        words = ["run", tmp_path / "tiny.yaml", "--root", tmp_path / "runs", "--address", address]
        done = subprocess.run(
            [sys.executable, "-m", "pretune", *map(str, words)],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        nodes.communicate(timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "runs" / "tiny" / "status.json").read_text())["finished"] == 9
    why = "gets no more stages: 3 stages crashed there in a row, the last with OSError: input/output error"
    assert why in " ".join(done.stdout.split())
