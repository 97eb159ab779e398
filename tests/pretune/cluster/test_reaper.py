"""Processes of a killed driver's own Ray end soon after it; those of one that ends by itself are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pretune.cluster import reaper

DRIVER = """
import subprocess, sys, time
from pretune.cluster import reaper
child = subprocess.Popen([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"])
while len(list(reaper.below(child.pid))) < 1:
    time.sleep(0.01)
reaper.begin(grace=0.1)
print(child.pid, *reaper.below(child.pid), reaper._process.pid, flush=True)
sys.stdin.read()
reaper.end()
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def killed(driver: subprocess.Popen[str]) -> None:
    driver.kill()


def ended(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.close()


@pytest.mark.parametrize(("how", "left"), [(killed, False), (ended, True)])
def test_what_a_killed_driver_started_is_ended(how: Callable[[subprocess.Popen[str]], None], left: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        *below, own = [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]
        assert len(below) == 2
        how(driver)
        assert not psutil.wait_procs([own], timeout=60)[1]
        try:
            assert [one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in below] == [left, left]
        finally:
            for one in below:
                if one.is_running():
                    one.kill()


def test_a_number_that_was_given_to_another_process_meanwhile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    own = os.getpid()
    reaper.reap([f"{own} {reaper.started(own)}1\n".encode(), b"1 5\n"], 0.0)
    assert sent == []
    reaper.reap([f"{own} {reaper.started(own)}\n".encode()], 0.0)
    assert sent == [(own, signal.SIGKILL)]
    reaper.reap([f"{own} {reaper.started(own)}\n".encode(), reaper.OVER], 0.0)
    assert len(sent) == 1
