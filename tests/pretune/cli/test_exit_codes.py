"""Exit codes: 2 for errors that a user can mend, in one sentence; of a study 0, 3 or 130, and what counts as failed."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import pretune
from pretune.cli import cli, main
from pretune.cli.study import MOST_LINES, show_end
from pretune.dispatch.scheduler import Scheduler
from pretune.errors import EXIT_FAILED_STAGES, EXIT_STOPPED, EXIT_USAGE
from pretune.outcomes import Failure, Outcome
from pretune.run import Ended, exit_code
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run
from pretune.search_spaces.document import Problem, StudyError
from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.resolve import load
from pretune.search_spaces.stages import Stage
from pretune.status import FailedRun, State
from pretune.store.store import Store
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
    "StageFailedError": "the outcome of a stage: crashed",
    "UnknownMetricError": "rules of search_spaces and analysis.load make a StudyError and a ResultsError of it",
    "UnopenedFileError": "whoever reads many files collects them",
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


# ------------------------------------------------------------------------------------------------------ of a study

CASE = Path(__file__).parents[4] / "shared" / "cases" / "diverged-trial-exit-3" / "study.yaml"
DONE = Outcome("finished", {"val/jaccard": 0.5, "test/jaccard": 0.5})
DIVERGED, CRASHED = Outcome("diverged", {}, "loss is nan"), Outcome("crashed", {}, "died", failure=Failure.BAD_DATA)


def ended_by(tmp_path: Path, end: Callable[[Stage, int], Outcome | None]) -> tuple[int, list[FailedRun], Run]:
    """The case's study, of which `end` gives outcomes of pretrainings, by their number; exit code and failed runs."""
    study = load(CASE, None, ())
    run = Run(study, lambda data: "digest", open_storage(None))
    state = State(study, run, Store(tmp_path), tmp_path, 0.0, io.StringIO())
    scheduler = state.scheduler = Scheduler(lambda key: None, 0, state.event)
    scheduler.start(program.start(run))
    count = 0
    while (stage := scheduler.take()) is not None:
        outcome = end(stage, count) if stage.kind == "pretrain" else None
        count += stage.kind == "pretrain"
        scheduler.complete(stage, outcome or DONE)
    without = state.runs_without_result()
    failed = [one for one in without if not one.is_answer]
    return exit_code(scheduler.finished, bool(failed or run.messages)), without, run


needs_case = pytest.mark.skipif(not CASE.is_file(), reason="needs ../shared/cases")
SEARCH, CONFIRM = range(6), range(6, 8)


@needs_case
@pytest.mark.parametrize(
    ("which", "outcome", "code"),
    [
        ((), DONE, 0),
        ((2,), DIVERGED, 0),  # one of six trials diverged, as searches do: the table has all its n
        ((0, 2, 5), DIVERGED, 0),
        (SEARCH, DIVERGED, 3),  # nothing is left to confirm: the cell is missing from the table
        ((2,), CRASHED, 3),  # the next run tries it again
        (CONFIRM, DIVERGED, 3),  # the table lacks replicates
        ((7,), DIVERGED, 3),
        ((7,), CRASHED, 3),
        ((1, 7), DIVERGED, 3),
    ],
)
def test_what_a_study_ends_with(which: tuple[int, ...], outcome: Outcome, code: int, tmp_path: Path) -> None:
    found, without, run = ended_by(tmp_path, lambda stage, number: outcome if number in which else None)
    assert found == code
    failed = [one for one in without if one.label.startswith("pretrain")]
    assert len(failed) == len(which)
    if which == (2,):
        values = run.trials[2].values["pretrain.0.method.temperature"]
        assert [one.values for one in without] == [f"pretrain.method.temperature {values:.3g}"] * 2
        assert without[0].is_answer == (outcome is DIVERGED)
        assert str(without[0]).endswith(f"({without[0].values}): {outcome.state}: {outcome.cause}")
        assert "\n" not in str(without[0])


@needs_case
def test_every_failed_run_has_a_line_of_its_own_with_its_values(tmp_path: Path) -> None:
    """Three trials that diverged for the same reason at the same seed are three lines, which differ by their values."""
    _, without, _ = ended_by(tmp_path, lambda stage, number: DIVERGED if number in (1, 3, 4) else None)
    lines = [str(one) for one in without if one.label.startswith("pretrain")]
    assert len(lines) == len(set(lines)) == 3


def test_a_stopped_study_ends_with_130_whatever_failed() -> None:
    assert [exit_code(False, incomplete) for incomplete in (False, True)] == [130, 130]


@pytest.mark.parametrize("count", [0, 1, MOST_LINES, MOST_LINES + 7])
def test_the_terminal_names_failed_runs_one_a_line_up_to_a_bound(count: int, tmp_path: Path) -> None:
    runs = tuple(
        FailedRun(f"finetune all seed {i}", "lr 0.1", "crashed: [bold] is no markup", False) for i in range(count)
    )
    text = io.StringIO()
    show_end(Ended(3, 0, 0, runs, 1.0, (), (), runs), tmp_path, Console(file=text, width=60))
    lines = text.getvalue().splitlines()
    for word in ("failed", "search"):
        named = [line for line in lines if line.startswith(f"{word} ")]
        assert len(named) == min(count, MOST_LINES)
        assert all(line.endswith("(lr 0.1): crashed: [bold] is no markup") for line in named)
    assert sum(f"... and {count - MOST_LINES} more" in line for line in lines) == (2 if count > MOST_LINES else 0)
    assert any(line.startswith("diverged trials ") for line in lines) == bool(count)


@pytest.mark.parametrize(
    ("command", "codes"),
    [([], ("0", "2", "3", "130")), (["run"], ("0", "2", "3", "130")), (["predict"], ("0", "3")), (["submit"], ("0",))],
)
def test_help_says_exit_codes(command: list[str], codes: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli, [*command, "--help"]).output
    told = said[said.index("Exit code") :]
    assert all(re.search(rf"\b{code}\b", told) for code in codes)


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[3] / "docs" / "exit-codes.md").read_text("utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert codes == {0, EXIT_USAGE, EXIT_FAILED_STAGES, EXIT_STOPPED}
