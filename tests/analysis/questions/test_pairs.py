"""Pairs of factors, parameters, metrics and encoders, against cases worked by hand and a brute-force search."""

import json
import math

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.figures.pairs import heat_map, parallel_plot, tradeoff_plot
from pretune.analysis.load.results import ResultsError
from pretune.analysis.questions.pairs import (
    Tradeoff,
    cka_grids,
    cka_rows,
    factor_grids,
    parallel,
    pareto,
    search_tradeoffs,
    tradeoff,
    trial_grids,
)
from pretune.analysis.questions.searched import LostTrial, ScoredTrial, SearchRuns
from pretune.analysis.questions.tables import build_table
from pretune.analysis.report.figures import figure_groups, published_by_cell

LR, BATCH = "finetune.optimizer.lr", "finetune.batch_size"
RANGES = {LR: {"log_uniform": [1e-4, 1e-1]}, BATCH: {"choice": ["8", "16"]}}


def as_json(figure):
    return json.loads(json.dumps(figure.to_plotly_json(), allow_nan=False, default=list))


def study(folder, scores, factors, **report):
    folder = write_study(folder, scores, factors, **report)
    return load(folder), load_header(folder)


# -------------------------------------------------------------------------------------------------------- factors


def test_a_pair_of_factors_is_averaged_over_seeds_and_the_third_factor(tmp_path):
    """f x g x h: the mean at (f=a, g=x) is that of (1 + 3) / 2 and (5 + 7) / 2, which is 4."""
    factors = {"f": ["a", "b"], "g": ["x", "y"], "h": ["1", "2"]}
    scores = {f"f={f} g={g} h={h}": [0.0] for f in "ab" for g in "xy" for h in "12"}
    scores |= {"f=a g=x h=1": [1.0, 3.0], "f=a g=x h=2": [5.0, 7.0]}
    grids = factor_grids(*study(tmp_path, scores, factors), JACCARD)
    assert [(grid.row_name, grid.column_name) for grid in grids] == [("f", "g"), ("f", "h"), ("g", "h")]
    assert grids[0].values.tolist() == [[4.0, 0.0], [0.0, 0.0]]
    assert grids[0].counts.tolist() == [[2, 2], [2, 2]]


def test_only_settings_of_the_third_factor_that_every_place_has_are_averaged(tmp_path):
    """h=2 has not finished at (b, y): all places are then means over h=1 alone, and stay comparable."""
    factors = {"f": ["a", "b"], "g": ["x", "y"], "h": ["1", "2"]}
    scores = {f"f={f} g={g} h={h}": [float(h)] for f in "ab" for g in "xy" for h in "12"}
    scores["f=b g=y h=2"] = [math.nan]
    grid = factor_grids(*study(tmp_path, scores, factors), JACCARD)[0]
    assert grid.values.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_pair_without_a_whole_grid_and_a_factor_with_one_level_have_none(tmp_path):
    scores = {"f=a g=x": [0.5], "f=a g=y": [math.nan], "f=b g=x": [0.5], "f=b g=y": [0.5]}
    assert factor_grids(*study(tmp_path / "1", scores, {"f": ["a", "b"], "g": ["x", "y"]}), JACCARD) == ()
    assert factor_grids(*study(tmp_path / "2", {"f=a g=x": [1.0]}, {"f": ["a"], "g": ["x"]}), JACCARD) == ()


# ------------------------------------------------------------------------------------------------------ parameters


def searches_as_text(count=12, minimize=False):
    """Scores equal the position; rates rise by a factor of two, batch sizes take turns."""
    trials = [ScoredTrial({LR: 1e-3 * 2**i, BATCH: i % 2}, float(i), 1) for i in range(count)]
    return SearchRuns("s", "val/loss" if minimize else "val/jaccard", minimize, tuple(trials))


def test_fields_of_two_parameters_hold_the_mean_score_of_their_trials():
    (grid,) = trial_grids(searches_as_text(), RANGES)
    assert grid.counts.sum() == 12
    assert (grid.row_name, grid.column_name, grid.columns) == (LR, BATCH, ("8", "16"))
    assert np.nansum(grid.values * grid.counts) == sum(range(12))
    assert grid.values[0, 0] == np.mean([i for i in range(0, 12, 2) if i < grid.counts[0].sum()])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.floats(-1, 1)), min_size=2, max_size=40))
def test_every_trial_is_in_one_field_whatever_the_values(found):
    trials = tuple(ScoredTrial({"a": a, "b": b}, score, 1) for a, b, score in found)
    for grid in trial_grids(SearchRuns("s", "m", False, trials), {}):
        assert grid.values.shape == grid.counts.shape == (len(grid.rows), len(grid.columns))
        assert grid.counts.sum() == len(trials)
        total = np.nansum(np.where(grid.counts > 0, grid.values, 0) * grid.counts)
        assert total == pytest.approx(sum(score for *_, score in found), abs=1e-9)
        assert (np.isnan(grid.values) == (grid.counts == 0)).all()


