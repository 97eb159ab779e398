"""House words: our own dialect appears in no name, file name, help text or page.

Readers of Ray, Optuna and PyTorch have words for these things: a dispatcher, resources, preemption, nodes, images.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pretune.cli import cli

TOP = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("pretune", "analysis", "search_spaces", "trainables", "benchmarks")
    for path in sorted((TOP / folder).rglob("*.py"))
    if not any(part.is_symlink() for part in path.parents)
]
PAGES = [
    TOP / "README.md",
    *sorted((TOP / "docs").rglob("*.md")),
    *sorted((TOP / "cluster").glob("*")),
    TOP / "cluster.yaml",
]

# Our word -> the field's. In names a word is a part between underscores or capitals.
IN_NAMES = {
    "handout": "dispatcher",
    "ledger": "resources",
    "contest": "pruning",
    "verdict": "trial result",
    "told": "trial result or state",
    "walk": "search space visitor",
    "gang": "worker group",
    "growth": "autoscaling",
    "leaving": "preemption",
    "condemned": "collapsed",
    "picture": "image",
    "photograph": "image",
    "needs": "requirements",
    "machine": "node",
    "machines": "nodes",
    "track": "loss meter",
    "clock": "checkpoint timer",
    "warm": "warm start",
}
IN_TEXT = {
    r"hand(?:s|ed|ing)?[- ]?out\b": "dispatch",
    r"ledger": "resources",
    r"contests?\b": "pruning",
    r"verdicts?\b": "trial result",
    r"gangs?\b": "worker group",
    r"condemn\w*": "collapsed",
    r"pictures?\b": "image",
    r"photographs?\b": "image",
    r"left out\b": "excluded",
    r"machines?\b": "node (of a cluster)",
}
# What may stay, and why: persisted names, other people's names, and words that mean something else there.
NAMES_THAT_STAY = {
    "warm_start": "the field's word",
    "warm_up": "of a schedule",
    "machines": "hardware of stage runs, not nodes of a cluster: analysis.load.runs",
    "_machine": "one of them",
    "machine": "hardware and versions, kept under this name in every store: worker.stage",
}
TEXT_THAT_STAYS = {  # pattern around a match -> why it stays
    r"(?i)\b(this|that|the|single|one|idle|shared|loaded|submitting|on the)\W+machines?\b": "one computer, no node",
}


def parts(name: str) -> set[str]:
    """The words of an identifier: `RayGang` and `run_gang` both hold `gang`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {part.lower() for part in spaced.split("_") if part}


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a file defines: functions, classes, parameters, fields and constants."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def commands(command: click.Command, path: str = "pretune") -> Iterator[tuple[str, str]]:
    """Every help text of the command line, with the command or option that it belongs to."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def found_in_text(text: str) -> list[str]:
    return [
        f"{match.group(0)!r} -> {better}"
        for pattern, better in IN_TEXT.items()
        for match in re.finditer(rf"(?i)\b{pattern}", text)
        if not any(re.search(stays, text[max(0, match.start() - 40) : match.end() + 40]) for stays in TEXT_THAT_STAYS)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_names_are_the_fields(path):
    bad = [
        f"{path.relative_to(TOP)}:{line}: {name} ({word}: say {IN_NAMES[word]})"
        for line, name in names_of(path)
        for word in parts(name) & IN_NAMES.keys()
        if name not in NAMES_THAT_STAY
    ]
    assert not bad, "\n".join(sorted(set(bad)))


def test_file_names_are_the_fields():
    assert not [str(path) for path in SOURCES if parts(path.stem) & (IN_NAMES.keys() - {"warm"})]


def test_help_is_in_the_fields_words():
    bad = [f"{where}: {found}" for where, text in commands(cli) for found in found_in_text(text)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.is_file()], ids=lambda path: str(path.relative_to(TOP))
)
def test_pages_are_in_the_fields_words(path):
    lines = path.read_text("utf-8").splitlines()
    bad = [f"{path.name}:{i}: {found}" for i, line in enumerate(lines, 1) for found in found_in_text(line)]
    assert not bad, "\n".join(bad)


# A docstring is a verb or a noun phrase that is the thing, not a question about it.
QUESTION = re.compile(r"(What|Of|Who|Whose|Where|How|Which|Why|Whom)\b")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_no_docstring_begins_as_a_question(path):
    found = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bad = [
        f"{path.relative_to(TOP)}:{getattr(node, 'lineno', 1)}: {words.splitlines()[0]}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, found) and QUESTION.match(words := ast.get_docstring(node) or "")
    ]
    assert not bad, "begin with a verb or a noun phrase:\n" + "\n".join(bad)


PROSE = 7  # words of a sentence that a test may hold, beside keys and values


def test_tests_hold_on_keys_and_values_rather_than_on_prose():
    """A message may then be said better without a change of tests."""
    bad = [
        f"{path.relative_to(TOP)}:{node.lineno}: {node.value.value}"
        for path in sorted((TOP / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "match" and isinstance(node.value, ast.Constant)
        if len(re.findall(r"(?<![\w.'/_-])[a-z]{2,}(?![\w.'/_=-])", str(node.value.value))) > PROSE
    ]
    assert not bad, f"match= holds more than {PROSE} words of prose:\n" + "\n".join(bad)
