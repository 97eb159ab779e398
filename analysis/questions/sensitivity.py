"""Sensitivity to what was tuned: one panel per parameter, with the trials of all its searches on one scale.

The curve of a panel is least squares over the trials that went the whole way: a level of its own for each search (a
cell that is better everywhere does not tilt it) and one shape for all, a natural cubic spline, or the means of the
values where these are few. Its interval is pointwise, 95 %, Student's t. Failures are counted and placed beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, stats

from pretune.analysis.questions.searched import PARTIAL, SearchRuns, place_of, seed_std, varied
from pretune.analysis.statistics import ALPHA, Array

_FEW_VALUES = 6  # of a parameter: each has its own mean; beyond, a spline
_SPLINE_DEGREES = 4  # trials more than the fit has coefficients, at least
_POINTS = 60  # at which a spline is drawn


class SearchPoints(NamedTuple):
    """The trials of one search over one parameter."""

    search: str
    x: Array  # of trials that went the whole way, (trials,)
    score: Array
    std: Array  # over search seeds; NaN for one
    confirmed: NDArray[np.bool_]
    partial_x: Array  # raced out or stopped early, (partial,)
    partial_score: Array  # as far as they went
    failed: tuple[tuple[str, Array], ...]  # (ending, x of the trials that ended so)
    line: Curve | None  # through the means of its values, where these are few


class Curve(NamedTuple):
    """A response curve with its pointwise 95 % interval (NaN where nothing is left to estimate it), (points,)."""

    x: Array
    mean: Array
    low: Array
    high: Array


class Panel(NamedTuple):
    """One parameter: the trials of every search that varied it, and the curve over all of them."""

    parameter: str
    metric: str
    options: tuple[str, ...]  # of a choice, whose x is a position in it; () for numbers
    log: bool
    searches: tuple[SearchPoints, ...]
    curve: Curve | None
    failures: str  # '7 of 32 diverged, all above 0.008'; "" without any


class PanelGroup(NamedTuple):
    """The panels of the searches of one stage in one metric."""

    stage: str  # pretrain or finetune
    metric: str
    panels: tuple[Panel, ...]


def panel_groups(found: Sequence[SearchRuns], ranges: Mapping[str, Any]) -> tuple[PanelGroup, ...]:
    """One panel for every parameter that some search varied, by stage and metric."""
    groups: dict[tuple[str, str], list[SearchRuns]] = {}
    for search in found:
        groups.setdefault((search.stage, search.metric), []).append(search)
    made = (PanelGroup(*key, panels(part, ranges)) for key, part in groups.items())
    return tuple(group for group in made if group.panels)


def panels(found: Sequence[SearchRuns], ranges: Mapping[str, Any]) -> tuple[Panel, ...]:
    """One panel for every parameter that some of these searches varied."""
    names = dict.fromkeys(name for search in found for name in varied(search))
    return tuple(_panel([s for s in found if name in varied(s)], name, ranges, len(names)) for name in names)


def _panel(found: Sequence[SearchRuns], name: str, ranges: Mapping[str, Any], parameters: int) -> Panel:
    described = ranges.get(name, {})
    options = tuple(str(option) for option in described.get("choice", ()))
    log = bool(described.keys() & {"log_uniform", "log_int"})
    points = tuple(_points(search, name, bool(options), log) for search in found)
    group = np.repeat(np.arange(len(points)), [len(one.x) for one in points])
    x, score = (np.concatenate([getattr(one, key) for one in points]) for key in ("x", "score"))
    curve = response_curve(x, score, group, bool(options), log)
    return Panel(name, found[0].metric, options, log, points, curve, failures(points, options, parameters))


def _points(search: SearchRuns, name: str, options: bool, log: bool) -> SearchPoints:
    whole = [trial for trial in search.trials if name in trial.values]
    whole.sort(key=lambda trial: (place_of(trial.values[name]), trial.score))
    lost = [(place_of(trial.values[name]), trial) for trial in search.lost if name in trial.values]
    partial = [(x, trial.score) for x, trial in lost if trial.ending == PARTIAL]
    partial_x, partial_score = np.array(partial, np.float64).reshape(-1, 2).T
    endings = dict.fromkeys(trial.ending for _, trial in lost if trial.ending != PARTIAL)
    failed = tuple((end, np.array([x for x, trial in lost if trial.ending == end], np.float64)) for end in endings)
    x = np.array([place_of(trial.values[name]) for trial in whole], np.float64)
    score = np.array([trial.score for trial in whole], np.float64)
    return SearchPoints(
        search.name, x, score,
        np.array([seed_std(trial) for trial in whole], np.float64),
        np.array([trial.confirmed for trial in whole], np.bool_),
        partial_x, partial_score, failed,
        response_curve(x, score, np.zeros(len(x), np.intp), options, log) if len(np.unique(x)) <= _FEW_VALUES else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ curve


def response_curve(x: Array, y: Array, group: NDArray[np.intp], options: bool, log: bool) -> Curve | None:
    """The mean over groups of y over x, `(trials,)` each, with one shape for all groups; None for too few trials."""
    place = np.log(x) if log else x
    values = np.unique(place)
    if len(values) < 2:
        return None
    knots, levels = knots_of(place, options)
    groups = np.unique(group)
    if not levels and len(y) < len(knots) + len(groups) - 1 + _SPLINE_DEGREES:
        return None
    at = values if levels else np.linspace(values[0], values[-1], _POINTS)
    basis, shown = (basis_of(where, knots, levels) for where in (place, at))
    offsets = (group[:, None] == groups[:-1]).astype(np.float64) - (group == groups[-1])[:, None]  # sum to 0
    mean, half = _least_squares(np.hstack([basis, offsets]), y, shown)
    return Curve(np.exp(at) if log else at, mean, mean - half, mean + half)


def knots_of(place: Array, options: bool) -> tuple[Array, bool]:
    """Knots of a basis over these places, and whether they are all the values there are."""
    values = np.unique(place)
    if options or len(values) <= _FEW_VALUES:
        return values, True
    knots = max(3, min(8, int(math.log2(max(1, len(place))))))  # 4 from 16 trials on, 5 from 32, 6 from 64
    return np.quantile(values, np.linspace(0, 1, knots)), False


def basis_of(place: Array, knots: Array, levels: bool) -> Array:
    """(places, knots): each column is 1 at its own knot and 0 at the others, so coefficients are values there."""
    if levels:
        return np.asarray(place[:, None] == knots, np.float64)
    return np.asarray(interpolate.CubicSpline(knots, np.eye(len(knots)), bc_type="natural")(place), np.float64)


def _least_squares(design: Array, y: Array, shown: Array) -> tuple[Array, Array]:
    """Fitted values at the rows of `shown`, which has the first columns of `design`, and the half of their interval."""
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ y
    degrees = len(y) - int(np.linalg.matrix_rank(design))
    mean, kept = shown @ coefficients[: shown.shape[1]], inverse[: shown.shape[1], : shown.shape[1]]
    if degrees < 1:
        return mean, np.full(len(mean), math.nan)
    variance = float(np.sum((y - design @ coefficients) ** 2)) / degrees
    error = np.sqrt(np.maximum(0.0, np.einsum("ij,jk,ik->i", shown, kept, shown)) * variance)
    return mean, float(stats.t.ppf(1 - ALPHA / 2, degrees)) * error


# --------------------------------------------------------------------------------------------------------- failures


def failures(points: Sequence[SearchPoints], options: tuple[str, ...], parameters: int) -> str:
    """'7 of 32 diverged, all above 0.008': how many trials ended how, and where; "" where none did.

    That failures lie on one side is said where a Mann-Whitney test of their values against the others' has p below
    5 % over `parameters` panels (Bonferroni); else their range is.
    """
    going = np.concatenate([part for one in points for part in (one.x, one.partial_x)])
    lost: dict[str, list[Array]] = {}
    for one in points:
        for ending, x in one.failed:
            lost.setdefault(ending, []).append(x)
    ended = {ending: np.concatenate(parts) for ending, parts in lost.items()}
    total = len(going) + sum(map(len, ended.values()))
    tests = parameters * max(1, len(ended))
    return "; ".join(
        f"{len(x)} of {total} {ending}, {_by_option(x, going, options) if options else _where(x, going, tests)}"
        for ending, x in ended.items()
    )


def _by_option(failed: Array, going: Array, options: tuple[str, ...]) -> str:
    lost, kept = Counter(failed.tolist()), Counter(going.tolist())
    return ", ".join(f"{lost[i]} of {lost[i] + kept[i]} with {options[int(i)]}" for i in sorted(lost))


def _where(failed: Array, going: Array, tests: int) -> str:
    if len(going) and tests * float(stats.mannwhitneyu(failed, going).pvalue) <= ALPHA:
        if failed.min() > going.max():
            return f"all above {going.max():.2g}"
        if failed.max() < going.min():
            return f"all below {going.min():.2g}"
        high = float(np.median(failed)) > float(np.median(going))
        return f"more often at {'high' if high else 'low'} values ({failed.min():.2g} to {failed.max():.2g})"
    first, last = f"{failed.min():.2g}", f"{failed.max():.2g}"
    return f"at {first}" if first == last else f"from {first} to {last}"
