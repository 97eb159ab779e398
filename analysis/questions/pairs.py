"""Two things at a time: factors, tuned parameters, metrics, encoders. Numbers only, no drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas
from numpy.typing import NDArray

from pretune.analysis.load.replicates import independent_values, replicate_results
from pretune.analysis.load.results import StoredCell, StudyHeader, known_definition
from pretune.analysis.questions.searched import ScoredTrial, SearchRuns, place_of, seed_std, varied
from pretune.analysis.statistics import Array
from pretune.search_spaces.metrics import Direction, MetricDefinition, sign_of

_MOST_BINS = 4
_MOST_SPREAD, _LINE_WIDTH = 0.035, 0.008  # of lines side by side, as shares of an axis
_FEWEST_IN_PARTS = (10, 25)  # trials from which on thirds, and fifths, are told apart
_FEWEST_SEEDS, _RESAMPLES = 3, 400  # of how stable a front is
SPAN = 6.0  # standard deviations that a colour scale spans at least
_SQRT_TRIALS_PER_BIN = 1.5  # so many bins per parameter that a field holds two trials or so


class HeatMapGrid(NamedTuple):
    """A number for every pair of two lists of names; NaN where there is none."""

    title: str
    row_name: str
    column_name: str
    value_name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Array  # (rows, columns)
    counts: NDArray[np.int64]  # (rows, columns), of what each number is the mean
    span: float = 0.0  # least width of the colour scale: six standard deviations over seeds, so that noise looks alike


class Tradeoff(NamedTuple):
    """Two metrics of every cell, and the cells that no other beats in both."""

    x_name: str
    y_name: str
    labels: tuple[str, ...]
    x: Array  # means over seeds, (cells,)
    y: Array
    x_std: Array  # NaN for one seed
    y_std: Array
    front: NDArray[np.bool_]
    stays: Array | None = None  # share of resampled seeds in which a cell is on the front; None below three seeds
    log: bool = False  # whether x has a logarithmic axis


class Axis(NamedTuple):
    """One axis of parallel coordinates: a parameter, or the score."""

    name: str
    ticks: tuple[tuple[float, str], ...]  # (place in [0, 1], label)
    places: Array  # (trials,) in [0, 1]
    lost: Array  # (lost,) of trials that failed; NaN on the axis of scores

    @property
    def spread(self) -> Array:
        """Places at which lines are drawn: those that share one lie side by side around it, so that each is seen."""
        every, shown = np.concatenate([self.places, self.lost]), np.concatenate([self.places, self.lost])
        for place in np.unique(every[np.isfinite(every)]):
            same = np.flatnonzero(every == place)
            half = min(_MOST_SPREAD, _LINE_WIDTH * (len(same) - 1) / 2)
            shown[same] += np.linspace(-half, half, len(same))
        return shown


class Parallel(NamedTuple):
    """The trials of one search, each a line over the axes; the score is the last axis."""

    search: str
    axes: tuple[Axis, ...]
    rank: Array  # (trials,) share of trials that are worse, in [0, 1]: 1 is the best
    groups: tuple[tuple[str, NDArray[np.intp]], ...]  # (what their scores are, trials), the worst first; ties together
    endings: tuple[str, ...]  # of the trials that failed, (lost,)


# -------------------------------------------------------------------------------------------------------- factors


def factor_grids(results: pandas.DataFrame, header: StudyHeader, metric: str) -> tuple[HeatMapGrid, ...]:
    """The mean of cell means for every pair of factors with two levels or more, over the levels of the other factors.

    Only those settings of the other factors count that have a value at every place of the grid, so that all places
    are means over the same; a pair that has no such setting has no grid.
    """
    values = _finished(results, header, metric)
    means = {label: np.mean(part) for label, part in values.items() if part}
    names = [name for name, levels in header.factors.items() if len(levels) > 1]
    grids = (_factor_grid(header, metric, means, *pair) for pair in combinations(names, 2))
    span = SPAN * pooled_std([_std(part) for part in values.values()])
    return tuple(grid._replace(span=span) for grid in grids if grid is not None)


def pooled_std(stds: Sequence[float]) -> float:
    """Root of the mean variance of those that are known; 0 without any."""
    known = [std for std in stds if math.isfinite(std)]
    return float(np.sqrt(np.mean(np.square(known)))) if known else 0.0


def _factor_grid(
    header: StudyHeader, metric: str, means: Mapping[str, Any], row: str, column: str
) -> HeatMapGrid | None:
    by_rest: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}
    for cell in header.cells:
        if cell.label in means and row in cell.levels and column in cell.levels:
            found = by_rest.setdefault(_rest(cell, (row, column)), {})
            found[cell.levels[row], cell.levels[column]] = float(means[cell.label])
    places = list(product(header.factors[row], header.factors[column]))
    whole = [found for found in by_rest.values() if all(place in found for place in places)]
    if not whole:
        return None
    shape = (len(header.factors[row]), len(header.factors[column]))
    values = np.array([np.mean([found[place] for found in whole]) for place in places], np.float64).reshape(shape)
    title = f"{metric}: {row} and {column}"
    counts = np.full(shape, len(whole), np.int64)
    return HeatMapGrid(title, row, column, metric, header.factors[row], header.factors[column], values, counts)


def _rest(cell: StoredCell, without: Sequence[str]) -> tuple[str, ...]:
    return tuple(level for name, level in sorted(cell.levels.items()) if name not in without)


def _finished(results: pandas.DataFrame, header: StudyHeader, metric: str) -> dict[str, list[float]]:
    found = replicate_results(results, header, metric)
    return {label: list(independent_values(part).values()) for label, part in found.items()}


# -------------------------------------------------------------------------------------------------------- parameters


def trial_grids(search: SearchRuns, ranges: Mapping[str, Any]) -> tuple[HeatMapGrid, ...]:
    """The mean score of the trials in every field of two parameters, each cut into equally filled bins or its options.

    From the sampler's own trials: `searched.BIASED` holds for it.
    """
    names = [name for name in varied(search) if all(name in trial.values for trial in search.trials)]
    span = SPAN * pooled_std([seed_std(trial) for trial in search.trials])
    return tuple(_trial_grid(search, ranges, *pair)._replace(span=span) for pair in combinations(names, 2))


def _trial_grid(search: SearchRuns, ranges: Mapping[str, Any], row: str, column: str) -> HeatMapGrid:
    (rows, row_at), (columns, column_at) = (_bins(search.trials, name, ranges.get(name, {})) for name in (row, column))
    total, counts = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)), np.int64)
    scores = [trial.score for trial in search.trials]
    np.add.at(total, (row_at, column_at), scores)
    np.add.at(counts, (row_at, column_at), 1)
    values = np.divide(total, counts, out=np.full(total.shape, math.nan), where=counts > 0)
    return HeatMapGrid(f"{search.name}: {row} and {column}", row, column, search.metric, rows, columns, values, counts)


def _bins(
    trials: Sequence[ScoredTrial], name: str, described: Mapping[str, Any]
) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Names of the bins of a parameter, and the bin of each trial; equal values always share one."""
    x = np.array([place_of(trial.values[name]) for trial in trials], np.float64)
    values = np.unique(x)
    most = max(2, min(_MOST_BINS, round(_SQRT_TRIALS_PER_BIN * len(x) ** 0.5 / 2)))
    if "choice" in described:
        return tuple(str(described["choice"][int(value)]) for value in values), np.searchsorted(values, x)
    if len(values) <= most:
        return tuple(f"{value:.3g}" for value in values), np.searchsorted(values, x)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, most + 1)[1:-1]))
    at = np.searchsorted(edges, x, side="left")
    kept, at = np.unique(at, return_inverse=True)
    parts = [x[at == number] for number in range(len(kept))]
    return tuple(f"{part.min():.2g} to {part.max():.2g}" for part in parts), at


