"""A search as an Optuna study: the same trials in one process and with kills in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from pretune.search.optuna_study import INDEX, Search, open_search, open_storage
from pretune.search.replicates import TrialResult
from pretune.search.samplers import sampler
from pretune.search_spaces import schema, space

TEMPLATE = {
    "lr": space.LogUniform(1e-4, 1e-1),
    "depth": space.Int(1, 5),
    "extra": space.Subset(("a", "b")),
    "method": space.Choice(({"name": "x", "temperature": space.Uniform(0.1, 1.0)}, {"name": "y"})),
}
TUNE = schema.Tune(trials=12, batch=3, startup=4, seed=7)


def _constraints(trial: FrozenTrial) -> list[float]:
    """What the sampler wrote down: Optuna 5 has an attribute for it, Optuna 4 a system attribute."""
    stored = getattr(trial, "constraints", None)
    return list(stored.values()) if stored is not None else list(trial.system_attrs["constraints"])


class KilledError(BaseException):
    pass


def suggest_all(suggest: space.Suggest) -> object:
    return space.fill(TEMPLATE, suggest)


def score(values: dict[str, Any]) -> float:
    return -abs(values["lr"] - 0.01) - abs(values["depth"] - 3)


def search_through(
    storage: optuna.storages.BaseStorage,
    kill_at: int | None = None,
    tune: schema.Tune = TUNE,
    told: Callable[[int], str] = lambda index: "complete",
) -> list[dict[str, Any]]:
    """Twelve trials in batches of three, as a program runs them; killed before the given trial, parameter or result."""
    search, asked, steps = open_search(storage, "s", tune, ["maximize"]), [], iter(range(10**6))

    def step() -> None:
        if next(steps) == kill_at:
            raise KilledError

    def stepwise(suggest: space.Suggest) -> object:
        def one(name: str, item: space.Range) -> Any:
            step()
            return suggest(name, item)

        return suggest_all(one)

    for first in range(0, tune.trials, tune.batch):
        batch = {}
        for i in range(first, min(first + tune.batch, tune.trials)):
            step()
            batch[i] = search.suggest(i, stepwise)
        asked += list(batch.values())
        for i, values in batch.items():
            step()
            how = told(i)
            search.tell(i, TrialResult(how, score(values) if how == "complete" else None))  # type: ignore[arg-type]
    return asked


def memory() -> optuna.storages.BaseStorage:
    return open_storage(None)


def infeasible_sometimes(index: int) -> str:
    return "infeasible" if index % 3 == 0 else "complete"


@settings(max_examples=25, deadline=None)
@given(kills=st.lists(st.integers(0, 75), min_size=1, max_size=3), diverging=st.booleans())
def test_a_search_that_is_killed_anywhere_goes_on_with_the_same_trials(kills: list[int], diverging: bool) -> None:
    told = infeasible_sometimes if diverging else lambda index: "complete"
    storage = memory()
    for kill_at in kills:
        try:
            search_through(storage, kill_at, told=told)
        except KilledError:
            continue
    assert search_through(storage, told=told) == search_through(memory(), told=told)


@pytest.mark.parametrize("kill_at", [13, 14, 20, 27, 31, 40])
@pytest.mark.parametrize("name", ["cmaes", "genetic"])
def test_a_kill_between_two_parameters_changes_no_population(name: str, kill_at: int) -> None:
    """The trial is failed and suggested again, under another number of Optuna's, which CMA-ES adds to its seed."""
    tune = schema.Tune.model_validate({"sampler": name, "trials": 12, "batch": 3, "startup": 1, "population": 3})
    storage = memory()
    with pytest.raises(KilledError):
        search_through(storage, kill_at, tune)
    assert search_through(storage, tune=tune) == search_through(memory(), tune=tune)


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_warm_start_that_is_killed_goes_on_with_the_rest(lost: int) -> None:
    """Of three stored trials, killed while number `lost` was under way (3: after all)."""
    earlier = [({"x": 0.25 * i}, float(i), ()) for i in range(3)]
    storage = memory()

    def visit(suggest: space.Suggest) -> object:
        return suggest("x", space.Uniform(0.0, 1.0))

    killed = open_search(storage, "s", TUNE, ["maximize"])
    killed.begin_with(earlier[:lost], visit, "of a test")
    if lost < len(earlier):
        killed.study.ask()
    again = open_search(storage, "s", TUNE, ["maximize"])
    again.begin_with(earlier, visit, "of a test")
    told = again.study.get_trials(states=(TrialState.COMPLETE,))
    assert [(trial.params, trial.value) for trial in told] == [(params, value) for params, value, _ in earlier]
    first = again.suggest(0, visit)
    whole = open_search(memory(), "s", TUNE, ["maximize"])
    whole.begin_with(earlier, visit, "of a test")
    assert first == whole.suggest(0, visit)
    started = open_search(storage, "s", TUNE, ["maximize"])
    started.begin_with([*earlier, ({"x": 0.9}, 9.0, ())], visit, "of a test")  # the store has more by now
    assert len(started.study.get_trials(states=(TrialState.COMPLETE,))) == len(earlier)


