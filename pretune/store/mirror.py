"""The study's folder on an object store: a copy that follows the folder, and from which another node goes on.

Programs write into the folder on the driver's disk, since a journal and an atomic rename need one. The copy is brought
up to date with the results (about once a minute) and at the end. What it lacks after a driver was lost with its disk
are the searches' last asks; they are asked again, and their stage runs are in the store. One run at a time may send to
a copy: it holds a lease beside it (pretune.store.lease), since two nodes have no lock in common.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pretune.store.lease import BEAT_SECONDS, LEASE_SECONDS, read_lease, single_flight
from pretune.store.object_store import Bucket, ObjectError, open_bucket
from pretune.store.store import LEASE, Store, StoreError

DRIVER = "driver"  # <url>/driver/lease.json: which run sends
STUDY = "study.json"  # with it a folder is a study's
JOURNAL = "optuna.journal"
NO_FILES = (".probe", f"{DRIVER}/{LEASE}")  # objects that belong to the copy and not to the study
OWN = (".lock", ".tmp")  # ends of names that are this machine's alone


@dataclass
class Publisher:
    """Copies what changed in `folder` to `url`; does nothing where that is None."""

    folder: Path
    url: str | None
    _sent: dict[str, int] = field(default_factory=dict)  # name -> time of change (ns)

    def check(self) -> None:
        """Raises StoreError unless the copy can be written."""
        if self.url is not None:
            try:
                self._bucket().check()
            except ObjectError as error:
                raise StoreError(f"the output folder {error}; choose another with --out") from None

    @contextmanager
    def alone(self, say: Callable[[str], None] = print) -> Iterator[None]:
        """Have the copy to ourselves, and begin with it where this machine has nothing of the study.

        A run that was killed on another node is waited for until its lease is dead.

        Raises:
            StoreError: the address cannot be used, or another run goes on sending there.
        """
        if self.url is None:
            yield
            return
        bucket, began = self._bucket(), time.monotonic()
        store, reported = Store(self.folder, bucket), False

        def waiting(values: dict[str, float]) -> None:
            nonlocal reported
            lease = read_lease(store, DRIVER)
            other = f"a run on {lease.host.partition(' ')[0]}" if lease else "another run"
            if time.monotonic() - began > LEASE_SECONDS + BEAT_SECONDS:  # a dead one's lease would be ours by now
                raise StoreError(f"{other} sends its results to {bucket.url}; wait for it, or choose another --out")
            if not reported:
                wait = LEASE_SECONDS + BEAT_SECONDS
                say(f"{bucket.url} is locked by {other}; waiting up to {wait:.0f} s for its lease to expire")
            reported = True

        with ExitStack() as held:
            try:
                held.enter_context(single_flight(store, DRIVER, waiting))
                self.fetch()
            except ObjectError as error:
                raise StoreError(f"the output folder {error}; choose another with --out") from None
            yield

    def fetch(self) -> None:
        """Copy all to here unless there is a study; `study.json` comes last, so what was cut off begins again.

        Raises:
            ObjectError: something cannot be read, or not whole.
        """
        if self.url is None or (self.folder / STUDY).exists():
            return
        bucket = self._bucket()
        sizes = bucket.sizes()
        for name in sorted(sizes, key=lambda name: name == STUDY):
            path = self.folder / name
            if name in NO_FILES or not path.resolve().is_relative_to(self.folder.resolve()):
                continue
            content = bucket.read(name) or b""
            if len(content) != sizes[name]:
                raise ObjectError(f"{bucket.url}/{name} cannot be read: {len(content)} of {sizes[name]} bytes came")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(content)
            temporary.replace(path)

    def send(self) -> None:
        """Copy every file that changed. Raises ObjectError (an OSError) where that goes on failing."""
        if self.url is None:
            return
        bucket = self._bucket()
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if not path.is_file() or name.endswith(OWN):
                continue
            changed = os.stat(path).st_mtime_ns
            if self._sent.get(name) == changed:
                continue
            if name == JOURNAL:  # it is appended to meanwhile: whole lines only
                text = path.read_bytes()
                bucket.write(name, text[: text.rfind(b"\n") + 1])
            else:
                bucket.upload(path, name)
            self._sent[name] = changed

    def _bucket(self) -> Bucket:
        assert self.url is not None
        return open_bucket(self.url)
