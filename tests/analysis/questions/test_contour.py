"""The surface over two ranges: SciPy's spline, its best place by hand, and none where trials say nothing."""

import json
import math

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from pretune.analysis.figures.contour import contour_plot
from pretune.analysis.questions import contour
from pretune.analysis.questions.contour import surfaces
from pretune.analysis.questions.searched import LostTrial, ScoredTrial, SearchRuns

RANGES = {"lr": {"log_uniform": [1e-4, 1e-1]}, "decay": {"uniform": [0, 1]}, "loss": {"choice": ["a", "b"]}}


def search(score, trials=40, noise=0.01, lost=(), minimize=False, seeds=2):
    generator = np.random.default_rng(5)
    made = []
    for _ in range(trials):
        values = {"lr": float(10 ** generator.uniform(-4, -1)), "decay": float(generator.uniform()), "loss": 0}
        scores = score(math.log10(values["lr"]), values["decay"]) + noise * generator.normal(size=seeds)
        made.append(ScoredTrial(values, float(np.mean(scores)), seeds, dict(enumerate(scores))))
    return SearchRuns("s", "val/jaccard", minimize, tuple(made), lost=tuple(lost))


def peak(rate, decay):
    """0.7 at a learning rate of 0.01 and a decay of 0.3."""
    return 0.7 - 0.05 * (rate + 2) ** 2 - 0.2 * (decay - 0.3) ** 2


def test_the_spline_is_scipys():
    generator = np.random.default_rng(0)
    places, score, at = generator.uniform(size=(30, 2)), generator.normal(size=30), generator.uniform(size=(7, 2))
    spline = contour._Spline(places)
    for number in (0, 5, 12):
        penalty = contour._PENALTIES[number]
        theirs = RBFInterpolator(places, score, kernel="thin_plate_spline", smoothing=penalty)(at)
        assert spline.at(at, score, number) == pytest.approx(theirs, abs=1e-9)


def test_errors_of_trials_left_out_are_those_of_fits_without_them():
    generator = np.random.default_rng(1)
    places, score = generator.uniform(size=(12, 2)), generator.normal(size=12)
    found = contour._Spline(places).errors(score[:, None])[8, 0]
    left = []
    for i in range(12):
        rest = np.arange(12) != i
        one = RBFInterpolator(
            places[rest], score[rest], kernel="thin_plate_spline", smoothing=contour._PENALTIES[8]
        )(places[[i]])  # fmt: skip
        left.append(float((score[i] - one[0]) ** 2))
    assert found == pytest.approx(np.mean(left))


def test_the_best_place_of_a_peak_is_found_and_every_trial_is_a_dot():
    lost = [LostTrial({"lr": 0.05, "decay": 0.5, "loss": 0}, "diverged", math.nan)]
    (found,) = surfaces(search(peak, lost=lost), RANGES)
    assert (found.x_name, found.y_name, found.log) == ("lr", "decay", (True, False))
    assert math.log10(found.best[0]) == pytest.approx(-2, abs=0.3)
    assert found.best[1] == pytest.approx(0.3, abs=0.2)
    assert found.best[2] == pytest.approx(0.7, abs=0.015)
    assert found.predicted > 0.8
    figure = contour_plot(found)
    json.dumps(figure.to_plotly_json(), allow_nan=False, default=list)
    dots, failed = figure.data[1], figure.data[2]
    assert list(dots.x) == pytest.approx(found.trials[:, 0])
    assert list(dots.marker.color) == pytest.approx(found.trials[:, 2])
    assert (failed.name, list(failed.x), list(failed.y)) == ("failed", [0.05], [0.5])


def test_of_a_loss_the_best_place_is_the_lowest():
    (found,) = surfaces(search(lambda rate, decay: -peak(rate, decay), minimize=True), RANGES)
    assert found.best[2] == pytest.approx(-0.7, abs=0.015)
    assert math.log10(found.best[0]) == pytest.approx(-2, abs=0.3)


def test_nothing_is_drawn_outside_of_the_trials():
    (found,) = surfaces(search(peak), RANGES)
    corners = found.values[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.isnan(corners).all()
    assert np.isfinite(found.values[20, 20])


def test_the_colour_range_is_six_standard_deviations_or_wider():
    (found,) = surfaces(search(lambda rate, decay: 0.7 - 0.004 * (rate + 2) ** 2, noise=0.01, trials=120), RANGES)
    assert found.span == pytest.approx(0.06, rel=0.15)
    area = contour_plot(found).data[0]
    assert area.zmax - area.zmin >= found.span - 1e-9


@pytest.mark.parametrize(
    "tried",
    [search(peak, trials=19), search(lambda rate, decay: 0.6), search(lambda rate, decay: 0.6, noise=0.0)],
    ids=["few", "noise", "equal"],
)
def test_no_surface_of_few_trials_or_where_it_predicts_nothing(tried):
    assert surfaces(tried, RANGES) == ()


def test_levels_and_choices_have_no_surface():
    ranges = {"lr": {"choice": ["a", "b"]}, "decay": RANGES["decay"], "loss": RANGES["loss"]}
    assert surfaces(search(peak), ranges) == ()
