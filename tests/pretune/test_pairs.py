"""Pairwise probes: which pairs of cells are compared, when, and under which names the results stand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretune.analysis import load
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.plan import make_plan
from pretune.results import tables
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run
from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import Study, from_dict
from pretune.search_spaces.stages import Stage
from pretune.store.store import Store

METHODS = {name: {"pretrain.method": {"name": name}} for name in ("simclr", "byol", "moco-v3")}


def study(**changes: Any) -> Study:
    made: dict[str, Any] = {
        "study": "s",
        "data": {"d": {"dataset": "scenes", "images": 40}},
        "pretrain": {"data": "d", "method": {"name": "simclr"}, "batch_size": 8, "steps": 5},
        "probe": {"alike": {"kind": "cka", "data": "d", "between": "method"}},
        "factors": {"method": METHODS},
        "seeds": {"report": 2},
        "report": {"metrics": "probe/alike/byol/output"},
    }
    return from_dict(made | changes)


def finished(stage: Stage) -> Outcome:
    if stage.other is not None:
        return Outcome("finished", {"probe/output": int(stage.fingerprint[:4], 16) / 16**4, "probe/level1": 0.25})
    return Outcome("finished", {"val/jaccard": 0.5, "test/jaccard": 0.5, "val/pretext_loss": 0.5})


def drive(chosen: Study, ends: Any = finished, seed: int = 0) -> tuple[Run, Scheduler]:
    """Run a study's programs, ending stages in a random order, several under way at once."""
    run, draw = Run(chosen, lambda data: "digest", open_storage(None)), random.Random(seed)
    scheduler, running = Scheduler(lambda key: None, 0), list[Stage]()
    scheduler.start(program.start(run))
    while not scheduler.finished:
        while len(running) < draw.randint(1, 5) and (stage := scheduler.take()) is not None:
            assert all(scheduler.outcomes[parent.fingerprint].state == "finished" for parent in stage.parents)
            running.append(stage)
        stage = running.pop(draw.randrange(len(running)))
        scheduler.complete(stage, ends(stage))
    return run, scheduler


def pairs_of(run: Run) -> dict[str, Stage]:
    return {stage.fingerprint: stage for use in run.replicates if use.pair for stage in use.stages.values()}


def methods_of(stage: Stage) -> tuple[str, str]:
    names = [parent.settings.method.name for parent in stage.parents if isinstance(parent.settings, schema.Pretrain)]
    return names[0], names[1]


def test_every_pair_of_levels_is_compared_once_per_replicate_in_the_order_of_the_levels() -> None:
    """Three levels are three pairs, at two seeds: 6 stage runs beside 6 pretrainings."""
    run, scheduler = drive(study())
    pairs = list(pairs_of(run).values())
    assert len(scheduler.outcomes) == 6 + 6
    expected = [("simclr", "byol"), ("simclr", "moco-v3"), ("byol", "moco-v3")]
    assert sorted(map(methods_of, pairs)) == sorted(2 * expected)
    for pair in pairs:
        assert len({parent.streams["init"] for parent in pair.parents}) == 1, "encoders of two replicates"


def test_other_factors_are_held_equal() -> None:
    """Two sizes of views double the pairs; none is between the sizes."""
    size = {"pretrain.views.size": [32, 64]}
    run, _ = drive(study(factors={"method": METHODS, "size": size}))
    pairs = list(pairs_of(run).values())
    assert len(pairs) == 12
    for pair in pairs:
        sizes = {parent.settings.views.size for parent in pair.parents if isinstance(parent.settings, schema.Pretrain)}
        assert len(sizes) == 1


def test_a_level_without_pretraining_has_no_encoder_to_compare() -> None:
    run, _ = drive(study(factors={"method": METHODS | {"none": {"pretrain.method": {"name": "none"}}}},
                         finetune={"data": "d", "steps": 5}))  # fmt: skip
    assert len(pairs_of(run)) == 6


def test_fine_tuned_encoders_are_compared_where_that_is_asked() -> None:
    changes = {"probe": {"alike": {"kind": "cka", "data": "d", "between": "method", "of": "finetune"}}}
    none = {"none": {"finetune.transfer": "none"}}
    run, _ = drive(study(**changes, factors={"method": METHODS | none}, finetune={"data": "d", "steps": 5}))
    pairs = list(pairs_of(run).values())
    assert len(pairs) == 2 * 6
    assert {parent.kind for pair in pairs for parent in pair.parents} == {"finetune"}


