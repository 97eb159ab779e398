"""Hand-worked cases use the differences (1, 2, 3): mean 2, standard deviation 1, two degrees of freedom.

With two degrees of freedom Student's two-sided p has a closed form: 1 - t / sqrt(2 + t^2).
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pretune.analysis import statistics

ZEROS = [0.0, 0.0, 0.0]
ONE_TWO_THREE = [1.0, 2.0, 3.0]
# Whole numbers: a spread is either zero or far above rounding.
RUNS = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)), min_size=2, max_size=10)


def test_mean_std_divides_by_n_minus_one():
    mean, std, n = statistics.mean_std([1.0, 2.0, 3.0, 4.0])
    assert (mean, n) == (2.5, 4)
    assert std == pytest.approx(math.sqrt(5 / 3))


def test_one_run_has_no_standard_deviation_interval_or_p():
    assert math.isnan(statistics.mean_std([0.7]).std)
    assert math.isnan(statistics.t_interval([0.7]).low)
    difference = statistics.paired_difference([0.7], [0.5])
    assert difference.difference == pytest.approx(0.2)
    assert math.isnan(difference.p)
    assert math.isnan(difference.high)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "non-empty"), ([[1.0]], r"\(runs,\), not one of shape \(1, 1\)"), ([1.0, math.nan], "failed replicates out")],
)
def test_values_must_be_a_finite_vector(values, message):
    with pytest.raises(ValueError, match=message):
        statistics.mean_std(values)


def test_t_interval_by_hand():
    """2 ± 4.302653 x 1/sqrt(3), the 97.5 % quantile with two degrees of freedom from any t table."""
    interval = statistics.t_interval(ONE_TWO_THREE)
    assert interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_confidence_must_be_a_probability():
    with pytest.raises(ValueError, match="between 0 and 1, not 95"):
        statistics.t_interval(ONE_TWO_THREE, confidence=95)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_t_interval_covers_the_true_mean_in_95_of_100_studies(n):
    """Tolerance: four binomial standard errors of 1500 simulated studies."""
    generator, studies = np.random.default_rng(n), 1500
    draws = generator.normal(0.7, 0.02, size=(studies, n))
    intervals = [statistics.t_interval(row) for row in draws]
    covered = np.mean([low <= 0.7 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / studies))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_paired_t_test_errs_in_5_of_100_studies_without_a_difference(n):
    generator, studies = np.random.default_rng(100 + n), 1500
    shared = generator.normal(size=(studies, n))
    a, b = shared + generator.normal(size=(2, studies, n))
    rejected = np.mean([statistics.paired_difference(x, y).p < 0.05 for x, y in zip(a, b, strict=True)])
    assert rejected == pytest.approx(0.05, abs=4 * math.sqrt(0.95 * 0.05 / studies))


def test_paired_difference_by_hand():
    """t = 2 sqrt(3), so p = 1 - 2 sqrt(3) / sqrt(14)."""
    result = statistics.paired_difference([1.5, 3.0, 7.0], [0.5, 1.0, 4.0])
    assert (result.difference, result.n) == (2.0, 3)
    assert result.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))


@settings(deadline=None)
@given(RUNS.filter(lambda pairs: len({a - b for a, b in pairs}) > 1))
def test_paired_difference_is_scipys(pairs):
    a, b = np.array(pairs, dtype=float).T
    reference = stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(0.9)
    assert statistics.paired_difference(a, b, 0.9)[:4] == pytest.approx((np.mean(a - b), low, high, reference.pvalue))


def test_paired_arrays_must_be_equally_long():
    with pytest.raises(ValueError, match="equally many, not 3 and 2"):
        statistics.paired_difference(ONE_TWO_THREE, [1.0, 2.0])


def test_differences_without_spread_are_not_called_significant():
    """0.3 - 0.1 and 0.2 - 0.0 differ in their last digit, which a t-test would take for a spread of 1e-17."""
    assert math.isnan(statistics.paired_difference([0.3, 0.2, 0.5], [0.1, 0.0, 0.3]).p)
    assert statistics.paired_difference(ONE_TWO_THREE, ONE_TWO_THREE).p == 1.0
    assert math.isnan(statistics.paired_difference(ONE_TWO_THREE, ONE_TWO_THREE).low)


def test_copies_of_one_run_have_no_interval():
    for runs in ([0.7, 0.7, 0.7], [0.1 + 0.2, 0.3]):  # the last digit is no spread
        estimate, low, high = statistics.t_interval(runs)
        assert estimate == pytest.approx(runs[0])
        assert math.isnan(low)
        assert math.isnan(high)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # only +++ and --- reach 6
        ([1.0, -2.0, 3.0], 6 / 8),  # sums 6 0 2 -4 4 -2 0 -6: six reach 2
        ([0.1, 0.2, -0.3], 1.0),  # the sum is 0 on paper, 5e-17 in the machine
    ],
)
def test_sign_flip_test_by_hand(differences, p):
    result = statistics.sign_flip_test(differences, ZEROS)
    assert (result.p, result.n) == (p, 3)


def test_sign_flip_cannot_reach_five_percent_below_six_pairs():
    assert statistics.sign_flip_test(ONE_TWO_THREE, ZEROS).smallest_possible_p == 0.25
    assert statistics.smallest_possible_p(5) == 0.0625
    assert statistics.smallest_possible_p(6) == 0.03125


@settings(deadline=None, max_examples=25)
@given(RUNS.filter(lambda pairs: len(pairs) <= 8))
def test_sign_flip_test_is_scipys_exact_permutation_test(pairs):
    a, b = np.array(pairs, dtype=float).T
    reference = stats.permutation_test(
        (a, b), lambda x, y: abs(np.mean(x - y)), permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert statistics.sign_flip_test(a, b).p == pytest.approx(reference.pvalue)


def test_sign_flip_test_refuses_what_it_cannot_enumerate():
    with pytest.raises(ValueError, match="at most 22 pairs, not 23"):
        statistics.sign_flip_test(np.arange(23.0), np.zeros(23))


def test_cohen_d_by_hand():
    """d = 2 / 1; the correction with m = 2 is Gamma(1) / (1 x Gamma(1/2)) = 1 / sqrt(pi)."""
    d, g, n = statistics.cohen_d(ONE_TWO_THREE, ZEROS)
    assert (d, n) == (2.0, 3)
    assert g == pytest.approx(2 / math.sqrt(math.pi))


def test_cohen_d_has_no_correction_for_two_pairs_and_no_value_without_spread():
    d, g, _ = statistics.cohen_d([1.0, 3.0], [0.0, 0.0])
    assert d == pytest.approx(math.sqrt(2))  # mean 2, standard deviation sqrt(2)
    assert math.isnan(g)
    assert math.isnan(statistics.cohen_d(ONE_TWO_THREE, [0.0, 1.0, 2.0]).d)


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1 is 0.03, 0.06, 0.04; the last may not fall below the one before."""
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_leaves_missing_tests_out_of_the_count():
    adjusted = statistics.holm([0.01, math.nan, 0.03])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.03])
    assert math.isnan(adjusted[1])
    assert len(statistics.holm([])) == 0


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.holm([1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni_in_any_order(p):
    adjusted = statistics.holm(p)
    assert np.all(adjusted >= np.array(p))
    assert np.all(adjusted <= np.minimum(1, len(p) * np.array(p)))
    assert statistics.holm(p[::-1])[::-1] == pytest.approx(adjusted)


def test_tost_is_two_one_sided_t_tests():
    differences = np.array([0.004, -0.002, 0.001, 0.003])
    result = statistics.tost(differences, np.zeros(4), margin=0.01)
    above = stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.01, alternative="less").pvalue
    assert result.p == pytest.approx(max(above, below))
    assert result.equivalent
    assert not statistics.tost(differences, np.zeros(4), margin=0.002).equivalent


@settings(deadline=None)
@given(RUNS.filter(lambda pairs: len({a - b for a, b in pairs}) > 1), st.integers(1, 500))
def test_tost_agrees_with_its_interval(pairs, margin):
    a, b = np.array(pairs, dtype=float).T
    result = statistics.tost(a, b, margin)
    if min(abs(result.low + margin), abs(result.high - margin)) > 1e-6:  # the two round differently at the very edge
        assert result.equivalent == (-margin < result.low and result.high < margin)


def test_tost_without_spread_or_with_one_pair():
    same = statistics.tost(ONE_TWO_THREE, ONE_TWO_THREE, margin=0.1)  # copies of one run prove nothing
    assert math.isnan(same.p)
    assert not same.equivalent
    assert not statistics.tost(ONE_TWO_THREE, ZEROS[:1] * 3, margin=0.1).equivalent
    assert not statistics.tost([2.0, 2.0], [1.95, 1.95], margin=0.1).equivalent  # copies of one run show nothing
    assert not statistics.tost([2.0], [2.01], margin=0.1).equivalent


def test_tost_needs_a_margin():
    with pytest.raises(ValueError, match="margin must be positive, not 0"):
        statistics.tost(ONE_TWO_THREE, ZEROS, margin=0)


@pytest.mark.parametrize(
    ("effect", "paired", "n"),
    [(0.5, True, 34), (0.2, True, 199), (0.5, False, 64), (0.8, False, 26), (0.2, False, 394)],
)
def test_seeds_needed_are_the_textbook_sample_sizes(effect, paired, n):
    """Cohen 1988, table 2.4.1 (as corrected by G*Power): power 0.8 at a two-sided alpha of 0.05."""
    assert statistics.seeds_needed(0.02 * effect, 0.02, paired=paired) == n


def test_power_is_the_share_of_simulated_studies_that_find_the_difference():
    generator, studies, n = np.random.default_rng(0), 4000, 5
    draws = generator.normal(1.5, 1.0, size=(studies, n))
    found = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    power = statistics.t_test_power(1.5, 1.0, n)
    assert found == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / studies))


