"""Single flight: of all drivers and machines on one store, one works on a fingerprint at a time.

By leases, since S3 has no locks: a small file names who is at work and until when, and is renewed while the work goes
on. Two who ask in the same instant may both get it; then equal work is done twice, and the last marker wins. A holder
on the same machine whose process is gone is not waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pretune.store import LEASE, Store

LEASE_SECONDS = 60.0  # after which a holder that was not heard of is taken for dead
BEAT_SECONDS = 15.0  # between two renewals, and between two looks for a state to upload
WAIT_SECONDS = 2.0  # between two looks whether the holder has finished
SETTLE_SECONDS = 0.2  # in a bucket, after which the last of two who wrote a lease is known


@dataclass(frozen=True)
class Lease:
    owner: str
    host: str
    pid: int
    until: float  # wall time

    @property
    def holds(self) -> bool:
        """Whether somebody is at work, as far as can be seen from here."""
        if time.time() > self.until:
            return False
        return self.host != _host() or _alive(self.pid)


class EndedWaitError(Exception):
    """Asked to leave while waiting for another."""


@contextmanager
def single_flight(
    store: Store,
    fingerprint: str,
    report: Callable[[dict[str, float]], None],
    leaving: Callable[[], bool] = lambda: False,
) -> Iterator[Flight]:
    """Wait until nobody else is at work on the fingerprint, then hold its lease.

    Args:
        report: called while waiting; an exception that it raises (a stop) goes through.
        leaving: asked while waiting; once it says yes, EndedWaitError is raised.
    """
    owner = uuid.uuid4().hex
    while True:
        lease = read_lease(store, fingerprint)
        if lease is not None and lease.owner == owner:
            break
        if lease is None or not lease.holds:
            write_lease(store, fingerprint, owner, LEASE_SECONDS)
            time.sleep(SETTLE_SECONDS if store.bucket else 0.0)
            continue  # look who wrote last
        if store.find(fingerprint) is not None:
            break  # made by the other: nothing to hold
        if leaving():
            raise EndedWaitError("asked to leave while another driver was at work on it")
        report({"waiting": 1.0})
        time.sleep(WAIT_SECONDS)
    flight = Flight(store, fingerprint, owner)
    flight.thread.start()
    try:
        yield flight
    finally:
        flight.end()


class Flight:
    """The lease and the resumable state of a stage under way, kept up by a thread beside it."""

    def __init__(self, store: Store, fingerprint: str, owner: str) -> None:
        self.attempt: Path | None = None  # set by whoever begins one
        self._store, self._fingerprint, self._owner = store, fingerprint, owner
        self._kept = -1
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True, name=f"lease {fingerprint[:12]}")

    def end(self) -> None:
        """Upload a last state (of a stage that was cut off) and give the lease back."""
        self._over.set()
        self.thread.join()
        with contextlib.suppress(OSError):  # the stage's own outcome counts
            self._keep()
        with contextlib.suppress(OSError):
            lease = read_lease(self._store, self._fingerprint)
            if lease is not None and lease.owner == self._owner:
                write_lease(self._store, self._fingerprint, "", -1.0)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # next time, perhaps; a lost lease costs equal work, no more
                write_lease(self._store, self._fingerprint, self._owner, LEASE_SECONDS)
                self._keep()

    def _keep(self) -> None:
        if self.attempt is not None:
            self._kept = self._store.keep_state(self.attempt, self._kept)


def read_lease(store: Store, fingerprint: str) -> Lease | None:
    """Who was last at work; None where nobody was, or where the lease cannot be read."""
    try:
        values = json.loads(store.read(f"{fingerprint}/{LEASE}"))
        return Lease(str(values["owner"]), str(values["host"]), int(values["pid"]), float(values["until"]))
    except (ValueError, TypeError, KeyError):
        return None


def write_lease(store: Store, fingerprint: str, owner: str, seconds: float) -> None:
    lease = Lease(owner, _host(), os.getpid(), time.time() + seconds)
    store.write(f"{fingerprint}/{LEASE}", json.dumps(asdict(lease)).encode())


def _host() -> str:
    """The machine and its process namespace, as two containers may share a name."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(namespace) if namespace.exists() else ''}".strip()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
