"""The plan: counts by hand, determinism, and warnings about too few seeds."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.plan import make_plan, searches_before
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run
from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import Study, from_dict

EIGHT_CELLS: dict[str, Any] = {
    "study": "eight",
    "data": {"d": {"dataset": "scenes", "images": 40, "cache_size": 32}},
    "model": {"widths": [4, 8]},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "views": {"size": 16}, "batch_size": 8, "steps": 5},
    "finetune": {"data": "d", "size": 32, "batch_size": 8, "steps": 5},
    "factors": {
        "encoder": {"unfrozen": {"finetune.freeze": "none"}, "frozen": {"finetune.freeze": "encoder"}},
        "skip": {"model.skip_connections": [True, False]},
        "labels": {"finetune.labels": ["all", "50%"]},
    },
    "seeds": {"report": 3},
}


def study(**changes: Any) -> Study:
    return from_dict(copy.deepcopy(EIGHT_CELLS) | changes)


def plan_of(chosen: Study, **kwargs: Any) -> dict[str, Any]:
    made, _ = make_plan(chosen, lambda data: "digest", **kwargs)
    return dataclasses.asdict(made)


def test_eight_cells_at_three_seeds_are_27_stage_runs_and_not_48() -> None:
    """24 fine-tunings (8 x 3) share 3 pretrainings, one per seed; unshared, 24 pretrainings and 24 fine-tunings."""
    plan = plan_of(study())
    assert (plan["cells"], plan["configurations"], plan["replicates"]) == (8, 8, 24)
    assert (plan["stage_runs"], plan["stage_runs_without_sharing"]) == (27, 48)
    assert plan["by_stage"] == {"pretrain simclr": 3, "finetune": 24}


def test_a_level_without_pretraining_needs_none() -> None:
    """2 levels x 3 seeds: 6 fine-tunings; only the pretrained level's 3 have a pretraining, and no two share one."""
    factors = {"start": {"random": {"finetune.transfer": "none"}, "pretrained": {"finetune.transfer": "encoder"}}}
    plan = plan_of(study(factors=factors))
    assert (plan["stage_runs"], plan["stage_runs_without_sharing"]) == (9, 9)


def test_nested_seeds_multiply_fine_tunings_alone() -> None:
    """2 pretrainings x 3 fine-tunings per cell: 2 + 8 x 6 stage runs; unshared 48 of each."""
    plan = plan_of(study(seeds={"report": {"pretrain": 2, "finetune": 3}}))
    assert plan["by_stage"] == {"pretrain simclr": 2, "finetune": 48}
    assert plan["stage_runs_without_sharing"] == 96


def test_a_search_is_counted_before_it_is_run() -> None:
    """One cell, 4 trials x 2 search seeds (8 + 8 stages), then 3 report seeds (3 + 3)."""
    data = copy.deepcopy(EIGHT_CELLS)
    data["pretrain"]["method"]["temperature"] = {"log_uniform": [0.1, 1.0]}
    data |= {"factors": {}, "tune": {"trials": 4, "batch": 2, "startup": 1}, "seeds": {"search": 2, "report": 3}}
    plan = plan_of(from_dict(data))
    assert plan["by_stage"] == {"pretrain simclr": 11, "finetune": 11}
    assert plan["replicates"] == 3
    assert 2 <= plan["configurations"] <= 4  # the chosen one was searched before


def test_a_plan_is_deterministic_and_its_fingerprints_depend_on_the_content_of_the_data() -> None:
    _, first = make_plan(study(), lambda data: "digest")
    _, again = make_plan(study(), lambda data: "digest")
    _, other = make_plan(study(), lambda data: "other")
    assert [stage.fingerprint for stage in first] == [stage.fingerprint for stage in again]
    assert {stage.fingerprint for stage in first}.isdisjoint(stage.fingerprint for stage in other)


def test_what_the_store_holds_is_counted() -> None:
    _, stages = make_plan(study(), lambda data: "digest")
    held = {stage.fingerprint for stage in stages[:5]}
    assert (
        plan_of(study(), find=lambda key: Outcome("finished", {"val/jaccard": 0.5}) if key in held else None)["stored"]
        == 5
    )
    assert plan_of(study())["stored"] is None


