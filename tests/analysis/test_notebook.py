"""The example of docs/analysis.md runs as it is written, on every study that is shipped; its columns are the files'."""

import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from studies import write_study

import pretune.search_spaces
from benchmarks.known_truths import TRUTHS
from pretune.search_spaces import resolve

FACTORS = {"encoder": ["unfrozen", "frozen"], "skip": ["true", "false"]}
GUIDE = Path(__file__).parents[2] / "docs" / "analysis.md"
TEXT = GUIDE.read_text(encoding="utf-8")
SHIPPED = sorted((Path(pretune.search_spaces.__path__[0]) / "studies").glob("*.yaml"))


def run_example(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, str(GUIDE), "exec"), {})


def test_the_guides_example_runs(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    cells = [f"encoder={a} skip={b}" for a in FACTORS["encoder"] for b in FACTORS["skip"]]
    scores = {cell: list(generator.normal(0.6, 0.02, 3)) for cell in cells}
    write_study(tmp_path / "runs" / "x", scores, FACTORS, baseline={"encoder": "unfrozen"})
    run_example(tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "| encoder | skip=true | skip=false |" in said
    assert "PairedDifference" in said


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_example_runs_on_every_shipped_study(path, tmp_path, monkeypatch, capsys):
    study, generator = resolve.load(path), np.random.default_rng(0)
    scores = {cell.label: list(generator.normal(0.6, 0.02, 3)) for cell in study.cells}
    factors = {name: list(levels) for name, levels in study.factors.items()}
    report = study.header.report.model_dump(mode="json")
    folder = write_study(tmp_path / "runs" / "x", scores, factors, **(report | {"metrics": ["test/jaccard"]}))
    content = json.loads((folder / "study.json").read_text())
    cells = [{"label": cell.label, "levels": cell.levels} for cell in study.cells]
    (folder / "study.json").write_text(json.dumps(content | {"cells": cells}))
    run_example(tmp_path, monkeypatch)
    assert "PairedDifference" in capsys.readouterr().out


def documented(after):
    """Names of the first table of columns after a sentence; 'a, b' are two."""
    table = TEXT[TEXT.index(after) :].split("\n\n")[1]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    return {name.strip() for row in rows for name in row.split(",")}


def test_the_documented_columns_are_those_of_the_files(tmp_path):
    """Those that the writer gives, and none else: the test of the writer's own tables reads the same page."""
    study = TRUTHS["failing"](tmp_path, np.random.default_rng(0))
    for file, after in (("results", "`analysis.load` gives"), ("searches", "`searches.parquet` (`pretune")):
        stored = {
            re.sub(r"^factor\..*", "factor.NAME", name) for name in pandas.read_parquet(study / f"{file}.parquet")
        }
        assert stored <= documented(after)