def test_parallel_coordinates_place_rates_by_their_logarithm_and_rank_the_best_highest():
    found = parallel(searches_as_text(3), RANGES)
    rate, batch, score = found.axes
    assert rate.places.tolist() == pytest.approx([0, 0.5, 1])
    assert rate.ticks == ((0.0, "0.001"), (0.5, "0.002"), (1.0, "0.004"))
    assert batch.ticks == ((0.0, "8"), (1.0, "16"))
    assert (score.name, score.places.tolist()) == ("val/jaccard", [0, 0.5, 1])
    assert found.rank.argmax() == 2
    assert parallel(searches_as_text(3, minimize=True), RANGES).rank.argmax() == 0


def test_every_trial_is_one_line_of_as_many_points_as_there_are_axes():
    lines = [trace for trace in as_json(parallel_plot(parallel(searches_as_text(), RANGES)))["data"] if trace["x"]]
    assert sum(trace["x"].count(None) for trace in lines) == 12
    assert sum(len(trace["x"]) for trace in lines) == 12 * 4


def tried(scores, lost=0):
    """Trials of a choice alone, and as many that diverged."""
    trials = tuple(ScoredTrial({BATCH: i % 2, LR: 0.01}, score, 1) for i, score in enumerate(scores))
    gone = tuple(LostTrial({BATCH: 0, LR: 0.1 * (i + 1)}, "diverged", math.nan) for i in range(lost))
    return SearchRuns("s", "val/jaccard", False, trials, lost=gone)


def test_few_trials_have_a_line_and_a_name_each_and_ties_share_one():
    """Below ten trials no fifths: scores 0.5, 0.5 and 0.7 are two groups, and the tie says that it is two trials."""
    found = parallel(tried([0.5, 0.7, 0.5]), RANGES)
    assert [(label, of.tolist()) for label, of in found.groups] == [("0.5 (2 trials)", [0, 2]), ("0.7", [1])]
    all_tied = parallel(tried([0.5] * 30), RANGES)
    assert [len(of) for _, of in all_tied.groups] == [30]
    figure = parallel_plot(all_tied)
    assert figure.data[0].line.color != "#D55E00"  # nobody is the best


@pytest.mark.parametrize(("count", "parts", "best"), [(10, 3, "best third: 7 to 9 (3 trials)"), (25, 5, None)])
def test_parts_say_their_scores_and_how_many_they_hold(count, parts, best):
    found = parallel(tried([float(i) for i in range(count)]), RANGES)
    assert len(found.groups) == parts
    assert found.groups[-1][0] == (best or "best fifth: 20 to 24 (5 trials)")
    assert sorted(i for _, of in found.groups for i in of) == list(range(count))


def test_lines_that_share_a_place_lie_side_by_side_around_it():
    """Three trials at one option: 0.008 apart, their mean at the option."""
    axis = parallel(tried([0.1, 0.2, 0.3, 0.4, 0.5]), RANGES).axes[0]
    assert axis.places.tolist() == [0, 1, 0, 1, 0]
    assert axis.spread[[0, 2, 4]].tolist() == pytest.approx([-0.008, 0, 0.008])
    assert axis.spread[[1, 3]].tolist() == pytest.approx([0.996, 1.004])


def test_failures_are_dotted_lines_to_a_place_below_the_scores():
    figure = parallel_plot(parallel(tried([0.1, 0.2], lost=3), RANGES))
    lost = figure.data[0]
    assert (lost.name, lost.line.dash) == ("diverged (3 trials)", "dot")
    assert [y for x, y in zip(lost.x, lost.y, strict=True) if x == 2] == [pytest.approx(-0.15)] * 3
    assert [y for x, y in zip(lost.x, lost.y, strict=True) if x == 1] == pytest.approx([0.5, 0.803, 1.0], abs=0.31)
    assert [note.text for note in figure.layout.annotations].count("failed") == 1


# ----------------------------------------------------------------------------------------------------------- metrics


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_holds_what_no_other_beats(points):
    def beats(a, b):
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    expected = [not any(beats(other, point) for other in points) for point in points]
    assert pareto(np.array(points, np.float64)).tolist() == expected


