"""What a study does, phase by phase, against invented outcomes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.pruning import Pruning
from pretune.search.replicates import ReplicatePlan, Run
from pretune.search_spaces import schema
from pretune.search_spaces.metrics import Bound
from pretune.search_spaces.resolve import Study, from_dict, load
from pretune.search_spaces.stages import Stage, replicates, stream_seed

BASE: dict[str, Any] = {
    "study": "s",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "batch_size": 8, "steps": 5},
    "finetune": {"data": "d", "steps": 5},
    "factors": {
        "encoder": {"unfrozen": {"finetune.freeze": "none"}, "frozen": {"finetune.freeze": "encoder"}},
        "skip": {"model.skip_connections": [True, False]},
    },
    "seeds": {"search": 2, "report": 3},
    "tune": {"trials": 4, "batch": 2, "startup": 4},
}
TEMPERATURE = ("pretrain.method.temperature", {"log_uniform": [0.1, 0.4]})
LEAF = "val/jaccard/leaf"
RATE = ("finetune.optimizer", {"lr": {"log_uniform": [1e-3, 1e-1]}})
Ends = Callable[[Stage], Outcome]


def study(*changes: tuple[str, Any]) -> Study:
    data = copy.deepcopy(BASE)
    for key, value in changes:
        *path, last = key.split(".")
        part = data
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    return from_dict(data)


def done(value: float = 0.5) -> Outcome:
    names = ("val/jaccard", "test/jaccard", "val/pretext_loss", "probe/accuracy")
    return Outcome("finished", dict.fromkeys(names, value))


def drive(chosen: Study, ends: Ends = lambda stage: done()) -> tuple[Run, Scheduler]:
    """Run a study's programs, one stage after the other."""
    run = Run(chosen, lambda data: "digest", open_storage(None))
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        scheduler.complete(stage, ends(stage))
    assert scheduler.finished
    return run, scheduler


def of_phase(run: Run, phase: str) -> list[ReplicatePlan]:
    return [use for use in run.replicates if use.phase == phase]


def temperature(stage: Stage) -> float:
    pretrain = stage if stage.kind == "pretrain" else stage.parent
    assert pretrain is not None
    assert isinstance(pretrain.settings, schema.Pretrain)
    assert isinstance(pretrain.settings.method, schema.SimCLR)
    return pretrain.settings.method.temperature


def rate(stage: Stage) -> float:
    assert isinstance(stage.settings, schema.Finetune)
    return stage.settings.optimizer.lr


# ------------------------------------------------------------------------------------------------------- phases


def test_a_study_without_ranges_goes_straight_to_confirm() -> None:
    """4 cells x 3 seeds; one encoder serves all four: 3 pretrainings and 12 fine-tunings."""
    run, scheduler = drive(study())
    assert of_phase(run, "search") == []
    assert len(of_phase(run, "confirm")) == 12
    assert len(scheduler.outcomes) == 15


def test_the_test_set_is_measured_in_confirm_alone_and_with_seeds_of_its_own() -> None:
    run, _ = drive(study(TEMPERATURE, RATE))
    for use in run.replicates:
        assert use.stages["finetune"].on_test == (use.phase == "confirm")
    seeds = {phase: {use.replicate.seed for use in of_phase(run, phase)} for phase in ("search", "confirm")}
    assert seeds == {"search": {1000, 1001}, "confirm": {0, 1, 2}}


def test_one_search_of_the_pretraining_serves_all_cells() -> None:
    """Its 4 trials are 4 temperatures at 2 seeds for all 4 cells; all cells confirm with the same one."""
    run, _ = drive(study(TEMPERATURE), lambda stage: done(-abs(temperature(stage) - 0.2)))
    searched = {use.values["pretrain.0.method.temperature"] for use in of_phase(run, "search")}
    assert len(searched) == 4
    assert len(of_phase(run, "search")) == 4 * 2 * 4
    pretrainings = {use.stages["pretrain"].fingerprint for use in of_phase(run, "search")}
    assert len(pretrainings) == 4 * 2
    best = min(searched, key=lambda t: abs(t - 0.2))
    assert {use.values["pretrain.0.method.temperature"] for use in of_phase(run, "confirm")} == {best}


def test_while_the_pretraining_is_searched_fine_tuning_stands_at_its_centre() -> None:
    """The geometric centre of 1e-3 to 1e-1 is 1e-2."""
    run, _ = drive(study(TEMPERATURE, RATE))
    early = [use for use in run.replicates if use.phase == "search" and "finetune.optimizer.lr" not in use.values]
    assert len(early) == 4 * 2 * 4
    assert [rate(use.stages["finetune"]) for use in early] == pytest.approx([1e-2] * len(early))


