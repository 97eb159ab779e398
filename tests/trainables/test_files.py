"""Names of files that loops write and others read stand in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pretune.trainables import files

TOP = Path(__file__).resolve().parents[2]
NAMES = {name: value for name, value in vars(files).items() if name.isupper()}
# The best model and the exported one are files of their own, which users know by this name; so is a model that is
# downloaded.
OTHERS = {
    "model.safetensors": {"model/export.py", "model/predict.py", "model/export_encoder.py", "data/resident/maps.py"}
}


def spelled(path: Path) -> set[str]:
    """All string constants of a module."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_each_name_is_one_file() -> None:
    assert len(set(NAMES.values())) == len(NAMES) == 7


@pytest.mark.parametrize("folder", ["pretune", "trainables"])
def test_nobody_spells_a_name_again(folder: str) -> None:
    again = [
        f"{path.relative_to(TOP)}: {name}"
        for path in sorted((TOP / folder).rglob("*.py"))
        if path != TOP / "trainables" / "files.py" and not any(parent.is_symlink() for parent in path.parents)
        for name in spelled(path) & set(NAMES.values())
        if not any(str(path).endswith(other) for other in OTHERS.get(name, ()))
    ]
    assert not again
