"""Activation checkpointing: a backward pass that computes activations again in place of keeping them.

Every segment of a network (a level, a residual block, a transformer block; `models.interface.Segmented`) keeps its
inputs alone. Its activations are there again while the backward pass goes through it, and go afterwards (Chen et al.:
"Training deep nets with sublinear memory cost", 2016). The graph of the backward pass stays as it is, so gradients are
added up in the same order, and digits stay.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretune.trainables.models.interface import Segmented


def segments_of(network: nn.Module) -> list[nn.Module]:
    """Segments of all encoders and decoders in a network, each once."""
    parts = [part for part in network.modules() if isinstance(part, Segmented)]
    return list(dict.fromkeys(segment for part in parts for segment in part.segments()))


def recompute_activations(network: nn.Module, asked: bool) -> None:
    """Checkpoint the activations of all segments, in place, if `asked`. Names of weights stay."""
    for segment in segments_of(network) if asked else ():
        segment.forward = Recomputed(segment)


class Recomputed:
    """The forward pass of a segment, whose activations are computed again in the backward pass."""

    def __init__(self, segment: nn.Module) -> None:
        self._segment, self._forward = segment, segment.forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """As the segment's own. A pass without gradients, as of a frozen encoder or a target network, keeps nothing."""
        if not has_backward(self._segment, inputs):
            return self._forward(*inputs, **named)
        contexts = contextlib.nullcontext(), CopiedBuffers(self._segment)  # of the first pass and of the second
        return checkpoint(self._forward, *inputs, use_reentrant=False, context_fn=lambda: contexts, **named)


def has_backward(segment: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a backward pass will come through a segment."""
    tensors = [*segment.parameters(), *(one for one in inputs if isinstance(one, Tensor))]
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)


class CopiedBuffers:
    """Gives a segment copies of its buffers for a while: running statistics stay those of the first pass."""

    def __init__(self, segment: nn.Module) -> None:
        self._segment = segment
        self._own: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        training = [module for module in self._segment.modules() if module.training]
        self._own = [(module, name, own) for module in training for name, own in module.named_buffers(recurse=False)]
        for module, name, own in self._own:
            setattr(module, name, own.clone())

    def __exit__(self, *error: object) -> None:
        for module, name, own in self._own:
            setattr(module, name, own)
        self._own = []
