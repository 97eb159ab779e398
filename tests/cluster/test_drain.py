"""Machines that are taken back with notice: SIGTERM to `ray start --block` as in a pod, and AWS's notice."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.pretune.heads import end

TOP = Path(__file__).resolve().parents[2]

# A stage that takes longer to write its state than a worker lives whose raylet got SIGTERM.
DRIVER = """
import sys, time
from pathlib import Path
import ray
from pretune.worker import preemption

ray.init(sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=1)
def stage(began):
    with preemption.at_work() as asked:
        Path(began).touch()
        while not asked():
            time.sleep(0.1)
        time.sleep(5)
        return "state written"

print(ray.get(stage.options(max_retries=0).remote(sys.argv[2])))
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def started(environment: dict[str, str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1"]
    words += ["--object-store-memory=100000000", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    process = subprocess.Popen(
        [*words, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        end(process)


@pytest.mark.slow
@pytest.mark.ray
def test_an_evicted_worker_lets_its_stage_write_its_state_first(tmp_path: Path) -> None:
    port, client, agent, other_agent = free_ports(4)
    driver, log = tmp_path / "driver.py", tmp_path / "log"
    driver.write_text(DRIVER)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(TOP),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60", "RAY_TMPDIR": short,
        }  # fmt: skip
        head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        head += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        there = [f"--address=127.0.0.1:{port}", "--num-cpus=1", f"--dashboard-agent-listen-port={other_agent}"]
        with started(environment, *head), log.open("w") as out:
            wait_until(lambda: listens(port), "a head")
            with started(environment, *there) as worker:
                words = [sys.executable, str(driver), f"127.0.0.1:{port}", str(tmp_path / "began")]
                with subprocess.Popen(words, env=environment, stdout=out, stderr=out) as driving:
                    try:
                        wait_until((tmp_path / "began").exists, "the stage")
                        worker.send_signal(signal.SIGTERM)
                        assert driving.wait(90) == 0, log.read_text()[-3000:]
                    finally:
                        driving.kill()
                assert "state written" in log.read_text()
                worker.wait(60)  # the pod ends when its stage has left, not after the whole grace period


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.1)


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata server: a token for whoever asks for one, and the notice from the third look on."""

    looks = 0

    def do_PUT(self) -> None:
        self.answer(200, b"a token")

    def do_GET(self) -> None:
        assert self.path == "/meta-data/spot/instance-action"
        Metadata.looks += 1
        held = self.headers.get("X-aws-ec2-metadata-token") == "a token"
        self.answer(401 if not held else 404 if Metadata.looks < 3 else 200, b"{}")

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_awss_notice_drains_the_node_and_not_before(tmp_path: Path) -> None:
    """The first drain fails, as while Ray is still starting; it is tried again, then the watcher ends."""
    stand_in = tmp_path / "ray"
    stand_in.write_text(f'#!/usr/bin/env bash\necho "$RAY_AUTH_MODE $*" >> {tmp_path}/calls\n[[ -e {tmp_path}/up ]] || '
                        f"{{ touch {tmp_path}/up; exit 1; }}\n")  # fmt: skip
    stand_in.chmod(0o755)
    Metadata.looks = 0
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        environment = {"PRETUNE_METADATA": address, "PRETUNE_LOOK_SECONDS": "0.1"}
        done = subprocess.run(
            ["bash", str(TOP / "cluster" / "spot_notice.sh")], timeout=30, check=False,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 0
    assert Metadata.looks == 4
    calls = (tmp_path / "calls").read_text().splitlines()
    said = "token drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message AWS takes this spot node back"
    assert calls == [f"{said} --deadline-remaining-seconds 110"] * 2
