"""Three values d apart have the middle one as mean and d as standard deviation; two have d / sqrt(2)."""

import csv
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pretune.analysis import statistics
from pretune.analysis.load.replicates import replicate_results
from pretune.analysis.load.results import ResultsError, parse_header
from pretune.analysis.questions.compare import study_cell
from pretune.analysis.questions.differences import differences, differences_of
from pretune.analysis.questions.dots import cell_dots
from pretune.analysis.questions.effects import effects
from pretune.analysis.questions.facts import Facts
from pretune.analysis.questions.tables import _average_note, build_table
from pretune.analysis.report.tables import value_tables
from pretune.analysis.text.answer import answer
from pretune.analysis.text.csv import joined, to_csv
from pretune.analysis.text.formats import to_html, to_latex, to_markdown, to_rich
from pretune.analysis.text.grids import text_grid
from pretune.search_spaces.metrics import definition_of

JACCARD = "test/jaccard"
TWO = {"encoder": ["unfrozen", "frozen"], "labels": ["90%", "1%"]}
SCORES = {  # cell -> values of the seeds 100, 101, 102
    "encoder=unfrozen labels=90%": [0.70, 0.71, 0.72],
    "encoder=unfrozen labels=1%": [0.50, 0.51, 0.52],
    "encoder=frozen labels=90%": [0.60, 0.61, 0.62],
    "encoder=frozen labels=1%": [0.60, 0.62, 0.64],
}


def make_header(factors=TWO, replicates=3, cells=None, published=None, **report):
    every = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    named = [{"label": " ".join(f"{k}={v}" for k, v in levels.items()), "levels": levels} for levels in every]
    return parse_header({
        "study": "freeze", "question": "", "factors": factors, "seeds": {"report": replicates},
        "cells": [cell for cell in named if cells is None or cell["label"] in cells],
        "report": {"metrics": [JACCARD]} | report, "published": published,
    })  # fmt: skip


def make_row(
    cell, seed, value, outcome="finished", cause="", phase="confirm", stage="finetune", metric=JACCARD, **more
):
    row = {"study": "freeze", "phase": phase, "cell": cell, "configuration": "c", "seed": seed, "stage": stage}
    return row | {"fingerprint": "f", "outcome": outcome, "cause": cause, "metric": metric, "value": value} | more


def failed(cell, seed, outcome="diverged", cause="loss is NaN at step 12"):
    return make_row(cell, seed, math.nan, outcome, cause, metric="")


def make_rows(scores=SCORES):
    return [make_row(cell, 100 + i, value) for cell, values in scores.items() for i, value in enumerate(values)]


def make_results(scores=SCORES, *more):
    return pandas.DataFrame(make_rows(scores) + list(more))


