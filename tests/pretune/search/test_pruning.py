"""Races, rungs, budgets, selection seeds, several targets: which trials a search runs and stops, and their results."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.racing import Noise, clearly_worse, residual
from pretune.search.replicates import Run, TrialRecord
from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage

BASE: dict[str, Any] = {
    "study": "s",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "finetune": {"data": "d", "epochs": 9, "optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}}},
    "seeds": {"search": 6, "report": 3},
    "tune": {"trials": 12, "batch": 4, "startup": 4, "sampler": "random"},
}
Score = Callable[[Stage], float]


def rate(stage: Stage) -> float:
    assert isinstance(stage.settings, schema.Finetune)
    return stage.settings.optimizer.lr


def luck(stage: Stage, what: str = "noise") -> float:
    """Standard normal, a function of the stage."""
    text = f"{what} {stage.streams['init']}" if what == "seed" else stage.fingerprint
    u = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
    return float(stats.norm.ppf(min(max(u, 1e-9), 1 - 1e-9)))


def by_rate(noise: float) -> Score:
    """Best at a rate of 0.01, with an effect of the seed that all configurations share, and noise."""
    return lambda stage: -abs(np.log10(rate(stage)) + 2) + 0.5 * luck(stage, "seed") + noise * luck(stage)


def drive(
    changes: dict[str, Any],
    score: Score,
    storage: optuna.storages.BaseStorage | None = None,
    order: int = 0,
    clock: Callable[[], float] = lambda: 0.0,
) -> tuple[Run, Scheduler]:
    data = copy.deepcopy(BASE)
    for key, value in changes.items():
        *path, last = key.split(".")
        part = data
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    run = Run(from_dict(data), lambda data: "digest", storage or open_storage(None))
    run.elapsed = clock
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(run))
    rng, held = np.random.default_rng(order), []
    while True:
        while (stage := scheduler.take()) is not None:
            held.append(stage)
            if order == 0:
                break
        if not held:
            break
        stage = held.pop(int(rng.integers(len(held))))
        value = score(stage)
        costs = {"cost/seconds": 10 * rate(stage)}
        scheduler.complete(stage, Outcome("finished", {"val/jaccard": value, "test/jaccard": value}, costs=costs))
    assert scheduler.finished
    return run, scheduler


def value_of(trial: TrialRecord) -> float:
    return float(next(iter(trial.values.values())))


def trials_of(run: Run) -> list[tuple[Any, ...]]:
    return [(a.index, tuple(a.values.items()), a.result) for a in sorted(run.trials, key=lambda a: a.index)]


def ended(run: Run, kind: str) -> list[TrialRecord]:
    return [trial for trial in run.trials if trial.result.state == kind]


# ----------------------------------------------------------------------------------------------------------- racing


def test_the_t_test_of_two_configurations_is_that_of_scipy() -> None:
    """With two rows and no other, pooling changes nothing: the paired t-test."""
    scores = np.array([[0.61, 0.58, 0.66, 0.60], [0.50, 0.49, 0.51, 0.52]])
    [(row, gap, p)] = clearly_worse(scores, residual(scores), 0.5)
    expected = stats.ttest_rel(scores[1], scores[0], alternative="less")
    assert row == 1
    assert gap == pytest.approx(float(scores[1].mean() - scores[0].mean()))
    assert p == pytest.approx(float(expected.pvalue), rel=1e-12)


def test_the_residual_is_that_of_the_two_way_model() -> None:
    scores = np.array([[1.0, 2.0, 4.0], [2.0, 5.0, 5.0]])
    # grand mean 19/6; rows 7/3, 4; columns 3/2, 7/2, 9/2
    left = [[1 / 3, -2 / 3, 1 / 3], [-1 / 3, 2 / 3, -1 / 3]]
    assert residual(scores).squares == pytest.approx(float(np.sum(np.square(left))))
    assert residual(scores).freedom == 2


@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_what_seeds_share_and_the_unit_do_not_matter(seed: int, shift: float, scale: float) -> None:
    scores = np.random.default_rng(seed).normal(size=(4, 3))
    moved = (scores + shift * np.array([0.0, 1.0, -2.0])) * scale
    first, second = clearly_worse(scores, residual(scores), 0.4), clearly_worse(moved, residual(moved), 0.4)
    assert [row for row, *_ in first] == [row for row, *_ in second]
    assert [p for *_, p in first] == pytest.approx([p for *_, p in second], rel=1e-6)


def test_an_equal_of_the_best_is_seldom_raced_out() -> None:
    """Over all looks together at most `alpha`: 800 races of one equal configuration against a known best."""
    rng, alpha, out = np.random.default_rng(0), 0.1, 0
    for _ in range(800):
        scores, dropped = rng.normal(size=(2, 6)), False
        for n in (2, 3, 4, 5):
            worse = clearly_worse(scores[:, :n], residual(scores[:, :n]), alpha / 4)
            dropped |= any(row == 1 for row, *_ in worse)
        out += dropped
    # which of the two is ahead is chance, so one-sided tests drop the second in about half of alpha at most; the bound
    # holds with three standard errors of a proportion
    assert out / 800 <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 800)


def test_a_race_gives_more_seeds_to_contenders_and_says_why_others_left() -> None:
    run, _ = drive({"tune.racing": {"first": 2}}, by_rate(0.02))
    partial, complete = ended(run, "partial"), ended(run, "complete")
    assert len(partial) >= 6
    assert complete
    assert all(len(trial.result.scores) == trial.result.reached < 6 for trial in partial)
    assert all(len(trial.result.scores) == 6 for trial in complete)
    assert all("raced out after" in trial.result.reason for trial in partial)
    searched = [use for use in run.replicates if use.phase == "search"]
    assert len(searched) == sum(len(trial.result.scores) for trial in run.trials)


def test_what_was_raced_out_is_told_as_pruned_and_adjusted_for_its_seeds() -> None:
    """The seeds have effects ten times the noise: a raw mean over two of them would be off by those."""
    storage = open_storage(None)
    run, _ = drive({"tune.racing": {"first": 2}}, by_rate(0.05), storage)
    [summary] = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()
    pruned = [trial for trial in trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(pruned) == len(ended(run, "partial")) > 0
    best = max(ended(run, "complete"), key=lambda trial: trial.result.value or -9)
    for told in pruned:
        trial = next(one for one in run.trials if one.index == told.user_attrs["pretune:index"])
        assert trial.result.value is not None
        [(step, value)] = told.intermediate_values.items()
        assert (step, value) == (trial.result.reached, trial.result.value)
        truth = -abs(np.log10(value_of(trial)) + 2) - -abs(np.log10(value_of(best)) + 2)
        assert trial.result.value - (best.result.value or 0) == pytest.approx(truth, abs=0.25)  # 5 noise sds


def test_a_race_finds_what_a_full_search_finds() -> None:
    """The best by its true score among what was asked: only seeds' effects are large."""
    run, _ = drive({"tune.racing": {"first": 2}}, by_rate(0.02))
    best = min(run.trials, key=lambda trial: abs(np.log10(value_of(trial)) + 2))
    assert {value for use in run.replicates if use.phase == "confirm" for value in use.values.values()} == {
        value_of(best)
    }


