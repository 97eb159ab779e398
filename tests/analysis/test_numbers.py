"""Every number of a study's tables, in every format, again from results.parquet with plain NumPy.

Nothing of `analysis` computes the expected values: only the layout of a cell ("0.712 ± 0.013") is known here.
"""

import csv
import html.parser
import io
import itertools
import json
import math
import re

import numpy as np
import pandas
import pytest
from scipy import stats
from studies import JACCARD, label_of, write_study

from pretune.analysis.report.html import build_page
from pretune.analysis.report.tables import write_tables

FACTORS = {"encoder": ["unfrozen", "frozen"], "skip": ["true", "false"], "labels": ["all", "1%"]}
ROWS, COLUMNS = list(itertools.product(FACTORS["encoder"], FACTORS["skip"])), FACTORS["labels"]
PUBLISHED = {("unfrozen", "true", "all"): 0.61, ("frozen", "false", "1%"): 0.2}


@pytest.fixture(scope="module", params=[False, True], ids=["fraction", "percent"])
def study(request, tmp_path_factory):
    """Four seeds; one cell lost a seed by divergence, another by racing."""
    folder, generator = tmp_path_factory.mktemp("numbers"), np.random.default_rng(7)
    shared = generator.normal(0, 0.02, 4)
    scores = {}
    for place, levels in enumerate(itertools.product(*FACTORS.values())):
        label = label_of(dict(zip(FACTORS, levels, strict=True)))
        scores[label] = list(0.6 - 0.03 * place + shared + generator.normal(0, 0.01, 4))
    scores["encoder=frozen skip=true labels=1%"][2] = math.nan
    write_study(
        folder, scores, FACTORS, rows=["encoder", "skip"], columns=["labels"], percent=request.param,
        baseline={"encoder": "unfrozen", "skip": "true"},
    )  # fmt: skip
    header = json.loads((folder / "study.json").read_text())
    header["published"] = {"values": [[*labels, mean] for labels, mean in PUBLISHED.items()], "percent": False}
    (folder / "study.json").write_text(json.dumps(header))
    results = pandas.read_parquet(folder / "results.parquet")
    raced = (results["cell"] == "encoder=frozen skip=false labels=1%") & (results["seed"] == 0)
    results.loc[raced, "outcome"] = "raced-out"
    results.to_parquet(folder / "results.parquet")
    write_tables(folder)
    return folder, 100.0 if request.param else 1.0


def by_seed(folder):
    """Cell label -> {seed: value}, of finished runs alone."""
    frame = pandas.read_parquet(folder / "results.parquet")
    frame = frame[(frame["phase"] == "confirm") & (frame["metric"] == JACCARD) & (frame["outcome"] == "finished")]
    return {cell: dict(zip(part["seed"], part["value"], strict=True)) for cell, part in frame.groupby("cell")}


def label(row, column):
    return f"encoder={row[0]} skip={row[1]} labels={column}"


def interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def near(text, expected):
    """A printed number is the expected one, rounded to the digits that are printed."""
    shown = text.replace("−", "-").replace("+", "")
    digits = len(shown.split(".")[1]) if "." in shown else 0
    return float(shown) == pytest.approx(expected, abs=0.5 * 10**-digits + 1e-9)


def check_table(rows, folder, scale):
    """`rows`: encoder, skip, ours, published, ours, published, as any of the formats prints them."""
    values = by_seed(folder)
    assert [tuple(row[:2]) for row in rows] == ROWS
    for row in rows:
        for place, column in enumerate(COLUMNS):
            runs = list(values[label(row, column)].values())
            ours, theirs = row[2 + 2 * place], row[3 + 2 * place]
            mean, std, *n = re.findall(r"\d+(?:\.\d+)?", ours)
            assert near(mean, scale * np.mean(runs))
            assert near(std, scale * np.std(runs, ddof=1))
            assert int(n[0]) == len(runs)
            check_published(theirs, PUBLISHED.get((*row[:2], column)), runs, scale)


def check_published(text, expected, runs, scale):
    if expected is None:
        assert text == ""
        return
    mean, difference = re.findall(r"[+−]?\d+(?:\.\d+)?", text)
    assert near(mean, scale * expected)
    assert near(difference, scale * (np.mean(runs) - expected))
    low, high = interval(runs)
    assert ("inside" if low <= expected <= high else "outside") in text


def expected_differences(folder):
    """Cell -> paired differences to unfrozen, skip, same labels; in the order of the table."""
    values = by_seed(folder)
    for row, column in itertools.product(ROWS, COLUMNS):
        if row != ("unfrozen", "true"):
            ours, theirs = values[label(row, column)], values[label(("unfrozen", "true"), column)]
            yield label(row, column), np.array([ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys())])


