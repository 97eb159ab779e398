"""What a study leaves behind: tidy rows, whatever the timing was, and the best model by validation."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretune.analysis.load.replicates import replicate_results
from pretune.analysis.load.results import RESULT_COLUMNS, STUDY_FORMAT, load, load_header
from pretune.analysis.load.runs import load_stage_runs, run_table, stage_costs
from pretune.analysis.load.searches import load_notes
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.plan import make_plan
from pretune.results import tables
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run, stages_in
from pretune.search_spaces.metrics import definition_of
from pretune.search_spaces.resolve import Study, from_dict
from pretune.search_spaces.stages import Stage
from pretune.status import State
from pretune.store.store import Store


def value(stage: Stage) -> float:
    return int(stage.fingerprint[:6], 16) / 16**6


def ends(stage: Stage) -> Outcome:
    return Outcome("finished", {"val/jaccard": value(stage), "test/jaccard": 1 - value(stage), "probe/accuracy": 0.25})


def drive(study: Study, ends: Any = ends, seed: int = 0) -> tuple[Run, Scheduler]:
    """Run a study's programs, ending stages in a random order."""
    run, draw = Run(study, lambda data: "digest", open_storage(None)), random.Random(seed)
    scheduler, running = Scheduler(lambda key: None, 0), list[Stage]()
    scheduler.start(program.start(run))
    while not scheduler.finished:
        while len(running) < draw.randint(1, 5) and (stage := scheduler.take()) is not None:
            running.append(stage)
        stage = running.pop(draw.randrange(len(running)))
        scheduler.complete(stage, ends(stage))
    return run, scheduler


def written(study: Study, folder: Path, ends: Any = ends, seed: int = 0) -> pd.DataFrame:
    run, scheduler = drive(study, ends, seed)
    tables.write_header(study, folder)
    tables.write_results(study, run.replicates, scheduler.outcomes, Store(folder / "store"), folder)
    return load(folder)


def test_what_is_written_is_of_the_format_that_is_read(tiny: dict[str, Any], tmp_path: Path) -> None:
    tables.write_header(from_dict(tiny), tmp_path)
    assert json.loads((tmp_path / "study.json").read_text())["format"] == STUDY_FORMAT
    assert load_header(tmp_path).study == tiny["study"]