# ------------------------------------------------------------------------------------------------------------ rungs


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_halving_trains_a_third_of_each_batch_on(schedule: str) -> None:
    changes = {"tune.rungs": {"epochs": [1, 3]}, "tune.batch": 9, "tune.trials": 9, "seeds.search": 1}
    run, scheduler = drive(changes | {"finetune.schedule": {"name": schedule}}, by_rate(0.0))
    assert sorted(trial.result.reached for trial in run.trials) == [0] + [1] * 6 + [3] * 2
    assert all("not among the best" in trial.result.reason for trial in ended(run, "partial"))
    searched = [use.stages["finetune"] for use in run.replicates if use.phase == "search"]
    assert sorted(stage.reach for stage in searched) == [1] * 9 + [3] * 3 + [9]
    assert all(stage.keep_state for stage in searched if stage.reach < 9)
    whole = next(stage for stage in searched if stage.reach == 9)
    series = [stage for stage in searched if stage.series == whole.series]
    assert sorted(stage.reach for stage in series) == [1, 3, 9]
    if schedule == "cosine":  # a rung is the beginning of the long training, not a short training
        assert [stage.settings.epochs for stage in series] == [9, 9, 9]  # type: ignore[union-attr]
        assert [stage.until for stage in series] == [1, 3, None]
    else:
        assert [stage.settings.epochs for stage in series] == [1, 3, 9]  # type: ignore[union-attr]
    best = max(ended(run, "complete"), key=lambda a: a.result.value or -9)
    assert best.values == next(use.values for use in run.replicates if use.phase == "confirm")
    assert len(scheduler.outcomes) == 13 + 3