def holm(p):
    order, adjusted, largest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p) - rank) * p[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def check_differences(rows, folder, scale):
    expected = dict(expected_differences(folder))
    p = holm([stats.ttest_1samp(values, 0).pvalue for values in expected.values()])
    assert [row[0] for row in rows] == list(expected)
    for row, values, corrected in zip(rows, expected.values(), p, strict=True):
        low, high = re.findall(r"[+−]\d+\.\d+", row[2])
        assert near(row[1], scale * values.mean())
        assert near(low, scale * interval(values)[0])
        assert near(high, scale * interval(values)[1])
        assert row[3] == "< 0.001" if corrected < 0.001 else near(row[3], corrected)
        assert int(row[4]) == len(values)


def effects(folder):
    """Effect -> (size, F), each from the contrast of two-level factors that the seeds with all cells give."""
    values = by_seed(folder)
    labels = [label_of(dict(zip(FACTORS, levels, strict=True))) for levels in itertools.product(*FACTORS.values())]
    seeds = sorted(set.intersection(*(set(values[name]) for name in labels)))
    table = np.array([[values[name][seed] for name in labels] for seed in seeds]).reshape(-1, 2, 2, 2)
    for count in (1, 2, 3):
        for part in itertools.combinations(range(3), count):
            signs = np.ones((2, 2, 2))
            for axis in part:
                signs = signs * np.array([1, -1]).reshape([2 if k == axis else 1 for k in range(3)])
            scores = (table * signs).sum(axis=(1, 2, 3)) / 4  # of a main effect: difference of two means of four
            t = scores.mean() / (scores.std(ddof=1) / math.sqrt(len(seeds)))
            yield " × ".join(list(FACTORS)[k] for k in part), abs(scores.mean()), t * t, len(seeds)


def check_effects(rows, folder, scale):
    expected = list(effects(folder))
    p = [stats.f.sf(f, 1, n - 1) for _, _, f, n in expected]
    for row, (name, size, f, n), alone, corrected in zip(rows, expected, p, holm(p), strict=True):
        assert row[0] == name
        assert near(row[1], scale * size)
        assert near(row[2], f)
        assert row[3] == f"1, {n - 1}"
        for text, value in ((row[4], alone), (row[5], corrected)):
            assert text == "< 0.001" if value < 0.001 else near(text, value)


# ----------------------------------------------------------------------------------------------------------- formats


def clean(text):
    """A cell without marks: bold, ≈, footnotes."""
    return re.sub(r"\*\*|\s*≈|[⁰¹²³⁴⁵⁶⁷⁸⁹]", "", text).strip()


def check_all(tables, folder, scale):
    values, differences, effects_ = tables
    check_table(values, folder, scale)
    check_differences(differences, folder, scale)
    check_effects(effects_, folder, scale)


def test_markdown(study):
    blocks = re.findall(r"(?:^\|.*\|\n)+", (study[0] / "table.md").read_text(), flags=re.MULTILINE)
    tables = [[[clean(cell) for cell in line[2:-2].split(" | ")] for line in b.splitlines()[2:]] for b in blocks]
    check_all(tables, *study)


def test_latex(study):
    text = (study[0] / "table.tex").read_text()
    for command, character in (
        (r"$\pm$", "±"),
        ("$-$", "−"),
        ("--", "–"),
        (r"$\times$", "×"),
        ("$<$", "<"),
        (r"\%", "%"),
    ):
        text = text.replace(command, character)
    text = re.sub(r"\\textsuperscript\{\d\}|\s*\$\\approx\$", "", text)
    text = re.sub(r"\\textbf\{(.*?)\}", r"\1", text)
    blocks = re.findall(r"\\midrule\n(.*?)\\bottomrule", text, flags=re.DOTALL)
    tables = [[line.removesuffix(r" \\").split(" & ") for line in block.strip().splitlines()] for block in blocks]
    check_all([[[clean(cell) for cell in row] for row in table] for table in tables], *study)


class Cells(html.parser.HTMLParser):
    """Rows of the tables' bodies."""

    def __init__(self):
        super().__init__()
        self.tables, self.inside, self.cell = [], False, False

    def handle_starttag(self, tag, attrs):
        if tag == "tbody":
            self.tables.append([])
            self.inside = True
        elif tag == "tr" and self.inside:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.inside:
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "tbody"
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell and self.inside:
            self.tables[-1][-1][-1] += data


def test_the_report(study):
    parser = Cells()
    parser.feed(build_page(study[0]).split('<section id="figures">')[0])
    check_all([[[clean(cell) for cell in row] for row in table] for table in parser.tables], *study)


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_csv_has_every_number_in_full(study):
    folder, _ = study
    values = by_seed(folder)
    for row in read(folder / "table.csv"):
        runs = list(values[label((row["encoder"], row["skip"]), row["labels"])].values())
        low, high = interval(runs)
        assert float(row["mean"]) == pytest.approx(np.mean(runs), rel=1e-12)
        assert float(row["std"]) == pytest.approx(np.std(runs, ddof=1), rel=1e-9)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high), rel=1e-9)
        assert (int(row["n"]), int(row["n_expected"])) == (len(runs), 4)
        theirs = PUBLISHED.get((row["encoder"], row["skip"], row["labels"]))
        assert row["inside_interval"] == ("" if theirs is None else str(bool(low <= theirs <= high)).lower())
    expected = list(expected_differences(folder))
    for row, (cell, differences) in zip(read(folder / "differences.csv"), expected, strict=True):
        assert row["cell"] == cell
        assert float(row["difference"]) == pytest.approx(differences.mean(), rel=1e-9)
        assert float(row["p"]) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-9)
    for row, (name, size, f, _) in zip(read(folder / "effects.csv"), effects(folder), strict=True):
        assert row["effect"] == name
        assert (float(row["size"]), float(row["f"])) == pytest.approx((size, f), rel=1e-9)


