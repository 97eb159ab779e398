"""Figures that a study's results allow, in the order of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import plotly.graph_objects as go

from pretune.analysis.digits import few
from pretune.analysis.figures import figures
from pretune.analysis.figures import pairs as figures_pairs
from pretune.analysis.figures.timeline import timeline_plot
from pretune.analysis.load.curves import load_curves
from pretune.analysis.load.replicates import is_probe
from pretune.analysis.load.results import PublishedValue, StudyHeader, load, load_header, stored_definitions
from pretune.analysis.load.runs import load_stage_runs
from pretune.analysis.load.searches import load_searches
from pretune.analysis.load.timeline import sentence, timeline
from pretune.analysis.questions import curves, pairs, sensitivity, tables
from pretune.analysis.questions import differences as against
from pretune.analysis.questions.dots import cell_dots
from pretune.analysis.questions.facts import SIGNS
from pretune.analysis.questions.image_bootstrap import out_of_range
from pretune.analysis.report import panels

MOST_FORESTS = 4  # searches whose importance fANOVA gives too, about 2 s each
MOST_FIGURES = 24  # figures of one group; a study with more cells has them in its table


class FigureGroup(NamedTuple):
    """Figures that one place of the page shows in turn."""

    title: str
    note: str
    figures: tuple[tuple[str, go.Figure], ...]  # (what it shows, the figure)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.figures)

    @property
    def height(self) -> int:
        return max(int(figure.layout.height) for _, figure in self.figures)


def figure_groups(folder: Path) -> tuple[tuple[FigureGroup, ...], tuple[str, ...]]:
    """Every figure of a study, and notes on those that could not be made. Raises ResultsError."""
    header, results = load_header(folder), load(folder)
    asked = of_metrics(results, header.report.metrics)
    content = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    by_cell = [*_cells(asked, header), *_over_amounts(asked, header), *_interactions(asked, header)]
    missing = missing_values(asked, header)
    groups = [
        group._replace(note=f"{group.note} {missing}".strip()) for group in (*by_cell, *_tradeoffs(asked, header))
    ]
    groups += [*_learning(load_curves(folder), header), *_alignment(results, header)]
    groups += _targets(folder, content)
    found, notes = _tuned(results, content)
    found += _when(load_stage_runs(folder))
    return tuple(group for group in [*groups, *found] if group.figures), notes


def missing_values(results: pandas.DataFrame, header: StudyHeader) -> str:
    """A sentence on the cells of which replicates have no value, which figures of means cannot show; "" for none."""
    found = {(d.cell, d.short): None for m in header.report.metrics for d in cell_dots(results, header, m) if d.short}
    cells = few([f"{cell} ({short})" for cell, short in found], 8)
    return f"Replicates without a value are in no mean; how many have one: {cells}." if cells else ""


def write_figures(folder: Path, kind: str) -> list[Path]:
    """Every figure of the report as a file in `figures/` (svg, pdf or png), and the image panels as PNG.

    Raises ResultsError.
    """
    groups, _ = figure_groups(folder)
    shown = [(f"{group.title} {name}", figure) for group in groups for name, figure in group.figures]
    drawn = list(zip(_file_names([name for name, _ in shown]), (figure for _, figure in shown), strict=True))
    return [*figures.write_files(drawn, folder / "figures", kind), *panels.write_sheets(folder, folder / "figures")]


def _file_names(texts: Sequence[str]) -> list[str]:
    """Readable, safe everywhere, and each once, whatever the letter case that a file system keeps."""
    names: list[str] = []
    for text in texts:
        kept = "".join(character if character.isalnum() or character in "=." else "-" for character in text.lower())
        name = "-".join(filter(None, kept.split("-")))[:100]
        same = sum(other == name or other.startswith(f"{name}~") for other in names)
        names.append(f"{name}~{same + 1}" if same else name)
    return names


def of_metrics(results: pandas.DataFrame, metrics: Sequence[str]) -> pandas.DataFrame:
    """The confirmed rows that tables of these metrics need, a few per cent of all where runs report many metrics.

    Every stage run keeps one row, so that it is still known to have run; a probe's metric may stand under its last
    part alone.
    """
    confirm = results[results["phase"] == "confirm"]
    names = {*metrics, SIGNS, *(metric.split("/", 2)[-1] for metric in metrics if is_probe(metric))}
    first = ~confirm.duplicated(["cell", "seed", "stage", "fingerprint"])
    return confirm[first | confirm["metric"].isin(names)]


def _when(stage_runs: pandas.DataFrame) -> Iterator[FigureGroup]:
    """The time line, where starts are known."""
    if (found := timeline(stage_runs)) is not None and (figure := timeline_plot(found)) is not None:
        note = f"Each bar is a stage run: {sentence(found)}. Times in which the study was not run are excluded."
        yield FigureGroup("When stage runs ran", note, (("all lanes", figure),))


# ---------------------------------------------------------------------------------------------------------- cells


def _cells(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    theirs = {metric: published_by_cell(results, header, metric) for metric in header.report.metrics}
    dots = {m: cell_dots(results, header, m) for m in header.report.metrics}
    drawn = [(m, figures.dot_plot(dots[m], m, theirs[m])) for m in header.report.metrics]
    note = "Mean with its 95 % Student-t interval; nested seeds are averaged first."
    outside = dict.fromkeys(
        said
        for metric, of in dots.items()
        for said in out_of_range([cell.mean[1:] for cell in of], header.definition(metric))
    )
    note += "".join(f" {said[0].upper() + said[1:]}." for said in outside)
    note += " Stars: published values, with the paper's own standard deviation." * any(map(bool, theirs.values()))
    yield FigureGroup("Every seed", note, tuple(drawn))
    compared = tuple((table.metric, figures.difference_plot(table)) for table in difference_tables(results, header))
    note = "Paired over seeds, 95 % t interval; a filled mark has a Holm-corrected p below 0.05."
    yield FigureGroup("Differences to the baseline", note, compared)


def difference_tables(results: pandas.DataFrame, header: StudyHeader) -> list[against.Differences]:
    """The metrics that have any difference to show."""
    if not header.report.baseline:
        return []
    return [table for m in header.report.metrics if (table := against.differences(results, header, m)).rows]


def published_by_cell(results: pandas.DataFrame, header: StudyHeader, metric: str) -> dict[str, PublishedValue]:
    """Cell label -> the value that the table shows beside it."""
    if metric not in [table.metric for table in header.published]:
        return {}
    table = tables.build_table(results, header, metric)
    values = {
        row + column: value
        for row, line in zip(table.rows, table.published or (), strict=False)
        for column, value in zip(table.columns, line, strict=True)
    }
    factors = table.row_factors + table.column_factors
    places = {cell.label: tuple(cell.levels.get(factor, "") for factor in factors) for cell in header.cells}
    return {label: value for label, place in places.items() if (value := values.get(place)) is not None}


def _over_amounts(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    factor = curves.amount_factor(header)
    if factor is not None:
        theirs = {metric: published_by_cell(results, header, metric) for metric in header.report.metrics}
        made = [curves.amount_curves(results, header, factor, m, theirs[m]) for m in header.report.metrics]
        yield FigureGroup(f"Over {factor}", "", tuple((item.metric, figures.amount_plot(item)) for item in made))


def _interactions(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    grids = [grid for metric in header.report.metrics for grid in pairs.factor_grids(results, header, metric)]
    note = (
        "Means over seeds and over the levels of the other factors. Where rows differ by a constant, the two factors "
    )
    note += "do not interact."
    yield FigureGroup("Pairs of factors", note, _heat_maps(grids))


def _tradeoffs(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    made = [pairs.tradeoff(results, header, x, y) for x, y in combinations(header.report.metrics, 2)]
    drawn = tuple((f"{t.x_name} and {t.y_name}", figures_pairs.tradeoff_plot(t)) for t in made if len(t.labels) > 1)
    note = "Filled: the Pareto front, the cells that no other equals or beats in both metrics by their means. "
    yield FigureGroup("Trade-offs", note + "Bars: one standard deviation over seeds.", drawn[:MOST_FIGURES])


def _targets(folder: Path, content: Mapping[str, Any]) -> Iterator[FigureGroup]:
    """Searches for several targets, where the study has any."""
    if (folder / "searches.parquet").is_file():
        tune = content.get("tune") or {}
        target, direction = tune.get("target", "val/jaccard"), tune.get("direction")
        made = pairs.search_tradeoffs(load_searches(folder), target, direction, stored_definitions(content))
        drawn = tuple((name, figures_pairs.tradeoff_plot(item)) for name, item in made.items() if len(item.labels) > 1)
        note = "One mark per configuration that a search tried; filled: the Pareto front of its targets."
        yield FigureGroup("Several targets", note, drawn[:MOST_FIGURES])


def _heat_maps(grids: Sequence[pairs.HeatMapGrid]) -> tuple[tuple[str, go.Figure], ...]:
    return tuple((grid.title, figures_pairs.heat_map(grid)) for grid in grids[:MOST_FIGURES])


# ----------------------------------------------------------------------------------------------- curves, encoders


def _learning(rows: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    order = [cell.label for cell in header.cells]
    asked = sorted(curves.curve_metrics(rows), key=lambda key: (key[1] != "val/jaccard", key))
    made = [curves.learning_curves(rows, stage, metric, order) for stage, metric in asked[:MOST_FIGURES]]
    drawn = tuple((f"{item.stage}: {item.metric}", figures.learning_plot(item)) for item in made)
    yield FigureGroup("Learning curves", "Of the confirm phase; click a name in the legend to hide its line.", drawn)


def _alignment(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    grids = pairs.cka_grids(pairs.cka_rows(results, header))
    drawn = tuple((grid.title, figures_pairs.heat_map(grid, 0.0, 1.0)) for grid in grids)
    note = "Debiased linear CKA of the encoders of two levels, layer by layer, mean over seeds: 1 is equal up to "
    yield FigureGroup("How alike encoders are", note + "rotation and scale, 0 unrelated.", drawn[:MOST_FIGURES])


# ----------------------------------------------------------------------------------------------------------- tuning


def _tuned(results: pandas.DataFrame, content: Mapping[str, Any]) -> tuple[list[FigureGroup], tuple[str, ...]]:
    found, ranges = sensitivity.searches(results, content), content.get("ranges") or {}
    responses = [
        (f"{search.name}: {name}", figures.response_plot(sensitivity.response(search, name, ranges)))
        for search in found
        for name in sensitivity.varied(search)
    ]
    grids = [grid for search in found for grid in pairs.trial_grids(search, ranges)]
    lines = [pairs.parallel(search, ranges) for search in found]
    drawn = [(line.search, figures_pairs.parallel_plot(line)) for line in lines if len(line.axes) > 2]
    ranked = [
        sensitivity.importance(search, ranges, np.random.default_rng(0), 10, method)
        for search in found[:MOST_FIGURES]
        for method in (("PED-ANOVA", "fANOVA") if len(found) <= MOST_FORESTS else ("PED-ANOVA",))
    ]
    shares = tuple((f"{item.search}: {item.method}", figures.importance_plot(item)) for item in ranked if not item.note)
    origin = sensitivity.origin(found)
    note = "PED-ANOVA: what tells the best tenth of trials apart; fANOVA: the share of the variance of all scores. "
    note += "Whiskers are the 5th to 95th percentile over resampled trials. " + _stable(ranked) + origin
    fields = "Mean score of the trials in each field. " + origin
    lines_note = "One line per trial; the last axis is its score. " + origin
    groups = [
        FigureGroup("Sensitivity", origin, tuple(responses[:MOST_FIGURES])),
        FigureGroup("Pairs of parameters", fields, _heat_maps(grids)),
        FigureGroup("Every trial", lines_note, tuple(drawn[:MOST_FIGURES])),
        FigureGroup("Importance", note, shares),
    ]
    return groups, _unranked(ranked)


def _stable(ranked: Sequence[sensitivity.Importance]) -> str:
    """Say how often resampled trials name the same first parameter."""
    tops = [item.top for item in ranked if not item.note]
    return f"The first parameter stays first in {100 * min(tops):.0f} % of resamples or more. " if tops else ""


def _unranked(ranked: Sequence[sensitivity.Importance]) -> tuple[str, ...]:
    """Say why parameters of some searches have no importance: one sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for item in ranked:
        if item.note and item.search not in reasons.get(item.note, ()):
            reasons.setdefault(item.note, []).append(item.search)
    return tuple(f"No importance: {why} ({_some(searches)})." for why, searches in reasons.items())


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