def as_text(table, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(to_rich(table))
    return console.export_text()


# -------------------------------------------------------------------------------------------------------- numbers


def test_a_cell_is_mean_and_standard_deviation_over_its_seeds():
    table = build_table(make_results(), make_header(), JACCARD)
    assert (table.row_factors, table.column_factors) == (("encoder",), ("labels",))
    assert (table.rows, table.columns) == ((("unfrozen",), ("frozen",)), (("90%",), ("1%",)))
    value = table.values[1][1]
    assert value.mean == pytest.approx(0.62)
    assert value.std == pytest.approx(0.02)
    assert (value.n, value.n_expected) == (3, 3)


def test_the_order_of_the_rows_does_not_matter():
    shuffled = make_results().sample(frac=1, random_state=0)
    header = make_header(baseline={"encoder": "unfrozen"})
    assert to_csv(build_table(shuffled, header, JACCARD)) == to_csv(build_table(make_results(), header, JACCARD))
    assert to_csv(differences(shuffled, header, JACCARD)) == to_csv(differences(make_results(), header, JACCARD))


def test_search_results_other_stages_and_other_metrics_stay_out():
    cell = "encoder=unfrozen labels=90%"
    noise = [
        make_row(cell, 100, 0.1, phase="search"),
        make_row(cell, 100, 0.2, stage="pretrain"),
        make_row(cell, 100, 0.3, metric="val/jaccard"),
    ]
    table = build_table(make_results(SCORES, *noise), make_header(), JACCARD)
    assert table.values[0][0].mean == pytest.approx(0.71)


def test_a_combination_without_a_cell_is_empty():
    kept = [cell for cell in SCORES if cell != "encoder=frozen labels=1%"]
    table = build_table(make_results(), make_header(cells=kept), JACCARD)
    assert table.values[1][1] is None
    assert "| frozen | 0.610 ± 0.010 |  |" in to_markdown(table)


def test_rows_and_columns_follow_the_report():
    header = make_header(rows="labels", columns=["encoder"])
    table = build_table(make_results(), header, JACCARD)
    assert (table.row_factors, table.column_factors) == (("labels",), ("encoder",))
    assert table.values[1][0].mean == pytest.approx(0.51)  # 1 %, unfrozen


def test_a_factor_named_nowhere_becomes_a_row():
    table = build_table(make_results(), make_header(columns=[]), JACCARD)
    assert table.rows == (("unfrozen", "90%"), ("unfrozen", "1%"), ("frozen", "90%"), ("frozen", "1%"))
    assert "| encoder | labels | test/jaccard |" in to_markdown(table)


def test_a_study_without_factors_has_one_row():
    header = parse_header(
        {"study": "s", "factors": {}, "cells": [{"label": "all", "levels": {}}], "seeds": {"report": 2}}
    )
    table = build_table(make_results({"all": [0.6, 0.7]}), header, JACCARD)
    assert (table.rows, table.columns) == (((),), ((),))
    assert "| all | 0.650 ± 0.071 |" in to_markdown(table)
    assert (
        to_csv(table).splitlines()[0]
        == "metric,mean,std,n,n_expected,low,high,runs,runs_expected,best,not_distinguishable"
    )


def test_an_unknown_factor_or_metric_is_said_so():
    with pytest.raises(ResultsError, match=r"'skip' is not a factor .*encoder, labels"):
        build_table(make_results(), make_header(rows="skip"), JACCARD)
    with pytest.raises(ResultsError, match=r"'labels' .*more than once"):
        build_table(make_results(), make_header(rows="labels", columns="labels"), JACCARD)
    with pytest.raises(ResultsError, match="'test/iou': choose from test/jaccard"):
        build_table(make_results(), make_header(), "test/iou")


def test_a_probe_shared_by_cells_counts_in_each():
    """The encoder's probe names no cell and no labels level."""
    accuracy = {"stage": "probe:knn", "metric": "probe/knn/accuracy", "factor.labels": None}
    rows = [make_row("", 100 + i, 0.5 + i / 10, **accuracy, **{"factor.encoder": "frozen"}) for i in range(3)]
    table = build_table(make_results(SCORES, *rows), make_header(), "probe/knn/accuracy")
    assert [value.mean for value in table.values[1]] == pytest.approx([0.6, 0.6])
    assert [value.n for value in table.values[0]] == [0, 0]


def test_two_probes_with_one_metric_must_be_told_apart():
    rows = [make_row("", 100, 0.5, stage=f"probe:{name}", metric="accuracy") for name in ("knn", "linear")]
    results = make_results(SCORES, *rows)
    with pytest.raises(ResultsError, match="probe:knn, probe:linear: name one"):
        build_table(results, make_header(), "probe/accuracy")
    assert build_table(results, make_header(), "probe/linear/accuracy").values[0][0].mean == 0.5


def nested(values):
    """(cell, pretraining) -> values of its fine-tunings; NaN is one that failed."""
    return pandas.DataFrame([
        (make_row if math.isfinite(value) else lambda cell, seed, value, **more: failed(cell, seed) | more)(
            cell, 10 * p + f, value, seed_pretrain=p, seed_finetune=f
        )
        for (cell, p), found in values.items()
        for f, value in enumerate(found)
    ])  # fmt: skip


def test_nested_seeds_count_pretrainings_everywhere():
    """Unfrozen lost two fine-tunings of its bad pretraining: pretrainings 0.6, 0.3, 0.6 have the mean 0.5, below the
    frozen 0.52, though the mean of its seven fine-tunings is 0.557."""
    scores = {
        ("encoder=unfrozen", 0): [0.59, 0.60, 0.61], ("encoder=unfrozen", 1): [0.30, math.nan, math.nan],
        ("encoder=unfrozen", 2): [0.59, 0.60, 0.61],
        ("encoder=frozen", 0): [0.51, 0.52, 0.53], ("encoder=frozen", 1): [0.50, 0.51, 0.52],
        ("encoder=frozen", 2): [0.52, 0.53, 0.54],
    }  # fmt: skip
    factors, seeds = {"encoder": TWO["encoder"], "one": ["1"]}, {"pretrain": 3, "finetune": 3}
    results = nested({(f"{cell} one=1", p): found for (cell, p), found in scores.items()})
    header = make_header(factors, seeds, baseline={"encoder": "unfrozen"})
    table = build_table(results, header, JACCARD)
    short, whole = (row[0] for row in table.values)
    assert (short.mean, short.std) == (pytest.approx(0.5), pytest.approx(math.sqrt(0.03)))
    assert whole.mean == pytest.approx(0.52)
    assert [(v.n, v.n_expected, v.runs, v.runs_expected) for v in (short, whole)] == [(3, 3, 7, 9), (3, 3, 9, 9)]
    assert table.best == ((False,), (True,))
    text = to_markdown(table)
    assert "mean ± standard deviation over pretrainings (n=3)" in text
    assert "encoder=unfrozen one=1: 7 of 9 fine-tunings; 2 diverged" in text
    assert "n counts pretrainings" in table.notes[0]
    best, *_ = answer(results, header, JACCARD)
    dots = cell_dots(results, header, JACCARD)
    assert best.startswith("encoder=frozen has the highest mean test/jaccard: 0.520")
    assert [cell.mean.estimate for cell in dots] == pytest.approx([short.mean, whole.mean])
    runs = replicate_results(results, header, JACCARD)["encoder=unfrozen one=1"]
    assert study_cell(runs, 3).mean[:2] == (short.mean, short.std)
    assert [row.n for row in differences(results, header, JACCARD).rows] == [3]


def test_one_lost_seed_costs_no_other_cell_its_mark_and_what_was_not_tested_is_said():
    scores = {f"a={level}": [0.50, 0.52, 0.49, 0.51] for level in "xyz"}
    scores["a=y"] = [0.51, 0.505, 0.495, math.nan]
    scores["a=z"] = [0.50]
    table = build_table(make_results(scores), make_header({"a": list("xyz")}, 4, rows="a"), JACCARD)
    assert [value is True or best[0] for (value,), best in zip(table.rivals, table.best, strict=True)][:2] == [True] * 2
    assert table.rivals[2] == (None,)
    assert "| y | 0.503 ± 0.008 (n=3 of 4) ≈¹ |" in to_markdown(table)
    assert table.tested == ((3, 3, 1, 3, ("", "", "fewer than two seeds in common")),)
    assert "(one-sided paired t-tests of 1 of 3 pairs, n=3, Holm correction within the column, 5 %)" in to_markdown(
        table
    )
    assert "not compared (fewer than two seeds in common): a=z" in to_markdown(table)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["not_distinguishable"] for row in rows] == ["true", "true", ""]


