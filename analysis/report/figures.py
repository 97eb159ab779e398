"""Figures that a study's results allow, in the order of the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas
import plotly.graph_objects as go

from pretune.analysis.digits import few
from pretune.analysis.figures import factors as figures_factors
from pretune.analysis.figures import figures
from pretune.analysis.figures import pairs as figures_pairs
from pretune.analysis.figures import sensitivity as figures_sensitivity
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
from pretune.analysis.questions.importance import Importance, importance
from pretune.analysis.questions.interactions import interactions
from pretune.analysis.questions.ranks import ranks
from pretune.analysis.questions.savings import Saving, savings
from pretune.analysis.questions.searched import SearchRuns, origin, searches
from pretune.analysis.report import panels

MOST_FIGURES = 24  # figures of one group on the page; `--figures` writes all of them

Shown = TypeVar("Shown")


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


def group_of(
    title: str, note: str, items: Sequence[tuple[str, Shown]], draw: Callable[[Shown], go.Figure], most: int
) -> FigureGroup:
    """The first `most` of the (name, what to draw), and how many are left out in the note."""
    left = [name for name, _ in items[most:]]
    if left:
        note += (
            f" Not on this page: {len(left)} more ({few(left, 3)}); `pretune report FOLDER --figures svg` writes all."
        )
    return FigureGroup(title, note.strip(), tuple((name, draw(item)) for name, item in items[:most]))


def figure_groups(folder: Path, most: int = MOST_FIGURES) -> tuple[tuple[FigureGroup, ...], tuple[str, ...]]:
    """The figures of a study, at most `most` of each group, and notes on what could not be made. Raises ResultsError.

    A group says how many it leaves out.
    """
    header, results = load_header(folder), load(folder)
    asked = of_metrics(results, header.report.metrics)
    content = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    by_cell = [*_cells(asked, header), *_over_amounts(asked, header), *_interactions(asked, header, most)]
    by_cell += _order(asked, header)
    missing = missing_values(asked, header)
    groups = [
        group._replace(note=f"{group.note} {missing}".strip()) for group in (*by_cell, *_tradeoffs(asked, header, most))
    ]
    groups += [*_learning(load_curves(folder), header, most), *_alignment(results, header, most)]
    tried = load_searches(folder)
    groups += _targets(tried, content, most)
    found, notes = _tuned(searches(tried, content), content.get("ranges") or {}, most)
    found += _when(load_stage_runs(folder))
    return tuple(group for group in [*groups, *found] if group.figures), notes


def missing_values(results: pandas.DataFrame, header: StudyHeader) -> str:
    """A sentence on the cells of which replicates have no value, which figures of means cannot show; "" for none."""
    found = {(d.cell, d.short): None for m in header.report.metrics for d in cell_dots(results, header, m) if d.short}
    cells = few([f"{cell} ({short})" for cell, short in found], 8)
    return f"Replicates without a value are in no mean; how many have one: {cells}." if cells else ""


def write_figures(folder: Path, kind: str, inches: float | None = None) -> list[Path]:
    """Every figure of the report as a file in `figures/` (svg, pdf or png), and the image panels as PNG.

    With `inches`: so wide, with 8 pt type, for a paper.

    Raises ResultsError.
    """
    groups, _ = figure_groups(folder, sys.maxsize)
    shown = [(f"{group.title} {name}", figure) for group in groups for name, figure in group.figures]
    drawn = list(zip(_file_names([name for name, _ in shown]), (figure for _, figure in shown), strict=True))
    return [
        *figures.write_files(drawn, folder / "figures", kind, inches),
        *panels.write_sheets(folder, folder / "figures"),
    ]


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
        saved = {metric: savings(results, header, factor, metric) for metric in header.report.metrics}
        said = [saving.sentence for found in saved.values() for saving in found]
        note = f"Dotted: to the {factor} at which the baseline scores the same. {'; '.join(said)}." if said else ""
        drawn = [(m, amount_figure(results, header, factor, m, saved[m])) for m in header.report.metrics]
        yield FigureGroup(f"Over {factor}", note, tuple(drawn))


def amount_figure(
    results: pandas.DataFrame, header: StudyHeader, factor: str, metric: str, saved: Sequence[Saving] = ()
) -> go.Figure:
    """The metric over the amounts of a factor. Raises ResultsError."""
    theirs = published_by_cell(results, header, metric)
    return figures.amount_plot(curves.amount_curves(results, header, factor, metric, theirs), saved)


def _interactions(results: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    metrics = header.report.metrics
    lines = [found for metric in metrics for found in interactions(results, header, metric)]
    items = [(f"{found.metric}: {found.line_factor} over {found.axis_factor}", found) for found in lines]
    note = "Thin lines are seeds, thick ones their mean. Lines that run side by side: the factors do not interact."
    yield group_of("Interactions", note, items, figures_factors.interaction_plot, most)
    grids = [grid for metric in metrics for grid in pairs.factor_grids(results, header, metric)]
    note = (
        "Means over seeds and over the levels of the other factors. Where rows differ by a constant, the two factors "
    )
    note += "do not interact. Colours span six standard deviations over seeds, or more."
    yield group_of("Pairs of factors", note, _titled(grids), figures_pairs.heat_map, most)


def _order(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    found = [one for metric in header.report.metrics if (one := ranks(results, header, metric)) is not None]
    note = (
        "In which share of resampled seeds (one fewer than ran) a cell takes a rank. It describes these seeds; what is "
    )
    note += "shown to be worse stands in the table."
    short = dict.fromkeys(cell for one in found for cell in one.excluded)
    note += f" Not ranked, since replicates have no value: {few(list(short), 8)}." if short else ""
    drawn = tuple((one.metric, figures_factors.rank_plot(one)) for one in found)
    yield FigureGroup("How stable the order is", note, drawn)


def _titled(grids: Sequence[pairs.HeatMapGrid]) -> list[tuple[str, pairs.HeatMapGrid]]:
    return [(grid.title, grid) for grid in grids]


def _tradeoffs(results: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    made = [pairs.tradeoff(results, header, x, y) for x, y in combinations(header.report.metrics, 2)]
    items = [(f"{t.x_name} and {t.y_name}", t) for t in made if len(t.labels) > 1]
    note = "Filled: the Pareto front, the cells that no other equals or beats in both metrics by their means. "
    note += "Bars: one standard deviation over seeds."
    yield group_of("Trade-offs", note, items, figures_pairs.tradeoff_plot, most)


def _targets(tried: pandas.DataFrame, content: Mapping[str, Any], most: int) -> Iterator[FigureGroup]:
    """Searches for several targets, where the study has any."""
    if not tried.empty:
        tune = content.get("tune") or {}
        target, direction = tune.get("target", "val/jaccard"), tune.get("direction")
        made = pairs.search_tradeoffs(tried, target, direction, stored_definitions(content))
        items = [(name, item) for name, item in made.items() if len(item.labels) > 1]
        note = "One mark per configuration that a search tried; filled: the Pareto front of its targets."
        yield group_of("Several targets", note, items, figures_pairs.tradeoff_plot, most)


# ----------------------------------------------------------------------------------------------- curves, encoders


def _learning(rows: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    order = [cell.label for cell in header.cells]
    asked = sorted(curves.curve_metrics(rows), key=lambda key: (key[1] != "val/jaccard", key))

    def draw(key: tuple[str, str]) -> go.Figure:
        return figures.learning_plot(curves.learning_curves(rows, *key, order))

    items = [(f"{stage}: {metric}", (stage, metric)) for stage, metric in asked]
    note = "Of the confirm phase; click a name in the legend to hide its line."
    yield group_of("Learning curves", note, items, draw, most)


def _alignment(results: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    grids = pairs.cka_grids(pairs.cka_rows(results, header))
    note = "Debiased linear CKA of the encoders of two levels, layer by layer, mean over seeds: 1 is equal up to "
    note += "rotation and scale, 0 unrelated."
    yield group_of(
        "How alike encoders are", note, _titled(grids), lambda grid: figures_pairs.heat_map(grid, 0.0, 1.0), most
    )


# ----------------------------------------------------------------------------------------------------------- tuning


def _tuned(
    found: Sequence[SearchRuns], ranges: Mapping[str, Any], most: int
) -> tuple[list[FigureGroup], tuple[str, ...]]:
    said = origin(found)
    grids = [grid for search in found for grid in pairs.trial_grids(search, ranges)]
    lines = [(line.search, line) for search in found if len((line := pairs.parallel(search, ranges)).axes) > 2]
    ranked = ranked_searches(found, ranges)
    shares = [(item.search, item) for item in ranked if not item.note]
    note = (
        "How much of the variance of scores each parameter explains by itself, its 95 % interval, and the share that "
    )
    note += "chance reaches: only in 5 % of studies without any effect is a parameter of a figure filled. "
    groups = [
        group_of(
            "Sensitivity", _SENSITIVITY + said, panel_items(found, ranges), figures_sensitivity.sensitivity_plot, most
        ),
        group_of("Importance", note + said, shares, figures_sensitivity.importance_plot, most),
        group_of(
            "Pairs of parameters", "Mean score of the trials in each field. " + said, _titled(grids),
            figures_pairs.heat_map, most,
        ),
        group_of(
            "Every trial", "One line per trial; the last axis is its score. " + said, lines,
            figures_pairs.parallel_plot, most,
        ),
    ]  # fmt: skip
    return groups, _unranked(ranked)


_SENSITIVITY = (
    "One mark per trial, the mean over its search seeds, with their standard deviation as a bar; all panels "
    "of a figure have one scale. The curve takes each search's own level out; its band is a pointwise 95 % interval. "
    "What failed stands below its panel. "
)


def panel_items(found: Sequence[SearchRuns], ranges: Mapping[str, Any]) -> list[tuple[str, sensitivity.PanelGroup]]:
    """All searches of a stage together, and each by itself where colours no longer tell them apart."""
    together = sensitivity.panel_groups(found, ranges)
    items = [(f"all searches of {group.stage}, {group.metric}", group) for group in together]
    many = {group.stage for group in together if len(group.panels[0].searches) > figures_sensitivity.MOST_COLORED}
    alone = [search for search in found if search.stage in many]
    return items + [(search.name, group) for search in alone for group in sensitivity.panel_groups([search], ranges)]


def ranked_searches(found: Sequence[SearchRuns], ranges: Mapping[str, Any]) -> list[Importance]:
    """All searches of a stage and metric together, and each by itself."""
    groups: dict[tuple[str, str], list[SearchRuns]] = {}
    for search in found:
        groups.setdefault((search.stage, search.metric), []).append(search)
    named = [(f"all searches of {stage}, {metric}", part) for (stage, metric), part in groups.items()]
    named += [(one.name, [one]) for part in groups.values() if len(part) > 1 for one in part]
    return [importance(part, ranges, np.random.default_rng(0), name=name) for name, part in named]


def _unranked(ranked: Sequence[Importance]) -> tuple[str, ...]:
    """Say why parameters of some searches have no importance: one sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for item in ranked:
        if item.note and item.search not in reasons.get(item.note, ()):
            reasons.setdefault(item.note, []).append(item.search)
    return tuple(f"No importance: {why} ({_some(searches)})." for why, searches in reasons.items())


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
