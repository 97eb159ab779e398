"""`pretune submit` and `pretune stop`: a study as a Ray job, which goes on when this machine is switched off.

The job is the study file and Pretune's own packages; nodes need what Pretune depends on, from their image or `--pip`.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pretune.cluster.import_path import code_folder
from pretune.cluster.join import JOB, check_port, explained, no_other_address
from pretune.errors import ClusterError
from pretune.store.object_store import parse

STUDY = "study.yaml"
POLL_SECONDS = 2.0
STOP_SECONDS = 60  # until Ray kills a stopped job; stages write their state in dispatcher.LEAVE_SECONDS of them
ADVICE = (
    "give the dashboard's address, such as http://HOST:8265; where it listens on the head alone, through a tunnel: "
)
TUNNEL = "ssh -N -L 8265:localhost:8265 HEAD"
REQUEST_SECONDS, SUBMIT_SECONDS = 60.0, 600.0  # for a request of the job client; for one that sends our code
# In a URL, loosely: a secret may hold a `/` and an `@`. What is refused by mistake can be set elsewhere.
DATABASE = re.compile(r"(sqlite|postgresql|mysql)(\+[a-z0-9]+)?://")  # of --search-storage
PASSWORD = re.compile(r"://.*:.*@|[?&#;][^=]*(pass|secret|token|key)[^=]*=", re.IGNORECASE | re.DOTALL)


def connect(address: str) -> Any:
    """A JobSubmissionClient. Raises `ClusterError` where nothing, or no dashboard, answers."""
    if not address.startswith(("http://", "https://")):
        raise ClusterError(f"--address {address} is not a dashboard address: {ADVICE}{TUNNEL}")
    check_port(address, ADVICE + TUNNEL)
    from ray.job_submission import JobSubmissionClient

    with explained(address), no_other_address():
        try:
            return limited(lambda: Limited(JobSubmissionClient(address)), REQUEST_SECONDS)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            if not is_another_server(error):
                raise
            raise ClusterError(
                f"--address {address}: something other than a Ray dashboard answers there; {ADVICE}{TUNNEL}"
            ) from None


class Limited:
    """Ray's job client, each of whose calls raises TimeoutError at last: its own requests wait for ever on a connection
    that died, such as that of a laptop that slept."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call, seconds = getattr(self._client, name), SUBMIT_SECONDS if name == "submit_job" else REQUEST_SECONDS
        return lambda *args, **given: limited(lambda: call(*args, **given), seconds)


def limited(call: Callable[[], Any], seconds: float) -> Any:
    """Return or raise what the call does. Raises TimeoutError, and leaves the call to itself, after so many seconds."""
    ended: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:  # raised by the caller, below
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"the answer timed out after {seconds:g} s") from None
    if error is not None:
        raise error
    return answer


def is_another_server(error: Exception) -> bool:
    """Whether Ray's client failed for what answered it: no HTTP, not in time, not the page, no JSON, no version."""
    if isinstance(error, (ConnectionError, TimeoutError, ValueError, LookupError, TypeError)):
        return True
    return re.search("returned 404|timed out", str(error)) is not None


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises ClusterError or ObjectError for a secret in an address, without repeating it."""
    for argument in arguments:
        # all of it: --set has a setting before it
        if re.match(r"[^=?]*://", argument) and not DATABASE.match(argument):
            parse(argument)
        elif PASSWORD.search(unquote(argument)):
            raise ClusterError(
                "a password in a URL would be shown in the dashboard: leave it out, and set it on the cluster's "
                "nodes (PRETUNE_SEARCH_STORAGE, AWS_* or a role of the nodes)"
            )


def submit(client: Any, address: str, name: str, file: Path, arguments: Sequence[str], pip: bool) -> str:
    """Start `pretune run` of the study file as a job; its id.

    Args:
        name: of the study, part of the id.
        arguments: of `pretune run`, with paths as the cluster sees them. They can be read in the dashboard.
        pip: install Pretune's dependencies on every node first.
    """
    check_arguments(arguments)
    job = f"pretune-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{uuid.uuid4().hex[:8]}"
    words = ["python", "-m", "pretune", "run", STUDY, "--address", "auto", *arguments]
    environment = {JOB: job, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="pretune-submit-") as folder:
        pack(Path(folder), file)
        runtime: dict[str, Any] = {"working_dir": folder, "env_vars": environment}
        with explained(address):
            client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job,
                runtime_env=runtime | ({"pip": requirements()} if pip else {}),
                metadata={"study": name},
            )
    return job


def pack(folder: Path, file: Path) -> None:
    """The job's folder: the study file as it is, and our package."""
    shutil.copyfile(file, folder / STUDY)
    package = code_folder()
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def requirements() -> list[str]:
    """Return the packages that Pretune needs beside Ray, whose version is the cluster's own."""
    needed = importlib.metadata.requires("pretune") or []
    return [line for line in needed if "extra ==" not in line and not line.startswith("ray")]


