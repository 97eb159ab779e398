"""Figures show the numbers that they are given, as JSON that a browser reads, with all text escaped."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.analysis.figures.figures import (
    CellDots,
    amount_plot,
    difference_plot,
    dot_plot,
    learning_plot,
    write_files,
)
from pretune.analysis.figures.theme import log_ticks
from pretune.analysis.load.results import PublishedValue, ResultsError
from pretune.analysis.questions.curves import AmountCurves, Band, LearningCurves
from pretune.analysis.questions.differences import Difference, Differences
from pretune.analysis.statistics import Interval

NAN = math.nan
BAND = Band("<b>a</b>", np.array([1.0, 2]), np.array([0.5, 0.6]), np.array([0.4, NAN]), np.array([0.6, NAN]), np.array([2, 1]))  # fmt: skip # noqa: E501


def as_json(figure):
    """What the page gets: raises for NaN."""
    return json.loads(json.dumps(figure.to_plotly_json(), allow_nan=False, default=list))


def test_dots_show_every_seed_the_mean_and_its_interval():
    cells = [CellDots("a=x", (0.4, 0.6), Interval(0.5, 0.1, 0.9)), CellDots("a=y", (), Interval(NAN, NAN, NAN))]
    seeds, means = as_json(dot_plot(cells, "m"))["data"]
    assert (seeds["x"], seeds["y"]) == ([0.4, 0.6], ["a=x", "a=x"])
    assert means["x"] == [0.5, None]
    assert means["error_x"]["array"] == [pytest.approx(0.4), None]
    assert means["error_x"]["arrayminus"] == [pytest.approx(0.4), None]


def test_the_first_cell_stands_on_top():
    cells = [CellDots(name, (0.5,), Interval(0.5, NAN, NAN)) for name in ("a=x", "a=y", "a=z")]
    axis = as_json(dot_plot(cells, "m"))["layout"]["yaxis"]
    assert axis["categoryarray"] == ["a=z", "a=y", "a=x"]


def test_a_difference_is_filled_where_holms_p_is_below_five_percent():
    rows = (
        Difference("a", "b", 0.1, 0.05, 0.15, 0.01, 0.02, 3),
        Difference("c", "b", 0.1, -0.1, 0.3, 0.2, 0.2, 3),
        Difference("d", "b", 0.1, NAN, NAN, NAN, NAN, 1),
    )
    (trace,) = as_json(difference_plot(Differences("s", "m", "b", rows, False, ())))["data"]
    assert trace["marker"]["symbol"] == ["diamond", "diamond-open", "diamond-open"]
    assert trace["error_x"]["array"][2] is None


def test_a_band_is_an_area_where_it_exists_and_a_line_everywhere():
    area, line = as_json(learning_plot(LearningCurves("finetune", "m", (BAND,))))["data"]
    assert (area["x"], area["y"]) == ([1, 1], [0.6, 0.4])
    assert (line["x"], line["y"]) == ([1, 2], [0.5, 0.6])
    assert line["name"] == "&lt;b&gt;a&lt;/b&gt;"


def test_published_values_stand_beside_ours_as_stars():
    cells = [CellDots("a=x", (0.4,), Interval(0.4, NAN, NAN)), CellDots("a=y", (0.5,), Interval(0.5, NAN, NAN))]
    published = {"a=x": PublishedValue(("x",), 0.45, 0.02)}
    *_, stars = as_json(dot_plot(cells, "m", published))["data"]
    assert (stars["name"], stars["x"], stars["y"]) == ("published", [0.45], ["a=x"])
    assert stars["error_x"]["array"] == [0.02]
    assert len(as_json(dot_plot(cells, "m"))["data"]) == 2


def test_published_values_join_their_band():
    theirs = Band("a", np.array([1.0, 100]), np.array([0.3, 0.4]), np.array([NAN, 0.3]), np.array([NAN, 0.5]), np.array([0, 0]))  # fmt: skip # noqa: E501
    curves = AmountCurves("labels", "m", "percent", ("1%", "all"), (1.0, 100.0), True, (BAND,), (theirs,))
    *_, line, star = as_json(amount_plot(curves))["data"]
    assert star["line"]["color"] == line["line"]["color"]
    assert (star["y"], star["error_y"]["array"]) == ([0.3, 0.4], [None, pytest.approx(0.1)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=20))
def test_logarithmic_ticks_reach_around_the_values_and_are_round(values):
    ticks = log_ticks(values)["tickvals"]
    assert min(ticks) <= min(values) * (1 + 1e-9)
    assert max(ticks) >= max(values) * (1 - 1e-9)
    assert all(f"{tick:e}"[0] in "125" for tick in ticks)


def test_amounts_are_named_on_a_logarithmic_axis():
    curves = AmountCurves("labels", "m", "percent", ("1%", "all"), (1.0, 100.0), True, (BAND,))
    axis = as_json(amount_plot(curves))["layout"]["xaxis"]
    assert (axis["type"], axis["tickvals"], axis["ticktext"]) == ("log", [1, 100], ["1%", "all"])


def test_figure_files_without_a_browser_are_one_sentence(tmp_path, monkeypatch):
    figure = dot_plot([CellDots("a=x", (0.4,), Interval(0.4, NAN, NAN))], "m")

    def no_browser(*_, **__):
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    monkeypatch.setattr("plotly.io.write_images", no_browser)
    with pytest.raises(ResultsError, match=r"pip install 'pretune\[figures\]'"):
        write_files([("dots", figure)], tmp_path, "svg")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # kaleido's own
def test_figures_are_written_as_svg(tmp_path):
    pytest.importorskip("kaleido")
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium on this machine: apt-get install chromium")
    figure = dot_plot([CellDots("a=x", (0.4,), Interval(0.4, NAN, NAN))], "m")
    (path,) = write_files([("dots", figure)], tmp_path, "svg")
    assert path.read_text().startswith("<svg")
