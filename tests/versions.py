"""The tests that touch Ray and Optuna, with the lowest and the newest of both, on each Python: `make test-versions`.

Every row of VERSIONS gets a virtual environment of its own, one after the other, made by `uv`, whose cache all share by
hard links: 7 GB in all, of which torch is most. They are removed at the end. Prints the rows of the
table in docs/cluster.md.

python tests/versions.py                            all of VERSIONS, all of AREAS
python tests/versions.py --quick --keep
python tests/versions.py --python 3.13 --area Train Data
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[1]
TEST_PACKAGES = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "psutil>=5.9", "optuna-dashboard>=0.17")
# Ray 2.52 leaves open files and processes to the garbage collector.
QUIET = ("-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning")
AREAS: Mapping[str, tuple[str, ...]] = {
    "private names": ("tests/pretune/worker/test_ray_private.py",),
    "transport": ("tests/pretune/cluster/test_tune.py", "tests/pretune/cluster/test_tune_callbacks.py"),
    "whole studies": ("tests/pretune/test_run.py",),
    "stop, go on": ("tests/pretune/worker/test_preemption.py",),
    "Train": ("tests/pretune/worker/test_ray_train.py",),
    "Data": ("tests/pretune/test_run_streamed.py", "tests/trainables/data/streaming/test_stream.py"),
    "submit": ("tests/pretune/cluster/test_import_path.py",),
    "join, listen": ("tests/pretune/cluster/test_joining.py", "tests/pretune/cluster/test_listening.py"),
    "ResultGrid": ("tests/pretune/cluster/test_experiment.py",),
    "drain": ("tests/cluster/test_drain.py",),
    "Optuna": ("tests/pretune/search",),
}

# One real study, worker group, job and drain: what a new Ray breaks first.
QUICK: Mapping[str, tuple[str, ...]] = {
    "private names": AREAS["private names"],
    "whole studies": ("tests/pretune/test_run.py::test_a_study_runs_whole_and_again_without_ray",),
    "Train": ("tests/pretune/worker/test_ray_train.py::test_two_workers_train_what_one_trains",),
    "Data": ("tests/pretune/test_run_streamed.py",),
    "submit": ("tests/pretune/cluster/test_import_path.py::test_a_submitted_job_runs_its_own_code",),
    "drain": ("tests/cluster/test_drain.py::test_an_evicted_worker_lets_its_stage_write_its_state_first",),
    "Optuna": ("tests/pretune/search/test_optuna_study.py", "tests/pretune/search/test_samplers.py"),
}


class Versions(NamedTuple):
    """One environment; of Ray and Optuna "lowest" is the bound of pyproject.toml, else what pip takes (">=2.60,<3")."""

    python: str
    ray: str
    optuna: str


# Every pair of a Python, a Ray and an Optuna, in six environments in place of twelve.
VERSIONS = (
    Versions("3.11", "lowest", "lowest"),
    Versions("3.11", "newest", ">=5"),
    Versions("3.12", "lowest", ">=5"),
    Versions("3.12", "newest", "<5"),
    Versions("3.13", "lowest", "lowest"),
    Versions("3.13", "newest", ">=5"),
)


class Count(NamedTuple):
    """The end of the tests of an area, and the names of those that failed."""

    passed: int
    skipped: int
    failed: tuple[str, ...]

    def __str__(self) -> str:
        parts = [(self.passed, ""), (self.skipped, " skipped"), (len(self.failed), " FAILED")]
        return ", ".join(f"{number}{word}" for number, word in parts if number) or "none ran"


def lowest(name: str) -> str:
    """Return the lower bound of a dependency in pyproject.toml."""
    asked = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (bound,) = (found[1] for one in asked if (found := re.match(rf"{name}(?:\[.*])?>=([\d.]+)", one)))
    return bound


def requirement(name: str, version: str) -> str:
    """Return what the installer is asked for."""
    if version == "lowest":
        return f"{name}=={lowest(name)}"
    return name if version == "newest" else f"{name}{version}"


def python_of(version: str) -> str:
    """Return an interpreter of this version: one that runs, else the name, for which uv may fetch one."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in (shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")):
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return str(path)
    return version