def test_the_median_rule_stops_what_is_below_the_median_of_all_so_far() -> None:
    rule = {"rule": "median", "epochs": [3]}
    run, _ = drive({"tune.rungs": rule, "tune.startup": 4, "seeds.search": 1}, by_rate(0.0))
    values = [(trial.index, trial.result) for trial in run.trials]
    known: list[float] = []
    for first in (0, 4, 8):
        batch = [result for index, result in values if first <= index < first + 4]
        known += [result.value for result in batch if result.value is not None]
        stopped = {result.value for result in batch if result.state == "partial"}
        assert stopped == {v.value for v in batch if v.value is not None and v.value < np.median(known)}


# ---------------------------------------------------------------------------------- selection, budgets, constraints


def test_selection_is_on_seeds_of_its_own() -> None:
    run, _ = drive({"tune.top_k": 3}, by_rate(1.0))
    seeds = {
        phase: {use.replicate.seed for use in run.replicates if use.phase == phase}
        for phase in ("search", "select", "confirm")
    }
    assert seeds["search"].isdisjoint(seeds["select"])
    assert seeds["confirm"].isdisjoint(seeds["search"] | seeds["select"])
    selected = [use for use in run.replicates if use.phase == "select"]
    means: dict[str, list[float]] = {}
    for use in selected:
        means.setdefault(use.configuration, []).append(by_rate(1.0)(use.stages["finetune"]))
    assert len(means) == 3
    winner = max(means, key=lambda name: float(np.mean(means[name])))
    assert {use.configuration for use in run.replicates if use.phase == "confirm"} == {winner}
    assert not any(use.stages["finetune"].on_test for use in selected)


def test_on_a_null_study_the_search_flatters_itself_and_the_confirmation_does_not() -> None:
    """All configurations are equal, noise only: the best of 12 means of 6 seeds has the expectation of the largest of
    12 normals with standard deviation 1/sqrt(6), a confirmed mean has 0. 60 studies; the noise of a mean over them is
    below 0.03 (search) and 0.08 (confirm, 3 seeds), and the tolerance is three of those."""
    found, confirmed = [], []
    for k in range(60):
        run, scheduler = drive({"tune.seed": k}, luck)
        found.append(max(trial.result.value or -9.0 for trial in run.trials))
        uses = [use.stages["finetune"].fingerprint for use in run.replicates if use.phase == "confirm"]
        confirmed.append(float(np.mean([scheduler.outcomes[key].metrics["test/jaccard"] for key in uses])))
    expected = float(np.mean(np.random.default_rng(0).normal(size=(20000, 12)).max(axis=1))) / np.sqrt(6)
    assert np.mean(found) == pytest.approx(expected, abs=0.09)
    assert np.mean(confirmed) == pytest.approx(0.0, abs=0.24)


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        ({"cell": {"trials": 6}}, 6),
        ({"study": {"trials": 8}}, 8),
        ({"cell": {"epochs": 9 * 6 * 4 + 1}}, 8),  # one batch is 4 x 6 seeds x 9 epochs; looked at between batches
        ({"cell": {"epochs": 1}}, 4),
        ({"study": {"hours": 1e-9}}, 4),
    ],
)
def test_a_budget_ends_the_search_and_the_confirmation_still_runs(budget: dict[str, Any], asked: int) -> None:
    ticks = iter(range(10**6))
    run, _ = drive({"tune.budget": budget}, by_rate(0.1), clock=lambda: float(next(ticks)))
    assert len(run.trials) == asked
    assert sum(use.phase == "confirm" for use in run.replicates) == 3
    assert run.notes if "trials" not in str(budget) else True


def test_two_searches_share_a_budget_evenly() -> None:
    factor = {"freeze": {"finetune.freeze": ["none", "encoder"]}}
    run, _ = drive({"factors": factor, "tune.budget": {"study": {"trials": 12}}}, by_rate(0.1))
    counts = [sum(trial.search == name for trial in run.trials) for name in {a.search for a in run.trials}]
    assert counts == [6, 6]


def test_a_search_that_ran_out_of_time_ends_at_the_same_trial_again() -> None:
    storage, ticks = open_storage(None), iter(range(10**6))
    changes = {"tune.budget": {"study": {"hours": 1 / 3600}}}
    first, _ = drive(changes, by_rate(0.1), storage, clock=lambda: float(next(ticks)))
    again, _ = drive(changes, by_rate(0.1), storage)  # this time no time passes at all
    assert trials_of(first) == trials_of(again)
    more, _ = drive({"tune.budget": {"study": {"hours": 1.0}}}, by_rate(0.1), storage)
    assert len(more.trials) == 12  # a raised budget goes on


