"""torch's optimisers without its compiler, 2 CPU seconds of a process that trains; and LARS, which it does not have.

timm's LARS gives the same bits but where a weight's gradient is zero: there it decays the weight unscaled, 1000 times
as much. Its state also differs from that in stores (docs/decisions/dependencies.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, overload

import torch
from torch import Tensor, nn


def without_compiler() -> None:
    """Keep torch's compiler out of a process that makes optimisers.

    torch imports it at an optimiser's first call, to exclude a few methods from compilation, and keeps the excluded
    form under this attribute. Nothing here compiles an optimiser. Where torch names it otherwise, it imports as before.
    """
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if isinstance(plain, FunctionType):
            vars(plain).setdefault("__dynamo_disable", plain)


def _step_of(kind: type[torch.optim.Optimizer]) -> Any:
    """A step of torch's without what it wraps around it, which imports the compiler to break a graph there."""
    return torch.no_grad()(inspect.unwrap(kind.step))


class SGD(torch.optim.SGD):
    """torch's, without the import of its compiler."""

    step = _step_of(torch.optim.SGD)


class Adam(torch.optim.Adam):
    """torch's, without the import of its compiler."""

    step = _step_of(torch.optim.Adam)


class AdamW(torch.optim.AdamW):
    """torch's, without the import of its compiler."""

    step = _step_of(torch.optim.AdamW)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is scaled for each weight by its norm over its gradient's.

    You, Gitman, Ginsburg: "Large batch training of convolutional networks", arXiv 1708.03888, equation 6; momentum as
    in torch's SGD:

        r = eta ||w|| / (||g|| + beta ||w||),  u = r (g + beta w),  v <- mu v + u,  w <- w - lr v

    with eta the trust coefficient, beta the weight decay and mu the momentum. Parameters of one dimension (biases,
    norms) are left out of scaling and weight decay, as in SimCLR, BYOL and MoCo v3: u = g. So is a weight that is zero.
    A parameter without a gradient stays as it is. No step waits for the device.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust_coefficient}
        super().__init__(parameters, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients there are; a closure, where given, is called first to make them."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                self._update(trained, group["lr"], group["momentum"], group["weight_decay"], group["trust"])
        return loss

    def _update(self, trained: list[Tensor], lr: float, momentum: float, decay: float, trust: float) -> None:
        velocities = [self._velocity(parameter) for parameter in trained]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, _scaled(trained, decay, trust))
        torch._foreach_add_(trained, velocities, alpha=-lr)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity: Tensor = state["velocity"]
        return velocity


def _scaled(trained: list[Tensor], decay: float, trust: float) -> list[Tensor]:
    """u of each parameter."""
    updates = [_gradient(parameter) for parameter in trained]
    matrices = [i for i, parameter in enumerate(trained) if parameter.ndim > 1]
    if not matrices:
        return updates
    weights, gradients = [trained[i] for i in matrices], [updates[i] for i in matrices]
    w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
    ratios = trust * w / (g + decay * w + 1e-8)  # the last term keeps 0 / 0 away
    ratios = torch.where(w > 0, ratios, 1.0).where(g > 0, 0.0)  # a weight of zero is not scaled; no gradient, no update
    decayed = torch._foreach_add(gradients, weights, alpha=decay)
    torch._foreach_mul_(decayed, list(ratios.unbind()))
    for i, update in zip(matrices, decayed, strict=True):
        updates[i] = update
    return updates


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
