"""The content-addressed store: every finished stage run under its fingerprint.

    <root>/<fingerprint>/<attempt>/...     payload, written once and never changed
    <root>/<fingerprint>/done.json         small, written last and atomically
    <root>/<series>/<epochs>.length        the fingerprint of a training that a longer one may continue

Finished means that done.json is there and that the files it names have the sizes it names; a process killed at any
moment leaves no entry that looks finished. Attempts have folders of their own, since a process that outlives its
driver may go on writing for a while. The last of two writers of equal work wins, harmlessly.

Behind the folder there may be a bucket, the same layout on S3 or GCS: then the bucket is the store and the folder is
its cache. Stages write into the folder; `finish` uploads the payload, then the marker; `find` and `file` fetch what
another node made, once, and check it against the marker. A resumable state is uploaded under a name of its own,
<attempt>/state-<time>.pt, then named by <attempt>/state.json; the one before it goes then, all go with the last use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretune.search_spaces.errors import UsageError
from pretune.store.object_store import ObjectError, Objects, is_address, open_bucket
from pretune.trainables.checksums import is_as_recorded, say_damaged
from pretune.trainables.files import CONTINUE, STATE

DONE = "done.json"
UPLOADED = "state.json"  # in a bucket: names the newest uploaded state of its attempt
UPLOADED_STATE = "state-{written}.pt"
LEASE = "lease.json"  # who is at work on a fingerprint (pretune.store.lease)
READS = 3  # looks at a marker that is there before it counts as damaged: an answer may have been cut
AT_ONCE = 16  # requests to a bucket side by side
ANNOUNCED_WAITS = (0.0, 0.5, 1.0, 2.0)  # seconds before each look for an entry that was said to be there
DAMAGED = "done.damaged.json"  # a marker that was set aside
CHECKSUM = "sha256"  # in a marker's `about`: of all the rest
LENGTHS = ".length"  # <root>/<series>/<epochs>.length names the fingerprint of a training of that many epochs


class StoreError(UsageError):
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


def open_store(place: str | Path, cache: str | Path) -> Store:
    """The store at a path, or at an `s3://` or `gs://` address with a cache of its own below `cache`."""
    if not is_address(place):
        return Store(Path(place))
    try:
        bucket = open_bucket(str(place))
    except ObjectError as error:
        raise StoreError(f"the store {error}") from None
    return Store(Path(cache) / "stores" / hashlib.sha256(str(place).encode()).hexdigest()[:16], bucket)


@dataclass(frozen=True)
class Store:
    """A folder of entries, and the bucket it is a cache of, if there is one. Cheap to make; holds no state."""

    root: Path
    bucket: Objects | None = None

    @property
    def where(self) -> str:
        return self.bucket.url if self.bucket else str(self.root)

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
        try:
            if self.bucket is not None:
                self.bucket.check()
        except ObjectError as error:
            raise StoreError(f"the store {error}; choose another with --store") from None

    def find(self, fingerprint: str) -> Entry | None:
        """The finished entry, or None where there is none or its files are not whole."""
        here = self._marker_here(fingerprint)
        if self.bucket is None:
            return here if here is not None and self._is_whole(here) else None
        return here or self._find_there(fingerprint, self.bucket)

    def _is_whole(self, entry: Entry) -> bool:
        """Whether the files are those that were written; large ones by size, unless they were changed since."""
        written = _modified(self.root / entry.fingerprint / DONE)
        for name, about in entry.files.items():
            path = self._path(entry, name)
            if not is_as_recorded(path, about, written):
                if path.exists():
                    say_damaged(path, "the stage runs again")
                return False
        return True

    def find_announced(self, fingerprint: str, waits: tuple[float, ...] = ANNOUNCED_WAITS) -> Entry | None:
        """The entry that another node says it has just finished; None where it stays unseen.

        An NFS client remembers for up to a minute (acdirmax) that a name was not there. Opening the folder makes it ask
        the server (close-to-open consistency), so both folders on the way are opened before each look.
        """
        for wait in waits:
            time.sleep(wait)
            for folder in (self.root, self.root / fingerprint):
                with contextlib.suppress(OSError):
                    os.scandir(folder).close()
            if (entry := self.find(fingerprint)) is not None:
                return entry
        return None

    def file(self, entry: Entry, name: str) -> Path:
        """A file of an entry, fetched if need be, with the content that was recorded.

        Raises:
            FileNotFoundError: it is lost or damaged; the entry counts as none from then on.
        """
        path = self._path(entry, name)
        if is_as_recorded(path, entry.files[name]):
            return path
        if self.bucket is None:
            if path.exists():
                say_damaged(path, "the stage runs again")
            here = self._marker_here(entry.fingerprint)
            if here is not None and here.attempt == entry.attempt:
                with contextlib.suppress(OSError):  # another driver may have been faster
                    (self.root / entry.fingerprint / DONE).replace(self.root / entry.fingerprint / DAMAGED)
            raise FileNotFoundError(f"{name} of {entry.fingerprint} is damaged or gone from {self.where}; run again")
        try:
            self.bucket.download(f"{entry.fingerprint}/{entry.attempt}/{name}", path, entry.files[name])
        except FileNotFoundError:
            (self.root / entry.fingerprint / DONE).unlink(missing_ok=True)  # cleaned there: to be made again
            raise FileNotFoundError(f"{name} of {entry.fingerprint} is gone from {self.where}; run again") from None
        return path

    def begin(self, fingerprint: str) -> Path:
        """A new attempt's own, empty folder."""
        folder = self.root / fingerprint / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def resumable(self, fingerprint: str) -> Path | None:
        """The newest state that an earlier attempt left."""
        if self.bucket is not None:
            self._fetch_states(fingerprint, self.bucket)
        states = [path for path in (self.root / fingerprint).glob(f"*/{STATE}") if path.exists()]
        for path in sorted(states, key=_modified, reverse=True):
            if _is_whole_state(path):
                return path
            if not path.exists():  # another driver finished and dropped it
                continue
            say_damaged(path, "the stage continues from an earlier state, or starts again")
            with contextlib.suppress(OSError):  # another process was faster
                path.replace(path.with_name(f"{STATE}.damaged"))
        return None

    def keep_state(self, attempt: Path, kept: int) -> int:
        """Upload the resumable state of an attempt under way if it is newer than `kept`; when it was written (ns)."""
        written = _modified(attempt / STATE)
        if self.bucket is None or written <= kept:
            return kept
        folder = f"{attempt.parent.name}/{attempt.name}"
        copy = attempt / f"{STATE}.{written}.upload"  # the loop replaces the file whenever it likes
        try:
            os.link(attempt / STATE, copy)
            about = _describe(copy) | {"written": written, "name": UPLOADED_STATE.format(written=written)}
            self.bucket.upload(copy, f"{folder}/{about['name']}")
        finally:
            copy.unlink(missing_ok=True)
        self.bucket.write(f"{folder}/{UPLOADED}", json.dumps(about).encode())
        if kept >= 0:  # no longer named
            with contextlib.suppress(OSError):  # it goes with the others when the stage is finished
                self.bucket.remove(f"{folder}/{UPLOADED_STATE.format(written=kept)}")
        return written

    def drop_states(self, fingerprint: str) -> None:
        """Delete what was uploaded of a stage's states, of all its attempts: it is finished, nobody will resume it."""
        if self.bucket is None:
            return
        for name in self.bucket.sizes(fingerprint):
            if name.endswith(f"/{UPLOADED}") or re.search(r"/state-\d+\.pt$", name):
                self.bucket.remove(name)

    def note_length(self, series: str, epochs: int, fingerprint: str) -> None:
        """Remember that a training of the series that is `epochs` long left a state to continue from."""
        (self.root / series).mkdir(exist_ok=True)
        write_atomically(self.root / series / f"{epochs}{LENGTHS}", fingerprint)
        if self.bucket is not None:
            self.bucket.write(f"{series}/{epochs}{LENGTHS}", fingerprint.encode())

    def shorter(self, series: str, epochs: int) -> Path | None:
        """The state at the end of the longest finished training of the series that is shorter than `epochs`."""
        if not series:
            return None
        names = [path.name for path in (self.root / series).glob(f"*{LENGTHS}")]
        if self.bucket is not None:
            names += [Path(name).name for name in self.bucket.sizes(series)]
        lengths = {int(stem) for name in names if name.endswith(LENGTHS) and (stem := Path(name).stem).isdigit()}
        for length in sorted((length for length in lengths if length < epochs), reverse=True):
            fingerprint = self.read(f"{series}/{length}{LENGTHS}").decode("ascii", "replace").strip()
            entry = self.find(fingerprint) if re.fullmatch("[0-9a-f]+", fingerprint) else None
            if entry is not None and CONTINUE in entry.files:
                with contextlib.suppress(FileNotFoundError):  # damaged: a shorter one, or the beginning
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
        if self.bucket is None:
            (attempt / STATE).unlink(missing_ok=True)
        files = {path.name: _describe(path) for path in sorted(attempt.iterdir()) if path.is_file()}
        files.pop(STATE, None)  # with a bucket it is dropped last: an upload may fail, and the stage goes on from it
        entry = Entry(attempt.parent.name, attempt.name, stage, outcome, cause, metrics, seconds, files, about)
        marker = marker_of(entry)
        if self.bucket is not None:
            for name in files:
                self.bucket.upload(attempt / name, f"{entry.fingerprint}/{attempt.name}/{name}")
            self.bucket.write(f"{entry.fingerprint}/{DONE}", marker.encode())
        write_atomically(attempt.parent / DONE, marker)
        for other in attempt.parent.iterdir():
            if other.is_dir() and (other != attempt or self.bucket):
                (other / STATE).unlink(missing_ok=True)  # nobody will resume it
        return entry

    def entries(self) -> Iterator[Entry]:
        """Every finished entry."""
        if self.bucket is None:
            names = [marker.parent.name for marker in sorted(self.root.glob(f"*/{DONE}"))]
            yield from filter(None, map(self.find, names))
            return
        there = sorted(name.split("/")[0] for name in self.bucket.sizes() if name.endswith(f"/{DONE}"))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from filter(None, pool.map(self.find, there))

    def unfinished(self) -> Iterator[Path]:
        """Attempt folders that no done.json names: killed, failed, or still being written."""
        folders = {folder for folder in self.root.glob("*/*/") if folder.is_dir()}
        if self.bucket is not None:
            parts = [name.split("/") for name in self.bucket.sizes()]
            folders |= {self.root / part[0] / part[1] for part in parts if len(part) == 3}
        for folder in sorted(folders):
            entry = self.find(folder.parent.name)
            if entry is None or entry.attempt != folder.name:
                yield folder

    def size_of(self, attempt: Path) -> int:
        """Bytes of an attempt's folder, in the bucket if there is one."""
        if self.bucket is not None:
            return sum(self.bucket.sizes(f"{attempt.parent.name}/{attempt.name}").values())
        return sum(path.stat().st_size for path in attempt.rglob("*") if path.is_file())

    def drop(self, attempt: Path) -> None:
        """Delete an unfinished attempt."""
        if self.bucket is not None:
            self.bucket.delete(f"{attempt.parent.name}/{attempt.name}")
        shutil.rmtree(attempt, ignore_errors=True)

    def remove(self, fingerprint: str) -> None:
        """Delete an entry, the marker first, so that a kill in between leaves nothing that looks finished."""
        if self.bucket is not None:
            if self.bucket.read(f"{fingerprint}/{DONE}") is not None:
                self.bucket.write(f"{fingerprint}/{DONE}", b"{}")  # no marker: the rest may take several requests
            self.bucket.delete(fingerprint)
        (self.root / fingerprint / DONE).unlink(missing_ok=True)
        shutil.rmtree(self.root / fingerprint, ignore_errors=True)

    def read(self, name: str) -> bytes:
        """A small file, the bucket's if there is one; empty where there is none."""
        if self.bucket is not None:
            return self.bucket.read(name) or b""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return b""

    def write(self, name: str, content: bytes) -> None:
        """A small file that need not survive a crash of the node, replaced whole."""
        if self.bucket is not None:
            self.bucket.write(name, content)
            return
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)

    def _path(self, entry: Entry, name: str) -> Path:
        return self.root / entry.fingerprint / entry.attempt / name

    def _marker_here(self, fingerprint: str) -> Entry | None:
        try:
            return _parse((self.root / fingerprint / DONE).read_bytes())
        except OSError:
            return None

    def _find_there(self, fingerprint: str, bucket: Objects) -> Entry | None:
        """The bucket's entry; its marker is kept here once its files were seen whole."""
        for _ in range(READS):
            text = bucket.read(f"{fingerprint}/{DONE}")
            if text is None:
                return None
            if (entry := _parse(text)) is not None:
                folder = f"{fingerprint}/{entry.attempt}"
                sizes = bucket.sizes(folder)
                if all(sizes.get(f"{folder}/{name}") == about["size"] for name, about in entry.files.items()):
                    (self.root / fingerprint).mkdir(parents=True, exist_ok=True)
                    write_atomically(self.root / fingerprint / DONE, text.decode())
                    return entry
        return None

    def _fetch_states(self, fingerprint: str, bucket: Objects) -> None:
        """Take over a state that another node uploaded, if it is newer than those here."""
        found: list[tuple[int, str, dict[str, Any]]] = []
        for name in bucket.sizes(fingerprint):
            if name.endswith(f"/{UPLOADED}"):
                about = _mapping(bucket.read(name))
                found.append((about.get("written", -1), name.split("/")[1], about))
        newest_here = max(map(_modified, (self.root / fingerprint).glob(f"*/{STATE}")), default=-1)
        for written, attempt, about in sorted(found, key=lambda item: item[0], reverse=True):
            path = self.root / fingerprint / attempt / STATE
            if written <= newest_here:
                return
            try:
                bucket.download(f"{fingerprint}/{attempt}/{about['name']}", path, about)
            except (OSError, KeyError):
                continue  # not whole: an older one, or none, gives the same digits
            os.utime(path, ns=(written, written))
            return


