"""Hooks of mkdocs: README.md is the home page, and files that pages link to outside of docs/ come into the site.

A Markdown file outside of docs/ becomes a page at its path in the repository, and what it links to follows. Any other
file is copied as text, so that a browser shows it. A link to a folder becomes plain text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
SHOWN = (".png", ".svg", ".jpg")  # what a browser shows under its own name


def place_of(path: Path) -> str:
    """Path in the site of a file of the repository."""
    name = path.relative_to(TOP).as_posix()
    if name == "README.md":
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if path.suffix in (".md", *SHOWN) else f"{name}.txt"


def source_of(uri: str) -> Path:
    """File of the repository that is the page `uri`."""
    if uri == "index.md":
        return TOP / "README.md"
    inside = TOP / "docs" / uri
    return inside if inside.is_file() else TOP / uri


def targets(page: Path) -> list[Path]:
    """Files of the repository that a page links to."""
    links = [target.partition("#")[0] for _, target in LINK.findall(page.read_text("utf-8"))]
    found = [(page.parent / link).resolve() for link in links if link and "://" not in link]
    return [path for path in found if path.is_relative_to(TOP) and path.is_file()]


def messages_page() -> str:
    """The inventory of messages, made from the code at hand; it is no file, so that it is never out of date."""
    script = TOP / "docs" / "messages.py"
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout


def on_files(files: Files, config: Any) -> Files:
    """Add README.md and every file outside of docs/ that a page links to, over any number of steps."""
    known = {file.src_uri for file in files}
    waiting = [TOP / "README.md", *(source_of(file.src_uri) for file in files if file.src_uri.endswith(".md"))]
    for path in (TOP / "README.md", TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md"):
        if place_of(path) not in known:
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
            known.add(place_of(path))
            waiting.append(path)
    files.append(File.generated(config, "messages.md", content=messages_page()))
    while waiting:
        for path in targets(waiting.pop()):
            if place_of(path) in known:
                continue
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
            known.add(place_of(path))
            if path.suffix == ".md":
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the places that files have in the site."""
    source = source_of(page.file.src_uri)
    if not source.is_file():  # made by a script
        return markdown
    here = PurePosixPath(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        words, target = match.groups()
        link, mark, anchor = target.partition("#")
        path = (source.parent / link).resolve()
        if not link or "://" in link or not path.is_relative_to(TOP):
            return match.group()
        if path.is_dir():
            return words.lstrip("!")[1:-1]
        ups = "../" * len(here.parts)
        return f"{words}({ups}{place_of(path)}{mark}{anchor})"

    return LINK.sub(moved, markdown)
