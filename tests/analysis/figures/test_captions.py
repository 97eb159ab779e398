"""Captions and alternative texts hold the numbers of their figures, worked by hand, for every figure of a report."""

import json
import math

import numpy as np
import pandas
import pytest
from studies import JACCARD, write_study

from benchmarks.known_truths import LR, RANGES, TRUTHS, searched
from pretune.analysis import load, load_header, plots
from pretune.analysis.figures import figures, pairs, sensitivity, tasks
from pretune.analysis.figures.budget import budget_plot
from pretune.analysis.figures.captions import alternative_of, caption_of, described
from pretune.analysis.figures.factors import interaction_plot, rank_plot
from pretune.analysis.questions.budget import budgets
from pretune.analysis.questions.dots import cell_dots
from pretune.analysis.questions.importance import Importance
from pretune.analysis.questions.interactions import Facet, Interaction
from pretune.analysis.questions.pairs import HeatMapGrid, Tradeoff, parallel
from pretune.analysis.questions.ranks import Ranks
from pretune.analysis.questions.searched import searches
from pretune.analysis.questions.sensitivity import panel_groups
from pretune.analysis.questions.tasks import Profile, Profiles, RankTest
from pretune.analysis.report.figures import figure_groups, write_figures
from pretune.analysis.statistics import Interval

NAN = math.nan


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    top = tmp_path_factory.mktemp("captions")
    return {name: write(top / name, np.random.default_rng(7)) for name, write in TRUTHS.items()}


@pytest.mark.parametrize("name", ["failing", "saving"])
def test_every_figure_of_a_report_has_both(truths, name):
    groups, _ = figure_groups(truths[name])
    for group in groups:
        for caption, alternative in zip(group.captions, group.alternatives, strict=True):
            assert caption.endswith((".", ")")), group.title
            assert any(character.isdigit() for character in alternative), group.title


def test_cells_have_their_means_intervals_and_counts(tmp_path):
    """0.70, 0.71 and 0.72 have a mean of 0.71 and a half interval of 4.303 * 0.01 / sqrt(3) = 0.0248."""
    folder = write_study(tmp_path, {"a=x": [0.70, 0.71, 0.72], "a=y": [0.5, NAN, NAN]}, {"a": ["x", "y"]})
    figure = figures.dot_plot(cell_dots(load(folder), load_header(folder), JACCARD), JACCARD)
    assert caption_of(figure).startswith(
        "test/jaccard of 2 cells. Circles: 1 to 3 seeds. Diamonds: their means with 95 %"
    )
    assert alternative_of(figure) == "a=x: 0.710 [0.685, 0.735], n=3; a=y: 0.500, n=1 of 3"


def test_differences_labels_and_interactions_of_the_saving(truths):
    against = plots.differences(truths["saving"])
    assert "paired over 5 seeds" in caption_of(against)
    assert alternative_of(against).startswith("labels=50 start=pretrained: +0.093 [+0.075, +0.110], p < 0.001;")
    labels = plots.labels(truths["saving"])
    assert "Lines: means over 5 seeds; bands: one standard deviation" in caption_of(labels)
    assert "start=pretrained with labels=50 scores what start=random does with about" in alternative_of(labels)
    (interaction,) = plots.interactions(truths["interaction"])
    low, high = (
        float(part) for part in alternative_of(interaction).split("[")[1].split("]")[0].replace("−", "-").split(",")
    )
    assert min(abs(low), abs(high)) < 0.08 < max(abs(low), abs(high))


def test_a_panel_says_where_trials_failed_and_what_was_chosen(truths):
    text = alternative_of(plots.sensitivity(truths["failing"]))
    assert text.startswith("finetune.optimizer.lr: 14 of 48 diverged, all above 0.0077; mean 0.")
    assert "chosen " in text


def test_importance_names_what_chance_reaches():
    found = Importance("s", ("a", "b"), np.array([0.9, 0.1]), np.array([0.8, 0.0]), np.array([0.95, 0.2]), 20, "",
                       "main effects", np.array([0.5, 0.4]))  # fmt: skip
    figure = sensitivity.importance_plot(found)
    assert alternative_of(figure) == (
        "a: 90% [80%, 95%], chance reaches 50%: above; b: 10% [0%, 20%], chance reaches 40%: not above"
    )
    assert "by main effects, 20 trials. Bars: 95 % interval" in caption_of(figure)


