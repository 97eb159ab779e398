"""End what a killed driver leaves of the Ray that it started: its agents would stay for a minute.

A process beside the driver waits until the driver is gone, however it went; then it ends what is still there of the
processes that the driver named. It runs this file by itself, without Pretune, Ray or site-packages: a few megabytes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 15.0  # in which Ray's processes end by themselves: all but the agents do within 2 s
OVER = b"over\n"  # the driver ends by itself, and Ray with it

_process: subprocess.Popen[bytes] | None = None


def begin(grace: float = GRACE_SECONDS) -> None:
    """Have the processes below this one ended, should it be killed. Only where there is /proc."""
    global _process
    if _process is None and Path("/proc/self/stat").exists():
        call = [sys.executable, "-I", "-S", __file__, str(grace)]
        _process = subprocess.Popen(call, stdin=subprocess.PIPE, start_new_session=True)
        for pid in below(os.getpid()):
            if pid != _process.pid and (born := started(pid)):
                _tell(f"{pid} {born}\n".encode())


def end() -> None:
    """This process leaves Ray by itself."""
    global _process
    if _process is not None:
        _tell(OVER)
        assert _process.stdin is not None
        with suppress(OSError):
            _process.stdin.close()
        _process.wait()
        _process = None


def _tell(line: bytes) -> None:
    assert _process is not None
    assert _process.stdin is not None
    with suppress(OSError):  # somebody ended it
        _process.stdin.write(line)
        _process.stdin.flush()


def below(top: int) -> Iterator[int]:
    """Processes that descend from `top`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if stat := _stat(int(folder.name)):
            children.setdefault(int(stat[1]), []).append(int(folder.name))
    found = [top]
    for pid in found:
        found += children.get(pid, [])
    yield from found[1:]


def end_below(keep: Collection[int] = ()) -> None:
    """End all processes below this one, at once, apart from those in `keep`."""
    for pid in set(below(os.getpid())).difference(keep):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def started(pid: int) -> str:
    """When a process started, in ticks since the machine did: with its number that tells it from all others."""
    stat = _stat(pid)
    return stat[19] if stat else ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name, which may hold anything; [] where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def reap(lines: Iterable[bytes], grace: float) -> None:
    """Wait for the driver's end, then end what it named."""
    named: list[tuple[int, str]] = []
    for line in lines:
        if line == OVER:
            return
        number, _, born = line.decode().strip().partition(" ")
        named.append((int(number), born))
    time.sleep(grace)
    for pid, born in named:
        if started(pid) == born:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    reap(sys.stdin.buffer, float(sys.argv[1]))