def parallel(search: SearchRuns, ranges: Mapping[str, Any]) -> Parallel:
    """Every trial of a search over the parameters that all of them have and that took more than one value."""
    every = [trial.values for trial in search.trials] + [trial.values for trial in search.lost]
    names = [name for name in varied(search) if all(name in values for values in every)]
    count = len(search.trials)
    axes = [_axis(name, [values[name] for values in every], ranges.get(name, {}), count) for name in names]
    score = np.array([trial.score for trial in search.trials], np.float64)
    better = -score if search.minimize else score
    rank = np.array([(better < value).mean() for value in better], np.float64)
    lost = np.full(len(search.lost), math.nan)
    of_score = _axis(search.metric, list(score), {}, count)._replace(lost=lost)
    endings = tuple(trial.ending for trial in search.lost)
    return Parallel(search.name, (*axes, of_score), rank, _by_rank(score, rank), endings)


def _by_rank(score: Array, rank: Array) -> tuple[tuple[str, NDArray[np.intp]], ...]:
    """Trials by score: each alone, from 10 on thirds, from 25 on fifths; equal scores stay together."""
    count = len(score)
    parts = {3: ("worst", "middle", "best"), 5: ("worst", "fourth", "third", "second", "best")}
    if count < _FEWEST_IN_PARTS[0]:
        return tuple((_scores_of(score[rank == r]), np.flatnonzero(rank == r)) for r in np.unique(rank))
    number = 5 if count >= _FEWEST_IN_PARTS[1] else 3
    group = np.minimum((rank * number).astype(int), number - 1)
    what = {3: "third", 5: "fifth"}[number]
    found = [(parts[number][g], np.flatnonzero(group == g)) for g in range(number)]
    return tuple((f"{name} {what}: {_scores_of(score[of])}", of) for name, of in found if len(of))


