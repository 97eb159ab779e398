"""Sources with one small fault each: a statement deleted, two settings swapped, another random stream."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Iterator
from typing import NamedTuple

BODIES = ("body", "orelse", "finalbody")
STREAMS = ("init", "order", "augmentation", "labels")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Mutant(NamedTuple):
    """A source with one fault. Its name has no line numbers, so that a list of excuses outlives other edits."""

    name: str  # function: what was done to it
    source: str


def functions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, Function]]:
    """Functions and methods with their qualified names; functions in functions belong to those."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield within + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{within}{node.name}.")


def deletions(source: str) -> list[Mutant]:
    """The source without one of the statements in its functions, each in turn; blocks go whole too."""
    found = []
    for name, function in functions(tree := ast.parse(source)):
        for body, place in statements(function):
            gone = body[place]
            body[place] = ast.copy_location(ast.Pass(), gone)
            found.append(Mutant(f"{name}: without {first_line(gone)}", ast.unparse(tree)))
            body[place] = gone
    return numbered(found)


def statements(node: ast.AST) -> Iterator[tuple[list[ast.stmt], int]]:
    """Every statement below a node, as the list that holds it and its place in it.

    Docstrings do nothing, and asserts tell the type checker what is known.
    """
    for field in BODIES:
        body = getattr(node, field, [])
        for place, statement in enumerate(body if isinstance(body, list) else []):
            if not isinstance(statement, ast.Pass | ast.Assert) and not is_docstring(statement):
                yield body, place
            yield from statements(statement)
    for handler in getattr(node, "handlers", []):
        yield from statements(handler)


def is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def first_line(statement: ast.stmt) -> str:
    return ast.unparse(statement).splitlines()[0][:100]


def swaps(source: str, of: str = "method") -> list[Mutant]:
    """The source with two different settings, `of.NAME` each, in each other's places: every two in a function."""
    found = []
    for name, function in functions(tree := ast.parse(source)):
        uses = [node for node in ast.walk(function) if is_setting(node, of)]
        for one, other in itertools.combinations(uses, 2):
            if one.attr == other.attr:
                continue
            swap(one, other)
            found.append(Mutant(f"{name}: {other.attr} <-> {one.attr}", ast.unparse(tree)))
            swap(one, other)
    return numbered(found)


def is_setting(node: ast.AST, of: str) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == of


def swap(one: ast.Attribute, other: ast.Attribute) -> None:
    one.attr, other.attr = other.attr, one.attr


def other_streams(source: str) -> list[Mutant]:
    """The source with another stream's seed, for each place that takes one and each other stream."""
    found = []
    for name, function in functions(tree := ast.parse(source)):
        for key in [key for node in ast.walk(function) if (key := stream_of(node)) is not None]:
            own = key.value
            for stream in STREAMS:
                key.value = stream
                if stream != own:
                    found.append(Mutant(f"{name}: {own} from the stream of {stream}", ast.unparse(tree)))
            key.value = own
    return numbered(found)


def stream_of(node: ast.AST) -> ast.Constant | None:
    """The name in `streams["NAME"]` or `streams.get("NAME", ...)`."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "streams":
        return node.slice if isinstance(node.slice, ast.Constant) else None
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "streams.get":
        return node.args[0] if isinstance(node.args[0], ast.Constant) else None
    return None


def later_comparisons(source: str) -> list[Mutant]:
    """The source with one comparison's border on its other side: `>=` for `>`, `<` for `<=`, and the other way."""
    other = {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt}
    found = []
    for name, function in functions(tree := ast.parse(source)):
        for node in [node for node in ast.walk(function) if isinstance(node, ast.Compare)]:
            before, said = copy.copy(node.ops), ast.unparse(node)
            if type(before[0]) in other:
                node.ops = [other[type(before[0])](), *before[1:]]
                found.append(Mutant(f"{name}: {ast.unparse(node)} for {said}", ast.unparse(tree)))
                node.ops = before
    return numbered(found)


def numbered(mutants: list[Mutant]) -> list[Mutant]:
    """The second of a name gets a 2, and so on."""
    seen: dict[str, int] = {}
    found = []
    for mutant in mutants:
        seen[mutant.name] = seen.get(mutant.name, 0) + 1
        count = seen[mutant.name]
        found.append(mutant if count == 1 else mutant._replace(name=f"{mutant.name} ({count})"))
    return found
