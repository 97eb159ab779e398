"""Joining a real Ray cluster that refuses us: one sentence, at once, and nothing started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

TOKEN = "a" * 64
HEAD = """
import sys, ray
ray.__version__ = "2.1.0"  # as the cluster will note it down
from pretune.cluster.tune import start_ray, stop_ray
start_ray(None, 1)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
stop_ray()
"""


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head of another version, which asks for its token."""
    environment = os.environ | {"RAY_AUTH_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=60)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("auth", "sentence"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}, "the cluster refuses the token; set RAY_AUTH_MODE"),
        ({"RAY_AUTH_MODE": "disabled"}, "the cluster refuses the token; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, "Version mismatch: The cluster was started with: "),
    ],
    ids=["wrong token", "no token", "another version"],
)
def test_a_cluster_that_cannot_be_joined_says_why(
    head: str, auth: dict[str, str], sentence: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-m", "pretune", "run", str(file), "--root", str(tmp_path / "runs"), "--address", head],
        env=environment | {"HOME": str(tmp_path)} | auth, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: --address {head}: {sentence}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
