"""The tests of whole arrays of null studies claim what the reports claim, study by study."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas
import pytest

from benchmarks.null_claims import BaselineClaims, MarkClaims, has_an_effect, holm_shows, studies_differ
from benchmarks.null_studies import NOISES, claims, scores_of
from pretune.analysis import statistics
from pretune.analysis.load.results import StudyHeader, parse_header
from pretune.analysis.questions.compare import welch
from pretune.analysis.questions.differences import differences
from pretune.analysis.questions.effects import analysis_of_variance
from pretune.analysis.questions.tables import build_table
from pretune.analysis.statistics import holm
from pretune.analysis.text.headline import headline

METRIC = "test/jaccard"
CELLS, STUDIES = 6, 40
SIZES = {"a": 2, "b": 3}
FAILING = [None, 0, CELLS - 1]


def drawn(failing: int | None) -> np.ndarray:
    """Studies in which claims are common: the last cell is lower, by more from study to study."""
    scores = 0.6 + 0.01 * scores_of((STUDIES, 5, CELLS), NOISES["normal"], failing, np.random.default_rng(1))
    scores[:, :, -1] -= np.linspace(-0.05, 0.05, STUDIES)[:, None]
    return scores


def header(baseline: bool) -> StudyHeader:
    report = {"metrics": [METRIC], "rows": ["a"], "columns": []} | ({"baseline": {"a": "c5"}} if baseline else {})
    levels = [f"c{number}" for number in range(CELLS)]
    cells = [{"label": f"a={level}", "levels": {"a": level}} for level in levels]
    return parse_header(
        {"study": "s", "factors": {"a": levels}, "cells": cells, "seeds": {"report": 5}, "report": report}
    )


def results(scores: np.ndarray) -> pandas.DataFrame:
    """(seeds, cells) as stored rows; NaN has diverged."""
    rows = []
    for seed, cell in itertools.product(*map(range, scores.shape)):
        value = scores[seed, cell]
        ended = (
            {"outcome": "diverged", "metric": ""} if math.isnan(value) else {"outcome": "finished", "metric": METRIC}
        )
        rows.append({"phase": "confirm", "cell": f"a=c{cell}", "seed": seed, "stage": "finetune", "cause": "", **ended,
                     "fingerprint": f"{cell}-{seed}", "value": value})  # fmt: skip
    return pandas.DataFrame(rows)


def test_holm_over_rows_is_holm_of_each() -> None:
    p = np.random.default_rng(0).uniform(0, 0.05, (50, 6))
    p[::3, 2] = math.nan
    expected = np.array([np.nan_to_num(holm(row), nan=1.0) < 0.05 for row in p])
    assert np.array_equal(holm_shows(p), expected)
    assert 0.1 < expected.mean() < 0.9


@pytest.mark.parametrize("failing", FAILING)
def test_claims_against_a_baseline_are_those_of_differences_and_headline(failing: int | None) -> None:
    scores, found = drawn(failing), header(baseline=True)
    claimed = BaselineClaims(scores, CELLS - 1)
    stored = [results(one) for one in scores[::4]]
    counted = [any(row.shown for row in differences(one, found, METRIC).rows) for one in stored]
    assert claimed.differs()[::4].tolist() == counted
    assert claimed.shown()[::4].tolist() == [headline(one, found, METRIC).startswith("Shown") for one in stored]
    assert {True, False} == {*counted}


@pytest.mark.parametrize("failing", FAILING)
def test_claims_of_marks_are_those_of_the_table_and_the_headline(failing: int | None) -> None:
    scores, found = drawn(failing), header(baseline=False)
    claimed = MarkClaims(scores)
    stored = [results(one) for one in scores[::4]]
    tables = [build_table(one, found, METRIC) for one in stored]
    worse = [any(r[0] is False and not b[0] for r, b in zip(t.rivals, t.best, strict=True)) for t in tables]
    assert claimed.worse()[::4].tolist() == worse
    assert claimed.best_shown()[::4].tolist() == [headline(one, found, METRIC).startswith("Shown") for one in stored]
    assert {True, False} == {*worse}


def test_effects_are_those_of_the_analysis_of_variance() -> None:
    scores = drawn(None)
    expected = [bool((holm([row.p for row in analysis_of_variance(one, SIZES)]) < 0.05).any()) for one in scores]
    assert has_an_effect(scores, SIZES).tolist() == expected
    assert {True, False} == {*expected}


def test_comparisons_are_those_of_the_paired_and_of_welchs_test() -> None:
    first, second = drawn(None), np.roll(drawn(None), 7, axis=0)
    paired, unpaired = (studies_differ(first, second, paired=kind) for kind in (True, False))
    for study in range(STUDIES):
        columns = list(zip(first[study].T, second[study].T, strict=True))
        assert paired[study] == (holm([statistics.paired_difference(b, a).p for a, b in columns]) < 0.05).any()
        assert unpaired[study] == (holm([welch(a, b).p for a, b in columns]) < 0.05).any()
    assert 0 < paired.sum() < STUDIES
    assert 0 < unpaired.sum() < STUDIES


@pytest.mark.parametrize("failing", FAILING)
def test_no_family_claims_in_more_than_5_percent_where_nothing_is(failing: int | None) -> None:
    """1,000 studies of 6 cells, 10 seeds: within three standard errors (0.7 points each) of 5 %."""
    shares = claims((1000, 10, CELLS), NOISES["normal"], failing, np.random.default_rng(2))
    assert max(shares.values()) < 0.05 + 3 * 0.0069


def test_failures_would_make_differences_if_nothing_were_done_about_them() -> None:
    """The baseline loses its worst 4 of 10: the cells would be called lower in over 8 % of studies."""
    scores = scores_of((1000, 10, CELLS), NOISES["normal"], -1, np.random.default_rng(2))
    assert np.isnan(scores[:, :, -1]).sum() == 4000
    p = [
        [statistics.paired_difference(one[kept, cell], one[kept, -1]).p for cell in range(CELLS - 1)]
        for one in scores[:300]
        for kept in [np.isfinite(one[:, -1])]
    ]
    assert 0.08 < holm_shows(np.array(p)).any(axis=1).mean() < 0.2
    assert BaselineClaims(scores, CELLS - 1).differs().mean() < 0.02
