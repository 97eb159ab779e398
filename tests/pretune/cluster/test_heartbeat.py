"""A study whose Ray died ends with a sentence, exit code 2 and within a minute, and goes on afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pretune.cluster import heartbeat
from pretune.cluster.heartbeat import HEAD, NODE, SILENT_SECONDS, Heartbeat, Part
from pretune.errors import ClusterError

SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # the first frame of a gRPC server


class Server:
    """A port of this machine that answers, says nothing, or is closed."""

    def __init__(self) -> None:
        self.mute = False
        self.listen()

    def listen(self, port: int = 0) -> None:
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, args=(self.socket,), daemon=True).start()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                if self.mute:
                    connection.settimeout(5)
                    while connection.recv(99):  # until the other side gives up
                        pass
                else:
                    connection.sendall(SETTINGS)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def watch(address: str | None, *parts: Part) -> tuple[Heartbeat, list[str]]:
    said: list[str] = []
    return Heartbeat(address, said.append, parts=list(parts)), said


def test_a_local_process_that_is_gone_ends_the_study_after_the_second_look(server: Server) -> None:
    one, said = watch(None, Part("the raylet", server.address, here=True))
    assert one.look(100.0) == ""
    server.close()
    assert one.look(102.0) == ""
    assert one.look(104.0) == ""
    assert one.look(105.0).startswith("the study stopped: the raylet died (killed, or out of memory), and a Ray on one")
    assert said == []
    server.listen()


def test_a_log_that_cannot_be_written_does_not_end_the_watching(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pretune.cluster.join.CONNECT_SECONDS", 0.1)
    one = Heartbeat("10.0.0.1:6379", full, parts=[Part("the head", server.address, here=False)])
    server.mute = True
    assert [one.look(1.0), one.look(8.0)] == ["", ""]
    assert "did not answer" in one.look(2 + SILENT_SECONDS)


def test_a_process_that_is_stopped_for_a_while_and_a_head_that_comes_back_end_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretune.cluster.join.CONNECT_SECONDS", 0.1)
    one, said = watch("10.0.0.1:6379", Part("the head", server.address, here=False))
    server.mute = True
    assert [one.look(now) for now in (0.0 + 1, 3.0, 8.0, 1 + SILENT_SECONDS - 1)] == [""] * 4
    server.mute = False
    assert one.look(1 + SILENT_SECONDS + 1) == ""
    assert said == [f"the head does not answer; waiting {SILENT_SECONDS:g} s for it", "the head answers again"]
    server.close()  # a head that is started anew listens again
    assert [one.look(now) for now in (100.0, 120.0)] == ["", ""]
    assert one.look(100.0 + SILENT_SECONDS) == (
        f"the study stopped: the head of --address 10.0.0.1:6379 did not answer for {SILENT_SECONDS:.0f} s; "
        "finished work is kept; run the same command again to continue once it answers"
    )
    server.listen()


def test_the_study_is_interrupted_where_it_waits_and_ray_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "REFUSED_SECONDS", 0.1)
    monkeypatch.setattr(heartbeat, "parts_of_ray", lambda local: [Part("the raylet", server.address, here=True)])
    before, left, said, slept = signal.getsignal(signal.SIGUSR2), [], list[str](), []

    def wait() -> None:
        with heartbeat.heartbeat(None, said.append, lambda: left.append(True)) as one:
            one.begin()
            server.close()
            time.sleep(60)
            slept.append(True)

    with pytest.raises(ClusterError, match="the raylet died"):
        wait()
    assert left == [True]
    assert not slept
    assert [line.split(" died")[0] for line in said] == ["the study stopped: the raylet"]
    assert signal.getsignal(signal.SIGUSR2) is before
    server.listen()


def test_what_goes_wrong_since_ray_is_gone_is_said_so_and_other_faults_are_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "parts_of_ray", lambda local: [Part("the head", server.address, here=False)])

    def fail(gone: bool) -> None:
        with heartbeat.heartbeat("h:1", lambda text: None, lambda: None) as one:
            one.begin()
            if gone:
                server.close()
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        fail(gone=False)
    with pytest.raises(ClusterError, match="--address h:1 did not answer"):
        fail(gone=True)
    server.listen()


HANGS = """
import sys, time
from pretune.cluster import heartbeat
from pretune.cluster.heartbeat import Part
heartbeat.LOOK_SECONDS = heartbeat.REFUSED_SECONDS = heartbeat.END_SECONDS = 0.05
heartbeat.parts_of_ray = lambda local: [Part("the raylet", "127.0.0.1:1", here=True)]
with heartbeat.heartbeat(None, lambda text: None, lambda: time.sleep(60)) as watch:
    watch.begin()
    time.sleep(60)
