"""A search as an Optuna study: suggestions, trial results, and where both are stored.

What is suggested depends on the study's seed, the search's name, the trial's index and the trial results before it,
never on timing: the sampler is made anew for each trial. So a search that was killed continues with the same trials.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from pretune.errors import SearchStorageError
from pretune.search.optuna_internals import continued_trial, open_journal
from pretune.search.replicates import TrialResult, Values
from pretune.search.samplers import OVER, Params, SearchSampler, SpaceVisitor, fixed, sampler, suggested, values_from
from pretune.search_spaces import schema, space
from pretune.search_spaces.metrics import Direction
from pretune.search_spaces.words import counted

INDEX = "pretune:index"  # user attributes of an Optuna trial
SEEN_BEFORE = "pretune:warm start"
ENDED = "pretune:ended"  # of an Optuna study: after how many trials a budget ended it, and which

DIVERGED = 1e9  # above any violation that is measured
DATABASES = ("sqlite", "postgresql", "mysql")


@dataclass
class Search:
    """The trials of one search, held by an Optuna study. A trial's index counts from 0 in the order of the search."""

    study: optuna.Study
    sampler: SearchSampler  # the study's
    name: str  # without what only tells studies in one database apart: it seeds the sampler
    tune: schema.Tune
    finished: dict[int, FrozenTrial]  # by index: trials that Optuna has the result of
    running: dict[int, optuna.Trial]  # by index: trials that an ended process left without a result
    failed: dict[int, Params]  # by index: parameters of trials whose stage runs crashed or have no score
    suggested: dict[int, optuna.Trial] = field(default_factory=dict)  # by this process, without a result yet
    preferred: int = 0  # trials in which another than the first suggestion was taken

    def suggest(self, index: int, visit: SpaceVisitor, wanted: Callable[[Values], bool] | None = None) -> Values:
        """The values of trial `index`: those of the storage if it was suggested before, else the sampler's.

        A running trial is continued as it is, with its number and whatever the sampler noted with it: were it suggested
        again, results of its own batch would be known by now and could change it.

        Args:
            index: 0, 1, 2, ...
            visit: calls the function that it is given for every range of the space.
            wanted: whether a suggestion is to be preferred; the first of `tune.prefer_stored` that is, is taken.
        """
        if index in self.finished:
            return values_from(self.finished[index].params, visit)
        if index in self.running:
            self.suggested[index] = self.running.pop(index)
            return values_from(self.suggested[index].params, visit)
        if index in self.failed:
            again = fixed(self.failed[index], sampler(self.tune, self.name, index, visit))
            return self._keep(index, *self._draw(index, again, visit))
        trial, values = self._draw(index, sampler(self.tune, self.name, index, visit), visit)
        if wanted is not None and self.tune.prefer_stored is not None and not wanted(values):
            trial, values = self._preferred(index, visit, wanted, (trial, values))
        return self._keep(index, trial, values)

    def _preferred(
        self, index: int, visit: SpaceVisitor, wanted: Callable[[Values], bool], first: tuple[optuna.Trial, Values]
    ) -> tuple[optuna.Trial, Values]:
        """The first further suggestion that is wanted, else the one before."""
        for attempt in range(1, self.tune.prefer_stored or 1):
            trial, values = self._draw(index, sampler(self.tune, self.name, index, visit, attempt), visit)
            if wanted(values):
                self.study.tell(first[0], state=TrialState.FAIL)
                self.preferred += 1
                return trial, values
            self.study.tell(trial, state=TrialState.FAIL)
        return first

    def _draw(
        self, index: int, drawn_by: optuna.samplers.BaseSampler, visit: SpaceVisitor
    ) -> tuple[optuna.Trial, Values]:
        self.sampler.draw_next(drawn_by, index)
        trial = self.study.ask()
        return trial, suggested(space.suggest_from(trial), visit)

    def _keep(self, index: int, trial: optuna.Trial, values: Values) -> Values:
        trial.set_user_attr(INDEX, index)  # last: a trial that carries it was suggested whole, and is kept
        self.suggested[index] = trial
        return values

    def tell(self, index: int, result: TrialResult) -> None:
        """Give Optuna the result of trial `index`.

        One that broke a constraint is told with its value and by how much, in shares of the bound. One that diverged is
        pruned without a value, and violates more than anything measured. A partial one is pruned, with its value as an
        intermediate one. A failed one has no result, and its values are suggested again by the next process. So has one
        without any score (`unscored`): samplers take no notice of it, neither as good nor as bad.
        """
        if index in self.finished:
            return
        trial = self.suggested.pop(index)
        if result.state in ("failed", "unscored"):
            self.study.tell(trial, state=TrialState.FAIL)
            return
        diverged = result.state == "infeasible" and result.value is None
        trial.set_user_attr(OVER, violations(self.tune, result, diverged))
        if result.state == "partial" and result.value is not None:
            trial.report(result.value, result.reached)
        if result.state == "partial" or diverged:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            assert result.value is not None
            self.study.tell(trial, [result.value, *result.also])

    def ended(self, budget: str) -> int | None:
        """After how many trials an earlier run of the same budget ended, if one did."""
        found = self.study.user_attrs.get(ENDED)
        return int(found["asked"]) if found and found["budget"] == budget else None

    def end(self, trials: int, budget: str) -> None:
        """Note where the budget ended: one in time ends elsewhere each time, and a rerun must give the same table."""
        self.study.set_user_attr(ENDED, {"asked": trials, "budget": budget})

    def begin_with(
        self, earlier: Sequence[tuple[Params, float, Sequence[float]]], visit: SpaceVisitor, scores: str
    ) -> str:
        """Tell the sampler of configurations that other studies measured; how many it knows, as a sentence.

        They count as random trials (`tune.startup`), and the sampler draws from a stream of its own: it would suggest
        some of them again.

        Args:
            earlier: parameters, target, and by how much each constraint was exceeded.
            scores: what scores they are.
        """
        if not self.finished and not self.running and not self.failed:
            self.study.set_user_attr(SEEN_BEFORE, scores)
            for params, value, over in earlier[self._seen_before() :]:
                trial, _ = self._draw(0, fixed(params, optuna.samplers.RandomSampler(seed=0)), visit)
                trial.set_user_attr(SEEN_BEFORE, True)
                trial.set_user_attr(
                    OVER, violations(self.tune, TrialResult("complete", value, over=tuple(over)), False)
                )
                self.study.tell(trial, value)
        taken, scores = self._seen_before(), str(self.study.user_attrs.get(SEEN_BEFORE, scores))
        if not taken:
            return scores
        self.name = f"{self.name} after {taken}"
        self.tune = self.tune.model_copy(update={"startup": max(0, self.tune.startup - taken)})
        return f"warm start: {counted(taken, 'stored trial')} added to the sampler ({scores}), not counted as trials"

    def _seen_before(self) -> int:
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sum(SEEN_BEFORE in trial.user_attrs for trial in ended)


