"""Splits of a data set: test, validation, training, and the labelled part of training.

Pure functions of counts and seeds. Draws sort the raw 64-bit output of a bit generator, which numpy keeps stable
between versions (NEP 19), unlike `Generator.permutation`: a study resumed after an upgrade keeps its test set.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# One stream per purpose, so that equal seeds do not correlate draws.
LIMIT, TEST, VALIDATION, LABELS = 1, 2, 3, 4


class Split(NamedTuple):
    """Three disjoint index arrays that together hold every image once, each in the order of its draw."""

    train: IntArray
    val: IntArray
    test: IntArray


def draw_split(
    n: int, settings: schema.Split, seed: int, official_test: BoolArray | None, labels: IntArray | None = None
) -> Split:
    """Test by `settings.seed` alone (or the official list); of the rest, permuted by `seed`, validation comes first.

    `official_test` is (n,) True for test, used by `test: official`. Fractions are of all `n` images, rounded.
    `labels` (n,) are the image classes that `stratify` holds to their shares.
    `test: 0` leaves test empty, for a pool that is only pretrained on.
    Raises DataError where another part that must hold something would be empty, or `stratify` finds no classes.
    """
    strata = _strata(n, settings, labels)
    test = _test(n, settings, official_test, strata)
    rest = np.setdiff1d(np.arange(n, dtype=np.int64), test)
    drawn_by = seed if settings.val_fold is None else settings.seed  # folds are the same for all replicates
    rest = rest[_order(len(rest), VALIDATION, drawn_by, None if strata is None else strata[rest])]
    n_val = _count(n, settings.val)
    if settings.val_fold is not None:
        inside = _fold(settings.val_fold, None if strata is None else strata[rest], len(rest))
        rest, n_val = np.concatenate([rest[inside], rest[~inside]]), int(inside.sum())
    lacks_test = len(test) == 0 and (settings.test != 0 or settings.fold is not None)
    if lacks_test or n_val >= len(rest):
        n_train = max(len(rest) - n_val, 0)
        raise DataError(
            f"split: {n} images leave train {n_train}, val {n_val} (of the {len(rest)} that are not test), "
            f"test {len(test)}; train and test must not be empty: change split.test or split.val, or add images"
        )
    return Split(train=rest[n_val:], val=rest[:n_val], test=test)


def label_subset(train: IntArray, amount: float | int, seed: int, labels: IntArray | None = None) -> IntArray:
    """The images whose masks are used: a count (int) or a share (float, at least one image) of `train`.

    For one seed smaller amounts are prefixes of larger ones. The order of `train` does not matter. With `labels`,
    the classes (n,) of all images of the data set, every prefix holds each class by its share in `train`.
    Raises DataError for a count above len(train).
    """
    count = amount if isinstance(amount, int) else max(1, round(len(train) * amount))
    if count > len(train):
        raise DataError(f"labels: {count} labelled images asked for, but there are only {len(train)} training images")
    ordered = np.sort(train)
    return ordered[_order(len(train), LABELS, seed, None if labels is None else labels[ordered])[:count]]


def visible(split: Split, sees: Literal["train", "train+val", "all"]) -> IntArray:
    """Sorted indices of the images that pretraining may look at."""
    parts = {"train": [split.train], "train+val": [split.train, split.val], "all": list(split)}
    return np.sort(np.concatenate(parts[sees]))


def draw_subset(n: int, limit: int | None, seed: int) -> IntArray:
    """Sorted indices of a random `limit` out of `n`; all of them for None. Nested: a lower limit is a subset."""
    return np.sort(_permutation(n, LIMIT, seed)[:limit])


def _official(n: int, official_test: BoolArray | None) -> IntArray:
    if official_test is None:
        raise DataError("split: `test: official`, but this data set has no test list of its own; give a share or count")
    if official_test.shape != (n,):
        raise DataError(f"split: the official test list has shape {official_test.shape} for {n} images")
    return np.flatnonzero(official_test).astype(np.int64)


def _strata(n: int, settings: schema.Split, labels: IntArray | None) -> IntArray | None:
    if not settings.stratify:
        return None
    if labels is None:
        raise DataError("split: `stratify: true`, but the images of this data set have no classes; remove it")
    if labels.shape != (n,):
        raise DataError(f"split: the image classes have shape {labels.shape} for {n} images")
    return labels


def _test(n: int, settings: schema.Split, official_test: BoolArray | None, strata: IntArray | None) -> IntArray:
    if settings.test == "official":
        return _official(n, official_test)
    order = _order(n, TEST, settings.seed, strata)
    if settings.fold is None:
        return order[: _count(n, settings.test)]
    return order[_fold(settings.fold, None if strata is None else strata[order], n)]


def _fold(name: str, strata: IntArray | None, n: int) -> BoolArray:
    """(n,) whether a position of an order belongs to the fold, '2/5' the second of five.

    Folds take the positions in turn; with `strata` (n,) one stratum after the other, so that each fold holds every
    stratum by its share. In turn along the order itself they would not: in it the strata alternate too.
    """
    number, of = (int(part) for part in name.split("/"))
    inside = np.zeros(n, np.bool_)
    positions = np.arange(n) if strata is None else np.argsort(strata, kind="stable")
    inside[positions[number - 1 :: of]] = True
    return inside


def _order(n: int, stream: int, seed: int, strata: IntArray | None) -> IntArray:
    """A random order of 0..n-1; with `strata` (n,) one whose every prefix holds each stratum by its share.

    The r-th image of a stratum of m comes at (r + 1/2) / m of the way.
    """
    order = _permutation(n, stream, seed)
    if strata is None:
        return order
    way = np.empty(n)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata[order] == stratum)
        way[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(way, kind="stable")]


def _count(n: int, amount: float | int) -> int:
    return amount if isinstance(amount, int) else round(n * amount)


def _permutation(n: int, stream: int, seed: int) -> IntArray:
    """A random order of 0..n-1, (n,) int64."""
    raw = np.random.PCG64(np.random.SeedSequence([stream, seed])).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64)
