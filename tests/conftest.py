"""What several test files share: a study small enough to train in a second, and where real images are."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# no test asserts a time: on a busy machine any example may be slow
settings.register_profile("pretune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pretune")

TINY: dict[str, Any] = {
    "study": "tiny",
    "question": "Does anything help?",
    "data": {
        "scenes": {
            "dataset": "scenes",
            "images": 40,
            "classes": 3,
            "cache_size": 32,
            "split": {"test": 0.25, "val": 0.2, "seed": 0},
        }
    },
    "model": {"name": "unet", "widths": [4, 8]},
    "pretrain": {
        "data": "scenes",
        "method": {"name": "simclr", "hidden": 16, "dim": 8},
        "views": {"size": 16},
        "batch_size": 8,
        "steps": 6,
    },
    "finetune": {"data": "scenes", "size": 32, "batch_size": 8, "steps": 6, "optimizer": {"lr": 0.01}},
    "factors": {"encoder": {"unfrozen": {"finetune.freeze": "none"}, "frozen": {"finetune.freeze": "encoder"}}},
    "seeds": {"search": 1, "report": 2},
    "report": {"rows": "encoder", "metrics": ["test/jaccard"]},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Two cells, two report seeds: two pretrainings and four fine-tunings, without ranges. A copy to change."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository, or PRETUNE_TEST_DATA; skips where there is none."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("PRETUNE_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; PRETUNE_TEST_DATA names another folder")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes in one thread, so that two computations of the same sum have the same digits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