def test_a_loss_counts_the_other_way(tmp_path):
    """m is 0.5 and 0.6; the loss is 0.01 more: the lower loss and the higher m are both on the front."""
    factors, metrics = {"a": ["x", "y"]}, (JACCARD, "val/pretext_loss")
    results, header = study(tmp_path, {"a=x": [0.4, 0.6], "a=y": [0.6]}, factors, metrics=metrics)
    found = tradeoff(results, header, *metrics)
    assert found.front.tolist() == [True, True]
    assert found.x.tolist() == pytest.approx([0.5, 0.6])
    assert found.y.tolist() == pytest.approx([0.51, 0.61])
    assert found.x_std[0] == pytest.approx(0.1 * math.sqrt(2))
    assert math.isnan(found.x_std[1])
    figure = as_json(tradeoff_plot(found))["data"]
    assert [trace["marker"]["symbol"] for trace in figure[:2]] == ["circle", "square"]


def test_searches_for_several_targets_have_a_front_each(tmp_path):
    """Of (value, cost) = (0.5, 1), (0.6, 2), (0.5, 3) the third is beaten in both; what was not told has no place."""
    rows = [
        ("s", "complete", 0.5, 1.0),
        ("s", "complete", 0.6, 2.0),
        ("s", "complete", 0.5, 3.0),
        ("s", "failed", 9, 0),
    ]
    frame = pandas.DataFrame(rows, columns=["search", "told", "value", "also.cost/seconds"]).assign(chosen="{}")
    (found,) = search_tradeoffs(frame, "val/jaccard").values()
    assert (found.x_name, found.y_name) == ("val/jaccard", "cost/seconds")
    assert found.front.tolist() == [True, True, False]
    (turned,) = search_tradeoffs(frame, "val/jaccard", "minimize").values()  # the study's own word for its target
    assert turned.front.tolist() == [True, False, False]
    folder = write_study(tmp_path, {"a=x": [0.5], "a=y": [0.4]}, {"a": ["x", "y"]})
    frame.to_parquet(folder / "searches.parquet")
    groups, _ = figure_groups(folder)
    assert [group.names for group in groups if group.title == "Several targets"] == [("s: cost/seconds",)]
    (folder / "searches.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match=r"searches\.parquet cannot be read"):
        figure_groups(folder)


def test_many_points_share_two_marks_and_keep_their_names():
    count = 30
    line, flat = np.arange(count, dtype=np.float64), np.full(count, math.nan)
    labels = tuple(f"<{i}>" for i in range(count))
    figure = as_json(
        tradeoff_plot(Tradeoff("x", "y", labels, line, line, flat, flat, pareto(np.stack([line, line], 1))))
    )
    beaten, front, _ = figure["data"]
    assert (beaten["name"], len(beaten["x"])) == ("beaten", count - 1)
    assert front["customdata"] == ["&lt;29&gt;"]


# --------------------------------------------------------------------------------------------------------------- CKA


def test_alignment_is_a_symmetric_matrix_per_layer_averaged_over_seeds():
    rows = [("a", "b", "1", 0.2), ("a", "b", "1", 0.4), ("c", "b", "1", 0.9), ("a", "b", "2", math.nan)]
    first, second = cka_grids(pandas.DataFrame(rows, columns=["level_a", "level_b", "layer", "value"]))
    assert first.rows == first.columns == ("a", "b", "c")
    expected = [[np.nan, 0.3, np.nan], [0.3, np.nan, 0.9], [np.nan, 0.9, np.nan]]
    assert np.allclose(first.values, expected, equal_nan=True)
    assert first.counts[0, 1] == 2
    assert second.title == "2"
    assert np.isnan(second.values).all()


def pair_rows(fingerprint, cells, levels, value, seed=0):
    """The rows under both cells, as `pretune.results.tables` writes them."""
    head = {"study": "s", "phase": "confirm", "configuration": "c", "seed": seed, "outcome": "finished", "cause": ""}
    for cell, other in zip(cells, reversed(levels), strict=True):
        row = head | {"cell": cell, "stage": f"probe:alike/{other}", "fingerprint": fingerprint, "chosen": "{}"}
        yield from (row | {"metric": f"probe/alike/{other}/{layer}", "value": value} for layer in ("level1", "output"))


def test_pairwise_probes_are_found_in_the_results_once_per_run(tmp_path):
    factors = {"method": ["simclr", "byol"]}
    results, header = study(tmp_path, {"method=simclr": [0.5], "method=byol": [0.4]}, factors)
    cells, levels = list(results["cell"].unique()), factors["method"]
    probes = [*pair_rows("p0", cells, levels, 0.25), *pair_rows("p1", cells, levels, 0.75, seed=1)]
    found = cka_rows(pandas.DataFrame([*results.to_dict("records"), *probes]), header)
    assert found["layer"].value_counts().to_dict() == {"level1 of alike": 2, "output of alike": 2}
    grid = cka_grids(found)[0]
    assert list(grid.rows) == levels
    assert grid.values[0, 1] == grid.values[1, 0] == 0.5
    assert cka_rows(results, header).empty


def test_a_similarity_has_no_best_and_no_cell_beside_itself(tmp_path):
    factors = {"method": ["a", "b", "c"]}
    results, header = study(tmp_path, {f"method={m}": [0.5, 0.4] for m in "abc"}, factors)
    cells = list(results["cell"].unique())
    probes = [
        row
        for k, (x, y) in enumerate([(0, 1), (0, 2)])
        for seed in (0, 1)
        for row in pair_rows(f"p{k}{seed}", (cells[x], cells[y]), ("a", "bc"[k]), 0.2 + 0.5 * k + 0.01 * seed, seed)
    ]
    table = build_table(pandas.DataFrame([*results.to_dict("records"), *probes]), header, "probe/alike/a/output")
    [row] = table.values
    assert [value if value is None else round(value.mean, 3) for value in row] == [None, 0.205, 0.705]
    assert not any(table.best[0])
    assert not any(table.rivals[0])
    assert table.notes == ("empty: a compared with itself, 1 by definition; no cell is the best",)


def test_comparisons_at_other_levels_are_kept_apart_unless_they_are_the_same_run(tmp_path):
    """Of two numbers of labels one encoder serves both: p is one run; q is compared at two sizes, in two runs."""
    factors = {"method": ["a", "b"], "size": ["1", "2"]}
    cells = [f"method={m} size={s}" for m in "ab" for s in "12"]
    _, header = study(tmp_path, {cell: [0.5] for cell in cells}, factors)

    def layers(fingerprints):
        probes = [
            row
            for size, key in zip("12", fingerprints, strict=True)
            for row in pair_rows(key, [f"method=a size={size}", f"method=b size={size}"], ["a", "b"], 0.5)
        ]
        return set(cka_rows(pandas.DataFrame(probes), header)["layer"])

    assert layers(["p", "p"]) == {"level1 of alike", "output of alike"}
    assert layers(["q", "r"]) == {f"{layer} of alike (size={size})" for layer in ("level1", "output") for size in "12"}


def test_numbers_of_a_heat_map_are_written_in_its_fields_and_the_first_row_is_on_top():
    rows = [("<b>", "b", "1", 0.25), ("<b>", "<b>", "1", 1.0)]
    (grid,) = cka_grids(pandas.DataFrame(rows, columns=["level_a", "level_b", "layer", "value"]))
    figure = as_json(heat_map(grid, 0.0, 1.0))
    assert figure["data"][0]["z"] == [[1.0, 0.25], [0.25, None]]
    assert (figure["data"][0]["zmin"], figure["data"][0]["zmax"]) == (0.0, 1.0)
    assert figure["data"][0]["text"] == [["1.000", "0.250"], ["0.250", ""]]
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert figure["layout"]["yaxis"]["ticktext"] == ["&lt;b&gt;", "b"]


# ---------------------------------------------------------------------------------------------------------- groups


def test_every_figure_that_the_data_allow_is_in_the_report(tmp_path):
    factors = {"a": ["x", "y"], "labels": ["10%", "all"]}
    scores = {f"a={a} labels={n}": [0.4, 0.5] for a in "xy" for n in ("10%", "all")}
    folder = write_study(tmp_path, scores, factors, metrics=(JACCARD, "test/dice"), baseline={"a": "x"})
    content = json.loads((folder / "study.json").read_text())
    content["ranges"] = RANGES
    content["published"] = {"values": [["x", "10%", 0.3], ["x", "all", [0.6, 0.1]]]}
    (folder / "study.json").write_text(json.dumps(content))
    trials = [
        {"search": "search of finetune for a=x labels=10%", "told": "complete", "value": 0.1 * (i % 7), "scores": "[]"}
        | {"confirmed": i == 6, "chosen": json.dumps({LR: 0.001 * (i + 1), BATCH: (i % 2)})}
        for i in range(10)
    ]
    pandas.DataFrame(trials).to_parquet(folder / "searches.parquet")
    groups, notes = figure_groups(folder)
    assert [group.title for group in groups] == [
        "Every seed", "Differences to the baseline", "Over labels", "Interactions", "Pairs of factors",
        "Trade-offs", "Learning curves",
        "Sensitivity", "Importance", "Pairs of parameters", "Every trial", "Budget",
    ]  # fmt: skip
    assert [note.partition(":")[0] for note in notes] == ["No figure of scores against cost"]
    found = published_by_cell(load(folder), load_header(folder), JACCARD)
    assert {label: value.mean for label, value in found.items()} == {"a=x labels=10%": 0.3, "a=x labels=all": 0.6}
    for group in groups:
        for _, figure in group.figures:
            as_json(figure)
