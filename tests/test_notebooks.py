"""The notebooks of docs/notebooks: their cells run from top to bottom and give the numbers of the stored results."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

TOP = Path(__file__).resolve().parents[1]
NOTEBOOKS = TOP / "docs" / "notebooks"


def code_of(name: str) -> list[str]:
    """The code cells of a notebook."""
    content = json.loads((NOTEBOOKS / name).read_text("utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def run(name: str) -> tuple[dict[str, Any], list[object]]:
    """Carry out the cells in one namespace; the namespace, and what Jupyter would show below each cell."""
    space: dict[str, Any] = {}
    shown: list[object] = []
    for number, code in enumerate(code_of(name)):
        *before, last = ast.parse(code).body
        file = f"{name}, code cell {number}"
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(before, []), file, "exec"), space)
            shown.append(eval(compile(ast.Expression(last.value), file, "eval"), space))
        else:
            exec(compile(code, file, "exec"), space)
    return space, shown


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_of_the_format_and_stored_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    assert (content["nbformat"], content["metadata"]["language_info"]["name"]) == (4, "python")
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == []


def test_the_notebook_of_results_gives_the_numbers_of_the_evidence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(NOTEBOOKS)
    space, shown = run("results.ipynb")
    means = space["by_seed"].mean()
    assert means["start=ImageNet encoder=frozen labels=50"] == pytest.approx(0.763, abs=5e-4)
    assert sum(isinstance(value, go.Figure) for value in shown) == 4
    assert space["saved"]
    said = capsys.readouterr().out
    assert "**0.7626 ± 0.0094**" in said
    assert all(one.sentence in said for one in space["saved"])


@pytest.mark.slow
@pytest.mark.ray
def test_the_notebook_of_a_first_study_trains_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(NOTEBOOKS / "first_study.ipynb", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    run("first_study.ipynb")
    results = pd.read_parquet(tmp_path / "runs" / "first" / "results.parquet")
    scores = results[(results.phase == "confirm") & (results.metric == "test/jaccard")]
    assert scores.groupby("cell").size().to_dict() == {"start=pretrained": 3, "start=random": 3}
    assert scores.value.between(0, 1).all()
