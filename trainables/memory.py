"""Memory of a GPU: the budget of images that stay there, and what a training step needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.recomputation import has_backward, segments_of

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


class StepMemory(NamedTuple):
    """Memory of a step that keeps its activations, and of one that computes those of its segments again."""

    plain: Need
    checkpointed: Need

    def as_run(self, checkpointing: bool) -> Need:
        return self.checkpointed if checkpointing else self.plain


def step_memory(
    network: nn.Module, optimizer: schema.Optimizer | None, step: Callable[[], object], batch: int
) -> StepMemory:
    """Run a step (forward and backward pass) of `batch` images, without checkpointing, and measure what it needs.

    `network` holds all that is trained or averaged; `optimizer` is None for what trains nothing.
    """
    with SavedBytes(network.parameters()) as saved, SegmentBytes(segments_of(network), saved) as apart:
        step()
    trained = sum(_bytes([p]) for p in network.parameters() if p.requires_grad)
    kept = 0 if optimizer is None else (1 + SLOTS[optimizer.name]) * trained
    fixed = _bytes([*network.parameters(), *network.buffers()]) + kept
    return StepMemory(*(Need(fixed, -(-total // batch)) for total in (apart.plain, apart.checkpointed)))


class SavedBytes:
    """Bytes that forward passes keep for the backward pass, each memory once; parameters are not counted.

    Args:
        parameters: whose views are not counted either, such as a linear layer's transposed weights.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self.seen: dict[int, int] = {}  # bytes by address
        self._parameters = {address_of(one) for one in parameters}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)

    @property
    def total(self) -> int:
        return sum(self.seen.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def another(self) -> SavedBytes:
        """A count of its own that leaves the same parameters out."""
        other = SavedBytes()
        other._parameters = self._parameters
        return other

    def pack(self, x: Tensor) -> Tensor:
        """Count a tensor."""
        address, size = address_of(x), x.untyped_storage().nbytes()
        if not (x.is_leaf and x.requires_grad) and address not in self._parameters:
            self.seen[address] = max(size, self.seen.get(address, 0))
        return x


class SegmentBytes:
    """Bytes that are kept within segments, counted apart from those outside of them.

    Args:
        segments: modules of which none lies in another.
        outside: counts what is kept elsewhere.
    """

    def __init__(self, segments: Sequence[nn.Module], outside: SavedBytes) -> None:
        self._segments, self._outside = segments, outside
        self._passing: list[SavedBytes] = []
        self._inside: dict[int, int] = {}
        self._inputs = outside.another()  # which checkpointing keeps
        self._held: list[Tensor] = []  # inputs that are not kept without: their memory would be given to others
        self._largest = 0  # of the passes through a segment, without its inputs

    @property
    def plain(self) -> int:
        """All bytes together, each memory once."""
        return sum((self._outside.seen | self._inside).values())

    @property
    def checkpointed(self) -> int:
        """Bytes where the backward pass has one segment's activations at a time, the largest's at the peak."""
        return sum((self._outside.seen | self._inputs.seen).values()) + self._largest

    def __enter__(self) -> SegmentBytes:
        self._handles = [one.register_forward_pre_hook(self._enter) for one in self._segments]
        self._handles += [one.register_forward_hook(self._leave) for one in self._segments]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, segment: nn.Module, inputs: tuple[Any, ...]) -> None:
        for x in inputs if has_backward(segment, inputs) else ():
            if isinstance(x, Tensor):
                self._held.append(self._inputs.pack(x).detach())
        self._passing.append(self._outside.another().__enter__())

    def _leave(self, segment: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        saved = self._passing.pop()
        saved.__exit__(None, None, None)
        given = {address_of(x) for x in inputs if isinstance(x, Tensor)}
        self._largest = max(self._largest, sum(size for address, size in saved.seen.items() if address not in given))
        self._inside |= saved.seen


def address_of(x: Tensor) -> int:
    """Address of a tensor's memory, the same for all views of it."""
    return x.untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
