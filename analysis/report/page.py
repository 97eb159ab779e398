"""Parts of every page that Pretune writes: one HTML file that needs nothing else, not even a network.

Everything that came from a study goes through jinja2's escaping, through JSON with every "<" written as \\u003c, or
through plotly labels that were escaped; and a content security policy names the page's own scripts by their hashes,
so that text which slipped through could still not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from plotly.offline import get_plotlyjs

ASSETS = Path(__file__).parent / "assets"


def write_page(path: Path, text: str) -> Path:
    """Write a page whole, or leave the one that is there; answers its path."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # as names in old results
    return temporary.replace(path)


def template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(ASSETS)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(name)


def script_json(content: object) -> Markup:
    """JSON that is safe inside a script element: no "<" can end it or open another."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=_plain)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | np.ndarray):
        return list(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a report")


def script_hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def plotly_script() -> str:
    """plotly.js, its line ends as a browser reads them, or the policy's hash would not fit."""
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def pretune_version() -> str:
    try:
        return version("pretune")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
