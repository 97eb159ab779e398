"""What Pretune needs of Optuna beyond its public interface: each test says by name what a new Optuna broke."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pretune.search.optuna_internals import continued_trial, open_journal

OPTUNA = f"Optuna {optuna.__version__}"


def test_a_trial_of_an_ended_process_can_be_continued(tmp_path: Path) -> None:
    first = optuna.create_study(storage=open_journal(tmp_path / "journal"), study_name="s")
    first.ask().suggest_float("x", 0.0, 1.0)
    storage = open_journal(tmp_path / "journal")
    study = optuna.load_study(storage=storage, study_name="s")
    (running,) = study.get_trials(states=(TrialState.RUNNING,))
    trial = continued_trial(study, storage, running)
    trial.set_user_attr("seen", True)
    trial.report(0.5, 3)
    study.tell(trial, state=TrialState.PRUNED)
    (told,) = optuna.load_study(storage=open_journal(tmp_path / "journal"), study_name="s").get_trials()
    found = (told.number, told.params, told.user_attrs, told.intermediate_values, told.state)
    expected = (0, running.params, {"seen": True}, {3: 0.5}, TrialState.PRUNED)
    assert found == expected, f"{OPTUNA} does not continue a running trial by optuna.Trial(study, trial_id)"


def test_a_journal_is_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    optuna.create_study(storage=open_journal(path), study_name="s").ask()
    content = path.read_bytes()
    assert content.endswith(b"\n"), f"{OPTUNA} does not end a journal's entries with a line break"
    assert all(isinstance(json.loads(line), dict) for line in content.splitlines()), f"{OPTUNA}: journals are not JSON"


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b"{", b""])
def test_a_journal_that_a_kill_left_locked_and_torn_is_opened_at_once(tmp_path: Path, torn: bytes) -> None:
    """Whole entries before the torn one stay; the lock has the name that Optuna looks for."""
    path = tmp_path / "journal"
    study = optuna.create_study(storage=open_journal(path), study_name="s")
    study.ask()
    Path(f"{path}.lock").symlink_to("nobody")
    with path.open("ab") as file:
        file.write(torn)
    again = optuna.load_study(storage=open_journal(path), study_name="s")
    assert not Path(f"{path}.lock").is_symlink(), f"{OPTUNA} names the lock of a journal differently"
    again.ask()
    assert len(optuna.load_study(storage=open_journal(path), study_name="s").get_trials()) == 2
