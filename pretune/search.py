"""Asking and telling Optuna.

One Optuna study per search. What is suggested depends on the study's seed, the search's name, the index of the
question and the answers told before it, never on timing: the sampler is seeded anew for each question. So a search
that was killed continues with the same questions.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search_spaces import schema, space

INDEX = "pretune:index"  # user attributes of an Optuna trial
INFEASIBLE = "pretune:infeasible"

Values = dict[str, Any]
Direction = Literal["maximize", "minimize"]
Told = Literal["complete", "infeasible", "failed"]


@dataclass
class Search:
    """The questions and answers of one search, held by an Optuna study."""

    study: optuna.Study
    tune: schema.Tune
    answered: dict[int, FrozenTrial]  # by index: questions told as complete by an earlier process
    posed: dict[int, Values]  # by index: parameters of questions that an earlier process asked and got no answer to
    asked: dict[int, optuna.Trial] = field(default_factory=dict)  # by this process, not yet told

    def ask(self, index: int, suggest_all: Callable[[space.Suggest], object]) -> Values:
        """The values of question `index`: those of the storage if it was asked before, else the sampler's.

        A question without an answer is put again as it was: answers to its own batch may be known by now, and the
        sampler would let them change it.

        Args:
            index: 0, 1, 2, ...
            suggest_all: calls the function that it is given for every range of the space.
        """
        values: Values = {}
        suggest = space.suggest_from(self._trial(index))

        def remember(name: str, item: space.Range) -> Any:
            values[name] = suggest(name, item)
            return values[name]

        suggest_all(remember)
        if index in self.asked:
            self.asked[index].set_user_attr(INDEX, index)  # last: what carries it was asked whole
        return values

    def _trial(self, index: int) -> optuna.trial.BaseTrial:
        if index in self.answered:
            return optuna.trial.FixedTrial(self.answered[index].params)
        self.study.sampler = self._sampler(index)
        self.asked[index] = self.study.ask()
        return self.asked[index]

    def _sampler(self, index: int) -> optuna.samplers.BaseSampler:
        fresh = sampler(self.tune, self.study.study_name, index)
        if index not in self.posed:
            return fresh
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.PartialFixedSampler(self.posed[index], fresh)

    def tell(self, index: int, told: Told, value: float | None) -> None:
        """Answer question `index`. An infeasible one is kept away from without a value of its own being believed."""
        if index in self.answered:
            return
        trial = self.asked.pop(index)
        if told == "failed":
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(INFEASIBLE, 1.0 if told == "infeasible" else -1.0)
        self.study.sampler = _tpe(0)  # whoever drew the question: only a sampler with constraints writes them down
        self.study.tell(trial, self._worst() if value is None else value)

    def _worst(self) -> float:
        """A value for Optuna's books; TPE looks at the constraint first and never at it."""
        values: list[float] = [trial.values[0] for trial in self.study.get_trials(deepcopy=False) if trial.values]
        if not values:
            return 0.0
        return min(values) if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else max(values)


def open_storage(path: Path | None) -> BaseStorage:
    """A journal file, or memory where `path` is None."""
    if path is None:
        return InMemoryStorage()
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)  # a killed driver's; the caller holds the folder's own lock
    _cut_torn_line(path)
    return JournalStorage(JournalFileBackend(str(path)))


def _cut_torn_line(path: Path) -> None:
    """A line that a full disk or a power cut left unfinished would make the journal unreadable for ever."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def open_search(storage: BaseStorage, name: str, tune: schema.Tune, direction: Direction) -> Search:
    """Open or continue a search; trials that a dead process left RUNNING are set to FAIL and asked again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce every search on the terminal
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    asked = [trial for trial in study.get_trials(deepcopy=False) if INDEX in trial.user_attrs]
    answered = {trial.user_attrs[INDEX]: trial for trial in asked if trial.state == TrialState.COMPLETE}
    return Search(study, tune, answered, {trial.user_attrs[INDEX]: dict(trial.params) for trial in asked})


def sampler(tune: schema.Tune, name: str, index: int) -> optuna.samplers.BaseSampler:
    """The sampler for one question: the first `startup` are random, as asked and not more."""
    seed = int.from_bytes(hashlib.sha256(f"{tune.seed}:{name}:{index}".encode()).digest()[:4], "big")
    if tune.sampler == "random" or index < tune.startup:
        return optuna.samplers.RandomSampler(seed=seed)
    return _tpe(seed)


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constraints, since Optuna 3
        warnings.simplefilter("ignore", FutureWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=1, seed=seed, multivariate=False, constant_liar=True, constraints_func=_constraint
        )


def _constraint(trial: FrozenTrial) -> Sequence[float]:
    return (float(trial.user_attrs.get(INFEASIBLE, -1.0)),)


def direction_of(metric: str, asked: str | None) -> Direction:
    """Losses are minimised, all else maximised, unless the study says."""
    if asked in ("maximize", "minimize"):
        return "minimize" if asked == "minimize" else "maximize"
    return "minimize" if metric.endswith("loss") else "maximize"
