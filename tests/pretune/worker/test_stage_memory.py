"""Memory of a stage: what earlier ones left is given back; out of memory is tried once more, then final."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pretune.outcomes import Failure
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.worker import stage_memory
from pretune.worker.failures import failed
from pretune.worker.stage_memory import fitting_sentence, what_fits, with_less_memory

give_back = stage_memory.free_memory  # the tests below replace it
STUDY = {
    "study": "t",
    "data": {"s": {"dataset": "scenes", "images": 40, "cache_size": 16}},
    "model": {"name": "unet", "widths": [4, 8]},
    "finetune": {"data": "s", "size": 16, "batch_size": 8, "steps": 1, "transfer": "none"},
}


class Stage:
    """Raises what it is told to, one attempt after the other."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.resident: list[bool] = []

    def __call__(self, resident: bool) -> dict[str, float]:
        self.resident.append(resident)
        if error := self.errors.pop(0):
            raise error
        return {"x": 1.0}


@pytest.fixture(autouse=True)
def freed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(stage_memory, "free_memory", lambda: found.append(1))
    return found


def test_a_second_attempt_leaves_images_on_the_host(freed: list[int]) -> None:
    stage = Stage(torch.OutOfMemoryError("CUDA out of memory"), None)
    assert with_less_memory(stage, on_gpu=True) == ({"x": 1.0}, True)
    assert stage.resident == [True, False]
    assert len(freed) == 2


def test_there_is_no_third_attempt() -> None:
    stage = Stage(torch.OutOfMemoryError("first"), torch.OutOfMemoryError("second"))
    with pytest.raises(torch.OutOfMemoryError, match="second"):
        with_less_memory(stage, on_gpu=True)


@pytest.mark.parametrize(("error", "on_gpu"), [(ValueError("no"), True), (MemoryError("host"), False)])
def test_other_errors_and_cpus_get_one_attempt(error: Exception, on_gpu: bool, freed: list[int]) -> None:
    stage = Stage(error)
    with pytest.raises(type(error)):
        with_less_memory(stage, on_gpu=on_gpu)
    assert stage.resident == [True]
    assert freed == [1]  # a CPU's stages too leave memory behind


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone gives memory back when asked")
def test_freed_memory_goes_back_to_the_system() -> None:
    """300 MB in blocks that glibc keeps, held apart by one that stays, as activations are by what outlives them."""
    blocks = [np.ones(8_000, np.float64) for _ in range(4_700)]  # 64 kB each: below malloc's own mapping
    last = blocks[-1]
    del blocks
    before = resident()
    give_back()
    assert before - resident() > 150e6
    assert last.sum() == 8_000


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_the_sentence_names_what_fits(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    outcome = failed(error, 64, tmp_path, lambda: fitting_sentence(2 * 10**9, 250 * 10**6, 40, 16 * 10**9))
    assert outcome.failure is Failure.OUT_OF_MEMORY
    assert outcome.cause.endswith(
        "lower batch_size (now 64), or set precision: bfloat16; by formula a step takes 2 GB and 250 MB an image in "
        "float32: into 16 GB batch_size 40 fits"
    )


def test_more_memory_fits_more_images_and_too_little_none() -> None:
    _, (stage,) = make_plan(from_dict(STUDY | {"seeds": {"report": 1}}), lambda data: "digest")
    assert "batch_size" in what_fits(stage, 10**9, 1.0)
    whole, quarter = (int(what_fits(stage, 10**8, gpus).split("batch_size ")[1].split()[0]) for gpus in (1.0, 0.25))
    assert 3.5 * quarter <= whole <= 4.5 * quarter + 4
    assert what_fits(stage, 1000, 1.0).endswith("not one image fits; lower the size of the images or the model")
