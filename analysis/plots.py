"""The figures of the report as plotly figures, for notebooks and papers; each takes a study's folder.

    from pretune.analysis import plots
    plots.sensitivity("runs/x").show()
    plots.save(plots.labels("runs/x"), "labels.pdf", inches=3.4)

Every function raises ResultsError, in one sentence, where the folder cannot be read or holds nothing to draw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import plotly.graph_objects as go

from pretune.analysis.figures import budget as _budget
from pretune.analysis.figures import contour as _contour
from pretune.analysis.figures import factors as _factors
from pretune.analysis.figures import figures as _figures
from pretune.analysis.figures import pairs as _pairs
from pretune.analysis.figures import sensitivity as _sensitivity
from pretune.analysis.figures import tasks as _tasks
from pretune.analysis.figures.captions import alternative_of, caption_of
from pretune.analysis.figures.theme import for_print
from pretune.analysis.load.results import ResultsError, StudyHeader, load, load_header
from pretune.analysis.load.runs import load_stage_runs
from pretune.analysis.load.searches import load_searches
from pretune.analysis.questions import curves as _curves
from pretune.analysis.questions import differences as _differences
from pretune.analysis.questions.budget import budgets
from pretune.analysis.questions.contour import FEWEST, surfaces
from pretune.analysis.questions.costs import Costs, cost_tradeoffs, search_costs
from pretune.analysis.questions.dots import cell_dots
from pretune.analysis.questions.importance import ImportanceMethod
from pretune.analysis.questions.importance import importance as _importance
from pretune.analysis.questions.interactions import interactions as _interactions
from pretune.analysis.questions.pairs import parallel
from pretune.analysis.questions.ranks import ranks as _ranks
from pretune.analysis.questions.savings import savings as _savings
from pretune.analysis.questions.searched import SearchRuns, searches
from pretune.analysis.questions.sensitivity import panel_groups
from pretune.analysis.questions.tasks import TaskComparison, over_tasks

Folder = Path | str


def sensitivity(study: Folder, stage: str = "finetune", cell: str = "", columns: int = 1) -> go.Figure:
    """One panel per searched parameter, with the trials of all searches of a stage (finetune, pretrain).

    `cell`: only the searches whose name holds it. Panels stand in `columns`.
    """
    found, ranges = _searches(study, stage, cell)
    groups = panel_groups(found, ranges)
    if not groups:
        raise ResultsError(f"{study}: no parameter of {stage} took more than one value")
    return _sensitivity.sensitivity_plot(groups[0], columns)


def importance(
    study: Folder, stage: str = "finetune", cell: str = "", method: ImportanceMethod = "main effects", seed: int = 0
) -> go.Figure:
    """The importance of each searched parameter, beside what chance reaches.

    `method`: main effects (all searches of the stage together), or Optuna's PED-ANOVA or fANOVA, which rank within one
    search: name it by `cell`. `seed` is of the permutations.
    """
    found, ranges = _searches(study, stage, cell)
    if method != "main effects" and len(found) > 1:
        names = ", ".join(search.name for search in found)
        raise ResultsError(f"{method} ranks within one search: name one by `cell`, of {names}")
    shown = _importance(found, ranges, np.random.default_rng(seed), method)
    if shown.note:
        raise ResultsError(f"{study}: no importance: {shown.note}")
    return _sensitivity.importance_plot(shown)


def cells(study: Folder, metric: str = "") -> go.Figure:
    """Every replicate of every cell, with the mean and its 95 % t interval."""
    results, header, name = _study(study, metric)
    return _figures.dot_plot(cell_dots(results, header, name), name)


def differences(study: Folder, metric: str = "") -> go.Figure:
    """Paired differences to the baseline with their 95 % t intervals."""
    results, header, name = _study(study, metric)
    return _figures.difference_plot(_differences.differences(results, header, name))


def labels(study: Folder, metric: str = "", factor: str = "") -> go.Figure:
    """The metric over the amounts of a factor (labels, where there are), and how many the baseline takes to equal."""
    results, header, name = _study(study, metric)
    over = factor or _curves.amount_factor(header)
    if over is None:
        raise ResultsError(f"{study}: no factor has amounts as its levels: there is no curve over one")
    saved = _savings(results, header, over, name)
    return _figures.amount_plot(_curves.amount_curves(results, header, over, name), saved)


def interactions(study: Folder, metric: str = "", columns: int = 2) -> tuple[go.Figure, ...]:
    """One figure for each pair of factors: seeds as thin lines, a facet for each setting of the other factors."""
    results, header, name = _study(study, metric)
    found = _interactions(results, header, name)
    if not found:
        raise ResultsError(f"{study}: fewer than two factors have two levels: nothing can interact")
    return tuple(_factors.interaction_plot(one, columns) for one in found)


def order(study: Folder, metric: str = "") -> go.Figure:
    """In which share of resampled seeds each cell takes each rank."""
    results, header, name = _study(study, metric)
    found = _ranks(results, header, name)
    if found is None:
        raise ResultsError(f"{study}: ranks take a metric with a direction, two cells and three seeds common to them")
    return _factors.rank_plot(found)


def budget(study: Folder, stage: str = "finetune", cell: str = "", columns: int = 2) -> go.Figure:
    """The best of each search over its trials, and what more random trials would bring."""
    found = budgets(_searches(study, stage, cell)[0])
    if not found:
        raise ResultsError(f"{study}: a curve over trials takes a search with three trials, one of them with a score")
    return _budget.budget_plot(found, columns)


def contour(study: Folder, stage: str = "finetune", cell: str = "") -> tuple[go.Figure, ...]:
    """One figure for each pair of ranges of a search over which a surface predicts the trials left aside."""
    found, ranges = _searches(study, stage, cell)
    drawn = [surface for search in found for surface in surfaces(search, ranges)]
    if not drawn:
        enough = f"{FEWEST} finished trials of one search, and a surface that predicts trials left aside"
        raise ResultsError(f"{study}: a contour takes two ranges, {enough}")
    return tuple(map(_contour.contour_plot, drawn))


def trials(study: Folder, stage: str = "finetune", cell: str = "") -> go.Figure:
    """Parallel coordinates of the first search that fits: a line for each trial."""
    found, ranges = _searches(study, stage, cell)
    shown = parallel(found[0], ranges)
    if len(shown.axes) < 3:
        raise ResultsError(f"{study}: {found[0].name} varied fewer than two parameters: see `sensitivity`")
    return _pairs.parallel_plot(shown)


def cost(study: Folder, metric: str = "") -> go.Figure:
    """The metric of every cell against the seconds of one replicate, with the Pareto front."""
    results, header, name = _study(study, metric)
    return _costs(study, cost_tradeoffs(results, load_stage_runs(Path(study)), header), name)


def search_cost(study: Folder, stage: str = "finetune", cell: str = "") -> go.Figure:
    """The configurations of the first search that fits: score against seconds, with the Pareto front."""
    found, ranges = _searches(study, stage, cell)
    stored = load(study), load_stage_runs(Path(study)), load_header(study)
    return _costs(study, search_costs(found, ranges, *stored), "")


def _costs(study: Folder, found: Costs, metric: str) -> go.Figure:
    shown = [one for name, one in found.shown if metric in ("", name)]
    if not shown:
        raise ResultsError(f"{study}: {' '.join(found.notes) or 'no seconds are known of two cells or configurations'}")
    return _pairs.tradeoff_plot(shown[0])


def profiles(study: Folder, metric: str = "") -> go.Figure:
    """Over several data sets: the share of runs above each score, for each setting."""
    found = _over_tasks(study, metric)
    if found.profiles is None:
        raise ResultsError(f"{study}: {found.notes[0]}")
    return _tasks.profile_plot(found.profiles)


def iqm(study: Folder, metric: str = "") -> go.Figure:
    """Over several data sets: the interquartile mean of each setting, with its stratified bootstrap interval."""
    found = _over_tasks(study, metric)
    if found.profiles is None:
        raise ResultsError(f"{study}: {found.notes[0]}")
    return _tasks.iqm_plot(found.profiles)


def rank_differences(study: Folder, metric: str = "") -> go.Figure:
    """Over several data sets: mean ranks with Nemenyi's critical difference."""
    found = _over_tasks(study, metric)
    if found.ranks is None:
        raise ResultsError(f"{study}: {found.notes[-1]}")
    return _tasks.rank_difference_plot(found.ranks)