def test_fine_tuning_is_searched_in_every_cell_on_the_pretraining_found_before() -> None:
    """The best rate differs between frozen and unfrozen cells, and each confirms its own."""

    def ends(stage: Stage) -> Outcome:
        if stage.kind == "pretrain":
            return done()
        assert isinstance(stage.settings, schema.Finetune)
        aim = 0.002 if stage.settings.freeze == "encoder" else 0.05
        return done(-abs(math.log(rate(stage) / aim)) - abs(temperature(stage) - 0.2))

    run, _ = drive(study(TEMPERATURE, RATE), ends)
    confirmed = {use.cell.label: use for use in of_phase(run, "confirm")}
    assert len({use.values["pretrain.0.method.temperature"] for use in confirmed.values()}) == 1
    for label, use in confirmed.items():
        own = [u for u in of_phase(run, "search") if u.cell.label == label and "finetune.optimizer.lr" in u.values]
        assert {u.stages["pretrain"].parent for u in own} == {None}
        assert {temperature(u.stages["finetune"]) for u in own} == {use.values["pretrain.0.method.temperature"]}
        aim = 0.002 if "encoder=frozen" in label else 0.05
        rates = {u.values["finetune.optimizer.lr"] for u in own}
        assert len(rates) == 4
        assert use.values["finetune.optimizer.lr"] == min(rates, key=lambda r: abs(math.log(r / aim)))


def test_named_cells_alone_can_score_the_pretraining() -> None:
    run, _ = drive(study(TEMPERATURE, ("tune.pretrain", {"cells": {"encoder": "frozen", "skip": True}})))
    assert {use.cell.label for use in of_phase(run, "search")} == {"encoder=frozen skip=true"}
    assert len({use.cell.label for use in of_phase(run, "confirm")}) == 4


@pytest.mark.parametrize("direction", [None, "maximize"])
def test_the_pretext_target_takes_the_lowest_loss_and_runs_no_fine_tuning(direction: str | None) -> None:
    """`tune.direction` speaks of tune.target, not of the pretext loss."""
    changes = [("tune.pretrain", {"target": "pretext"}), ("tune.direction", direction)]
    run, scheduler = drive(study(TEMPERATURE, *changes), lambda stage: done(temperature(stage)))
    searched = of_phase(run, "search")
    assert not any(use.stages["finetune"].fingerprint in scheduler.outcomes for use in searched)
    lowest = min(use.values["pretrain.0.method.temperature"] for use in searched)
    assert {use.values["pretrain.0.method.temperature"] for use in of_phase(run, "confirm")} == {lowest}


@pytest.mark.parametrize("direction", [None, "minimize"])
def test_a_probe_target_takes_the_highest_accuracy_whatever_tunes_the_rest(direction: str | None) -> None:
    changes = [
        ("probe", {"p": {"kind": "knn", "data": "d"}}),
        ("tune.pretrain", {"target": "probe.p"}),
        ("tune.direction", direction),
    ]
    run, _ = drive(study(TEMPERATURE, *changes), lambda stage: done(temperature(stage)))
    highest = max(use.values["pretrain.0.method.temperature"] for use in of_phase(run, "search"))
    assert {use.values["pretrain.0.method.temperature"] for use in of_phase(run, "confirm")} == {highest}


# ------------------------------------------------------------------------------------------------ batches, failure


def test_questions_are_asked_in_batches_of_a_fixed_size() -> None:
    """5 trials in batches of 2: nothing of a batch is asked before the one before has ended whole."""
    chosen = study(TEMPERATURE, ("factors", {}), ("tune.trials", 5), ("seeds.search", 1))
    run = Run(chosen, lambda data: "digest", open_storage(None))
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(run))
    asked = []
    while (stage := scheduler.take()) is not None:
        asked.append(len({use.configuration for use in of_phase(run, "search")}))
        scheduler.complete(stage, done())
    # a batch of two is 2 pretrainings and 2 fine-tunings; confirm is 3 and 3
    assert asked == [2] * 4 + [4] * 4 + [5] * 2 + [5] * 6


