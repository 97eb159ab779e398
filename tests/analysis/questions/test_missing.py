"""Missing is not random: replicates that failed or have no score are said where the number stands."""

import io
import itertools
import math
import re

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from studies import JACCARD, write_study
from test_tables import failed, make_header, make_row

from pretune.analysis import load, load_header
from pretune.analysis.questions.differences import differences
from pretune.analysis.questions.tables import build_table
from pretune.analysis.report.figures import figure_groups
from pretune.analysis.report.html import build_page
from pretune.analysis.report.tables import write_tables
from pretune.analysis.text.answer import answer
from pretune.analysis.text.formats import to_markdown

SIX = {"a": ["p", "q", "r", "s", "t", "u"]}
REMARK = "best mean, but some runs failed and are not in it: a=p"


def six_equal_cells(seed, seeds=5, lost=2):
    """Scores of six cells without any effect; of the first the worst `lost` seeds diverge."""
    values = np.random.default_rng(seed).normal(0.7, 0.02, (6, seeds))
    rows = []
    for level, scores in zip(SIX["a"], values, strict=True):
        worst = set(np.argsort(scores)[:lost]) if level == "p" else set()
        rows += [
            failed(f"a={level}", i) if i in worst else make_row(f"a={level}", i, value)
            for i, value in enumerate(scores)
        ]
    return pandas.DataFrame(rows)


def test_a_cell_whose_worst_seeds_diverge_is_often_bold_and_never_without_a_remark():
    """100 null studies: bold in far more than the 17 % of chance, and said in cell, notes and answer each time."""
    header, bold = make_header(SIX, replicates=5, rows=["a"], columns=[]), 0
    for seed in range(100):
        results = six_equal_cells(seed)
        table = build_table(results, header, JACCARD)
        text = to_markdown(table)
        is_bold = table.best[SIX["a"].index("p")][0]
        mine = re.search(r"(\*\*)?0\.\d+ ± 0\.\d+ \(n=3 of 5\)", text)
        assert mine
        assert bool(mine[1]) == is_bold
        assert (REMARK in text) == is_bold
        assert "a=p: 3 of 5 seeds; 2 diverged (loss is NaN at step 12)" in text
        if seed < 10:
            said = answer(results, header, JACCARD)
            best = re.match(r"a=(\w)", said[0])[1] == "p"
            assert any("2 of its 5 replicates failed" in one for one in said) == best
            assert any(one.startswith("Cells with fewer values than planned: a=p (3 of 5") for one in said)
            assert any(one.startswith("Among the cells with all their values, a=") for one in said) == best
        bold += is_bold
    assert 0.45 < bold / 100 < 0.80  # 17 % by chance


def test_a_cell_with_failures_shows_no_other_to_be_worse_and_no_difference(tmp_path):
    """a=x is far above a=y; once it has lost a replicate, neither marks nor differences claim that."""
    high, low = [0.90, 0.91, 0.93, 0.92], [0.50, 0.52, 0.51, 0.515]
    factors, layout = {"a": ["x", "y"]}, {"rows": ["a"], "columns": [], "baseline": {"a": "y"}}
    shown, claimed = (
        "replicates of these cells failed, so no cell is called worse than them: a=x",
        "so no difference is claimed for: a=x",
    )
    for name, scores, is_shown in (("whole", high, True), ("lost", [*high[:3], math.nan], False)):
        folder = write_study(tmp_path / name, {"a=x": scores, "a=y": low}, factors, **layout)
        results, header = load(folder), load_header(folder)
        table, against = build_table(results, header, JACCARD), differences(results, header, JACCARD)
        assert table.rivals[1][0] is not is_shown
        assert against.rows[0].p_holm < 0.05
        assert against.rows[0].shown is is_shown
        assert (shown in to_markdown(table)) is not is_shown
        assert (claimed in to_markdown(against)) is not is_shown


def test_a_failure_on_the_worse_side_takes_no_claim(tmp_path):
    scores = {"a=x": [0.90, 0.91, 0.93, 0.92], "a=y": [0.50, 0.52, 0.51, math.nan]}
    folder = write_study(tmp_path, scores, {"a": ["x", "y"]}, rows=["a"], columns=[], baseline={"a": "y"})
    assert differences(load(folder), load_header(folder), JACCARD).rows[0].shown