def test_ranks_maps_and_fronts():
    ranks = Ranks("m", ("a", "b"), np.array([[0.9, 0.1], [0.1, 0.9]]), 5, ())
    assert alternative_of(rank_plot(ranks)) == "a is first in 90%; b is first in 10%"
    grid = HeatMapGrid("t", "r", "c", "v", ("r1", "r2"), ("c1", "c2"), np.array([[0.1, NAN], [0.3, 0.2]]),
                       np.array([[2, 0], [4, 3]]), 0.5)  # fmt: skip
    figure = pairs.heat_map(grid)
    assert alternative_of(figure) == "highest 0.300 at r2, c1; lowest 0.100 at r1, c1"
    assert (
        caption_of(figure)
        == "t: v, each the mean of 2 to 4. Colours span six standard deviations over seeds, or all values."
    )
    x, y, none = np.array([1.0, 2.0]), np.array([0.5, 0.4]), np.array([NAN, NAN])
    front = pairs.tradeoff_plot(Tradeoff("cost", "score", ("p", "q"), x, y, none, none, np.array([True, False])))
    assert alternative_of(front) == "p: 1.000, 0.500 (on the front); q: 2.000, 0.400"
    assert "Bars" not in caption_of(front)


def test_searches_say_their_trend_and_their_groups():
    rows = searched(["a=x"], 24, lambda v, c: 0.5 + v[LR], np.random.default_rng(0))
    found = searches(pandas.DataFrame(rows), {"tune": {"sampler": "random"}, "ranges": RANGES})
    made = budgets(found)
    assert alternative_of(budget_plot(made)) == f"fine-tuning of a=x: {made[0].sentence}"
    assert "Wedge: what as many trials again may bring" in caption_of(budget_plot(made))
    learned = budgets([found[0]._replace(designed=False)])
    assert "Wedge" not in caption_of(budget_plot(learned))
    assert "Line" not in caption_of(budget_plot(learned))
    lines = parallel(found[0], RANGES)
    assert alternative_of(pairs.parallel_plot(lines)) == "; ".join(label for label, _ in reversed(lines.groups))
    (group,) = panel_groups(found, RANGES)
    assert "val/jaccard of 24 trials of finetune in 1 search over" in caption_of(sensitivity.sensitivity_plot(group))


def test_data_sets_are_named_and_what_is_not_told_apart():
    scores, share = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.25, 0.0])
    one = Profile("s=a", share, share, share, Interval(0.4, 0.3, 0.5))
    found = Profiles("m", "on", ("p", "q", "r"), 3, False, scores, (one,))
    assert alternative_of(tasks.profile_plot(found)) == "s=a: 25% above 0.500"
    assert alternative_of(tasks.iqm_plot(found)) == "s=a: 0.400 [0.300, 0.500]"
    assert "3 seeds of each of 3 data sets (p, q, r)" in caption_of(tasks.iqm_plot(found))
    test = RankTest("m", "on", ("p",) * 5, ("a", "b", "c"), np.array([1.2, 2.0, 2.8]), 4.0, 0.2, 1.48, ((0, 2),))
    assert alternative_of(tasks.rank_difference_plot(test)).endswith("c: 2.80; not told apart: a, b, c")
    assert "That any differ is not shown (Friedman, p = 0.200)" in caption_of(tasks.rank_difference_plot(test))


def test_a_long_list_is_cut_with_a_word():
    figure = described(plots._figures.go.Figure(), "c", [f"i{i}" for i in range(15)])
    assert alternative_of(figure).endswith("i11; and 3 more")
    assert caption_of(plots._figures.go.Figure()) == alternative_of(plots._figures.go.Figure()) == ""


def test_captions_are_written_beside_the_files(truths, monkeypatch):
    """Without a browser: only the drawing is left aside."""
    monkeypatch.setattr(figures.pio, "write_images", lambda *args, **kwargs: None)
    write_figures(truths["interaction"], "svg")
    text = (truths["interaction"] / "figures" / "captions.md").read_text()
    assert "**every-seed-test-jaccard.svg** test/jaccard of 4 cells." in text
    assert text.count("Alternative text: ") == sum(
        len(group.figures) for group in figure_groups(truths["interaction"])[0]
    )
    json.dumps(text)


@pytest.mark.parametrize("contrast", [Interval(0.1, 0.05, 0.15), Interval(math.nan, math.nan, math.nan)])
def test_an_interaction_is_named_above_its_panel_and_explained_only_where_it_is_known(contrast):
    lines = tuple((level, np.array([[0.5, 0.6], [0.4, 0.6]])) for level in ("unfrozen", "frozen"))
    facets = tuple(Facet(f"skip={skip}", lines, contrast, 2) for skip in ("true", "false"))
    figure = interaction_plot(Interaction("m", "encoder", "labels", ("10", "50"), facets))
    known = math.isfinite(contrast.low)
    titles = [note.text for note in figure.layout.annotations]
    assert [title.split("<br>")[1:] for title in titles] == [["interaction +0.100 [+0.050, +0.150], n=2"] * known] * 2
    assert ("difference of differences" in caption_of(figure)) == known
