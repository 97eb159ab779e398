"""Studies side by side. Welch by hand: 1, 3 against 5, 7, 9 have means 2 and 7, variances 2 and 4."""

import html.parser
import json
import math
import re
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from studies import write_study

from pretune.analysis.figures.comparison import comparison_plot
from pretune.analysis.load.results import ResultsError
from pretune.analysis.load.studies import load_studies
from pretune.analysis.questions.compare import compare_folders, welch, why_not_paired
from pretune.analysis.report.comparison import build_comparison
from pretune.analysis.text.comparison import comparison_markdown
from pretune.cli import cli


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


def rename_runs(folder, rename):
    path = folder / "results.parquet"
    results = pandas.read_parquet(path)
    results["fingerprint"] = results["fingerprint"].map(rename)
    results.to_parquet(path)


# ------------------------------------------------------------------------------------- studies that can be resolved

STUDY = """study: {name}
data: {{d: {{dataset: scenes, images: 60, cache_size: 16, split: {{test: 12, val: 8, seed: 0}}}}}}
model: {{widths: [4, 8]}}
pretrain: {{data: d, method: {{name: simclr, temperature: 0.2}}, views: {{size: 16}}, epochs: 1, batch_size: 8}}
finetune: {{data: d, size: 16, epochs: 1, batch_size: 4}}
factors: {{start: {{random: {{finetune.transfer: none}}, pretrained: {{finetune.transfer: encoder}}}}}}
seeds: {{report: 3}}
"""
STARTS = {"start": ["random", "pretrained"]}
R, P = "start=random", "start=pretrained"


class Made(NamedTuple):
    """A study to write: its scores, and what differs from the others of the test."""

    name: str
    scores: dict[str, list[float]]
    change: tuple[str, str] = ("", "")  # in the study file
    content: Any = MappingProxyType({"d": ["1"]})  # None: not stored
    hold: Any = MappingProxyType({})
    seeds: Any = None
    chosen: str = "{}"
    torch: str = "2.15.0"
    fingerprints: str = "{name} {run}"


A = Made("a", {R: [0.5, 0.6, 0.7], P: [0.6, 0.7, 0.8]})
B = Made("b", {R: [0.52, 0.64, 0.72], P: [0.8, 0.9, 1.0]})


def write(tmp_path, *made):
    return [_write(tmp_path / f"{place}-{one.name}", one) for place, one in enumerate(made)]


def _write(folder, made):
    write_study(folder, made.scores, STARTS, made.name)
    (folder / "study.yaml").write_text(STUDY.format(name=made.name).replace(*made.change))
    content = json.loads((folder / "study.json").read_text())
    seeds = content["seeds"] | {"hold": dict(made.hold)} | ({"report": made.seeds} if made.seeds else {})
    (folder / "study.json").write_text(json.dumps(content | {"seeds": seeds, "data": dict(made.content or {})}))
    rename_runs(folder, lambda run: made.fingerprints.format(name=made.name, run=run))
    results = pandas.read_parquet(folder / "results.parquet").assign(chosen=made.chosen)
    results.to_parquet(folder / "results.parquet")
    runs = pandas.read_parquet(folder / "stage_runs.parquet")
    runs["fingerprint"] = runs["fingerprint"].map(lambda run: made.fingerprints.format(name=made.name, run=run))
    runs["machine"] = runs["machine"].str.replace("2.15.0", made.torch)
    runs.to_parquet(folder / "stage_runs.parquet")
    return folder


