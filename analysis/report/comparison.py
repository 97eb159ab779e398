"""The page of a comparison: what is shown, the table, a figure of all cells, and behind folds all that differs."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from pretune.analysis.figures.comparison import comparison_plot
from pretune.analysis.questions.compare import Comparison
from pretune.analysis.report.page import (
    asset,
    plotly_script,
    pretune_version,
    script_hash,
    script_json,
    template,
    write_page,
)
from pretune.analysis.text.comparison import differences_grid, differing_grid, means_grid, sentences
from pretune.analysis.text.formats import html_of

PAGE_NAME = "comparison.html"


def write_comparison(found: Comparison, path: Path) -> Path:
    """Write the page, which opens offline. Returns its path; raises OSError where it cannot be written."""
    return write_page(path, build_comparison(found))


def build_comparison(found: Comparison) -> str:
    """The page as text."""
    draw, plotly = asset("report_draw.js"), plotly_script()
    figures = [(metric.metric, comparison_plot(metric, found.names)) for metric in found.metrics if metric.cells]
    return template("comparison.html.j2").render(
        title=" · ".join(found.names),
        studies=list(zip(found.names, found.titles, strict=True)),
        metrics=[
            (
                metric.metric,
                sentences(found, metric),
                Markup(html_of(means_grid(found, metric))),
                Markup(html_of(differences_grid(found, metric))) if metric.differences else None,
            )
            for metric in found.metrics
        ],
        differing=Markup(html_of(differing_grid(found))),
        count=len(found.differing.rows),
        figures=[(name, figure.layout.height) for name, figure in figures],
        version=pretune_version(),
        css=Markup(asset("report.css")),
        draw=Markup(draw),
        plotly=Markup(plotly),
        script_hashes=Markup(" ".join(map(script_hash, (plotly, draw)))),
        figure_data=script_json([[figure.to_plotly_json()] for _, figure in figures]),
    )
