"""Errors that a user can mend have one base class, and end in one sentence and exit code 2."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import pretune
from pretune.cli import main
from pretune.search_spaces.document import Problem, StudyError
from pretune.search_spaces.errors import UsageError
from pretune.trainables.data.errors import DataError

# Exceptions that never reach a user as they are, and who takes them.
INTERNAL = {
    "BackboneError": "pretune.data.backbones makes a ModelError of it",
    "BadFileError": "whoever reads many files collects them",
    "CollapsedError": "the outcome of a stage: diverged",
    "DivergedError": "the outcome of a stage: diverged",
    "EndedWaitError": "the outcome of a stage: preempted",
    "NoGPUError": "a kind of failure",
    "PreemptedError": "the outcome of a stage: preempted",
    "UnknownMetricError": "rules of search_spaces and analysis.load make a StudyError and a ResultsError of it",
}


def errors() -> Iterator[type[Exception]]:
    """Every exception class that Pretune defines."""
    for module in pkgutil.walk_packages(pretune.__path__, "pretune."):
        if module.name.endswith("__main__"):
            continue
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(found, Exception) and found.__module__ == module.name:
                yield found


def test_every_error_is_a_users_or_has_somebody_who_takes_it() -> None:
    unknown = {found.__name__ for found in errors() if not issubclass(found, UsageError)} - INTERNAL.keys()
    assert not unknown, "derive it from UsageError, or say who takes it"


@pytest.mark.parametrize("kind", sorted({found for found in errors() if issubclass(found, UsageError)}, key=repr))
def test_an_error_of_use_is_one_sentence_and_exit_code_2(
    kind: type[UsageError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind([Problem(3, "epochs", "is 0", "write 1")]) if issubclass(kind, StudyError) else kind("it is so")

    def fail(standalone_mode: bool) -> None:
        raise error

    monkeypatch.setattr("pretune.cli.cli", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert ("it is so" in said) or ("epochs" in said)
    assert "Traceback" not in said


def test_every_problem_of_data_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(standalone_mode: bool) -> None:
        raise DataError("two files are damaged:", ["a.png: cut off", "b.png: empty"])

    monkeypatch.setattr("pretune.cli.cli", fail)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "error: two files are damaged:\n  a.png: cut off\n  b.png: empty\n"
