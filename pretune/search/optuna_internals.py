"""The two things that Pretune needs of Optuna and that Optuna has no public form for, in one place.

A new Optuna that breaks one of them fails a test of `tests/pretune/search/test_optuna_internals.py` that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial

from pretune.errors import SearchStorageError

SUM = "pretune:sum"  # in a line of a journal: the start of the sha256 of all the rest; Optuna reads past it
OPERATIONS = range(11)  # of Optuna's journals, versions 4 and 5
MOVE_AWAY = (
    "move the file away and run again; the searches then suggest their trials again, and finished stage runs come from "
    "the store"
)


def continued_trial(study: optuna.Study, storage: BaseStorage, running: FrozenTrial) -> optuna.Trial:
    """A trial that an ended process left running, to be told by this one.

    `Study.tell` takes a number, but only a `Trial` can be given user attributes and intermediate values, and Optuna
    wants to make those itself. Without this, the trial would be failed and suggested again: CMA-ES and genetic
    populations would lose a member, and the search would go on differently than an undisturbed one.
    """
    study_id = storage.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, running.number))


class CheckedJournal(JournalFileBackend):
    """A journal whose lines have checksums: another digit in a value would make another search of it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        super().append_logs([log | {SUM: _sum(log)} for log in logs])


def _sum(log: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(log).encode()).hexdigest()[:16]


def open_journal(path: Path) -> JournalStorage:
    """A journal file, whatever a killed process left of it; the caller holds the folder's own lock.

    Optuna waits for a lock that a killed process held (4: for ever, 5: for 30 s), and a line that a full disk or a
    power cut left unfinished makes its journal unreadable from the next write on.

    Raises:
        SearchStorageError: a line in the middle is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path))
    with contextlib.suppress(RuntimeError):  # nobody held it
        lock.release()
    _cut_torn_line(path)
    _check_lines(path)
    try:
        return JournalStorage(CheckedJournal(str(path), lock))
    except Exception as error:  # Optuna raises whatever its replay meets
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SearchStorageError(f"{path} cannot be replayed ({what}): {MOVE_AWAY}") from None


def _check_lines(path: Path) -> None:
    """Raises SearchStorageError for the first line that is none of Optuna's, or not as it was written.

    Lines of before 2026-11-29 have no checksum. A journal of such lines alone is given them, so that in every other one
    a line without is damaged.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    logs = [_log_of(line) for line in lines]
    summed = any(SUM in log for log in logs if log is not None)
    for number, (line, log) in enumerate(zip(lines, logs, strict=True), 1):
        if log is None or (summed and log.get(SUM) != _sum({key: log[key] for key in log if key != SUM})):
            shown = line.strip()[:40].decode("utf-8", "backslashreplace")
            raise SearchStorageError(f"{path}, line {number} is damaged ({shown!r}): {MOVE_AWAY}")
    if lines and not summed:
        sealed = path.with_name(f".{path.name}.tmp")
        sealed.write_text(
            "".join(json.dumps(log | {SUM: _sum(log)}) + "\n" for log in logs if log is not None), "utf-8"
        )
        sealed.replace(path)


def _log_of(line: bytes) -> dict[str, Any] | None:
    """A line of Optuna's journals; None for anything else."""
    try:
        log: dict[str, Any] = json.loads(line)
        return log if log["op_code"] in OPERATIONS and isinstance(log["worker_id"], str) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _cut_torn_line(path: Path) -> None:
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
