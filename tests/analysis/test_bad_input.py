"""What a study can leave behind that is no clean table: a clear message, or a table that says so. Never a traceback."""

import json
import math

import pandas
import pytest
from rich.text import Text
from studies import JACCARD, write_study

from pretune.analysis.load.results import ResultsError, load
from pretune.analysis.load.runs import load_stage_runs
from pretune.analysis.report.html import build_page
from pretune.analysis.report.html import write as write_page
from pretune.analysis.report.tables import write_tables
from pretune.cli import main

FACTORS = {"a": ["x", "y"]}


def text_of(folder):
    """table.md, after the tables were written in every format and the page was built."""
    write_tables(folder)
    build_page(folder)
    return (folder / "table.md").read_text()


def test_an_empty_study_is_all_dashes(tmp_path):
    """The search has ended, nothing is confirmed."""
    write_study(tmp_path, {"a=x": [0.5], "a=y": [0.6]}, FACTORS, baseline={"a": "x"})
    results = pandas.read_parquet(tmp_path / "results.parquet")
    results.assign(phase="search").to_parquet(tmp_path / "results.parquet")
    text = text_of(tmp_path)
    assert f"{JACCARD}: nothing has finished" in text
    assert "| all | –¹ | –¹ |" in text
    assert "¹ a=x, a=y: 0 of 1 seeds; 1 not run" in text


def test_one_cell_is_a_table_of_one(tmp_path):
    write_study(tmp_path, {"a=x": [0.5, 0.6]}, {"a": ["x"]})
    text = text_of(tmp_path)
    assert "| all | 0.550 ± 0.071 |" in text
    assert "≈" not in text


def test_one_seed_is_a_dash_and_the_reason(tmp_path):
    write_study(tmp_path, {"a=x": [0.5], "a=y": [0.6]}, FACTORS, baseline={"a": "x"})
    text = text_of(tmp_path)
    assert "0.500 ± –" in text
    assert "- one seed: no standard deviation\n" in text
    assert "| a=y | +0.100 | – | – | 1 |" in text


@pytest.mark.parametrize("outcome", ["diverged", "crashed", "raced-out", "stopped"])
def test_where_all_failed_the_table_says_how(tmp_path, outcome):
    write_study(tmp_path, {"a=x": [math.nan] * 2, "a=y": [math.nan] * 2}, FACTORS, baseline={"a": "x"})
    results = pandas.read_parquet(tmp_path / "results.parquet").assign(outcome=outcome, cause="why")
    results.to_parquet(tmp_path / "results.parquet")
    text = text_of(tmp_path)
    assert "nothing has finished" in text
    assert f"0 of 2 seeds; 2 {outcome} (why)" in text
    assert "no seed finished in both this cell and the baseline" in text


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_metric_is_no_value_with_a_footnote_in_table_and_report(tmp_path, value):
    write_study(tmp_path, {"a=x": [0.5, 0.6, 0.7], "a=y": [0.6, 0.7, 0.8]}, FACTORS, baseline={"a": "x"})
    results = pandas.read_parquet(tmp_path / "results.parquet")
    results.loc[(results["cell"] == "a=y") & (results["seed"] == 2), "value"] = value
    results.to_parquet(tmp_path / "results.parquet")
    text, page = text_of(tmp_path), (tmp_path / "report.html")
    write_page(tmp_path)
    for shown in (text, page.read_text()):
        assert "a=y: 2 of 3 seeds; 1 no score (the value is infinite)" in shown
        assert "0.650 ± 0.071" in shown
        assert "Infinity" not in shown.split("<script")[0]
    run_data = page.read_text().rpartition('{"columns"')[2].split("</script>")[0]
    assert "Infinity" not in run_data
    assert "NaN" not in run_data


def test_an_infinite_loss_of_a_learning_curve_is_a_gap(tmp_path):
    write_study(tmp_path, {"a=x": [0.5, 0.6], "a=y": [0.6, 0.7]}, FACTORS)
    curves = pandas.read_parquet(tmp_path / "curves.parquet")
    curves.loc[curves["seed"] == 1, "value"] = math.inf
    curves.to_parquet(tmp_path / "curves.parquet")
    assert "Learning curves" in build_page(tmp_path)  # json.dumps(allow_nan=False) would refuse it


