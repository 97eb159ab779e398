"""Splits: disjoint, complete, reproducible, and only as random as they should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.splits import Split, draw_split, draw_subset, label_subset, visible

seeds = st.integers(0, 2**40)


@given(n=st.integers(10, 300), test=st.floats(0.1, 0.4), val=st.floats(0.0, 0.4), split_seed=seeds, seed=seeds)
def test_parts_are_disjoint_complete_and_of_the_stated_size(
    n: int, test: float, val: float, split_seed: int, seed: int
) -> None:
    split = draw_split(n, schema.Split(test=test, val=val, seed=split_seed), seed, None)
    assert np.array_equal(np.sort(np.concatenate(split)), np.arange(n))
    assert (len(split.test), len(split.val)) == (round(n * test), round(n * val))


@given(split_seed=seeds, seed_a=seeds, seed_b=seeds)
def test_the_replicate_seed_never_moves_the_test_set(split_seed: int, seed_a: int, seed_b: int) -> None:
    settings = schema.Split(test=20, val=10, seed=split_seed)
    assert np.array_equal(draw_split(100, settings, seed_a, None).test, draw_split(100, settings, seed_b, None).test)


def test_the_replicate_seed_moves_validation_and_the_split_seed_moves_test() -> None:
    base = draw_split(100, schema.Split(seed=0), 0, None)
    other_seed, other_split = (
        draw_split(100, schema.Split(seed=0), 1, None),
        draw_split(100, schema.Split(seed=1), 0, None),
    )
    assert set(base.val) != set(other_seed.val)
    assert set(base.test) != set(other_split.test)


def test_the_draw_of_a_seed_is_pinned() -> None:
    """Recorded at the first release of the recipe: another result means that old studies get other test sets."""
    split = draw_split(10, schema.Split(test=0.3, val=0.2, seed=7), 5, None)
    assert [part.tolist() for part in split] == [[9, 4, 5, 2, 3], [6, 1], [8, 0, 7]]


def test_a_pool_that_is_not_divided_trains_on_every_image() -> None:
    pool = schema.ImageFolder.model_validate({"dataset": "image-folder", "root": "x", "split": "none"})
    split = draw_split(200, pool.split, 3, None)
    assert [len(part) for part in split] == [200, 0, 0]
    assert visible(split, "train").tolist() == list(range(200))


def test_a_test_share_that_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="must not be empty"):
        draw_split(4, schema.Split(test=0.1, val=0), 0, None)


def test_the_official_list_is_the_test_set_and_validation_is_a_share_of_all_images() -> None:
    official = np.arange(20) % 2 == 1
    split = draw_split(20, schema.Split(test="official", val=0.25), 3, official)
    assert split.test.tolist() == list(range(1, 20, 2))
    assert (len(split.train), len(split.val)) == (5, 5)


def test_a_data_set_without_a_test_list_refuses_official() -> None:
    with pytest.raises(DataError, match="no official test list"):
        draw_split(20, schema.Split(test="official"), 0, None)


def test_a_test_list_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\) for 20 images"):
        draw_split(20, schema.Split(test="official"), 0, np.ones(3, np.bool_))


@pytest.mark.parametrize(
    ("n", "test", "val", "message"),
    [
        (10, 5, 5, "train 0, val 5 .*, test 5"),
        (10, 2, 30, "train 0, val 30 .*, test 2"),
        (10, 0.04, 0.1, "train 9, val 1 .*, test 0"),
        (10, 30, 0, "train 0, val 0 .*, test 10"),
        (0, 0.1, 0.1, "0 images leave train 0"),
    ],
)
def test_an_empty_part_is_an_error_with_the_numbers(n: int, test: float, val: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_split(n, schema.Split(test=test, val=val), 0, None)


@given(n=st.integers(2, 200), a=st.floats(0.001, 1.0), b=st.floats(0.001, 1.0), seed=seeds)
def test_smaller_label_subsets_are_prefixes_of_larger_ones(n: int, a: float, b: float, seed: int) -> None:
    train = np.arange(n, dtype=np.int64) * 3
    small, large = (label_subset(train, amount, seed) for amount in sorted((a, b)))
    assert np.array_equal(small, large[: len(small)])
    assert set(large) <= set(train)
    assert len(large) == max(1, round(n * max(a, b)))


@given(st.permutations(range(12)))
def test_label_subsets_depend_on_which_images_train_holds_not_on_their_order(order: list[int]) -> None:
    shuffled = np.array(order, np.int64)
    assert np.array_equal(label_subset(shuffled, 5, 1), label_subset(np.arange(12, dtype=np.int64), 5, 1))


def test_a_count_is_a_count_and_one_is_not_all() -> None:
    train = np.arange(100, dtype=np.int64)
    assert [len(label_subset(train, amount, 0)) for amount in (1, 1.0, 74, 0.1, 0.001)] == [1, 100, 74, 10, 1]


def test_more_labels_than_training_images_is_an_error_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"368 labelled images .* only 40 training"):
        label_subset(np.arange(40, dtype=np.int64), 368, 0)


def test_pretraining_sees_what_is_stated() -> None:
    split = Split(train=np.array([5, 1]), val=np.array([4, 0]), test=np.array([3, 2]))
    assert visible(split, "train").tolist() == [1, 5]
    assert visible(split, "train+val").tolist() == [0, 1, 4, 5]
    assert visible(split, "all").tolist() == [0, 1, 2, 3, 4, 5]


@given(n=st.integers(1, 100), seed=seeds, limits=st.tuples(st.integers(1, 120), st.integers(1, 120)))
def test_limits_are_nested_and_sorted(n: int, seed: int, limits: tuple[int, int]) -> None:
    small, large = (draw_subset(n, limit, seed) for limit in sorted(limits))
    assert set(small) <= set(large)
    assert np.all(np.diff(large) > 0)
    assert len(large) == min(n, max(limits))


def test_no_limit_is_everything() -> None:
    assert draw_subset(4, None, 9).tolist() == [0, 1, 2, 3]


# ----------------------------------------------------------------------------------------------- folds and classes


@given(n=st.integers(10, 200), of=st.integers(2, 8), seed=seeds, stratify=st.booleans())
def test_folds_are_disjoint_complete_and_of_equal_size(n: int, of: int, seed: int, stratify: bool) -> None:
    labels = np.arange(n, dtype=np.int64) % 3
    tests = [
        draw_split(n, schema.Split(fold=f"{k}/{of}", seed=seed, stratify=stratify, val=1), 0, None, labels).test
        for k in range(1, of + 1)
    ]
    assert np.array_equal(np.sort(np.concatenate(tests)), np.arange(n))
    assert {len(test) for test in tests} <= {n // of, n // of + 1}


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=6), of=st.integers(2, 10), seed=seeds, val=st.booleans()
)
def test_stratified_folds_hold_each_class_by_its_share(counts: list[int], of: int, seed: int, val: bool) -> None:
    """Of m images of a class every fold has m / k, rounded down or up."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    n = len(labels)
    assume(n >= 2 * of + 2)
    held = []
    for k in range(1, of + 1):
        if val:
            split = draw_split(n, schema.Split(test=1, val_fold=f"{k}/{of}", seed=seed, stratify=True), 7, None, labels)
            held.append(split.val)
        else:
            cut = schema.Split(fold=f"{k}/{of}", val=0, seed=seed, stratify=True)
            held.append(draw_split(n, cut, 7, None, labels).test)
    found = np.sort(np.concatenate(held))
    assert len(np.unique(found)) == len(found) == n - val
    for label in range(len(counts)):
        m = int((labels[found] == label).sum())
        assert {int((labels[fold] == label).sum()) for fold in held} <= {m // of, -(-m // of)}


def test_folds_leave_the_rest_to_train_and_validation() -> None:
    split = draw_split(20, schema.Split(fold="2/5", val=0.2), 3, None)
    assert (len(split.test), len(split.val), len(split.train)) == (4, 4, 12)
    assert np.array_equal(np.sort(np.concatenate(split)), np.arange(20))


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "half", "1/2/3"])
def test_a_fold_that_is_none_is_refused(fold: str) -> None:
    with pytest.raises(ValidationError, match="fold"):
        schema.Split(fold=fold)