def test_the_json_form_has_the_keys_that_programs_read() -> None:
    plan = json.loads(json.dumps(plan_of(study())))
    wanted = {"cells", "configurations", "replicates", "stage_runs", "stage_runs_without_sharing"}
    assert wanted <= plan.keys()
    assert all(isinstance(plan[key], int) for key in wanted)


@pytest.mark.parametrize(
    ("seeds", "baseline", "expected"),
    [
        (1, {}, "one report seed: there will be no standard deviation"),
        (3, {"encoder": "unfrozen", "skip": True}, "above about 3.3 times their standard deviation over seeds"),
    ],
)
def test_too_few_seeds_are_said(seeds: int, baseline: dict[str, Any], expected: str) -> None:
    """Tables of power: a paired t-test of 3 pairs has power 0.8 from an effect size of 3.26."""
    warnings = plan_of(study(seeds={"report": seeds}, report={"baseline": baseline}))["warnings"]
    assert any(expected in warning for warning in warnings)


def test_six_seeds_are_enough_for_a_comparison() -> None:
    report = {"baseline": {"encoder": "unfrozen", "skip": True}}
    assert plan_of(study(seeds={"report": 6}, report=report))["warnings"] == ()


def test_the_settings_of_the_study_are_left_as_they_were() -> None:
    """The plan asks a random sampler; the study itself keeps its own."""
    chosen = study(tune={"sampler": "tpe"})
    make_plan(chosen, lambda data: "digest")
    assert chosen.header.tune == schema.Tune(sampler="tpe")


def lengths(**schedule: Any) -> str:
    body: dict[str, Any] = {"study": "s", "data": {"d": {"dataset": "scenes"}}, "seeds": {"report": 1}}
    body["pretrain"] = {"data": "d", "method": {"name": "simclr"}, "epochs": 1} | schedule
    body |= {"finetune": {"data": "d", "epochs": 1}, "factors": {"epochs": {"pretrain.epochs": [50, 100, 200]}}}
    return make_plan(from_dict(body), lambda data: "digest")[0].continuing


def test_the_plan_says_what_continuing_saves_and_why_it_cannot() -> None:
    assert lengths() == "longer trainings continue shorter ones: 200 epochs instead of 350"
    assert "because its cosine schedule depends on the length" in lengths(schedule={"name": "cosine"})
    assert "the momentum schedule of byol" in lengths(method={"name": "byol"})


def searched(**tune: Any) -> Any:
    body: dict[str, Any] = {"study": "s", "data": {"d": {"dataset": "scenes"}}, "seeds": {"search": 3, "report": 1}}
    body |= {"finetune": {"data": "d", "epochs": 9, "optimizer": {"lr": {"log_uniform": [0.001, 0.1]}}}, "tune": tune}
    return make_plan(from_dict(body), lambda data: "digest")[0]


def test_a_plan_of_a_race_is_an_upper_bound_and_says_so() -> None:
    plan = searched(trials=8, racing={"first": 2})
    assert plan.stage_runs == 8 * 3 + 1
    assert "this is the maximum number of stage runs: tune.racing may stop some earlier" in plan.warnings


def test_a_plan_counts_rungs_and_the_points_of_a_grid() -> None:
    assert searched(trials=8, rungs={"epochs": [1, 3], "keep": 0.5}, batch=8).stage_runs == (8 + 4 + 2) * 3 + 1
    assert searched(trials=8, sampler="grid", points=5).stage_runs == 5 * 3 + 1


# ------------------------------------------------------------------------------------------------------ any study