def _scores_of(score: Array) -> str:
    low, high = f"{score.min():.3g}", f"{score.max():.3g}"
    trials = f" ({len(score)} trials)" if len(score) > 1 else ""
    return (low if low == high else f"{low} to {high}") + trials


def _axis(name: str, values: Sequence[Any], described: Mapping[str, Any], trials: int) -> Axis:
    """All values, the first `trials` of which are those of trials with a score."""
    x = np.array([place_of(value) for value in values], np.float64)
    log = bool(described.keys() & {"log_uniform", "log_int"}) and bool((x > 0).all())
    shown = np.log(x) if log else x
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    every = (shown - low) / (high - low) if high > low else np.full(len(x), 0.5)
    places, lost = every[:trials], every[trials:]
    if "choice" in described:
        options = {float(place): str(described["choice"][int(value)]) for place, value in zip(every, x, strict=True)}
        return Axis(name, tuple(sorted(options.items())), places, lost)
    middle = math.exp((low + high) / 2) if log else (low + high) / 2
    labels = [(0.0, float(x.min())), (0.5, middle), (1.0, float(x.max()))] if high > low else [(0.5, float(x[0]))]
    return Axis(name, tuple((place, f"{value:.3g}") for place, value in labels), places, lost)


# -------------------------------------------------------------------------------------------------------- metrics


def tradeoff(results: pandas.DataFrame, header: StudyHeader, x_name: str, y_name: str) -> Tradeoff:
    """Two metrics of the confirm phase, for the cells that have both."""
    xs, ys = (
        {label: independent_values(part) for label, part in replicate_results(results, header, name).items()}
        for name in (x_name, y_name)
    )
    labels = [cell.label for cell in header.cells if xs[cell.label] and ys[cell.label]]
    x, y = ({label: of[label] for label in labels} for of in (xs, ys))
    return tradeoff_of((x_name, y_name), x, y, [header.definition(name).direction for name in (x_name, y_name)])


def tradeoff_of(
    names: tuple[str, str],
    xs: Mapping[str, Mapping[int, float]],
    ys: Mapping[str, Mapping[int, float]],
    directions: Sequence[Direction | None],
) -> Tradeoff:
    """Cell -> seed -> value, of the same cells in the same order."""
    x, y = (np.array([np.mean(list(of.values())) for of in part.values()], np.float64) for part in (xs, ys))
    x_std, y_std = (np.array([_std(list(of.values())) for of in part.values()], np.float64) for part in (xs, ys))
    front, stays = _front(x, y, directions), _stays(xs, ys, directions)
    return Tradeoff(*names, tuple(xs), x, y, x_std, y_std, front, stays)


def _stays(
    xs: Mapping[str, Mapping[int, float]], ys: Mapping[str, Mapping[int, float]], directions: Sequence[Direction | None]
) -> Array | None:
    """In which share of resampled seeds, the same for all cells, each is on the front; None below three seeds."""
    every = [set(of) for of in (*xs.values(), *ys.values())]
    seeds = sorted(set.intersection(*every)) if every else []
    if len(seeds) < _FEWEST_SEEDS or None in directions:
        return None
    x, y = (np.array([[of[seed] for seed in seeds] for of in part.values()], np.float64) for part in (xs, ys))
    drawn = np.random.default_rng(0).integers(len(seeds), size=(_RESAMPLES, len(seeds)))
    fronts = [_front(x[:, draw].mean(axis=1), y[:, draw].mean(axis=1), directions) for draw in drawn]
    return np.asarray(np.mean(fronts, axis=0), np.float64)


def search_tradeoffs(
    searches: pandas.DataFrame,
    target: str,
    asked: Direction | None = None,
    stored: Mapping[str, MetricDefinition] = MappingProxyType({}),
) -> dict[str, Tradeoff]:
    """The first target of every search for several, and each further one: "SEARCH: TARGET" -> the trials.

    `searches` is searches.parquet: search, told, value (of `target`), chosen, and also.NAME for each further target.
    `asked` is the direction of `target` where the study gives one, `stored` holds its definitions of metrics.
    """
    found = {}
    for name, part in searches[searches["told"] == "complete"].groupby("search", sort=False):
        for column in (str(column) for column in part.columns if str(column).startswith("also.")):
            whole = part[part[["value", column]].notna().all(axis=1)]
            x, y = (whole[key].to_numpy(np.float64) for key in ("value", column))
            also, none = column.removeprefix("also."), np.full(len(whole), math.nan)
            directions = asked or _direction(target, stored), _direction(also, stored)
            labels = tuple(map(str, whole["chosen"]))
            found[f"{name}: {also}"] = Tradeoff(target, also, labels, x, y, none, none, _front(x, y, directions))
    return found


