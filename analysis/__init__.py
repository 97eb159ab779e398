"""Stored results -> tables, statistics and figures. Reads a study's output folder and nothing else."""

from analysis.components import components
from analysis.differences import differences
from analysis.effects import effects
from analysis.results import ResultsError, load, load_header
from analysis.tables import build as table

__all__ = ["ResultsError", "components", "differences", "effects", "load", "load_header", "table"]
