"""Bootstrap over test images, against plain NumPy that puts together the images which were drawn, one by one."""

import json

import numpy as np
import pandas
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score
from studies import JACCARD, write_study

from pretune.analysis.load.counts import Counts, load_counts
from pretune.analysis.load.results import ResultsError, load, load_header
from pretune.analysis.questions.image_bootstrap import RESAMPLES, draw_images, image_interval, intervals, score
from pretune.analysis.report.html import build_page
from pretune.analysis.report.tables import write_tables

CLASSES = ("background", "pet", "edge")


def masks(images, seed, wrong=0.3, classes=3):
    """(images, 40) truth and prediction; every image has difficulties of its own."""
    generator = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(classes, size=(images, 40))
    missed = generator.random(truth.shape) < generator.uniform(0, 2 * wrong, (images, 1))
    return truth, np.where(missed, generator.integers(classes, size=truth.shape), truth)


def counted(truth, predicted, classes=3):
    kinds = np.arange(classes)
    t, p = truth[..., None] == kinds, predicted[..., None] == kinds
    return np.stack([(t & p).sum(1), t.sum(1), p.sum(1)], axis=-1)


def run(images, seed):
    return Counts(CLASSES, np.arange(images), counted(*masks(images, seed)))


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("accuracy", accuracy_score),
        ("jaccard", lambda t, p: jaccard_score(t, p, average="macro")),
        ("dice", lambda t, p: f1_score(t, p, average="macro")),
        ("precision", lambda t, p: precision_score(t, p, average="macro")),
        ("recall", lambda t, p: recall_score(t, p, average="macro")),
        ("mean_accuracy", lambda t, p: recall_score(t, p, average="macro")),
        ("jaccard/pet", lambda t, p: jaccard_score(t, p, average=None)[1]),
        ("dice/edge", lambda t, p: f1_score(t, p, average=None)[2]),
    ],
)
def test_scores_of_counts_are_those_of_scikit_learn(metric, reference):
    truth, predicted = masks(20, 1)
    found = score(counted(truth, predicted).sum(axis=0), f"test/{metric}", CLASSES)
    assert float(found) == pytest.approx(reference(truth.ravel(), predicted.ravel()), abs=1e-12)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean():
    """Right 3 of 4 in class a, class b nowhere, c predicted once though never true: (3/4 + 0) / 2."""
    assert float(score(np.array([[3, 4, 3], [0, 0, 0], [0, 0, 1]]), "test/jaccard", CLASSES)) == pytest.approx(0.375)
    assert np.isnan(score(np.array([[3, 4, 3], [0, 0, 0], [0, 0, 1]]), "test/jaccard/pet", CLASSES))


@pytest.mark.parametrize("unknown", ["threshold_jaccard", "jaccard/cat"])
def test_other_metrics_are_not_made_of_counts(unknown):
    with pytest.raises(KeyError):
        score(np.ones((3, 3)), f"test/{unknown}", CLASSES)


def test_the_interval_is_that_of_putting_the_drawn_images_together():
    """Two runs that weigh 1 and 3; the same images drawn for both; scores by scikit-learn of the images repeated."""
    images, seeds, weights = 12, (1, 2), (0.25, 0.75)
    found = image_interval(
        [run(images, seed) for seed in seeds], (1, 3), "test/jaccard", draw_images(images, np.random.default_rng(5))
    )
    generator, means = np.random.default_rng(5), []
    for _ in range(RESAMPLES // 100):
        for drawn in generator.multinomial(images, np.full(images, 1 / images), size=100):
            which = np.repeat(np.arange(images), drawn)
            parts = [[side[which].ravel() for side in masks(images, seed)] for seed in seeds]
            each = [by_hand(*part) for part in parts]
            means.append(np.dot(weights, each))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)
    whole = [by_hand(*(side.ravel() for side in masks(images, seed))) for seed in seeds]
    assert found.estimate == pytest.approx(np.dot(weights, whole), abs=1e-12)