def test_the_best_of_a_column_is_bold_and_lost_seeds_are_told(study):
    text = (study[0] / "table.md").read_text()
    values = by_seed(study[0])
    for column in COLUMNS:
        best = max(ROWS, key=lambda row: np.mean(list(values[label(row, column)].values())))
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {best[0]} | {best[1]} |"))
        assert line.split(" | ")[2 + 2 * COLUMNS.index(column)].startswith("**")
    assert "3 of 4 seeds; 1 diverged (loss is NaN)" in text
    assert "3 of 4 seeds; 1 raced-out" in text


# ------------------------------------------------------------------------------------------------------ nested seeds


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """3 pretrainings x 3 fine-tunings of two cells; of cell y one fine-tuning failed, and one pretraining wholly."""
    folder, generator = tmp_path_factory.mktemp("nested"), np.random.default_rng(3)
    scores = {cell: list(0.6 + generator.normal(0, 0.03, 9)) for cell in ("a=x", "a=y")}
    for lost in (1, 6, 7, 8):
        scores["a=y"][lost] = math.nan
    write_study(folder, scores, {"a": ["x", "y"]}, rows=["a"], baseline={"a": "x"})
    header = json.loads((folder / "study.json").read_text())
    header["seeds"] = {"report": {"pretrain": 3, "finetune": 3}}
    (folder / "study.json").write_text(json.dumps(header))
    results = pandas.read_parquet(folder / "results.parquet")
    results["seed_pretrain"], results["seed_finetune"] = results["seed"] // 3, results["seed"] % 3
    results.to_parquet(folder / "results.parquet")
    write_tables(folder)
    return folder


def pretraining_means(folder):
    """Cell -> {pretraining: mean of its fine-tunings that finished}."""
    frame = pandas.read_parquet(folder / "results.parquet")
    frame = frame[(frame["metric"] == JACCARD) & (frame["outcome"] == "finished")]
    return {
        cell: {seed: np.mean(rows["value"].to_numpy()) for seed, rows in part.groupby("seed_pretrain")}
        for cell, part in frame.groupby("cell")
    }


def test_nested_seeds_count_pretrainings_in_every_number(nested):
    expected = pretraining_means(nested)
    assert [len(runs) for runs in expected.values()] == [3, 2]
    for row, runs, finished in zip(read(nested / "table.csv"), expected.values(), (9, 5), strict=True):
        means = list(runs.values())
        assert float(row["mean"]) == pytest.approx(np.mean(means), rel=1e-12)
        assert float(row["std"]) == pytest.approx(np.std(means, ddof=1), rel=1e-9)
        assert (float(row["low"]), float(row["high"])) == pytest.approx(interval(means), rel=1e-9)
        assert (int(row["n"]), int(row["n_expected"])) == (len(means), 3)
        assert (int(row["runs"]), int(row["runs_expected"])) == (finished, 9)
    text = (nested / "table.md").read_text()
    for means, shown in zip(
        (list(runs.values()) for runs in expected.values()), ("3", "2 of 3, 5 of 9 runs"), strict=True
    ):
        assert f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} (n={shown})" in text
    assert "a=y: 5 of 9 fine-tunings; 4 diverged" in text


def test_nested_differences_pair_fine_tunings_first_and_then_count_pretrainings(nested):
    """A fine-tuning that one cell lost is left out of the other's mean too, within its pretraining."""
    frame = pandas.read_parquet(nested / "results.parquet")
    wide = frame[frame["outcome"] == "finished"].pivot_table(index="seed", columns="cell", values="value").dropna()
    assert wide.index.tolist() == [0, 2, 3, 4, 5]
    differences = (wide["a=y"] - wide["a=x"]).groupby(wide.index // 3).mean().to_numpy()
    (row,) = read(nested / "differences.csv")
    assert (float(row["difference"]), int(row["n"])) == (pytest.approx(differences.mean(), rel=1e-9), 2)
    assert (float(row["low"]), float(row["high"])) == pytest.approx(interval(differences), rel=1e-9)
    assert float(row["std"]) == pytest.approx(np.std(differences, ddof=1), rel=1e-9)
    assert float(row["p"]) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-9)