def test_equal_seeds_are_paired_and_the_numbers_are_those_worked_by_hand(tmp_path):
    """Differences 0.02, 0.04, 0.02: mean 0.08 / 3, std 0.02 / sqrt(3), error 0.02 / 3, so t is 4 at 2 degrees."""
    (metric,) = compare_folders(write(tmp_path, A, B)).metrics
    row, copies = metric.differences
    assert (row.cell, row.study, row.pairs) == (R, "b", 3)
    assert row.difference == pytest.approx(0.08 / 3)
    half = 4.302653 * 0.02 / 3  # t of 97.5 % at 2 degrees
    assert (row.low, row.high) == pytest.approx((0.08 / 3 - half, 0.08 / 3 + half), abs=1e-6)
    assert row.p == pytest.approx(0.0571910, abs=1e-6)  # twice the upper tail of t = 4 at 2 degrees
    assert row.p_holm == row.p  # the other has no spread, so no test: every seed is 0.2 higher
    assert copies.difference == pytest.approx(0.2)
    assert math.isnan(copies.p)
    first, second = metric.means[0]
    assert (first.mean.mean, second.mean.mean) == pytest.approx((0.6, 1.88 / 3))
    assert first.interval.high == pytest.approx(0.6 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)


def test_three_studies_are_each_compared_with_the_first_and_share_one_correction(tmp_path):
    """t = 4 for b and t = -8 for c (differences -0.04, -0.04, -0.03 -> see below): Holm doubles the smaller p."""
    c = Made("c", {R: [0.46, 0.56, 0.67]})
    found = compare_folders(
        write(tmp_path, A._replace(scores={R: A.scores[R]}), B._replace(scores={R: B.scores[R]}), c)
    )
    (metric,) = found.metrics
    b, c = metric.differences
    assert (b.study, c.study) == ("b", "c")
    t = (-0.11 / 3) / (math.sqrt(((-0.04 + 0.11 / 3) ** 2 * 2 + (-0.03 + 0.11 / 3) ** 2) / 2) / math.sqrt(3))
    assert c.p == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert c.p_holm == pytest.approx(2 * c.p)
    assert b.p_holm == pytest.approx(max(b.p, 2 * c.p))
    assert [one.mean.mean for one in metric.means[0]] == pytest.approx([0.6, 1.88 / 3, 1.69 / 3])


def test_only_seeds_that_finished_in_both_are_pairs(tmp_path):
    fewer = B._replace(scores={R: [0.52, math.nan, 0.74], P: [0.8, 0.9, 1.0]})
    row = compare_folders(write(tmp_path, A, fewer)).metrics[0].differences[0]
    assert row.difference == pytest.approx((0.02 + 0.04) / 2)  # not that of the means
    assert (row.pairs, row.unpaired) == (2, 1)


PAIRED = "Paired by seed with a: b; equal seeds have the same split into training, validation and test images."
TEST_IMAGES = ", and with it perhaps the test images"
UNPAIRED = [
    (B._replace(content={"d": ["2"]}), f"the content of data d differs{TEST_IMAGES}"),
    (B._replace(content=None), "the content of the data is not stored in b"),
    (B._replace(change=("test: 12", "test: 20")), f"the split of data d differs (test 12 and 20){TEST_IMAGES}"),
    (B._replace(change=("seed: 0", "seed: 1")), f"the split of data d differs (seed 0 and 1){TEST_IMAGES}"),
    (B._replace(change=("val: 8", "val: 10")), "the split of data d differs (val 8 and 10)"),
    (B._replace(hold={"init": 0}), "seeds.hold differs"),
    (B._replace(seeds={"pretrain": 1, "finetune": 3}), "a pretraining has 1 and 3 fine-tunings"),
    (B._replace(change=("widths: [4, 8]", "widths: four")), "this version cannot resolve the settings of b"),
]


@pytest.mark.parametrize(("other", "why"), UNPAIRED, ids=[why[:40] for _, why in UNPAIRED])
def test_where_seeds_are_not_paired_a_sentence_says_why_and_welch_takes_their_place(tmp_path, other, why):
    found = compare_folders(write(tmp_path, A, other))
    text = comparison_markdown(found)
    assert f"Not paired with a: b, because {why}. Welch's test is used instead." in text
    assert "Paired by seed" not in text
    row = found.metrics[0].differences[0]
    if row.cell == R and other.seeds is None:
        assert row[2:6] == pytest.approx(welch(A.scores[R], B.scores[R]))
    assert row.pairs == 0


