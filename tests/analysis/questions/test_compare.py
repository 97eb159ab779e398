"""Welch by hand: 1, 3 against 5, 7, 9: means 2 and 7, variances 2 and 4, so the error is sqrt(2/2 + 4/3)."""

import io
import json
import math

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from studies import JACCARD, write_study

from pretune.analysis.load.results import ResultsError
from pretune.analysis.questions.compare import compare_folders, different_settings, welch
from pretune.analysis.text.comparison import comparison_markdown, comparison_table

FACTORS = {"a": ["x", "y", "z"]}


def test_welch_by_hand():
    found = welch([1, 3], [5, 7, 9])
    error = math.sqrt(1 + 4 / 3)
    degrees = (1 + 4 / 3) ** 2 / (1 / 1 + (4 / 3) ** 2 / 2)
    assert found.difference == 5
    assert found.low == pytest.approx(5 - stats.t.ppf(0.975, degrees) * error)
    assert found.high == pytest.approx(5 + stats.t.ppf(0.975, degrees) * error)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8, unique=True),
    st.lists(st.floats(0, 1), min_size=2, max_size=8, unique=True),
)
def test_welch_agrees_with_scipy(a, b):
    if np.ptp(a) < 1e-3 or np.ptp(b) < 1e-3:
        return  # SciPy warns of lost digits
    theirs, found = stats.ttest_ind(b, a, equal_var=False), welch(a, b)
    assert found.p == pytest.approx(theirs.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), abs=1e-6)


def test_one_run_or_copies_of_one_run_have_a_difference_and_no_test():
    for a, b in (([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0])):
        found = welch(a, b)
        assert found.difference > 0
        assert all(map(math.isnan, found[1:]))


@pytest.fixture
def two(tmp_path):
    first = {"a=x": [0.5, 0.52, 0.54], "a=y": [0.3, 0.31, 0.35], "a=z": [0.4]}
    second = {"a=x": [0.7, 0.72, 0.75], "a=y": [0.4, math.nan]}
    folders = write_study(tmp_path / "a", first, FACTORS, "old"), write_study(tmp_path / "b", second, FACTORS, "new")
    (folders[0] / "study.yaml").write_text("study: old\nfinetune: {loss: dice, optimizer: {lr: 0.1}}\ntune: {}")
    (folders[1] / "study.yaml").write_text("study: new\nfinetune: {loss: dice, optimizer: {lr: 0.2}, size: 64}")
    return folders


def test_cells_of_equal_name_are_compared_and_the_rest_is_named(two):
    (found,) = compare_folders(*two)
    assert [row.cell for row in found.rows] == ["a=x", "a=y"]
    assert found.only_first == ("a=z",)
    x, y = found.rows
    assert x.welch.difference == pytest.approx(np.mean([0.7, 0.72, 0.75]) - 0.52)
    assert (x.first.n, y.second.n) == (3, 1)
    assert x.p_holm == pytest.approx(x.welch.p)  # the other cell has no test, and is not counted
    assert math.isnan(y.p_holm)


def test_settings_that_differ_are_named_without_those_that_do_not_matter(two):
    assert list(different_settings(*two)) == [("finetune.optimizer.lr", "0.1", "0.2"), ("finetune.size", "–", "64")]


def test_the_comparison_reads_the_same_in_terminal_and_markdown(two):
    (found,) = compare_folders(*two, JACCARD)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table(found))
    terminal, markdown = console.export_text(), comparison_markdown(found)
    for text in (
        "0.520 ± 0.020 (3)",
        "0.400 ± – (1)",
        "+0.203",
        "finetune.optimizer.lr: 0.1 against 0.2",
        "only in old",
    ):
        assert text in terminal
        assert text in markdown
    assert markdown.splitlines()[2] == "| cell | old | new | difference | 95 % interval (Welch) | p (Holm) |"


def test_long_names_are_letters_that_fit_a_narrow_terminal_and_are_told_whole_below(two, tmp_path):
    """Equal names go by their folders, which may be long."""
    for folder in two:
        header = json.loads((folder / "study.json").read_text())
        (folder / "study.json").write_text(json.dumps(header | {"study": "same"}))
    (found,) = compare_folders(*two)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table(found))
    text = console.export_text()
    assert "…" not in text
    assert all(
        number in text for number in ("0.520", "0.020", "+0.203", "p (Holm)")
    )  # lines may break, numbers may not
    assert max(map(len, text.splitlines())) <= 80
    flat = text.replace("\n", "").replace(" ", "")
    assert all(f"{letter}:{folder}" in flat for letter, folder in zip("AB", two, strict=True))


def rename_runs(folder, rename):
    path = folder / "results.parquet"
    results = pandas.read_parquet(path)
    results["fingerprint"] = results["fingerprint"].map(rename)
    results.to_parquet(path)