def test_runs_without_any_spread_have_no_interval_and_nothing_lies_inside_it():
    scores = {"encoder=unfrozen": [0.7, 0.7, 0.7], "encoder=frozen": [0.6, 0.6, 0.6]}
    published = {"values": [["unfrozen", 0.7]]}
    header = make_header(
        {"encoder": TWO["encoder"]}, baseline={"encoder": "unfrozen"}, published=published, rows="encoder"
    )
    results = make_results(scores)
    table, against = build_table(results, header, JACCARD), differences(results, header, JACCARD)
    assert math.isnan(table.values[0][0].low)
    text = to_markdown(table)
    assert "0.70 (0.000) |" in text
    assert "because nothing varies: the replicates of encoder=unfrozen, encoder=frozen score the same" in text
    assert "paired t-tests" not in text  # none was made
    assert "no cells of a column could be compared (the differences have no spread)" in text
    assert "| encoder=frozen | −0.100 | – | – | 3 |" in to_markdown(against)
    assert "every seed of encoder=frozen differs from the baseline by the same" in to_markdown(against)
    first, second, *_ = answer(results, header, JACCARD)
    assert first.endswith("0.700 (3 seeds without any spread, so its uncertainty is not known).")
    assert second == "It is unknown which other cells are worse (the differences have no spread)."


def test_fine_tunings_without_a_partner_are_said_under_the_differences():
    """Frozen lost the fine-tuning with 0.9: its pretraining 0 has the mean 0.5 in the table, and stands against the
    baseline's 0.4 alone, so 0.1 and 0.1, where the table's means differ by 0.55 - (0.6 + 0.5) / 2 = 0."""
    scores = {
        ("encoder=unfrozen", 0): [0.4, 0.8], ("encoder=unfrozen", 1): [0.5, 0.5],
        ("encoder=frozen", 0): [0.5, math.nan], ("encoder=frozen", 1): [0.6, 0.6],
    }  # fmt: skip
    header = make_header({"encoder": TWO["encoder"]}, {"pretrain": 2, "finetune": 2}, baseline={"encoder": "unfrozen"})
    found = differences(nested(scores), header, JACCARD)
    assert found.rows[0].difference == pytest.approx(0.1)
    assert any(
        note.startswith("fine-tunings that finished only in the cell or only in its baseline have no partner")
        and note.endswith("encoder=frozen (1)")
        for note in found.notes
    )


