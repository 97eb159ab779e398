"""The simulation of `benchmarks/coverage.py` in short, and what its committed figures must show."""

import math
import re
from pathlib import Path

import pytest

from benchmarks import coverage

STUDIES = 600
ERROR = 4 * math.sqrt(0.95 * 0.05 / STUDIES)  # four binomial standard errors: 3.6 points
COMMITTED = Path(coverage.__file__).parent / "results" / "coverage.md"
EXACT = ("t interval of a mean", "paired t interval of a difference", "interval of pretraining's share of the variance")


@pytest.mark.parametrize("what", EXACT)
@pytest.mark.parametrize("n", [2, 5])
def test_intervals_cover_in_95_of_100_studies(what, n):
    assert coverage.rate(coverage.COVER[what], coverage.NOISES[0], n, STUDIES, 1) == pytest.approx(0.95, abs=ERROR)


@pytest.mark.parametrize("what", coverage.ERR)
@pytest.mark.parametrize("n", [3, 10])
def test_tests_err_in_at_most_5_of_100_studies(what, n):
    assert coverage.rate(coverage.ERR[what], coverage.NOISES[0], n, STUDIES, 1) <= 0.05 + ERROR


def test_re_splits_need_nadeau_and_bengio():
    plain, corrected = (coverage.corrected_resampling(coverage.NOISES[0], 10, STUDIES, 1, way) for way in (False, True))
    assert plain > 0.15
    assert corrected == pytest.approx(0.05, abs=ERROR)


def test_a_percentile_bootstrap_of_three_seeds_is_far_too_narrow():
    """The best that three values allow: the true mean lies outside their range in 1/4 of studies at least."""
    (bootstrap,) = (f for what, f in coverage.COVER.items() if what.startswith("percentile"))
    assert coverage.rate(bootstrap, coverage.NOISES[0], 3, STUDIES, 1) < 0.8


@pytest.mark.parametrize("what", EXACT)
def test_the_committed_coverage_is_between_94_and_96_per_cent_under_normal_noise(what):
    normal = COMMITTED.read_text(encoding="utf-8").split("skewed noise")[0]
    (line,) = re.findall(rf"^\| {re.escape(what)} \|(.*)\|$", normal, flags=re.MULTILINE)
    rates = [float(cell) for cell in line.split("|")]
    assert len(rates) == 4
    assert all(94 <= rate <= 96 for rate in rates)
