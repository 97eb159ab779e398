"""Stored results -> tables, statistics and figures. Reads a study's output folder and nothing else."""

from analysis.results import ResultsError, load, load_header

__all__ = ["ResultsError", "load", "load_header"]
