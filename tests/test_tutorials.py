"""Every tutorial, carried out from top to bottom in an empty folder: its files written, its commands run.

A block that cannot run here stands below `<!-- not run: REASON -->` on the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from heads import TOKEN, started_head

TOP = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((TOP / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'(<!-- not run: .+? -->\n)?^```(\w+)(?: title="([\w.-]+)")?\n(.*?)^```$', re.M | re.S)
STUDIES = {  # page -> folder of its study, its cells, and seeds of each
    "first-study": ("runs/my-study-first", 3, 3),
    "few-labels": ("runs/few", 6, 3),
    "learning-rates": ("runs/rates", 2, 3),
    "gpu": ("runs/fast", 2, 2),
    "papers": ("runs/p3-table3-small", 3, 3),
    "cluster": ("runs/nodes", 2, 3),
}


class Block(NamedTuple):
    kept_back: str  # the reason, where it is not run
    language: str
    title: str  # of a file to write
    text: str


def blocks_of(path: Path) -> Iterator[Block]:
    for found in BLOCK.findall(path.read_text("utf-8")):
        yield Block(*found)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_block_is_a_file_or_a_command_and_most_are_run(path: Path) -> None:
    blocks = list(blocks_of(path))
    assert len(blocks) == len(re.findall(r"^```\w", path.read_text("utf-8"), re.M))
    assert all(block.title or block.language == "sh" for block in blocks)
    run = [block for block in blocks if not block.kept_back]
    assert len(run) > len(blocks) / 2


def test_every_tutorial_has_its_study_here() -> None:
    assert {path.stem for path in TUTORIALS} == STUDIES.keys()


def carry_out(path: Path, folder: Path, **more: str) -> None:
    """Write the page's files and run its commands in `folder`, as a shell in which `pretune` is installed would."""
    bin_folder = folder / ".bin"
    bin_folder.mkdir()
    for name, words in (("pretune", "-m pretune "), ("python", "")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n', "utf-8")
        (bin_folder / name).chmod(0o755)
    places = os.pathsep.join([str(bin_folder), os.environ["PATH"]])
    environment = os.environ | {"PATH": places, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1", **more}
    for block in blocks_of(path):
        if block.title:
            (folder / block.title).write_text(block.text, "utf-8")
        elif not block.kept_back:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
            )  # fmt: skip
            assert done.returncode == 0, block.text + done.stdout[-3000:] + done.stderr[-3000:]


def check_results(folder: Path, cells: int, seeds: int) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    scores = results[(results.phase == "confirm") & (results.metric == "test/jaccard")]
    assert scores.cell.nunique() == cells
    assert len(scores) == cells * seeds
    assert scores.value.between(0, 1).all()
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [path for path in TUTORIALS if path.stem != "cluster"], ids=lambda path: path.stem)
def test_a_tutorial_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    carry_out(path, tmp_path)
    study, cells, seeds = STUDIES[path.stem]
    check_results(tmp_path / study, cells, seeds)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_tutorial_of_clusters_runs_on_a_head(tmp_path: Path) -> None:
    environment = os.environ | TOKEN
    with started_head(environment, "--num-cpus=2") as (address, _):
        carry_out(TOP / "docs" / "tutorials" / "cluster.md", tmp_path, ADDRESS=address, SHARED=str(tmp_path), **TOKEN)
    study, cells, seeds = STUDIES["cluster"]
    check_results(tmp_path / study, cells, seeds)