@pytest.mark.parametrize("shift", [8.0, 37.0, 60.0, 1000.0])
def test_power_of_a_huge_difference_is_one(shift):
    assert statistics.t_test_power(shift, 1.0, 30) == pytest.approx(1.0)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_detectable_difference_inverts_seeds_needed(n, paired):
    difference = statistics.detectable_difference(n, 0.013, paired=paired)
    assert statistics.t_test_power(difference, 0.013, n, paired=paired) == pytest.approx(0.8)
    assert statistics.seeds_needed(difference * 1.0001, 0.013, paired=paired) == n
    assert statistics.seeds_needed(difference * 0.9999, 0.013, paired=paired) == n + 1


def test_planning_refuses_impossible_questions():
    with pytest.raises(ValueError, match="finds a difference of 0"):
        statistics.seeds_needed(0.0, 0.01)
    with pytest.raises(ValueError, match="std must be positive, not 0"):
        statistics.seeds_needed(0.01, 0.0)
    with pytest.raises(ValueError, match="more than a million seeds"):
        statistics.seeds_needed(1e-6, 1.0)
    with pytest.raises(ValueError, match="at least two seeds, not 1"):
        statistics.detectable_difference(1, 0.01)
    with pytest.raises(ValueError, match="alpha < power"):
        statistics.seeds_needed(0.01, 0.01, power=0.01)


