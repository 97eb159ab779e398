"""Asking and telling Optuna.

One Optuna study per search. What is suggested depends on the study's seed, the search's name, the index of the
question and the answers told before it, never on timing: the sampler is made anew for each question. So a search
that was killed continues with the same questions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pretune.errors import SearchStorageError
from pretune.search.replicates import TrialResult, Values
from pretune.search.samplers import OVER, Params, SpaceVisitor, answered_by, fixed, sampler, tpe, values_from
from pretune.search_spaces import schema, space

INDEX = "pretune:index"  # user attributes of an Optuna trial
SEEN_BEFORE = "pretune:warm start"
ENDED = "pretune:ended"  # of an Optuna study: after how many questions a budget ended it, and which

Direction = Literal["maximize", "minimize"]
DIVERGED = 1e9  # above any violation that is measured
DATABASES = ("sqlite", "postgresql", "mysql")


@dataclass
class Search:
    """The questions and answers of one search, held by an Optuna study."""

    study: optuna.Study
    name: str  # without what only tells studies in one database apart: it seeds the sampler
    tune: schema.Tune
    answered: dict[int, FrozenTrial]  # by index: questions that an earlier process got an answer to
    pending: dict[int, optuna.Trial]  # by index: questions that an earlier process asked and got no answer to
    posed: dict[int, Params]  # by index: parameters of questions whose stage runs crashed
    asked: dict[int, optuna.Trial] = field(default_factory=dict)  # by this process, not yet told
    preferred: int = 0  # questions in which another than the first suggestion was taken

    def ask(self, index: int, walk: SpaceVisitor, wanted: Callable[[Values], bool] | None = None) -> Values:
        """The values of question `index`: those of the storage if it was asked before, else the sampler's.

        A question without an answer is taken up as it is, with its number and whatever the sampler noted with it: were
        it asked again, answers to its own batch would be known by now and could change it.

        Args:
            index: 0, 1, 2, ...
            walk: calls the function that it is given for every range of the space.
            wanted: whether a suggestion is to be preferred; the first of `tune.prefer_stored` that is, is taken.
        """
        if index in self.answered:
            return values_from(self.answered[index].params, walk)
        if index in self.pending:
            self.asked[index] = self.pending.pop(index)
            return values_from(self.asked[index].params, walk)
        if index in self.posed:
            return self._keep(index, *self._draw(fixed(self.posed[index], sampler(*self._of(index), walk)), walk))
        trial, values = self._draw(sampler(*self._of(index), walk), walk)
        if wanted is not None and self.tune.prefer_stored is not None and not wanted(values):
            trial, values = self._preferred(index, walk, wanted, (trial, values))
        return self._keep(index, trial, values)

    def _preferred(
        self, index: int, walk: SpaceVisitor, wanted: Callable[[Values], bool], first: tuple[optuna.Trial, Values]
    ) -> tuple[optuna.Trial, Values]:
        """The first further suggestion that is wanted, else the one before."""
        for attempt in range(1, self.tune.prefer_stored or 1):
            trial, values = self._draw(sampler(*self._of(index), walk, attempt), walk)
            if wanted(values):
                self.study.tell(first[0], state=TrialState.FAIL)
                self.preferred += 1
                return trial, values
            self.study.tell(trial, state=TrialState.FAIL)
        return first

    def _of(self, index: int) -> tuple[schema.Tune, str, int, int]:
        return self.tune, self.name, index, len(self.study.get_trials(deepcopy=False))

    def _draw(self, chosen: optuna.samplers.BaseSampler, walk: SpaceVisitor) -> tuple[optuna.Trial, Values]:
        self.study.sampler = chosen
        trial = self.study.ask()
        return trial, answered_by(space.suggest_from(trial), walk)

    def _keep(self, index: int, trial: optuna.Trial, values: Values) -> Values:
        trial.set_user_attr(INDEX, index)  # last: what carries it was asked whole, and is the one that is kept
        self.asked[index] = trial
        return values

    def tell(self, index: int, verdict: TrialResult) -> None:
        """Answer question `index`.

        One that broke a constraint is told with its value and by how much, in shares of the bound. One that diverged is
        pruned without a value, and violates more than anything measured. A partial one is pruned, with its value as an
        intermediate one. A failed one is not told at all, and is put again by the next process.
        """
        if index in self.answered:
            return
        trial = self.asked.pop(index)
        if verdict.told == "failed":
            self.study.tell(trial, state=TrialState.FAIL)
            return
        diverged = verdict.told == "infeasible" and verdict.value is None
        trial.set_user_attr(OVER, violations(self.tune, verdict, diverged))
        # whoever drew the question: only a sampler with constraints writes them down
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)
            self.study.sampler = tpe(self.tune, 0)
        if verdict.told == "partial" and verdict.value is not None:
            trial.report(verdict.value, verdict.reached)
        if verdict.told == "partial" or diverged:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            assert verdict.value is not None
            self.study.tell(trial, [verdict.value, *verdict.also])

    def ended(self, budget: str) -> int | None:
        """After how many questions an earlier run of the same budget ended, if one did."""
        found = self.study.user_attrs.get(ENDED)
        return int(found["asked"]) if found and found["budget"] == budget else None

    def end(self, asked: int, budget: str) -> None:
        """A budget in time ends at another question each time: note at which, so that a rerun gives the same table."""
        self.study.set_user_attr(ENDED, {"asked": asked, "budget": budget})

    def begin_with(
        self,
        earlier: Sequence[tuple[Params, float, Sequence[float]]],
        distributions: dict[str, BaseDistribution],
        said: str,
    ) -> str:
        """Tell the sampler of configurations that other studies measured; what it was told of, as a sentence.

        They count as questions asked at random (`tune.startup`), and the sampler draws from a stream of its own: it
        would ask some of them again.

        Args:
            earlier: parameters, target, and by how much each constraint was exceeded.
            said: what scores they are.
        """
        if not self.study.get_trials(deepcopy=False):
            self.study.set_user_attr(SEEN_BEFORE, said)
            for params, value, over in earlier:
                told = violations(self.tune, TrialResult("complete", value, over=tuple(over)), False)
                self.study.add_trial(
                    optuna.trial.create_trial(
                        params=params,
                        distributions={name: distributions[name] for name in params},
                        value=value,
                        user_attrs={SEEN_BEFORE: True, OVER: told},
                        system_attrs={"constraints": told},  # in the form in which samplers keep it
                    )
                )
        taken = sum(SEEN_BEFORE in trial.user_attrs for trial in self.study.get_trials(deepcopy=False))
        said = self.study.user_attrs.get(SEEN_BEFORE, said)
        if not taken:
            return str(said)
        self.name = f"{self.name} after {taken}"
        self.tune = self.tune.model_copy(update={"startup": max(0, self.tune.startup - taken)})
        return f"the sampler was told of {taken} configurations that were in the store ({said}); none is in the count"


def open_storage(where: Path | str | None) -> BaseStorage:
    """A journal file, a database by its URL, or memory where `where` is None.

    Raises:
        SearchStorageError: a database that cannot be reached or is not one of Optuna's.
    """
    if where is None:
        return InMemoryStorage()
    if isinstance(where, str):
        return _open_database(where)
    where.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{where}.lock").unlink(missing_ok=True)  # a killed driver's; the caller holds the folder's own lock
    _cut_torn_line(where)
    return JournalStorage(JournalFileBackend(str(where)))


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


def _cut_torn_line(path: Path) -> None:
    """A line that a full disk or a power cut left unfinished would make the journal unreadable for ever."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def open_search(
    storage: BaseStorage,
    name: str,
    tune: schema.Tune,
    directions: Sequence[Direction],
    prefix: str = "",
    seeded_by: str = "",
) -> Search:
    """Open or continue a search.

    Trials that a dead process left RUNNING are taken up if they were asked whole, else set to FAIL and asked again.

    `prefix` tells studies in one database apart; `seeded_by` is what the sampler's seed depends on, by default `name`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce every search on the terminal
    study = optuna.create_study(
        storage=storage, study_name=f"{prefix}{name}", directions=list(directions), load_if_exists=True
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if INDEX not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)
    asked = [trial for trial in study.get_trials(deepcopy=False) if INDEX in trial.user_attrs]
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    answered = {trial.user_attrs[INDEX]: trial for trial in asked if trial.state in ended}
    pending = {
        trial.user_attrs[INDEX]: optuna.Trial(study, trial._trial_id)
        for trial in asked
        if trial.state == TrialState.RUNNING
    }
    posed = {trial.user_attrs[INDEX]: dict(trial.params) for trial in asked if trial.state == TrialState.FAIL}
    return Search(study, seeded_by or name, tune, answered, pending, posed)


def feasible(tune: schema.Tune) -> list[float]:
    """One entry for divergence and one for each constraint; samplers want as many in every trial."""
    return [-1.0] * (1 + len(tune.constraints))


def violations(tune: schema.Tune, verdict: TrialResult, diverged: bool) -> list[float]:
    """By how much each constraint is exceeded, in shares of its bound, since samplers add them up."""
    if diverged:
        return [DIVERGED, *feasible(tune)[1:]]
    if not verdict.over:
        return feasible(tune)
    return [-1.0, *relative(verdict.over, tune.constraints)]


def relative(over: Sequence[float], constraints: Mapping[str, float]) -> list[float]:
    """Excesses in shares of their bounds."""
    return [by / (abs(bound) or 1.0) for by, bound in zip(over, constraints.values(), strict=True)]


def direction_of(metric: str, asked: str | None) -> Direction:
    """Losses and costs are minimised, all else maximised, unless the study says."""
    if asked in ("maximize", "minimize"):
        return "minimize" if asked == "minimize" else "maximize"
    return "minimize" if metric.endswith("loss") or metric.startswith("cost/") else "maximize"
