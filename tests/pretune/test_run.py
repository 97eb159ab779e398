"""Whole studies on a real Ray cluster of this machine: run, run again, edited, failing, and with a killed driver."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from pretune.analysis.load.counts import load_counts
from pretune.results.changes import differing
from pretune.run import Ended, Options, only_driver, run_study
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Store, StoreError


def run(tiny: dict[str, Any], root: Path) -> tuple[Ended, str]:
    """Run a study below `root`; how it ended, and what it printed."""
    text = io.StringIO()
    options = Options(root / tiny["study"], root / "store", root / "cache", parallel=2)
    ended = run_study(from_dict(tiny), options, Console(file=text, width=200))
    return ended, text.getvalue()


def results(root: Path, study: str = "tiny") -> pd.DataFrame:
    return pd.read_parquet(root / study / "results.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


# ------------------------------------------------------------------------------------------------------- with Ray


@pytest.mark.ray
def test_a_study_runs_whole_and_again_without_ray(tiny: dict[str, Any], root: Path, monkeypatch: Any) -> None:
    """Two pretrainings and four fine-tunings; the second time everything is in the store."""
    ended, text = run(tiny, root)
    assert (ended.exit_code, ended.trained, ended.reused, ended.failed) == (0, 6, 0, ())
    assert "0 of 6 stage runs are in the store" in text
    first = results(root)
    confirmed = first[(first.metric == "test/jaccard") & (first.phase == "confirm")]
    assert sorted(zip(confirmed.cell, confirmed.seed, strict=True)) == [
        ("encoder=frozen", 0),
        ("encoder=frozen", 1),
        ("encoder=unfrozen", 0),
        ("encoder=unfrozen", 1),
    ]
    assert (root / "tiny" / "best" / "model.safetensors").exists()
    assert len(load_counts(root / "tiny")) == 4

    def refuse(*args: Any, **named: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pretune.run.start_ray", refuse)
    before = (root / "tiny" / "results.parquet").read_bytes()
    again, _ = run(tiny, root)
    assert (again.exit_code, again.trained, again.reused) == (0, 0, 6)
    assert (root / "tiny" / "results.parquet").read_bytes() == before


@pytest.mark.ray
def test_an_edited_study_reuses_what_its_edit_leaves_valid(tiny: dict[str, Any], root: Path) -> None:
    """Fine-tuning for 7 steps in place of 6 needs four new fine-tunings and no new pretraining."""
    tiny["finetune"]["steps"] = 7
    ended, text = run(tiny, root)
    assert (ended.exit_code, ended.trained, ended.reused) == (0, 4, 2)
    assert "the study changed since its last run: finetune.steps" in text


@pytest.mark.ray
def test_a_stage_that_fails_is_retried_and_named_and_the_rest_goes_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """Report seed 1's pretraining cannot write its attempt; three of its kin are told apart by cause."""
    chosen = from_dict(tiny)
    broken = fingerprints_of(tiny, "pretrain")[1]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / broken).write_text("a file where a folder must be")
    ended, _ = run(tiny, tmp_path)
    assert chosen.header.retries == 2
    assert ended.exit_code == 3
    assert ended.trained == 3
    causes = {run.label: run.cause for run in ended.failed}
    assert set(causes) == {
        "pretrain simclr seed 1",
        "finetune encoder=unfrozen seed 1",
        "finetune encoder=frozen seed 1",
    }
    assert causes["pretrain simclr seed 1"].startswith("crashed: ")
    assert causes["finetune encoder=frozen seed 1"].startswith("blocked: its pretrain crashed: ")
    log = (tmp_path / "tiny" / "pretune.log").read_text()
    assert log.count("retried   pretrain simclr seed 1") == 2
    frame = results(tmp_path)
    assert sorted(frame[frame.metric == "test/jaccard"].seed) == [0, 0]
    assert set(frame[frame.outcome == "blocked"].cell) == {"encoder=unfrozen", "encoder=frozen"}

    from pretune.analysis.report.tables import write_tables

    text = io.StringIO()
    for table in write_tables(tmp_path / "tiny"):
        Console(file=text, width=200).print(table)
    assert "1 of 2" in (text.getvalue() + (tmp_path / "tiny" / "table.md").read_text())

    (tmp_path / "store" / broken).unlink()
    mended, _ = run(tiny, tmp_path)
    assert (mended.exit_code, mended.trained, mended.reused) == (0, 3, 3)


def fingerprints_of(tiny: dict[str, Any], kind: str) -> list[str]:
    from pretune.plan import make_plan
    from pretune.trainables.data.resident.digest import content_digest

    _, stages = make_plan(from_dict(tiny), lambda data: content_digest(data, None))
    return [stage.fingerprint for stage in stages if stage.kind == kind]


@pytest.mark.slow  # test_chaos.py kills a driver in `make test`
@pytest.mark.ray
def test_a_killed_driver_is_taken_up_where_it_was_and_gives_the_same_results(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL as soon as anything is in the store; the second run ends in the table of an undisturbed one."""
    file = tmp_path / "tiny.yaml"
    tiny["tune"] = {"trials": 2, "batch": 2, "startup": 1}
    tiny["finetune"]["optimizer"] = {"lr": {"log_uniform": [0.001, 0.1]}}
    tiny["seeds"] = {"search": 1, "report": 2}
    file.write_text(yaml.safe_dump(tiny))
    command = [sys.executable, "-c", "from pretune.cli import main; main()", "run", str(file), "--parallel", "2"]
    killed = subprocess.Popen(
        [*command, "--root", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    store = Store(tmp_path / "killed" / "store")
    deadline = time.monotonic() + 120
    while not list(store.entries()) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert killed.returncode == -signal.SIGKILL
    done = len(list(store.entries()))
    assert 0 < done < 10

    for name in ("killed", "undisturbed"):
        again = subprocess.run([*command, "--root", str(tmp_path / name)], capture_output=True, text=True, timeout=200)
        assert again.returncode == 0, again.stdout + again.stderr
    pd.testing.assert_frame_equal(results(tmp_path / "killed"), results(tmp_path / "undisturbed"), check_exact=True)
    tables = [(tmp_path / name / "tiny" / "results.parquet").read_bytes() for name in ("killed", "undisturbed")]
    assert tables[0] == tables[1]


# ---------------------------------------------------------------------------------------------------- without Ray


def test_one_output_folder_has_one_driver(tmp_path: Path) -> None:
    with (
        only_driver(tmp_path),
        pytest.raises(StoreError, match="another `pretune run`"),
        only_driver(tmp_path),
    ):
        pass
    with only_driver(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_an_output_folder_below_a_file_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = Options(tmp_path / "file" / "out", tmp_path / "store", tmp_path / "cache")
    with pytest.raises(StoreError, match=r"cannot be created: .*--out"):
        run_study(from_dict(tiny), options, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ({"a": 1}, {"a": 1}, set()),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a.c"}),
        ({"a": 1}, {"b": 2}, {"a", "b"}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a"}),
    ],
)
def test_changed_keys_are_named(before: Any, after: Any, keys: set[str]) -> None:
    assert set(differing(before, after)) == keys
