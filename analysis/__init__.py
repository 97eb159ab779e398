"""Stored results -> tables, statistics and figures. Reads a study's output folder and nothing else.

`load` and `load_header` import their reader, and pandas with it, when they are called: a plan needs the statistics
alone. The room `load` is imported before they are defined, or its first import would take the function's name.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from pretune.analysis.load.results import ResultsError, StudyHeader

__all__ = ["ResultsError", "load", "load_header", "plots"]

import_module("pretune.analysis.load")


def load(folder: Path | str) -> pandas.DataFrame:
    """The tidy results of the study stored in `folder`: see `pretune.analysis.load.results.load`."""
    from pretune.analysis.load import results

    return results.load(folder)


def load_header(folder: Path | str) -> StudyHeader:
    """The study's own description: see `pretune.analysis.load.results.load_header`."""
    from pretune.analysis.load import results

    return results.load_header(folder)


def __getattr__(name: str) -> Any:
    if name == "plots":  # plotly, when it is asked for
        return import_module("pretune.analysis.plots")
    if name != "ResultsError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("pretune.analysis.load.results").ResultsError