@pytest.mark.parametrize(("scale", "title"), [(None, "tiny"), ("first", "tiny (scale first)")])
def test_the_scale_that_was_run_stands_beside_the_studys_name(
    scale: str | None, title: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    study = from_dict(tiny | {"scales": {"first": {"finetune.steps": 3}}}, scale)
    tables.write_header(study, tmp_path)
    header = load_header(tmp_path)
    assert (header.scale, header.title) == (scale or "", title)
    assert study.title == title
    assert make_plan(study, lambda data: "digest")[0].scale == (scale or "")


def test_what_metrics_mean_is_stored_with_the_results(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The report's, and what searches go by: their target, further targets and constraints."""
    tiny["report"] = {"metrics": ["test/jaccard/bone loss", "test/dice"]}
    tiny["tune"] = {"target": "val/dice", "also": ["cost/seconds"], "constraints": {"cost/gpu_memory": 1e9}}
    tiny["tune"] |= {"sampler": "nsga2"}
    tables.write_header(from_dict(tiny), tmp_path)
    stored = json.loads((tmp_path / "study.json").read_text())["metrics"]
    assert {name: row["direction"] for name, row in stored.items()} == {
        "test/jaccard/bone loss": "maximize", "test/dice": "maximize", "val/dice": "maximize",
        "cost/seconds": "minimize", "cost/gpu_memory": "minimize",
    }  # fmt: skip
    assert stored["test/dice"]["range"] == [0, 1]
    assert stored["cost/seconds"]["range"] == [0, None]
    header = load_header(tmp_path)
    assert header.metrics == {name: definition_of(name) for name in stored}


def test_rows_are_one_per_cell_seed_stage_and_metric(tiny: dict[str, Any], tmp_path: Path) -> None:
    """4 fine-tunings and, as both cells share them, 2 pretrainings with an empty cell; 3 metrics each."""
    frame = written(from_dict(tiny), tmp_path)
    assert set(RESULT_COLUMNS) <= set(frame.columns)
    assert len(frame) == (4 + 2) * 3
    assert not frame.duplicated(["phase", "cell", "seed", "stage", "metric"]).any()
    shared = frame[frame.stage == "pretrain"]
    assert set(shared.cell) == {""}
    assert shared["factor.encoder"].isna().all()
    tuned = frame[(frame.stage == "finetune") & (frame.metric == "test/jaccard")]
    assert dict(zip(tuned.cell, tuned["factor.encoder"], strict=True)) == {
        "encoder=unfrozen": "unfrozen",
        "encoder=frozen": "frozen",
    }
    assert sorted(tuned.seed) == [0, 0, 1, 1]


def test_a_pretraining_of_one_cell_alone_stands_in_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    del tiny["factors"], tiny["report"]
    frame = written(from_dict(tiny), tmp_path)
    assert set(frame[frame.stage == "pretrain"].cell) == {"all"}


def test_failed_stage_runs_are_rows_without_a_metric(tiny: dict[str, Any], tmp_path: Path) -> None:
    def failing(stage: Stage) -> Outcome:
        return Outcome("diverged", {}, "pretext_loss is nan at step 3") if stage.kind == "pretrain" else ends(stage)

    frame = written(from_dict(tiny), tmp_path, failing)
    assert set(frame.metric) == {""}
    assert frame.value.isna().all()
    assert set(zip(frame.stage, frame.outcome, frame.cause, strict=True)) == {
        ("pretrain", "diverged", "pretext_loss is nan at step 3"),
        ("finetune", "blocked", "its pretrain diverged: pretext_loss is nan at step 3"),
    }


def test_a_study_of_which_nothing_finished_can_be_reported(tiny: dict[str, Any], tmp_path: Path) -> None:
    written(from_dict(tiny), tmp_path, lambda stage: Outcome("crashed", {}, "no luck"))
    assert len(load_stage_runs(tmp_path)) == 0
    assert set(load(tmp_path)["outcome"]) == {"crashed", "blocked"}


def test_a_probes_metric_carries_its_name(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["probe"] = {"near": {"kind": "knn", "data": "scenes"}}
    frame = written(from_dict(tiny), tmp_path)
    assert set(frame[frame.stage == "probe:near"].metric) == {"probe/near/accuracy", "val/jaccard", "test/jaccard"}
    assert tables.metric_name("finetune", "probe/accuracy") == "probe/accuracy"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(1, 10**6))
def test_rows_and_their_order_do_not_depend_on_timing(tiny: dict[str, Any], seed: int) -> None:
    """Two cells are searched side by side; which asks first is chance."""
    tiny["finetune"]["optimizer"] = {"lr": {"log_uniform": [0.001, 0.1]}}
    tiny["tune"] = {"trials": 4, "batch": 2, "startup": 4}
    study = from_dict(tiny)
    frames = []
    for order in (0, seed):
        run, scheduler = drive(study, seed=order)
        uses = tables.in_order(study, run.replicates)
        frames.append(pd.DataFrame(tables.result_rows(study, uses, scheduler.outcomes)))
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_the_header_says_what_analysis_needs(tiny: dict[str, Any], tmp_path: Path) -> None:
    tables.write_header(from_dict(tiny), tmp_path)
    header = load_header(tmp_path)
    assert (header.study, header.question) == ("tiny", "Does anything help?")
    assert dict(header.factors) == {"encoder": ("unfrozen", "frozen")}
    assert [cell.label for cell in header.cells] == ["encoder=unfrozen", "encoder=frozen"]
    assert (header.replicates, header.pretrainings) == (2, 2)
    assert from_dict(json.loads(json.dumps(from_dict(tiny).resolved))).cells == from_dict(tiny).cells


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_model_is_chosen_by_validation_first_by_cell_then_by_seed(
    tiny: dict[str, Any], tmp_path: Path, direction: str
) -> None:
    """Means 0.5 (0.2, 0.8) and 0.6 (0.55, 0.65): the second cell is best although the single best seed is not in it;
    minimised, the first. The test set says the opposite and is not asked."""
    scores = {("encoder=unfrozen", 0): 0.2, ("encoder=unfrozen", 1): 0.8}
    scores |= {("encoder=frozen", 0): 0.55, ("encoder=frozen", 1): 0.65}
    tiny["tune"] = {"direction": direction}
    study, store = from_dict(tiny), Store(tmp_path / "store")
    run, scheduler = drive(study)
    for use in run.replicates:
        stage = use.stages["finetune"]
        score = scores[use.cell.label, use.replicate.seed]
        scheduler.outcomes[stage.fingerprint] = Outcome("finished", {"val/jaccard": score, "test/jaccard": 1 - score})
        attempt = store.begin(stage.fingerprint)
        (attempt / "model.safetensors").write_text(f"{use.cell.label} {use.replicate.seed}")
        (attempt / "notes.json").write_text(json.dumps({"classes": ["a", "b"], "size": 32, "test": [1]}))
        store.finish(attempt, "finetune", "finished", "", {}, 1.0, {})
    tables.keep_best(study, run.replicates, scheduler.outcomes, store, tmp_path)
    expected = "encoder=frozen 1" if direction == "maximize" else "encoder=unfrozen 0"
    assert (tmp_path / "best" / "model.safetensors").read_text() == expected
    card = json.loads((tmp_path / "best" / "model.json").read_text())
    assert f"{card['cell']} {card['seed']}" == expected
    assert card["scores"]["val/jaccard"] == (0.65 if direction == "maximize" else 0.2)


def test_the_weights_that_the_best_model_began_with_are_named_with_their_hash(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """As the stage that read them recorded it, whatever lies at that place now."""
    file = tmp_path / "vit.pt"
    file.write_bytes(b"weights")
    tiny["pretrain"] = {"data": tiny["finetune"]["data"], "method": {"name": "weights", "source": str(file)}}
    study, store = from_dict(tiny), Store(tmp_path / "store")
    run, scheduler = drive(study)
    recorded = {"source": str(file), "sha256": "abc"}
    for use in run.replicates:
        for name, stage in use.stages.items():
            if store.find(stage.fingerprint) is None:
                attempt = store.begin(stage.fingerprint)
                (attempt / "model.safetensors").write_text("")
                notes = {"classes": ["a", "b"], "size": 32, "test": [1]} if name == "finetune" else recorded
                (attempt / "notes.json").write_text(json.dumps(notes))
                store.finish(attempt, stage.kind, "finished", "", {}, 1.0, {})
    tables.keep_best(study, run.replicates, scheduler.outcomes, store, tmp_path)
    assert json.loads((tmp_path / "best" / "model.json").read_text())["weights"] == [recorded]


def test_loading_weights_and_training_have_names_of_their_own_in_every_list(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    (file := tmp_path / "resnet.safetensors").write_bytes(b"weights")
    start = {"weights": {"pretrain.method": {"name": "weights", "source": str(file)}}, "own": {"pretrain.epochs": 1}}
    tiny["pretrain"].pop("steps")
    tiny["report"]["rows"] = "start"
    study = from_dict(tiny | {"factors": {"start": start}})
    run, scheduler = drive(study)
    store, stages = Store(tmp_path / "store"), stages_in(run.replicates).values()
    for stage in stages:
        store.finish(store.begin(stage.fingerprint), stage.name, "finished", "", {"val/jaccard": 0.5}, 1.0, {})
    tables.write_header(study, tmp_path)
    tables.write_results(study, run.replicates, scheduler.outcomes, store, tmp_path)

    counts = {"pretrain weights": 1, "pretrain simclr": 2, "finetune": 4}
    assert make_plan(study, lambda data: "digest")[0].by_stage == counts
    state = State(study, run, store, tmp_path, 0.0, io.StringIO())
    labels = {state.label(stage) for stage in stages}
    assert {"pretrain weights seed 1", "pretrain simclr start=own seed 1"} < labels
    stage_runs = load_stage_runs(tmp_path)
    assert {cost.stage: cost.runs for cost in stage_costs(stage_runs)} == counts
    assert {cost.stage for cost in stage_costs(stage_runs.drop(columns="method"))} == {"pretrain", "finetune"}
    shown = run_table(load(tmp_path), stage_runs)
    assert {row[shown.columns.index("stage")] for row in shown.rows} == counts.keys()


def test_without_a_finished_fine_tuning_there_is_no_best_model(tiny: dict[str, Any], tmp_path: Path) -> None:
    study = from_dict(tiny)
    run, _ = drive(study)
    assert tables.keep_best(study, run.replicates, {}, Store(tmp_path / "store"), tmp_path) is None
    assert not (tmp_path / "best").exists()


TWO_METHODS = {
    "method": {"a": {"pretrain.method": {"name": "simclr"}}, "b": {"pretrain.method": {"name": "byol"}}},
    "encoder": {"unfrozen": {"finetune.freeze": "none"}, "frozen": {"finetune.freeze": "encoder"}},
}
ROWS = {  # a and b share their pretraining, and no level
    "row": {
        "a": {"pretrain.method": {"name": "simclr"}, "finetune.freeze": "none"},
        "b": {"pretrain.method": {"name": "simclr"}, "finetune.freeze": "encoder"},
        "c": {"pretrain.method": {"name": "byol"}},
        "d": {"pretrain.method": {"name": "byol"}, "finetune.freeze": "encoder"},
    }
}


@pytest.mark.parametrize("factors", [TWO_METHODS, ROWS], ids=["two factors", "rows"])
def test_a_shared_probe_counts_in_the_cells_that_share_it_and_in_no_other(
    tiny: dict[str, Any], tmp_path: Path, factors: dict[str, Any]
) -> None:
    tiny |= {"factors": factors, "report": {"metrics": ["test/jaccard"]}}
    tiny["data"]["many"] = {"dataset": "cifar10"}
    tiny["probe"] = {"knn": {"kind": "knn", "data": "many"}}
    study = from_dict(tiny)

    def by_parent(stage: Stage) -> Outcome:
        probed = stage.parent.fingerprint if stage.kind == "probe" and stage.parent else stage.fingerprint
        return Outcome("finished", ends(stage).metrics | {"probe/accuracy": int(probed[:6], 16) / 16**6})

    found = replicate_results(written(study, tmp_path, by_parent), load_header(tmp_path), "probe/knn/accuracy")
    run, scheduler = drive(study, by_parent)
    for use in run.replicates:
        expected = scheduler.outcomes[use.stages["probe:knn"].fingerprint].metrics["probe/accuracy"]
        (one,) = [r for r in found[use.cell.label] if r.seeds[0] == use.replicate.seed]
        assert one.value == expected


def test_the_values_of_a_shared_pretraining_and_the_hash_of_weights_stand_in_its_rows(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The winner of a search is used by all cells: it keeps its own values there, and none of the fine-tuning's."""
    tiny["pretrain"]["method"] = {"name": "simclr", "temperature": {"log_uniform": [0.1, 0.5]}}
    tiny["finetune"]["optimizer"] = {"lr": {"log_uniform": [0.001, 0.1]}}
    tiny["tune"] = {"trials": 3, "batch": 1, "sampler": "random"}
    frame = written(from_dict(tiny), tmp_path)
    shared = frame[(frame["cell"] == "") & (frame["stage"] == "pretrain")]
    assert len(shared)
    assert all(list(json.loads(chosen)) == ["pretrain.method.temperature"] for chosen in shared["chosen"])
    tried = set(frame[(frame["stage"] == "pretrain") & (frame["phase"] == "search")]["chosen"])
    assert len(tried) == 3
    assert set(frame["weights"]) == {""}  # the store is empty here


def test_what_a_plan_warns_of_stands_in_the_report_too(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Another test split is another task: the table says so, as the plan did."""
    tiny["factors"] = {"test": {"data.scenes.split.test": [6, 7]}}
    tiny["report"]["rows"] = "test"
    study = from_dict(tiny)
    run = Run(study, lambda data: "digest", open_storage(None))
    run.notes.append("a leak")
    tables.write_header(study, tmp_path)
    tables.write_searches(study, run, tmp_path)
    (task,) = study.warnings
    assert "they are different tasks" in task
    assert load_notes(tmp_path) == tuple(sorted(("a leak", task)))


def test_the_columns_of_the_results_are_the_documented_ones(tiny: dict[str, Any], tmp_path: Path) -> None:
    """docs/analysis.md has a row for each, and names none that is not there."""
    page = (Path(__file__).parents[3] / "docs" / "analysis.md").read_text(encoding="utf-8")
    table = page[page.index("`analysis.load` gives") :].split("\n\n")[1].splitlines()[2:]
    documented = {name.strip() for row in table for name in row.split("|")[1].split(",")}
    columns = written(from_dict(tiny), tmp_path).columns
    assert {"factor.NAME" if name.startswith("factor.") else name for name in columns} | {"factor.NAME"} == documented