def follow(client: Any, address: str, job: str, tell: Callable[[str], None], note: Callable[[str], None]) -> int:
    """Pass on the job's log until it has ended; the exit code of its `pretune run`. A lost connection is no end.

    Args:
        tell: takes parts of the log.
        note: takes sentences on the connection: one when it is lost, one when it is there again.

    Raises:
        ClusterError: the cluster does not know the job, or refuses the token; neither passes by waiting.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus

    shown, lost = 0, False
    while True:
        try:
            info = client.get_job_info(job)
            log = log_of(client, job, info)
        except AuthenticationError:
            with explained(address):
                raise
        except (OSError, RuntimeError) as error:  # a laptop that slept, a tunnel that broke; asked again
            if f"Job {job} does not exist" in str(error):
                raise unknown(job, address) from None
            if not lost:
                note(f"the connection to {address} is lost; {job} is looked for every {POLL_SECONDS:g} s")
            lost = True
        else:
            if lost:
                note(f"the connection to {address} is there again")
            lost = False
            tell(log[shown:])
            shown = len(log)
            if info.status.is_terminal():
                codes = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 130}
                return int(codes.get(info.status, info.driver_exit_code or 1))
        time.sleep(POLL_SECONDS)


def log_of(client: Any, job: str, info: Any) -> str:
    """All of a job's log so far; that of an ended one may be gone with its node."""
    try:
        return str(client.get_job_logs(job))
    except RuntimeError:
        if info.status.is_terminal():
            return ""
        raise


def unknown(job: str, address: str) -> ClusterError:
    return ClusterError(
        f"{address} knows no job {job} (a head that was started anew has forgotten its jobs); "
        f"`ray job list --address {address}` shows all"
    )


# ------------------------------------------------------------------------------------------------------------ stop


def stop(target: str, address: str | None) -> str:
    """Stop a study by the id of its job or by its folder; what was done, for the user.

    Raises:
        ClusterError: there is no such study under way, or it cannot be reached.
    """
    folder = Path(target)
    if not folder.is_dir():
        if address is None:
            raise ClusterError(f"{target} is not a study folder; to stop a job of that name give --address")
        return stop_job(target, address)
    driver = driver_of(folder)
    if driver is None:
        raise ClusterError(f"no study is running on {folder}")
    if driver["job"]:
        if address is None:
            raise ClusterError(f"{folder} is in use by the job {driver['job']}: give --address of its cluster")
        return stop_job(driver["job"], address)
    if driver["host"] != socket.gethostname():
        raise ClusterError(f"{folder} is in use by a process on {driver['host']}: run pretune stop there")
    os.kill(driver["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while driver_of(folder) is not None:
        if time.monotonic() > deadline:
            raise ClusterError(f"{folder}: process {driver['pid']} did not exit within {STOP_SECONDS} s of SIGTERM")
        time.sleep(0.2)
    return f"stopped; `pretune run` with --out {folder} continues"


def stop_job(job: str, address: str) -> str:
    client = connect(address)
    try:
        with explained(address):
            if (status := client.get_job_status(job)).is_terminal():
                return f"{job} had ended before: {status.value.lower()}"
            client.stop_job(job)
            while not (status := client.get_job_status(job)).is_terminal():
                time.sleep(POLL_SECONDS / 4)
    except ClusterError as error:
        if f"Job {job} does not exist" in str(error):
            raise unknown(job, address) from None
        raise
    if status.value == "STOPPED":
        return f"{job} stopped; submit the study again to continue"
    return f"{job} had ended by itself: {status.value.lower()}"


def driver_of(folder: Path) -> dict[str, Any] | None:
    """Return the process that holds the lock of a study's folder (run.only_driver), or None."""
    try:
        with (folder / ".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                found: dict[str, Any] = json.loads(file.read() or "{}")
                return {"pid": 0, "host": "", "job": ""} | found
    except (OSError, ValueError):
        pass
    return None