def test_a_configuration_that_fails_at_one_seed_is_never_chosen() -> None:
    """The lowest temperature would win on its surviving seed."""
    lowest: list[float] = []

    def ends(stage: Stage) -> Outcome:
        lowest.append(temperature(stage))
        if temperature(stage) == min(lowest) and stage.kind == "finetune" and stage.streams["init"] % 2:
            return Outcome("diverged", {}, "loss is nan at step 3")
        return done(1.0 / temperature(stage))

    run, scheduler = drive(study(TEMPERATURE), ends)
    failed = {
        use.values["pretrain.0.method.temperature"]
        for use in of_phase(run, "search")
        if scheduler.outcomes[use.stages["finetune"].fingerprint].state != "finished"
    }
    whole = {use.values["pretrain.0.method.temperature"] for use in of_phase(run, "search")} - failed
    confirmed = {use.values["pretrain.0.method.temperature"] for use in of_phase(run, "confirm")}
    assert failed
    assert confirmed == ({min(whole)} if whole else set())


@pytest.mark.parametrize("state", ["crashed", "diverged"])
def test_a_search_without_a_whole_configuration_says_so_and_confirms_nothing(state: Any) -> None:
    def ends(stage: Stage) -> Outcome:
        return Outcome(state, {}, "no") if stage.kind == "finetune" else done()

    run, _ = drive(study(TEMPERATURE), ends)
    assert of_phase(run, "confirm") == []
    expected = (
        "search of pretrain for encoder=unfrozen skip=true and encoder=unfrozen skip=false ...: no configuration of 4 "
        "finished with a finite val/jaccard in all its replicates; nothing to confirm"
    )
    assert run.messages == [expected]


def test_one_cell_without_a_configuration_does_not_take_the_others_down() -> None:
    def ends(stage: Stage) -> Outcome:
        frozen = isinstance(stage.settings, schema.Finetune) and stage.settings.freeze == "encoder"
        return Outcome("diverged", {}, "no") if frozen else done()

    run, _ = drive(study(RATE), ends)
    assert {use.cell.levels["encoder"] for use in of_phase(run, "confirm")} == {"unfrozen"}
    assert len(run.messages) == 2


def test_a_target_that_a_stage_does_not_report_is_said_and_not_a_traceback() -> None:
    """A class that no validation image shows has no score."""
    run, _ = drive(study(RATE), lambda stage: Outcome("finished", {"val/dice": 0.5}))
    assert of_phase(run, "confirm") == []
    assert len(run.messages) == 4
    assert "with a finite val/jaccard" in run.messages[0]


def outcome(state: Any, value: float = 0.5, root: str = "") -> Outcome:
    return Outcome(state, {LEAF: value} if state == "finished" else {}, "", root)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([outcome("finished", 0.2), outcome("finished", 0.4)], ("complete", 0.3)),
        ([outcome("finished"), outcome("crashed")], ("failed", None)),
        ([outcome("finished"), outcome("blocked", root="crashed")], ("failed", None)),
        ([outcome("finished"), outcome("diverged")], ("infeasible", None)),
        ([outcome("finished"), outcome("blocked", root="diverged")], ("infeasible", None)),
        ([outcome("diverged"), outcome("crashed")], ("failed", None)),
        ([outcome("finished", math.nan), outcome("finished")], ("infeasible", None)),
        ([outcome("finished", math.inf), outcome("finished")], ("infeasible", None)),
        ([Outcome("finished", {}), outcome("finished", 0.2)], ("complete", 0.2)),
        ([Outcome("finished", {}), Outcome("finished", {})], ("unscored", None)),
        ([Outcome("finished", {}), outcome("diverged")], ("infeasible", None)),
        ([Outcome("finished", {}), outcome("crashed")], ("failed", None)),
    ],
)
def test_what_is_told_of_a_configuration(outcomes: Sequence[Outcome], expected: tuple[str, float | None]) -> None:
    """A configuration of two search seeds. A replicate without a score in the target is no part of the mean."""
    chosen = study(RATE, ("factors", {}), ("tune.target", LEAF), ("tune.trials", 1))
    at = {seed.seed: end for seed, end in zip(replicates(chosen.header.seeds, "search"), outcomes, strict=True)}
    run = Run(chosen, lambda data: "digest", open_storage(None))
    pruning = Pruning(run, "finetune", chosen.cells, lambda plan: (plan.stages["finetune"], LEAF), 1.0)
    plans = run.plan_replicates("search", chosen.cells[0], {}, replicates(chosen.header.seeds, "search"))
    result = pruning.result_of(plans, {p.stages["finetune"].fingerprint: at[p.replicate.seed] for p in plans})
    assert result.state == expected[0]
    assert result.value == (None if expected[1] is None else pytest.approx(expected[1]))


# ------------------------------------------------------------------------------------- no score is not infeasible


def leaf_scores(of: Callable[[Stage], float | None]) -> Ends:
    """A study whose target is a class that `of` gives no score in some runs."""

    def ends(stage: Stage) -> Outcome:
        value = of(stage) if stage.kind == "finetune" else None
        return Outcome("finished", {"val/jaccard": 0.5} | ({} if value is None else {LEAF: value}))

    return ends


