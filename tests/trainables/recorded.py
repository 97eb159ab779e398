"""What the engine's loops do, seen from outside: every state that they would write, and the gradients before it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from plain import Moment
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainables import checkpoints

# In float64 a sum in another order differs by 1e-16 of its size. Seven steps of these networks carry it to some 1e-13;
# Adam divides by at least 1e-8, so a gradient that is nothing but rounding moves a weight by some 1e-10.
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


@contextlib.contextmanager
def recorded() -> Iterator[list[Moment]]:
    """The moments of the loop that runs inside, in order; it must be due to write its state after every step."""
    moments: list[Moment] = []
    gradients: list[list[Tensor | None]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        met = [p.grad for group in optimizer.param_groups for p in group["params"]]
        gradients.append([None if gradient is None else gradient.clone() for gradient in met])

    def save(state: dict[str, Any], _: Any) -> None:
        assert state["step"] == len(gradients)  # a state after every step, none twice
        moments.append(moment(copy.deepcopy(state), gradients[-1]))

    hook = register_optimizer_step_pre_hook(before)
    try:
        with mock.patch.object(checkpoints, "save_state", save), mock.patch.object(checkpoints, "save_end", save):
            yield moments
    finally:
        hook.remove()


def moment(state: dict[str, Any], gradients: list[Tensor | None]) -> Moment:
    """Parameters have their place in the optimiser for a name: `by_place` gives the plain loop's the same."""
    groups, slots = state["optimizer"]["param_groups"], state["optimizer"]["state"]
    return Moment(
        loss=float(state["losses"][-1]) if state["losses"] else float("nan"),  # an epoch's end has taken its mean
        gradients={str(i): gradient for i, gradient in enumerate(gradients) if gradient is not None},
        weights=state["network"] if "network" in state else state["method"],
        rates=[group["lr"] for group in groups],
        decays=[group["weight_decay"] for group in groups],
        slots={str(i): slot for i, slot in slots.items()},
    )