def test_what_breaks_a_constraint_is_infeasible_and_never_chosen() -> None:
    run, _ = drive({"tune.constraints": {"cost/seconds": 0.05}}, by_rate(0.1))
    infeasible = ended(run, "infeasible")
    assert infeasible
    assert all(10 * value_of(trial) > 0.05 for trial in infeasible)
    assert all("cost/seconds above 0.05" in trial.result.reason for trial in infeasible)
    assert all(10 * rate(use.stages["finetune"]) <= 0.05 for use in run.replicates if use.phase == "confirm")


def test_a_cell_without_a_feasible_configuration_says_so() -> None:
    run, _ = drive({"tune.constraints": {"cost/seconds": 0.0}}, by_rate(0.1))
    assert "within the constraints" in run.messages[0]
    lowest = min(10 * value_of(trial) for trial in run.trials)
    assert f"(the nearest had cost/seconds {lowest:.4g}, above 0: loosen tune.constraints" in run.messages[0]
    assert not [use for use in run.replicates if use.phase == "confirm"]


# ---------------------------------------------------------------------------------------------------------- timing

WAYS: list[dict[str, Any]] = [
    {"tune.racing": {"first": 2}},
    {"tune.rungs": {"epochs": [1, 3]}},
    {"tune.rungs": {"epochs": [3], "rule": "median"}, "tune.sampler": "tpe"},
    {"tune.racing": {"first": 3, "step": 2}, "tune.sampler": "tpe", "tune.top_k": 2},
    {"tune.racing": {"first": 2}, "tune.sampler": "gp", "tune.trials": 8},
    {"tune.sampler": "genetic", "tune.population": 4},
    {"tune.sampler": "qmc"},
    {"tune.sampler": "grid", "tune.points": 7},
    {"tune.sampler": "gp", "tune.trials": 8},
    {
        "tune.sampler": "cmaes",
        "finetune.optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}, "weight_decay": {"uniform": [0.0, 0.1]}},
    },
    {"tune.sampler": "nsga2", "tune.also": ["cost/seconds"], "tune.population": 4},
]


@pytest.mark.parametrize("changes", WAYS, ids=lambda changes: " ".join(str(value) for value in changes.values()))
def test_nothing_depends_on_the_order_in_which_stages_end(changes: dict[str, Any]) -> None:
    expected, _ = drive(changes, by_rate(0.3))
    for order in (1, 2):
        run, _ = drive(changes, by_rate(0.3), order=order)
        assert trials_of(run) == trials_of(expected)
        assert [use.values for use in run.replicates if use.phase == "confirm"] == [
            use.values for use in expected.replicates if use.phase == "confirm"
        ]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("changes", WAYS, ids=lambda changes: " ".join(str(value) for value in changes.values()))
def test_a_search_killed_anywhere_goes_on_with_the_same_questions_and_results(changes: dict[str, Any]) -> None:
    expected, _ = drive(changes, by_rate(0.3))
    storage = open_storage(None)
    for limit in (5, 17, 40):
        count = iter(range(10**6))

        def killed(stage: Stage, count: Any = count, limit: int = limit) -> float:
            if next(count) == limit:
                raise KilledError
            return by_rate(0.3)(stage)

        try:
            drive(changes, killed, storage)
        except KilledError:
            continue
    run, _ = drive(changes, by_rate(0.3), storage)
    assert trials_of(run) == trials_of(expected)


def test_the_front_holds_what_nothing_beats() -> None:
    from pretune.results.tables import _search_row, on_front

    run, _ = drive({"tune.sampler": "nsga2", "tune.also": ["cost/seconds"], "tune.population": 4}, by_rate(0.0))
    rows = [_search_row(run, trial) for trial in run.trials]
    points = np.array([(row["value"], -row["also.cost/seconds"]) for row in rows])
    for row, point in zip(rows, points, strict=True):
        beaten = ((points >= point).all(axis=1) & (points > point).any(axis=1)).any()
        assert on_front(row, rows, run.study.header.tune) == (not beaten)


