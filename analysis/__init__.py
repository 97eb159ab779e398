"""Stored results -> tables, statistics and figures. Reads a study's output folder and nothing else."""

from pretune.analysis.load.results import ResultsError, load, load_header

__all__ = ["ResultsError", "load", "load_header"]