def test_a_journal_file_carries_a_search_over_processes(tmp_path: Path) -> None:
    path = tmp_path / "study" / "optuna.journal"
    with pytest.raises(KilledError):
        search_through(open_storage(path), 40)
    assert search_through(open_storage(path)) == search_through(memory())


def test_trials_depend_on_the_seed_and_on_the_search() -> None:
    other = TUNE.model_copy(update={"seed": 8})
    assert search_through(memory()) != search_through(memory(), tune=other)


def test_more_trials_extend_an_old_search() -> None:
    storage = memory()
    short = search_through(storage)
    longer = search_through(storage, tune=TUNE.model_copy(update={"trials": 15}))
    assert longer[:12] == short
    assert len(longer) == 15


def test_exactly_the_first_startup_trials_are_random() -> None:
    kinds = [type(sampler(TUNE, "s", index, suggest_all)).__name__ for index in range(6)]
    assert kinds == ["RandomSampler"] * 4 + ["TPESampler"] * 2
    assert type(sampler(schema.Tune(sampler="random"), "s", 50, suggest_all)).__name__ == "RandomSampler"


def test_results_reach_the_sampler_from_the_first_trial_after_startup_on() -> None:
    """The same trials up to there; other results, another trial."""

    def asked(sign: float) -> list[Any]:
        search = open_search(memory(), "s", TUNE, ["maximize"])
        found = []
        for i in range(5):
            values = search.suggest(i, suggest_all)
            search.tell(i, TrialResult("complete", sign * score(values)))
            found.append(values)
        return found

    good, bad = asked(1.0), asked(-1.0)
    assert good[:4] == bad[:4]
    assert good[4] != bad[4]


def ask_and_tell(search: Search, how: Sequence[str]) -> None:
    for i, told in enumerate(how):
        search.suggest(i, suggest_all)
        search.tell(i, TrialResult(told, float(i) if told == "complete" else None))  # type: ignore[arg-type]


@pytest.mark.parametrize("startup", [0, 2, 8])
def test_a_divergence_is_told_as_infeasible_also_while_trials_are_random(startup: int) -> None:
    """Optuna holds a constraint above 0 for a violated one."""
    search = open_search(memory(), "s", schema.Tune(startup=startup), ["maximize"])
    ask_and_tell(search, ["complete", "infeasible", "complete"])
    constraints = [list(_constraints(trial)) for trial in search.study.get_trials()]
    assert constraints == [[-1.0], [1e9], [-1.0]]


def test_the_best_trial_in_optunas_books_is_not_an_infeasible_one() -> None:
    search = open_search(memory(), "s", TUNE, ["minimize"])
    ask_and_tell(search, ["infeasible", "complete", "complete"])
    assert search.study.best_trial.user_attrs[INDEX] == 1


def test_a_crash_is_told_as_failed_and_its_trial_suggested_again_with_the_same_values() -> None:
    storage = memory()
    first = open_search(storage, "s", TUNE, ["maximize"])
    before = first.suggest(0, suggest_all)
    first.tell(0, TrialResult("failed", None))
    other = first.suggest(1, suggest_all)
    first.tell(1, TrialResult("complete", 0.5))
    assert [trial.state for trial in first.study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    again = open_search(storage, "s", TUNE, ["maximize"])
    assert again.suggest(0, suggest_all) == before
    assert again.suggest(1, suggest_all) == other
    again.tell(0, TrialResult("complete", 0.7))
    assert again.study.best_value == 0.7


def test_what_a_dead_process_left_running_is_taken_up_if_it_was_asked_whole() -> None:
    """With the number that it has; what was not asked whole is set to FAIL and asked again."""
    storage = memory()
    dead = open_search(storage, "s", TUNE, ["maximize"])
    values = copy.deepcopy(dead.suggest(0, suggest_all))
    dead.study.ask()  # killed before its parameters were drawn
    alive = open_search(storage, "s", TUNE, ["maximize"])
    states = [trial.state for trial in alive.study.get_trials()]
    assert states == [TrialState.RUNNING, TrialState.FAIL]
    assert alive.suggest(0, suggest_all) == values
    alive.tell(0, TrialResult("complete", 1.0))
    assert [trial.state for trial in alive.study.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL]


def test_a_finished_trial_is_not_told_again() -> None:
    storage = memory()
    ask_and_tell(open_search(storage, "s", TUNE, ["maximize"]), ["complete"] * 2)
    again = open_search(storage, "s", TUNE, ["maximize"])
    ask_and_tell(again, ["complete"] * 2)
    assert len(again.study.get_trials()) == 2


def test_a_branch_that_was_not_chosen_has_no_values() -> None:
    search = open_search(memory(), "s", TUNE, ["maximize"])
    asked = [copy.deepcopy(search.suggest(i, suggest_all)) for i in range(8)]
    assert {values["method"] for values in asked} == {0, 1}
    assert all(("method[x].temperature" in values) == (values["method"] == 0) for values in asked)
