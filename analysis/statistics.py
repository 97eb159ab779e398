"""Statistics for a handful of seeds: arrays in, NamedTuples out.

Axes: `(runs,)` is one value per replicate; two such arrays are paired, entry i of both coming from seed i;
`(runs, tasks)` is one column per task (or cell), rows again paired by seed. Values must be finite: a failed replicate
is excluded, and said so, by the caller. Random numbers come from the Generator that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats has the same functions, and takes a second to import

Array = NDArray[np.float64]

ALPHA = 0.05  # of every test that a table marks
MOST_RUNS_TO_ENUMERATE = 22  # 4 million sign patterns, 32 MB
_MOST_SEEDS = 1_000_000


class MeanStd(NamedTuple):
    mean: float
    std: float  # sample standard deviation (ddof 1); NaN for one run
    n: int


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    difference: float  # mean of a - b
    low: float
    high: float
    p: float  # two-sided
    n: int  # pairs


class SignFlip(NamedTuple):
    difference: float
    p: float  # two-sided, exact
    smallest_possible_p: float  # with this many pairs, whatever their values
    n: int


class EffectSize(NamedTuple):
    d: float  # Cohen's d_z: mean difference over the standard deviation of the differences
    g: float  # d with Hedges' small-sample correction; NaN below three pairs, where the correction does not exist
    n: int


class Equivalence(NamedTuple):
    difference: float
    low: float  # the 1 - 2 alpha interval: equivalent exactly where it lies inside (-margin, margin)
    high: float
    p: float  # the larger of the two one-sided p-values
    equivalent: bool
    n: int


class BestSet(NamedTuple):
    p: Array  # (cells,) smallest Holm-adjusted one-sided p of "another is better"; NaN where none could be tested
    not_distinguishable: NDArray[np.bool_]  # (cells,) True where no other cell is shown to be better
    pairs: NDArray[np.int64]  # (cells, cells) runs that two cells have in common
    tested: NDArray[np.bool_]  # (cells, cells) True where the two were compared: fewer runs or no spread allow no test


def mean_std(values: ArrayLike) -> MeanStd:
    """Mean and sample standard deviation of `(runs,)`; one run has no standard deviation (NaN)."""
    runs = _runs(values)
    std = 0.0 if _no_spread(runs) else float(runs.std(ddof=1)) if len(runs) > 1 else math.nan
    return MeanStd(float(runs.mean()), std, len(runs))


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t interval for the mean of `(runs,)`, assuming normal runs.

    NaN bounds for one run, and for runs without any spread: copies of one run say nothing of what another would give.
    """
    runs = _runs(values)
    mean, std, n = mean_std(runs)
    half = math.nan if std == 0 else _t_half_width(std / math.sqrt(n), n - 1, confidence)
    return Interval(mean, mean - half, mean + half)


