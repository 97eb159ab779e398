"""House rules that can be counted: no file grows beyond what one subject needs."""

from __future__ import annotations

from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
FOLDERS = ("pretune", "analysis", "search_spaces", "trainables", "benchmarks", "docs")
LONGEST = 500  # lines
SOURCES = [
    path
    for folder in FOLDERS
    for path in sorted((TOP / folder).rglob("*.py"))
    if not any(part.is_symlink() for part in path.parents)
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_have_at_most_500_lines(folder: str) -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in SOURCES if path.is_relative_to(TOP / folder)}
    assert lines, f"no file below {folder}"
    long = [f"{path.relative_to(TOP)}: {count}" for path, count in lines.items() if count > LONGEST]
    assert not long, f"more than {LONGEST} lines; split by subject: {', '.join(long)}"
