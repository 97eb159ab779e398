"""From an exception of a stage to the outcome that travels to the driver: its kind, and a sentence for people.

The one place where exceptions become kinds. It also reads the words of libraries that have no class for what happened;
nothing after it looks into a sentence.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from pretune.outcomes import Failure, Outcome
from pretune.trainables.data.errors import DataError, printable
from pretune.worker.ray_private import worker_exception

LEAST_BYTES = 65_536  # below which a disk is full
NO_SPACE = os.strerror(errno.ENOSPC)  # safetensors and Arrow pass the system's words on, and no number
NO_MEMORY = (  # where its type does not say so
    "DefaultCPUAllocator: can't allocate memory",  # torch on a CPU
    "CUDA out of memory",  # of a worker of a group, from the allocator
    "CUDA error: out of memory",  # outside of the allocator: a context, pinned memory
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# What Python raises for a mistake in settings or code; their subclasses tell of files and networks (json, pyarrow).
DEFECTS = {
    *(ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, NameError, NotImplementedError),
    *(OverflowError, TypeError, UnboundLocalError, ValueError, ZeroDivisionError),
}


class NoGPUError(RuntimeError):
    """Ray assigned a GPU, and torch finds none."""


class StageFailedError(RuntimeError):
    """A worker of a group failed in a way that no restart would change; its outcome was found out there."""

    def __init__(self, cause: str, failure: Failure) -> None:
        super().__init__(cause, failure)
        self.outcome = Outcome("crashed", {}, cause, failure=failure)


def failed(error: Exception, batch_size: int | None, store: Path, fitting: Callable[[], str] = lambda: "") -> Outcome:
    """The outcome of a stage that raised.

    Args:
        batch_size: of the stage, named where memory was too small.
        store: the folder of the store on this node.
        fitting: what to add where memory was too small.
    """
    error = worker_exception(error)
    if isinstance(error, StageFailedError):
        return error.outcome
    if isinstance(error, DataError):
        kind = Failure.BAD_DATA if error.stays else Failure.ERROR
        return Outcome("crashed", {}, " | ".join([error.summary, *error.problems]), failure=kind)
    kind = kind_of(error, store)
    return Outcome("crashed", {}, describe(error) + advice(kind, batch_size, fitting), failure=kind)


def kind_of(error: Exception, store: Path) -> Failure:
    """The kind of failure that an exception is."""
    if isinstance(error, NoGPUError):
        return Failure.NO_GPU
    if is_out_of_memory(error):
        return Failure.OUT_OF_MEMORY
    if is_full(store):  # whatever the library that failed for it says
        return Failure.STORE_FULL
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failure.NODE_DISK_FULL if _elsewhere(error, store) else Failure.STORE_FULL
    if NO_SPACE in str(error):
        return Failure.STORE_FULL
    return Failure.DEFECT if type(error) in DEFECTS else Failure.ERROR


def is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder is full."""
    try:
        return shutil.disk_usage(folder).free < LEAST_BYTES
    except OSError:
        return False


def _elsewhere(error: OSError, store: Path) -> bool:
    """Whether the full disk is one of this node alone; where no file is named, its temporary folder may be."""
    if error.filename is None:
        return is_full(Path(tempfile.gettempdir()))
    return not Path(os.fsdecode(error.filename)).is_relative_to(store)


def advice(kind: Failure, batch_size: int | None, fitting: Callable[[], str] = lambda: "") -> str:
    """Return an addition to the error's own words."""
    if kind is Failure.STORE_FULL:
        return " (the disk of the store is full)"
    if kind is Failure.NODE_DISK_FULL:
        return f" (a disk of {platform.node()} is full)"
    if kind is Failure.OUT_OF_MEMORY:
        lower = f"batch_size (now {batch_size})" if batch_size else "the size of the images"
        return f"; not enough memory: lower {lower}, or set precision: bfloat16{fitting()}"
    return ""


def describe(error: BaseException) -> str:
    """One line: what went wrong and where in our code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip().replace("\n", " | ")
    return printable(f"{type(error).__name__}: {text}{place}"[:2000])  # it goes into a Parquet column