def test_an_infinite_value_is_no_value_and_said_so():
    results = make_results(SCORES | {"encoder=frozen labels=1%": [0.6, 0.62, math.inf]})
    table = build_table(results, make_header(), JACCARD)
    assert table.values[1][1].mean == pytest.approx(0.61)
    assert "2 of 3 seeds; 1 no score (the value is infinite)" in to_markdown(table)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_any_scores_survive_the_csv_unrounded(scores):
    header = make_header({"encoder": ["frozen"]}, len(scores))
    table = build_table(make_results({"encoder=frozen": scores}), header, JACCARD)
    (row,) = csv.DictReader(io.StringIO(to_csv(table)))
    assert float(row["mean"]) == table.values[0][0].mean
    assert min(scores) - 1e-12 <= float(row["mean"]) <= max(scores) + 1e-12
    assert (row["encoder"], row["metric"], row["n"], row["n_expected"]) == ("frozen", JACCARD, *[str(len(scores))] * 2)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=6, max_size=6),
    st.sampled_from([{"a": "x"}, {"b": "q"}, {"a": "y", "b": "p"}]),
    st.sampled_from([JACCARD, "val/pretext_loss"]),
)
@settings(max_examples=60, deadline=None)
def test_arrows_are_the_differences_that_are_shown_and_no_others(scores, baseline, metric):
    levels = {"a": ["x", "y", "z"], "b": ["p", "q"]}
    header = make_header(levels, rows="a", columns="b", baseline=baseline, metrics=[metric])
    cells = {cell.label: cell for cell in header.cells}
    rows = [row | {"metric": metric} for row in make_rows(dict(zip(cells, scores, strict=True)))]
    results = pandas.DataFrame(rows)
    (table,) = value_tables(
        results, header, {metric: Facts(metric, False, (), {}, ())}, (), differences_of(results, header)
    )
    shown = [row for row in differences(results, header, metric).rows if row.shown]
    arrows = {row.cell: "↑" if row.difference > 0 else "↓" for row in shown}
    body, lower = text_grid(table).body, metric == "val/pretext_loss"
    losers = {row.cell if (row.difference < 0) != lower else row.baseline for row in shown if same_column(row, cells)}
    for label, cell in cells.items():
        y, x = levels["a"].index(cell.levels["a"]), levels["b"].index(cell.levels["b"])
        assert [mark for mark in "↑↓" if mark in body[y][1 + x]] == ([arrows[label]] if label in arrows else [])
        assert table.against.worse[y][x] == (label in losers)


def same_column(row, cells):
    return cells[row.cell].levels["b"] == cells[row.baseline].levels["b"]


# ---------------------------------------------------------------------------------------------------------- layout


def test_markdown_by_hand():
    assert to_markdown(build_table(make_results(), make_header(), JACCARD)) == (
        "test/jaccard: mean ± standard deviation over seeds (n=3)\n"
        "\n"
        "| encoder | labels=90% | labels=1% |\n"
        "| --- | ---: | ---: |\n"
        "| unfrozen | **0.710 ± 0.010** | 0.510 ± 0.010 |\n"
        "| frozen | 0.610 ± 0.010 | **0.620 ± 0.020** |\n"
        "\n"
        "- ≈ may be as good as the best; a cell that is not the best and has no ≈ is clearly worse than another cell "
        "of its column (one-sided paired t-tests of 1 of 2 pairs, n=3, Holm correction within the column, 5 %)\n"
        "- not compared (the differences have no spread): encoder=unfrozen labels=90%, encoder=frozen labels=90%\n"
    )


def test_percent_moves_the_point():
    text = to_markdown(build_table(make_results(), make_header(percent=True), JACCARD))
    assert "test/jaccard, percent: mean" in text
    assert "| frozen | 61.0 ± 1.0 | **62.0 ± 2.0** |" in text


def test_a_loss_is_best_where_it_is_lowest_and_never_in_percent():
    rows = [row | {"metric": "val/pretext_loss"} for row in make_rows()]
    text = to_markdown(build_table(pandas.DataFrame(rows), make_header(percent=True), "val/pretext_loss"))
    assert "| unfrozen | 0.710 ± 0.010 | **0.510 ± 0.010** |" in text


