"""The content-addressed store: every finished stage run under its fingerprint.

    <root>/<fingerprint>/<attempt>/...     payload, written once and never changed
    <root>/<fingerprint>/done.json         small, written last and atomically
    <root>/<series>/<epochs>.length        the fingerprint of a training that a longer one may continue

Finished means that done.json is there and that the files it names have the sizes it names; a process killed at any
moment leaves no entry that looks finished. Attempts have folders of their own, since a process that outlives its
driver may go on writing for a while. The last of two writers of equal work wins, harmlessly.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DONE = "done.json"
# The resumable state inside an attempt, dropped when the attempt finishes. The loops write it under the same name
# (trainables.checkpoints.STATE, which the driver does not import: it would bring torch along); a test holds them equal.
STATE = "checkpoint.pt"
# The state at the end of a training, from which a longer one continues (trainables.checkpoints.CONTINUE).
CONTINUE = "continue.pt"
LENGTHS = ".length"  # <root>/<series>/<epochs>.length names the fingerprint of a training of that many epochs


class StoreError(Exception):
    """The store cannot be used: says which folder and what to do."""


@dataclass(frozen=True)
class Entry:
    """A finished stage run."""

    fingerprint: str
    attempt: str
    stage: str  # pretrain, finetune, probe:NAME
    outcome: str  # finished or diverged
    cause: str
    metrics: dict[str, float]
    seconds: float
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {size (bytes), sha256}
    about: dict[str, Any] = field(default_factory=dict)  # settings, hardware, versions: for readers, not for finding


@dataclass(frozen=True)
class Store:
    """A folder of entries. Cheap to make; holds no state of its own."""

    root: Path

    def check(self) -> None:
        """Raises `StoreError` unless entries can be written here."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be written: {error.strerror}; choose another folder with --store"
            ) from None

    def find(self, fingerprint: str) -> Entry | None:
        """The finished entry, or None where there is none or its files are not whole."""
        try:
            entry = Entry(**json.loads((self.root / fingerprint / DONE).read_text()))
            folder = self.root / fingerprint / entry.attempt
            whole = all(_size(folder / name) == about["size"] for name, about in entry.files.items())
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # missing or unreadable: not finished; a new attempt will replace it
        return entry if whole else None

    def file(self, entry: Entry, name: str) -> Path:
        return self.root / entry.fingerprint / entry.attempt / name

    def begin(self, fingerprint: str) -> Path:
        """A new attempt's own, empty folder."""
        folder = self.root / fingerprint / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def resumable(self, fingerprint: str) -> Path | None:
        """The newest state that an earlier attempt left."""
        states = [path for path in (self.root / fingerprint).glob(f"*/{STATE}") if path.exists()]
        return max(states, key=_modified, default=None)

    def note_length(self, series: str, epochs: int, fingerprint: str) -> None:
        """Remember that a training of the series that is `epochs` long left a state to continue from."""
        (self.root / series).mkdir(exist_ok=True)
        write_atomically(self.root / series / f"{epochs}{LENGTHS}", fingerprint)

    def shorter(self, series: str, epochs: int) -> Path | None:
        """The state at the end of the longest finished training of the series that is shorter than `epochs`."""
        if not series:
            return None
        lengths = {int(path.stem): path for path in (self.root / series).glob(f"*{LENGTHS}") if path.stem.isdigit()}
        for length in sorted((length for length in lengths if length < epochs), reverse=True):
            entry = self.find(lengths[length].read_text().strip())
            if entry is not None and CONTINUE in entry.files:
                return self.file(entry, CONTINUE)
        return None

    def finish(
        self,
        attempt: Path,
        stage: str,
        outcome: str,
        cause: str,
        metrics: dict[str, float],
        seconds: float,
        about: dict[str, Any],
    ) -> Entry:
        """Make an attempt the entry of its fingerprint: flush its files, then write done.json, whole or not at all."""
        (attempt / STATE).unlink(missing_ok=True)
        files = {path.name: _describe(path) for path in sorted(attempt.iterdir()) if path.is_file()}
        entry = Entry(attempt.parent.name, attempt.name, stage, outcome, cause, metrics, seconds, files, about)
        write_atomically(attempt.parent / DONE, json.dumps(asdict(entry), indent=1))
        for other in attempt.parent.iterdir():
            if other.is_dir() and other != attempt:
                (other / STATE).unlink(missing_ok=True)  # nobody will resume it
        return entry

    def entries(self) -> Iterator[Entry]:
        """Every finished entry."""
        for marker in sorted(self.root.glob(f"*/{DONE}")):
            if entry := self.find(marker.parent.name):
                yield entry

    def unfinished(self) -> Iterator[Path]:
        """Attempt folders that no done.json names: killed, failed, or still being written."""
        for folder in sorted(self.root.glob("*/*/")):
            entry = self.find(folder.parent.name)
            if entry is None or entry.attempt != folder.name:
                yield folder

    def remove(self, fingerprint: str) -> None:
        """Delete an entry, the marker first, so that a kill in between leaves nothing that looks finished."""
        (self.root / fingerprint / DONE).unlink(missing_ok=True)
        shutil.rmtree(self.root / fingerprint, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, also after a crash of the machine."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _modified(path: Path) -> int:
    """Nanoseconds; the oldest of all for a file that another driver has just dropped."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