def test_iqm_by_hand():
    """Of 1 to 8 the quarters 1, 2 and 7, 8 go; 3, 4, 5, 6 average 4.5."""
    assert statistics.iqm([[8.0, 1.0], [2.0, 7.0], [6.0, 3.0], [4.0, 5.0]]) == 4.5


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 100))
def test_iqm_is_scipys_trimmed_mean(runs, tasks, seed):
    scores = np.random.default_rng(seed).normal(size=(runs, tasks))
    assert statistics.iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))


def test_iqm_interval_redraws_within_tasks_only():
    """Tasks differ, runs do not: a stratified bootstrap has nothing to vary."""
    scores = np.tile([0.2, 0.5, 0.9], (4, 1))
    interval = statistics.iqm_interval(scores, np.random.default_rng(0))
    assert interval.low == pytest.approx(interval.estimate)
    assert interval.high == pytest.approx(interval.estimate)


def test_iqm_interval_is_reproducible_and_holds_the_estimate():
    scores = np.random.default_rng(1).normal(size=(6, 3))
    first, second = (statistics.iqm_interval(scores, np.random.default_rng(7)) for _ in range(2))
    assert first == second
    assert first.low < first.estimate < first.high
    narrower = statistics.iqm_interval(scores, np.random.default_rng(7), confidence=0.5)
    assert first.low < narrower.low < narrower.high < first.high