@pytest.mark.parametrize(
    ("spread", "shown"),
    [(0.1, "0.50 ± 0.10"), (0.013, "0.500 ± 0.013"), (0.0013, "0.5000 ± 0.0013"), (0.00001, "0.5000 ± 0.0000")],
)
def test_two_digits_of_the_spread_decide_the_decimals(spread, shown):
    scores = {"encoder=frozen": [0.5 - spread, 0.5, 0.5 + spread]}
    text = to_markdown(build_table(make_results(scores), make_header({"encoder": ["frozen"]}), JACCARD))
    assert f"| {shown} |" in text


def test_a_short_cell_carries_its_n_and_a_footnote_with_the_reason():
    short = "encoder=frozen labels=1%"
    results = make_results(SCORES | {short: [0.60, 0.62]}, failed(short, 102))
    text = to_markdown(build_table(results, make_header(), JACCARD))
    assert "over seeds\n" in text
    assert "0.710 ± 0.010 (n=3)" in text
    assert "| **0.610 ± 0.014 (n=2 of 3)¹** |" in text
    assert "- ¹ encoder=frozen labels=1%: 2 of 3 seeds; 1 diverged (loss is NaN at step 12)\n" in text


def test_a_cell_without_any_result_is_a_dash_with_its_cause():
    empty = "encoder=frozen labels=1%"
    rows = [failed(empty, 100, "blocked", "pretrain crashed"), failed(empty, 101, "blocked", "pretrain crashed")]
    text = to_markdown(build_table(make_results(SCORES | {empty: []}, *rows), make_header(), JACCARD))
    assert "| frozen | 0.610 ± 0.010 | –¹ |" in text
    assert "over seeds (n=3)" in text
    assert "0 of 3 seeds; 2 blocked (pretrain crashed), 1 not run" in text


def test_a_finished_run_without_the_metric_is_said_so():
    cell = "encoder=frozen labels=1%"
    results = make_results(SCORES | {cell: [0.6, 0.62, math.nan]})
    assert "2 of 3 seeds; 1 no score" in to_markdown(build_table(results, make_header(), JACCARD))


def test_one_seed_has_no_standard_deviation():
    results = make_results({cell: values[:1] for cell, values in SCORES.items()})
    text = to_markdown(build_table(results, make_header(replicates=1), JACCARD))
    assert "| unfrozen | **0.700 ± –** | 0.500 ± – |" in text
    assert text.endswith("\n- one seed: no standard deviation\n")


def test_before_anything_finished_the_table_is_all_dashes():
    results = make_results().assign(phase="search")
    table = build_table(results, make_header(), JACCARD)
    assert "test/jaccard: nothing has finished" in to_markdown(table)
    assert "0 of 3 seeds; 3 not run" in to_markdown(table)
    assert "nothing has finished" in as_text(table)
    assert to_csv(table).splitlines()[1] == "unfrozen,90%,test/jaccard,,,0,3,,,0,3,false,"


def test_published_numbers_stand_beside_ours_as_the_paper_prints_them():
    published = {
        "values": [["unfrozen", "90%", 0.716], ["frozen", "1%", [0.55, 0.02]], ["frozen", "5%", 0.6]],
        "note": "P2",
    }
    table = build_table(make_results(), make_header(published=published), JACCARD)
    text = to_markdown(table)
    assert "| encoder | labels=90% | labels=90% published | labels=1% | labels=1% published |" in text
    assert "| unfrozen | **0.710 ± 0.010** | 0.716 (−0.006, inside) | 0.510 ± 0.010 |  |" in text
    assert "| frozen | 0.610 ± 0.010 |  | **0.620 ± 0.020** | 0.550 ± 0.020 (+0.070, outside) |" in text
    assert "- published: P2\n- published for frozen / 5%, which is no cell of this study\n" in text
    assert "published 0.716" in as_text(table)
    header, first, *_ = to_csv(table).splitlines()
    assert header.endswith(",published,published_std,difference,inside_interval")
    columns = dict(zip(header.split(","), first.split(","), strict=True))
    assert (columns["published"], columns["published_std"], columns["inside_interval"]) == ("0.716", "", "true")
    assert float(columns["difference"]) == pytest.approx(0.71 - 0.716)


