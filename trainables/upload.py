"""The way from the host to the device. Everything takes it, so that nothing waits for the device on it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PART = 64 * 2**20  # bytes of a large array that go to the device at once


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device, with its own type. On a CPU it shares the array's memory where that is contiguous.

    From page-locked memory a copy runs beside what the device has to do; from any other it waits for all of that.
    """
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host if device.type == "cpu" else page_locked(host, device).to(device, non_blocking=True)


def upload_whole(array: NDArray[Any], device: torch.device) -> Tensor:
    """The whole array on the device, through one page-locked buffer: the host makes no copy of it."""
    rows = max(1, min(len(array), PART // max(1, array[:1].nbytes)))
    buffer = page_locked(torch.from_numpy(np.empty((rows, *array.shape[1:]), array.dtype)), device)
    whole = torch.empty(array.shape, dtype=buffer.dtype, device=device)
    for first in range(0, len(array), rows):
        part = buffer[: len(array) - first]
        part.numpy()[...] = array[first : first + rows]
        whole[first : first + rows].copy_(part)  # waits: the buffer is filled again
    return whole


def page_locked(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory() if device.type == "cuda" else x


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small tensor that never changes, uploaded once. Not to be written to."""
    return torch.tensor(values, dtype=dtype).to(device)