@pytest.mark.parametrize(
    "other",
    [
        B,
        B._replace(change=("size: 16, epochs", "size: 32, epochs")),
        B._replace(change=("temperature: 0.2", "temperature: 0.3")),
        B._replace(change=("report: 3", "report: 5")),
        B._replace(change=("scenes, images", "scenes, source: resident, images")),
    ],
    ids=["equal", "size", "temperature", "more seeds", "read otherwise"],
)
def test_other_settings_leave_seeds_paired(tmp_path, other):
    text = comparison_markdown(compare_folders(write(tmp_path, A, other)))
    assert PAIRED in text
    assert "Not paired" not in text
    assert "Welch" not in text


def test_pairing_is_decided_cell_by_cell(tmp_path):
    """One cell has data of its own: that cell alone is not paired."""
    ours = ("random: {finetune.transfer: none}", "random: {finetune.transfer: none, data.d.split.test: 20}")
    made = A, B._replace(change=ours, scores=B.scores | {P: [0.8, 0.92, 1.0]})
    text = comparison_markdown(compare_folders(write(tmp_path, *made)))
    assert f"Not paired with a in {R}: b, because the split of data d differs" in text
    assert PAIRED in text
    assert f"| {R} | +0.027 | [−0.201, +0.254] | 0.761 | Welch |" in text
    assert f"| {P} |" in text
    assert "| paired, n=3 |" in text


# ----------------------------------------------------------------------------------------------------- what differs

DIFFERENT = [
    (("size: 16, epochs", "size: 32, epochs"), "| finetune.size | 16 | 32 |"),
    (("temperature: 0.2", "temperature: 0.3"), f"| pretrain.method.temperature (in {P}) | 0.2 | 0.3 |"),
    (("temperature: 0.2", "temperature: {log_uniform: [0.1, 1.0]}"),
     f"| pretrain.method.temperature (in {P}) | 0.2 | {{log_uniform: [0.1, 1.0]}} |"),
    (("temperature: 0.2", "temperature: {log_uniform: [0.1, 1.0]}"), f"| tune (in {P}) | – | tpe |"),
    (("report: 3", "report: 5"), "| seeds.report.pretrain | 3 | 5 |"),
    (("pretrained: {finetune.transfer: encoder}", "pretrained: {finetune.transfer: encoder, finetune.freeze: encoder}"),
     f"| finetune.freeze (in {P}) | none | encoder |"),
    (("data: d, size", "loss: focal, data: d, size"), "| finetune.loss | dice | focal |"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), DIFFERENT, ids=[line[2:30] for _, line in DIFFERENT])
def test_settings_are_compared_as_resolved_and_by_cell(tmp_path, change, line):
    text = comparison_markdown(compare_folders(write(tmp_path, A, B._replace(change=change))))
    assert line in text
    assert "compared and equal: tuned values, data, versions, hardware" in text


@pytest.mark.parametrize(
    "change",
    [
        ("size: 16, epochs", "size: 16, loss: dice, epochs"),
        ("seeds: {report", "question: Another?\nreport: {percent: false}\nseeds: {report"),
        ("temperature: 0.2", "temperature: 2.0e-1"),
        ("data: {d: {dataset: scenes", "data: {d: {source: resident, dataset: scenes"),
    ],
    ids=["a default, written", "what no result depends on", "another notation", "how it is read"],
)
def test_what_makes_no_difference_is_not_called_one(tmp_path, change):
    text = comparison_markdown(compare_folders(write(tmp_path, A, B._replace(change=change))))
    assert "What else differs: nothing that was compared" in text
    assert "compared and equal: settings, tuned values, data, versions, hardware" in text


