"""Text of others (paths, causes, levels, notes) as it is printed: nothing in it is markup or moves the cursor."""

from __future__ import annotations

from rich.markup import escape


def visible(value: object) -> str:
    r"""Text whose control characters and bytes that are no UTF-8 are written out (`\x1b`); lines stay lines."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def plain(value: object) -> str:
    """The same for a Rich console that reads markup, where `[bold]` would be a style and `[/x]` an error."""
    return escape(visible(value))
