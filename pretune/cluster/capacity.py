"""The CPUs of this computer that a study may use, and how many stage runs they hold: one answer for all commands."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs that this process may use: those it is bound to (taskset), or its container's share.

    Ray by itself counts CPUs that a process is not bound to, and would run as many stages on those it has.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """CPUs that a container may use; infinite without a limit. Of version 2 of cgroups, and of version 1."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (OSError, ValueError):  # no such file, or "max"
        return float("inf")


def stages_at_once(cpus: int, gpus: int) -> int:
    """Return how many stage runs without `resources` run at once: each takes a CPU and, where there are any, a GPU."""
    return min(cpus, gpus) if gpus else cpus