OTHERS = [
    (
        B._replace(chosen='{"finetune.optimizer.lr": 0.002}'),
        f"| tuned values of {R} | – | finetune.optimizer.lr 0.002 |",
    ),
    (B._replace(content={"d": ["1234567890abcdef"]}), "| content of data d | 1 | 1234567890ab |"),
    (B._replace(torch="2.16.1"), "| PyTorch | 2.15.0 | 2.16.1 |"),
]


@pytest.mark.parametrize(("other", "line"), OTHERS, ids=["values", "content", "version"])
def test_tuned_values_data_and_versions_are_compared(tmp_path, other, line):
    text = comparison_markdown(compare_folders(write(tmp_path, A, other)))
    assert line in text
    assert line not in comparison_markdown(compare_folders(write(tmp_path / "again", A, B)))


def test_what_is_not_stored_is_not_called_equal(tmp_path):
    folders = write(tmp_path, A, B._replace(content=None), A._replace(name="c"))
    (folders[2] / "stage_runs.parquet").unlink()
    text = comparison_markdown(compare_folders(folders))
    assert "- compared and equal: settings, tuned values\n" in text
    assert "- not compared: data (not stored in b)" in text
    assert "- not compared: versions (not stored in c)" in text


def test_a_pretraining_that_one_study_lacks_is_one_line(tmp_path):
    lacking = ("pretrained: {finetune.transfer: encoder}", "pretrained: {finetune.transfer: none, finetune.size: 32}")
    text = comparison_markdown(compare_folders(write(tmp_path, A, B._replace(change=lacking))))
    assert f"| pretrain (in {P}) | simclr | – |" in text
    assert "pretrain.method" not in text


# -------------------------------------------------------------------------------------------------------- sentences

SEVERAL = "The studies differ in 2 things, listed below. Differences in scores come from all of them."
SHOWN = B._replace(scores={R: [0.52, 0.64, 0.72], P: [0.80, 0.899, 1.0]})
SAID = [  # a sentence, where it is true, where it must not appear
    (f"b against a in test/jaccard: 1 of 2 tested cells is shown to differ (1 higher, 0 lower, after Holm over 2 "
     f"tests); the largest: {P} +0.1997 (95 % interval +0.1982 to +0.2011, 3 paired seeds).", SHOWN, B),
    (f"b against a in test/jaccard: no difference is shown in 1 tested cell; the largest: {R} +0.027 (95 % interval "
     "−0.002 to +0.055, 3 paired seeds).", B, SHOWN),
    ("no cell can be tested. A test needs two seeds and some spread on each side", Made("b", {R: [0.5], P: [0.5]}), B),
    ("no cell has a value in both, so nothing is compared", Made("b", {R: [math.nan] * 3, P: [math.nan] * 3}), B),
    ("both values come from the same stage runs, so there is no difference to test",
     A._replace(name="b", fingerprints="a {run}"), B),
    ("same runs: the values come from the same stage runs in both studies",
     A._replace(name="b", fingerprints="a {run}"), B),
    ("b and a hold the same 6 confirmed stage runs and no others", A._replace(name="b", fingerprints="a {run}"), B),
    (SEVERAL, B._replace(change=("size: 16, epochs", "size: 32, epochs"), torch="2.16.1"),
     B._replace(torch="2.16.1")),
    ("fewer values than planned, so the mean may cover only the better runs: start=random in b",
     B._replace(scores=B.scores | {R: [0.5, 0.6, math.nan]}), B),
    ("planned, without any value: start=random in b", B._replace(scores=B.scores | {R: [math.nan] * 3}), B),
    ("runs that finished in only one study have no partner and are excluded: 1",
     B._replace(scores=B.scores | {R: [0.5, 0.6, math.nan]}), B),
    ("no interval: one seed, or no spread", B, SHOWN),
    ("replicates of the better side failed and may have been its worst, so no difference is claimed for: "
     f"{P} of b", SHOWN._replace(scores=SHOWN.scores | {P: [0.80, 0.899, 1.0, math.nan]}), SHOWN),
    ("settings are compared as written, without defaults: this version cannot resolve those of b",
     B._replace(change=("widths: [4, 8]", "widths: four")), B),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "true", "absent"), SAID, ids=[sentence[:50] for sentence, *_ in SAID])
