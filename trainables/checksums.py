"""Whether a file is the one that was written: by the size and sha256 that were recorded with it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SMALL = 1 << 20  # bytes; files up to this size are always hashed
_believed: dict[tuple[str, int, int], str] = {}  # path, size, time of the last change (ns) -> sha256 in this process
_said: set[str] = set()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, computed once in this process and for each change. Raises OSError."""
    about = path.stat()
    key = (str(path), about.st_size, about.st_mtime_ns)
    if key not in _believed:
        with path.open("rb") as file:
            _believed[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _believed[key]


def is_as_recorded(path: Path, about: Mapping[str, Any], written: int | None = None) -> bool:
    """Whether a file has the recorded size and content.

    Args:
        about: {size (bytes), sha256}.
        written: when the record was written (ns). A larger file that was not changed since is believed by its size:
            a store may hold terabytes. Default: every file is hashed.
    """
    try:
        found = path.stat()
        if found.st_size != about["size"]:
            return False
        trusted = written is not None and found.st_size > SMALL and found.st_mtime_ns <= written
        return trusted or sha256_of(path) == about["sha256"]
    except OSError:
        return False


def say_damaged(what: object, then: str) -> None:
    """Warn that a file is damaged, once in this process."""
    if str(what) not in _said:
        _said.add(str(what))
        logging.getLogger("pretune").warning("%s is damaged: its content is not what was written; %s", what, then)
