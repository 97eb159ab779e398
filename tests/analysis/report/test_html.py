"""The report is opened in a headless Chromium where there is one; what needs none is tested without."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas
import pytest
from browser import browse, find
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.load.results import ResultsError
from pretune.analysis.load.runs import failures, load_stage_runs, run_table
from pretune.analysis.report.html import build_page, facts, progress, readable_seconds, watch, write
from pretune.analysis.report.tables import write_tables

FACTORS = {"encoder": ["frozen", "free"], "labels": ["all", "10%"]}
SCORES = {
    "encoder=frozen labels=all": [0.50, 0.52, 0.54],
    "encoder=frozen labels=10%": [0.40, 0.41, 0.42],
    "encoder=free labels=all": [0.70, 0.71, 0.72],
    "encoder=free labels=10%": [0.60, math.nan, 0.62],
}
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"


@pytest.fixture
def page(tmp_path):
    binary = find()
    if binary is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with browse(binary, tmp_path / "profile") as found:
        yield found


def shown(page, column):
    """The texts of one column of the table of stage runs."""
    cells = f"[...document.querySelectorAll('#runs-table tr.run td:nth-child({column})')]"
    return page.run(f"{cells}.map((cell) => cell.textContent)")


def choose(page, name, value):
    page.run(f"document.getElementById('{name}').value = {json.dumps(value)}")
    page.run(f"document.getElementById('{name}').dispatchEvent(new Event('input', {{bubbles: true}}))")


def sort_by(page, column):
    page.run(f"document.querySelector('#runs-table th:nth-child({column}) button').click()")


# --------------------------------------------------------------------------------------------------- in the browser


def test_the_page_opens_without_an_error_or_a_request_and_draws_its_plots(page, tmp_path):
    folder = write_study(tmp_path / "study", SCORES, FACTORS, baseline={"encoder": "frozen"})
    page.open(write(folder))
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    page.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))")
    shown = page.run("[...document.querySelectorAll('.plot')].map((plot) => plot.ariaLabel.split(':')[0])")
    assert shown == [
        "Every seed", "Differences to the baseline", "Over labels", "Interactions", "Pairs of factors",
        "Stability of the order", "Learning curves",
    ]  # fmt: skip
    assert page.problems() == []
    assert page.requests() == [(folder / "report.html").as_uri()]


def test_stage_runs_are_sorted_filtered_and_opened(page, tmp_path):
    page.open(write(write_study(tmp_path / "study", SCORES, FACTORS)))
    assert page.run("document.querySelectorAll('#runs-table tr.run').length") == 12
    sort_by(page, 7)
    ascending = shown(page, 7)
    assert ascending[:3] == ["0.4", "0.41", "0.42"]
    assert ascending[-1] == "–"  # the diverged one has no value, and is last whichever way
    sort_by(page, 7)
    assert shown(page, 7)[:2] == ["0.72", "0.71"]
    assert shown(page, 7)[-1] == "–"
    choose(page, "outcome", "diverged")
    assert shown(page, 3) == ["encoder=free labels=10%"]
    page.run("document.querySelector('#runs-table tr.run').click()")
    assert "loss is NaN" in page.run("document.querySelector('#runs-table tr.detail').textContent")
    choose(page, "outcome", "")
    choose(page, "contains", "FROZEN 10%")
    assert shown(page, 3) == ["encoder=frozen labels=10%"] * 3
    assert page.problems() == []


def test_no_text_of_a_study_runs_as_a_script(page, tmp_path):
    scores = {f"a={HOSTILE}": [0.5, math.nan]}
    folder = write_study(
        tmp_path / "study", scores, {"a": [HOSTILE]}, HOSTILE, HOSTILE, HOSTILE, metrics=(f"test/jaccard/{HOSTILE}",)
    )
    page.open(write(folder))
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    page.run("document.querySelectorAll('#runs-table tr.run').forEach((row) => row.click())")
    page.wait("document.querySelector('.plot svg')")
    assert page.run("window.hacked") is None
    assert page.run("document.querySelectorAll('main img').length") == 0
    assert page.run("document.querySelector('h1').textContent") == HOSTILE
    assert page.requests() == [(folder / "report.html").as_uri()]


def test_ten_thousand_stage_runs_come_in_pages(page, tmp_path):
    generator = np.random.default_rng(0)
    cells = {f"a={i}": generator.uniform(size=100).tolist() for i in range(100)}
    names = {"a": [str(i) for i in range(100)]}
    path = write(write_study(tmp_path / "study", cells, names, HOSTILE, metrics=(JACCARD, "test/dice")))
    page.open(path)
    assert "10000 of 10000 stage runs" in page.run("document.getElementById('count').textContent")
    assert page.run("document.querySelectorAll('#runs-table tr.run').length") == 50
    sort_by(page, 7)
    smallest = sorted(value for values in cells.values() for value in values)[:50]
    assert [float(text) for text in shown(page, 7)] == pytest.approx(smallest, rel=1e-3)
    page.run("document.getElementById('after').click()")
    assert page.run("document.getElementById('page').textContent") == "page 2 of 200"
    choose(page, "contains", "a=42")
    assert "100 of 10000 stage runs" in page.run("document.getElementById('count').textContent")
    assert set(shown(page, 3)) == {"a=42"}
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    page.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg'))")
    assert page.run("window.hacked") is None
    assert page.problems() == []
    assert page.requests() == [path.as_uri()]


# ------------------------------------------------------------------------------------------------ without a browser


def test_hostile_text_is_escaped_wherever_it_stands(tmp_path):
    text = build_page(
        write_study(tmp_path, {f"a={HOSTILE}": [0.5, math.nan]}, {"a": [HOSTILE]}, HOSTILE, HOSTILE, HOSTILE)
    )
    assert "<script>window.hacked" not in text
    assert "<img src=x" not in text
    assert len(re.findall(r"</script>", text)) == text.count("<script>") + text.count('<script type="application/json"')


def test_the_table_of_the_page_is_that_of_the_results_by_plain_numpy(tmp_path):
    folder = write_study(tmp_path, SCORES, FACTORS)
    text = build_page(folder)
    results = load(folder)
    values = results[(results["cell"] == "encoder=free labels=all") & (results["metric"] == JACCARD)]["value"]
    mean, std = np.mean(values.to_numpy()), np.std(values.to_numpy(), ddof=1)
    assert f"<strong>{mean:.3f} ± {std:.3f}" in text
    assert "encoder=free labels=10%: 2 of 3 seeds; 1 diverged (loss is NaN)" in text


def test_all_failed_and_one_seed_are_honest_pages(tmp_path):
    nothing = build_page(write_study(tmp_path / "a", {"a=x": [math.nan], "a=y": [math.nan]}, {"a": ["x", "y"]}))
    assert "so there is no answer" in nothing
    single = build_page(write_study(tmp_path / "b", {"a=x": [0.5], "a=y": [0.4]}, {"a": ["x", "y"]}))
    assert "one seed, so its uncertainty is not known" in single
    assert "0.500 ± –" in single


def test_a_folder_without_results_is_one_sentence(tmp_path):
    with pytest.raises(ResultsError, match=r"holds no study\.json"):
        write(tmp_path)


def test_a_cut_off_file_is_one_sentence(tmp_path):
    folder = write_study(tmp_path, SCORES, FACTORS)
    (folder / "stage_runs.parquet").write_bytes((folder / "stage_runs.parquet").read_bytes()[:100])
    with pytest.raises(ResultsError, match=r"stage_runs\.parquet cannot be read"):
        build_page(folder)


def test_run_table_has_every_run_once_with_its_metrics(tmp_path):
    folder = write_study(tmp_path, SCORES, FACTORS, metrics=(JACCARD, "test/dice"))
    table = run_table(load(folder), pandas.read_parquet(folder / "stage_runs.parquet"))
    assert len(table.rows) == len(table.values) == 12
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert (first["cell"], first["seed"], first["seconds"]) == ("encoder=frozen labels=all", 0, 2.0)
    assert dict(zip(table.metrics, table.values[0], strict=True)) == {JACCARD: 0.5, "test/dice": 0.51}
    diverged = [row[4] for row in table.rows].index("diverged")
    assert table.values[diverged] == [None, None]


def test_failures_of_one_cause_stand_together(tmp_path):
    scores = {"a=x": [math.nan, 0.5, math.nan]}
    (found,) = failures(load(write_study(tmp_path, scores, {"a": ["x"]})))
    assert (found.cell, found.outcome, found.cause, found.seeds) == ("a=x", "diverged", "loss is NaN", (0, 2))


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.96, "60.0 s"), (720, "12 min"), (11100, "3 h 5 min")]
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert readable_seconds(seconds) == text


def status(done, total):
    return json.dumps({"finished": done, "reused": 0, "failed": 0, "total": total, "phase": "confirm"})


def test_progress_is_said_until_the_study_has_ended(tmp_path):
    (tmp_path / "status.json").write_text(status(3, 12))
    assert "3 of 12 stage runs" in progress(tmp_path)
    (tmp_path / "status.json").write_text(status(12, 12))
    assert progress(tmp_path) == ""


def test_watching_writes_again_on_a_change_and_ends_with_the_study(tmp_path):
    folder, said = write_study(tmp_path, SCORES, FACTORS), []
    (folder / "status.json").write_text(status(3, 12))

    def say(line):
        said.append(line)
        if len(said) == 1:
            assert '"reload_seconds":5.0' in (folder / "report.html").read_text()
            (folder / "status.json").write_text(status(12, 12))

    watch(folder, say, seconds=0.01)
    assert len(said) == 2
    assert '"reload_seconds":0.0' in (folder / "report.html").read_text()


def test_nested_seeds_are_counted_as_the_table_counts_them(tmp_path):
    write_study(tmp_path, {"a=x": [0.5, 0.6, 0.7, 0.8]}, {"a": ["x"]})
    header = replace(load_header(tmp_path), replicates=6, pretrainings=3)
    found = dict(facts(load(tmp_path), load_stage_runs(tmp_path), header))
    assert (found["pretrainings per cell"], found["fine-tunings of each"]) == ("3", "2")
    assert dict(facts(load(tmp_path), load_stage_runs(tmp_path), load_header(tmp_path)))["seeds per cell"] == "4"


def test_a_note_that_no_encoding_takes_is_written_out(tmp_path):
    """Runs of before 2026-11-21 stored names of files as they are, which need not be UTF-8."""
    folder = write_study(tmp_path, SCORES, FACTORS)
    header = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(header | {"notes": ["copies: caf\udce9.png"]}))
    assert r"copies: caf\udce9.png" in write(folder).read_text(encoding="utf-8")
    write_tables(folder)
    assert r"copies: caf\udce9.png" in (folder / "table.md").read_text(encoding="utf-8")
