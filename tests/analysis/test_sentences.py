"""Every sentence that analysis can print: a study in which it is true, and one in which it must not appear.

`SENTENCES` is the inventory. A sentence that is added to `analysis/` fails the last test until it stands here, or is
named in `ELSEWHERE` with the test that holds both cases.
"""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
from studies import JACCARD, write_study

import pretune.analysis
from pretune.analysis.load.results import load, load_header
from pretune.analysis.questions.image_bootstrap import score
from pretune.analysis.report.figures import figure_groups
from pretune.analysis.report.html import progress, table_caption
from pretune.analysis.report.tables import write_tables
from pretune.analysis.text.answer import answer

NAN = math.nan
THREE = {"a": ["x", "y", "z"]}
TWO = {"a": ["x", "y"]}
CROSSED = {"a": ["x", "y"], "b": ["p", "q"]}


def header_of(folder, **content):
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


def columns_of(folder, **columns):
    path = folder / "results.parquet"
    results = pandas.read_parquet(path)
    pandas.DataFrame(results.assign(**{k: v(results) if callable(v) else v for k, v in columns.items()})).to_parquet(
        path
    )


def three(f):
    write_study(f, {"a=x": [0.70, 0.71, 0.72], "a=y": [0.69, 0.72, 0.70], "a=z": [0.10, 0.12, 0.11]}, THREE,
                baseline={"a": "x"}, rows=["a"], columns=[])  # fmt: skip


def both_sides(f):
    """y is shown to be above x by 5 tests with it (t = 11, p = 0.008), and not by those of all 15 pairs; z is below."""
    scores = {"x": [0.5, 0.52, 0.54], "y": [0.58425, 0.62, 0.65575], "z": [0.1, 0.12, 0.141]}
    scores |= {level: list(np.roll([0.3, 0.7, 0.5], i)) for i, level in enumerate("uvw")}
    write_study(f, {f"a={level}": values for level, values in scores.items()}, {"a": list(scores)},
                baseline={"a": "x"}, rows=["a"], columns=[])  # fmt: skip


def apart(f):
    write_study(f, {"a=x": [0.70, 0.71, 0.72], "a=y": [0.30, 0.32, 0.30]}, TWO, rows=["a"], columns=[])


def close(f):
    write_study(f, {"a=x": [0.70, 0.71, 0.72], "a=y": [0.69, 0.72, 0.71]}, TWO, rows=["a"], columns=[])


def flat(f, weights=None):
    write_study(f, {"a=x": [0.5] * 3, "a=y": [0.5] * 3}, TWO, rows=["a"], columns=[], baseline={"a": "x"})
    if weights:
        columns_of(f, weights=weights)


def shifted(f):
    write_study(f, {"a=x": [0.25] * 3, "a=y": [0.5] * 3}, TWO, rows=["a"], columns=[], baseline={"a": "x"})


def failed(f):
    write_study(f, {"a=x": [0.90, 0.92, NAN], "a=y": [0.5, 0.51, 0.52], "a=z": [NAN] * 3}, THREE,
                baseline={"a": "x"}, rows=["a"], columns=[])  # fmt: skip


def apart_by_seeds(f):
    write_study(f, {"a=x": [0.9, 0.8, NAN, NAN], "a=y": [NAN, NAN, 0.5, 0.6], "a=z": [0.2, 0.12, NAN, NAN]}, THREE,
                rows=["a"], columns=[], baseline={"a": "y"})  # fmt: skip


def one_apart(f):
    write_study(f, {"a=x": [0.9, 0.8, 0.85, 0.82], "a=y": [NAN, NAN, NAN, 0.6], "a=z": [0.2, 0.12, 0.15, 0.1]}, THREE,
                rows=["a"], columns=[])  # fmt: skip


def one_seed(f):
    write_study(f, {"a=x": [0.7], "a=y": [0.5]}, TWO, rows=["a"], columns=[], baseline={"a": "x"})


def nothing(f):
    write_study(f, {"a=x": [NAN], "a=y": [NAN]}, TWO)


def wild(f):
    write_study(f, {"a=x": [0.99, 0.5, 0.9], "a=y": [0.1, 0.9, 0.02]}, TWO, rows=["a"], columns=[], baseline={"a": "x"})


def crossed(f, seeds=3, effect=0.2, noise=0.01, lost=None):
    draw = np.random.default_rng(3)
    scores = {
        f"a={a} b={b}": list(
            0.3 + effect * (a == "y") * (b == "q") + effect * (b == "q") + noise * draw.normal(size=seeds)
        )
        for a in CROSSED["a"]
        for b in CROSSED["b"]
    }
    if lost is not None:
        scores["a=x b=p"][lost] = NAN
    write_study(f, scores, CROSSED, rows=["a", "b"], columns=[])


