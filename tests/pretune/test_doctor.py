"""`pretune doctor`: facts of this computer, and what is said where one is missing."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pretune import doctor
from pretune.cli import cli
from pretune.doctor import GIB, Finding, Gpu

GPU = Gpu("NVIDIA H100", 80 * GIB, 79 * GIB)


def test_it_names_versions_and_where_stages_would_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--root", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = {finding["name"]: finding for finding in json.loads(done.output)}
    import ray

    assert f"ray {ray.__version__}" in found["packages"]["value"]
    assert str(len(os.sched_getaffinity(0))) in found["CPUs"]["value"]
    assert found["a study here"]["value"]
    assert not any(finding["stops"] for finding in found.values())


def test_the_table_holds_every_finding(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--root", str(tmp_path)])
    for name in ("Pretune", "packages", "extras", "CPUs", "memory", "results and store", "Ray", "a study here"):
        assert f"\n{name} " in f"\n{done.output}"


def test_a_data_folder_that_is_not_there_ends_in_exit_code_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--root", str(tmp_path), "--data", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "this folder does not exist" in done.output


@pytest.mark.parametrize(
    ("free", "expected"), [(doctor.LEAST_DISK, ""), (doctor.LEAST_DISK - 1, "too little space for a study")]
)
def test_a_disk_that_is_nearly_full_is_told(
    free: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = doctor.disk("results and store", tmp_path / "not" / "yet")
    assert found.problem.startswith(expected)
    assert bool(found.problem) is bool(expected)
    assert not found.stops


def test_a_folder_that_cannot_be_written_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: mode != os.W_OK)
    assert doctor.disk("results and store", tmp_path).stops
    assert not doctor.disk("data", tmp_path, writes=False).stops


@pytest.mark.parametrize(("size", "told"), [(64 * 2**20, True), (doctor.LEAST_SHARED, False)])
def test_little_shared_memory_is_told(size: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=size)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert ("--shm-size" in doctor.shared_memory(tmp_path).problem) is told


@pytest.mark.parametrize(
    ("gpus", "build", "trouble", "value", "problem"),
    [
        ([GPU], "13.0", "", "NVIDIA H100, 80 GiB", ""),
        ([GPU._replace(free=40 * GIB)], "13.0", "", "NVIDIA H100, 80 GiB", "50% of its memory"),
        ([], "13.0", "", "none found; torch is built for 13.0", ""),
        ([], "", "", "built only for CPUs", ""),
        ([], "13.0", "driver too old", "none", "driver too old"),
    ],
)
def test_gpus_are_told(gpus: list[Gpu], build: str, trouble: str, value: str, problem: str) -> None:
    (found,) = doctor.gpu_findings(gpus, build, trouble)
    assert value in found.value
    assert problem in found.problem
    assert bool(problem) is bool(found.problem)


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (16, 1, "one GPU and one CPU; at most 1 at once"),
        (2, 8, "at most 2 at once"),
        (4, 0, "one CPU; at most 4 at once"),
    ],
)
def test_where_stages_run(cpus: int, gpus: int, expected: str) -> None:
    assert expected in doctor.where_stages_run(cpus, gpus)


def test_an_address_in_the_environment_is_told_since_studies_do_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "--address 10.0.0.1:6379" in doctor.ray_settings().problem
    monkeypatch.delenv("RAY_ADDRESS")
    assert not doctor.ray_settings().problem


def test_every_extra_for_users_is_looked_for() -> None:
    given = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    extras = given["project"]["optional-dependencies"]
    assert doctor.EXTRAS.keys() == extras.keys() - {"docs", "test"}
    for extra, package in doctor.EXTRAS.items():
        assert any(line.startswith(package) for line in extras[extra]), extra


def test_a_package_that_is_missing_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, Any] = {"ray": ""}
    monkeypatch.setattr(doctor, "version", lambda name: there.get(name, "1.0"))
    found = {finding.name: finding for finding in doctor.versions()}
    assert found["packages"].stops
    assert "ray not installed" in found["packages"].problem
    assert not doctor.healthy(list(found.values()))
    assert doctor.healthy([Finding("memory", "1 GiB", "little")])