def _over_tasks(study: Folder, metric: str) -> TaskComparison:
    results, header, name = _study(study, metric)
    found = over_tasks(results, header, name)
    if found is None:
        raise ResultsError(f"{study}: no factor goes through several data sets with two settings of each")
    return found


def save(figure: go.Figure, path: Folder, inches: float = 7.0) -> Path:
    """Write a figure `inches` wide with 8 pt type: svg and pdf hold vectors, png 200 dots per inch. Returns the path.

    3.4 inches are a column of two, 7 a page. Raises ResultsError where kaleido or a browser is missing.
    """
    path = Path(path)
    (written,) = _figures.write_files([(path.stem, figure)], path.parent, path.suffix.removeprefix("."), inches)
    return written


def _study(folder: Folder, metric: str) -> tuple[pandas.DataFrame, StudyHeader, str]:
    header = load_header(folder)
    return load(folder), header, metric or header.report.metrics[0]


def _searches(folder: Folder, stage: str, cell: str) -> tuple[list[SearchRuns], dict[str, Any]]:
    load_header(folder)  # says what is wrong with the folder
    content = json.loads((Path(folder) / "study.json").read_text(encoding="utf-8"))
    found = searches(load_searches(Path(folder)), content)
    kept = [search for search in found if search.stage == stage and cell in search.name]
    if not kept:
        named = "; ".join(search.name for search in found) or "none"
        raise ResultsError(f"{folder}: no search of {stage} with {cell!r} in its name (searches: {named})")
    first = [search for search in kept if search.metric == kept[0].metric]
    return first, content.get("ranges") or {}


__all__ = [
    "alternative_of", "budget", "caption_of", "cells", "contour", "cost", "differences", "for_print", "importance",
    "interactions", "iqm", "labels", "order", "profiles", "rank_differences", "save", "search_cost", "sensitivity",
    "trials",
]  # fmt: skip