def by_hand(truth, predicted):
    return np.mean(
        [((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum() for k in range(3)]
    )


def test_it_covers_the_score_on_all_images_of_the_kind_about_as_often_as_it_says():
    """400 test sets of 60 images; 95 % of 400 is 380, binomial standard deviation 4.4; the bootstrap is a little
    narrow at 60 images, so that 90 % are asked for."""
    truth, predicted = masks(20_000, 3)
    every = counted(truth, predicted)
    true, generator, inside = float(score(every.sum(axis=0), "test/jaccard", CLASSES)), np.random.default_rng(0), 0
    for _ in range(400):
        seen = every[generator.choice(len(every), 60, replace=False)]
        found = image_interval(
            [Counts(CLASSES, np.arange(60), seen)], [1.0], "test/jaccard", draw_images(60, generator)
        )
        inside += found.low <= true <= found.high
    assert 360 <= inside <= 400


def test_runs_on_other_images_are_not_pooled():
    other = Counts(CLASSES, np.arange(1, 13), run(12, 1).counts)
    with pytest.raises(ValueError, match="different images"):
        image_interval([run(12, 1), other], [1, 1], "test/jaccard", draw_images(12, np.random.default_rng(0)))


# ---------------------------------------------------------------------------------------------------- of a study


@pytest.fixture
def study(tmp_path):
    """Two cells, three seeds, 40 test images; the stored scores are those of the counts."""
    kept, scores = [], {"a=x": [], "a=y": []}
    for number in range(6):
        counts = counted(*masks(40, number, wrong=0.2 if number < 3 else 0.5))
        scores["a=x" if number < 3 else "a=y"].append(float(score(counts.sum(axis=0), "test/jaccard", CLASSES)))
        row = {"fingerprint": f"run{number:06d}", "classes": list(CLASSES), "images": list(range(40))}
        kept.append(row | {"counts": counts.ravel().tolist()})
    write_study(tmp_path, scores, {"a": ["x", "y"]}, baseline={"a": "x"})
    pandas.DataFrame(kept).to_parquet(tmp_path / "test_images.parquet")
    return tmp_path


def test_every_cell_has_both_intervals_in_every_format(study):
    table = intervals(load(study), load_header(study), JACCARD, load_counts(study))
    assert [(row.cell, row.n, row.images) for row in table.rows] == [("a=x", 3, 40), ("a=y", 3, 40)]
    for row, first in zip(table.rows, (0, 3), strict=True):
        runs = [Counts(CLASSES, np.arange(40), counted(*masks(40, first + k, 0.5 if first else 0.2))) for k in range(3)]
        expected = image_interval(runs, [1, 1, 1], "test/jaccard", draw_images(40, np.random.default_rng(0)))
        assert (row.image_low, row.image_high) == (expected.low, expected.high)
        assert row.image_low < row.mean < row.image_high
    write_tables(study)
    shown = f"{table.rows[0].image_low:.3f} to {table.rows[0].image_high:.3f}"
    for text in ((study / "table.md").read_text(), (study / "table.tex").read_text(), build_page(study)):
        assert shown in text
        assert "for the same trained models" in text
    kept = pandas.read_csv(study / "intervals.csv")
    assert kept["image_high"].tolist() == pytest.approx([row.image_high for row in table.rows], rel=1e-12)


def test_a_run_from_before_images_were_counted_leaves_its_cell_without_an_interval_and_says_so(study):
    kept = pandas.read_parquet(study / "test_images.parquet")
    kept.iloc[1:].to_parquet(study / "test_images.parquet")
    table = intervals(load(study), load_header(study), JACCARD, load_counts(study))
    assert [row.images for row in table.rows] == [0, 40]
    assert "a=x: 1 of 3 runs were stored by an older version, which did not count single images" in table.notes


def test_counts_that_do_not_make_the_score_are_not_used(study):
    results = pandas.read_parquet(study / "results.parquet")
    results.loc[results["cell"] == "a=y", "value"] += 0.01
    table = intervals(results, load_header(study), JACCARD, load_counts(study))
    assert [row.images for row in table.rows] == [40, 0]
    assert any(note.startswith("a=y: the stored counts") for note in table.notes)


def test_nested_fine_tunings_weigh_as_their_pretraining(study):
    """Seeds 0 and 1 are of pretraining 0: weights 1/2, 1/2 and 1; the mean is that of the table."""
    results = pandas.read_parquet(study / "results.parquet")
    results["seed_pretrain"], results["seed_finetune"] = results["seed"] // 2, results["seed"] % 2
    header = json.loads((study / "study.json").read_text()) | {"seeds": {"report": {"pretrain": 2, "finetune": 2}}}
    (study / "study.json").write_text(json.dumps(header))
    row = intervals(results, load_header(study), JACCARD, load_counts(study)).rows[0]
    values = results.loc[results["cell"] == "a=x", "value"].to_numpy()
    assert row.mean == pytest.approx((values[:2].mean() + values[2]) / 2)
    assert (row.n, row.images) == (2, 40)


def test_without_counts_there_is_no_table_and_a_damaged_file_is_said_so(study):
    (study / "test_images.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match="cut off or damaged"):
        load_counts(study)
    (study / "test_images.parquet").unlink()
    assert load_counts(study) == {}
    assert intervals(load(study), load_header(study), JACCARD, {}).rows == ()
    write_tables(study)
    assert not (study / "intervals.csv").exists()
