"""Memory of a stage: what earlier ones left is given back; out of memory is tried once more, then final."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pretune.outcomes import Failure
from pretune.plan import make_plan
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage
from pretune.trainables.memory import Need, StepMemory
from pretune.worker import stage_memory
from pretune.worker.failures import failed
from pretune.worker.stage_memory import checkpointing_sentence, fitting_sentence, what_fits, with_less_memory

give_back = stage_memory.free_memory  # the tests below replace it
STUDY: dict[str, Any] = {
    "study": "t",
    "data": {"s": {"dataset": "scenes", "images": 40, "cache_size": 16}},
    "model": {"name": "unet", "widths": [4, 8]},
    "finetune": {"data": "s", "size": 16, "batch_size": 8, "steps": 1, "transfer": "none"},
}


class Run:
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
    stage = Run(torch.OutOfMemoryError("CUDA out of memory"), None)
    assert with_less_memory(stage, on_gpu=True) == ({"x": 1.0}, True)
    assert stage.resident == [True, False]
    assert len(freed) == 2


def test_there_is_no_third_attempt() -> None:
    stage = Run(torch.OutOfMemoryError("first"), torch.OutOfMemoryError("second"))
    with pytest.raises(torch.OutOfMemoryError, match="second"):
        with_less_memory(stage, on_gpu=True)


@pytest.mark.parametrize(("error", "on_gpu"), [(ValueError("no"), True), (MemoryError("host"), False)])
def test_other_errors_and_cpus_get_one_attempt(error: Exception, on_gpu: bool, freed: list[int]) -> None:
    stage = Run(error)
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
    outcome = failed(error, 64, tmp_path, lambda: fitting_sentence(Need(2 * 10**9, 250 * 10**6), 16 * 10**9))
    assert outcome.failure is Failure.OUT_OF_MEMORY
    assert outcome.cause.endswith(
        "lower batch_size (now 64), or set precision: bfloat16; by formula a step takes 2 GB and 250 MB an image in "
        "float32: into 16 GB batch_size 49 fits"
    )


def test_each_of_several_workers_takes_its_part_of_the_batch() -> None:
    memory = StepMemory(Need(2 * 10**9, 250 * 10**6), Need(2 * 10**9, 100 * 10**6))
    one, two = (fitting_sentence(memory.plain, 16 * 10**9, workers) for workers in (1, 2))
    assert two.endswith("into 16 GB of each of 2 workers batch_size 98 fits")
    assert 2 * largest_batch(one) == largest_batch(two)
    apart = [largest_batch(checkpointing_sentence(memory, 16 * 10**9, "pretrain", workers)) for workers in (1, 2)]
    assert 2 * apart[0] == apart[1]
    stage = finetuning()
    assert 4 * largest_batch(what_fits(stage, 10**9, 1.0)) == largest_batch(what_fits(stage, 10**9, 1.0, 4))


def finetuning(**changes: Any) -> Stage:
    _, (stage,) = make_plan(from_dict(STUDY | {"seeds": {"report": 1}} | changes), lambda data: "digest")
    return stage


def largest_batch(sentence: str) -> int:
    return int(sentence.split("batch_size ")[1].split()[0])


def test_more_memory_fits_more_images_and_too_little_none() -> None:
    stage = finetuning()
    assert "batch_size" in what_fits(stage, 10**9, 1.0)
    quarter = largest_batch(what_fits(stage, 10**10, 0.25))
    assert quarter == largest_batch(what_fits(stage, 1_700_000_000, 1.0))  # 2.5 GB, of which CUDA itself takes 0.8
    assert largest_batch(what_fits(stage, 10**10, 1.0)) > 5 * quarter
    assert what_fits(stage, 1000, 1.0).endswith("not one image fits; lower the size of the images or the model")


def test_checkpointing_is_named_with_what_would_fit() -> None:
    """(0.9 x 10 GB - 1 GB) / 20 MB = 400 images in place of 80."""
    memory = StepMemory(plain=Need(10**9, 10**8), checkpointed=Need(10**9, 2 * 10**7))
    assert checkpointing_sentence(memory, 10**10, "pretrain") == (
        "; with resources.pretrain.activation_checkpointing: true it takes 20 MB an image: batch_size 400 fits"
    )
    assert checkpointing_sentence(memory, 10**9, "pretrain") == ""  # weights and optimiser alone are too large
    assert checkpointing_sentence(StepMemory(memory.plain, memory.plain), 10**10, "pretrain") == ""


def test_checkpointing_is_advised_where_it_is_not_on_and_can_be() -> None:
    """A stage that checkpoints already is told its own figures, in which more images fit."""
    plain = what_fits(finetuning(), 10**8, 1.0)
    on = what_fits(finetuning(resources={"finetune": {"activation_checkpointing": True}}), 10**8, 1.0)
    compiled = what_fits(finetuning(finetune=STUDY["finetune"] | {"compile": True}), 10**8, 1.0)
    advised = plain.partition("; with resources.finetune.activation_checkpointing: true it takes ")[2]
    assert largest_batch(advised) == largest_batch(on) > largest_batch(plain) == largest_batch(compiled)
    assert "activation_checkpointing" not in on + compiled


@pytest.mark.parametrize(
    ("gpus", "capped"),
    [(0.25, [0.15]), (0.125, [pytest.approx(0.025)]), (0.05, [0.0]), (1.0, [1.0]), (2.0, [1.0]), (0.0, [])],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_stage_may_take_its_share_of_the_gpu_and_no_more(
    gpus: float, capped: list[float], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 GB, of which each process has 0.8 beside its tensors. An actor takes one stage after another: the cap of a
    whole GPU is set again, too."""
    caps: list[float] = []
    peaks: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.append(True))
    stage_memory.claim_share(gpus)
    assert caps == (capped if there else [])
    assert len(peaks) == len(caps)
