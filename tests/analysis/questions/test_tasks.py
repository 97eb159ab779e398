"""Settings over several data sets: Demsar's worked example, SciPy's test, profiles by hand, and refusals."""

import json

import numpy as np
import pytest
from scipy import stats
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.figures.tasks import iqm_plot, profile_plot, rank_difference_plot
from pretune.analysis.questions import tasks
from pretune.analysis.questions.tasks import (
    critical_difference,
    friedman,
    mean_ranks,
    over_tasks,
    profile_of,
    task_factor,
)
from pretune.analysis.statistics import iqm

FACTORS = {"start": ["random", "simclr", "mae"], "on": ["pets", "leaves", "cells", "roads", "skin"]}


def study(folder, score, factors=FACTORS, seeds=3, of="on", **report):
    """`score`: (start, place of the data set, seed) -> value; every level of `of` is a data set of its own."""
    cells = [f"start={a} on={b}" for a in factors["start"] for b in factors["on"]]
    scores = {
        f"start={a} on={b}": [score(a, place, seed) for seed in range(seeds)]
        for a in factors["start"]
        for place, b in enumerate(factors["on"])
    }
    folder = write_study(folder, scores, factors, **report)
    content = json.loads((folder / "study.json").read_text())
    content["tasks"] = {cell: dict(part.split("=") for part in cell.split()).get(of, "pets") for cell in cells}
    (folder / "study.json").write_text(json.dumps(content))
    return load(folder), load_header(folder)


# ------------------------------------------------------------------------------------------------------------- ranks


def test_the_worked_example_of_demsar():
    """2006, section 3.2.2: four classifiers on 14 data sets, F = 3.69, critical difference 1.25."""
    f, p = friedman(np.array([3.143, 2.000, 2.893, 1.964]), 14)
    assert f == pytest.approx(3.69, abs=0.01)
    assert p < 0.05
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(("settings", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)])
def test_the_critical_values_are_those_of_demsars_table_5(settings, q):
    assert critical_difference(settings, 6) / np.sqrt(settings * (settings + 1) / 36) == pytest.approx(q, abs=0.0015)


def test_the_chi_square_behind_f_is_scipys():
    table = np.random.default_rng(0).normal(size=(9, 4))
    f, _ = friedman(mean_ranks(table), 9)
    square = stats.friedmanchisquare(*table.T).statistic
    assert f == pytest.approx(8 * square / (9 * 3 - square))


def test_ties_share_a_rank():
    assert mean_ranks(np.array([[0.5, 0.5, 0.1], [0.9, 0.5, 0.1]])).tolist() == [1.25, 1.75, 3.0]


def test_a_setting_that_is_first_everywhere_is_told_from_the_last(tmp_path):
    """Ranks 1, 2 and 3 on each of five data sets: the chi square is 10 = 5 (3 - 1), as large as it can be."""
    better = {"mae": 0.2, "simclr": 0.1, "random": 0.0}
    found = over_tasks(*study(tmp_path, lambda a, place, seed: 0.5 + better[a] + 0.01 * place), JACCARD).ranks
    assert found.settings == ("start=mae", "start=simclr", "start=random")
    assert found.ranks.tolist() == [1, 2, 3]
    assert found.p == 0
    assert found.difference == pytest.approx(
        2.3437 * np.sqrt(12 / 30), abs=1e-3
    )  # 1.482: neighbours are not told apart
    assert found.groups == ((0, 1), (1, 2))
    figure = rank_difference_plot(found)
    json.dumps(figure.to_plotly_json(), allow_nan=False, default=list)
    bars = [trace for trace in figure.data if trace.name == "not shown to differ"]
    assert [list(bar.x) for bar in bars] == [pytest.approx([0.96, 2.04]), pytest.approx([1.96, 3.04])]
    texts = [note.text for note in figure.layout.annotations]
    assert texts[:3] == ["start=mae 1.00", "start=simclr 2.00", "3.00 start=random"]


def test_without_friedmans_test_all_are_one_group(tmp_path):
    found = over_tasks(*study(tmp_path, lambda a, place, seed: 0.5 + 0.01 * ((len(a) * 7 + place * 5) % 3)), JACCARD)
    assert found.ranks.p > 0.05
    assert found.ranks.groups == ((0, 2),)


def test_of_a_loss_the_lowest_is_first(tmp_path):
    metric = "val/pretext_loss"
    better = {"mae": 0.2, "simclr": 0.1, "random": 0.0}
    arguments = study(tmp_path, lambda a, place, seed: 0.5 + better[a] + 0.01 * place, metrics=(metric,))
    assert over_tasks(*arguments, metric).ranks.settings[0] == "start=random"


