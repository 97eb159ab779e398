"""What the engine's loops do, seen from outside: every state that they would write, and the gradients before it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from plain import Moment
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from workers import in_double_precision

from pretune.trainables import checkpoints
from pretune.trainables.files import STATE
from pretune.trainables.loop import PreemptedError, RunContext

# In float64 a sum in another order differs by 1e-16 of its size, which some steps of these networks carry to 1e-13.
# Adam counts its steps in float32.
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-7, "check_dtype": False}
ROUNDING = 1e-13  # a gradient below it is nothing but rounding, as of a bias before a batch norm


@contextlib.contextmanager
def no_steps_by_rounding() -> Iterator[None]:
    """Gradients that are nothing but rounding are 0 inside, in any loop.

    Adam divides by 1e-8 at the least, and its weight decay adds what it moved to the next gradient: two roundings of 0
    were 1.6e-4 apart after three steps on an EPYC.
    """

    def flush(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for gradient in (p.grad for group in optimizer.param_groups for p in group["params"]):
            if gradient is not None:
                gradient[gradient.abs() < ROUNDING] = 0.0

    hook = register_optimizer_step_pre_hook(flush)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def recorded(first: int = 0) -> Iterator[list[Moment]]:
    """The moments of the loop that runs inside, `first` steps done before; its state is due after every step."""
    moments: list[Moment] = []
    gradients: list[list[Tensor | None]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        met = [p.grad for group in optimizer.param_groups for p in group["params"]]
        gradients.append([None if gradient is None else gradient.clone() for gradient in met])

    def save(state: dict[str, Any], _: Any) -> None:
        assert state["step"] == first + len(gradients)  # a state after every step, none twice
        moments.append(moment(copy.deepcopy(state), gradients[-1]))

    hook = register_optimizer_step_pre_hook(before)
    try:
        with mock.patch.object(checkpoints, "save_state", save), mock.patch.object(checkpoints, "save_end", save):
            yield moments
    finally:
        hook.remove()


def moment(state: dict[str, Any], gradients: list[Tensor | None]) -> Moment:
    groups, slots = state["optimizer"]["param_groups"], state["optimizer"]["state"]
    return Moment(
        loss=float(state["losses"][-1]) if state["losses"] else math.nan,  # an epoch's end has taken them all
        gradients={i: gradient for i, gradient in enumerate(gradients) if gradient is not None},
        weights=state["network"] if "network" in state else state["method"],
        rates=[group["lr"] for group in groups],
        decays=[group["weight_decay"] for group in groups],
        slots=slots,
    )


def resumed(train: Callable[[RunContext], object], out: Path, step: int) -> list[Moment]:
    """The moments of a training that goes on from the state that it left behind when preempted after `step`."""
    left, steps = out / f"left after {step}", itertools.count(1)
    left.mkdir()
    cpu = torch.device("cpu")
    with in_double_precision(), no_steps_by_rounding():
        with pytest.raises(PreemptedError, match=f"after step {step}$"):
            train(RunContext(left, cpu, preempted=lambda: next(steps) == step))
        with recorded(first=step) as engine:
            train(RunContext(out, cpu, checkpoint_seconds=0.0, resume=left / STATE))
    return engine


def assert_alike(engine: list[Moment], plain: list[Moment]) -> None:
    """Step by step, so that what differs is named with the step it begins at."""
    assert len(engine) == len(plain)
    for step, (found, expected) in enumerate(zip(engine, plain, strict=True)):
        said = f"after step {step + 1}"
        assert found.rates == pytest.approx(expected.rates, rel=1e-12), said
        assert found.decays == pytest.approx(expected.decays, rel=1e-12), said
        assert math.isnan(found.loss) or found.loss == pytest.approx(expected.loss, rel=1e-8), said
        assert_close(found.gradients, expected.gradients, f"gradients {said}")
        assert_close(found.weights, expected.weights, f"weights {said}")
        for place, slots in found.slots.items():
            still = {name: torch.zeros_like(slot) for name, slot in slots.items()}  # has not moved, or no momentum
            assert_close(slots, still | expected.slots.get(place, {}), f"parameter {place} {said}")


def assert_close(found: dict[Any, Tensor], expected: dict[Any, Tensor], said: str) -> None:
    assert found.keys() == expected.keys(), said
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], **CLOSE, msg=lambda text, name=name: f"{name} of {said}: {text}"
        )
