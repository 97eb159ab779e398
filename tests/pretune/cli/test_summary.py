"""The end of a run and `pretune report`: one screen, and the statistics on request."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from studies import label_of, write_study

from pretune.analysis.report.html import build_page
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


def test_without_a_baseline_the_sentence_is_of_the_best_cell(tmp_path: Path) -> None:
    scores = {"start=random": [0.5, 0.52, 0.51], "start=pretrained": [0.7, 0.71, 0.72]}
    write_study(tmp_path / "x", scores, {"start": ["random", "pretrained"]})
    printed = " ".join(report(tmp_path / "x").split())
    assert "pretrained" in printed.split("mean ± standard deviation")[1]
