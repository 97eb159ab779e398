"""The command line: exit codes, one sentence per error and never a traceback. Nothing here starts Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from pretune.cli import cli, main
from pretune.run import Ended
from pretune.status import FailedRun
from pretune.store.store import Store


def write(tiny: dict[str, Any], folder: Path) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    return file


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """What the console script does: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["pretune", *map(str, arguments)])
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture
def pretune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


# ---------------------------------------------------------------------------------------------------- usage errors


def test_a_bad_study_shows_all_its_problems_and_exits_with_2(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["finetune"]["freze"] = "encoder"
    tiny["pretrain"]["batch_size"] = 1
    tiny["seedz"] = 3
    code, _, err = pretune("run", write(tiny, tmp_path), "--root", tmp_path / "runs")
    assert code == 2
    for part in ("freze", 'did you mean "freeze"?', "batch_size", "seedz", "3 problems; nothing was started."):
        assert part in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "missing.yaml"], "there is no such file"),
        (["plan", "missing.yaml"], "there is no such file"),
        (["run", "tiny.yaml", "--data", "missing"], "--data missing: this folder does not exist"),
        (["run", "tiny.yaml", "--scale", "tiny"], "the study has no scales"),
        (["run", "tiny.yaml", "--set", "finetune.steps"], "is not of the form dotted.key=value"),
        (["run", "tiny.yaml", "--set", "finetune.size=33"], "33 px is not a multiple of 2"),
        (["run", "tiny.yaml", "--parallel", "0"], "0 is not in the range x>=1"),
        (["run"], "Missing argument 'STUDY'"),
        (["fly"], "No such command 'fly'"),
        (
            ["status", "missing"],
            "missing holds no status.json: the study has not started yet, or this is not a study's output folder",
        ),
        (["report", "missing"], "there is no study folder missing"),
        (["store", "ls", "--store", "missing"], "there is no store at missing"),
        (["init", "tiny.yaml"], "tiny.yaml already exists; choose another name or delete it"),
        (["init", "new.yaml", "--images", "missing"], "'missing' does not exist"),
    ],
)
def test_an_error_of_use_is_a_sentence_and_exit_code_2(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tiny, tmp_path)
    code, _, err = pretune(*arguments)
    assert code == 2
    assert expected in err


