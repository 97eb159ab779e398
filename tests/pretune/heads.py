"""A Ray head on this machine, in processes of its own that end with the test; others' Ray is left alone."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}


@contextmanager
def started_head(
    environment: Mapping[str, str], *words: str, prepare: Callable[[Path, str], list[str]] = lambda folder, address: []
) -> Iterator[tuple[str, Path]]:
    """The address of a head, and its folder.

    Args:
        words: options of `ray start`.
        prepare: makes further ones, given the folder and the address to be.
    """
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: Ray's sockets have long names
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    start = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}",
        f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats", *words,
    ]  # fmt: skip
    try:
        subprocess.run(
            [*start, *prepare(folder, address)], env=dict(environment), check=True, capture_output=True, timeout=120
        )
        yield address, folder
    finally:
        end_all_of(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[Any]) -> None:
    """Ask it to, and end it where it does not within a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_all_of(folder: str) -> None:
    """The processes of a Ray cluster, known by its folder; its workers go with them."""
    ours = [one for one in psutil.process_iter(["cmdline"]) if folder in " ".join(one.info["cmdline"] or ())]
    for one in ours:
        one.kill()
    psutil.wait_procs(ours, timeout=10)
