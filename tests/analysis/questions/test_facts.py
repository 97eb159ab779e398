"""Facts beside scores: the most frequent class, classes never predicted, encoders that raised signs of collapse."""

import io
import json
import math

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import JACCARD, write_study

from pretune.analysis import load, load_header
from pretune.analysis.load.counts import Counts
from pretune.analysis.questions.facts import SIGNS, CountedRuns, facts, most_frequent_score, never_predicted
from pretune.analysis.text.answer import answer
from pretune.analysis.text.facts import fact_sentences
from pretune.trainables.metrics.segmentation import most_frequent_class

FACTORS = {"a": ["x", "y"]}
CLASSES = ("bg", "leaf", "stem")


def counts_of(confusion, classes=CLASSES):
    """One image with this confusion matrix, rows truth."""
    table = np.asarray(confusion)
    return Counts(classes, np.array([0]), np.stack([table.diagonal(), table.sum(1), table.sum(0)], axis=-1)[None])


@given(true=st.lists(st.integers(0, 10**6), min_size=2, max_size=5).filter(any), place=st.integers(0, 4))
@settings(deadline=None)
def test_the_score_of_the_most_frequent_class_is_that_of_the_metrics_own_function(true, place):
    """From pixels per class, beside `trainables.metrics`, which makes the whole confusion matrix."""
    classes = tuple("abcde"[: len(true)])
    expected = most_frequent_class(torch.tensor(true), classes)
    for name in (
        "jaccard",
        "dice",
        "recall",
        "precision",
        "accuracy",
        "mean_accuracy",
        f"jaccard/{classes[place % len(classes)]}",
    ):
        label, value = most_frequent_score(np.array(true), f"test/{name}", classes)
        assert label == classes[int(np.argmax(true))]
        if name in expected:
            assert value == pytest.approx(expected[name], abs=1e-12)
        else:  # a class that is nowhere has no score
            assert math.isnan(value)


@pytest.mark.parametrize("metric", ["val/jaccard", "probe/knn/accuracy", "test/soft_dice", "test@64/jaccard"])
def test_metrics_that_are_not_made_of_these_counts_have_no_baseline(metric):
    assert math.isnan(most_frequent_score(np.array([3, 1]), metric, ("a", "b"))[1])


def test_a_class_is_never_predicted_only_if_the_truth_has_it():
    assert never_predicted(counts_of([[5, 0, 0], [2, 0, 0], [0, 0, 0]])) == ("leaf",)
    assert never_predicted(counts_of([[5, 1, 0], [2, 0, 0], [0, 0, 0]])) == ()


def study(tmp_path, scores, confusions, signs=()):
    """A study whose runs have these confusion matrices, in order, and pretrainings with these numbers of signs."""
    folder = write_study(tmp_path, scores, FACTORS)
    if signs:
        results = pandas.read_parquet(folder / "results.parquet")
        head = results.iloc[0].to_dict()
        rows = [
            head
            | {
                "cell": cell,
                "seed": seed,
                "stage": "pretrain",
                "fingerprint": f"p{cell}{seed}",
                "metric": SIGNS,
                "value": n,
            }
            for cell, seed, n in signs
        ]
        pandas.concat([results, pandas.DataFrame(rows)]).to_parquet(folder / "results.parquet")
    counts = {f"run{i:06d}": counts_of(table) for i, table in enumerate(confusions)}
    results, header = load(folder), load_header(folder)
    return facts(results, header, JACCARD, counts), results, header


ALL_BACKGROUND = [[90, 0, 0], [8, 0, 0], [2, 0, 0]]  # jaccard 0.3
GOOD = [[88, 2, 0], [1, 7, 0], [0, 0, 2]]


