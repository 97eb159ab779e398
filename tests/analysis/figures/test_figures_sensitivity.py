"""The figures of sensitivity show every trial as what it is, and leave nothing out without a word."""

import json

import numpy as np
import pandas
import pytest
from studies import write_study

from benchmarks.known_truths import LR, RANGES, TRUTHS, searched
from pretune.analysis.figures import sensitivity as drawing
from pretune.analysis.figures.sensitivity import importance_plot, sensitivity_plot
from pretune.analysis.load.searches import load_searches
from pretune.analysis.questions.importance import Importance
from pretune.analysis.questions.searched import searches
from pretune.analysis.questions.sensitivity import panel_groups
from pretune.analysis.report.figures import figure_groups
from pretune.analysis.report.groups import group_of
from pretune.analysis.report.tuning import panel_items


def as_json(figure):
    """The JSON that the page gets; raises for NaN."""
    return json.loads(json.dumps(figure.to_plotly_json(), allow_nan=False, default=list))


def groups_of(folder):
    content = json.loads((folder / "study.json").read_text())
    return searches(load_searches(folder), content), content["ranges"]


def drawn(folder):
    (group,) = panel_groups(*groups_of(folder))
    return as_json(sensitivity_plot(group))


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    return TRUTHS["failing"](tmp_path_factory.mktemp("failing"), np.random.default_rng(7))


def test_every_trial_of_every_cell_is_drawn_and_failures_stand_on_the_rug(failing):
    figure, (found, _) = drawn(failing), groups_of(failing)
    rug = [trace for trace in figure["data"] if trace.get("meta") == "rug" and trace["xaxis"] == "x"]
    lost = sorted(x for trace in rug for x in trace["x"])
    assert lost == pytest.approx(sorted(trial.values[LR] for search in found for trial in search.lost))
    assert len(lost) == 14
    marks = [t for t in figure["data"] if t["mode"] == "markers" and t["xaxis"] == "x" and t.get("meta") != "rug"]
    stars = [t for t in marks if t["marker"]["symbol"] == "star"]
    assert sum(len(t["x"]) for t in marks) - sum(len(t["x"]) for t in stars) == sum(len(s.trials) for s in found) == 34
    assert len(stars) == 4


def test_all_panels_share_one_scale_and_say_where_trials_failed(failing):
    layout = drawn(failing)["layout"]
    assert [layout[key]["matches"] for key in ("yaxis3",)] == ["y"]
    titles = [note["text"] for note in layout["annotations"]]
    assert titles[0] == "<b>finetune.optimizer.lr</b><br>14 of 48 diverged, all above 0.0077"
    assert "all" not in titles[1].partition("<br>")[2]
    assert layout["xaxis"]["type"] == "log"


def test_a_choice_has_its_options_on_the_axis_and_its_text_is_escaped(tmp_path):
    generator = np.random.default_rng(0)
    rows = searched(["a=<x>", "a=y"], 9, lambda v, c: 0.5, generator, ("finetune.loss",))
    content = {"tune": {}, "ranges": {"finetune.loss": {"choice": ["dice", "cross-entropy"]}}}

    (group,) = panel_groups(searches(pandas.DataFrame(rows), content), content["ranges"])
    figure = as_json(sensitivity_plot(group))
    assert figure["layout"]["xaxis"]["ticktext"] == ["dice", "cross-entropy"]
    assert "<x>" not in json.dumps(figure)
    assert any(trace.get("name") == "a=&lt;x&gt;" for trace in figure["data"])


def test_many_searches_are_drawn_together_and_then_each_by_itself():

    rows = searched([f"a={i}" for i in range(drawing.MOST_COLORED + 1)], 8, lambda v, c: 0.5, np.random.default_rng(0))
    found = searches(pandas.DataFrame(rows), {"tune": {}, "ranges": RANGES})
    names = [name for name, _ in panel_items(found, RANGES)]
    assert names == ["all searches of finetune, val/jaccard", *(f"fine-tuning of a={i}" for i in range(9))]
    assert len(panel_items(found[:4], RANGES)) == 1


def test_importance_is_filled_above_the_floor_alone_and_names_its_method():
    found = Importance("s", ("a", "b"), np.array([0.9, 0.1]), np.array([0.8, 0.0]), np.array([0.95, 0.2]), 20, "",
                       "main effects", np.array([0.5, 0.4]))  # fmt: skip
    figure = as_json(importance_plot(found))
    shares, floor = figure["data"]
    assert shares["marker"]["symbol"] == ["square", "square-open"]
    assert shares["error_x"]["array"] == pytest.approx([0.05, 0.1])
    assert floor["x"] == [0.5, 0.4]
    assert "explains alone" in figure["layout"]["xaxis"]["title"]["text"]
    named = as_json(importance_plot(found._replace(method="PED-ANOVA")))["layout"]["xaxis"]["title"]["text"]
    assert "PED-ANOVA" in named


@pytest.mark.parametrize(("count", "left"), [(24, 0), (25, 1), (40, 16)])
def test_no_figure_is_left_out_without_a_word(count, left):
    group = group_of("t", "n", [(f"f{i}", i) for i in range(count)], lambda i: i, 24)
    assert len(group.figures) == count - left
    assert ("Not shown on this page" in group.note) == bool(left)
    if left:
        assert f"{left} more (f24" in group.note


def test_a_study_with_searches_says_how_its_curves_may_be_read(tmp_path):
    folder = write_study(tmp_path, {"a=x": [0.5, 0.6]}, {"a": ["x"]})
    content = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(content | {"ranges": RANGES}))

    pandas.DataFrame(searched(["a=x"], 5, lambda v, c: 0.5, np.random.default_rng(0))).to_parquet(
        folder / "searches.parquet"
    )
    groups, notes = figure_groups(folder)
    found = next(group for group in groups if group.title == "Sensitivity")
    assert found.names == ("all searches of finetune, val/jaccard",)
    assert "not the effect of one parameter alone" in found.note
    why = "5 finished trials are too few to rank parameters (8 are needed) (all searches of finetune, val/jaccard)"
    assert notes == (f"No importance: {why}.",)