def pareto(scores: Array) -> NDArray[np.bool_]:
    """Return the rows of (items, metrics), higher is better, that no other row equals or beats everywhere and beats
    somewhere. Equal rows stand or fall together."""
    beaten = [bool(((scores >= row).all(axis=1) & (scores > row).any(axis=1)).any()) for row in scores]
    return ~np.array(beaten, np.bool_)


def _direction(metric: str, stored: Mapping[str, MetricDefinition]) -> Direction | None:
    return known_definition(stored, metric).direction


def _front(x: Array, y: Array, directions: Sequence[Direction | None]) -> NDArray[np.bool_]:
    """Return the items on the Pareto front; none where a metric has no direction, as a similarity has none."""
    if None in directions:
        return np.zeros(len(x), np.bool_)
    return pareto(np.stack([x, y], axis=1) * [sign_of(direction) for direction in directions if direction])


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


# ----------------------------------------------------------------------------------------------------------- CKA


def cka_rows(results: pandas.DataFrame, header: StudyHeader) -> pandas.DataFrame:
    """The values of pairwise probes in a study's results, as level_a, level_b, layer and value.

    A pair stands in the results twice, under either cell and with the other's level in the stage's name
    (probe:NAME/LEVEL), so that the two rows of one stage run name both levels. Where it matters at which levels of the
    other factors two encoders were compared, the layer says so.
    """
    probes = results[(results["phase"] == "confirm") & results["stage"].str.match("probe:[^/]+/")]
    found = probes[probes["metric"] != ""]
    levels = {str(key): sorted(set(part["stage"])) for key, part in found.groupby("fingerprint")}
    place = {level: i for i, level in enumerate(level for names in header.factors.values() for level in names)}
    rows = []
    for row in found.to_dict("records"):
        both = levels[str(row["fingerprint"])]
        if len(both) == 2 and row["stage"] == both[0]:  # the other row says the same
            probe = str(row["stage"]).removeprefix("probe:").partition("/")[0]
            pair = sorted((stage.partition("/")[2] for stage in both), key=lambda level: place.get(level, -1))
            layer = str(row["metric"]).removeprefix(f"probe/{str(row['stage']).removeprefix('probe:')}/")
            held = _held(header, str(row["cell"]), set(pair))
            rows.append((*pair, probe, layer, held, row["fingerprint"], row["value"]))
    rows.sort(key=lambda row: (place.get(row[0], -1), place.get(row[1], -1)))
    frame = pandas.DataFrame(rows, columns=["level_a", "level_b", "probe", "layer", "held", "fingerprint", "value"])
    alone = frame.groupby("fingerprint")["held"].transform("nunique") == 1
    where = frame["held"].where(alone, "").map(lambda held: f" ({held})" if held else "")
    return frame.assign(layer=frame["layer"] + " of " + frame["probe"] + where)


def _held(header: StudyHeader, label: str, compared: set[str]) -> str:
    """The levels of a cell but that of the factor whose levels are compared."""
    cell = next(cell for cell in header.cells if cell.label == label)
    factor = next((name for name, levels in header.factors.items() if compared <= set(levels)), "")
    return " ".join(f"{name}={level}" for name, level in cell.levels.items() if name != factor)


def cka_grids(pairs: pandas.DataFrame) -> tuple[HeatMapGrid, ...]:
    """Matrices of centred kernel alignment, one per layer in order of appearance (P3, Figure 7).

    `pairs` has the columns level_a, level_b, layer and value; rows of one pair (several seeds) are averaged, and a pair
    that was measured one way round stands in both places. The diagonal is empty unless it was measured.
    """
    levels = tuple(dict.fromkeys(map(str, chain.from_iterable(zip(pairs["level_a"], pairs["level_b"], strict=True)))))
    layers = tuple(dict.fromkeys(pairs["layer"]))
    return tuple(_cka_grid(str(layer), pairs[pairs["layer"] == layer], levels) for layer in layers)


def _cka_grid(layer: str, pairs: pandas.DataFrame, levels: tuple[str, ...]) -> HeatMapGrid:
    found: dict[tuple[str, str], list[float]] = {}
    for a, b, value in zip(pairs["level_a"].astype(str), pairs["level_b"].astype(str), pairs["value"], strict=True):
        if math.isfinite(value):
            found.setdefault((a, b), []).append(float(value))
    both = [[found.get((a, b)) or found.get((b, a)) or [] for b in levels] for a in levels]
    values = np.array([[np.mean(part) if part else math.nan for part in row] for row in both], np.float64)
    counts = np.array([[len(part) for part in row] for row in both], np.int64)
    return HeatMapGrid(layer, "", "", "linear CKA", levels, levels, values, counts)
