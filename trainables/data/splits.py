"""Splits of a data set: test, validation, training, and the labelled part of training.

Pure functions of counts and seeds. Draws sort the raw 64-bit output of a bit generator, which numpy keeps stable
between versions (NEP 19), unlike `Generator.permutation`: a study resumed after an upgrade keeps its test set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import TILE, ImageSet, Pixels

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# One stream per purpose, so that equal seeds do not correlate draws.
LIMIT, TEST, VALIDATION, LABELS = 1, 2, 3, 4


class Split(NamedTuple):
    """Three disjoint index arrays that together hold every image once, each in the order of its draw."""

    train: IntArray
    val: IntArray
    test: IntArray


class Marks(NamedTuple):
    """Facts of each image beside its class, for splits that ask for them."""

    names: Sequence[str] = ()
    parts: Sequence[str | None] | None = None  # train, val, test or the name of a fold, by `split.file`
    groups: Sequence[str | None] | None = None  # by a column of `split.file`
    strata: IntArray | None = None  # (n,) by mask classes: see `pixel_strata`


NOTHING_KNOWN = Marks()


def marks_for(split: schema.Split, data: ImageSet) -> Marks:
    """Return what the split asks for of each image. Strata by pixels read every mask. Raises DataError for a stream."""
    strata = None
    if split.stratify == "pixels" and data.masks is not None:
        if data.streamed:
            raise DataError("split: `stratify: pixels` reads every mask first; set `source: resident`")
        strata = pixel_strata(data.masks, len(data.classes))
    return Marks(data.names if split.group or split.val == "official" else (), data.parts, data.groups, strata)


def draw_split(
    n: int,
    settings: schema.Split,
    seed: int,
    official_test: BoolArray | None,
    labels: IntArray | None = None,
    marks: Marks = NOTHING_KNOWN,
) -> Split:
    """Test by `settings.seed` alone (or the official list); of the rest, permuted by `seed`, validation comes first.

    `official_test` is (n,) True for test, used by `test: official`. Fractions are of all `n` images, rounded.
    `labels` (n,) are the image classes that `stratify` holds to their shares. Images of one `group` stay together:
    then parts are as near to the shares asked for as whole groups come.
    `test: 0` leaves test empty, for a pool that is only pretrained on.
    Raises DataError where another part that must hold something would be empty, or `stratify` finds no classes.
    """
    strata = marks.strata if settings.stratify == "pixels" else _strata(n, settings, labels)
    if settings.stratify == "pixels" and strata is None:
        raise DataError("split: `stratify: pixels`, but this data set has no masks; remove it")
    groups = None if settings.group is None else group_codes(n, settings.group, marks)
    test = _test(n, settings, official_test, strata, groups, marks)
    rest = np.setdiff1d(np.arange(n, dtype=np.int64), test)
    drawn_by = seed if settings.val_fold is None else settings.seed  # folds are the same for all replicates
    inner = Inner(None if strata is None else strata[rest], None if groups is None else groups[rest])
    order = _order(len(rest), VALIDATION, drawn_by, inner.strata)
    if settings.val == "official":
        inside = _listed_val(n, marks)[rest[order]]
    elif settings.val_fold is not None:
        inside = _fold(settings.val_fold, order, inner)
    else:
        inside = _share(_count(n, settings.val), order, inner)
    rest = np.concatenate([rest[order][inside], rest[order][~inside]])
    n_val = int(inside.sum())
    if settings.val != "official" and settings.val_fold is None and groups is None:
        n_val = _count(n, settings.val)  # also where there are not so many, which is refused
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
        raise DataError(f"labels: {count} labelled images requested, but there are only {len(train)} training images")
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
        raise DataError("split: `test: official`, but this data set has no official test list; give a share or a count")
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


class Inner(NamedTuple):
    """Strata and groups of the images that are divided."""

    strata: IntArray | None  # (m,)
    groups: IntArray | None  # (m,)


def _test(
    n: int,
    settings: schema.Split,
    official_test: BoolArray | None,
    strata: IntArray | None,
    groups: IntArray | None,
    marks: Marks,
) -> IntArray:
    if settings.test == "official":
        return _official(n, official_test)
    if settings.fold is not None and marks.parts is not None and groups is None:
        return _listed_fold(settings.fold, marks.parts)
    order, inner = _order(n, TEST, settings.seed, strata), Inner(strata, groups)
    if settings.fold is None:
        return order[_share(_count(n, settings.test), order, inner)]
    return order[_fold(settings.fold, order, inner)]


def _listed_fold(name: str, parts: Sequence[str | None]) -> IntArray:
    """The images of a fold that `split.file` names. Raises DataError for another number of folds."""
    folds = sorted({part for part in parts if part is not None}, key=lambda part: (len(part), part))
    number, of = (int(part) for part in name.split("/"))
    if len(folds) != of:
        raise DataError(f"split: `fold: {name}`, but split.file names {len(folds)} folds ({', '.join(folds[:10])})")
    return np.flatnonzero(np.array([part == folds[number - 1] for part in parts])).astype(np.int64)


def _listed_val(n: int, marks: Marks) -> BoolArray:
    """(n,) where the data set's own lists say validation: split.file, or folders val/ beside train/ and test/."""
    if marks.parts is not None:
        inside = np.array([part == "val" for part in marks.parts], np.bool_)
    else:
        tops = [name.split("/")[0].lower() for name in marks.names]
        tested = any(top in ("test", "testing") for top in tops)
        inside = np.array([tested and top in ("val", "valid", "validation") for top in tops], np.bool_)
    if not inside.any() or inside.shape != (n,):
        raise DataError("split: `val: official`, but this data set lists no validation images beside its test; "
                        "give a share or count")  # fmt: skip
    return inside


