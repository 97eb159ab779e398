"""Stored results -> tables, statistics and figures. Reads a study's output folder and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretune.analysis.load.results import ResultsError, load, load_header

__all__ = ["ResultsError", "load", "load_header"]


def __getattr__(name: str) -> Any:
    """Import the reader of results, and pandas with it, when it is asked for: a plan needs the statistics alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pretune.analysis.load.results"), name)
