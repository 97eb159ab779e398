"""Stage runs per minute and training images per second with 1, 2 and 4 stage runs at once, on this machine.

    python -m benchmarks.scaling --repeats 2

Fine-tunings of generated scenes, alike in everything but seed and learning rate, one thread each. More at once than
there are cores is oversubscription: it shows what the engine costs when the CPUs are full, not a gain. The clock runs
from the first stage handed out to the last one finished: Ray's own start is left out, that of the actors is in.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from pretune.cluster.tune import start_ray
from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict
from pretune.status import State

AT_ONCE = (1, 2, 4)
BATCH, RATES, SEEDS = 16, 4, 4


def study(steps: int) -> dict[str, Any]:
    levels = {f"rate {i}": {"finetune.optimizer.lr": 0.001 * (i + 1)} for i in range(RATES)}
    return {
        "study": "scaling",
        "data": {"scenes": {"dataset": "scenes", "images": 400, "cache_size": 48, "split": {"test": 0.1, "val": 0.1}}},
        "model": {"widths": [8, 16, 32, 64]},
        "pretrain": {"data": "scenes", "method": {"name": "none"}},
        "finetune": {"data": "scenes", "size": 48, "batch_size": BATCH, "steps": steps, "transfer": "none"},
        "factors": {"rate": levels},
        "seeds": {"report": SEEDS},
    }


def measure(at_once: int, steps: int, cache: Path) -> dict[str, Any]:
    moments: list[float] = []
    before = State.event

    def event(self: State, kind: str, stage: Any, text: str) -> None:
        if kind in ("started", "finished"):
            moments.append(time.monotonic())
        before(self, kind, stage, text)

    with tempfile.TemporaryDirectory() as folder:
        options = Options(Path(folder) / "out", Path(folder) / "store", cache, parallel=at_once)
        local = functools.partial(start_ray, None, at_once)
        with patch("pretune.run.start_ray", lambda *_: local()), patch.object(State, "event", event):
            ended = run_study(from_dict(study(steps)), options, Console(quiet=True))
    assert ended.trained == RATES * SEEDS, ended
    seconds = moments[-1] - moments[0]
    trained = ended.trained
    return {
        "at_once": at_once,
        "stage_runs": trained,
        "seconds": round(seconds, 1),
        "stage_runs_per_minute": round(60 * trained / seconds, 1),
        "images_per_second": round(trained * steps * BATCH / seconds),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=2, help="all counts in turns, so many times")
    arguments = parser.parse_args()
    import ray
    import torch

    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(arguments.repeats):
            for at_once in AT_ONCE:
                found.append(measure(at_once, arguments.steps, Path(cache)))
                print(json.dumps(found[-1]), flush=True)
    alone = [each["images_per_second"] for each in found if each["at_once"] == 1]
    for at_once in AT_ONCE:
        rates = [each["images_per_second"] for each in found if each["at_once"] == at_once]
        ratios = [rate / one for rate, one in zip(rates, alone, strict=True)]
        efficiency = statistics.median(ratios) / min(at_once, os.cpu_count() or 1)
        print(json.dumps({"at_once": at_once, "speed_up": [round(r, 2) for r in ratios],
                          "efficiency": round(efficiency, 2)}))  # fmt: skip
    print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}))


if __name__ == "__main__":
    main()
