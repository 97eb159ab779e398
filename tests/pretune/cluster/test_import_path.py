"""No file or folder of the user's takes the place of a module of ours, in the driver or in Ray's workers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune.cluster import import_path
from tests.pretune.heads import TOKEN, started_head

PACKAGE = import_path.code_folder()
HOSTILE = "raise SystemExit('imported ' + __file__)\n"
NAMES = ["trainables.py", "search_spaces.py", "analysis/__init__.py", "run.py", "yaml.py", "torch.py", "optuna.py"]
CONSOLE_SCRIPT = "import sys; from pretune.cli import main; sys.exit(main())\n"  # as pip writes it


def hostile(folder: Path, tiny: dict[str, Any], *names: str) -> Path:
    """A working folder with a study and with files that end whoever imports them; the study."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(HOSTILE)
    (folder / "study.yaml").write_text(yaml.safe_dump(tiny))
    return folder / "study.yaml"


def environment(tmp_path: Path) -> dict[str, str]:
    """One that finds the package under test, and beside it nothing of the checkout."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "pretune").symlink_to(PACKAGE)
    return os.environ | {"PYTHONPATH": str(tmp_path / "path")}


def words(tmp_path: Path, way: str) -> list[str]:
    if way == "script":
        (tmp_path / "bin").mkdir()
        script = tmp_path / "bin" / "pretune"
        script.write_text(CONSOLE_SCRIPT)
        return [sys.executable, str(script)]
    return [sys.executable, *way.split()]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("script", ["pretune.py", *NAMES]),
        pytest.param("-P -m pretune", ["pretune/__init__.py", *NAMES], marks=pytest.mark.slow),
        pytest.param("-m pretune", NAMES, marks=pytest.mark.slow),
    ],
    ids=["console script", "safe path", "module"],
)
def test_a_study_runs_in_a_folder_with_files_that_are_called_as_ours(
    way: str, names: list[str], tiny: dict[str, Any], tmp_path: Path
) -> None:
    """`python -m pretune` itself runs a `pretune.py` of the working folder, which -P prevents."""
    tiny["seeds"]["report"] = 1
    (tmp_path / "work").mkdir()
    study = hostile(tmp_path / "work", tiny, *names)
    done = subprocess.run(
        [*words(tmp_path, way), "run", study.name],
        env=environment(tmp_path), cwd=study.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((study.parent / "runs" / "tiny" / "status.json").read_text())["finished"] == 3


def test_python_runs_a_file_called_pretune_in_place_of_the_package_unless_told_not_to(tmp_path: Path) -> None:
    """Why jobs and scripts of ours say -P where the working folder is the user's."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pretune.py").write_text(HOSTILE)
    given = environment(tmp_path)
    codes = [
        subprocess.run(
            [sys.executable, *option, "-m", "pretune", "--version"],
            env=given, cwd=tmp_path / "work", capture_output=True, timeout=120,
        ).returncode
        for option in ([], ["-P"])
    ]  # fmt: skip
    assert codes == [1, 0]


@pytest.mark.ray
def test_workers_import_the_drivers_code_and_look_into_no_folder_of_the_users(tmp_path: Path) -> None:
    """Also where the driver found its code by a relative path that means nothing elsewhere."""
    (tmp_path / "work").mkdir()
    hostile(tmp_path / "work", {}, "pretune.py")
    (tmp_path / "work" / "lib").mkdir()
    (tmp_path / "work" / "lib" / "pretune").symlink_to(PACKAGE)
    script = """
import json, os, ray
from pretune.cluster.tune import start_ray, stop_ray

def look():
    import os, sys, pretune.trainables.loop as loop
    return [os.path.realpath(loop.__file__), sys.path, os.getcwd()]

here = os.getcwd()
start_ray(None, 1)
assert os.getcwd() == here
print(json.dumps(ray.get(ray.remote(look).remote())))
stop_ray()
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=os.environ | {"PYTHONPATH": "lib"}, cwd=tmp_path / "work", capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file, path, folder = json.loads(done.stdout)
    assert Path(file) == (PACKAGE / "trainables" / "loop.py").resolve()
    assert not [entry for entry in [*path, folder] if Path(entry).is_relative_to(tmp_path / "work")]
    assert not Path(folder).exists()  # removed once Ray had ended


@pytest.mark.ray
@pytest.mark.slow
def test_a_joined_cluster_gets_the_drivers_code_with_its_linked_folders(tiny: dict[str, Any], tmp_path: Path) -> None:
    """The head has no code of ours: all comes by Ray's upload. The user's folder is on this very host."""
    tiny["seeds"]["report"] = 1
    (tmp_path / "work").mkdir()
    study = hostile(tmp_path / "work", tiny, "pretune.py", *NAMES)
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | TOKEN
    with started_head(bare, "--num-cpus=1") as (address, folder):
        done = subprocess.run(
            [*words(tmp_path, "script"), "run", study.name, "--address", address],
            env=environment(tmp_path) | TOKEN, cwd=study.parent, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        sent = folder.glob("session_latest/runtime_resources/py_modules_files/*/pretune/trainables/loop.py")
        assert [path.is_symlink() or path.parent.is_symlink() for path in sent] == [False]


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_runs_its_own_code(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Sent from a hostile folder, to a head that was not given our code."""
    tiny["seeds"]["report"] = 1
    (tmp_path / "work").mkdir()
    study = hostile(tmp_path / "work", tiny, "pretune.py", *NAMES)
    given = environment(tmp_path) | TOKEN
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | TOKEN
    bare["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # jobs start with `python`
    with socket.create_server(("127.0.0.1", 0)) as free:
        agent = f"--dashboard-agent-listen-port={free.getsockname()[1]}"  # Ray's default may be another's head's
    shown = ["--include-dashboard=true", "--dashboard-port=0", agent]
    with started_head(bare, "--num-cpus=2", *shown) as (_, folder):
        submit = ["submit", study.name, "--address", dashboard_of(folder), "--root", str(tmp_path / "runs")]
        command = [*words(tmp_path, "script"), *submit]
        until = time.monotonic() + 120
        while True:
            done = subprocess.run(command, env=given, cwd=study.parent, capture_output=True, text=True, timeout=400)
            if "No available agent to submit job" not in done.stderr or time.monotonic() > until:
                break  # the head's agent, which runs jobs, comes up some seconds after its dashboard
            time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "runs" / "tiny" / "status.json").read_text())["finished"] == 3


def dashboard_of(folder: Path) -> str:
    """The address that the dashboard writes into its log once it listens."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for line in (folder / "session_latest" / "logs" / "dashboard.log").read_text().splitlines():
            if "Dashboard head http address: " in line:
                return "http://" + line.rpartition(" ")[2]
        time.sleep(0.5)
    raise AssertionError("no dashboard")
