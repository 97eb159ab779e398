"""Inventory of everything that Pretune says to a person: `python docs/messages.py` prints it, as Markdown.

    python docs/messages.py | less          read them as a text, by the rules of CONTRIBUTING.md
    python docs/messages.py --long          only sentences of more than 30 words

Read from the source: string literals of three words or more that are no docstring. Values stand as {name}. Help texts
of the command line are on the page of commands, meanings of settings on that of settings.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[1]
FOLDERS = ("pretune", "analysis", "search_spaces", "trainables")
NOT_SAID = {  # files whose texts are no messages
    "search_spaces/meanings.py": "meanings of settings",
    "pretune/cli/grafana.py": "queries of a dashboard",
    "pretune/cli/starter.py": "comments of a starter study",
    "trainables/data/sets/catalogue.py": "descriptions of data sets",
}
ASIDE = ("option", "argument", "group", "command", "getLogger", "compile", "fullmatch", "match", "sub", "split")
HEAD = """# Messages

Everything that Pretune says to a person, by the file that says it: errors, warnings, notes and texts of the report.
`{name}` stands for a value. `python docs/messages.py` makes this list from the code. [Exit codes](exit-codes.md) has
what to do after each kind.
"""


class Message(NamedTuple):
    path: str
    text: str


def messages(top: Path = TOP) -> Iterator[Message]:
    """Yield every message, by file and in the order of the file."""
    for folder in FOLDERS:
        for path in sorted((top / folder).rglob("*.py")):
            name = path.relative_to(top).as_posix()
            if not any(part.is_symlink() for part in path.parents) and name not in NOT_SAID:
                yield from (Message(name, text) for text in _said(ast.parse(path.read_text("utf-8"))))


def _said(tree: ast.Module) -> Iterator[str]:
    silent = _silent(tree)
    for node in ast.walk(tree):
        if id(node) in silent:
            silent |= {id(child) for child in ast.iter_child_nodes(node)}
        elif isinstance(node, ast.JoinedStr | ast.Constant):
            silent |= {id(part) for part in ast.walk(node) if part is not node}
            text = " ".join(_words(node).split())
            if _is_sentence(text):
                yield text


def _silent(tree: ast.Module) -> set[int]:
    """Docstrings, annotations, and arguments of calls that say nothing to a person."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.add(id(node.annotation))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ASIDE:
            found |= {id(argument) for argument in (*node.args, *(word.value for word in node.keywords))}
    return found


def _words(node: ast.expr) -> str:
    """The text of a literal, with {name} for every value."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_words, node.values))
    if isinstance(node, ast.FormattedValue):
        names = re.findall(r"[A-Za-z_]\w*", ast.unparse(node.value))
        return "{" + (names[-1] if names else "...") + "}"
    return ""


def _is_sentence(text: str) -> bool:
    """Three words of small letters or more, and nothing that looks like code or HTML."""
    return len(re.findall(r"(?<![\w./-])[a-z]{2,}(?![\w./=(])", text)) >= 3 and not re.search(
        r"[<>]\w|;\n|\bimport\b", text
    )


def page() -> str:
    """Return the whole page."""
    parts, last = [HEAD], ""
    for message in messages():
        if message.path != last:
            parts.append(f"\n## {message.path}\n")
            last = message.path
        parts.append("- " + message.text.replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*"))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--long" in sys.argv:
        print("\n".join(f"{path}: {text}" for path, text in messages() if len(text.split()) > 30))
    else:
        print(page(), end="")
