"""YAML with line numbers, and the list of everything that is wrong with it.

A study file is read once into plain values plus a table that says on which line each value stands, so that any later
finding, however deep, can be reported as `file:line: what, and what to do`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a study: where, what, and what to do about it."""

    line: int  # 0 where the value stands in no file
    where: str  # dotted key
    what: str
    fix: str = ""

    def format(self, source: str) -> str:
        place = f"{source}:{self.line}" if self.line else source
        return f"{place}: {self.where}: {self.what}" + (f" ({self.fix})" if self.fix else "")


class StudyError(Exception):
    """A study that cannot run. Carries every problem found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem], source: str = "study") -> None:
        self.problems = sorted(set(problems))
        self.source = source
        super().__init__("\n".join(problem.format(source) for problem in self.problems))


@dataclass(frozen=True)
class Document:
    """A mapping read from YAML (or given from Python) and the line on which each of its keys stands."""

    data: dict[str, Any]
    lines: dict[KeyPath, int]
    source: str


def read(path: Path) -> Document:
    """Read a YAML file. Raises `StudyError` where it is missing, is not YAML, or repeats a key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError([Problem(0, "file", "there is no such file", "check the path")], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([Problem(0, "file", f"cannot be read: {error}")], str(path)) from None
    return parse(text, str(path))


def parse(text: str, source: str = "study") -> Document:
    """The same from a string."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise StudyError([Problem(1, "file", "a study is a mapping of keys to values, this is not one")], source)
        lines: dict[KeyPath, int] = {}
        problems: list[Problem] = []
        data = _construct(loader, node, (), lines, problems)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise StudyError([Problem(mark.line + 1 if mark else 0, "file", what)], source) from None
    finally:
        loader.dispose()
    if problems:
        raise StudyError(problems, source)
    return Document(data, lines, source)


def _construct(
    loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]
) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, lines, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), lines, problems) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]
) -> dict[str, Any]:
    written = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    loader.flatten_mapping(node)  # resolves `<<: *anchor`
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        line = key_node.start_mark.line + 1
        if key in result and written.count(key) > 1:
            problems.append(Problem(line, dotted((*path, key)), "the key is given twice", "remove one of the two"))
        lines[(*path, key)] = line
        result[key] = _construct(loader, value_node, (*path, key), lines, problems)
    return result


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path) or "study"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'did you mean "freeze"?', or the known words where none is close."""
    words = sorted(set(known))
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"known here: {', '.join(words)}" if words else ""


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """The line of a key, or of the closest key above it that stands in the file."""
    return next((lines[part] for part in _upwards(path) if part in lines), 0)


def _upwards(path: KeyPath) -> Iterator[KeyPath]:
    for end in range(len(path), -1, -1):
        yield path[:end]
