"""A local cluster listens on loopback alone and answers only who has its token."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ipaddress, os, psutil, ray
from pretune.transport import start_ray, stop_ray
start_ray(None, 1)
ray.get(ray.remote(lambda: 1).remote())
me = psutil.Process()
own = [me, *me.children(recursive=True)]
where = {c.laddr.ip for p in own for c in p.net_connections(kind="inet") if c.status == "LISTEN"}
where = {ip.removeprefix("::ffff:") for ip in where}
print("listens", *sorted(where))
address = ray.get_runtime_context().gcs_address
import subprocess, sys
bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
bare["RAY_gcs_rpc_server_connect_timeout_s"] = "2"
bare["RAY_gcs_server_request_timeout_seconds"] = "5"
code = f"from ray._raylet import GcsClient; GcsClient(address='{address}')"
refused = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
print("refused", refused.returncode != 0 and "token" in refused.stderr.lower())
stop_ray()
"""


@pytest.mark.ray
def test_a_local_cluster_listens_on_loopback_and_asks_for_its_token() -> None:
    """In a process of its own, as Ray reads its settings when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=200)
    assert "listens 127.0.0.1\n" in done.stdout, done.stdout + done.stderr
    assert "refused True" in done.stdout, done.stdout + done.stderr
