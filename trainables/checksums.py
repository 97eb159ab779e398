"""Whether a file is the one that was written: by the size and sha256 that were recorded with it, or inside it."""

from __future__ import annotations

import hashlib
import json
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


def described(path: Path) -> dict[str, Any]:
    """{size (bytes), sha256} of a file, for `is_as_recorded`. Raises OSError."""
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def sealed(content: Any) -> str:
    """JSON of `content` with its checksum, for `unsealed`."""
    text = json.dumps(content)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text})


def unsealed(path: Path) -> Any:
    """The content that `sealed` was given; None where there is no such file, or it is another or damaged."""
    try:
        found = json.loads(path.read_bytes())
        text = str(found["content"])
        return json.loads(text) if hashlib.sha256(text.encode()).hexdigest() == found["sha256"] else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


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
