"""Momentum encoders: a copy of a network that follows it as an exponential moving average.

He et al., "Momentum contrast for unsupervised visual representation learning", CVPR 2020, equation 2. As in the code of
MoCo, BYOL and DINO only parameters are averaged; the copy's batch norm keeps statistics of the copy's own activations.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from pretune.trainables.schedules import cosine_ramp

M = TypeVar("M", bound=nn.Module)


def momentum_copy(network: M) -> M:
    """The same network with weights of its own that no optimiser trains."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * network, for parameters only, in place.

    `average` is a `momentum_copy` of `network`: the same parameters in the same order.
    """
    averages: list[Tensor] = list(average.parameters())
    parameters: list[Tensor] = list(network.parameters())
    torch._foreach_mul_(averages, momentum)
    torch._foreach_add_(averages, parameters, alpha=1 - momentum)


def momentum_at(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` to `end` over training; `progress` in 0 to 1 (BYOL section 3.2, DINO section 3.1).

    The loop calls `after_step` with the share of training done *after* the step, so the averaging before the forward
    of step k of K has the momentum of k / K, as in MoCo v3's code; BYOL's and DINO's are one step behind it.
    """
    return start if start == end else cosine_ramp(start, end, progress, 1.0)
