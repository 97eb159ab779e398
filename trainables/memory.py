"""Memory of a GPU: the budget of images that stay there, and what a training step needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema

RESIDENT = 0.5  # of the free memory, that images may take
SAFE = 0.9  # of a GPU's memory, that a step may take: fragments and libraries have the rest
SLOTS = {"adam": 2, "adamw": 2, "sgd": 1, "lars": 1}  # numbers that an optimiser keeps for each weight


class Residency:
    """One budget for all arrays of a stage that may lie on its GPU.

    Args:
        share: of the GPU that the stage has.
        allowed: whether anything may lie there.
    """

    def __init__(self, share: float = 1.0, allowed: bool = True) -> None:
        self._share = min(1.0, share) if share > 0 else 1.0
        self._left: int | None = None if allowed else 0

    def take(self, array: Any, device: torch.device) -> bool:
        """Whether the array fits; its bytes then leave the budget. Streamed images and CPUs have none."""
        if device.type != "cuda" or not isinstance(array, np.ndarray):
            return False
        if self._left is None:
            free, total = torch.cuda.mem_get_info(device)
            self._left = int(RESIDENT * min(free, self._share * total))
        fits = array.nbytes < self._left
        self._left -= array.nbytes if fits else 0
        return fits


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of a training step, by formula."""

    fixed: int  # weights, gradients, what the optimiser keeps
    per_image: int  # what the forward pass keeps for the backward pass

    def of(self, batch: int) -> int:
        return self.fixed + batch * self.per_image

    def fitting(self, capacity: int) -> int:
        """Images whose step fits into `capacity` bytes; 0 where not even one does."""
        return max(0, int(SAFE * capacity) - self.fixed) // max(1, self.per_image)


def need_of(network: nn.Module, optimizer: schema.Optimizer | None, step: Callable[[], object], batch: int) -> Need:
    """Run a step (forward and backward pass) of `batch` images and measure what it needs.

    `network` holds all that is trained or averaged; `optimizer` is None for what trains nothing.
    """
    with SavedBytes() as saved:
        step()
    trained = sum(_bytes([p]) for p in network.parameters() if p.requires_grad)
    kept = 0 if optimizer is None else (1 + SLOTS[optimizer.name]) * trained
    return Need(_bytes([*network.parameters(), *network.buffers()]) + kept, -(-saved.total // batch))


class SavedBytes:
    """Bytes that forward passes keep for the backward pass, each memory once; parameters are not counted."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    @property
    def total(self) -> int:
        return sum(self._seen.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, x: Tensor) -> Tensor:
        if not (x.is_leaf and x.requires_grad):
            storage = x.untyped_storage()
            self._seen[storage.data_ptr()] = max(storage.nbytes(), self._seen.get(storage.data_ptr(), 0))
        return x


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