def tuned_by_leaf(trials: int = 4, **tune: Any) -> Study:
    settings = {"trials": trials, "batch": 2, "startup": 4, "target": LEAF} | tune
    return study(RATE, ("factors", {}), ("seeds", {"search": 3, "report": 2}), ("tune", settings))


def seed_number(chosen: Study, stage: Stage) -> int:
    """0, 1, 2: which search seed a fine-tuning is of."""
    seeds = replicates(chosen.header.seeds, "search")
    return next((i for i, s in enumerate(seeds) if stage.streams["init"] == stream_seed("init", s.seed)), 0)


@given(
    found=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=4, max_size=4),
    careful=st.lists(st.booleans(), min_size=4, max_size=4),
    present=st.lists(st.booleans(), min_size=3, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_predicting_no_leaf_where_there_is_none_is_never_worse_than_predicting_one(
    found: list[float], careful: list[bool], present: list[bool]
) -> None:
    """Trials of which each scores `found` where the truth has a leaf; elsewhere a careful one has no score, others 0.

    The confirmed trial is never a careless one where a careful one finds as much; and none is infeasible.
    """
    chosen = tuned_by_leaf()
    order: dict[float, int] = {}

    def score(stage: Stage) -> float | None:
        trial = order.setdefault(rate(stage), len(order))
        if trial >= 4 or present[seed_number(chosen, stage)]:
            return found[trial % 4]
        return None if careful[trial] else 0.0

    run, _ = drive(chosen, leaf_scores(score))
    assert {trial.result.state for trial in run.trials} <= {"complete", "unscored"}
    confirmed = {order[next(iter(plan.values.values()))] for plan in of_phase(run, "confirm")}
    assert len(confirmed) == 1
    (best,) = confirmed
    for other in range(4):
        if careful[other] and not careful[best]:
            assert found[best] > found[other] or found[best] == found[other] == 0 or all(present)


def test_where_no_trial_can_have_a_score_one_is_confirmed_and_it_is_said() -> None:
    run, _ = drive(tuned_by_leaf(), leaf_scores(lambda stage: None))
    assert {trial.result.state for trial in run.trials} == {"unscored"}
    assert {plan.values["finetune.optimizer.lr"] for plan in of_phase(run, "confirm")} == {
        run.trials[0].values["finetune.optimizer.lr"]
    }
    assert run.messages == []
    assert any(
        "no validation image of the search seeds has the class of val/jaccard/leaf" in note for note in run.notes
    )


def test_an_unscored_trial_is_told_to_no_sampler_and_the_search_goes_on_alike_after_a_restart() -> None:
    chosen, first = tuned_by_leaf(sampler="tpe", startup=1), list[float]()

    def score(stage: Stage) -> float | None:
        first.append(rate(stage)) if rate(stage) not in first else None
        return None if first.index(rate(stage)) == 1 else rate(stage)

    run, _ = drive(chosen, leaf_scores(score))
    (found,) = run.storage.get_all_studies()
    states = [trial.state.name for trial in run.storage.get_all_trials(found._study_id)]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    again = Run(chosen, lambda data: "digest", run.storage)
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(again))
    while (stage := scheduler.take()) is not None:
        scheduler.complete(stage, leaf_scores(score)(stage))
    assert [(t.values, t.result) for t in again.trials] == [(t.values, t.result) for t in run.trials]


@pytest.mark.parametrize(
    "tune", [{"racing": {"first": 2}}, {"rungs": {"epochs": [2]}}, {"top_k": 2}], ids=["race", "rungs", "top_k"]
)
def test_trials_without_a_score_go_through_races_rungs_and_selection(tune: dict[str, Any]) -> None:
    """Seed 0 has no leaf at all: no trial has a score there, and the best at the other seeds is confirmed."""
    settings = {"trials": 4, "batch": 4, "target": LEAF} | tune
    chosen = study(
        ("finetune", {"data": "d", "epochs": 5}), RATE, ("factors", {}), ("seeds", {"search": 3, "report": 2}),
        ("tune", settings),
    )  # fmt: skip
    run, _ = drive(
        chosen,
        leaf_scores(lambda stage: None if stage.streams["init"] == stream_seed("init", 1000) else rate(stage)),
    )
    assert "infeasible" not in {trial.result.state for trial in run.trials}
    whole = [t for t in run.trials if t.result.state == "complete"]
    assert all(math.isnan(trial.result.scores[0]) for trial in whole)
    assert all("no score at 1 of 3 seeds" in trial.result.reason for trial in whole)
    highest = max(trial.values["finetune.optimizer.lr"] for trial in run.trials)
    assert {plan.values["finetune.optimizer.lr"] for plan in of_phase(run, "confirm")} == {highest}