def group_codes(n: int, group: schema.Group, marks: Marks) -> IntArray:
    """(n,) which group each image is of: parent folder, part of the name, or column of `split.file`.

    Raises DataError naming the first images that are in no group.
    """
    keys: Sequence[str | None]
    if isinstance(group, schema.NameColumn):
        keys, how = marks.groups or (), f"the column {group.column}"
    elif isinstance(group, schema.NamePattern):
        found = (re.search(group.pattern, TILE.sub("", name)) for name in marks.names)
        keys, how = [one and (one[1] if one.re.groups else one[0]) for one in found], f"the pattern {group.pattern}"
    else:
        keys, how = [name.rpartition("/")[0] or None for name in marks.names], "a parent folder"
    if len(keys) != n:
        raise DataError(
            "split: `group`, which `fit: tile` sets too, but this data set has no names to tell groups by; remove it"
        )
    if lost := [i for i, key in enumerate(keys) if not key]:
        shown = ", ".join(marks.names[i] for i in lost[:3])
        raise DataError(f"split: `group`: {len(lost)} of {n} images have no group by {how}, {shown} first")
    codes: dict[str | None, int] = {key: i for i, key in enumerate(sorted(set(keys), key=str))}
    if len(codes) < 2:
        raise DataError(
            f"split: `group`: all {n} images are of one group ({keys[0]}) by {how}, which cannot be divided"
        )
    return np.array([codes[key] for key in keys], np.int64)


def pixel_strata(masks: Pixels, classes: int) -> IntArray:
    """(N,) strata by which every part gets its share of each mask class: the rarest class that an image shows, and
    in which quarter of such images it is by its pixels. -1 where it shows none. `masks` (N, ...), IGNORE not counted.
    """
    flat = (np.asarray(masks[i]).ravel() for i in range(len(masks)))
    counts = np.stack([np.bincount(row, minlength=256)[:classes] for row in flat])  # N, C
    by_rarity = np.argsort(counts.sum(0), kind="stable")
    shown = counts[:, by_rarity] > 0
    rarest = np.where(shown.any(1), by_rarity[shown.argmax(1)], -1)
    strata = np.full(len(counts), -1, np.int64)
    for one in np.unique(rarest[rarest >= 0]):
        rows = np.flatnonzero(rarest == one)
        quarters = np.quantile(counts[rows, one], [0.25, 0.5, 0.75]) if len(rows) >= 8 else np.full(3, np.inf)
        strata[rows] = 4 * one + np.searchsorted(quarters, counts[rows, one])
    return strata


def _fold(name: str, order: IntArray, inner: Inner) -> BoolArray:
    """(m,) whether a position of `order` belongs to the fold, '2/5' the second of five.

    Folds take the positions in turn; with strata one stratum after the other, so that each fold holds every stratum by
    its share. In turn along the order itself they would not: in it the strata alternate too. With groups the largest
    are dealt first, each to the fold that lacks most.
    """
    number, of = (int(part) for part in name.split("/"))
    if inner.groups is not None:
        sizes = np.bincount(inner.groups)
        if np.count_nonzero(sizes) < of:
            raise DataError(f"split: {of} folds of {np.count_nonzero(sizes)} groups; ask for fewer folds")
        drawn = _in_turn(inner.groups[order])
        drawn = drawn[np.argsort(-sizes[drawn], kind="stable")]
        chosen: BoolArray = _dealt(drawn, inner, np.full(of, 1 / of))[inner.groups[order]] == number - 1
        return chosen
    strata = None if inner.strata is None else inner.strata[order]
    inside = np.zeros(len(order), np.bool_)
    positions = np.arange(len(order)) if strata is None else np.argsort(strata, kind="stable")
    inside[positions[number - 1 :: of]] = True
    return inside


def _share(count: int, order: IntArray, inner: Inner) -> BoolArray:
    """(m,) whether a position of `order` is among the first `count`; of groups, whether its group is drawn."""
    if inner.groups is None or count == 0:
        return np.arange(len(order)) < count
    drawn, share = _in_turn(inner.groups[order]), min(1.0, count / len(order))
    part = _dealt(drawn, inner, np.array([share, 1 - share]))
    if not (part[drawn] == 0).any():  # all groups are larger than what is asked for
        part[drawn[np.argmin(np.bincount(inner.groups)[drawn])]] = 0
    chosen: BoolArray = part[inner.groups[order]] == 0
    return chosen


def _in_turn(groups: IntArray) -> IntArray:
    """Groups in the order of their first image."""
    found, first = np.unique(groups, return_index=True)
    ordered: IntArray = found[np.argsort(first)]
    return ordered


def _dealt(drawn: IntArray, inner: Inner, shares: NDArray[np.float64]) -> IntArray:
    """Part of each group (by code): in turn, the part whose wanted share of every stratum it fits best (least squares).

    Args:
        drawn: codes of the groups, in the order in which they are dealt.
        shares: of the parts, that sum to 1.
    """
    assert inner.groups is not None
    strata = (
        np.zeros(len(inner.groups), np.int64)
        if inner.strata is None
        else np.unique(inner.strata, return_inverse=True)[1]
    )
    counts = np.zeros((inner.groups.max() + 1, strata.max() + 1))
    np.add.at(counts, (inner.groups, strata), 1)
    counts /= counts.sum(0)  # shares of each stratum
    lacking = np.repeat(shares[:, None], counts.shape[1], 1)  # parts, strata
    part = np.zeros(len(counts), np.int64)
    for group in drawn:
        gain = (lacking**2 - (lacking - counts[group]) ** 2).sum(1)
        part[group] = best = int(np.argmax(gain))
        lacking[best] -= counts[group]
    return part


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
