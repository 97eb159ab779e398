"""SHA-256 of files, remembered between runs by path, size and modification time."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretune.trainables.checksums import sealed, unsealed
from pretune.trainables.data.image_files import is_file

MEMO = "hashes.json"
UNREADABLE = "unreadable"  # stands for the hash; decoding the file reports why
SETTLED = 2_000_000_000  # ns; a file changed more recently could change again within one tick of its clock

Memo = dict[str, tuple[int, int, str]]  # absolute path -> size, mtime_ns, sha256


def hash_files(paths: Sequence[Path], cache: Path | None) -> list[str]:
    """Hex digests in the order of `paths`. With `cache`, files seen before are not read again.

    The memo only saves time: it is keyed by what a change alters, and lost or damaged it is written anew.
    """
    old = {} if cache is None else _read(cache / MEMO)
    now = time.time_ns()
    with ThreadPoolExecutor() as pool:  # hashlib and file reads release the GIL
        found = list(pool.map(lambda path: _hash(path, old), paths))
    if cache is not None:
        _remember(cache, old, {key: value for key, value in found if value[1] < now - SETTLED})
    return [value[2] for _, value in found]


def _hash(path: Path, memo: Memo) -> tuple[str, tuple[int, int, str]]:
    key = os.path.abspath(path)
    try:
        if not is_file(path):
            return key, (-1, time.time_ns(), UNREADABLE)
        stat = path.stat()
        known = memo.get(key)
        if known is not None and tuple(known[:2]) == (stat.st_size, stat.st_mtime_ns):
            return key, known
        with path.open("rb") as file:  # in blocks: one file may hold a whole data set
            return key, (stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return key, (-1, time.time_ns(), UNREADABLE)  # too recent to be remembered


def _read(path: Path) -> Memo:
    try:
        loaded = unsealed(path) or {}
        return {str(key): (int(size), int(mtime), str(sha)) for key, (size, mtime, sha) in loaded.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _remember(cache: Path, old: Memo, new: Memo) -> None:
    """Replace the memo as a whole, so that a reader never meets half of one."""
    if all(old.get(key) == value for key, value in new.items()):
        return
    cache.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=cache, prefix=f"{MEMO}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(sealed(old | new))
    os.replace(temporary, cache / MEMO)
