"""The examples of CONTRIBUTING.md, carried out in a copy of the repository: what each adds passes that copy's tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parents[1]
CODE = ("pretune", "analysis", "search_spaces", "trainables", "tests", "docs", "pyproject.toml", "README.md")
BLOCK = re.compile(
    r"^`([\w/]+\.py)`(?:, (before|in place of) `([^`\n]*)`)?\n\n```(?:python|text)\n(.*?)```$", re.M | re.S
)

EXAMPLES = {  # heading -> the tests that must know the new thing: files, and an expression for -k
    "A pretraining method": (
        ["tests/trainables/test_agreement.py", "tests/trainables/test_contract_methods.py",
         "tests/trainables/test_methods_table.py", "tests/search_spaces/test_method_facts.py"],
        "(agreement or Agreement) and not bfloat16 and not rung",
    ),
    "A model": (["tests/trainables/test_models.py"], "plain"),
    "A view transform": (["tests/trainables/test_mirror.py"], ""),
    "A fine-tuning loss": (["tests/trainables/test_losses.py"], "brier"),
    "A metric": (
        ["tests/trainables/test_log_loss.py", "tests/trainables/test_metric_names.py",
         "tests/search_spaces/test_metrics.py"],
        "log_loss or extra_score or writes_what_the_table_knows",
    ),
    "A data set": (["tests/trainables/data/sets/test_leaves.py", "tests/trainables/data/sets/test_table.py"], "leaves"),
}  # fmt: skip


class Block(NamedTuple):
    path: str
    how: str  # "" for a new file, else before or in place of
    anchor: str
    text: str


def blocks_of(heading: str) -> list[Block]:
    page = (TOP / "CONTRIBUTING.md").read_text("utf-8")
    (section,) = [part for part in re.split(r"^## ", page, flags=re.M) if part.startswith(f"{heading}\n")]
    return [Block(*(part or "" for part in found)) for found in BLOCK.findall(section)]


def carry_out(block: Block, top: Path) -> None:
    path = top / block.path
    if not block.how:
        assert not path.exists(), f"{block.path} is there already"
        path.write_text(block.text, "utf-8")
        return
    text, new = path.read_text("utf-8"), block.text
    if block.how == "in place of":
        new = new.removesuffix("\n")
        assert text.count(block.anchor) == 1, (
            f"{block.path}: {block.anchor!r} stands there {text.count(block.anchor)} times"
        )
        path.write_text(text.replace(block.anchor, new), "utf-8")
        return
    if new.startswith(("class ", "def ")):
        new += "\n\n"
    lines = text.splitlines(keepends=True)
    (at,) = [i for i, line in enumerate(lines) if line.startswith(block.anchor)][:1] or [None]
    assert at is not None, f"{block.path}: no line begins with {block.anchor!r}"
    path.write_text("".join([*lines[:at], new, *lines[at:]]), "utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in CODE:
        if (source := TOP / name).is_dir():
            shutil.copytree(
                source, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.png")
            )
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_adds_what_it_says(heading: str, copy: Path) -> None:
    blocks = blocks_of(heading)
    assert blocks, f"no example under {heading!r}"
    for block in blocks:
        carry_out(block, copy)
    code = {block.path for block in blocks if not block.path.startswith("tests")}
    assert len(code) <= 3, "the thing and its rows"
    ran = run(copy, "docs/settings.py")
    assert ran.returncode == 0, ran.stderr
    files, chosen = EXAMPLES[heading]
    ran = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *(["-k", chosen] if chosen else []))
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert re.search(r"\b[1-9]\d* passed", ran.stdout)


@pytest.mark.parametrize(
    ("forgotten", "said"),
    [
        ('    "pixelcl": build_pixelcl,', r"METHODS in trainables/methods/table.py"),
        ("    | Weights", r"Agreement is not in the union `Method`"),
    ],
)
def test_what_is_forgotten_of_a_method_is_named(forgotten: str, said: str, copy: Path) -> None:
    for block in blocks_of("A pretraining method"):
        if forgotten not in (block.path, block.anchor):
            carry_out(block, copy)
    files = ["tests/trainables/test_methods_table.py", "tests/search_spaces/test_method_facts.py"]
    chosen = "agreement or Agreement or has_its_row"
    ran = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert ran.returncode == 1, ran.stdout[-3000:]
    assert re.search(said, ran.stdout), ran.stdout[-3000:]


@pytest.mark.parametrize(
    ("forgotten", "said"),
    [
        ("    threshold_scores: bool", r"search_spaces/schema/scores.py.*'log_loss'"),
        ('    "threshold_scores": ExtraScores(', r"search_spaces/schema/scores.py.*'log_loss'"),
        ('    "boundary_tolerance": BoundaryScorer,', r"SCORERS in trainables/metrics/table.py.*'log_loss'"),
        ("trainables/metrics/log_loss.py", r"No module named 'pretune.trainables.metrics.log_loss'"),
        ("tests/trainables/test_log_loss.py", r"log_loss: tests/trainables/test_log_loss.py"),
    ],
)
def test_what_is_forgotten_of_a_metric_is_named(forgotten: str, said: str, copy: Path) -> None:
    for block in blocks_of("A metric"):
        if forgotten not in (block.path, block.anchor):
            carry_out(block, copy)
    files = ["tests/trainables/test_metric_names.py"]
    ran = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "has_its")
    assert ran.returncode > 0, ran.stdout[-3000:]
    assert re.search(said, ran.stdout, re.S), ran.stdout[-3000:]