def _mapping(text: bytes | None) -> dict[str, Any]:
    try:
        return dict(json.loads(text or b"{}"))
    except (ValueError, TypeError):
        return {}


def marker_of(entry: Entry) -> str:
    """The text of an entry's marker, with a checksum of the rest in `about`."""
    about = {name: value for name, value in entry.about.items() if name != CHECKSUM}
    content = asdict(entry) | {"about": about}
    return json.dumps(content | {"about": about | {CHECKSUM: _checksum(content)}}, indent=1)


def _checksum(content: dict[str, Any]) -> str:
    plain = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _parse(text: bytes) -> Entry | None:
    """An entry from its marker, or None: unreadable is not finished, and a new attempt will replace it."""
    try:
        content = json.loads(text)
        recorded = content["about"].pop(CHECKSUM, None)  # none in stores of before 2026-11-28
        if recorded is not None and recorded != _checksum(content):
            return None
        entry = Entry(**content)
        return entry if _is_sound(entry) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_sound(entry: Entry) -> bool:
    """Whether the parts that others rely on are what they should be, in a marker without a checksum."""
    task, machine = entry.about.get("order") or {}, entry.about.get("machine") or {}
    texts = (entry.fingerprint, entry.attempt, entry.stage, entry.cause)
    return (
        all(isinstance(text, str) for text in texts)
        and entry.outcome in ("finished", "diverged")
        and all(isinstance(value, int | float) for value in (entry.seconds, *entry.metrics.values()))
        and all(isinstance(name, str) and "/" not in name for name in entry.files)
        and all(int(about["size"]) >= 0 and isinstance(about["sha256"], str) for about in entry.files.values())
        and isinstance(task, dict)
        and isinstance(machine, dict)
    )


def _is_whole_state(path: Path) -> bool:
    """Whether a state, a zip file of torch's, has the checksums that it holds; torch does not compare them."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises a dozen kinds for damaged files
        return False


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, also after a crash of the node."""
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
