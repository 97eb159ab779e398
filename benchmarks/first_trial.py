"""Seconds from the command to the first trial, and where they go.

    python -m benchmarks.first_trial [--repeats 5]

A `pretune run` of one fine-tuning on 40 generated scenes, from an empty store, each time in a process of its own; files
are in the system's page cache (a first, unmeasured turn). "trial" is the moment at which the first stage run starts to
train: in its actor, torch imported. Medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STUDY = """\
study: first
data: {scenes: {dataset: scenes, images: 40, cache_size: 32}}
model: {widths: [4, 8]}
finetune: {data: scenes, size: 32, epochs: 1, batch_size: 8}
seeds: {report: 1}
"""
PARTS = ("interpreter", "command line", "engine and study", "data", "start Ray", "import Tune", "trial")


def one(root: Path, began: float) -> dict[str, float]:
    """The command, within its process; when each part was done, in seconds since `began` (since 1970)."""
    marks = {"interpreter": time.time() - began}

    def mark(name: str) -> None:
        marks.setdefault(name, time.time() - began)

    from click.testing import CliRunner

    from pretune.cli import cli, study

    mark("command line")
    study.load = after(study.load, lambda: mark("engine and study"))
    from pretune import run

    run.prepare_data = after(run.prepare_data, lambda: mark("data"))
    run.start_ray = after(run.start_ray, lambda: mark("start Ray"))
    run.run_trials = before(run.run_trials, lambda: mark(import_tune()))
    (root / "study.yaml").write_text(STUDY)
    arguments = ["run", str(root / "study.yaml"), "--root", str(root)]
    ended = CliRunner().invoke(cli, arguments)
    if ended.exit_code:
        raise RuntimeError(ended.output)
    done = next((root / "store").glob("*/done.json"))
    marks["trial"] = json.loads(done.read_text())["about"]["started"] - began
    return marks


def import_tune() -> str:
    import pretune.cluster.loggers
    import pretune.cluster.tune_callbacks  # noqa: F401

    return "import Tune"


def before(call: Callable[..., Any], first: Callable[[], Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        first()
        return call(*arguments, **named)

    return wrapped


def after(call: Callable[..., Any], then: Callable[[], Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        answer = call(*arguments, **named)
        then()
        return answer

    return wrapped


def turn() -> dict[str, float]:
    """When each part was done, of a command in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "benchmarks.first_trial", "--one", root, "--began", repr(time.time())]
        shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(shown.stdout[-2000:] + shown.stderr[-2000:])
    marks: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
    return marks


def measure(repeats: int) -> dict[str, Any]:
    turn()
    kept = [turn() for _ in range(repeats)]
    lengths = {
        part: [marks[part] - (marks[PARTS[i - 1]] if i else 0.0) for marks in kept] for i, part in enumerate(PARTS)
    }
    return {
        "first trial, s": [round(marks["trial"], 2) for marks in kept],
        "median": round(statistics.median(marks["trial"] for marks in kept), 2),
        "parts, s": {part: round(statistics.median(values), 2) for part, values in lengths.items()},
        "load at end": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    a = parser.parse_args()
    print(json.dumps(one(a.one, a.began) if a.one else measure(a.repeats)))


if __name__ == "__main__":
    main()
