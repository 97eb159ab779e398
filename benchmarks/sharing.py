"""Wall time of the twelve-cell study (freeze x skip x three label amounts) with and without sharing.

    python -m benchmarks.sharing --data <folder that holds oxford-iiit-pet>

Both runs do the same training through the same scheduler. Without sharing, every cell's pretraining gets a weight
decay of its own around 1e-12: the same work, but another fingerprint, so that nothing can be shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict

ROWS = [(f, s, n) for f in ("none", "encoder") for s in (True, False) for n in ("all", "10%", "1%")]


def study(shared: bool) -> dict[str, Any]:
    """Twelve cells as the levels of one factor, so that each can have a pretraining of its own."""
    levels = {}
    for i, (freeze, skip, labels) in enumerate(ROWS):
        level = {"finetune.freeze": freeze, "model.skip_connections": skip, "finetune.labels": labels}
        own = {} if shared else {"pretrain.optimizer.weight_decay": (i + 1) * 1e-12}
        levels[f"{freeze} {skip} {labels}"] = level | own
    return {
        "study": "sharing",
        "data": {
            "pets": {"dataset": "oxford-iiit-pet", "limit": 800, "cache_size": 64, "split": {"test": 0.25, "val": 0.1}}
        },
        "model": {"widths": [8, 16, 32, 64]},
        "pretrain": {
            "data": "pets",
            "method": {"name": "simclr"},
            "batch_size": 128,
            "epochs": 10,
            "optimizer": {"name": "adam"},
        },
        "finetune": {"data": "pets", "size": 64, "batch_size": 16, "epochs": 4},
        "factors": {"cell": levels},
        "seeds": {"report": 1},
    }


def measure(shared: bool, data: Path, cache: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = Options(Path(folder) / "out", Path(folder) / "store", cache, data)
        began = time.monotonic()
        ended = run_study(from_dict(study(shared)), options, Console(quiet=True))
        return {"shared": shared, "stage_runs": ended.trained, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    import ray
    import torch

    with tempfile.TemporaryDirectory() as cache:
        found = []
        for shared in (True, False):
            found.append(measure(shared, arguments.data, Path(cache)))
            ray.shutdown()
            print(json.dumps(found[-1]), flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}
    print(json.dumps({"ratio": round(found[1]["seconds"] / found[0]["seconds"], 2)} | versions))


if __name__ == "__main__":
    main()
