"""Damages to a file, for the tests of stored content."""

from __future__ import annotations

from pathlib import Path


def damage(path: Path, kind: str, place: float) -> bool:
    """Damage a file as a disk, a crash or a person would, at a place from 0 to 1; whether anything changed."""
    before = content = path.read_bytes()
    if kind == "gone":
        path.unlink()
        return True
    at = int(place * max(0, len(content) - 1))
    if kind == "flip" and content:
        content = content[:at] + bytes([content[at] ^ (1 << int(place * 7.99))]) + content[at + 1 :]
    elif kind == "zeros":
        content = content[:at] + bytes(len(content[at : at + 600])) + content[at + 600 :]
    elif kind == "cut":
        content = content[:at]
    elif kind == "empty":
        content = b""
    elif kind == "foreign":
        content = b'\xff\xfe{"another": "file"}'
    elif kind == "text for a number":
        content = content.replace(b"0.5", b'"x"')
    path.write_bytes(content)
    return content != before
