"""YAML with line numbers, and the list of everything that is wrong with it.

A study file is read once into plain values plus a table that says on which line each value stands, so that any later
finding, however deep, can be reported as `file:line: what, and what to do`.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pretune.search_spaces.errors import UsageError

KeyPath = tuple[str | int, ...]
CHECK_PATH = "check the path, or name a study that comes with Pretune, such as quickstart"
WHOLE_FILE = ""  # in place of a key, where something is wrong with all of it
MAX_VALUES = 20_000  # aliases of aliases can make a short file stand for billions of values
MAX_BYTES = 500_000  # a hundred times a study; reading YAML takes about five seconds for so many
MAX_DEPTH = 50  # of mappings and lists in each other


class Loader(yaml.SafeLoader):
    """YAML 1.2's booleans and numbers: `yes`, `on`, `1:30` and `010` are text, which no number is made of."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] not in ("bool", "int", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", "-+0123456789"),
    ("float", r"^(?:[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$",
     "-+0123456789."),
):  # fmt: skip
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|[0-9]*\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def is_number(text: str) -> bool:
    """Whether text may stand where a number is wanted: `1e-3`, quoted or not, but neither `010` nor `1_000`."""
    return NUMBER.fullmatch(text.strip()) is not None


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a study: where, what, and what to do about it."""

    line: int  # 0 where the value stands in no file
    where: str  # dotted key
    what: str
    fix: str = ""

    def format(self, source: str) -> str:
        location = f"{source}:{self.line}" if self.line else source
        where = f"{self.where}: " if self.where else ""
        return f"{location}: {where}{self.what}" + (f" ({self.fix})" if self.fix else "")


class StudyError(UsageError):
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


@dataclass(frozen=True)
class Locations:
    """Places of settings in the file.

    `pretrain` is a chain in the settings, but may be written as one stage, or with stages `none` that are excluded:
    `chain[i]` is the path at which stage i is written.
    """

    lines: Mapping[KeyPath, int]
    chain: tuple[KeyPath, ...] = ()

    def problem(self, path: KeyPath, what: str, fix: str = "") -> Problem:
        """A problem with the setting at `path`, at the line and under the key that the reader wrote."""
        if path[:1] == ("pretrain",) and len(path) > 1 and path[1] in range(len(self.chain)):
            path = (*self.chain[int(path[1])], *path[2:])
        return Problem(line_of(self.lines, path), dotted(path), what, fix)


def read(path: Path) -> Document:
    """Read a YAML file. Raises `StudyError` where it is missing, is not YAML, or repeats a key."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe may never end
            raise StudyError(
                [Problem(0, WHOLE_FILE, "cannot be read: it is no regular file", "save the study as one")], str(path)
            )
        if about.st_size > MAX_BYTES:
            raise StudyError([Problem(0, WHOLE_FILE, _too_large(about.st_size))], str(path))
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise StudyError([Problem(0, WHOLE_FILE, "there is no such file", CHECK_PATH)], str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path at all
        raise StudyError([Problem(0, WHOLE_FILE, f"cannot be read: {error}")], str(path)) from None
    return parse(text, str(path))


def _too_large(size: int) -> str:
    return f"has {size / 1e6:.1f} MB; a study is a few kilobytes, and at most {MAX_BYTES / 1e6:g} MB are read"


def parse(text: str, source: str = "study") -> Document:
    """The same from a string."""
    lines: dict[KeyPath, int] = {}
    return Document(_parse(text, lines, source, whole=True), lines, source)


def parse_value(text: str) -> Any:
    """One value, as `--set` writes it, held to the limits of a file. Raises `StudyError`."""
    return _parse(text, {}, "value", whole=False)


def _parse(text: str, lines: dict[KeyPath, int], source: str, whole: bool) -> Any:
    if len(text) > MAX_BYTES:
        raise StudyError([Problem(0, WHOLE_FILE, _too_large(len(text)))], source)
    problems: list[Problem] = []
    try:
        data = _read_nodes(text, lines, problems, whole)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise StudyError([Problem(mark.line + 1 if mark else 0, WHOLE_FILE, what)], source) from None
    except RecursionError:
        raise StudyError(
            [Problem(0, WHOLE_FILE, "is nested too deeply", "a value may not contain itself")], source
        ) from None
    if problems:
        raise StudyError(problems, source)
    return data


def from_mapping(data: Mapping[str, Any], source: str = "study") -> Document:
    """The same from Python data, which is copied: equal parts of it are never one object afterwards."""
    try:
        return Document({str(key): _plain(value) for key, value in data.items()}, {}, source)
    except RecursionError:
        raise StudyError([Problem(0, "study", "a value contains itself")], source) from None


def _plain(value: Any) -> Any:
    """Mappings as dictionaries with words as keys, tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _read_nodes(text: str, lines: dict[KeyPath, int], problems: list[Problem], whole: bool) -> Any:
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if whole and not isinstance(node, yaml.MappingNode):
            problems.append(Problem(1, WHOLE_FILE, "a study is a mapping of keys to values, this is not one"))
            return {}
        if node is None:
            return None
        _check_keys(node, (), set(), problems)
        _check_merged(node, {})
        return {} if problems else _construct(loader, node, (), lines, problems)
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, path: KeyPath, seen: set[int], problems: list[Problem]) -> None:
    """Every key is one word and stands there once. Each node is looked at once, before `<<` is resolved."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if len(path) > MAX_DEPTH:
        raise yaml.YAMLError(f"more than {MAX_DEPTH} mappings and lists in each other")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _check_keys(item, (*path, i), seen, problems)
        return
    known: set[str] = set()
    for key, value in node.value:
        line, inner = key.start_mark.line + 1, (*path, str(key.value))
        if not isinstance(key, yaml.ScalarNode):
            problems.append(Problem(line, dotted(path), "a key is a list or a mapping", "quote the key"))
            continue
        if key.value in known:
            problems.append(Problem(line, dotted(inner), "the key is given twice", "remove one of the two"))
        known.add(key.value)
        _check_keys(value, inner, seen, problems)


def _check_merged(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of keys of a mapping once `<<` is resolved: what is merged twice doubles, and few lines make billions.

    Raises YAMLError above MAX_VALUES.
    """
    if id(node) in sizes or not isinstance(node, yaml.CollectionNode):
        return sizes.get(id(node), 0)
    sizes[id(node)] = size = 0
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        within = _check_merged(value, sizes)
        merged = key is not None and key.tag.endswith(":merge")
        if merged and isinstance(value, yaml.SequenceNode):
            within = sum(_check_merged(part, sizes) for part in value.value)
        size += within if merged else 1
        if size > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values")
    sizes[id(node)] = size
    return size


def _construct(
    loader: Loader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]
) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > MAX_VALUES:
        raise yaml.YAMLError(f"more than {MAX_VALUES} values")
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, lines, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), lines, problems) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # 2024-99-99, !!int x, !!bool x
        problems.append(Problem(node.start_mark.line + 1, dotted(path), f"not a value: {error}", "quote it"))
        return None


def _mapping(
    loader: Loader, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], problems: list[Problem]
) -> dict[str, Any]:
    loader.flatten_mapping(node)  # resolves `<<: *anchor`
    lines.setdefault(path, node.start_mark.line + 1)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        lines[(*path, key)] = key_node.start_mark.line + 1
        result[key] = _construct(loader, value_node, (*path, key), lines, problems)
    return result


def dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path) or "study"


def did_you_mean(word: str, known: Iterable[str], or_else: str = "") -> str:
    """'did you mean "freeze"?', or where none is close `or_else` or the known words."""
    words = sorted(set(known))
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    if or_else:
        return or_else
    return f"known here: {', '.join(words)}" if words else ""


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of a key, or of the closest key above it that stands in the file."""
    return next((lines[part] for part in _upwards(path) if part in lines), 0)


def _upwards(path: KeyPath) -> Iterator[KeyPath]:
    for end in range(len(path), -1, -1):
        yield path[:end]