def test_of_the_cells_with_all_their_values_the_best_is_named(tmp_path):
    scores = {"a=x": [0.9, 0.9, math.nan], "a=y": [0.5, 0.51, 0.52], "a=z": [0.6, 0.61, 0.62]}
    folder = write_study(tmp_path, scores, {"a": ["x", "y", "z"]})
    first, second, third, *_ = answer(load(folder), load_header(folder), JACCARD)
    assert first.startswith(f"a=x has the highest mean {JACCARD}: 0.900 (2 of 3 seeds without any spread")
    assert second == "a=x: 1 of its 3 replicates failed and is not in this mean, which may therefore be too high."
    assert third == "Among the cells with all their values, a=z is best: 0.610."


def test_a_wholly_failed_cell_is_named_in_answer_table_figures_and_terminal(tmp_path):
    scores = {"a=x": [0.5, 0.6], "a=y": [math.nan, math.nan], "a=z": [0.7, 0.8]}
    folder = write_study(tmp_path, scores, {"a": ["x", "y", "z"]}, rows=["a"], columns=[])
    text = "a=y: 0 of 2 seeds; 2 diverged (loss is NaN)"
    console = Console(width=200, record=True, file=io.StringIO())
    for table in write_tables(folder):
        console.print(table)
    assert text in " ".join(console.export_text().split())
    assert all(text in (folder / name).read_text() for name in ("table.md", "table.tex"))
    assert "Cells without any value: a=y (0 of 2 seeds; 2 diverged (loss is NaN))." in build_page(folder)
    groups, notes = figure_groups(folder)
    (dots,) = (group for group in groups if group.title == "Every seed")
    assert "a=y (0 of 2)" in str(dots.figures[0][1].layout.yaxis)
    assert notes[0].endswith("Replicates with a value: a=y (0 of 2).")


def test_a_class_without_a_score_is_counted_beside_the_mean_and_makes_nothing_best():
    """a=x has no leaf in one replicate: its mean is over the others, without the remark that failures need."""
    leaf = "test/jaccard/leaf"
    rows = [make_row("a=x", i, v, metric=leaf) for i, v in enumerate([0.5, 0.7])]
    rows += [make_row("a=x", 2, 0.99, metric=JACCARD)]
    rows += [make_row("a=y", i, v, metric=leaf) for i, v in enumerate([0.4, 0.5, 0.6])]
    header = make_header({"a": ["x", "y"]}, metrics=[leaf], rows=["a"], columns=[])
    table = build_table(pandas.DataFrame(rows), header, leaf)
    text = to_markdown(table)
    assert "0.60 ± 0.14 (n=2 of 3)" in text
    assert "a=x: 2 of 3 seeds; 1 no score (leaf is in neither truth nor prediction)" in text
    assert "some runs failed" not in text
    best = next(v for row in table.values for v in row if v.n == 2)
    assert (best.is_short, best.failed) == (True, 0)


@given(
    ends=st.lists(
        st.sampled_from(["value", "diverged", "crashed", "blocked", "none", "absent"]), min_size=3, max_size=3
    )
)
@settings(max_examples=40, deadline=None)
def test_every_replicate_is_a_value_or_is_named(ends):
    """Whatever became of three replicates, n and the footnote add up to three."""
    rows = [make_row("a=y", i, 0.1 + i / 100) for i in range(3)]
    for i, end in enumerate(ends):
        if end == "value":
            rows.append(make_row("a=x", i, 0.5 + i / 100))
        elif end == "none":
            rows.append(make_row("a=x", i, 0.3, metric="val/jaccard"))
        elif end != "absent":
            rows.append(failed("a=x", i, end))
    table = build_table(pandas.DataFrame(rows), make_header({"a": ["x", "y"]}), JACCARD)
    (value,) = (v for v in itertools.chain(*table.values) if v.mean != pytest.approx(0.11))
    assert value.n == ends.count("value")
    assert sum(end.count for end in value.outcomes) == 3
    assert value.failed == sum(ends.count(end) for end in ("diverged", "crashed", "blocked"))
    if value.is_short:
        noted = re.search(r"a=x: (\d) of 3 seeds; (.+)", to_markdown(table))
        assert (
            int(noted[1])
            + sum(int(count) for count in re.findall(r"(\d) (?:diverged|crashed|blocked|no score|not run)", noted[2]))
            == 3
        )