def make_environment(versions: Versions, folder: Path, uv: str) -> Path:
    """Make a virtual environment with Pretune's dependencies; its interpreter. Raises CalledProcessError."""
    given = os.environ | {"UV_CACHE_DIR": str(folder / "cache"), "UV_HTTP_TIMEOUT": "600"}
    python = folder / "environment" / "bin" / "python"
    words = ["venv", "--quiet", "--clear", "--python", python_of(versions.python), str(python.parents[1])]
    subprocess.run([uv, *words], env=given, check=True)
    wanted = [requirement(name, asked) for name, asked in (("ray", versions.ray), ("optuna", versions.optuna))]
    words = ["pip", "install", "--quiet", "--python", str(python), "--editable", str(TOP), *wanted, *TEST_PACKAGES]
    subprocess.run([uv, *words], env=given, check=True)
    # Ray's node waits 30 s for its agents, which compile hundreds of modules where nobody did before.
    words = ["-c", "import compileall, ray; compileall.compile_dir(ray.__path__[0], quiet=2)"]
    subprocess.run([python, *words], check=True)
    return python


def installed(python: Path) -> list[str]:
    """Return the versions that the environment really has: of Python, Ray, Optuna and torch."""
    code = "import importlib.metadata as m, platform; print(platform.python_version(), *map(m.version, %r))"
    names = ("ray", "optuna", "torch")
    asked = subprocess.run([python, "-c", code % (names,)], capture_output=True, text=True, check=True)
    return asked.stdout.split()


def run_area(python: Path, area: str, tests: Iterable[str], log: Path) -> Count:
    """Run the tests of an area; what they print goes to the log."""
    given = os.environ | {"PYTHONPATH": str(TOP), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    given["PATH"] = os.pathsep.join([str(python.parent), given["PATH"]])
    report = log.with_suffix(".xml")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *QUIET, f"--junitxml={report}", *tests]
    with log.open("a") as out:
        subprocess.run([python, *words], cwd=TOP, env=given, stdout=out, stderr=out)
    return counted(report) if report.exists() else Count(0, 0, (f"{area}: pytest did not start",))


def counted(report: Path) -> Count:
    """Read pytest's JUnit report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    report.unlink()
    bad = tuple(str(c.get("name")) for c in cases if c.find("failure") is not None or c.find("error") is not None)
    skipped = sum(c.find("skipped") is not None for c in cases)
    return Count(len(cases) - skipped - len(bad), skipped, bad)


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def run_row(versions: Versions, areas: Mapping[str, Sequence[str]], folder: Path, uv: str) -> bool:
    """Make the environment and run the areas in it; whether all passed. Prints the row, and failures by name."""
    try:
        python = make_environment(versions, folder, uv)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"not run: {' '.join(versions)}: {error}", flush=True)
        return False
    found = installed(python)
    log = folder / f"python-{found[0]}-ray-{found[1]}-optuna-{found[2]}.log"
    counts = {area: run_area(python, area, tests, log) for area, tests in areas.items()}
    print(row([*found, *counts.values(), datetime.date.today()]), flush=True)
    failed = [f"{area}: {name}" for area, count in counts.items() for name in count.failed]
    print(*failed, *([f"  see {log}"] if failed else []), sep="\n", flush=True)
    return not failed


def main() -> int:
    """Exit code 1 where a test failed or an environment could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", help="only these versions of Python")
    parser.add_argument("--ray", nargs="*", help="only these of Ray: lowest, newest")
    parser.add_argument("--area", nargs="*", choices=list(AREAS), help="only these areas")
    parser.add_argument("--quick", action="store_true", help="a few tests of most areas")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pretune-versions")
    parser.add_argument("--keep", action="store_true", help="keep the downloaded packages in the folder")
    given = parser.parse_args()
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        print("uv is missing: pip install uv", file=sys.stderr)
        return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    areas = {name: tests for name, tests in (QUICK if given.quick else AREAS).items() if name in (given.area or AREAS)}
    print(row(["Python", "Ray", "Optuna", "torch", *areas, "date"]))
    print(row(["---"] * (5 + len(areas))), flush=True)
    asked = [v for v in VERSIONS if v.python in (given.python or [v.python]) and v.ray in (given.ray or [v.ray])]
    passed = [run_row(versions, areas, given.folder, uv) for versions in asked]
    for name in ["environment"] if given.keep else ["environment", "cache"]:
        shutil.rmtree(given.folder / name, ignore_errors=True)
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