@pytest.mark.parametrize(
    ("bound", "values", "over", "side"),
    [
        (Bound("cost/seconds", 600), [500.0, 700.0], 100.0, "above 600"),
        (Bound("val/recall/leaf", 0.9), [0.95, 0.7], 0.2, "below 0.9"),
        (Bound("val/recall/leaf", 0.9), [0.95, 0.92], -0.02, "below 0.9"),
        (Bound("val/pretext_loss", 1.0), [0.5], -0.5, "above 1"),
    ],
)
def test_a_constraint_bounds_the_side_on_which_a_metric_is_worse(
    bound: Bound, values: list[float], over: float, side: str
) -> None:
    assert (bound.excess(values), bound.side) == (pytest.approx(over), side)


def test_a_score_that_falls_below_its_constraint_is_infeasible() -> None:
    chosen = study(
        RATE, ("factors", {}), ("seeds", {"search": 2, "report": 2}),
        ("tune", {"trials": 4, "batch": 2, "sampler": "random", "constraints": {"val/recall": 0.02}}),
    )  # fmt: skip

    def ends(stage: Stage) -> Outcome:
        return Outcome("finished", {"val/jaccard": 0.5, "val/recall": rate(stage) if stage.kind == "finetune" else 0.0})

    run, _ = drive(chosen, ends)
    for trial in run.trials:
        within = trial.values["finetune.optimizer.lr"] >= 0.02
        assert (trial.result.state, trial.result.reason) == (
            ("complete", "") if within else ("infeasible", "val/recall below 0.02")
        )


def test_the_score_of_a_configuration_is_its_mean_over_cells_and_seeds() -> None:
    """Optuna is told the mean over 4 cells x 2 seeds."""
    run, scheduler = drive(study(TEMPERATURE), lambda stage: done(int(stage.fingerprint[:4], 16) / 65536))
    (name,) = [s.study_name for s in run.storage.get_all_studies()]
    values = [t.value for t in run.storage.get_all_trials(run.storage.get_study_id_from_name(name))]
    scores: dict[float, list[float]] = {}
    for use in of_phase(run, "search"):
        value = scheduler.outcomes[use.stages["finetune"].fingerprint].metrics["val/jaccard"]
        scores.setdefault(use.values["pretrain.0.method.temperature"], []).append(value)
    assert values == pytest.approx([np.mean(found) for found in scores.values()])


# --------------------------------------------------------------------------------------- which search is which


def names_of(chosen: Study) -> set[str]:
    run, _ = drive(chosen)
    return {found.study_name for found in run.storage.get_all_studies()}


def test_more_trials_continue_a_search_and_any_other_change_starts_a_new_one() -> None:
    old = names_of(study(TEMPERATURE))
    assert names_of(study(TEMPERATURE, ("tune.trials", 6))) == old
    assert names_of(study(TEMPERATURE, ("question", "another"))) == old
    assert names_of(study(TEMPERATURE, ("seeds.report", 2))) == old
    assert names_of(study(TEMPERATURE, ("pretrain.steps", 6))).isdisjoint(old)
    assert names_of(study(TEMPERATURE, ("seeds.search", 3))).isdisjoint(old)
    assert names_of(study(TEMPERATURE, ("tune.target", "val/dice"))).isdisjoint(old)


RARE = Path(__file__).parents[4] / "shared" / "cases" / "tune-on-rare-class" / "study.yaml"


@pytest.mark.skipif(not RARE.is_file(), reason="needs ../shared/cases")
def test_the_case_of_a_rare_class_tells_no_trial_infeasible() -> None:
    """Scores that the case gave: one image of 12 has a leaf, and the third trial predicts none at the last seed."""
    chosen, order = load(RARE, None, ()), list[float]()
    scores = [[0.0, 0.0326, 0.0], [0.0, 0.0326, 0.0], [0.0, 0.0, None]]

    def score(stage: Stage) -> float | None:
        if rate(stage) not in order:
            order.append(rate(stage))
        return scores[order.index(rate(stage))][seed_number(chosen, stage)]

    run, _ = drive(chosen, leaf_scores(score))
    told = [(trial.result.state, trial.result.value, trial.result.reason) for trial in run.trials]
    assert told[:2] == [("complete", pytest.approx(0.0326 / 3), "")] * 2
    assert told[2] == ("complete", 0.0, "no score at 1 of 3 seeds")
    assert run.messages == []