def percentile_interval(
    values: ArrayLike, generator: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Percentile bootstrap of the mean of `(runs,)`, for many values: images of a test set, not seeds.

    With three values it covers in three of four cases where it should in 95 of 100 (`benchmarks/coverage.py`).
    """
    runs = _runs(values)
    means = runs[generator.integers(len(runs), size=(resamples, len(runs)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(runs.mean()), float(low), float(high))


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Paired t-test and interval of a - b, both `(runs,)` in the same seed order, assuming normal differences.

    One pair has neither interval nor p (NaN). Differences without any spread come from replicates that are copies of
    one another (all seed streams held): they have no interval, and p is 1 where they are all zero, NaN, not 0, where
    they are not.
    """
    differences = _differences(a, b)
    mean, low, high = t_interval(differences, confidence)
    error = mean_std(differences).std / math.sqrt(len(differences))
    return PairedDifference(mean, low, high, _two_sided_p(mean, error, len(differences) - 1), len(differences))


def sign_flip_test(a: ArrayLike, b: ArrayLike) -> SignFlip:
    """Exact paired permutation test: the share of all 2^n sign patterns whose |mean| reaches the observed one.

    Assumes only that a difference is as likely to be positive as negative (symmetric about 0). Compare
    `smallest_possible_p` with alpha before reading p: below six pairs it cannot reach 0.05.
    Raises ValueError above 22 pairs, where the patterns are too many to enumerate.
    """
    differences = _differences(a, b)
    if len(differences) > MOST_RUNS_TO_ENUMERATE:
        raise ValueError(f"an exact test takes at most {MOST_RUNS_TO_ENUMERATE} pairs, not {len(differences)}")
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    tolerance = 1e-12 * np.abs(differences).sum()  # sums that are equal on paper differ in their last digit
    p = float(np.mean(np.abs(sums) >= abs(differences.sum()) - tolerance))
    return SignFlip(float(differences.mean()), p, smallest_possible_p(len(differences)), len(differences))


def smallest_possible_p(n: int) -> float:
    """The smallest two-sided p an exact sign-flip test can give with n pairs: 2 / 2^n."""
    return math.ldexp(1.0, 1 - n)


def cohen_d(a: ArrayLike, b: ArrayLike) -> EffectSize:
    """Paired effect size d_z = mean(a - b) / std(a - b), and Hedges' g with the exact (gamma) correction.

    Source: Hedges 1981, J(m) = Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2)) with m = n - 1 degrees of freedom.
    NaN for one pair, and where the differences have no spread.
    """
    mean, std, n = mean_std(_differences(a, b))
    d = mean / std if std > 0 else math.nan
    return EffectSize(d, d * _hedges_correction(n - 1), n)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, in the order given. NaN (no test possible) stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError("p-values lie between 0 and 1")
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def tost(a: ArrayLike, b: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Paired equivalence by two one-sided t-tests (Schuirmann 1987): is |mean(a - b)| below `margin`?

    `margin` is in the metric's units and fixed before looking. Needs two pairs; with one, p is NaN and nothing is
    shown. Differences without any spread, zero included, come from copies of one run: no test (NaN).
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, not {margin}")
    differences = _differences(a, b)
    n = len(differences)
    mean, low, high = t_interval(differences, 1 - 2 * alpha)
    error = mean_std(differences).std / math.sqrt(n)
    p = max(_upper_p(mean + margin, error, n - 1), _upper_p(margin - mean, error, n - 1))
    return Equivalence(mean, low, high, p, bool(p < alpha), n)


def t_test_power(difference: float, std: float, n: int, alpha: float = 0.05, paired: bool = True) -> float:
    """Probability that a two-sided t-test with n seeds finds a true `difference`.

    `std` is that of the paired differences, or of one arm where unpaired (n seeds in each arm). Noncentral t.
    """
    degrees = n - 1 if paired else 2 * n - 2
    shift = abs(difference) / std * math.sqrt(n if paired else n / 2)
    critical = float(special.stdtrit(degrees, 1 - alpha / 2))
    # SciPy's noncentral t gives NaN far out in a tail: the wrong side's is below 1e-12 from a shift of 7 on.
    wrong_side = 1 - float(special.nctdtr(degrees, -shift, critical)) if shift < 7 else 0.0
    right_side = 1 - float(special.nctdtr(degrees, shift, critical))
    return 1.0 if math.isnan(right_side) else min(1.0, right_side + wrong_side)


def seeds_needed(difference: float, std: float, power: float = 0.8, alpha: float = 0.05, paired: bool = True) -> int:
    """Fewest seeds (per arm, where unpaired) with which a true `difference` is found with probability `power`.

    `std` as in `t_test_power`. Raises ValueError for a difference of 0, a std that is not positive, or above a million.
    """
    _check_power(std, power, alpha)
    if difference == 0:
        raise ValueError("no number of seeds finds a difference of 0")
    low, high = 1, 2
    while t_test_power(difference, std, high, alpha, paired) < power:
        low, high = high, high * 2
        if high > _MOST_SEEDS:
            raise ValueError(f"a difference of {difference} at a std of {std} takes more than a million seeds")
    while high - low > 1:  # enough at `high`, too few at `low`
        middle = (low + high) // 2
        low, high = (low, middle) if t_test_power(difference, std, middle, alpha, paired) >= power else (middle, high)
    return high


def detectable_difference(n: int, std: float, power: float = 0.8, alpha: float = 0.05, paired: bool = True) -> float:
    """The true difference that n seeds (per arm, where unpaired) find with probability `power`, in units of `std`'s."""
    _check_power(std, power, alpha)
    if n < 2:
        raise ValueError(f"a t-test takes at least two seeds, not {n}")
    low, high = 0.0, 1.0
    while t_test_power(high, 1.0, n, alpha, paired) < power:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:  # power rises with the difference
        middle = (low + high) / 2
        low, high = (low, middle) if t_test_power(middle, 1.0, n, alpha, paired) >= power else (middle, high)
    return high * std


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of all scores `(runs, tasks)`: the mean without the lowest and the highest quarter.

    Source: Agarwal et al. 2021 (rliable); a quarter is rounded down to whole scores.
    """
    ordered = np.sort(_scores(scores), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def iqm_interval(
    scores: ArrayLike, generator: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> Interval:
    """Percentile interval of the IQM by stratified bootstrap: runs are redrawn within each task of `(runs, tasks)`.

    Source: Agarwal et al. 2021. With very few runs it is too narrow (three runs: about the range of the three).
    """
    table = _scores(scores)
    runs, tasks = table.shape
    drawn = generator.integers(runs, size=(resamples, runs, tasks))
    replayed = np.sort(table[drawn, np.arange(tasks)].reshape(resamples, -1), axis=1)
    cut = runs * tasks // 4
    estimates = replayed[:, cut : runs * tasks - cut].mean(axis=1)
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(iqm(table), float(low), float(high))


def nadeau_bengio(a: ArrayLike, b: ArrayLike, test_over_train: float, confidence: float = 0.95) -> PairedDifference:
    """Paired t-test corrected for replicates whose training and test images overlap (random re-splits).

    The variance of the mean is s^2 (1/n + test/train) in place of s^2 / n (Nadeau and Bengio 2003).
    `test_over_train` is the number of test images over that of training images. Only for studies that redraw the test
    set; Pretune's own keep it fixed.
    """
    if not test_over_train > 0:
        raise ValueError(f"test_over_train must be positive, not {test_over_train}")
    mean, std, n = mean_std(_differences(a, b))
    error = std * math.sqrt(1 / n + test_over_train)
    half = _t_half_width(error, n - 1, confidence)
    return PairedDifference(mean, mean - half, mean + half, _two_sided_p(mean, error, n - 1), n)


def not_distinguishable_from_best(
    scores: ArrayLike, alpha: float = 0.05, maximize: bool = True, may_show: Sequence[bool] | None = None
) -> BestSet:
    """The columns of `(runs, cells)` that no other column is shown to beat; NaN where a run of a cell is missing.

    One-sided paired t-tests of every cell against every other, each over the runs that both have, Holm-corrected over
    all of them. A cell is excluded where some other is shown to be better. So in at most alpha of such sets any cell
    that is truly best, ties included, is excluded, however many tie: no test leans on which cell came out best. A pair
    with fewer than two common runs is not tested, and neither is one whose differences are equal and not zero (copies).

    `may_show`: (cells,) those that can show another to be worse, by default all; one whose worst runs may be missing
    cannot.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or np.isinf(table).any():
        raise ValueError(f"expected finite or missing values of shape (runs, cells), not shape {table.shape}")
    table = table if maximize else -table
    better = np.array([_better_than(table, cell) for cell in range(table.shape[1])]).reshape(2 * [table.shape[1]])
    adjusted = holm(better.ravel()).reshape(better.shape)
    if may_show is not None:
        adjusted = np.where(np.isnan(adjusted) | np.asarray(may_show, np.bool_), adjusted, 1.0)
    p = np.fmin.reduce(adjusted, axis=1, initial=np.nan)
    finished = np.isfinite(table).astype(np.int64)
    return BestSet(p, ~(p < alpha), finished.T @ finished, np.isfinite(better))


def _better_than(table: Array, cell: int) -> Array:
    """(cells,) one-sided p of "this one is better than `cell`" over the runs that both have; NaN without a test."""
    common = np.isfinite(table) & np.isfinite(table[:, [cell]])
    n = common.sum(axis=0)
    differences = np.where(common, table - table[:, [cell]], 0.0)
    mean = differences.sum(axis=0) / np.maximum(n, 1)
    squares = np.where(common, differences - mean, 0.0) ** 2
    error = np.sqrt(squares.sum(axis=0) / np.maximum(n - 1, 1) / np.maximum(n, 1))
    scale = np.where(common, np.maximum(np.abs(table), np.abs(table[:, [cell]])), 0.0).max(axis=0, initial=0.0)
    spread = error > 4 * np.finfo(np.float64).eps * scale  # else rounding, see `_differences`
    p = special.stdtr(np.maximum(n - 1, 1), -mean / np.where(spread, error, 1.0))
    p = np.where(spread, p, np.where((differences == 0).all(axis=0), 1.0, np.nan))
    return np.where((n > 1) & (np.arange(len(n)) != cell), p, np.nan)


# ---------------------------------------------------------------------------------------------------- shared parts


def _finite(values: ArrayLike, axes: int, shape: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes or array.size == 0:
        raise ValueError(f"expected a non-empty array {shape}, not one of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite: leave failed replicates out")
    return array


def _runs(values: ArrayLike) -> Array:
    return _finite(values, 1, "(runs,)")


def _scores(scores: ArrayLike) -> Array:
    return _finite(scores, 2, "(runs, tasks)")


def _differences(a: ArrayLike, b: ArrayLike) -> Array:
    first, second = _runs(a), _runs(b)
    if len(first) != len(second):
        raise ValueError(f"paired values must be equally many, not {len(first)} and {len(second)}")
    differences = first - second
    # Equal differences on paper leave a spread of rounding errors, which a t-test would take for real.
    scale = max(np.abs(first).max(), np.abs(second).max())
    same = np.ptp(differences) <= 4 * np.finfo(np.float64).eps * scale
    return np.full_like(differences, differences[0]) if same else differences


def _no_spread(runs: Array) -> bool:
    """Several runs that are all equal, the last digit apart."""
    return len(runs) > 1 and bool(np.ptp(runs) <= 4 * np.finfo(np.float64).eps * np.abs(runs).max())


def _t_half_width(error: float, degrees: int, confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return float(special.stdtrit(degrees, (1 + confidence) / 2)) * error if degrees > 0 else math.nan


def _two_sided_p(mean: float, error: float, degrees: int) -> float:
    if mean == 0 and error == 0:
        return 1.0
    return float(2 * special.stdtr(degrees, -abs(mean) / error)) if error > 0 else math.nan


def _upper_p(mean: float, error: float, degrees: int) -> float:
    """One-sided p of "the true mean is above 0"."""
    return float(special.stdtr(degrees, -mean / error)) if error > 0 else math.nan


def _hedges_correction(degrees: int) -> float:
    if degrees < 2:
        return math.nan
    log = special.gammaln(degrees / 2) - special.gammaln((degrees - 1) / 2)
    return float(np.exp(log) / math.sqrt(degrees / 2))


def _check_power(std: float, power: float, alpha: float) -> None:
    if not std > 0:
        raise ValueError(f"std must be positive, not {std}")
    if not 0 < alpha < power < 1:
        raise ValueError(f"0 < alpha < power < 1 must hold, not alpha {alpha} and power {power}")
