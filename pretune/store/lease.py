"""Single flight: of all drivers and nodes on one store, one works on a fingerprint at a time.

By leases, since S3 has no locks: a small file names who is at work, and is renewed while the work goes on. A holder is
dead when its lease has not changed for a while by the clock of whoever waits: the clocks of two nodes are never
compared. One on the same node whose process is gone is not waited for at all. Two who ask in the same instant may
both get a lease; then equal work is done twice, and the last marker wins.
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

from pretune.store.store import LEASE, Store

LEASE_SECONDS = 60.0  # without a change, after which whoever waits takes the holder for dead
BEAT_SECONDS = 15.0  # between two renewals, and between two looks for a state to upload
WAIT_SECONDS = 2.0  # between two looks whether the holder has finished
PATIENCE_SECONDS = 120.0  # of waiting for a holder that lives, with a place and perhaps a GPU; above LEASE_SECONDS
SETTLE_SECONDS = 0.2  # in a bucket, after which the last of two who wrote a lease is known


@dataclass(frozen=True)
class Lease:
    owner: str  # empty where it was given back
    host: str
    pid: int
    renewed: float  # by the holder's clock: tells one renewal from the next, and is compared with no other clock

    @property
    def free(self) -> bool:
        """Whether it is seen at once that nobody is at work."""
        return not self.owner or (self.host == _host() and not _alive(self.pid))


UNREADABLE = Lease("unknown", "another node", 0, 0.0)


class EndedWaitError(Exception):
    """Waited for another in vain: asked to leave, or for longer than is worth a place."""


@contextmanager
def single_flight(
    store: Store,
    fingerprint: str,
    report: Callable[[dict[str, float]], None],
    preempted: Callable[[], bool] = lambda: False,
) -> Iterator[Flight]:
    """Wait until nobody else is at work on the fingerprint, then hold its lease.

    Args:
        report: called while waiting; an exception that it raises (a stop) goes through.
        preempted: asked while waiting; once it says yes, EndedWaitError is raised.

    Raises:
        EndedWaitError: asked to leave, or the holder is alive and still at work after PATIENCE_SECONDS: whoever waits
            holds a place (and a GPU) that another stage can use meanwhile.
    """
    owner = uuid.uuid4().hex
    seen: Lease | None = None
    since = began = time.monotonic()
    while True:
        lease = read_lease(store, fingerprint)
        if lease is not None and lease.owner == owner:
            break
        if lease != seen:
            seen, since = lease, time.monotonic()
        if lease is None or lease.free or time.monotonic() - since > LEASE_SECONDS:
            write_lease(store, fingerprint, owner)
            time.sleep(SETTLE_SECONDS if store.bucket else 0.0)
            continue  # look who wrote last
        if store.find(fingerprint) is not None:
            break  # made by the other: nothing to hold
        if preempted():
            raise EndedWaitError("preempted while another driver held its lock")
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise EndedWaitError(f"another driver ({lease.host.partition(' ')[0]}) holds its lock; will retry")
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
        """Give the lease back, after a last state of a stage that was cut off, or after the last use of any state."""
        self._over.set()
        self.thread.join()
        with contextlib.suppress(OSError):  # the stage's own outcome counts
            if self.attempt is not None and self._store.find(self._fingerprint) is not None:
                self._store.drop_states(self._fingerprint)
            else:
                self._keep()
        with contextlib.suppress(OSError):
            lease = read_lease(self._store, self._fingerprint)
            if lease is not None and lease.owner == self._owner:
                write_lease(self._store, self._fingerprint, "")

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # next time, perhaps; a lost lease costs equal work, no more
                write_lease(self._store, self._fingerprint, self._owner)
                self._keep()

    def _keep(self) -> None:
        if self.attempt is not None:
            self._kept = self._store.keep_state(self.attempt, self._kept)


def read_lease(store: Store, fingerprint: str) -> Lease | None:
    """Return the lease of whoever was last at work, or None where nobody was.

    A lease that cannot be read is nobody's to take at once: from a bucket, a renewal between the request for its size
    and the one for its content leaves it cut short. It dies like any other, once it has not changed for a while.
    """
    content = store.read(f"{fingerprint}/{LEASE}")
    if not content:
        return None
    try:
        values = json.loads(content)
        return Lease(str(values["owner"]), str(values["host"]), int(values["pid"]), float(values["renewed"]))
    except (ValueError, TypeError, KeyError):
        return UNREADABLE


def write_lease(store: Store, fingerprint: str, owner: str) -> None:
    """Take, renew or (with no owner) give back."""
    lease = Lease(owner, _host(), os.getpid(), time.time())
    store.write(f"{fingerprint}/{LEASE}", json.dumps(asdict(lease)).encode())


def _host() -> str:
    """The node and its process namespace, as two containers may share a name."""
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
