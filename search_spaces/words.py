"""Words for counts."""

from __future__ import annotations

ES = ("s", "x", "ch", "sh")  # endings of nouns that take -es: classes, boxes, batches


def counted(count: int, noun: str) -> str:
    """'1 image', '2 searches', '12,000 test images'; of nouns with a regular plural."""
    return f"{count:,} {plural(noun, count)}"


def plural(noun: str, count: int = 2) -> str:
    """The noun as it stands behind `count`: 'image' behind 1, else 'images'."""
    return noun if count == 1 else f"{noun}{'es' if noun.endswith(ES) else 's'}"
