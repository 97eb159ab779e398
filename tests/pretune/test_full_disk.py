"""Disks that are full or cannot be written, and databases that go away: one sentence, and nothing lost.

Real ones: a memory disk of a few kilobytes, which only root may mount; without that they are skipped, and the faults
are raised by hand.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from rich.console import Console

from pretune.cli import main
from pretune.run import Ended, Options, run_study
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Store, StoreError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 kB: the tiny study's store takes more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not remount(folder, "size=128k", "tmpfs"):
        pytest.skip("a memory disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str, kind: str | None = None) -> bool:
    words = ["mount", "-t", kind, "-o", options, "tmpfs"] if kind else ["mount", "-o", f"remount,{options}"]
    try:
        return subprocess.run([*words, str(folder)], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def run(tiny: dict[str, Any], store: Path, out: Path, cache: Path) -> Ended:
    options = Options(out, store, cache, parallel=1)
    return run_study(from_dict(tiny), options, Console(file=io.StringIO()))


def called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[Any, list[str]]:
    monkeypatch.setattr(sys, "argv", ["pretune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return stop.value.code, err.strip().splitlines()


@pytest.mark.ray
def test_a_store_that_fills_up_stops_the_study_and_with_room_it_goes_on(
    disk: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The first stage run that cannot be kept ends the run: no other trains for nothing."""
    with pytest.raises(StoreError, match=r"disk .* is full .*free some"):
        run(tiny, disk / "store", tmp_path / "out", tmp_path / "cache")
    kept = {entry.fingerprint for entry in Store(disk / "store").entries()}
    assert 0 < len(kept) < 6
    log = (tmp_path / "out" / "pretune.log").read_text()
    assert "retried" not in log
    assert remount(disk, "size=10m")
    ended = run(tiny, disk / "store", tmp_path / "out", tmp_path / "cache")
    assert (ended.exit_code, ended.trained, ended.reused) == (0, 6 - len(kept), len(kept))
    again = run(tiny, disk / "store", tmp_path / "fresh", tmp_path / "cache")
    assert again.trained == 0
    frames = [pd.read_parquet(tmp_path / name / "results.parquet") for name in ("out", "fresh")]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)


def test_an_output_folder_on_a_full_disk_is_said_before_anything_starts(
    disk: Path, tiny: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (disk / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        (disk / "filling").write_bytes(os.urandom(200_000))
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr("pretune.run.start_ray", lambda *arguments, **named: pytest.fail("Ray was started"))
    code, err = called(capsys, monkeypatch, "run", file, "--root", tmp_path / "runs", "--out", disk / "out")
    assert code == 2
    assert err[-1].startswith("error: the study stopped: No space left on device: ")


def test_a_store_that_may_not_be_written_is_said_before_anything_starts(
    disk: Path, tiny: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """A read-only disk, since root may write past any permission."""
    (disk / "store").mkdir()
    assert remount(disk, "ro")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    code, err = called(capsys, monkeypatch, "run", file, "--root", tmp_path / "runs", "--store", disk / "store")
    assert code == 2
    assert err[-1] == (
        f"error: the store {disk / 'store'} cannot be written: Read-only file system; "
        "choose another folder with --store"
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (OSError(28, "No space left on device", "/out/pretune.log"), "device: /out/pretune.log; finished"),
        (OSError(30, "Read-only file system"), "Read-only file system: "),
        (optuna.exceptions.StorageInternalError("postgresql://me:secret@h"), "storage no longer answers; finished"),
    ],
)  # fmt: skip
def test_a_fault_in_the_middle_is_one_sentence_that_says_how_to_go_on(
    fault: Exception, says: str, tiny: dict[str, Any], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def fail(*arguments: Any) -> None:
        raise fault

    monkeypatch.setattr("pretune.run.train", fail)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    code, err = called(capsys, monkeypatch, "run", file, "--root", tmp_path / "runs")
    assert code == 2
    assert says in err[-1]
    assert "run the same command again" in err[-1]
    assert "secret" not in err[-1]


def test_a_fault_of_our_own_is_not_taken_for_one_of_the_disk(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*arguments: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "a mistake")

    monkeypatch.setattr("pretune.run.train", fail)
    with pytest.raises(FileNotFoundError, match="a mistake"):
        run(tiny, tmp_path / "store", tmp_path / "out", tmp_path / "cache")
