"""A study's tables, written beside its results and returned for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from analysis import layout, tables
from analysis.results import load, load_header
from analysis.tables import Differences, Table


def write_tables(folder: Path) -> list[RenderableType]:
    """Write table.md, table.tex and table.csv for every metric of the report; with a baseline also differences.csv.

    Returns the same tables for a terminal. Raises ResultsError where there is nothing to read.
    """
    results, header = load(folder), load_header(folder)
    built: list[Table] = [tables.build(results, header, metric) for metric in header.report.metrics]
    compared: list[Differences] = [
        tables.differences(results, header, metric) for metric in header.report.metrics if header.report.baseline
    ]
    both: list[Table | Differences] = [*built, *compared]
    question = f"{header.question}\n\n" if header.question else ""
    markdown = [layout.to_markdown(table) for table in both]
    (folder / "table.md").write_text(f"# {header.study}\n\n{question}" + "\n\n".join(markdown) + "\n", encoding="utf-8")
    (folder / "table.tex").write_text("\n".join(map(layout.to_latex, both)), encoding="utf-8")
    (folder / "table.csv").write_text(_joined([layout.to_csv(table) for table in built]), encoding="utf-8")
    if compared:
        (folder / "differences.csv").write_text(_joined([layout.to_csv(item) for item in compared]), encoding="utf-8")
    return [layout.to_rich(table) for table in both]


def _joined(texts: list[str]) -> str:
    """CSV tables of equal columns under one head."""
    first, *others = texts
    return first + "".join(text.split("\n", 1)[1] for text in others)
