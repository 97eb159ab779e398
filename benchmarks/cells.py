"""CPU time in which a study of 10,000 cells with a range is read: `python -m benchmarks.cells`.

100 x 100 levels and a temperature: 30,000 configurations are checked, three of each cell. Nothing is trained.
"""

from __future__ import annotations

import time
from typing import Any

from pretune.search_spaces.resolve import from_dict

STUDY: dict[str, Any] = {
    "study": "cells",
    "data": {"d": {"dataset": "scenes"}},
    "pretrain": {
        "data": "d",
        "method": {"name": "simclr", "temperature": {"log_uniform": [0.05, 1]}},
        "views": {"size": 32},
        "batch_size": 8,
        "epochs": 1,
    },
    "finetune": {"data": "d", "size": 32, "epochs": 1},
    "factors": {
        "a": {f"a{i}": {"finetune.optimizer": {"name": "adam", "lr": 1e-4 * (i + 1)}} for i in range(100)},
        "b": {f"b{i}": {"finetune.batch_size": i + 1} for i in range(100)},
    },
    "tune": {"trials": 4},
}


def main() -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    study = from_dict(STUDY)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{len(study.cells)} cells: {cpu:.1f} s of CPU time, {wall:.1f} s of wall time")


if __name__ == "__main__":
    main()
