"""What computes does not draw: tables and statistics work where plotly is not even installed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pretune.analysis

TOP = Path(pretune.analysis.__path__[0])
COMPUTES = [
    "pretune.analysis.statistics",
    "pretune.analysis.digits",
    *(
        f"pretune.analysis.{room}.{module.name}"
        for room in ("load", "questions", "text")
        for module in pkgutil.iter_modules([str(TOP / room)])
    ),
]


def test_what_computes_imports_no_plotly_directly_or_through_others() -> None:
    code = (
        f"import sys, importlib\nfor name in {COMPUTES}: importlib.import_module(name)\nprint('plotly' in sys.modules)"
    )
    assert len(COMPUTES) > 20
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    "first",
    ["pretune.analysis", "pretune.analysis.load.results", "pretune.analysis.report.html", "pretune.analysis.load"],
)
def test_load_is_the_function_whatever_was_imported_before(first: str) -> None:
    """A room has its name: its first import must not take it, and the package alone imports no pandas."""
    code = (
        f"import sys, {first}\nfrom pretune import analysis\nfrom pretune.analysis import load, load_header\n"
        "print(callable(load), callable(load_header), callable(analysis.load), analysis.ResultsError.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout.split() == ["True", "True", "True", "ResultsError"]