def test_a_sentence_is_said_where_it_is_true_and_nowhere_else(tmp_path, sentence, true, absent):
    assert sentence in comparison_markdown(compare_folders(write(tmp_path / "1", A, true)))
    assert sentence not in comparison_markdown(compare_folders(write(tmp_path / "2", A, absent)))


def test_a_cell_that_one_study_lacks_is_empty_and_a_probe_needs_its_data(tmp_path):
    """The third study has cells of its own; and `probe/x/accuracy` of no probe named x is not paired."""
    other = B._replace(change=("size: 16, epochs", "size: 32, epochs"))
    folders = write(tmp_path, A, other, A._replace(name="c", change=("start: {random", "begin: {random")))
    text = comparison_markdown(compare_folders(folders))
    assert "| finetune.size | 16 | 32 |  |" in text
    assert "- empty: the study has none of these cells" in text
    assert "empty" not in comparison_markdown(compare_folders(folders[:2]))
    a, b, _ = load_studies(folders)
    assert why_not_paired(a, b, R, "probe/x/accuracy") == "their settings do not name the data of this metric"
    assert why_not_paired(a, b, R, "test/jaccard") == ""


def test_data_that_is_a_factor_is_paired_where_its_settings_are_equal(tmp_path):
    """Both studies have the same two contents; which one a cell has is told by its settings alone."""
    factor = "random: {finetune.transfer: none}", "random: {finetune.transfer: none, data.d.classes: 4}"
    both = {"d": ["1", "2"]}
    folders = write(tmp_path, A._replace(content=both), B._replace(content=both, change=factor))
    a, b = load_studies(folders)
    assert why_not_paired(a, b, P, "test/jaccard") == ""
    several = f"the settings of data d differ, which has several contents{TEST_IMAGES}"
    assert why_not_paired(a, b, R, "test/jaccard") == several


def test_shared_runs_are_no_independent_samples_where_welch_is_used(tmp_path):
    """Two runs of the first cell are in both."""
    half = "{name} {run}"
    folders = write(tmp_path, A, B._replace(content=None, fingerprints=half))
    rename_runs(folders[1], lambda run: run.replace("b ", "a ") if run.endswith(("0", "1")) else run)
    shared = "b and a share 2 confirmed stage runs (2 finetune) of 6 and 6"
    text = comparison_markdown(compare_folders(folders))
    assert f"{shared}: they are not independent, although Welch's test assumes it." in text
    (folders[1] / "study.json").write_text(
        (folders[0] / "study.json").read_text().replace('"study": "a"', '"study": "b"')
    )
    text = comparison_markdown(compare_folders(folders))  # the content is stored now: paired, and no such sentence
    assert f"- {shared}\n" in text
    assert "not independent" not in text


def test_cells_of_one_study_alone_are_named_and_studies_without_common_cells_stand_side_by_side(tmp_path):
    folders = write(tmp_path, A, B._replace(change=("start: {random", "begin: {random")))
    content = (folders[1] / "study.json").read_text().replace("start", "begin")
    (folders[1] / "study.json").write_text(content)
    results = pandas.read_parquet(folders[1] / "results.parquet")
    results["cell"] = results["cell"].str.replace("start", "begin")
    results.to_parquet(folders[1] / "results.parquet")
    text = comparison_markdown(compare_folders(folders))
    assert "- only in b: begin=random, begin=pretrained" in text
    assert "| begin=random | – | 0.63 ± 0.10 (3) |" in text
    assert "not compared: tuned values (no cell is in two of the studies)" in text
    assert "settings and tuned values are compared in the cells that are in two studies or more" in text


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_a_paired_row_agrees_with_scipy_whatever_the_scores(tmp_path_factory, pairs):
    a, b = zip(*pairs, strict=True)
    if np.ptp(np.subtract(a, b)) < 1e-6:
        return
    made = A._replace(scores={R: list(a)}), B._replace(scores={R: list(b)})
    row = compare_folders(write(tmp_path_factory.mktemp("p"), *made)).metrics[0].differences[0]
    theirs = stats.ttest_rel(b, a)
    assert row.p == pytest.approx(theirs.pvalue, abs=1e-9)
    assert (row.low, row.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), abs=1e-9)