"""


def test_a_process_that_hangs_in_ray_is_ended_with_the_sentence_and_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: the study stopped: the raylet died")


STARTS = """
import shutil, subprocess, sys, time
from pretune.cluster import heartbeat
heartbeat.LOOK_SECONDS, heartbeat.START_SECONDS = 0.1, 0.1
with heartbeat.ended_with_ray():
    ray = [subprocess.Popen([program, "60"], executable=shutil.which("sleep")) for program in sys.argv[2:]]
    while len(heartbeat.programs_below()) < len(ray):
        time.sleep(0.01)
    time.sleep(0.5)
    if sys.argv[1] != "nothing":
        ray[int(sys.argv[1])].kill()
        time.sleep(60)
print("started", [one.kill() for one in ray])
"""


@pytest.mark.parametrize(
    ("dies", "code", "said"),
    [("0", 2, f"error: the study stopped: {HEAD} died while Ray started"),
     ("1", 2, f"error: the study stopped: {NODE} died while Ray started"),
     ("nothing", 0, "")],
)  # fmt: skip
def test_a_process_of_ray_that_dies_while_ray_starts_ends_the_study(
    dies: str, code: int, said: str, tmp_path: Path
) -> None:
    """Ray's own wait is stood in for by a sleep, its head and node process by programs of their names."""
    call = [sys.executable, "-c", STARTS, dies, f"{tmp_path}/gcs_server", f"{tmp_path}/raylet"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=50)
    assert (done.returncode, "started" in done.stdout) == (code, code == 0), done.stderr
    assert done.stderr.strip().startswith(said)
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]


# ------------------------------------------------------------------------------------------------------- real deaths

ROOT = Path(__file__).parents[3]


def start(tiny: dict[str, Any], folder: Path, *options: str) -> subprocess.Popen[str]:
    """`pretune run` of a study whose stages take long, until the first has started."""
    tiny["pretrain"] |= {"steps": 100_000}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    call = [sys.executable, "-m", "pretune", "run", str(file), "--root", str(folder), "--parallel", "1", *options]
    driver = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    log = folder / "tiny" / "pretune.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and " started " in log.read_text()):
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            pytest.fail(driver.communicate()[0])
        time.sleep(0.1)
    return driver


def process_below(driver: int, word: str) -> psutil.Process:
    return next(one for one in psutil.Process(driver).children(recursive=True) if word in " ".join(one.cmdline()[:1]))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("word", ["raylet/raylet", "gcs_server"], ids=["raylet", "head"])
def test_a_local_study_whose_ray_is_killed_ends_within_a_minute(
    word: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    driver = start(tiny, tmp_path)
    below = psutil.Process(driver.pid).children(recursive=True)
    process_below(driver.pid, word).kill()
    began = time.monotonic()
    said, _ = driver.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert driver.returncode == 2, said
    assert "error: the study stopped: the " in said
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    assert "the study stopped" in (tmp_path / "tiny" / "pretune.log").read_text()
    assert not psutil.wait_procs(below, timeout=30)[1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_whose_cluster_lost_its_head_ends_within_a_minute(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a cluster of this test alone, gone with it
    small = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, **small)
        driver = start(tiny, tmp_path, "--address", cluster.address)
        cluster.head_node.kill_gcs_server()
        began = time.monotonic()
        said, _ = driver.communicate(timeout=120)
        assert time.monotonic() - began < 60
        assert driver.returncode == 2, said
        assert "error: the study stopped: the head of --address" in said
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_within_50_s_and_a_second_at_once(
    number: signal.Signals, tiny: dict[str, Any], tmp_path: Path
) -> None:
    driver = start(tiny, tmp_path)
    began = time.monotonic()
    driver.send_signal(number)
    said, _ = driver.communicate(timeout=120)
    assert time.monotonic() - began < 50
    assert driver.returncode == 130, said
    assert "stopping: 1 stage runs save their state" in said
    assert "stopped; run the same command to continue" in said

    again = start(tiny, tmp_path)
    again.send_signal(number)
    time.sleep(1)
    began = time.monotonic()
    again.send_signal(number)
    assert again.wait(60) == 130
    assert time.monotonic() - began < 25


def test_sighup_is_left_alone_under_nohup() -> None:
    code = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from pretune.worker.preemption import interrupted_by_signals
interrupted_by_signals()
assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
