"""The study's folder on an object store: a copy that follows the folder, and from which another machine goes on.

Programs write into the folder on the driver's disk, since a journal and an atomic rename need one. The copy is brought
up to date with the results (about once a minute) and at the end. What it lacks after a driver was lost with its disk
are the searches' last asks; they are asked again, and their stage runs are in the store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pretune.objects import Bucket, ObjectError, open_bucket
from pretune.store import StoreError

JOURNAL = "optuna.journal"
OWN = (".lock", ".tmp")  # ends of names that are this machine's alone


@dataclass
class Publisher:
    """Copies what changed in `folder` to `url`; does nothing where that is None."""

    folder: Path
    url: str | None
    _sent: dict[str, int] = field(default_factory=dict)  # name -> time of change (ns)

    def fetch(self) -> None:
        """Begin with the copy where this machine has nothing of the study.

        Raises:
            StoreError: the address cannot be used.
        """
        if self.url is None:
            return
        try:
            bucket = self._bucket()
            bucket.check()
            if not (self.folder / "study.json").exists():
                for name in bucket.sizes():
                    path = self.folder / name
                    if path.resolve().is_relative_to(self.folder.resolve()) and name != ".probe":
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(bucket.read(name) or b"")
        except ObjectError as error:
            raise StoreError(f"the output folder {error}; choose another with --out") from None

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
