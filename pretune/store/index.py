"""Index of a bucket at the start of a study, in few requests: one listing, and the markers of many entries at once.

    <bucket>/index/<uuid>.jsonl.gz     a marker a line, of entries that some driver had to read one by one

An index is written once and never changed. What it says of an entry counts only if the listing shows all its files with
the sizes that it names, so one that was removed or made anew since is read from its own marker.
"""

from __future__ import annotations

import gzip
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pretune.store.store import AT_ONCE, DONE, Store

FOLDER = "index/"
WORTH = 100  # entries that were read one by one, from which on they are written into an index
FRESH_SECONDS = 600.0  # for which a listing says what is not there


@dataclass
class Listing:
    """The finished entries of a bucket at one moment."""

    finished: frozenset[str]  # fingerprints
    taken: float = field(default_factory=time.monotonic)
    asked: set[str] = field(default_factory=set)

    def lacks(self, fingerprint: str) -> bool:
        """Whether it was not there, for the first question of each: later ones are about what was made since."""
        first = fingerprint not in self.asked
        self.asked.add(fingerprint)
        return first and fingerprint not in self.finished and time.monotonic() - self.taken < FRESH_SECONDS


def look(store: Store) -> Listing | None:
    """Fetch all markers of the store's bucket that are not in its folder; None for a store without a bucket.

    Raises ObjectError where the bucket cannot be read.
    """
    if store.bucket is None:
        return None
    sizes = store.bucket.sizes()
    finished = frozenset(name.split("/")[0] for name in sizes if name.endswith(f"/{DONE}"))
    missing = {key for key in finished if not (store.root / key / DONE).exists()}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        indices = [name for name in sizes if name.startswith(FOLDER)] if missing else []
        for lines in pool.map(store.bucket.read, indices):
            missing -= set(_keep(store, _markers(lines), missing, sizes))
        left = sorted(missing)
        found = pool.map(store.bucket.read, [f"{key}/{DONE}" for key in left])
        read = {key: text for key, text in zip(left, found, strict=True) if text is not None}
    kept = list(_keep(store, read.items(), missing, sizes))
    if len(kept) >= WORTH:
        content = "".join(json.dumps(read[key].decode()) + "\n" for key in kept)
        store.bucket.write(f"{FOLDER}{uuid.uuid4().hex}.jsonl.gz", gzip.compress(content.encode(), 6))
    return Listing(finished)


def _markers(lines: bytes | None) -> Iterator[tuple[str, bytes]]:
    """Fingerprints and markers of an index; nothing of one that is damaged."""
    try:
        for line in gzip.decompress(lines or b"").splitlines():
            text = str(json.loads(line))
            yield str(json.loads(text)["fingerprint"]), text.encode()
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return


def _keep(
    store: Store, markers: Iterable[tuple[str, bytes]], missing: set[str], sizes: Mapping[str, int]
) -> Iterator[str]:
    """Put markers into the store's folder, as far as they are missing there and the listing has what they name."""
    for key, text in markers:
        if key in missing and _is_listed(key, text, sizes):
            folder = store.root / key
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{DONE}.{uuid.uuid4().hex}.tmp"
            temporary.write_bytes(text)  # need not survive a crash: the bucket has it
            temporary.replace(folder / DONE)
            yield key


def _is_listed(key: str, text: bytes, sizes: Mapping[str, int]) -> bool:
    try:
        entry = json.loads(text)
        names = {f"{key}/{entry['attempt']}/{name}": about["size"] for name, about in entry["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return all(sizes.get(name) == size for name, size in names.items())
