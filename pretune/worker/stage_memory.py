"""Memory of a stage: what earlier ones left is given back, and what is tried and said where it was too small."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage
from pretune.trainables.constants import CONTEXT
from pretune.worker.failures import is_out_of_memory

if TYPE_CHECKING:
    from pretune.trainables.memory import Need, StepMemory  # torch is imported where it is needed

Metrics = dict[str, float]


def with_less_memory(run: Callable[[bool], Metrics], on_gpu: bool) -> tuple[Metrics, bool]:
    """Run a stage with its images on the GPU where they fit, and once more without where memory was too small.

    Args:
        run: the stage, given whether images may lie on the GPU.

    Returns:
        Its metrics, and whether it took the second attempt.
    """
    free_memory()
    if not on_gpu:
        return run(True), False
    try:
        return run(True), False
    except Exception as error:  # PyTorch and CUDA have several types for it
        if not is_out_of_memory(error):
            raise
    free_memory()  # here, where the error no longer holds what the attempt had
    return run(False), True


def claim_share(gpus: float) -> None:
    """Cap what this process may take of its GPU at the stage's share, and count its peak from here.

    Without a cap one of several stages takes what was the others', and they run out of memory in its place.
    """
    import torch

    if gpus > 0 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(share_of(total, gpus) / total)
        torch.cuda.reset_peak_memory_stats()


def share_of(total: int, gpus: float) -> float:
    """Bytes that a stage's tensors may take of a GPU with `total` bytes: its share, less what CUDA takes."""
    return max(0.0, total * gpus - CONTEXT) if gpus < 1 else float(total)


def free_memory() -> None:
    """Give back what earlier stages of this process left, on the GPU and on the host.

    glibc keeps freed tensors in the arenas of autograd's threads: a process grew by 0.2 to 1 GB with each pretraining
    on a CPU, with no tensor alive.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def what_fits_here(stage: Stage, gpus: float, workers: int = 1) -> str:
    """`what_fits` of the GPU of this process; "" on a CPU."""
    import torch

    if gpus <= 0 or not torch.cuda.is_available():
        return ""
    return what_fits(stage, torch.cuda.mem_get_info()[1], gpus, workers)


def what_fits(stage: Stage, capacity: int, gpus: float, workers: int = 1) -> str:
    """A sentence with the largest batch that fits into a stage's share of `capacity` bytes; "" where none is known.

    Each of several workers has such a share, and takes its part of the batch.
    """
    from pretune.trainables.sample_step import memory_of

    settings = stage.settings
    if not isinstance(settings, schema.Pretrain | schema.Finetune):
        return ""
    try:
        memory = memory_of(settings, stage.model, schema.slices_of(stage.data))
    except Exception:  # a sentence is not worth another failure
        return ""
    checkpointing, mine = stage.resources.activation_checkpointing, int(share_of(capacity, gpus or 1))
    said = fitting_sentence(memory.as_run(checkpointing), mine, workers)
    if checkpointing or settings.compile:
        return said
    return said + checkpointing_sentence(memory, mine, stage.kind, workers)


def fitting_sentence(need: Need, capacity: int, workers: int = 1) -> str:
    """The largest batch of a stage as it was run."""
    images = need.fitting(capacity) * workers
    formula = f"by formula a step takes {need.fixed / 1e9:.2g} GB and {need.per_image / 1e6:.3g} MB an image in float32"
    fits = f"batch_size {images} fits" if images else "not one image fits; lower the size of the images or the model"
    each = f" of each of {workers} workers" if workers > 1 else ""
    return f"; {formula}: into {capacity / 1e9:.3g} GB{each} {fits}"


def checkpointing_sentence(memory: StepMemory, capacity: int, kind: str, workers: int = 1) -> str:
    """The largest batch with activation checkpointing; "" where it is none, or no larger."""
    images = memory.checkpointed.fitting(capacity) * workers
    if images <= memory.plain.fitting(capacity) * workers:
        return ""
    each = f"{memory.checkpointed.per_image / 1e6:.3g} MB an image"
    return f"; with resources.{kind}.activation_checkpointing: true it takes {each}: batch_size {images} fits"
