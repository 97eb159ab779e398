"""The sdist and the wheel: what is in them, and a study run by a wheel that is installed beside nothing of ours."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOP = Path(__file__).resolve().parents[1]
LINKED = ("analysis", "search_spaces", "trainables")
SMALL = [
    *("pretrain.epochs=1", "finetune.steps=2", "seeds.report=2"),
    *("data.scenes.images=40", "data.scenes.split.test=10", "data.scenes.split.val=5"),
]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of this tree, and the wheel that is built from it as an index's users do; made in a copy."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    for name in ("pretune", *LINKED):
        shutil.copytree(TOP / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(TOP / name, copy)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True, timeout=300)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(sdist)], check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def ours() -> set[str]:
    """Every file of the package, with what its links lead to, as a path below `pretune/`'s parent."""
    found = (Path(folder) / name for folder, _, names in os.walk(TOP / "pretune", followlinks=True) for name in names)
    return {path.relative_to(TOP).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_all_of_ours_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == ours()
        assert wheel.read("pretune/trainables/loop.py") == (TOP / "trainables" / "loop.py").read_bytes()
    assert {
        "pretune/search_spaces/studies/quickstart.yaml",
        "pretune/search_spaces/papers/p2_table2.yaml",
        "pretune/analysis/report/assets/report.html.j2",
    } <= names


def test_the_links_arrive_as_files_in_the_sdist(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        members = sdist.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert ours() <= files
    assert not {name for name in files if name.split("/")[0] in ("tests", *LINKED)}


@pytest.mark.ray
def test_the_installed_wheel_runs_the_quickstart_from_an_empty_folder(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    """In an environment of its own, which sees this one's packages but not its links to the checkout."""
    home, empty = tmp_path / "venv", tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=300)
    python = home / "bin" / "python"
    base = {"base": str(home), "platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "venv", base))
    # A .pth beside other packages is read only in a folder of `site`'s own, so that of an editable install is not.
    (own / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(archives[1])], check=True, capture_output=True, timeout=300)
    empty.mkdir()
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    where = subprocess.run(
        [python, "-c", "import pretune; print(pretune.__file__)"],
        cwd=empty, env=alone, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert Path(where.stdout.strip()) == own / "pretune" / "__init__.py"
    words = [word for setting in SMALL for word in ("--set", setting)]
    done = subprocess.run(
        [home / "bin" / "pretune", "run", "quickstart", *words],
        cwd=empty, env=alone, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (empty / "runs" / "quickstart" / "report.html").stat().st_size > 10_000
    status = json.loads((empty / "runs" / "quickstart" / "status.json").read_text())
    assert status["finished"] == 18  # 2 pretrainings, and 2 starts x 2 augmentations x 2 numbers of labels x 2 seeds


def test_the_bill_of_materials_names_every_package_with_its_version(tmp_path: Path) -> None:
    top = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, top / "docs" / "sbom.py", tmp_path / "sbom.json"], check=False, timeout=60)
    assert done.returncode == 0
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.5")
    found = {one["name"].lower(): one["version"] for one in made["components"]}
    for name in ("ray", "optuna", "numpy"):
        assert found[name] == importlib.metadata.version(name)
    assert "Apache License" in (top / "LICENSE").read_text()
