"""A local cluster listens on loopback alone and answers only who has its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretune.cluster.tune import keep_token_private

SCRIPT = """
import os, psutil, sys, time
if sys.argv[1] == "imported before":
    import ray
from pretune.cluster.tune import start_ray, stop_ray
said = []
start_ray(None, 1, dashboard=sys.argv[1] == "dashboard", say=said.append)
import ray
if said:
    import urllib.request
    token = open(os.path.expanduser("~/.ray/auth_token")).read()
    url = said[0].split()[1] + "/api/data/datasets/01000000"
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
    print("data", urllib.request.urlopen(request, timeout=90).status)
ray.get(ray.remote(lambda: 1).remote())
me, where, found, deadline = psutil.Process(), set(), 0, time.monotonic() + 60
while found < 3 and time.monotonic() < deadline:  # agents start later; 3 to 5 ports were seen
    time.sleep(0.5)
    own = [me, *me.children(recursive=True)]
    sockets = [(p, c) for p in own for c in p.net_connections(kind="inet") if c.status == "LISTEN"]
    where |= {c.laddr.ip.removeprefix("::ffff:") for _, c in sockets}
    found = sum("Agent" in " ".join(p.cmdline()) for p, _ in sockets)
print("agents", found >= 3)
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
@pytest.mark.parametrize("shown", [pytest.param("dashboard", marks=pytest.mark.slow), "none", "imported before"])
def test_a_local_cluster_listens_on_loopback_and_asks_for_its_token(shown: str, tmp_path: Path) -> None:
    """In a process of its own, as Ray reads its settings when it is imported. Metrics are served by an agent."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)
    script = [sys.executable, "-c", SCRIPT, shown]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=200)
    assert "agents True\n" in done.stdout, done.stdout + done.stderr
    assert ("data 200\n" in done.stdout) == (shown == "dashboard")  # a part of the dashboard that joins the cluster
    assert "listens 127.0.0.1\n" in done.stdout, done.stdout + done.stderr
    assert "refused True" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / ".ray" / "auth_token").exists() == (shown == "dashboard")  # a person needs that one


@pytest.mark.parametrize("before", [None, 0o644, 0o600])
def test_the_file_of_the_token_is_for_its_owner_alone_and_keeps_its_token(
    before: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray" / "auth_token"
    if before is not None:
        path.parent.mkdir()
        path.write_text("a" * 64)
        path.chmod(before)
    keep_token_private(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text()) == 64
    assert before is None or path.read_text() == "a" * 64


def test_a_token_in_the_environment_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    keep_token_private(tmp_path / "auth_token")
    assert not (tmp_path / "auth_token").exists()
