"""Printed text is text: nothing that a path, a cause or a level holds is markup or moves the cursor."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.text import Text

import pretune
from pretune.monitor.plain import plain, visible

PACKAGE = Path(pretune.__file__).parent


@given(st.text())
@example("a[/b]c")
@example("[bold red]")
@example("\x1b[2J\\[x")
@example("caf\udce9.png\\")
def test_any_text_is_printed_as_itself_and_never_as_markup(text: str) -> None:
    shown = Text.from_markup(f"[red]failed[/] {plain(text)}|", emoji=False)
    drop = str.maketrans("", "", "\\")  # Rich drops a backslash before some brackets
    assert shown.plain.translate(drop) == f"failed {visible(text)}|".translate(drop)
    assert [span.style for span in shown.spans] == ["red"]
    assert all(c.isprintable() or c in "\n\t" for c in visible(text))
    visible(text).encode()


WAYS_OUT = {"plain", "duration", "len", "many", "counted"}  # functions, and names of numbers, whose text is ours


def prints() -> list[str]:
    """Every `console.print(f"...")` with markup whose parts do not go through `plain`, as file:line and the part."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "print"):
                continue
            if any(one.arg == "markup" for one in node.keywords):
                continue
            for argument in node.args:
                where = f"{file.relative_to(PACKAGE)}:{node.lineno}"
                found += [f"{where} {ast.unparse(part.value)}" for part in _parts(argument) if not _is_safe(part)]
    return found


def _parts(node: ast.AST) -> Iterator[ast.FormattedValue]:
    """Values that are put into a text, outside of what goes through a way out."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WAYS_OUT:
        return
    if isinstance(node, ast.FormattedValue):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _parts(child)


def _is_safe(part: ast.FormattedValue) -> bool:
    if part.format_spec is not None:  # a number, or a column of ours
        return True
    called = part.value.func if isinstance(part.value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id in WAYS_OUT


OURS = {  # names and numbers of ours: looked at on 2026-11-29
    "word", "colour", "ended.trained", "ended.reused", "name", "about.title", "about.size", "about.licence", "reason",
    "about.get", "len(error.problems)", "verb", "len(runs) - MOST_LINES", "later",
}  # fmt: skip


@pytest.mark.parametrize("found", prints() or ["none"])
def test_what_is_printed_with_markup_goes_through_plain(found: str) -> None:
    assert found == "none" or found.split(" ", 1)[1] in OURS, found