LEARNING_RATE = {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}}}
TUNES = st.fixed_dictionaries(
    {
        "sampler": st.sampled_from(["grid", "random", "qmc", "tpe", "cmaes", "genetic", "nsga2"]),
        "trials": st.integers(1, 5),
        "batch": st.integers(1, 3),
        "startup": st.integers(0, 3),
    },
    optional={
        "racing": st.fixed_dictionaries({"first": st.integers(1, 3)}),
        "rungs": st.fixed_dictionaries({"epochs": st.sampled_from([[1], [1, 2], [3]]), "keep": st.just(0.5)}),
        "top_k": st.integers(1, 3),
        "population": st.just(3),
    },
)
STUDIES = st.fixed_dictionaries(
    {
        "tune": TUNES,
        "seeds": st.fixed_dictionaries({"search": st.integers(1, 3), "report": st.integers(1, 2)}),
        "factors": st.sampled_from(
            [
                {"skip": {"model.skip_connections": [True, False]}},
                {"epochs": {"pretrain.epochs": [1, 2, 4]}},
                {"transfer": {"finetune.transfer": ["none", "encoder"]}},
            ]
        ),
        "schedule": st.sampled_from(["constant", "cosine"]),
        "ranges": st.sets(st.sampled_from(["pretrain", "finetune"])),
    }
)


@settings(max_examples=60, deadline=None)
@given(STUDIES)
def test_any_study_that_stands_can_be_planned_and_always_the_same(drawn: dict[str, Any]) -> None:
    body = copy.deepcopy(EIGHT_CELLS) | {key: drawn[key] for key in ("tune", "seeds", "factors")}
    for part in ("pretrain", "finetune"):
        del body[part]["steps"]
        body[part] |= {"epochs": 4, "schedule": {"name": drawn["schedule"]}}
        if part in drawn["ranges"]:
            body[part] |= copy.deepcopy(LEARNING_RATE)
    try:
        chosen = from_dict(body)
    except StudyError:
        assume(False)
    first, stages = make_plan(chosen, lambda data: "digest")
    second, again = make_plan(from_dict(copy.deepcopy(body)), lambda data: "digest")
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
    assert [stage.fingerprint for stage in stages] == [stage.fingerprint for stage in again]
    assert first.stage_runs == len({stage.fingerprint for stage in stages}) > 0


@pytest.mark.parametrize("racing", [None, {"first": 2}])
def test_the_plan_of_a_study_that_was_run_knows_what_its_searches_asked(tmp_path: Path, racing: Any) -> None:
    """TPE asks by scores; the journal says what it asked, so that a finished study costs nothing, more trials a few."""
    body = copy.deepcopy(EIGHT_CELLS) | {"factors": {}, "seeds": {"search": 4, "report": 2}}
    body["finetune"]["optimizer"] = {"lr": {"log_uniform": [1e-4, 1e-1]}}
    body["tune"] = {"trials": 8, "batch": 4, "startup": 2, "racing": racing}
    ran: dict[str, Outcome] = {}
    storage = open_storage(tmp_path / "optuna.journal")
    run = Run(from_dict(body), lambda data: "digest", storage)
    scheduler = Scheduler(ran.get, 0)
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        noise = int(stage.fingerprint[:4], 16) / 2**16 / 100
        lr = getattr(stage.settings.optimizer, "lr", 0.0)  # type: ignore[union-attr]
        ran[stage.fingerprint] = Outcome("finished", {"val/jaccard": -abs(math.log10(lr) + 2) + noise})
        scheduler.complete(stage, ran[stage.fingerprint])

    def plan(trials: int) -> dict[str, Any]:
        changed = body | {"tune": body["tune"] | {"trials": trials}}
        with searches_before(tmp_path) as asked:
            return plan_of(from_dict(changed), find=ran.get, searches=asked)

    before = (tmp_path / "optuna.journal").read_bytes()
    assert (plan(8)["stage_runs"], plan(8)["stored"]) == (len(ran), len(ran))
    longer = plan(12)
    assert longer["stage_runs"] - longer["stored"] <= 4 * 4 + 2  # four more configurations, and perhaps another best
    assert longer["stage_runs"] - longer["stored"] >= 4 * 2
    assert (tmp_path / "optuna.journal").read_bytes() == before
    assert plan_of(from_dict(body), find=ran.get)["stored"] < len(ran)  # without the journal nobody knows