def test_nadeau_bengio_by_hand():
    """Error sqrt(1/3 + 1/3), t = sqrt(6), so p = 1 - sqrt(6) / sqrt(8)."""
    result = statistics.nadeau_bengio(ONE_TWO_THREE, ZEROS, test_over_train=1 / 3)
    assert result.p == pytest.approx(1 - math.sqrt(6 / 8))
    assert result.high - result.difference == pytest.approx(4.302653 * math.sqrt(2 / 3), abs=1e-5)


def test_nadeau_bengio_needs_a_ratio():
    with pytest.raises(ValueError, match="must be positive, not 0"):
        statistics.nadeau_bengio(ONE_TWO_THREE, ZEROS, test_over_train=0)


def test_best_set_by_hand():
    """Column 0 beats column 1 by (1, 2, 3): one-sided p (1 - 2 sqrt(3) / sqrt(14)) / 2 = 0.037, the smaller of two."""
    best = np.array([10.0, 20.0, 30.0])
    scores = np.stack([best, best - [1, 2, 3]], axis=1)
    p = (1 - 2 * math.sqrt(3) / math.sqrt(14)) / 2
    result = statistics.not_distinguishable_from_best(scores, alpha=0.08)
    assert result.p == pytest.approx([1 - p, 2 * p])
    assert result.not_distinguishable.tolist() == [True, False]
    turned = statistics.not_distinguishable_from_best(-scores, alpha=0.08, maximize=False)
    assert turned.p == pytest.approx(result.p)


def test_a_column_that_may_not_show_leaves_all_others_as_they_are():
    """The first of three beats the others by far; without its word the third is still shown worse, by the second."""
    scores = np.array([[9.0, 5.0, 1.0], [9.1, 5.2, 1.1], [9.0, 5.1, 1.3], [9.2, 5.0, 1.2]])
    assert statistics.not_distinguishable_from_best(scores).not_distinguishable.tolist() == [True, False, False]
    found = statistics.not_distinguishable_from_best(scores, may_show=[False, True, True])
    assert found.not_distinguishable.tolist() == [True, True, False]
    assert found.tested.sum() == 6
    alone = statistics.not_distinguishable_from_best(scores[:, :2], may_show=[False, True])
    assert alone.p[1] == 1.0
    assert alone.not_distinguishable.all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_best_set_is_scipys_paired_tests_over_common_runs(seed):
    generator = np.random.default_rng(seed)
    scores = generator.normal(loc=[0, 0, 0, 2], size=(6, 4))
    scores[generator.random(scores.shape) < 0.2] = np.nan
    found, better = statistics.not_distinguishable_from_best(scores), {}
    for cell, other in itertools.permutations(range(4), 2):
        both = np.isfinite(scores[:, cell]) & np.isfinite(scores[:, other])
        assert found.pairs[cell, other] == both.sum()
        assert found.tested[cell, other] == (both.sum() > 1)
        if both.sum() > 1:
            test = stats.ttest_rel(scores[both, other], scores[both, cell], alternative="greater")
            better[cell, other] = test.pvalue
    corrected, largest = {}, 0.0
    for rank, pair in enumerate(sorted(better, key=better.__getitem__)):
        largest = max(largest, (len(better) - rank) * better[pair])
        corrected[pair] = min(1.0, largest)
    for cell in range(4):
        mine = [p for pair, p in corrected.items() if pair[0] == cell]
        assert found.p[cell] == pytest.approx(min(mine) if mine else math.nan, nan_ok=True)


def test_best_set_keeps_all_where_nothing_can_be_tested():
    """One run; copies that differ by the same at every run; and equal columns, of which none is better (p = 1)."""
    for scores in ([[0.3, 0.1, 0.2]], [[0.3, 0.2], [0.4, 0.3]]):
        result = statistics.not_distinguishable_from_best(scores)
        assert np.isnan(result.p).all()
        assert result.not_distinguishable.all()
    assert statistics.not_distinguishable_from_best([[0.3, 0.3], [0.4, 0.4]]).p.tolist() == [1.0, 1.0]