def open_storage(where: Path | str | None) -> BaseStorage:
    """A journal file, a database by its URL, or memory where `where` is None.

    Raises:
        SearchStorageError: a database that cannot be reached or is not one of Optuna's.
    """
    if where is None:
        return InMemoryStorage()
    if isinstance(where, str):
        return _open_database(where)
    return open_journal(where)


def _open_database(url: str) -> BaseStorage:
    import sqlalchemy

    try:
        shown = sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        raise SearchStorageError(
            "the search storage is not a database URL; write sqlite:///searches.db or postgresql://user@host/name"
        ) from None
    if sqlalchemy.make_url(url).get_backend_name() not in DATABASES:
        raise SearchStorageError(f"the search storage {shown}: use one of {', '.join(DATABASES)}")
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        password = sqlalchemy.make_url(url).password
        reason = reason.replace(str(password), "***") if password else reason
        raise SearchStorageError(
            f"the search storage {shown} cannot be opened: {reason}; is the server running, and are host, name and "
            "password those of --search-storage (or PRETUNE_SEARCH_STORAGE)?"
        ) from None


def is_database_error(error: Exception) -> bool:
    """Whether a database failed, in its own words or in Optuna's."""
    import sqlalchemy

    return isinstance(error, optuna.exceptions.StorageInternalError | sqlalchemy.exc.SQLAlchemyError)


def close_storage(storage: BaseStorage) -> None:
    """Give the connections of a database back."""
    if isinstance(storage, optuna.storages.RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def open_search(
    storage: BaseStorage,
    name: str,
    tune: schema.Tune,
    directions: Sequence[Direction],
    prefix: str = "",
    seeded_by: str = "",
    targets: Sequence[str] = (),
) -> Search:
    """Open or continue a search.

    Trials that an ended process left running are continued if they were suggested whole, else failed and suggested
    again.

    `prefix` tells studies in one database apart; `seeded_by` is what the sampler's seed depends on, by default `name`;
    `targets` are the names of what it is told, for people.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce every search on the terminal
    own = SearchSampler(tune)
    study = optuna.create_study(
        storage=storage, sampler=own, study_name=f"{prefix}{name}", directions=list(directions), load_if_exists=True
    )
    if targets and study.metric_names != list(targets):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(targets))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if INDEX not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)
    found: dict[TrialState, dict[int, FrozenTrial]] = {state: {} for state in TrialState}
    for trial in study.get_trials(deepcopy=False):
        if INDEX in trial.user_attrs:
            found[trial.state][trial.user_attrs[INDEX]] = trial
    return Search(
        study,
        own,
        seeded_by or name,
        tune,
        finished=found[TrialState.COMPLETE] | found[TrialState.PRUNED],
        running={i: continued_trial(study, storage, trial) for i, trial in found[TrialState.RUNNING].items()},
        failed={i: dict(trial.params) for i, trial in found[TrialState.FAIL].items()},
    )


def feasible(tune: schema.Tune) -> list[float]:
    """One entry for divergence and one for each constraint; samplers want as many in every trial."""
    return [-1.0] * (1 + len(tune.constraints))


def violations(tune: schema.Tune, result: TrialResult, diverged: bool) -> list[float]:
    """By how much each constraint is exceeded, in shares of its bound, since samplers add them up."""
    if diverged:
        return [DIVERGED, *feasible(tune)[1:]]
    if not result.over:
        return feasible(tune)
    return [-1.0, *relative(result.over, tune.constraints)]


def relative(over: Sequence[float], constraints: Mapping[str, float]) -> list[float]:
    """Excesses in shares of their bounds."""
    return [by / (abs(bound) or 1.0) for by, bound in zip(over, constraints.values(), strict=True)]