# ------------------------------------------------------------------------------------------------ page, figure, names


class Page(html.parser.HTMLParser):
    """Text and tags of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.found.append(data)


def test_the_page_holds_table_figure_and_differences_in_this_order_and_nothing_from_outside(tmp_path):
    found = compare_folders(
        write(tmp_path, A, B._replace(name="<b>", torch="2.16.1", change=("study: <b>", "study: b")))
    )
    text = build_comparison(found)
    page = Page(text)
    assert re.findall("<h2>(.*?)</h2>", text) == ["Table", "Every cell of every study", "What else differs"]
    assert not any("src" in attrs or attrs.get("href", "#").startswith("http") for _, attrs in page.tags)
    assert "<b> against a" not in text
    assert "&lt;b&gt; against a in test/jaccard" in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "paired, n=3" in folded
    assert "2.16.1" in text


def test_the_figure_shows_mean_and_interval_of_each_cell_and_study(tmp_path):
    found = compare_folders(write(tmp_path, A, B._replace(scores={P: B.scores[P]})))
    figure = comparison_plot(found.metrics[0], found.names)
    first, second = figure.data
    assert (first.name, second.name) == ("a", "b")
    assert list(first.x) == pytest.approx([0.6, 0.7])
    assert list(second.x) == pytest.approx([0.9])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert list(first.error_x.array) == pytest.approx([half, half], abs=1e-6)
    assert list(figure.layout.yaxis.ticktext) == [P, R]  # from below
    assert first.y[0] > 0.5 > first.y[1] > second.y[0]  # random above; in the row of pretrained, a above b


def test_studies_of_equal_or_long_names_go_by_letters_that_are_explained(tmp_path):
    folders = write(tmp_path, A, B._replace(name="a"))
    text = comparison_markdown(compare_folders(folders))
    assert f"- A: {folders[0]}\n- B: {folders[1]}" in text
    assert "B against A in test/jaccard" in text
    long = write(tmp_path / "long", A, B._replace(name="a-name-of-twenty-letters"))
    assert "- B: a-name-of-twenty-letters" in comparison_markdown(compare_folders(long))


def test_what_cannot_be_compared_is_one_sentence(tmp_path):
    a, b = write(tmp_path, A, B)
    with pytest.raises(ResultsError, match="is given twice"):
        compare_folders([a, b, tmp_path / "0-a" / ".." / "0-a"])
    with pytest.raises(ResultsError, match="two studies or more"):
        compare_folders([a])
    unlike = write_study(tmp_path / "d", {R: [0.5]}, STARTS, "unlike", metrics=("test/dice",))
    with pytest.raises(ResultsError, match="report no metric in common"):
        compare_folders([a, unlike])
    for text in ("{", "[]", "\xff"):
        (b / "study.yaml").write_text(text, encoding="latin-1")
        with pytest.raises(ResultsError, match="missing or damaged"):
            compare_folders([a, b])


def test_the_command_writes_the_page_beside_the_first_study(tmp_path):
    a, b = write(tmp_path, A, B)
    ran = CliRunner().invoke(cli, ["compare", str(a), str(b), "--markdown", str(tmp_path / "c.md")])
    assert ran.exit_code == 0, ran.output
    assert "Pretune comparison" in (a / "comparison.html").read_text()
    assert (tmp_path / "c.md").read_text().startswith("# a · b\n")
    refused = CliRunner().invoke(cli, ["compare", str(a), str(b), "--html", str(tmp_path / "none" / "c.html")])
    assert refused.exit_code == 2
    assert "cannot be written" in refused.output