def test_what_differs_from_the_published_study_stands_below_its_values_in_every_format():
    told = ["Regions come from Felzenszwalb.", "Labels are counts."]
    values = {"values": [["unfrozen", "90%", 0.716]]}
    both = [values | {"metric": "test/dice"}, values | {"metric": JACCARD}]
    shown = {"metrics": [JACCARD, "test/accuracy", "test/dice"], "differs": told}
    rows = [row | {"metric": metric} for row in make_rows() for metric in shown["metrics"]]
    header = make_header(published=both, **shown)
    first, none, later = (build_table(pandas.DataFrame(rows), header, metric) for metric in shown["metrics"])
    counted = "known differences from the published study, and choices where it is silent: 2"
    assert f"- {counted}\n- (1) Regions come from Felzenszwalb.\n- (2) Labels are counts.\n" in to_markdown(first)
    for text in (to_html(first), to_latex(first), as_text(first)):
        places = [text.index(part) for part in ("in brackets", counted, told[0], told[1])]
        assert places == sorted(places)
    assert f"{counted}, listed below the table of {JACCARD}" in to_markdown(later)
    assert told[0] not in to_markdown(later)
    assert "known differences" not in to_markdown(none)


@pytest.mark.parametrize(
    ("published", "differs", "said"),
    [
        ({"values": [["unfrozen", "90%", 0.716]]}, None, ()),
        ({"values": [["unfrozen", "90%", 0.716]]}, [], ("the study knows of no difference from the published one",)),
        (None, ["Regions come from Felzenszwalb."], ()),
    ],
)
def test_a_study_that_does_not_say_what_differs_is_not_taken_to_differ_in_nothing(published, differs, said):
    assert build_table(make_results(), make_header(published=published, differs=differs), JACCARD).differs == said


def test_several_metrics_are_one_csv_whichever_of_them_has_published_values():
    both = [*make_rows(), *(row | {"metric": "test/dice", "value": 0.9} for row in make_rows())]
    header = make_header(published={"values": [["unfrozen", "90%", 0.716]], "metric": "test/dice"})
    tables = [build_table(pandas.DataFrame(both), header, metric) for metric in (JACCARD, "test/dice", JACCARD)]
    rows = list(csv.DictReader(io.StringIO(joined(tables))))
    assert [row["metric"] for row in rows] == [name for name in (JACCARD, "test/dice", JACCARD) for _ in range(4)]
    assert [row["published"] for row in rows] == [*4 * [""], "0.716", *7 * [""]]
    assert all(None not in row and None not in row.values() for row in rows)  # as many fields as the head


def test_inside_a_very_wide_interval_is_said_to_mean_little():
    """0.3 and 0.9: t(0.975; 1) = 12.7 makes an interval of 7.6, far beyond 0 to 1."""
    scores = {"encoder=unfrozen": [0.3, 0.9], "encoder=frozen": [0.60, 0.62]}
    published = {"values": [["unfrozen", 0.7], ["frozen", 0.61]]}
    header = make_header({"encoder": TWO["encoder"]}, 2, published=published, rows="encoder")
    table = build_table(make_results(scores), header, JACCARD)
    for text in (to_markdown(table), to_latex(table)):
        assert "as our interval is wider than half of the metric's range: encoder=unfrozen" in text
        assert "an interval goes beyond the metric's range of 0 to 1" in text


def test_streams_held_at_one_seed_are_said_under_every_table():
    header = replace(make_header(baseline={"encoder": "unfrozen"}), held={"labels": 0, "init": 7})
    said = "held at one seed: labels (0), init (7); standard deviations, intervals and tests do not include what these "
    said += "would add"
    for table in (build_table, differences, effects):
        assert said in table(make_results(), header, JACCARD).notes
        assert said not in table(make_results(), replace(header, held={}), JACCARD).notes


def test_published_numbers_belong_to_one_metric():
    published = {"values": [["unfrozen", "90%", 0.716]], "metric": "test/dice"}
    assert build_table(make_results(), make_header(published=published), JACCARD).published is None
    both = make_header(published=[published, {"values": [["unfrozen", "90%", 0.6]], "metric": JACCARD}])
    assert build_table(make_results(), both, JACCARD).published[0][0].mean == 0.6


def test_latex_is_booktabs_and_escaped():
    text = to_latex(build_table(make_results(), make_header(), JACCARD))
    assert "\\begin{tabular}{lrr}\n\\toprule\nencoder & labels=90\\% & labels=1\\% \\\\\n\\midrule\n" in text
    assert "frozen & 0.610 $\\pm$ 0.010 & \\textbf{0.620 $\\pm$ 0.020} \\\\\n\\bottomrule\n" in text
    levels = {"init": ["a_b & 50% {x}", "c"]}
    escaped = to_latex(build_table(make_results({"init=c": [0.1]}), make_header(levels, rows="init"), JACCARD))
    assert r"a\_b \& 50\% \{x\} & " in escaped


