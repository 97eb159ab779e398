"""CPUs and stage runs of this computer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretune.cluster import capacity, tune


def cgroup(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "900000 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu.max": "?\n"}, 6),
    ],
)
def test_cpus_are_those_that_the_process_is_bound_to_and_its_container_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert capacity.usable_cpus(cgroup(tmp_path, files)) == expected


@pytest.mark.parametrize(("cpus", "gpus", "expected"), [(4, 0, 4), (16, 1, 1), (2, 8, 2)])
def test_each_stage_run_takes_a_cpu_and_a_gpu_where_there_is_one(cpus: int, gpus: int, expected: int) -> None:
    assert capacity.stages_at_once(cpus, gpus) == expected


def test_ray_here_is_told_the_cpus_that_the_process_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert tune._here(None, False)["num_cpus"] == 1
    assert tune._here(3, False)["num_cpus"] == 3
