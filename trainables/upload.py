"""The way from the host to the device. Everything takes it, so that nothing waits for the device on it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device, with its own type. On a CPU it shares the array's memory where that is contiguous.

    From page-locked memory a copy runs beside what the device has to do; from any other it waits for all of that.
    """
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host if device.type == "cpu" else page_locked(host, device).to(device, non_blocking=True)


def page_locked(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory() if device.type == "cuda" else x


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A small tensor that never changes, uploaded once. Not to be written to."""
    return torch.tensor(values, dtype=dtype).to(device)
