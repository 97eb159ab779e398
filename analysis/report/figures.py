"""Figures that a study's results allow, in the order of the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pandas
import plotly.graph_objects as go

from pretune.analysis.digits import few
from pretune.analysis.figures import factors as figures_factors
from pretune.analysis.figures import figures
from pretune.analysis.figures import pairs as figures_pairs
from pretune.analysis.figures import tasks as figures_tasks
from pretune.analysis.figures.captions import alternative_of, caption_of
from pretune.analysis.figures.timeline import timeline_plot
from pretune.analysis.load.curves import load_curves
from pretune.analysis.load.replicates import is_probe
from pretune.analysis.load.results import PublishedValue, StudyHeader, load, load_header
from pretune.analysis.load.runs import load_stage_runs
from pretune.analysis.load.searches import load_searches
from pretune.analysis.load.timeline import timeline
from pretune.analysis.questions import curves, pairs, tables
from pretune.analysis.questions.costs import cost_tradeoffs
from pretune.analysis.questions.differences import differences_of
from pretune.analysis.questions.dots import cell_dots
from pretune.analysis.questions.facts import SIGNS
from pretune.analysis.questions.image_bootstrap import out_of_range
from pretune.analysis.questions.interactions import interactions
from pretune.analysis.questions.ranks import ranks
from pretune.analysis.questions.savings import Saving, savings
from pretune.analysis.questions.tasks import over_tasks
from pretune.analysis.report import panels
from pretune.analysis.report.groups import MOST_FIGURES, FigureGroup, group_of
from pretune.analysis.report.tuning import StoredStudy, search_groups

CAPTIONS = "captions.md"


def figure_groups(folder: Path, most: int = MOST_FIGURES) -> tuple[tuple[FigureGroup, ...], tuple[str, ...]]:
    """The figures of a study, at most `most` of each group, and notes on what they leave out. Raises ResultsError.

    A group says how many it leaves out.
    """
    header, results, stage_runs = load_header(folder), load(folder), load_stage_runs(folder)
    asked = of_metrics(results, header.report.metrics)
    content = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    by_cell = [*_cells(asked, header), *_over_amounts(asked, header), *_interactions(asked, header, most)]
    over, notes = _tasks(asked, header)
    by_cell += [*_order(asked, header), *over]
    costs = cost_tradeoffs(asked, stage_runs, header)
    cost = group_of("Score against cost", _COST, costs.shown, figures_pairs.tradeoff_plot, most)
    groups = [*by_cell, *_tradeoffs(asked, header, most), cost]
    groups += [*_learning(load_curves(folder), header, most), *_alignment(results, header, most)]
    found, more = search_groups(StoredStudy(header, results, stage_runs, load_searches(folder), content), most)
    groups += [*found, *_when(stage_runs)]
    absent = missing_values(asked, header)
    return tuple(group for group in groups if group.figures), (*absent, *notes, *costs.notes, *more)


_COST = "Cost is the seconds of one replicate: its fine-tuning and all its pretrainings, including shared ones."


def missing_values(results: pandas.DataFrame, header: StudyHeader) -> tuple[str, ...]:
    """A sentence on the cells of which replicates have no value, which figures of means cannot show."""
    found = {(d.cell, d.short): None for m in header.report.metrics for d in cell_dots(results, header, m) if d.short}
    cells = few([f"{cell} ({short})" for cell, short in found], 8)
    return (f"Means leave out replicates without a value. Replicates with a value: {cells}.",) if cells else ()


def write_figures(folder: Path, kind: str, inches: float | None = None) -> list[Path]:
    """Every figure of the report as a file in `figures/` (svg, pdf or png), the image panels as PNG, and captions.md.

    With `inches`: so wide, with 8 pt type, for a paper. Raises ResultsError.
    """
    groups, _ = figure_groups(folder, sys.maxsize)
    shown = [(f"{group.title} {name}", figure) for group in groups for name, figure in group.figures]
    drawn = list(zip(_file_names([name for name, _ in shown]), (figure for _, figure in shown), strict=True))
    written = figures.write_files(drawn, folder / "figures", kind, inches)
    (folder / "figures" / CAPTIONS).write_text(_captions(written, [figure for _, figure in drawn]), encoding="utf-8")
    return [*written, *panels.write_sheets(folder, folder / "figures")]


def _captions(paths: Sequence[Path], drawn: Sequence[go.Figure]) -> str:
    """The caption of every file, and its alternative text for a web page."""
    parts = [
        f"**{path.name}** {caption_of(figure)}\n\nAlternative text: {alternative_of(figure)}\n"
        for path, figure in zip(paths, drawn, strict=True)
    ]
    return "\n".join(parts)


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
        note = "Times when the study did not run are left out."
        yield FigureGroup("Timeline of stage runs", note, (("all lanes", figure),))


# ---------------------------------------------------------------------------------------------------------- cells


def _cells(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    theirs = {metric: published_by_cell(results, header, metric) for metric in header.report.metrics}
    dots = {m: cell_dots(results, header, m) for m in header.report.metrics}
    drawn = [(m, figures.dot_plot(dots[m], m, theirs[m])) for m in header.report.metrics]
    note = "Nested seeds are averaged first."
    outside = dict.fromkeys(
        said
        for metric, of in dots.items()
        for said in out_of_range([cell.mean[1:] for cell in of], header.definition(metric))
    )
    note += "".join(
        f" {said[0].upper() + said[1:]}." for said in (*outside, *tables.differences_from_published(header))
    )
    yield FigureGroup("Every seed", note, tuple(drawn))
    compared = tuple(
        (table.metric, figures.difference_plot(table))
        for table in differences_of(results, header).values()
        if table.rows
    )
    yield FigureGroup("Differences to the baseline", "", compared)


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
        several = sum(map(bool, saved.values())) > 1
        said = [f"{metric}: " * several + saving.sentence for metric, found in saved.items() for saving in found]
        said += tables.differences_from_published(header)
        note = f"{'; '.join(said)}." if said else ""
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
    note = "Parallel lines: the factors do not interact."
    yield group_of("Interactions", note, items, figures_factors.interaction_plot, most)
    grids = [grid for metric in metrics for grid in pairs.factor_grids(results, header, metric)]
    note = "Means over seeds and over the levels of the other factors. If rows differ by a constant, the two factors "
    note += "do not interact."
    yield group_of("Pairs of factors", note, _titled(grids), figures_pairs.heat_map, most)


def _order(results: pandas.DataFrame, header: StudyHeader) -> Iterator[FigureGroup]:
    found = [one for metric in header.report.metrics if (one := ranks(results, header, metric)) is not None]
    note = "Share of resamples (each of one seed fewer than ran) in which a cell takes a rank. "
    note += "This describes these seeds. The table shows which cells are clearly worse."
    short = dict.fromkeys(cell for one in found for cell in one.excluded)
    note += f" Not ranked, because replicates have no value: {few(list(short), 8)}." if short else ""
    drawn = tuple((one.metric, figures_factors.rank_plot(one)) for one in found)
    yield FigureGroup("Stability of the order", note, drawn)


def _tasks(results: pandas.DataFrame, header: StudyHeader) -> tuple[list[FigureGroup], tuple[str, ...]]:
    """Settings over several data sets, where the study has them, and why some figure is not drawn."""
    made = [(metric, found) for metric in header.report.metrics if (found := over_tasks(results, header, metric))]
    shown = [(metric, found.profiles) for metric, found in made if found.profiles is not None]
    ranked = [(metric, found.ranks) for metric, found in made if found.ranks is not None]
    groups = [
        group_of(f"Over data sets: {title}", note, items, draw, MOST_FIGURES)
        for title, note, items, draw in (
            ("profiles", "A higher line is better: more runs reach each score.", shown, figures_tasks.profile_plot),
            ("interquartile mean", "This mean leaves out the lowest and the highest quarter of runs.", shown,
             figures_tasks.iqm_plot),
        )
    ]  # fmt: skip
    note = "Settings joined by a bar are not shown to differ."
    groups.append(group_of("Over data sets: ranks", note, ranked, figures_tasks.rank_difference_plot, MOST_FIGURES))
    return groups, tuple(note for _, found in made for note in found.notes)


def _titled(grids: Sequence[pairs.HeatMapGrid]) -> list[tuple[str, pairs.HeatMapGrid]]:
    return [(grid.title, grid) for grid in grids]


def _tradeoffs(results: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    made = [pairs.tradeoff(results, header, x, y) for x, y in combinations(header.report.metrics, 2)]
    items = [(f"{t.x_name} and {t.y_name}", t) for t in made if len(t.labels) > 1]
    note = "A cell is on the Pareto front if no other cell equals or beats its means in both metrics."
    yield group_of("Trade-offs", note, items, figures_pairs.tradeoff_plot, most)


# ----------------------------------------------------------------------------------------------- curves, encoders


def _learning(rows: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    order = [cell.label for cell in header.cells]
    asked = sorted(curves.curve_metrics(rows), key=lambda key: (key[1] != "val/jaccard", key))

    def draw(key: tuple[str, str]) -> go.Figure:
        return figures.learning_plot(curves.learning_curves(rows, *key, order))

    items = [(f"{stage}: {metric}", (stage, metric)) for stage, metric in asked]
    note = "Stage runs of the confirm phase. Click a name in the legend to hide its line."
    yield group_of("Learning curves", note, items, draw, most)


def _alignment(results: pandas.DataFrame, header: StudyHeader, most: int) -> Iterator[FigureGroup]:
    grids = pairs.cka_grids(pairs.cka_rows(results, header))
    note = (
        "Similarity (debiased linear CKA) of the encoders of two levels, layer by layer, mean over seeds: 1 is equal "
    )
    note += "up to rotation and scale, 0 unrelated."
    yield group_of(
        "Similarity of encoders", note, _titled(grids), lambda grid: figures_pairs.heat_map(grid, 0.0, 1.0), most
    )
