"""Learning curves reach curves.parquet in the places that the results have."""

import json
from typing import Any

import pytest

from pretune.outcomes import Outcome
from pretune.plan import simulate
from pretune.results.tables import curve_rows, described_ranges, readable, result_rows
from pretune.search.replicates import stages_in
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Store


def ended(study, root):
    """Every stage run of a study, finished, with a curve of two steps for all but probes."""
    run, _ = simulate(study, lambda _: "digest")
    store, outcomes = Store(root), {}
    for key, stage in stages_in(run.replicates).items():
        attempt = store.begin(key)
        points = [{"step": n, "epoch": n / 2, "train/loss": 1 / n, "val/jaccard": 0.1 * n} for n in (1, 2)]
        (attempt / "history.json").write_text(json.dumps(points))
        store.finish(attempt, stage.name, "finished", "", {"val/jaccard": 0.2}, 1.0, {})
        outcomes[key] = Outcome("finished", {"val/jaccard": 0.2})
    return run.replicates, outcomes, store


def test_every_place_in_the_results_has_its_curve(tiny, tmp_path):
    study = from_dict(tiny)
    uses, outcomes, store = ended(study, tmp_path)
    curves = list(curve_rows(uses, outcomes, store))
    places = {(row["phase"], row["cell"], row["seed"], row["stage"], row["fingerprint"]) for row in curves}
    results = result_rows(study, uses, outcomes)
    assert places == {(row["phase"], row["cell"], row["seed"], row["stage"], row["fingerprint"]) for row in results}
    assert len(curves) == 4 * len(places)  # two steps, two metrics
    one = [row for row in curves if row["fingerprint"] == curves[0]["fingerprint"] and row["cell"] == curves[0]["cell"]]
    assert [(row["step"], row["epoch"], row["metric"], row["value"]) for row in one] == [
        (1, 0.5, "train/loss", 1.0),
        (1, 0.5, "val/jaccard", 0.1),
        (2, 1.0, "train/loss", 0.5),
        (2, 1.0, "val/jaccard", pytest.approx(0.2)),
    ]


def test_a_pretraining_that_cells_share_has_one_curve_for_each_seed(tiny, tmp_path):
    uses, outcomes, store = ended(from_dict(tiny), tmp_path)
    shared = {(r["cell"], r["seed"]) for r in curve_rows(uses, outcomes, store) if r["stage"] == "pretrain"}
    assert shared == {("", 0), ("", 1)}


def test_what_has_not_ended_or_left_no_curve_has_no_rows(tiny, tmp_path):
    uses, outcomes, _ = ended(from_dict(tiny), tmp_path / "a")
    assert list(curve_rows(uses, {}, Store(tmp_path / "a"))) == []
    assert list(curve_rows(uses, outcomes, Store(tmp_path / "empty"))) == []


def test_ranges_are_described_as_a_study_file_writes_them(tiny):
    tiny["finetune"]["optimizer"] = {"lr": {"log_uniform": [0.001, 0.1]}}
    tiny["finetune"]["loss"] = {"choice": ["dice", "cross-entropy"]}
    tiny["tune"] = {"trials": 2}
    found = described_ranges(from_dict(tiny))
    assert found["finetune.loss"] == {"choice": ["dice", "cross-entropy"]}
    assert found["finetune.optimizer.lr"] == {"log_uniform": [0.001, 0.1]}


@pytest.mark.parametrize(("stages", "key"), [(1, "pretrain.method.temperature"), (2, "pretrain.1.method.temperature")])
def test_a_range_of_a_lone_pretraining_has_no_number_and_one_of_a_chain_has(
    tiny: dict[str, Any], stages: int, key: str
) -> None:
    last = tiny["pretrain"] | {"method": {"name": "simclr", "temperature": {"uniform": [0.1, 0.5]}}}
    tiny |= {"pretrain": [*[tiny["pretrain"]] * (stages - 1), last] if stages > 1 else last, "tune": {"trials": 2}}
    study = from_dict(tiny)
    assert list(described_ranges(study)) == [key]
    (chosen,) = (readable(cell, {f"pretrain.{stages - 1}.method.temperature": 0.3}) for cell in study.cells[:1])
    assert chosen == {key: 0.3}
