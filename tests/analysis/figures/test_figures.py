"""Figures show the numbers that they are given, as JSON that a browser reads, with all text escaped."""

import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import write_study

from pretune.analysis import load, load_header
from pretune.analysis.figures.figures import (
    CellDots,
    amount_plot,
    difference_plot,
    dot_plot,
    importance_plot,
    learning_plot,
    response_plot,
    write_files,
)
from pretune.analysis.figures.theme import log_ticks
from pretune.analysis.load.results import PublishedValue, ResultsError
from pretune.analysis.questions.curves import AmountCurves, Band, LearningCurves
from pretune.analysis.questions.differences import Difference, Differences
from pretune.analysis.questions.sensitivity import Importance, Response
from pretune.analysis.report.figures import figure_groups
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


def test_a_choice_has_its_options_on_the_axis():
    ones = np.array([0.0, 1.0])
    figure = response_plot(Response("s", "p", "m", ("dice", "<i>"), False, ones, ones, ones, ones, np.array([NAN, 1])))
    axis = as_json(figure)["layout"]["xaxis"]
    assert (axis["tickvals"], axis["ticktext"]) == ([0, 1], ["dice", "&lt;i&gt;"])


@pytest.mark.parametrize("options", [(), ("dice", "focal")])
def test_bars_of_a_response_are_of_trials_and_its_band_of_search_seeds(options):
    two = np.array([0.0, 1.0])
    shown = Response("s", "p", "m", options, False, two, two, two, two, np.array([0.3, 0.4]), np.array([0.1, 0.2]), 3)
    band, trials, means = as_json(response_plot(shown))["data"]
    assert band["name"] == "± std of that mean over 3 search seeds"
    assert (trials["name"], means["name"].split(", ")[1]) == ("one trial", "bar: their std")
    assert means["error_y"]["array"] == pytest.approx([0.3, 0.4])
    if options:
        assert band["error_y"]["array"] == pytest.approx([0.1, 0.2])
    else:
        assert band["y"] == pytest.approx([0.1, 1.2, 0.8, -0.1])
        assert band["fill"] == "toself"


def test_importance_has_whiskers():
    found = Importance("s", ("a", "b"), np.array([0.9, 0.1]), np.array([0.8, 0.0]), np.array([0.95, 0.2]), 20, "")
    (trace,) = as_json(importance_plot(found))["data"]
    assert trace["error_x"]["array"] == pytest.approx([0.05, 0.1])
    assert trace["error_x"]["arrayminus"] == pytest.approx([0.1, 0.1])


def test_a_study_with_searches_gets_response_curves_and_says_that_they_are_biased(tmp_path):
    folder = write_study(tmp_path, {"a=x": [0.5, 0.6]}, {"a": ["x"]})
    content = json.loads((folder / "study.json").read_text())
    content["ranges"] = {"finetune.optimizer.lr": {"log_uniform": [0.001, 1.0]}}
    (folder / "study.json").write_text(json.dumps(content))
    results = load(folder)
    trials = [
        {**results.iloc[0], "phase": "search", "metric": "val/jaccard", "fingerprint": f"t{i}", "value": 0.1 * i}
        | {"chosen": json.dumps({"finetune.optimizer.lr": 0.01 * (i + 1)})}
        for i in range(5)
    ]
    type(results)([*results.to_dict("records"), *trials]).to_parquet(folder / "results.parquet")
    groups, notes = figure_groups(folder)
    found = next(group for group in groups if group.title == "Sensitivity")
    assert found.names == ("fine-tuning of a=x: finetune.optimizer.lr",)
    assert "not the effect of one parameter alone" in found.note
    assert notes == ("No importance: 5 finished trials are too few to rank parameters (8 are needed) (fine-tuning of a=x).",)  # fmt: skip # noqa: E501
    assert load_header(folder).study == "invented"


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