def test_studies_that_share_runs_are_not_called_independent(two):
    """Of the runs that finished, 7 in the first and 4 in the second, those numbered 0 and 1 are in both."""
    rename_runs(two[1], lambda run: run if run in ("run000000", "run000001") else f"new {run}")
    (found,) = compare_folders(*two)
    assert found.shared.startswith("the studies share 2 confirmed stage runs (2 finetune) of 7 and 4: they are not")
    assert found.shared in comparison_markdown(found)
    rename_runs(two[1], "all new {}".format)
    (found,) = compare_folders(*two)
    assert found.shared == ""
    assert "share" not in comparison_markdown(found)


def test_a_study_beside_itself_is_said_to_be_that(two):
    (found,) = compare_folders(two[0], two[0])
    assert found.shared.startswith("both hold the same 7 stage runs: this is one study compared with itself")


def test_two_studies_in_percent_are_compared_in_percent(two):
    for folder in two:
        header = json.loads((folder / "study.json").read_text())
        header["report"]["percent"] = True
        (folder / "study.json").write_text(json.dumps(header))
    text = comparison_markdown(compare_folders(*two)[0])
    assert "| a=x | 52.0 ± 2.0 (3) | 72.3 ± 2.5 (3) | +20.3 |" in text
    assert "mean ± standard deviation (n), percent" in text


def test_what_cannot_be_compared_is_one_sentence(two, tmp_path):
    other = write_study(tmp_path / "c", {"b=x": [0.5]}, {"b": ["x"]}, "other")
    with pytest.raises(ResultsError, match="no finished cell"):
        compare_folders(two[0], other)
    unlike = write_study(tmp_path / "d", {"a=x": [0.5]}, FACTORS, "unlike", metrics=("test/dice",))
    with pytest.raises(ResultsError, match="report no metric in common"):
        compare_folders(two[0], unlike)
    (two[1] / "study.yaml").write_text("{")
    with pytest.raises(ResultsError, match="missing or damaged"):
        compare_folders(*two)


def equal_studies(tmp_path, change=None, data=({"d": ["1"]}, {"d": ["1"]})):
    """Two studies of equal settings, values and data, of which `change` alters the second; compared, in words."""
    folders = []
    for name, digests in zip("ab", data, strict=True):
        folder = write_study(tmp_path / name, {"a=x": [0.5, 0.6], "a=y": [0.1, 0.2]}, FACTORS, name)
        (folder / "study.yaml").write_text(f"study: {name}\ntune: {{trials: 20}}\nfinetune: {{size: 32}}\n")
        content = json.loads((folder / "study.json").read_text())
        (folder / "study.json").write_text(json.dumps(content | ({} if digests is None else {"data": digests})))
        folders.append(folder)
    if change:
        change(folders[1])
    (found,) = compare_folders(*folders)
    return comparison_markdown(found)


def other_values(folder):
    results = pandas.read_parquet(folder / "results.parquet")
    results.loc[results["cell"] == "a=x", "chosen"] = '{"pretrain.0.method.temperature": 0.188}'
    results.to_parquet(folder / "results.parquet")


def set_yaml(old, new):
    return lambda f: (f / "study.yaml").write_text((f / "study.yaml").read_text().replace(old, new))


EQUAL = "compared and equal: settings, tuned values, data"


@pytest.mark.parametrize(
    ("change", "data", "said"),
    [
        (None, ({"d": ["1"]}, {"d": ["1"]}), EQUAL),
        (set_yaml("trials: 20", "trials: 30"), ({"d": ["1"]}, {"d": ["1"]}), "tune.trials: 20 against 30"),
        (set_yaml("size: 32", "size: 64"), ({"d": ["1"]}, {"d": ["1"]}), "finetune.size: 32 against 64"),
        (
            other_values,
            ({"d": ["1"]}, {"d": ["1"]}),
            "tuned values of a=x: – against pretrain.0.method.temperature 0.188",
        ),
        (None, ({"d": ["1"]}, {"d": ["2"]}), "content of data d: 1 against 2"),
        (None, ({"d": ["1"]}, {"d": ["1"], "e": ["3"]}), "content of data e: – against 3"),
        (None, ({"d": ["1"]}, None), "not compared: data"),
    ],
    ids=["equal", "tune", "settings", "values", "content", "more data", "not stored"],
)
def test_studies_are_called_equal_only_in_what_was_compared(tmp_path, change, data, said):
    text = equal_studies(tmp_path, change, data)
    assert f"- {said}" in text
    assert (EQUAL in text) == (said == EQUAL)
    assert ("compared and equal: settings, tuned values\n" in text) == (said == "not compared: data")
