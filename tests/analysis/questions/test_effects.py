"""Against statsmodels' AnovaRM, against the paired t-test, and by hand: two seeds, two factors of two levels."""

import itertools
import math

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.questions.effects import analysis_of_variance, effects, sentences
from pretune.analysis.text.csv import to_csv
from pretune.analysis.text.formats import to_markdown

FACTORS = {"encoder": ["unfrozen", "frozen"], "labels": ["all", "10%", "1%"]}
CELLS = [f"encoder={e} labels={x}" for e, x in itertools.product(*FACTORS.values())]


def draw(seed, seeds, cells, effect=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(seeds, cells)) + effect * np.arange(cells)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([(2, 2), (2, 3), (3, 2, 2)]))
def test_every_line_is_statsmodels(seed, seeds, shape):
    values = draw(seed, seeds, math.prod(shape), 0.3)
    names = list("abc")[: len(shape)]
    places = list(itertools.product(*map(range, shape)))
    long = [
        {"seed": i, "y": values[i, j], **dict(zip(names, map(str, place), strict=True))}
        for i in range(seeds)
        for j, place in enumerate(places)
    ]
    reference = AnovaRM(pandas.DataFrame(long), "y", "seed", within=names).fit().anova_table
    for row in analysis_of_variance(values, dict(zip(names, shape, strict=True))):
        theirs = reference.loc[":".join(row.factors)]
        assert (row.f, row.df, row.df_error) == pytest.approx(
            (theirs["F Value"], theirs["Num DF"], theirs["Den DF"]), rel=1e-6
        )
        uncorrected = stats.f.sf(row.f, row.df, row.df_error)
        assert uncorrected == pytest.approx(theirs["Pr > F"], rel=1e-5)
        assert 1 / row.df - 1e-12 <= row.epsilon <= 1 + 1e-12


def test_two_levels_are_the_paired_t_test():
    """The effect of encoder is the paired t-test of frozen - unfrozen, each averaged over labels."""
    values = draw(0, 5, 6)
    (encoder, *_) = analysis_of_variance(values, {"encoder": 2, "labels": 3})
    reference = stats.ttest_rel(values[:, :3].mean(axis=1), values[:, 3:].mean(axis=1))
    assert encoder.f == pytest.approx(reference.statistic**2)
    assert encoder.p == pytest.approx(reference.pvalue)
    assert encoder.epsilon == pytest.approx(1)
    assert encoder.size == pytest.approx(abs(values[:, :3].mean() - values[:, 3:].mean()))


def test_by_hand():
    """Cells a1b1 a1b2 a2b1 a2b2, seeds (0 0 4 4) and (0 2 4 10).

    a: seed averages of a2 - a1 are 4 and 6: mean 5, std sqrt 2, t = 5 / (sqrt 2 / sqrt 2) = 5, F = 25.
    b: 0 and 4: mean 2, t = 2 / 2, F = 1. a x b: (difference of differences) 0 and 4, F = 1, terms ± 0.5: size 1.
    """
    a, b, ab = analysis_of_variance([[0, 0, 4, 4], [0, 2, 4, 10]], {"a": 2, "b": 2})
    assert (a.f, a.df, a.df_error, a.size) == pytest.approx((25, 1, 1, 5))
    assert (b.f, b.size) == pytest.approx((1, 2))
    assert (ab.f, ab.size) == pytest.approx((1, 1))
    assert a.eta == pytest.approx(1 - (1 / 26) * 2)  # F = 25 is 25/26 explained, unadjusted
    assert b.eta == 0


def test_greenhouse_geisser_by_hand():
    """Three levels of which only the last moves with the seed: contrasts move as one, epsilon is 1/2."""
    (row,) = analysis_of_variance([[0, 0, 1], [0, 0, 2], [0, 0, 6]], {"a": 3})
    assert row.epsilon == pytest.approx(0.5)
    assert row.p == pytest.approx(stats.ttest_1samp([1, 2, 6], 0).pvalue)


def test_no_spread_and_one_seed_have_no_test():
    for values in ([[0.1, 0.2, 0.3, 0.4]], [[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]):
        rows = analysis_of_variance(values, {"a": 2, "b": 2})
        assert all(math.isnan(row.p) for row in rows)
        assert rows[0].size == pytest.approx(0.2)


@pytest.mark.parametrize(("values", "message"), [([[1, 2, 3]], "4"), ([[1, 2, 3, math.nan]], "finite")])
def test_wrong_shapes_are_said_so(values, message):
    with pytest.raises(ValueError, match=message):
        analysis_of_variance(values, {"a": 2, "b": 2})


@pytest.mark.parametrize("spread", [(1, 1, 1, 1, 1, 1), (1, 1, 3, 1, 1, 3)])
@pytest.mark.parametrize("seeds", [3, 10])
def test_the_tests_err_in_at_most_5_of_100_studies_without_effects(seeds, spread):
    """Also where one level scatters three times as much. Tolerance: four binomial standard errors of 1000 studies."""
    generator, studies = np.random.default_rng(seeds), 1000
    wrong = np.zeros(3)
    for _ in range(studies):
        values = generator.normal(size=(seeds, 6)) * spread + generator.normal(size=(seeds, 1))
        wrong += [row.p < 0.05 for row in analysis_of_variance(values, {"a": 2, "b": 3})]
    assert (wrong / studies <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)).all()


