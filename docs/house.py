"""Figures and picture of the code's structure, from its own imports: `python docs/house.py`.

Prints the table of docs/architecture.md, and draws docs/images/architecture.svg. An arrow between two rooms stands
for at least one import, function-level and type-checking imports included.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import grimp

TOP = Path(__file__).resolve().parents[1]
ROOMS = ("pretune", "pretune.analysis", "pretune.trainables", "pretune.trainables.data", "pretune.search_spaces")
WINGS = {"analysis", "search_spaces", "trainables"}  # folders of the repository's top, and links in pretune/


class Room(NamedTuple):
    """One package: its direct children, the import arrows among them, and the circles."""

    name: str
    children: int
    arrows: int
    circles: int


def children(graph: grimp.ImportGraph, package: str) -> list[str]:
    """Direct children of a package; the wings count as packages of their own, not as children of `pretune`."""
    skipped = {f"pretune.{wing}" for wing in WINGS} if package == "pretune" else set()
    return sorted(graph.find_children(package) - skipped - {"pretune.__main__"})


def arrows(graph: grimp.ImportGraph, names: list[str]) -> set[tuple[str, str]]:
    """Pairs (importer, imported) of the given modules or packages."""
    return {
        (one, other)
        for one in names
        for other in names
        if one != other and graph.find_shortest_chains(one, other, as_packages=True) and _direct(graph, one, other)
    }


def _direct(graph: grimp.ImportGraph, one: str, other: str) -> bool:
    inside = {one, *graph.find_descendants(one)}
    target = {other, *graph.find_descendants(other)}
    return any(target & graph.find_modules_directly_imported_by(module) for module in inside)


def circles(pairs: set[tuple[str, str]]) -> int:
    """Groups of modules that import each other in a circle (strongly connected, two or more)."""
    reach: dict[str, set[str]] = {}
    for one, other in pairs:
        reach.setdefault(one, set()).add(other)
    closed = {name: _reachable(name, reach) for name in reach}
    groups = {frozenset({name, *(o for o in closed[name] if name in closed.get(o, ()))}) for name in closed}
    return sum(len(group) > 1 for group in groups)


def _reachable(start: str, reach: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in reach.get(waiting.pop(), ()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def rooms(graph: grimp.ImportGraph) -> Iterator[Room]:
    for package in ROOMS:
        pairs = arrows(graph, children(graph, package))
        yield Room(package, len(children(graph, package)), len(pairs), circles(pairs))


def essential(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no chain of others implies (transitive reduction)."""
    kept = set()
    for one, other in pairs:
        reach: dict[str, set[str]] = {}
        for a, b in pairs - {(one, other)}:
            reach.setdefault(a, set()).add(b)
        if other not in _reachable(one, reach):
            kept.add((one, other))
    return kept


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for folder in ("pretune", *sorted(WINGS)):
        for path in sorted((TOP / folder).rglob("*.py")):
            if not path.is_symlink() and not any(part.is_symlink() for part in path.parents):
                tree = ast.parse(path.read_text("utf-8"))
                yield from ((path, n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def floors(names: list[str], pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Rooms from top to bottom: each one floor above the highest room that it imports."""
    imports = {name: [other for one, other in pairs if one == name] for name in names}
    level: dict[str, int] = {}

    def height(name: str, seen: frozenset[str] = frozenset()) -> int:
        if name not in level and name not in seen:
            level[name] = 1 + max((height(other, seen | {name}) for other in imports[name]), default=-1)
        return level.get(name, 0)

    for name in names:
        height(name)
    return [sorted(n for n in names if level[n] == floor) for floor in sorted(set(level.values()), reverse=True)]


def picture(graph: grimp.ImportGraph) -> str:
    """The rooms of the package as SVG: boxes, and lines where one imports another, without those that others imply."""
    names = sorted(name for name in graph.find_children("pretune") if name != "pretune.__main__")
    pairs = arrows(graph, names)
    rows = floors(names, pairs)
    width, high, gap, step = 130, 44, 30, 86
    whole = max(len(row) for row in rows) * (width + gap) + gap
    at: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(rows):
        left = (whole - len(row) * (width + gap) + gap) / 2
        at |= {name: (left + k * (width + gap), 20.0 + i * step) for k, name in enumerate(row)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {len(rows) * step}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for one, other in sorted(essential(pairs)):
        (x1, y1), (x2, y2) = at[one], at[other]
        down = y2 > y1
        x1, x2, y1, y2 = x1 + width / 2, x2 + width / 2, y1 + (high if down else 0), y2 + (0 if down else high)
        path = f"M{x1} {y1} C{x1} {y1 + 30} {x2} {y2 - 30} {x2} {y2}"
        colour = "#9aa7b8" if down else "#d62728"  # red: an import that runs back up
        lines.append(f'<path d="{path}" stroke="{colour}" fill="none"/>')
    lines += [line for name, (x, y) in at.items() for line in box(graph, name, x, y, width, high)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def box(graph: grimp.ImportGraph, name: str, x: float, y: float, width: int, high: int) -> list[str]:
    short, count = name.removeprefix("pretune."), len(graph.find_descendants(name)) or 1
    fill, middle = "#dce9f7" if short in WINGS else "#f4f1e8", x + width / 2
    under = f"{count} module{'s' * (count > 1)}"
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{high}" rx="6" fill="{fill}" stroke="#555"/>',
        f'<text x="{middle}" y="{y + 20}" text-anchor="middle" font-size="15">{escape(short)}</text>',
        f'<text x="{middle}" y="{y + 36}" text-anchor="middle" font-size="11" fill="#555">{under}</text>',
    ]


def main() -> None:
    graph = grimp.build_graph("pretune", cache_dir=None)
    print("| package | children | imports among them | circles |\n| --- | ---: | ---: | ---: |")
    for room in rooms(graph):
        print(f"| {room.name} | {room.children} | {room.arrows} | {room.circles} |")
    found = list(functions())
    sizes = sorted(((body_lines(f), f"{path.name}:{f.name}") for path, f in found), reverse=True)
    print(f"\n{len(found)} functions, median body {statistics.median(size for size, _ in sizes):.0f} lines")
    print("longest: " + ", ".join(f"{name} {size}" for size, name in sizes[:5]))
    print(f"more than six parameters: {sum(parameters(f) > 6 for _, f in found)}")
    (TOP / "docs" / "images" / "architecture.svg").write_text(picture(graph), encoding="utf-8")


if __name__ == "__main__":
    main()