def test_missing_data_says_what_is_expected_where(pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"] = {"scenes": {"dataset": "oxford-iiit-pet", "cache_size": 32}}
    (tmp_path / "empty").mkdir()
    file = write(tiny, tmp_path)
    code, _, err = pretune("run", file, "--data", tmp_path / "empty", "--root", tmp_path / "runs")
    assert code == 2
    assert "oxford-iiit-pet" in err
    assert str(tmp_path / "empty") in err


def test_a_store_that_cannot_be_written_is_said(pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = pretune(
        "run", write(tiny, tmp_path), "--root", tmp_path / "runs", "--store", tmp_path / "file" / "s"
    )
    assert code == 2
    assert "cannot be written" in err
    assert "--store" in err


# ------------------------------------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize("code", [0, 3, 130])
def test_the_exit_code_and_the_failures_are_those_of_the_study(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failed = (FailedRun("finetune seed 1", "", "crashed: out of memory", False),) if code == 3 else ()
    ended = Ended(code, 4, 2, failed, 12.0, ("nothing to confirm",) if code == 3 else ())
    monkeypatch.setattr("pretune.run.run_study", lambda *arguments: ended)
    monkeypatch.setattr("pretune.cli.study.print_report", lambda *arguments: None)
    found, out, _ = pretune("run", write(tiny, tmp_path), "--root", tmp_path / "runs")
    assert found == code
    assert "4 stage runs trained, 2 reused, 12 s" in out
    assert ("failed finetune seed 1: crashed: out of memory" in out) == (code == 3)
    assert ("nothing to confirm" in out) == (code == 3)
    assert ("stopped; run the same command to continue" in out) == (code == 130)


def test_ctrl_c_exits_with_130(pretune: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pretune.run.run_study", interrupt)
    code, _, _ = pretune("run", write(tiny, tmp_path), "--root", tmp_path / "runs")
    assert code == 130


@pytest.mark.parametrize("place", ["store", "store/mine", "cache", "elsewhere"])
def test_results_are_not_written_into_the_store(place: str, pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    store = ("--store", tmp_path / "elsewhere") if place == "elsewhere" else ()
    out = tmp_path / ("elsewhere" if store else f"runs/{place}")
    code, _, err = pretune("run", write(tiny, tmp_path), "--root", tmp_path / "runs", "--out", out, *store)
    assert code == 2
    assert f"--out {out} is inside the {'cache' if place == 'cache' else 'store'} that all studies share" in err


# ------------------------------------------------------------------------------------------------------------ plan


def test_plan_prints_counts_as_json_and_trains_nothing(pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    """2 cells x 2 seeds: 4 fine-tunings on 2 pretrainings."""
    file = write(tiny, tmp_path)
    code, out, _ = pretune("plan", file, "--json", "--root", tmp_path / "runs")
    plan = json.loads(out)
    assert code == 0
    assert (plan["cells"], plan["replicates"], plan["stage_runs"], plan["stage_runs_without_sharing"]) == (2, 4, 6, 8)
    assert plan["stored"] == 0
    assert not (tmp_path / "runs").exists()


def test_plan_for_people_says_what_is_shared_and_that_the_machine_is_busy(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (9999.0, 0.0, 0.0))
    code, out, _ = pretune(
        "plan", write(tiny, tmp_path), "--root", tmp_path / "runs", "--set", "seeds.report=3", "--time"
    )
    assert code == 0
    assert re.search(r"stage runs +│ 9 ", out)
    assert re.search(r"stage runs without sharing +│ 12", out)
    assert "estimated time" in out
    assert "load 9999.0" in out
    assert "data scenes: generated images, decoded once" in out


def test_a_plan_can_be_made_without_the_data(pretune: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"] = {"scenes": {"dataset": "oxford-iiit-pet", "cache_size": 32}}
    file = write(tiny, tmp_path)
    code, out, err = pretune("plan", file, "--json", "--root", tmp_path / "runs")
    assert code == 0
    assert json.loads(out)["stage_runs"] == 6
    assert err.count("note: planned without data scenes: ") == 1


def test_init_then_plan_works_on_ones_own_folders(pretune: Any, tmp_path: Path) -> None:
    for folder in ("my photos", "my labels"):
        (tmp_path / folder).mkdir()
    for i in range(20):
        Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(tmp_path / "my photos" / f"{i}.png")
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "my labels" / f"{i}.png")
    file = tmp_path / "studies" / "leaves.yaml"
    folders = ["--images", tmp_path / "my photos", "--masks", tmp_path / "my labels", "--classes", "background,leaf"]
    code, out, _ = pretune("init", file, *folders)
    assert code == 0
    assert f"next: pretune data check {file}" in out
    code, out, err = pretune("plan", file, "--json", "--root", tmp_path / "runs")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    # 3 starts x 2 label amounts x 3 seeds, of which two starts share 3 pretrainings; freezing shares them too
    assert (plan["cells"], plan["by_stage"]) == (6, {"pretrain simclr": 3, "finetune": 18})
    for i in (3, 4):
        (tmp_path / "my labels" / f"{i}.png").unlink()
    code, out, err = pretune("plan", file, "--root", tmp_path / "runs")
    assert (code, out.count("18 images (")) == (2, 1)  # the plan is shown all the same
    assert err.count("error: data mine: 2 files cannot be used, for example my photos/3.png: no mask; expected") == 1
    code, out, _ = pretune("plan", file, "--root", tmp_path / "runs", "--set", "data.mine.on_error=skip")
    assert (code, "cannot be used" in out) == (0, False)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("used", ["finetune", "pretrain"])
def test_a_plan_fails_where_it_knows_that_a_run_will_stop(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, used: str, on_error: str
) -> None:
    """A damaged mask among those that a plan looks at, of labelled images and of a pool."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(12):
            array = np.eye(32, dtype=np.uint8) if folder == "masks" else np.full((32, 32, 3), 10 * i, np.uint8)
            Image.fromarray(array).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "masks" / "4.png").write_bytes(b"")
    mine = {"dataset": "image-mask-folder", "root": str(tmp_path), "classes": ["a", "b"], "images": "images"}
    tiny["data"] = tiny["data"] | {"mine": mine | {"cache_size": 32, "masks": "masks", "on_error": on_error}}
    tiny[used] = tiny[used] | {"data": "mine"}
    code, out, err = pretune("plan", write(tiny, tmp_path), "--root", tmp_path / "runs")
    assert (code, ("error: data mine: 1 file cannot be used: masks/4.png" in err)) == ((2, True), (0, False))[
        on_error == "skip"
    ]
    assert ("1 of 12 checked pairs cannot be used and will be left out" in out) == (on_error == "skip")


# ------------------------------------------------------------------------------------------------- status and store


SNAPSHOT: dict[str, Any] = {
    "study": "tiny", "phase": "confirm", "running": [], "waiting": 0, "finished": 6, "reused": 0, "failed": 0,
    "total": 6, "cells": [{"cell": "encoder=frozen", "done": 2, "expected": 2, "mean": 0.5, "std": 0.1}],
    "elapsed": 3.0, "remaining": None, "messages": [],
}  # fmt: skip


def test_status_reads_the_folder_of_a_study(pretune: Any, tmp_path: Path) -> None:
    from dataclasses import fields

    from pretune.monitor.terminal import CellStatus

    cell = dict(zip([f.name for f in fields(CellStatus)], ("encoder=frozen", 2, 2, 0.5, 0.1), strict=True))
    (tmp_path / "status.json").write_text(json.dumps(SNAPSHOT | {"cells": [cell]}))
    code, out, _ = pretune("status", tmp_path)
    assert code == 0
    assert "encoder=frozen" in out
    code, out, _ = pretune("status", tmp_path, "--json")
    assert json.loads(out)["finished"] == 6


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"running": 3}'])
def test_a_damaged_status_is_said(pretune: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    code, _, err = pretune("status", tmp_path)
    assert code == 2
    assert "status.json" in err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with one used entry, one unused and one attempt that never finished."""
    import pandas as pd

    store = Store(tmp_path / "store")
    for key in ("used", "unused"):
        attempt = store.begin(key)
        (attempt / "model.safetensors").write_bytes(b"x" * 1_500_000)
        store.finish(attempt, "finetune", "finished", "", {}, 2.0, {"label": f"the {key} one"})
    (store.begin("cut") / "checkpoint.pt").write_bytes(b"x" * 500_000)
    (tmp_path / "study").mkdir()
    pd.DataFrame({"fingerprint": ["used"]}).to_parquet(tmp_path / "study" / "results.parquet")
    return tmp_path


def test_store_ls_lists_what_is_finished(root: Path) -> None:
    result = CliRunner().invoke(cli, ["store", "ls", "--root", str(root)], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert "the used one" in result.output
    assert "1.50" in result.output
    assert "cut" not in result.output


def test_store_du_adds_up(root: Path) -> None:
    """Two fine-tunings of 1.5 MB and half a megabyte of an unfinished attempt."""
    result = CliRunner().invoke(cli, ["store", "du", "--root", str(root)])
    lines = [line.replace("│", " ").split() for line in result.output.splitlines()]
    assert ["finetune", "2", "3.0"] in lines
    assert ["unfinished", "1", "0.5"] in lines
    assert ["all", "3", "3.5"] in lines


@pytest.mark.parametrize(
    ("flags", "left", "said"),
    [
        ([], {"used", "unused", "cut"}, "would delete 1 unfinished attempt and 0 unused stage runs, 0.5 MB"),
        (["--yes"], {"used", "unused"}, "deleted 1 unfinished attempt and 0 unused stage runs, 0.5 MB"),
        (["--unused"], {"used", "unused", "cut"}, "would delete 1 unfinished attempt and 1 unused stage run, 2.0 MB"),
        (["--unused", "--yes"], {"used"}, "deleted 1 unfinished attempt and 1 unused stage run, 2.0 MB"),
    ],
)
def test_store_gc_deletes_only_with_yes(root: Path, flags: list[str], left: set[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["store", "gc", "--root", str(root), *flags], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    assert said in result.output
    held = {path.parent.parent.name for path in (root / "store").glob("*/*/*")}
    assert held == left


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "-h"], ["store", "gc", "--help"]])
def test_help_is_there(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_a_name_that_is_not_utf8_does_not_end_a_command(tmp_path: Path) -> None:
    """In a process of its own, whose stdout is as strict as a pipe's: a folder with a byte of Latin-1 in its name."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "a.png")
    command = [sys.executable, "-c", "from pretune.cli import main; main()", "data", "check", "image-folder"]
    named = ["--set", "root=.", "--data", root, "--root", tmp_path / "runs", "--out", root / "sheet.png"]
    ended = subprocess.run(
        [*command, *named], capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    shown = ended.stdout.replace("\n", "")  # wrapped as for a terminal
    assert rf"image-folder in {tmp_path}/caf\udce9" in shown
    assert r"caf\udce9/sheet.html" in shown