def wide(f):
    levels = [str(i) for i in range(8)]
    scores = {f"a={a} b={b}": [0.1, 0.2] for a in ("x", "y") for b in levels}
    write_study(f, scores, {"a": ["x", "y"], "b": levels}, rows=["a"], columns=["b"])


def published(f, mean=0.71):
    three(f)
    header_of(f, published={"values": [["x", mean]], "note": "of a paper"})


def differs(f, *sentences):
    published(f)
    report = json.loads((f / "study.json").read_text())["report"]
    header_of(f, report=report | {"differs": sentences})


def searched(f, sampler):
    three(f)
    header_of(f, tune={"target": "val/jaccard", "sampler": sampler}, ranges={"finetune.lr": {"uniform": [0, 1]}})
    results = pandas.read_parquet(f / "results.parquet")
    head = results.iloc[0].to_dict() | {"phase": "search", "metric": "val/jaccard"}
    rows = [
        head
        | {
            "seed": 1000 + s,
            "chosen": json.dumps({"finetune.lr": t / 10}),
            "value": 0.5 + t / 30 + s / 50 + (t * s % 3) / 90,
        }
        for t in range(10)
        for s in range(2)
    ]
    pandas.concat([results, pandas.DataFrame(rows)]).to_parquet(f / "results.parquet")
    write_trials(f, [json.dumps({"finetune.lr": t / 10}) for t in range(10)], [0.5 + t / 30 for t in range(10)])


def write_trials(f, chosen, values, told=None):
    rows = [
        {
            "search": "search of finetune for a=x",
            "cells": '["a=x"]',
            "index": i,
            "told": (told or {}).get(i, "complete"),
        }
        | {"value": value, "reason": "", "confirmed": False, "scores": json.dumps([value, value]), "chosen": setting}
        for i, (setting, value) in enumerate(zip(chosen, values, strict=True))
    ]
    pandas.DataFrame(rows).to_parquet(f / "searches.parquet")


def checkpoints(f, kept):
    three(f)
    header_of(f, checkpoints={f"a={a}": kept if a != "z" else "last" for a in "xyz"})


def patient(f):
    three(f)
    results = pandas.read_parquet(f / "results.parquet")
    row = results.iloc[:1].assign(metric="train/stopped_epoch", value=3.0)
    pandas.concat([results, row]).to_parquet(f / "results.parquet")


def held(f):
    three(f)
    header_of(f, seeds={"report": 3, "hold": {"labels": 0}})


def margin(f):
    three(f)
    content = json.loads((f / "study.json").read_text())
    header_of(f, report=content["report"] | {"margin": 0.05})


def loss(f):
    write_study(f, {"a=x": [0.3, 0.4], "a=y": [0.1, 0.2]}, TWO, metrics=("val/jaccard",))


