"""Seconds against scores: what a replicate costs, worked by hand, and no figure where seconds do not differ."""

import json
import math

import numpy as np
import pandas
import pytest
from studies import JACCARD, write_study

from benchmarks.known_truths import LR, RANGES, SIZE
from pretune.analysis import load, load_header
from pretune.analysis.figures.pairs import tradeoff_plot
from pretune.analysis.load.runs import load_stage_runs
from pretune.analysis.questions.costs import SECONDS, cell_seconds, cost_tradeoffs, search_costs
from pretune.analysis.questions.searched import searches

FACTORS = {"start": ["random", "pretrained"]}
SCORES = {"start=random": [0.5, 0.52, 0.51], "start=pretrained": [0.6, 0.62, 0.64]}


def study(folder, seconds, shared=False, scores=SCORES):
    """`seconds`: of fine-tunings by number of the run; a pretraining of 10, 11 and 12 s before each pretrained one.

    `shared`: one pretraining of 10 s serves all seeds.
    """
    write_study(folder, scores, FACTORS)
    results, runs = load(folder), load_stage_runs(folder)
    count = 1 if shared else 3
    head = {"study": "s", "phase": "confirm", "cell": "start=pretrained", "configuration": "c", "stage": "pretrain"}
    head |= {"outcome": "finished", "cause": "", "chosen": "{}", "metric": "train/pretext_loss", "value": 1.0}
    extra = [head | {"fingerprint": f"pre{seed}", "seed": seed} for seed in range(count)]
    probe = head | {"stage": "probe:knn", "fingerprint": "probe0", "seed": 0}
    results = pandas.concat([results, pandas.DataFrame([*extra, probe])], ignore_index=True)
    timed = [{"fingerprint": f"pre{seed}", "seconds": 10.0 + seed, "stage": "pretrain"} for seed in range(count)]
    timed.append({"fingerprint": "probe0", "seconds": 1000.0, "stage": "probe"})
    runs = pandas.concat([runs.assign(seconds=seconds), pandas.DataFrame(timed)], ignore_index=True)
    return results, runs, load_header(folder)


def test_a_replicate_costs_its_fine_tuning_and_its_pretraining_and_no_probe(tmp_path):
    found = cell_seconds(*study(tmp_path, [2.0, 2.1, 2.2, 3.0, 3.1, 3.2]))
    assert found == {
        "start=random": pytest.approx({0: 2.0, 1: 2.1, 2: 2.2}),
        "start=pretrained": pytest.approx({0: 13.0, 1: 14.1, 2: 15.2}),
    }


def test_a_pretraining_that_all_seeds_share_counts_for_each(tmp_path):
    found = cell_seconds(*study(tmp_path, [2.0, 2.1, 2.2, 3.0, 3.1, 3.2], shared=True))
    assert found["start=pretrained"] == pytest.approx({0: 13.0, 1: 13.1, 2: 13.2})


def test_a_seed_without_seconds_is_excluded(tmp_path):
    results, runs, header = study(tmp_path, [2.0, 2.1, 2.2, 3.0, 3.1, 3.2])
    found = cell_seconds(results, runs[runs["fingerprint"] != "pre1"], header)
    assert sorted(found["start=pretrained"]) == [0, 2]


def test_the_front_holds_the_cheap_and_the_good(tmp_path):
    ((metric, found),) = cost_tradeoffs(*study(tmp_path, [2.0, 2.1, 2.2, 3.0, 3.1, 3.2])).shown
    assert (metric, found.x_name, found.y_name) == (JACCARD, SECONDS, JACCARD)
    assert found.x == pytest.approx([2.1, 14.1])
    assert found.y == pytest.approx([0.51, 0.62])
    assert found.front.tolist() == [True, True]
    assert found.stays.tolist() == [1.0, 1.0]
    assert found.log
    figure = tradeoff_plot(found)
    assert figure.layout.xaxis.type == "log"
    assert figure.data[0].name == "start=random (100% on the front)"


def test_a_dearer_and_worse_cell_is_beaten_and_its_chance_is_known(tmp_path):
    """The pretrained cell has the better score at seed 2 alone: resampled means beat 0.55 where seed 2 is drawn often.

    Differences are -0.2, -0.2 and +0.5: the mean of three draws is above zero with one or more of seed 2, 1 - 8/27.
    """
    scores = {"start=random": [0.5, 0.5, 0.5], "start=pretrained": [0.3, 0.3, 1.0]}
    ((_, found),) = cost_tradeoffs(*study(tmp_path, [2.0, 2.1, 2.2, 3.0, 3.1, 3.2], scores=scores)).shown
    assert found.stays[0] == 1.0
    assert found.stays[1] == pytest.approx(1 - 8 / 27, abs=0.08)


def test_where_seconds_do_not_differ_there_is_no_figure_but_a_sentence(tmp_path):
    results, runs, header = study(tmp_path, [2.0, 4.1, 3.2, 3.9, 2.2, 3.0])
    shown, notes = cost_tradeoffs(results[results["stage"] == "finetune"], runs, header)
    assert shown == ()
    assert notes[0].startswith("No figure of scores against cost: the seconds of cells do not differ significantly")
    assert cost_tradeoffs(results, runs.iloc[:0], header) == ((), ())


# ---------------------------------------------------------------------------------------------------------- searches


def searched(tmp_path, seconds_of, trials=24):
    """A search of learning rate and batch size; `seconds_of`: values -> seconds."""
    folder = write_study(tmp_path, {"a=x": [0.5]}, {"a": ["x"]})
    generator = np.random.default_rng(3)
    ranges = RANGES | {SIZE: {"choice": ["8", "16", "32"]}}
    rows, runs, tried = [], [], []
    for index in range(trials):
        values = {SIZE: str(generator.choice(["8", "16", "32"])), LR: float(10 ** generator.uniform(-4, -1))}
        chosen = json.dumps(values, sort_keys=True)
        head = {"phase": "search", "cell": "a=x", "seed": 1000, "stage": "finetune", "fingerprint": f"s{index}"}
        rows.append(
            head | {"outcome": "finished", "cause": "", "chosen": chosen, "metric": "val/jaccard", "value": 0.5}
        )
        runs.append({"fingerprint": f"s{index}", "seconds": seconds_of(values) * math.exp(0.02 * generator.normal())})
        row = {"search": "search of finetune for a=x", "cells": '["a=x"]', "index": index, "told": "complete"}
        row |= {"value": 0.5 + 0.01 * index, "scores": "[0.5]", "chosen": chosen, "confirmed": False}
        tried.append(row)
    found = searches(pandas.DataFrame(tried), {"tune": {"sampler": "random"}, "ranges": ranges})
    return found, ranges, pandas.DataFrame(rows), pandas.DataFrame(runs), load_header(folder)


def test_a_search_that_tunes_its_cost_has_a_front_over_the_seconds_of_its_runs(tmp_path):
    arguments = searched(tmp_path, lambda values: 64 / int(values[SIZE]))
    ((name, found),) = search_costs(*arguments).shown
    assert name == "fine-tuning of a=x"
    assert found.x.tolist() == arguments[3]["seconds"].tolist()
    assert found.front[23]  # the best score is on the front, whatever it costs
    best_and_cheapest = np.argmin(found.x)
    assert found.front[best_and_cheapest]


def test_a_search_of_learning_rates_has_no_figure_of_costs_but_a_sentence(tmp_path):
    shown, notes = search_costs(*searched(tmp_path, lambda values: 2.0))
    assert shown == ()
    assert notes == ("No figure of cost: no tuned parameter changes the seconds significantly (fine-tuning of a=x).",)