def test_the_names_of_probe_factor_and_levels_are_in_no_fingerprint() -> None:
    renamed = {f"my {name}": override for name, override in METHODS.items()}
    probe = {"cka": {"kind": "cka", "data": "d", "between": "start"}}
    other = study(factors={"start": renamed}, probe=probe, report={"metrics": "probe/cka/my byol/output"})
    assert pairs_of(drive(study())[0]).keys() == pairs_of(drive(other)[0]).keys()


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ({"size": 32}, True),
        ({"images": "all"}, True),
        ({"batch_size": 8}, True),
        ({"layers": "output"}, True),
        ({}, False),
    ],
)
def test_what_changes_the_digits_changes_the_fingerprint(change: dict[str, Any], changes: bool) -> None:
    probe = {"alike": {"kind": "cka", "data": "d", "between": "method"} | change}
    assert (pairs_of(drive(study(probe=probe))[0]).keys() != pairs_of(drive(study())[0]).keys()) == changes


def test_a_pair_with_a_failed_side_is_blocked_and_the_others_run() -> None:
    def ends(stage: Stage) -> Outcome:
        diverges = isinstance(stage.settings, schema.Pretrain) and stage.settings.method.name == "byol"
        return Outcome("diverged", {}, "nan") if diverges else finished(stage)

    run, scheduler = drive(study(), ends)
    states = {methods_of(pair): scheduler.outcomes[key].state for key, pair in pairs_of(run).items()}
    assert states == {("simclr", "byol"): "blocked", ("byol", "moco-v3"): "blocked", ("simclr", "moco-v3"): "finished"}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_results_stand_under_both_cells_and_do_not_depend_on_timing(tmp_path: Path, seed: int) -> None:
    """Searches of the temperature end at different times, and so cells are confirmed in different orders."""
    levels = {
        name: {"pretrain.method": {"name": name, "temperature": {"log_uniform": [0.1, 0.4]}}}
        for name in ("simclr", "samclr", "moco-v3")
    }
    tune = {"trials": 2, "batch": 1, "pretrain": {"target": "pretext"}}
    made = study(factors={"method": levels}, tune=tune, report={"metrics": "probe/alike/samclr/output"})
    frames = []
    for task in (0, seed):
        run, scheduler = drive(made, seed=task)
        tables.write_results(made, run.replicates, scheduler.outcomes, Store(tmp_path / "store"), tmp_path)
        frames.append(load(tmp_path))
    assert frames[0].equals(frames[1])
    rows = frames[0][frames[0].metric.str.endswith("/output")]
    found = {(row["factor.method"], row.metric): row.value for _, row in rows[rows.seed == 0].iterrows()}
    assert len(rows) == 12
    for one in levels:
        for two in set(levels) - {one}:
            assert found[one, f"probe/alike/{two}/output"] == found[two, f"probe/alike/{one}/output"]


def test_the_plan_counts_each_pair_once() -> None:
    plan, _ = make_plan(study(), lambda data: "digest")
    assert plan.by_stage == {f"pretrain {name}": 2 for name in METHODS} | {"probe:alike": 6}
    assert (plan.stage_runs, plan.replicates, plan.stage_runs_without_sharing) == (12, 6, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": {"alike": {"kind": "cka", "data": "d", "between": "metod"}}},
         r"probe\.alike\.between: there is no factor 'metod' \(did you mean \"method\"\?\)"),
        ({"factors": {"method": {"simclr": {}}}}, r"the factor 'method' has no two levels to compare"),
        ({"report": {"metrics": "probe/alike/biol/output"}}, r"factor 'method' has no level 'biol'"),
        ({"report": {"metrics": "probe/alike/accuracy"}},
         r"'alike' does not report probe/alike/accuracy \(it reports probe/alike/LEVEL/output\)"),
        ({"probe": {"alike": {"kind": "knn", "data": "d"}}},
         r"'alike' does not report probe/alike/byol/output"),
        ({"tune": {"pretrain": {"target": "probe.alike"}}},
         r"the probe 'alike' gives a single pretraining no score"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(**changes)
