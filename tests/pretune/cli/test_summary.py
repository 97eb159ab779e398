"""The end of a run and `pretune report`: one screen, and the statistics on request."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from studies import label_of, write_study

from pretune.analysis import load, load_header
from pretune.analysis.report.html import build_page
from pretune.analysis.text.answer import answer
from pretune.cli import cli

FACTORS = {"start": ["random", "pretrained", "frozen"], "labels": ["all", "10%"]}
SCREEN = 40  # lines


@pytest.fixture
def study(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    cells = [label_of(dict(zip(FACTORS, levels, strict=True))) for levels in itertools.product(*FACTORS.values())]
    scores = {cell: list(generator.normal(0.6, 0.02, 3)) for cell in cells}
    write_study(tmp_path / "runs" / "x", scores, FACTORS, baseline={"start": "random"})
    return tmp_path / "runs" / "x"


def report(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(cli, ["report", str(folder), "--no-html", *words], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.output


def test_it_fits_one_screen_with_the_table_and_one_sentence(study: Path) -> None:
    printed = report(study)
    assert len(printed.splitlines()) <= SCREEN
    assert all(cell_len(line) <= 100 for line in printed.splitlines() if "--details" not in line)
    assert "labels=10%" in printed
    assert "baseline" in printed or "start=random" in printed
    assert "paired difference" not in printed
    assert f"pretune report {study} --details" in printed


def test_details_show_the_differences_and_everything_is_in_the_files_either_way(study: Path) -> None:
    printed = report(study)
    assert "paired difference" in (study / "table.md").read_text("utf-8")
    assert (study / "effects.csv").is_file()
    longer = report(study, "--details")
    assert "paired difference" in longer
    assert "--details" not in longer
    assert len(longer) > len(printed)


def test_the_report_of_a_scale_names_it_in_every_format(tmp_path: Path) -> None:
    scores = {"start=random": [0.5, 0.52, 0.51], "start=pretrained": [0.7, 0.71, 0.72]}
    for scale in ("", "first"):
        folder = write_study(tmp_path / f"x{scale}", scores, {"start": ["random", "pretrained"]}, "leaves", scale=scale)
        title = f"leaves{' (scale first)' * bool(scale)}"
        assert f"{title}: test/jaccard" in report(folder)
        assert (folder / "table.md").read_text("utf-8").startswith(f"# {title}\n")
        assert (folder / "table.tex").read_text("utf-8").startswith(f"% {title}\n")
        page = build_page(folder)
        assert f"<title>{title} ·" in page
        assert page.count('class="banner"') == bool(scale)


def test_a_stopped_study_says_each_thing_once(tmp_path: Path) -> None:
    """Of 6 cells one has two of its three seeds and all others one: two footnotes, whatever the number of metrics."""
    cells = [label_of(dict(zip(FACTORS, levels, strict=True))) for levels in itertools.product(*FACTORS.values())]
    scores = {cell: [0.5 + 0.01 * place, 0.52, 0.53] for place, cell in enumerate(cells)}
    metrics = ("test/jaccard", "test/dice")
    study = write_study(tmp_path / "x", scores, FACTORS, metrics=metrics, baseline={"start": "random"})
    results = pandas.read_parquet(study / "results.parquet")
    done = (results["seed"] == 0) | ((results["seed"] == 1) & (results["cell"] == cells[0]))
    results[done].to_parquet(study / "results.parquet")

    printed = report(study)
    assert [printed.count(mark) for mark in ("¹ start", "² start", "³")] == [1, 1, 0]
    assert [printed.count(why) for why in ("2 of 3 seeds; 1 not run", "1 of 3 seeds; 2 not run")] == [1, 1]
    page = build_page(study)
    figures = page[page.index('<section id="figures">') : page.index('<section id="cost">')]
    replicates = [text for text in re.findall(r"<p[^>]*>([^<]*)</p>", figures) if f"{cells[0]} (2 of 3)" in text]
    assert len(replicates) == 1
    results, header = load(study), load_header(study)
    said = answer(results, header, "test/jaccard")
    assert len([sentence for sentence in said if "labels=all" in sentence and "labels=10%" in sentence]) == 2
    assert len([sentence for sentence in said if "1 of 3 seeds; 2 not run" in sentence]) == 1


def test_without_a_baseline_the_sentence_is_of_the_best_cell(tmp_path: Path) -> None:
    scores = {"start=random": [0.5, 0.52, 0.51], "start=pretrained": [0.7, 0.71, 0.72]}
    write_study(tmp_path / "x", scores, {"start": ["random", "pretrained"]})
    printed = " ".join(report(tmp_path / "x").split())
    assert "pretrained" in printed.split("mean ± standard deviation")[1]