def test_the_record_names_options_and_what_went_on() -> None:
    from pretune.results.tables import _search_row

    changes = {"finetune.loss": {"choice": ["dice", "cross-entropy"]}, "tune.top_k": 3, "seeds.select": 2}
    run, _ = drive(changes, by_rate(0.3))
    rows = [_search_row(run, trial) for trial in run.trials]
    assert {json.loads(row["chosen"])["finetune.loss"] for row in rows} == {"dice", "cross-entropy"}
    assert sum(row["selected"] for row in rows) == 3
    [confirmed] = [row for row in rows if row["confirmed"]]
    assert confirmed["selected"]
    [losses] = {use.stages["finetune"].settings.loss for use in run.replicates if use.phase == "confirm"}  # type: ignore[union-attr]
    assert json.loads(confirmed["chosen"])["finetune.loss"] == losses


# ------------------------------------------------------------------------------------------------------- bad studies


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tune.racing": {"first": 6}}, "there are only 6 search seeds"),
        ({"tune.racing": {}, "tune.rungs": {"epochs": [1]}}, "both decide when to stop"),
        ({"tune.rungs": {"epochs": [3, 1]}}, "epochs must rise"),
        ({"tune.rungs": {"epochs": [9]}}, "not before the end of finetune"),
        ({"tune.sampler": "cmaes"}, "cmaes needs two ranges or more"),
        ({"tune.sampler": "cmaes", "finetune.loss": {"choice": ["dice", "cross-entropy"]}}, "cmaes searches numbers"),
        ({"tune.sampler": "bayes"}, "sampler"),
        ({"tune.also": ["val/jacard"], "tune.sampler": "nsga2"}, "no stage reports 'val/jacard'"),
        ({"tune.also": ["test/jaccard"], "tune.sampler": "nsga2"}, "tuning on the test set"),
        ({"tune.constraints": {"cost/minutes": 3}}, "no stage reports 'cost/minutes'"),
        ({"tune.also": ["val/jaccard"]}, "val/jaccard is the target already"),
        ({"tune.budget": {"study": {"hours": 1}, "cell": {"hours": 2}}}, "the whole study only 1"),
        ({"tune.budget": {"cell": {"trials": 50}}}, "is never used up"),
        ({"tune.top_k": 13}, "top_k 13 is above trials 12"),
        ({"tune.also": ["cost/seconds"], "tune.racing": {}}, "compares by one target"),
        ({"tune.racing": {}, "seeds.search": {"pretrain": 3, "finetune": 2}}, "a race compares independent seeds"),
        ({"tune.sampler": "genetic", "tune.racing": {}}, "breeds from whole trials alone"),
        ({"tune.sampler": "random", "tune.warm_start": True}, "learns nothing from earlier trials"),
    ],
)
def test_a_contradiction_is_named_before_anything_runs(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(StudyError) as error:
        drive(changes, by_rate(0.0))
    assert says in str(error.value)


def test_an_equal_is_seldom_raced_out_also_among_many() -> None:
    """All configurations are equal: of those asked, at most `alpha` leave (0.20 of 40 did before the correction for
    how many there are to be beaten by). 12 studies of 40; three standard errors of a proportion beside the bound."""
    out = asked = 0
    for k in range(12):
        run, _ = drive({"tune.racing": {"first": 2}, "tune.trials": 40, "tune.seed": k}, luck)
        out, asked = out + len(ended(run, "partial")), asked + len(run.trials)
    assert out / asked <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / asked)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_divergence_under_constraints_ends_no_search(name: str) -> None:
    def ends(stage: Stage) -> float:
        return math.nan if rate(stage) > 0.01 else by_rate(0.1)(stage)

    changes = {"tune.sampler": name, "tune.constraints": {"cost/seconds": 0.05}, "tune.trials": 8}
    run, _ = drive(changes, ends)
    assert len(run.trials) == 8
    assert ended(run, "infeasible")


def test_an_extended_study_runs_the_same_first_trials() -> None:
    """More seeds, another level: what was drawn at random is drawn again, so its stage runs are reused."""
    base, _ = drive({"tune.trials": 4}, by_rate(0.1))
    seeds, _ = drive({"tune.trials": 4, "seeds.search": 7}, by_rate(0.1))
    level, _ = drive({"tune.trials": 4, "factors": {"freeze": {"finetune.freeze": ["none", "encoder"]}}}, by_rate(0.1))
    asked = [trial.values for trial in base.trials]
    assert [trial.values for trial in seeds.trials] == asked
    for label in ("freeze=none", "freeze=encoder"):
        assert [trial.values for trial in level.trials if trial.cells == (label,)] == asked


def test_noise_adds_up() -> None:
    assert Noise(1.0, 2) + Noise(0.5, 3) == Noise(1.5, 5)