def test_folds_of_the_official_list_are_refused() -> None:
    with pytest.raises(ValidationError, match="test list has no folds"):
        schema.Split(test="official", fold="1/2")


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    amount=st.floats(0.01, 1.0),
    seed=seeds,
)
def test_stratified_label_subsets_hold_each_class_by_its_share(counts: list[int], amount: float, seed: int) -> None:
    """Image r of a class of m stands at (r + 1/2) / m: up to t of the way a class of m has t m ± 1/2 images."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    train = np.arange(len(labels), dtype=np.int64)
    chosen = label_subset(train, amount, seed, labels)
    share = len(chosen) / len(train)
    for label, m in enumerate(counts):
        slack = 0.5 + (len(counts) / 2 + 1) * m / len(train) + 1
        assert abs(int((labels[chosen] == label).sum()) - share * m) <= slack
    fewer = label_subset(train, amount / 2, seed, labels)
    assert np.array_equal(fewer, chosen[: len(fewer)])


def test_stratified_draws_of_even_classes_are_even() -> None:
    """40 images of 4 classes: 4 for test are one of each, 8 for validation two of each, 8 labels two of each."""
    labels = np.arange(40, dtype=np.int64) % 4
    split = draw_split(40, schema.Split(test=4, val=8, stratify=True), 1, None, labels)
    chosen = label_subset(split.train, 8, 2, labels)
    assert [np.bincount(labels[part]).tolist() for part in (split.test, split.val, chosen)] == [
        [1] * 4,
        [2] * 4,
        [2] * 4,
    ]


def test_plain_draws_of_even_classes_are_not() -> None:
    labels = np.arange(40, dtype=np.int64) % 4
    drawn = [np.bincount(labels[draw_split(40, schema.Split(test=4), i, None).val], minlength=4) for i in range(10)]
    assert any(counts.tolist() != [1] * 4 for counts in drawn)


def test_strata_without_classes_are_an_error() -> None:
    with pytest.raises(DataError, match=r"`stratify: true`.* no classes"):
        draw_split(10, schema.Split(stratify=True), 0, None)


def test_the_way_of_drawing_is_named_wherever_the_test_set_is() -> None:
    """A fingerprint asks for chosen keys; what the test set depends on goes with `test`, and defaults add nothing."""
    plain, drawn = schema.Split(), schema.Split(fold="1/3", stratify=True)
    assert plain.model_dump(include={"test", "seed"}) == {"test": 0.1, "seed": 0}
    assert drawn.model_dump(include={"test", "seed"}) == {"test": 0.1, "seed": 0, "fold": "1/3", "stratify": True}
    assert drawn.model_dump(include=set()) == {}
    assert schema.Split.model_validate(drawn.model_dump(mode="json")) == drawn