# ------------------------------------------------------------------------------------------------------- of a study


def study(tmp_path, seeds=5, effect=(0, 0, 0, -0.1, -0.1, -0.1), factors=FACTORS, **report):
    """Cells differ by `effect`, with a spread of 0.01 beside what the seed does to all of them."""
    generator = np.random.default_rng(1)
    values = 0.5 + np.array(effect) + generator.normal(0, 0.01, (seeds, len(effect)))
    values += generator.normal(0, 0.05, (seeds, 1))
    labels = [
        " ".join(f"{k}={v}" for k, v in zip(factors, x, strict=True)) for x in itertools.product(*factors.values())
    ]
    scores = {label: list(values[:, place]) for place, label in enumerate(labels)}
    folder = write_study(tmp_path, scores, factors, **report)
    return load(folder), load_header(folder)


def test_a_main_effect_is_found_and_said_in_words(tmp_path):
    found = effects(*study(tmp_path), JACCARD)
    assert [row.factors for row in found.rows] == [("encoder",), ("labels",), ("encoder", "labels")]
    said = sentences(found)
    assert said[0].startswith("encoder has an effect on average (p < 0.001, Holm): from 0.")
    assert "(frozen) to 0." in said[0]
    assert said[1] == "Not shown at n=5 (an effect may still exist): labels, encoder × labels."


def test_an_interaction_is_found_and_said_in_words(tmp_path):
    found = effects(*study(tmp_path, effect=(0, 0, 0.1, 0.1, 0, 0)), JACCARD)
    assert any(text.startswith("encoder and labels interact (p ") for text in sentences(found))


def test_too_few_seeds_are_said_so(tmp_path):
    assert "n=3 is small" in effects(*study(tmp_path / "3", seeds=3), JACCARD).notes[0]
    one = effects(*study(tmp_path / "1", seeds=1), JACCARD)
    assert one.notes == ("one seed: effects have a size but no test",)
    assert "| encoder | 0.1" in to_markdown(one)


def test_copies_of_one_run_have_no_test_and_are_not_called_not_shown(tmp_path):
    scores = {cell: [0.5 + place / 10] * 3 for place, cell in enumerate(CELLS)}
    folder = write_study(tmp_path, scores, FACTORS)
    found = effects(load(folder), load_header(folder), JACCARD)
    assert sentences(found) == ()
    assert found.notes == ("no test, because nothing varies over seeds: encoder, labels, encoder × labels",)


def test_a_seed_that_failed_in_one_cell_is_left_out_everywhere(tmp_path):
    results, header = study(tmp_path)
    lost = (results["cell"] == CELLS[2]) & (results["seed"] == 3)
    results.loc[lost, ["outcome", "value"]] = ["raced-out", math.nan]
    found = effects(results, header, JACCARD)
    assert found.n == 4
    assert "seeds 3 did not finish in every cell" in found.notes[0]
    kept = effects(results[results["seed"] != 3], header, JACCARD)
    assert kept.rows == found.rows


def test_factors_that_are_not_crossed_have_no_analysis(tmp_path):
    results, header = study(tmp_path)
    object.__setattr__(header, "cells", header.cells[:-1])
    found = effects(results, header, JACCARD)
    assert found.rows == ()
    assert "no analysis of variance" in found.notes[0]


def test_degrees_of_freedom_are_those_that_p_is_taken_at(tmp_path):
    found = effects(*study(tmp_path), JACCARD)
    row = found.rows[1]  # labels, three levels
    assert row.epsilon < 0.999
    assert f"| {row.epsilon * 2:.4g}, {row.epsilon * 8:.4g} |" in to_markdown(found)
    assert stats.f.sf(row.f, row.epsilon * 2, row.epsilon * 8) == pytest.approx(row.p)
    assert "p with Holm correction over this metric's effects" in to_markdown(found)


def test_csv_has_every_number_in_full(tmp_path):
    found = effects(*study(tmp_path, percent=True), JACCARD)
    head, first, *_ = to_csv(found).splitlines()
    assert head == "metric,effect,size,f,df,df_error,epsilon,p,eta,p_holm"
    assert float(first.split(",")[3]) == found.rows[0].f
    assert "percentage points" in to_markdown(found)