# ---------------------------------------------------------------------------------------------------------- profiles


def test_the_share_of_runs_above_a_score_by_hand():
    """All of 0.1, 0.2, 0.2 and 0.4 are above 0, one is above 0.2, and none above 0.4."""
    table = np.array([[0.1, 0.2], [0.2, 0.4]])
    assert profile_of(table, np.array([0.0, 0.15, 0.2, 0.3, 0.4])).tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]


def test_profiles_and_iqm_are_over_all_seeds_and_tasks(tmp_path):
    generator = np.random.default_rng(2)
    values = {
        (a, place, seed): generator.uniform() for a in FACTORS["start"] for place in range(5) for seed in range(4)
    }
    found = over_tasks(*study(tmp_path, lambda *key: values[key], seeds=4), JACCARD).profiles
    assert (found.factor, found.seeds, len(found.tasks)) == ("on", 4, 5)
    table = np.array([[values["mae", place, seed] for place in range(5)] for seed in range(4)])
    one = found.settings[2]
    assert one.setting == "start=mae"
    assert one.share[0] == 1
    assert one.share[-1] == 0
    middle = len(found.scores) // 2
    assert one.share[middle] == pytest.approx(np.mean(table > found.scores[middle]))
    assert one.iqm.estimate == pytest.approx(iqm(table)) == pytest.approx(np.sort(table.ravel())[5:15].mean())
    assert one.iqm.low < one.iqm.estimate < one.iqm.high
    assert (one.low <= one.share + 1e-9).all()
    lines = [trace for trace in profile_plot(found).data if trace.name]
    assert list(lines[2].y) == pytest.approx(list(one.share))
    assert list(iqm_plot(found).data[0].x) == pytest.approx([setting.iqm.estimate for setting in found.settings])


def test_an_interval_of_equal_seeds_has_no_width(tmp_path):
    """Seeds are redrawn within a task and never across: where seeds agree nothing changes, however tasks differ."""
    found = over_tasks(*study(tmp_path, lambda a, place, seed: 0.1 * place), JACCARD).profiles
    assert found.settings[0].iqm == pytest.approx((0.2, 0.2, 0.2))
    assert (found.settings[0].low == found.settings[0].high).all()


# ---------------------------------------------------------------------------------------------------------- refusals


def test_fewer_tasks_or_seeds_are_refused_in_a_sentence(tmp_path):
    few = FACTORS | {"on": ["pets", "leaves"]}
    found = over_tasks(*study(tmp_path / "a", lambda a, place, seed: 0.5 + seed, few), JACCARD)
    assert (found.profiles, found.ranks) == (None, None)
    assert found.notes[0].startswith("No profile and no IQM of test/jaccard")
    assert found.notes[0].endswith("over on: they take 3 tasks and 3 seeds of each, and there are 2 and 3.")
    assert found.notes[1].endswith("they take 5 tasks and 3 settings, and there are 2 and 3.")
    two = over_tasks(*study(tmp_path / "b", lambda a, place, seed: 0.5 + seed, seeds=2), JACCARD)
    assert two.profiles is None
    assert two.ranks is not None


def test_folds_or_labels_of_one_data_set_are_no_tasks(tmp_path):
    results, header = study(tmp_path, lambda a, place, seed: 0.5, of="neither")
    assert task_factor(header) is None
    assert over_tasks(results, header, JACCARD) is None


def test_a_data_set_that_comes_with_another_factor_is_no_factor_of_tasks(tmp_path):
    results, header = study(tmp_path, lambda a, place, seed: 0.5)
    mixed = {label: f"{task} {label[:9]}" for label, task in header.tasks.items()}
    assert task_factor(header.__class__(**{**header.__dict__, "tasks": mixed})) is None
    assert task_factor(header) == "on"
    assert results is not None


def test_any_claim_of_five_tied_settings_is_made_in_at_most_five_per_cent():
    generator, claims = np.random.default_rng(0), 0
    difference = critical_difference(5, tasks.FEWEST_RANKED)
    for _ in range(1000):
        ranks = mean_ranks(generator.normal(size=(tasks.FEWEST_RANKED, 5)))
        claims += friedman(ranks, tasks.FEWEST_RANKED)[1] < 0.05 and np.ptp(ranks) >= difference
    assert claims <= 50
