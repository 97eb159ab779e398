"""Figures of a study's searches, in the order of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas

from pretune.analysis.figures import budget as figures_budget
from pretune.analysis.figures import contour as figures_contour
from pretune.analysis.figures import pairs as figures_pairs
from pretune.analysis.figures import sensitivity as figures_sensitivity
from pretune.analysis.load.results import StudyHeader, stored_definitions
from pretune.analysis.questions import pairs, sensitivity
from pretune.analysis.questions.budget import Budget, budgets
from pretune.analysis.questions.contour import surfaces
from pretune.analysis.questions.costs import search_costs
from pretune.analysis.questions.importance import Importance, importance
from pretune.analysis.questions.searched import SearchRuns, origin, searches
from pretune.analysis.report.groups import FigureGroup, group_of


class StoredStudy(NamedTuple):
    """All that figures of searches are made from."""

    header: StudyHeader
    results: pandas.DataFrame
    stage_runs: pandas.DataFrame
    tried: pandas.DataFrame  # searches.parquet
    content: Mapping[str, Any]  # study.json


def search_groups(study: StoredStudy, most: int) -> tuple[list[FigureGroup], tuple[str, ...]]:
    """At most `most` figures of each group, and notes on what is not drawn."""
    found, ranges = searches(study.tried, study.content), study.content.get("ranges") or {}
    said = origin(found)
    ranked = ranked_searches(found, ranges)
    costs = search_costs(found, ranges, study.results, study.stage_runs, study.header)
    groups = [
        *_targets(study, most),
        _sensitivity(found, ranges, said, most),
        _importance(ranked, said, most),
        *_pairs(found, ranges, said, most),
        _parallel(found, ranges, said, most),
        _budget(found, most),
        group_of("Score against cost, of configurations", _COST, costs.shown, figures_pairs.tradeoff_plot, most),
    ]
    return groups, (*_unranked(ranked), *costs.notes)


def _targets(study: StoredStudy, most: int) -> Iterator[FigureGroup]:
    """Searches for several targets, where the study has any."""
    if not study.tried.empty:
        tune = study.content.get("tune") or {}
        target, direction = tune.get("target", "val/jaccard"), tune.get("direction")
        made = pairs.search_tradeoffs(study.tried, target, direction, stored_definitions(study.content))
        items = [(name, item) for name, item in made.items() if len(item.labels) > 1]
        note = "One mark per configuration that the search tried. Filled marks: the Pareto front of its targets."
        yield group_of("Several targets", note, items, figures_pairs.tradeoff_plot, most)


# ------------------------------------------------------------------------------------------------------- parameters

_SENSITIVITY = (
    "All panels of a figure have the same scale. The curve corrects for the level of each search. Failed trials are "
    "listed below their panel. "
)
_IMPORTANCE = (
    "Share of the variance of scores that each parameter explains by itself. If no parameter has an effect, a figure "
    "has a filled mark in 5 % of studies. "
)
_COST = (
    "Cost is the mean seconds of one stage run of the searched stage, over search seeds. Shown only if a tuned "
    "parameter changes it."
)


def _sensitivity(found: Sequence[SearchRuns], ranges: Mapping[str, Any], said: str, most: int) -> FigureGroup:
    items = panel_items(found, ranges)
    return group_of("Sensitivity", _SENSITIVITY + said, items, figures_sensitivity.sensitivity_plot, most)


def panel_items(found: Sequence[SearchRuns], ranges: Mapping[str, Any]) -> list[tuple[str, sensitivity.PanelGroup]]:
    """All searches of a stage together, and each by itself where colours no longer tell them apart."""
    together = sensitivity.panel_groups(found, ranges)
    items = [(f"all searches of {group.stage}, {group.metric}", group) for group in together]
    many = {group.stage for group in together if len(group.panels[0].searches) > figures_sensitivity.MOST_COLORED}
    alone = [search for search in found if search.stage in many]
    return items + [(search.name, group) for search in alone for group in sensitivity.panel_groups([search], ranges)]


def _importance(ranked: Sequence[Importance], said: str, most: int) -> FigureGroup:
    shares = [(item.search, item) for item in ranked if not item.note]
    return group_of("Importance", _IMPORTANCE + said, shares, figures_sensitivity.importance_plot, most)


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


# ------------------------------------------------------------------------------------------------------------ trials


def _pairs(found: Sequence[SearchRuns], ranges: Mapping[str, Any], said: str, most: int) -> Iterator[FigureGroup]:
    """A contour for two ranges where the trials allow one, else a heat map."""
    smooth = [surface for search in found for surface in surfaces(search, ranges)]
    drawn = {(surface.search, frozenset((surface.x_name, surface.y_name))) for surface in smooth}
    grids = [
        (grid.title, grid)
        for search in found
        for grid in pairs.trial_grids(search, ranges)
        if (search.name, frozenset((grid.row_name, grid.column_name))) not in drawn
    ]
    items = [(f"{one.search}: {one.x_name} and {one.y_name}", one) for one in smooth]
    yield group_of("Two ranges", said, items, figures_contour.contour_plot, most)
    note = "Mean score of the trials in each square. " + said
    yield group_of("Pairs of parameters", note, grids, figures_pairs.heat_map, most)


def _parallel(found: Sequence[SearchRuns], ranges: Mapping[str, Any], said: str, most: int) -> FigureGroup:
    lines = [(line.search, line) for search in found if len((line := pairs.parallel(search, ranges)).axes) > 2]
    return group_of("Every trial", said, lines, figures_pairs.parallel_plot, most)


def budget_items(found: Sequence[SearchRuns]) -> list[tuple[str, tuple[Budget, ...]]]:
    """The searches of a stage and metric on one figure, on several where they are many."""
    groups: dict[tuple[str, str], list[SearchRuns]] = {}
    for search in found:
        groups.setdefault((search.stage, search.metric), []).append(search)
    items: list[tuple[str, tuple[Budget, ...]]] = []
    for (stage, metric), part in groups.items():
        made, step = budgets(part), figures_budget.MOST
        for first in range(0, len(made), step):
            which = f", from number {first + 1} on" if first else ""
            items.append((f"searches of {stage}, {metric}{which}", made[first : first + step]))
    return items


def _budget(found: Sequence[SearchRuns], most: int) -> FigureGroup:
    note = "Should the search have been longer? Only random trials can tell, because more of them would be like these."
    return group_of("Budget", note, budget_items(found), figures_budget.budget_plot, most)
