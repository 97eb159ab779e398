"""`analysis.plots`: every function gives a figure of a study that allows it, and one sentence where none can be."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from benchmarks.known_truths import FOUR, LR, TRUTHS
from pretune import analysis
from pretune.analysis import ResultsError, plots
from pretune.analysis.figures.theme import for_print
from pretune.analysis.report.figures import figure_groups


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("truths")
    return {name: write(top / name, np.random.default_rng(7)) for name, write in TRUTHS.items()}


@pytest.mark.parametrize(
    ("function", "study"),
    [
        (plots.sensitivity, "failing"), (plots.importance, "cliff"), (plots.cells, "interaction"),
        (plots.differences, "saving"), (plots.labels, "saving"), (plots.order, "interaction"),
        (plots.cost, "front"), (plots.budget, "cliff"), (plots.trials, "ties"), (plots.profiles, "data-sets"),
        (plots.iqm, "data-sets"), (plots.rank_differences, "data-sets"),
    ],
)  # fmt: skip
def test_each_gives_a_figure_that_is_json(folders, function, study):
    figure = function(folders[study])
    assert isinstance(figure, go.Figure)
    assert len(figure.data) > 0
    json.dumps(figure.to_plotly_json(), allow_nan=False, default=list)


def test_interactions_give_one_figure_for_each_pair(folders):
    assert len(plots.interactions(folders["interaction"])) == 1


def test_a_search_is_chosen_by_stage_and_cell(folders):
    figure = plots.sensitivity(folders["rare-class"], "pretrain")
    assert figure.layout.annotations[0].text.startswith("<b>pretrain.method.temperature</b><br>")
    assert "of 24 without a score" in figure.layout.annotations[0].text
    one = plots.sensitivity(folders["cliff"], cell=FOUR[0])
    assert {trace.name for trace in one.data if trace.name} >= {FOUR[0]}
    assert FOUR[1] not in {trace.name for trace in one.data}
    assert plots.importance(folders["cliff"], cell=FOUR[0], method="PED-ANOVA").data[0].y[0] == LR


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda f: plots.sensitivity(f["saving"]), "no search of finetune with '' in its name"),
        (lambda f: plots.importance(f["cliff"], method="fANOVA"), "fANOVA ranks within one search: name one"),
        (lambda f: plots.labels(f["cliff"]), "no factor has amounts as its levels"),
        (lambda f: plots.cells(f["cliff"] / "nowhere"), "there is no study folder"),
        (lambda f: plots.differences(f["cliff"]), "baseline"),
        (lambda f: plots.cost(f["cliff"]), "no seconds are known of two cells"),
        (lambda f: plots.search_cost(f["cliff"]), "no seconds are known of two cells or configurations"),
        (lambda f: plots.contour(f["cliff"], cell="nowhere"), "no search of finetune with 'nowhere'"),
        (lambda f: plots.contour(f["failing"]), "a contour takes two ranges, 20 finished trials of one search"),
        (lambda f: plots.trials(f["rare-class"], "pretrain"), "varied fewer than two parameters"),
        (lambda f: plots.rank_differences(f["cliff"]), "no factor goes through several data sets"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(folders, call, said):
    with pytest.raises(ResultsError, match=said):
        call(folders)


def test_plots_is_an_attribute_of_analysis():
    assert analysis.plots is plots


# -------------------------------------------------------------------------------------------------------- the truths


def test_of_an_irrelevant_parameter_nothing_is_above_the_floor_and_of_a_cliff_the_learning_rate(folders):
    assert set(plots.importance(folders["irrelevant"]).data[0].marker.symbol) == {"square-open"}
    cliff = plots.importance(folders["cliff"]).data[0]
    assert dict(zip(cliff.y, cliff.marker.symbol, strict=True)) == {
        "finetune.optimizer.lr": "square", "finetune.optimizer.weight_decay": "square-open",
    }  # fmt: skip


def test_the_front_is_the_three_that_nothing_beats(folders):
    """Wide takes 60 s for 0.65 where medium takes 30 s for 0.70."""
    marks = {trace.name.split(" ")[0]: trace.marker.symbol for trace in plots.cost(folders["front"]).data[:4]}
    assert [name for name, symbol in marks.items() if symbol.endswith("-open")] == ["model=wide"]
    assert "model=wide (0% on the front)" in {trace.name for trace in plots.cost(folders["front"]).data}


def test_of_a_needle_the_search_is_rising_and_of_a_plateau_it_is_not(folders):
    assert "still rising" in plots.alternative_of(plots.budget(folders["rising"]))
    saturated = plots.alternative_of(plots.budget(folders["saturated"]))
    assert "still rising" not in saturated
    assert float(saturated.split("bring at most ")[1].split(",")[0]) < 0.03


def test_a_ridge_runs_from_corner_to_corner(folders):
    """0.7 where log10 of both sum to -6.5: at a tenth of the one the best of the other is ten times as large."""
    (figure,) = plots.contour(folders["ridge"])
    area = figure.data[0]
    table = np.array([[np.nan if value is None else value for value in row] for row in area.z])
    x, y = np.log10(np.array(area.x)), np.log10(np.array(area.y))
    rows = [i for i in range(12, 49) if np.isfinite(table[i]).sum() > 20]
    best = [x[np.nanargmax(table[i])] + y[i] for i in rows]
    assert np.median(best) == pytest.approx(-6.5, abs=0.5)


def test_over_data_sets_the_better_start_is_alone_and_equal_ones_share_a_bar(folders):
    text = plots.alternative_of(plots.rank_differences(folders["data-sets"]))
    assert text.startswith("start=mae: 1.00; ")
    (shared,) = [part for part in text.split("; ") if part.startswith("not told apart")]
    assert "mae" not in shared


def test_ties_share_a_line_of_the_legend(folders):
    names = [trace.name for trace in plots.trials(folders["ties"]).data]
    assert names[-1].startswith("0.6 (")


def test_the_label_saving_of_the_truth_is_in_the_interval_of_its_sentence(folders):
    group = next(group for group in figure_groups(folders["saving"])[0] if group.title == "Over labels")
    low, high = (float(part) for part in group.note.split("95 %: ")[1].split(";")[0].split(" to "))
    assert low <= 200 <= high


# --------------------------------------------------------------------------------------------------------- for print


@pytest.mark.parametrize("inches", [3.4, 7.0])
def test_type_is_eight_points_at_the_width_of_a_column_or_a_page(folders, inches):
    before = plots.sensitivity(folders["failing"])
    figure = for_print(before, inches)
    assert figure.layout.width == round(96 * inches)
    fonts = [figure.layout.font, figure.layout.legend.font, figure.layout.xaxis.tickfont, figure.layout.yaxis.tickfont]
    fonts += [note.font for note in figure.layout.annotations] + [figure.layout.xaxis.title.font]
    assert [font.size * 72 / 96 for font in fonts] == pytest.approx([8.0] * len(fonts))
    assert min(trace.line.width for trace in figure.data if trace.line.width) >= 0.5
    assert before.layout.width is None  # the figure itself is unchanged
    assert [len(a.x) for a in figure.data] == [len(b.x) for b in before.data]
