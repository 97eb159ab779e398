"""Cost of the scheduler itself: stage runs handed out and ended at once, by the real scheduler and programs.

python -m benchmarks.scheduler            200 cells: about 1,000 and 10,000 stage runs; plain, with races, with rungs
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage

STUDY: Mapping[str, Any] = {
    "study": "simulated",
    "data": {"d": {"dataset": "scenes"}},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "epochs": 1},
    "finetune": {"data": "d", "epochs": 9},
    "factors": {
        "epochs": {"finetune.epochs": list(range(9, 19))},
        "batch": {"finetune.batch_size": list(range(1, 21))},
    },
}
RATE = {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}}}
RACE = {"sampler": "random", "batch": 4, "startup": 4, "racing": {"first": 2}}
CLIMB = {"sampler": "random", "batch": 4, "startup": 4, "rungs": {"epochs": [1, 3], "keep": 0.5}}


def studies() -> dict[str, Mapping[str, Any]]:
    def searched(tune: Mapping[str, Any], trials: int, seeds: int) -> Mapping[str, Any]:
        return STUDY | {
            "finetune": {**STUDY["finetune"], **RATE},
            "seeds": {"search": seeds, "report": 2},
            "tune": {**tune, "trials": trials},
        }

    return {
        "plain": STUDY | {"seeds": {"report": 5}},
        "plain, more": STUDY | {"seeds": {"report": 50}},
        "races": searched(RACE, 4, 4),
        "races, more": searched(RACE, 16, 4),
        "rungs": searched(CLIMB, 4, 1),
        "rungs, more": searched(CLIMB, 28, 1),
    }


def outcome(stage: Stage) -> Outcome:
    value = int.from_bytes(hashlib.sha256(stage.fingerprint.encode()).digest()[:4], "big") / 2**32
    return Outcome("finished", {"val/jaccard": value, "test/jaccard": value})


def simulate(name: str, study: Mapping[str, Any], storage: BaseStorage) -> None:
    """Print how long a hand-out takes in each fifth of the study: programs, Optuna and the ends of stages included."""
    run = Run(from_dict(dict(study)), lambda data: "content", storage)
    scheduler = Scheduler(lambda fingerprint: None, retries=0)
    began = time.process_time()
    scheduler.start(program.start(run))
    expanded = time.process_time() - began
    moments = [time.process_time()]
    for stage in iter(scheduler.take, None):
        scheduler.complete(stage, outcome(stage))
        moments.append(time.process_time())
    assert scheduler.finished
    count = len(moments) - 1
    marks = [count * k // 5 for k in range(6)]
    fifths = [1000 * (moments[b] - moments[a]) / (b - a) for a, b in itertools.pairwise(marks)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:20} {count:6} stage runs: expanded in {expanded:.1f} s; ms per hand-out by fifths "
        f"{' '.join(f'{each:.3f}' for each in fifths)}; {memory:.0f} MB at most so far",
        flush=True,
    )


def main() -> None:
    for name, study in studies().items():
        simulate(name, study, InMemoryStorage())
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        simulate("rungs, journal file", studies()["rungs, more"], open_storage(Path(folder) / "optuna.journal"))


if __name__ == "__main__":
    main()
