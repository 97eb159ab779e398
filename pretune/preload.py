"""What a stage needs, imported by the workers that Ray starts with itself while the driver is still busy.

Ray imports this module in every worker process (`RAY_preload_python_modules`). Those it starts later, for Ray Data or
Ray Train, mostly need less, and import what they need themselves.
"""

from __future__ import annotations

import importlib
import os
import time

UNTIL = "PRETUNE_PRELOAD_UNTIL"  # seconds since 1970; after it workers start without
SECONDS = 6.0  # after the start of Ray; on a machine too busy for that nothing is gained by it
NEEDED = ("torch._dynamo", "pretune.searcher", "trainables.finetune", "trainables.pretrain")  # _dynamo: by optimizers


def environment() -> dict[str, str]:
    """For Ray's processes."""
    return {"RAY_preload_python_modules": __name__, UNTIL: str(time.time() + SECONDS)}


if time.time() < float(os.environ.get(UNTIL, "0")):
    for name in NEEDED:
        importlib.import_module(name)
