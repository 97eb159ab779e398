"""What the scheduler itself costs: stage runs handed out and ended at once, by the real scheduler and programs.

python -m benchmarks.scheduler            200 cells x 50 seeds: 10,050 stage runs
"""

from __future__ import annotations

import resource
import time

from optuna.storages import InMemoryStorage

from pretune import program
from pretune.outcomes import Outcome, Run
from pretune.scheduler import Scheduler
from search_spaces.resolve import from_dict

STUDY = {
    "study": "simulated",
    "data": {"d": {"dataset": "scenes"}},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "epochs": 1},
    "finetune": {"data": "d", "epochs": 1},
    "factors": {
        "epochs": {"finetune.epochs": list(range(1, 11))},
        "batch": {"finetune.batch_size": list(range(1, 21))},
    },
}


def main() -> None:
    for seeds in (5, 50):
        run = Run(from_dict({**STUDY, "seeds": {"report": seeds}}), lambda data: "content", InMemoryStorage())
        scheduler = Scheduler(lambda fingerprint: None, retries=0)
        began = time.perf_counter()
        scheduler.start(program.start(run))
        started = time.perf_counter()
        count = 0
        while (stage := scheduler.take()) is not None:
            scheduler.complete(stage, Outcome("finished", {}))
            count += 1
        each = (time.perf_counter() - started) / count * 1e6
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count:6} stage runs: expanded in {started - began:.1f} s, {each:.1f} us per hand-out, {memory:.0f} MB")


if __name__ == "__main__":
    main()