def test_an_interval_beyond_the_metrics_range_is_not_cut_and_is_said_once_where_it_stands(tmp_path):
    """Mean 0.623, standard error 0.302: the t interval of three is 0.623 ± 1.299. Beside the answer and the figure."""
    write_study(tmp_path, {"a=x": [0.02, 0.9, 0.95], "a=y": [0.5, 0.51, 0.52]}, FACTORS)
    text_of(tmp_path)
    page = build_page(tmp_path).split("<script")[0]
    assert "95 % t interval −0.68 to 1.92, 3 seeds" in page  # digits as in the table
    assert page.lower().count("an interval goes beyond the metric&#39;s range of 0 to 1") == 2
    assert float(pandas.read_csv(tmp_path / "table.csv")["low"].min()) < 0


def test_a_table_without_rows_is_a_sentence_in_every_format(tmp_path):
    """No seed of y finished: nothing to compare it with, and no head of a table over nothing."""
    write_study(tmp_path, {"a=x": [0.5, 0.6], "a=y": [math.nan] * 2}, FACTORS, baseline={"a": "x"})
    text = text_of(tmp_path)
    assert "| cell | difference |" not in text
    assert "- a=y: no seed finished in both this cell and the baseline a=x" in text
    assert text.count("| --- |") == 1
    tex = (tmp_path / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 1
    (shown,) = (part for part in write_tables(tmp_path) if isinstance(part, Text) and "paired difference" in part.plain)
    assert "no seed finished in both this cell" in shown.plain


def test_a_metric_that_is_nan_is_no_value_and_never_a_number(tmp_path):
    write_study(tmp_path, {"a=x": [0.5, 0.6, 0.7], "a=y": [0.6, 0.7, 0.8]}, FACTORS)
    results = pandas.read_parquet(tmp_path / "results.parquet")
    lost = (results["cell"] == "a=x") & (results["seed"] == 0)
    results.loc[lost, "value"] = math.nan
    results.to_parquet(tmp_path / "results.parquet")
    text = text_of(tmp_path)
    assert "0.650 ± 0.071 (n=2 of 3)" in text  # 0.6 and 0.7 alone
    assert "a=x: 2 of 3 seeds; 1 no score" in text
    assert "nan" not in text.lower()


def test_results_of_another_version_are_said_so(tmp_path):
    write_study(tmp_path, {"a=x": [0.5], "a=y": [0.6]}, FACTORS)
    results = pandas.read_parquet(tmp_path / "results.parquet")
    results.drop(columns=["outcome", "cause"]).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(ResultsError, match=r"columns outcome, cause: .*run the study again"):
        write_tables(tmp_path)


@pytest.mark.parametrize("name", ["results.parquet", "study.json"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_ends_in_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, name, kept):
    write_study(tmp_path, {"a=x": [0.5], "a=y": [0.6]}, FACTORS)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    monkeypatch.setattr("sys.argv", ["pretune", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = "".join(capsys.readouterr())
    assert caught.value.code == 2
    assert name in said.replace("\n", "")
    assert "Traceback" not in said
    assert (tmp_path / name).read_bytes() == whole[: int(kept * len(whole))]


def test_a_header_without_cells_is_said_so(tmp_path):
    write_study(tmp_path, {"a=x": [0.5], "a=y": [0.6]}, FACTORS)
    header = json.loads((tmp_path / "study.json").read_text())
    del header["cells"]
    (tmp_path / "study.json").write_text(json.dumps(header))
    with pytest.raises(ResultsError, match="does not describe a study"):
        write_tables(tmp_path)


def test_files_of_another_version_or_kind_are_said_so(tmp_path):
    folder = write_study(tmp_path, {"a=x": [0.5, 0.6]}, {"a": ["x"]})
    runs, results = (pandas.read_parquet(folder / name) for name in ("stage_runs.parquet", "results.parquet"))
    runs.drop(columns="bytes").to_parquet(folder / "stage_runs.parquet")
    with pytest.raises(ResultsError, match="lacks the columns bytes"):
        load_stage_runs(folder)
    results.assign(value=results["value"].astype(str)).to_parquet(folder / "results.parquet")
    with pytest.raises(ResultsError, match="holds text where numbers belong"):
        load(folder)