def test_cells_that_are_not_above_the_most_frequent_class_are_named(tmp_path):
    scores = {"a=x": [0.3, 0.3], "a=y": [0.5, 0.7]}
    found, results, header = study(tmp_path, scores, [ALL_BACKGROUND, ALL_BACKGROUND, GOOD, GOOD])
    (one,) = found.most_frequent
    assert (one.label, one.score, one.not_above) == ("bg", pytest.approx(0.3), ("a=x",))
    assert found.never == {
        "leaf": (CountedRuns("a=x", 2, 2),), "stem": (CountedRuns("a=x", 2, 2),)
    }  # fmt: skip
    said = fact_sentences(found)
    assert (
        said[0] == "a model that predicts only the most frequent class of the test images (bg) scores 0.300; "
        "these score no higher: a=x"
    )
    assert said[1] == "leaf, stem: never predicted on the test images by a=x (2 of 2)"
    answers = answer(results, header, JACCARD, found)
    assert (
        "A model that predicts only the most frequent class of the test images (bg) scores 0.300; "
        "these score no higher: a=x." in answers
    )


def test_a_study_in_which_no_model_learned_anything_says_so(tmp_path):
    """As in studies tried by new users: every model predicts one class, and cells were bold at the baseline."""
    found, *_ = study(tmp_path, {"a=x": [0.3, 0.3], "a=y": [0.3, 0.3]}, [ALL_BACKGROUND] * 4)
    said = fact_sentences(found)
    assert said[0].endswith("(bg) scores 0.300; no cell scores higher")
    assert said[1] == "leaf, stem: never predicted on the test images by a=x (2 of 2), a=y (2 of 2)"


def test_different_test_sets_have_a_sentence_each(tmp_path):
    other = [[0, 10, 0], [0, 80, 0], [0, 10, 0]]
    found, *_ = study(tmp_path, {"a=x": [0.9], "a=y": [0.9]}, [GOOD, other])
    assert [(one.label, one.cells) for one in found.most_frequent] == [("bg", ("a=x",)), ("leaf", ("a=y",))]
    assert [said.split("scores ")[1] for said in fact_sentences(found)[:2]] == ["0.300 (a=x)", "0.267 (a=y)"]


def test_signs_of_collapse_are_counted_by_cell(tmp_path):
    signs = [("a=x", 0, 2), ("a=x", 1, 0), ("a=y", 0, 0), ("a=y", 1, 0)]
    found, *_ = study(tmp_path, {"a=x": [0.5, 0.6], "a=y": [0.5, 0.6]}, [], signs)
    assert found.collapsed == (CountedRuns("a=x", 1, 2),)
    assert fact_sentences(found) == ("pretrainings of these cells showed signs of collapse: a=x (1 of 2)",)


def test_a_study_without_counts_and_signs_says_nothing(tmp_path):
    found, *_ = study(tmp_path, {"a=x": [0.5], "a=y": [0.6]}, [])
    assert fact_sentences(found) == ()


def test_facts_stand_in_every_form_of_the_table(tmp_path):
    from rich.console import Console

    from pretune.analysis.report.html import build_page
    from pretune.analysis.report.tables import write_tables

    folder = write_study(tmp_path, {"a=x": [0.3, 0.3], "a=y": [0.5, 0.7]}, FACTORS)
    rows = [
        {"fingerprint": f"run{i:06d}", "classes": list(CLASSES), "images": one.images, "counts": one.counts.ravel()}
        for i, one in enumerate(map(counts_of, [ALL_BACKGROUND, ALL_BACKGROUND, GOOD, GOOD]))
    ]
    pandas.DataFrame(rows).to_parquet(folder / "test_images.parquet")
    console = Console(width=300, record=True, quiet=False, file=io.StringIO())
    for table in write_tables(folder):
        console.print(table)
    texts = [console.export_text(), build_page(folder)]
    texts += [(folder / name).read_text() for name in ("table.md", "table.tex")]
    for text in texts:
        assert "scores 0.300; these score no higher: a=x" in " ".join(text.split())
        assert "leaf, stem: never predicted on the test images by a=x (2 of 2)" in " ".join(text.split())
    assert json.loads((folder / "study.json").read_text())["study"] == "invented"
