"""Which images are for what: test, validation, training, and the labelled part of training.

Pure functions of counts and seeds. Draws sort the raw 64-bit output of a bit generator, which numpy keeps stable
between versions (NEP 19), unlike `Generator.permutation`: a study resumed after an upgrade keeps its test set.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces import schema
from trainables.data.errors import DataError

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# One stream per purpose, so that equal seeds do not correlate draws.
LIMIT, TEST, VALIDATION, LABELS = 1, 2, 3, 4


class Split(NamedTuple):
    """Three disjoint index arrays that together hold every image once, each in the order of its draw."""

    train: IntArray
    val: IntArray
    test: IntArray


def draw_split(n: int, settings: schema.Split, seed: int, official_test: BoolArray | None) -> Split:
    """Test by `settings.seed` alone (or the official list); of the rest, permuted by `seed`, validation comes first.

    `official_test` is (n,) True for test, used by `test: official`. Fractions are of all `n` images, rounded.
    Raises DataError where a part that must hold something would be empty.
    """
    test = _official(n, official_test) if settings.test == "official" else _drawn(n, settings.test, settings.seed)
    rest = np.setdiff1d(np.arange(n, dtype=np.int64), test)
    rest = rest[_permutation(len(rest), VALIDATION, seed)]
    n_val = _count(n, settings.val)
    if len(test) == 0 or n_val >= len(rest):
        n_train = max(len(rest) - n_val, 0)
        raise DataError(
            f"split: {n} images leave train {n_train}, val {n_val} (of the {len(rest)} that are not test), "
            f"test {len(test)}; train and test must not be empty: change split.test or split.val, or add images"
        )
    return Split(train=rest[n_val:], val=rest[:n_val], test=test)


def label_subset(train: IntArray, amount: float | int, seed: int) -> IntArray:
    """The images whose masks are used: a count (int) or a share (float, at least one image) of `train`.

    For one seed smaller amounts are prefixes of larger ones. The order of `train` does not matter.
    Raises DataError for a count above len(train).
    """
    count = amount if isinstance(amount, int) else max(1, round(len(train) * amount))
    if count > len(train):
        raise DataError(f"labels: {count} labelled images asked for, but there are only {len(train)} training images")
    return np.sort(train)[_permutation(len(train), LABELS, seed)[:count]]


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


def _drawn(n: int, amount: float | int, seed: int) -> IntArray:
    return _permutation(n, TEST, seed)[: _count(n, amount)]


def _count(n: int, amount: float | int) -> int:
    return amount if isinstance(amount, int) else round(n * amount)


def _permutation(n: int, stream: int, seed: int) -> IntArray:
    """A random order of 0..n-1, (n,) int64."""
    raw = np.random.PCG64(np.random.SeedSequence([stream, seed])).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64)