def nested(f, lost=(), pretrainings=3):
    values = {"a=x": [0.5, 0.52, 0.6, 0.63, 0.7, 0.69], "a=y": [0.4, 0.43, 0.5, 0.5, 0.61, 0.6]}
    for cell, place in lost:
        values[cell][place] = NAN
    write_study(f, values, TWO, rows=["a"], columns=[])
    header_of(f, seeds={"report": {"pretrain": 3, "finetune": 2}})
    columns_of(f, seed_pretrain=lambda r: r["seed"] // 2, seed_finetune=lambda r: r["seed"])


def nested_copies(f):
    nested(f)
    columns_of(f, value=lambda r: 0.5 + r["seed_pretrain"] / 10)


def folds(f):
    levels = ["1/3", "2/3", "3/3"]
    write_study(f, {f"fold={level}": [0.5, 0.6, 0.7] for level in levels}, {"fold": levels})


def counted(f, images, shift=0.0, draws=True):
    """Fine-tunings that counted single test images, with the scores of these counts plus `shift`."""
    draw, scores, rows = np.random.default_rng(0), {"a=x": [], "a=y": []}, []
    for i, cell in enumerate(["a=x", "a=x", "a=y", "a=y"]):
        draw = draw if draws else np.random.default_rng(0)
        right = draw.integers(20, 60, (images, 2))
        wrong = draw.integers(0, 9, (images, 2))
        counts = np.stack([right, right + wrong, right + wrong[:, ::-1]], axis=-1)
        scores[cell].append(float(score(counts.sum(axis=0), JACCARD, ("bg", "leaf"))) + shift)
        rows.append(
            {
                "fingerprint": f"run{i:06d}",
                "classes": ["bg", "leaf"],
                "images": np.arange(images),
                "counts": counts.ravel(),
            }
        )
    write_study(f, scores, TWO, rows=["a"], columns=[])
    pandas.DataFrame(rows).to_parquet(f / "test_images.parquet")


def partly_counted(f):
    counted(f, 10)
    kept = pandas.read_parquet(f / "test_images.parquet")
    kept.iloc[1:].to_parquet(f / "test_images.parquet")


def uncrossed(f):
    crossed(f)
    header_of(f, cells=json.loads((f / "study.json").read_text())["cells"][:3])


def no_common_seed(f):
    crossed(f, 2)
    columns_of(f, seed=lambda r: range(len(r)))


def trials(f, count, flat=False):
    searched(f, "tpe")
    values = [0.5 if flat else 0.5 + t / 30 for t in range(count)]
    write_trials(f, [json.dumps({"finetune.lr": t / 10}) for t in range(count)], values)


def same_everywhere(f):
    """One value of the only parameter: nothing was varied."""
    searched(f, "tpe")
    write_trials(f, [json.dumps({"finetune.lr": 0.1})] * 10, [0.5 + t / 30 for t in range(10)])


def labels(f):
    scores = {"start=random": [0.50, 0.60, 0.70], "start=pretrained": [0.60, 0.70, 0.80]}
    write_study(
        f,
        {
            f"{start} labels={n}": [value + 0.01 * seed * (1 + i % 2) for seed in range(3)]
            for start, values in scores.items()
            for i, (n, value) in enumerate(zip(("50", "100", "400"), values, strict=True))
        },
        {"start": ["random", "pretrained"], "labels": ["50", "100", "400"]},
        baseline={"start": "random"},
    )


def told(f):
    three(f)
    ends = ["complete", "partial", "infeasible", "failed", "unscored"]
    rows = [
        {"search": "s", "index": i, "told": end, "reason": "r", "chosen": "{}", "value": 0.5}
        for i, end in enumerate(ends)
    ]
    pandas.DataFrame(rows).to_parquet(f / "searches.parquet")


def far(f):
    write_study(
        f, {"a=x": [1.0, 90.0, 30.0], "a=y": [50.0, 2.0, 9.0]}, TWO, metrics=("val/pretext_loss",), baseline={"a": "x"}
    )


def itself(f):
    metric = "probe/cka/x/output"
    write_study(f, {"a=x": [0.4, 0.5], "a=y": [0.4, 0.5]}, TWO, metrics=(metric,), rows=["a"], columns=[])
    columns_of(f, stage="probe:cka/x")


def under_way(f):
    three(f)
    (f / "status.json").write_text(
        json.dumps({"finished": 1, "reused": 0, "failed": 0, "total": 9, "phase": "confirm"})
    )


SCENES = {
    "nested": nested,
    "nested, lost": lambda f: nested(f, [("a=y", 5)]),
    "nested copies": nested_copies,
    "folds": folds,
    "nested, one pretraining": lambda f: nested(f, [(c, i) for c in ("a=x", "a=y") for i in (2, 3, 4, 5)]),
    "nested, two of three": lambda f: (nested(f, [("a=y", 5)]), None),
    "partly counted": partly_counted,
    "counted": lambda f: counted(f, 10),
    "many counted": lambda f: counted(f, 120),
    "uncrossed": uncrossed,
    "counted, other score": lambda f: counted(f, 10, 0.01),
    "counted copies": lambda f: counted(f, 10, draws=False),
    "no common seed": no_common_seed,
    "few trials": lambda f: trials(f, 4),
    "flat trials": lambda f: trials(f, 10, True),
    "partly wrong": lambda f: (counted(f, 10), columns_of(f, value=lambda r: r["value"] + 0.01 * (r["cell"] == "a=x"))),
    "labels": labels,
    "one lost": lambda f: write_study(
        f, {"a=x": [0.5, 0.6, 0.7], "a=y": [0.5, 0.6, 0.8], "a=z": [0.5, NAN, 0.7]}, THREE
    ),
    "one value": same_everywhere,
    "told": told,
    "far": far,
    "itself": itself,
    "under way": under_way,
    "three": three,
    "both sides": both_sides,
    "apart": apart,
    "close": close,
    "flat": flat,
    "shifted": shifted,
    "failed": failed,
    "apart by seeds": apart_by_seeds,
    "one apart": one_apart,
    "one seed": one_seed,
    "nothing": nothing,
    "wild": wild,
    "crossed": crossed,
    "crossed, no effect": lambda f: crossed(f, effect=0.0),
    "crossed, 8 seeds": lambda f: crossed(f, 8),
    "crossed, one seed": lambda f: crossed(f, 1),
    "crossed, lost": lambda f: crossed(f, lost=1),
    "crossed, no spread": lambda f: crossed(f, noise=0.0),
    "wide": wide,
    "published": published,
    "differs": lambda f: differs(f, "Labels are counts."),
    "differs in nothing": differs,
    "flat, equal weights": lambda f: flat(f, "hash"),
    "searched": lambda f: searched(f, "tpe"),
    "flat, other weights": lambda f: flat(f, lambda r: r["fingerprint"]),
    "Sobol": lambda f: searched(f, "qmc"),
    "best": lambda f: checkpoints(f, "best"),
    "last": lambda f: checkpoints(f, "last"),
    "tuned checkpoint": lambda f: checkpoints(f, "tuned"),
    "patient": patient,
    "held": held,
    "margin": margin,
    "validation": loss,
    "published, wide": lambda f: (wild(f), header_of(f, published={"values": [["x", 0.7], ["y", 0.3]]})),
}

# part of the sentence, a scene in which it is true, one in which it must not appear
SENTENCES = [
    ("has the highest mean", "three", "nothing"),
    ("No replicate has finished with a value of", "nothing", "three"),
    (": nothing has finished", "nothing", "three"),
    ("(a tie with 1 more)", "flat", "three"),
    ("Every other cell is shown to be worse (", "apart", "close"),
    ("No other cell is shown to be worse (", "close", "apart"),
    ("other cells is not shown to be worse (", "three", "apart"),
    ("very other cell that could be compared is shown to be worse (", "one apart", "three"),
    ("could not be compared.", "apart by seeds", "three"),
    ("t is unknown which other cells are worse (", "one seed", "three"),
    ("95 % t interval 0.", "three", "flat"),
    ("one seed, so its uncertainty is not known", "one seed", "three"),
    ("seeds without any spread, so its uncertainty is not known", "flat", "three"),
    ("any spread, their weights are equal (SHA-256), so", "flat, equal weights", "flat, other weights"),
    ("any spread, their weights differ (SHA-256), so", "flat, other weights", "flat"),
    ("a=y score the same, their weights are equal (SHA-256)", "flat, equal weights", "flat"),
    ("a=y score the same, their weights differ (SHA-256)", "flat, other weights", "flat, equal weights"),
    ("no interval, because nothing varies: the replicates of", "flat", "three"),
    ("no spread at all: every seed of a=y scores the same as the baseline", "flat", "shifted"),
    ("no spread at all: every seed of a=y differs from the baseline by the same amount", "shifted", "flat"),
    (
        "replicates failed and is not in this mean, which may therefore be too high.",
        "failed",
        "three",
    ),
    ("Among the cells with all their values, a=y is best", "failed", "three"),
    ("Cells without any value: a=z (", "failed", "three"),
    ("Cells with fewer values than planned: a=x (", "failed", "three"),
    (
        "best mean, but some runs failed and are not in it: a=x",
        "failed",
        "apart by seeds, absent",
    ),
    (
        "Means leave out replicates without a value. Replicates with a value: a=x (2 of 3), a=z (0 of 3)",
        "failed",
        "three",
    ),
    ("Each interval is for one number alone. For the best of several", "three", "one seed"),
    ("The table has 2 more columns, each with its own best.", "wide", "three"),
    (
        "Of 2 cells compared with the baseline a=x, 1 is shown to be higher and 0 are shown to be lower",
        "shifted, three",
        "three",
    ),
    ("(Holm correction, 5 %). The largest difference is", "three", "apart"),
    ("could not be tested", "one seed", "three"),
    (
        "≈ may be as good as the best; a cell that is not the best and has no ≈ is clearly worse than another cell of "
        "its column (one-sided paired t-tests of all pairs, n=3, Holm correction within the column, 5 %)",
        "three",
        "one seed",
    ),
    (
        "↓ shown to be below the baseline a=x (2 paired t-tests, each against the baseline, Holm correction, 5 %)",
        "three",
        "close",
    ),
    ("↑ ↓ shown to be above or below the baseline a=x", "both sides", "three"),
    (
        "a=x: ≈, although ↑ or ↓ shows that another cell is better; ≈ comes from more tests, each of which needs "
        "stronger evidence",
        "both sides",
        "three",
    ),
    (
        "no cells of a column could be compared (fewer than two seeds in common), so it is unknown which are worse "
        "than the best",
        "one seed",
        "three",
    ),
    ("not compared (fewer than two seeds in common): a=y", "apart by seeds", "three"),
    ("the differences have no spread", "shifted", "three"),
    ("one seed: no standard deviation", "one seed", "three"),
    ("1 of 1 rows have n=1, so no interval and no test", "one seed", "three"),
    (
        "p-values and intervals assume normally distributed differences; an exact sign-flip test, which does not, "
        "gives p of at least",
        "three",
        "one seed",
    ),
    ("after Holm over 2)", "three", "wild"),
    (
        "an interval goes beyond what two values of this metric can differ by, -1 to 1; t intervals do not",
        "wild",
        "three",
    ),
    (
        "An interval goes beyond the metric's range of 0 to 1: t intervals do not respect bounds, and are not cut",
        "wild",
        "three",
    ),
    (
        "that finished only in the cell or only in its baseline have no partner and are excluded here, so a "
        "difference may deviate from that of the table's means",
        "failed",
        "three",
    ),
    ("no seed finished in both this cell and the baseline", "failed", "three"),
    (
        "with 3 seeds and the median spread of these differences, the smallest detectable difference (power 0.8) is",
        "three",
        "one seed",
    ),
    ("for one test at 5 % (0.01 needs ", "three", "one seed"),
    ("; with Holm over 2, up to", "three", "wild"),
    ("(p < 0.001, Holm)", "crossed", "crossed, no effect"),
    ("Not shown at n=3 (an effect may still exist): ", "crossed, no effect", "crossed"),
    ("tuned values × seed", "searched", "three"),
    ("yet, so there is no answer.", "nothing", "three"),
    (": paired difference to a=x", "three", "close"),
    (
        "equivalence: p of two one-sided t-tests that the difference is within ±0.05, Holm over this "
        "metric's comparisons; the 90 % interval is for each comparison alone",
        "margin",
        "three",
    ),
    (
        "in brackets: our mean minus the published mean, and whether the published mean is inside our 95 % t interval",
        "published",
        "three",
    ),
    ("known differences from the published study, and choices where it is silent: 1", "differs", "differs in nothing"),
    ("the study knows of no difference from the published one", "differs in nothing", "published"),
    (
        "'inside' means little for these, as our interval is wider than half of the metric's range",
        "published, wide",
        "published",
    ),
    (
        "held at one seed: labels (0); standard deviations, intervals and tests do not include what these would add",
        "held",
        "three",
    ),
    ("stopped early by patience (how many seeds in brackets): a=x (1)", "patient", "three"),
    (
        "scores come from the weights with the best val/jaccard of each training, independent of tune.target: a=x, "
        "a=y; in other cells from the last weights",
        "best",
        "last",
    ),
    ("with the best val/jaccard of each training (tuned), independent", "tuned checkpoint", "best"),
    ("a has an effect on average (p", "crossed", "crossed, no effect"),
    ("The effect depends on b: read the cells, not the averages.", "crossed", "crossed, no effect"),
    ("a and b interact (p", "crossed", "crossed, no effect"),
    (
        "the effect of one depends on the level of the other, so read the cells, not the averages",
        "crossed",
        "crossed, no effect",
    ),
    ("a is not shown to have an effect on average (p", "crossed, no effect", "crossed"),
    ("on average: no test, as nothing varies over 3 seeds", "crossed, no spread", "crossed"),
    ("no test, because nothing varies over seeds: ", "crossed, no spread", "crossed"),
    (
        "is small: with power 0.8, one test at 5 % detects an effect of two levels only above 3.3 standard "
        "deviations of its seeds; with more levels, or with Holm over several effects, it must be larger",
        "crossed",
        "crossed, 8 seeds",
    ),
    ("one seed: effects have a size but no test", "crossed, one seed", "crossed"),
    ("seeds 1 did not finish in every cell and are excluded", "crossed, lost", "crossed"),
    (
        "size: largest minus smallest term of the effect (for two levels: the difference of their means); degrees of "
        "freedom and p have the Greenhouse-Geisser correction if a factor has more than two levels",
        "crossed",
        "three",
    ),
    (
        "searches: spread of val/jaccard over what a sampler tried, which is denser where scores are good",
        "searched",
        "Sobol",
    ),
    ("searches: spread of val/jaccard over points chosen in advance", "Sobol", "searched"),
    (
        "From the sampler's trials, which crowd where scores are good and move all parameters at once: "
        "a map of where good "
        "scores were found, not the effect of one parameter alone.",
        "searched",
        "Sobol",
    ),
    (
        "From points laid out beforehand, whatever was found: an average is the effect of a parameter "
        "over all values of the "
        "others.",
        "Sobol",
        "searched",
    ),
    ("no parameter is common to all trials", "one value", "searched"),
    ("Failed trials are listed below their panel.", "searched", "three"),
    ("Share of resamples (each of one seed fewer than ran) in which a cell takes a rank.", "three", "one seed"),
    ("Not ranked, because replicates have no value: a=z", "one lost", "three"),
    ("Parallel lines: the factors do not interact.", "labels", "three"),
    ("scores what start=random does with about", "labels", "three"),
    (", and test data that was not used for any choice.", "three", "validation"),
    ("nested seeds: variance between pretrainings, and between fine-tunings of one pretraining", "nested", "three"),
    (
        "nested seeds: n counts pretrainings, as only these are independent; each value is the mean of its "
        "fine-tunings that finished, of 2",
        "nested",
        "three",
    ),
    (
        "all cells: mean of the cells' variances; cells share seeds, so the interval uses the n of one cell",
        "nested",
        "nested, lost",
    ),
    (
        "one pretraining: the spread of its fine-tunings only, which does not show how another pretraining would score",
        "nested, one pretraining",
        "nested",
    ),
    (
        "one pretraining, so no standard deviation; the spread of its fine-tunings is in the table",
        "nested, one pretraining",
        "nested",
    ),
    ("no share, because the fine-tunings of one pretraining do not vary: ", "nested copies", "nested"),
    ("mean ± standard deviation over pretrainings", "nested", "three"),
    ("mean ± standard deviation over seeds", "three", "nested"),
    (
        "each fold is its mean over seeds (n=3); folds share training images, so there is no interval over folds",
        "folds",
        "three",
    ),
    ("mean ± standard deviation over folds (factor fold)", "folds", "three"),
    ("over seeds: Student-t interval for other seeds on the same test images", "counted", "three"),
    ("over test images: bootstrap interval for the same trained models", "counted", "three"),
    ("neither interval includes the other source of uncertainty", "counted", "three"),
    (
        "the stored counts of single images do not agree with the stored score; run the study again",
        "partly wrong",
        "counted",
    ),
    (
        "10 test images are few: in simulation, such 95 % intervals covered in 91 % (20 images) to 93 % (60 images)",
        "counted",
        "many counted",
    ),
    ("1 of 2 runs were stored by an older version, which did not count single images", "partly counted", "counted"),
    ("no interval over seeds, because nothing varies: a=x, a=y", "counted copies", "counted"),
    (
        "no analysis of variance: not every level of a factor is combined with every level of the others",
        "uncrossed",
        "crossed",
    ),
    ("no analysis of variance: no seed finished in every cell", "no common seed", "crossed"),
    ("4 finished trials are too few to rank parameters (8 are needed)", "few trials", "searched"),
    ("every trial scored the same", "flat trials", "searched"),
    (
        "1 went the whole way, 1 raced out or stopped early, 1 diverged or broke a constraint, 1 "
        "crashed, 1 had no score",
        "told",
        "three",
    ),
    ("more than a million seeds", "far", "three"),
    ("empty: x compared with itself, 1 by definition; no cell is the best", "itself", "three"),
    (
        "This study is not finished (confirm phase): 1 of 9 stage runs are done. The tables show only these.",
        "under way",
        "three",
    ),
    ("Results of the confirm phase: fresh seeds.", "validation", "three"),
]
SCENES |= {
    "apart by seeds, absent": apart,
    "shifted, three": lambda f: write_study(
        f, {"a=x": [0.5, 0.51, 0.52], "a=y": [0.7, 0.71, 0.723], "a=z": [0.49, 0.53, 0.51]}, THREE, baseline={"a": "x"}
    ),
}


# scenes of sentences beside figures: drawing takes most of the time
DRAWN = (
    "three",
    "failed",
    "published",
    "searched",
    "Sobol",
    "few trials",
    "flat trials",
    "one value",
    "labels",
    "one seed",
    "one lost",
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """All that analysis prints of a scene, in one line."""
    texts = {}

    def text_of(name):
        if name not in texts:
            folder = tmp_path_factory.mktemp("scene") / "study"
            SCENES[name](folder)
            results, header = load(folder), load_header(folder)
            write_tables(folder)
            groups, notes = figure_groups(folder) if name in DRAWN else ((), ())
            parts = [*answer(results, header, header.report.metrics[0]), (folder / "table.md").read_text()]
            parts += [progress(folder)]
            parts += [group.note for group in groups] + [*notes, table_caption(header.report.metrics)]
            texts[name] = " ".join(" ".join(parts).split())
        return texts[name]

    return text_of


@pytest.mark.parametrize(("sentence", "true", "absent"), SENTENCES, ids=[s[:40] for s, *_ in SENTENCES])
def test_a_sentence_is_said_where_it_is_true_and_nowhere_else(said, sentence, true, absent):
    assert sentence in said(true)
    assert sentence not in said(absent)


# ---------------------------------------------------------------------------------------------------- completeness

TESTS = Path(__file__).parent
COMPARED = (
    "replicates of the better side failed and may have been its worst, so no difference is claimed for",
    "compared and equal",
    "compared in the cells that are in two studies or more",
    "no cell is in two of the studies",
    "no cell has a value in both",
    "no cell can be tested. A test needs two seeds",
    "both values come from the same stage runs",
    "no difference is shown in",
    "shown to differ",
    "have the same split into training",
    "Welch's test is used instead",
    "although Welch's test assumes it",
    "things, listed below. Differences in scores come from all of them",
    "fewer values than planned, so the mean may cover only the better runs",
    "planned, without any value",
    "runs that finished in only one study have no partner",
    "no interval: one seed, or no spread",
    "empty: the study has none of these cells",
    "settings are compared as written, without defaults",
    "this version cannot resolve the settings of",
    "the content of the data is not stored in",
    "which has several contents",
    "with it perhaps the test images",
    "their settings do not name the data of this metric",
    "confirmed stage runs and no others",
    "confirmed stage runs (",
    "the content of data",
    "the settings of data",
    "the split of data",
    "lower, after Holm over",
    "What else differs: nothing that was compared",
    "the values come from the same stage runs in both studies",
    "Paired by seed with",
    "The studies differ in",
)
ELSEWHERE = {  # part of a sentence -> the test file that holds where it is true and where it is not
    **dict.fromkeys(COMPARED, "questions/test_compare.py"),
    "replicates of these cells failed, so no cell is called worse than them": "questions/test_missing.py",
    "a model that predicts only the most frequent class": "questions/test_facts.py",
    "never predicted on the test images by": "questions/test_facts.py",
    "showed signs of collapse": "questions/test_facts.py",
    "these score no higher": "questions/test_facts.py",
    "no cell scores higher": "questions/test_facts.py",
    "the replicates ran on": "load/test_processors.py",
    "kinds of processor, which round differently": "load/test_processors.py",
    "is in neither truth nor prediction": "questions/test_missing.py",
    "the value is infinite": "questions/test_tables.py",
    "cells with failed runs are not included": "questions/test_components.py",
    "no spread at all, so no interval: ": "questions/test_marginal.py",
    "differs between cells, so there is no common space": "questions/test_importance.py",
    "there is one parameter, so nothing to rank": "questions/test_importance.py",
    "no cell is shown to be better than the baseline": "text/test_headline.py",
    "Larger, but not clear": "text/test_headline.py",
    "can agree by chance": "text/test_headline.py",
    "run again with --set seeds.report": "text/test_headline.py",
    "let the study finish": "text/test_headline.py",
    "pretraining runs of": "text/test_headline.py",
    "the answer compares each cell only with": "text/test_headline.py",
    ". To compare with": "text/test_headline.py",
    "to your `pretune run` command; nothing is trained again. p then": "text/test_headline.py",
    "no cell can be compared with the baseline": "text/test_headline.py",
    "every compared cell is worse than the baseline": "text/test_headline.py",
    "% of the way from the baseline to a perfect score": "text/test_headline.py",
    ". The gain is": "text/test_headline.py",
    "If the true difference is": "text/test_headline.py",
    "The best cell that is not": "text/test_headline.py",
    "the other cell is": "text/test_headline.py",
    "This is not shown, since": "text/test_headline.py",
    "every cell below these": "text/test_answer.py",
    "runs failed, which might have scored worst": "questions/test_factors.py",
    "are needed to show it in 80 % of studies": "text/test_headline.py",
    "The best other cell": "text/test_headline.py",
    "A failed run might have scored worst": "text/test_headline.py",
    "replicates have no value": "text/test_headline.py",
    "No other cell can be compared with it": "text/test_headline.py",
    "than each of the": "text/test_headline.py",
    "has the best mean, but": "text/test_headline.py",
    "not shown to be worse": "text/test_headline.py",
    "The number of seeds needed is unknown": "text/test_headline.py",
    "better than": "questions/test_factors.py",
    "worse than": "questions/test_factors.py",
    "about": "questions/test_factors.py",
    "the noise in this rise is unknown": "questions/test_budget.py",
    "the second half of": "questions/test_budget.py",
    "improved the best by": "questions/test_budget.py",
    "open whether more trials help": "questions/test_budget.py",
    "would bring at most": "questions/test_budget.py",
    "less than the noise of seeds": "questions/test_budget.py",
    "more trials cannot be predicted": "questions/test_budget.py",
    "too few to say": "questions/test_budget.py",
    "no tuned parameter changes the seconds": "questions/test_costs.py",
    "do not differ significantly": "questions/test_costs.py",
    "No figure of scores against cost": "questions/test_costs.py",
    "No figure of cost": "questions/test_costs.py",
    "No profile and no IQM of": "questions/test_tasks.py",
    "tasks and 3 settings": "questions/test_tasks.py",
    ", and there are": "questions/test_tasks.py",
    "more often at": "questions/test_sensitivity.py",
    "Not shown on this page": "figures/test_figures_sensitivity.py",
    ", listed below the table of": "questions/test_tables.py",
    "which is no cell of this study": "questions/test_tables.py",
}
LABELS = {  # names of axes, columns and groups, and captions that hold for every figure of their kind
    *(
        "system-ui",
        "mean and 95 % t interval",
        "best mean of its column",
        "same score with",
    ),
    *(
        "band: ± one standard deviation",
        "seconds since the first stage run",
        "% at",
        "%{",
        "Nested seeds are averaged first",
    ),
    *("Means over seeds and over the levels", "A cell is on the Pareto front if no other"),
    *("what as many trials again may bring", "best so far, in the order tried", "IQM and 95 % interval"),
    *("one trial, in the colour of its score", "best of the surface", "data sets, 1 is the best"),
    *("not shown to differ", "and a surface that predicts trials left aside", "Cost is the seconds of one replicate"),
    *("Over data sets: ranks", "A higher line is better", "the lowest and the highest quarter"),
    *("Cost is the mean seconds of one stage run", "Should the search have been longer", "Score against cost"),
    *(
        "One mark per configuration",
        "debiased linear CKA",
        "rotation and scale",
        "what tells the best tenth of trials apart",
        "variance of a forest's fit",
        "a parameter explains alone",
        "Share of the variance of scores that each parameter",
        "what chance reaches",
        "All panels of a figure have the same scale",
        "with 95 % interval",
        "searches, one mark per trial",
        "score as far as it went",
        "chosen for the table",
        "share, with its interval",
        "all searches of",
        "95 % interval of the difference",
        "the fewest tried",
        "Stability of the order",
        "difference of differences",
        "share of resampled seeds",
        "The table shows which cells are clearly worse",
        "the most tried",
        "Parallel lines",
        "`pretune report FOLDER --figures svg` writes all",
    ),
    *("Mean score of the trials in each",),
    *("Times when the study did not run", "Stage runs of the confirm phase"),
    *(
        "pretraining seed (and split)",
        "fine-tuning seed (and label subset)",
        "main effects and interactions",
        "threads of a stage run",
        "95 % interval (each alone)",
    ),
    *(
        "mean ± standard deviation over seeds",
        "mean ± standard deviation (n)",
        "where the spread comes from",
        "Timeline of stage runs",
    ),
    *(
        "with Holm correction over this metric's",
        "95 % t interval (for each alone)",
        "share of the variance",
        "Similarity of encoders",
    ),
    *(
        "(study.yaml was not found)",
        "figure files need",
        "nothing to show yet",
        "mean ± standard deviation over",
    ),
    *(
        "Differences to the baseline",
        "the report is no longer updated",
        "is written as soon as results are stored",
        "over seeds and over test images",
    ),
    *(
        "no stage of this study has ended yet",
        "the study has not started yet",
        "stage runs at once; these slots were",
        "one stage run at a time; the slot was",
        "% of the time",
    ),
    *("it is cut off or damaged", "was not written by a Pretune study", "cannot be read"),
}


def literals(path):
    """Text of four words or more that is neither a docstring nor an error's."""
    tree = ast.parse(path.read_text("utf-8"))
    apart = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)}
    apart |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        found = node.value if isinstance(node, ast.Constant) and id(node) not in apart else None
        if isinstance(found, str) and found.strip().count(" ") >= 3:
            yield " ".join(found.split())


def test_every_sentence_of_analysis_stands_in_the_inventory():
    folder = Path(pretune.analysis.__file__).parent
    known = [*(sentence for sentence, *_ in SENTENCES), *ELSEWHERE, *LABELS]
    unknown = [
        f"{path.relative_to(folder)}: {text}"
        for path in sorted(folder.rglob("*.py"))
        if not path.name.endswith("captions.py")  # held by figures/test_captions.py, by value
        for text in literals(path)
        if not any(
            part.strip().lower() in text.lower() or text.strip("; .,:").lower() in part.lower() for part in known
        )
    ]
    assert not unknown, "name a study in which it is true, and one in which it must not appear"


@pytest.mark.parametrize(("part", "file"), ELSEWHERE.items())
def test_what_is_tested_elsewhere_is(part, file):
    words = "".join((TESTS / file).read_text("utf-8").split())
    assert any("".join(part.split())[i : i + 18] in words for i in range(0, max(1, len("".join(part.split())) - 18)))
