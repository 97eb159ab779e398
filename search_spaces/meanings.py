"""Meanings of settings: the comments beside them in the schema's source, for the settings page and for editors."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

SCHEMA = Path(__file__).parent / "schema"


def comment_of(field: ast.AnnAssign, lines: Sequence[str]) -> str:
    """The words behind `#` on the field's lines, and on lines of nothing else right below."""
    last = field.end_lineno or field.lineno
    found = [line.partition("  # ")[2] for line in lines[field.lineno - 1 : last]]
    below = last
    while below < len(lines) and lines[below].strip().startswith("# "):
        found.append(lines[below].strip().removeprefix("# "))
        below += 1
    return " ".join(part for part in found if part)


def meanings() -> dict[str, dict[str, str]]:
    """Class of settings -> setting -> meaning, also of what it inherits from a class of any file of the schema."""
    classes: dict[str, tuple[ast.ClassDef, list[str]]] = {}
    for path in sorted(SCHEMA.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        nodes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
        classes |= {node.name: (node, text.splitlines()) for node in nodes}

    def settings_of(name: str) -> dict[str, str]:
        if name not in classes:
            return {}
        node, lines = classes[name]
        inherited = (item for base in node.bases for item in settings_of(ast.unparse(base)).items())
        own = {ast.unparse(f.target): comment_of(f, lines) for f in node.body if isinstance(f, ast.AnnAssign)}
        return dict(inherited) | own

    return {name: settings_of(name) for name in classes}