def test_names_cannot_break_the_layout():
    levels = {"init": ["[red]a|b[/red]", "[/]"]}
    scores = {"init=[red]a|b[/red]": [0.1, 0.2], "init=[/]": [0.3, 0.4]}
    table = build_table(make_results(scores), make_header(levels, 2, rows="init"), JACCARD)
    assert "| [red]a\\|b[/red] | " in to_markdown(table)
    text = as_text(table)
    assert "[red]a|b[/red]" in text
    assert "[/]" in text


def test_rich_shows_study_metric_and_numbers():
    text = as_text(build_table(make_results(), make_header(), JACCARD), width=80)
    for part in ("freeze: test/jaccard", "unfrozen", "labels=90%", "0.710 ± 0.010", "(n=3)"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_rich_bolds_the_best_of_each_column():
    pretty, _ = to_rich(build_table(make_results(), make_header(), JACCARD)).renderables
    bold = [
        [cell.spans[0].style == "bold" if cell.spans else cell.style == "bold" for cell in column.cells]
        for column in pretty.columns
    ]
    assert bold == [[False, False], [True, False], [False, True]]


# ----------------------------------------------------------------------------------------------------- differences


def test_differences_are_paired_with_the_cell_that_shares_the_other_levels():
    """90 %: -0.1 for every seed, without spread, so no p. 1 %: 0.10, 0.11, 0.12; t = 11 sqrt(3), closed form for p."""
    result = differences(make_results(), make_header(baseline={"encoder": "unfrozen"}), JACCARD)
    assert [(row.cell, row.baseline, row.n) for row in result.rows] == [
        ("encoder=frozen labels=90%", "encoder=unfrozen labels=90%", 3),
        ("encoder=frozen labels=1%", "encoder=unfrozen labels=1%", 3),
    ]
    same, real = result.rows
    assert same.difference == pytest.approx(-0.1)
    assert math.isnan(same.p)
    t = 11 * math.sqrt(3)
    assert real.difference == pytest.approx(0.11)
    assert real.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert real.p_holm == pytest.approx(real.p)  # the other row had no test
    assert real.high == pytest.approx(0.11 + 4.302653 * 0.01 / math.sqrt(3))


def test_holm_counts_all_rows():
    scores = SCORES | {"encoder=frozen labels=90%": [0.60, 0.62, 0.64]}
    result = differences(make_results(scores), make_header(baseline={"encoder": "unfrozen"}), JACCARD)
    assert min(row.p_holm / row.p for row in result.rows) >= 1
    assert max(row.p_holm / row.p for row in result.rows) == pytest.approx(2)


def test_only_seeds_finished_in_both_are_paired():
    """Baseline misses seed 100, the cell seed 102: seed 101 alone is a pair, 0.62 - 0.51."""
    scores = {"encoder=unfrozen labels=1%": [math.nan, 0.51, 0.52], "encoder=frozen labels=1%": [0.60, 0.62]}
    header = make_header(baseline={"encoder": "unfrozen"})
    result = differences(make_results(scores, failed("encoder=frozen labels=1%", 102)), header, JACCARD)
    (row,) = result.rows
    assert (row.n, row.difference) == (1, pytest.approx(0.11))
    assert "encoder=frozen labels=90%: no seed finished in both this cell" in result.notes[-1]
    assert "| encoder=frozen labels=1% | +0.110 | – | – | 1 |" in to_markdown(result)


def test_nested_fine_tunings_are_averaged_before_they_are_paired():
    """Pretraining 0: differences 0.1 and 0.3, pretraining 1: 0.4 and 0.4. Averages 0.2 and 0.4: mean 0.3, n 2."""
    values = {(0, 0): 0.1, (0, 1): 0.3, (1, 0): 0.4, (1, 1): 0.4}
    rows = [
        make_row(cell, 10 * p + f, value if "=frozen" in cell else 0.0, seed_pretrain=p, seed_finetune=f)
        for cell in ("encoder=unfrozen", "encoder=frozen")
        for (p, f), value in values.items()
    ]
    header = make_header({"encoder": TWO["encoder"]}, {"pretrain": 2, "finetune": 2}, baseline={"encoder": "unfrozen"})
    (row,) = differences(pandas.DataFrame(rows), header, JACCARD).rows
    assert (row.n, row.difference) == (2, pytest.approx(0.3))


def test_differences_in_markdown_csv_latex_and_rich():
    result = differences(make_results(), make_header(baseline={"encoder": "unfrozen"}, percent=True), JACCARD)
    text = to_markdown(result)
    assert "paired difference to encoder=unfrozen, percentage points, 95 % t interval" in text
    assert "| encoder=frozen labels=1% | +11.0 | [+8.5, +13.5] | 0.003 | 3 |" in text
    assert "gives p of at least 0.25" in text
    assert to_csv(result).splitlines()[0] == (
        "metric,cell,baseline,difference,low,high,p,p_holm,n,g,p_exact,p_equivalent,std,equivalent_low,equivalent_high,"
        "flattered"
    )
    assert "$-$10.0" in to_latex(result)
    assert "[+8.5, +13.5]" in as_text(result)


def test_equivalence_has_its_90_percent_interval():
    """Differences 0.10, 0.11, 0.12: t(0.95; 2) = 2.919986 times 0.01 / sqrt 3 about 0.11."""
    found = differences(make_results(), make_header(baseline={"encoder": "unfrozen"}, margin=0.2), JACCARD)
    row = found.rows[1]
    half = 2.919986 * 0.01 / math.sqrt(3)
    assert (row.equivalent_low, row.equivalent_high) == pytest.approx((0.11 - half, 0.11 + half))
    text = to_markdown(found)
    assert "| cell | difference | 95 % interval | p (Holm) | 90 % interval | p (equivalence) | n |" in text
    assert "| [+0.085, +0.135] | 0.003 | [+0.093, +0.127] | 0.002 | 3 |" in text
    assert differences(make_results(), make_header(baseline={"encoder": "unfrozen"}), JACCARD).margin is None


def test_the_notes_on_few_pairs_count_the_comparisons():
    """Two tests of three pairs: 2 / 2^3 = 0.25 each, 0.5 for the smaller after Holm."""
    scores = SCORES | {"encoder=frozen labels=90%": [0.60, 0.62, 0.64]}
    found = differences(make_results(scores), make_header(baseline={"encoder": "unfrozen"}), JACCARD)
    assert any(note.endswith("p of at least 0.25 (0.5 after Holm over 2)") for note in found.notes)
    spread = np.median([row.std for row in found.rows])
    alone, strictest = (statistics.detectable_difference(3, spread, alpha=0.05 / m) for m in (1, 2))
    assert any(f"is {alone:.3f} for one test at 5 %" in note for note in found.notes)
    assert any(note.endswith(f"; with Holm over 2, up to {strictest:.3f}") for note in found.notes)


def test_a_missing_or_wrong_baseline_is_said_so():
    with pytest.raises(ResultsError, match="names no baseline"):
        differences(make_results(), make_header(), JACCARD)
    with pytest.raises(ResultsError, match="baseline encoder=thawed"):
        differences(make_results(), make_header(baseline={"encoder": "thawed"}), JACCARD)


def test_what_seeds_can_show_is_of_the_rows_that_have_a_test():
    """One row of copies of the baseline, one that differs by the same everywhere, one with a spread of 0.01."""
    base = [0.50, 0.51, 0.52]
    scores = {"a=x": base, "a=y": base, "a=z": [0.60, 0.61, 0.62], "a=w": [0.60, 0.62, 0.64]}
    found = differences(
        make_results(scores), make_header({"a": list("xyzw")}, baseline={"a": "x"}, rows="a", columns=[]), JACCARD
    )
    assert [math.isnan(row.low) for row in found.rows] == [True, True, False]
    (said,) = [note for note in found.notes if "median spread" in note]
    alone, first = (statistics.detectable_difference(3, 0.01, alpha=0.05 / m) for m in (1, 2))
    assert "with 3 seeds and the median spread" in said
    assert f"is {alone:.3f} for one test at 5 %" in said
    assert said.endswith(f"; with Holm over 2, up to {first:.3f}")  # copies of the baseline count with p = 1


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("test/jaccard", ()),
        ("test/jaccard/leaf", ()),
        (
            "test@64/dice_images",
            ("test@64/dice_images: mean over the classes that occur in an image, then over images",),
        ),
        ("probe/knn/accuracy", ()),
    ],
)
def test_a_table_says_what_its_score_is_the_mean_of_unless_it_is_of_one_matrix(metric, said):
    assert _average_note(metric, definition_of(metric)) == said
