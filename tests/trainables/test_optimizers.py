"""LARS against arithmetic by hand and Lightly's, torch's without its compiler, and how settings become an optimiser."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
from cases import OPTIMIZERS
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.lars import LARS as LightlyLARS  # noqa: N811
from pydantic import TypeAdapter
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.loop import build_optimizer, clip_gradients, set_decay
from pretune.trainables.optimizers import LARS, SGD, Adam, AdamW


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def single(value: list[list[float]], gradient: list[list[float]]) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor(value))
    parameter.grad = torch.tensor(gradient)
    return parameter


def test_a_step_worked_by_hand() -> None:
    """||w|| = 5, ||g|| = 1, beta 0.2: r = 0.1 * 5 / (1 + 1) = 0.25; u = 0.25 (0 + 0.6, 1 + 0.8); w - 2 u."""
    w = single([[3.0, 4.0]], [[0.0, 1.0]])
    LARS([w], lr=2.0, momentum=0.9, weight_decay=0.2, trust_coefficient=0.1).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[3 - 2 * 0.15, 4 - 2 * 0.45]]))


def test_momentum_worked_by_hand() -> None:
    """Of a bias: u = 1 twice, v = 1 then 1.5, so 10 - 1 - 1.5."""
    b = nn.Parameter(torch.tensor([10.0]))
    optimizer = LARS([b], lr=1.0, momentum=0.5, weight_decay=0.3)
    for _ in range(2):
        b.grad = torch.tensor([1.0])
        optimizer.step()
    assert b.item() == pytest.approx(7.5)


@given(seed=st.integers(0, 100), momentum=st.sampled_from([0.0, 0.9]), decay=st.sampled_from([1e-6, 1e-4, 0.1]))
@settings(deadline=None, max_examples=8)
def test_five_steps_are_lightlys(seed: int, momentum: float, decay: float) -> None:
    """Lightly leaves out what has no weight decay: biases and norms, in a group of their own."""
    ours = network(seed)
    theirs = copy.deepcopy(ours)
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers = LARS(ours.parameters(), 0.5, momentum, decay), LightlyLARS(groups, 0.5, momentum)
    for step in range(5):
        x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_weight_of_zeros_takes_the_plain_gradient() -> None:
    w = single([[0.0, 0.0]], [[1.0, 2.0]])
    LARS([w], lr=0.1, momentum=0.0, weight_decay=0.1).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[-0.1, -0.2]]))


def test_a_weight_with_a_gradient_of_zeros_is_not_decayed() -> None:
    """A batch without any pixel that counts moves nothing; timm's LARS decays by the whole rate."""
    w = single([[3.0, 4.0]], [[0.0, 0.0]])
    LARS([w], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(w.detach(), torch.tensor([[3.0, 4.0]]))


def test_what_has_no_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(2, 2)), single([[1.0]], [[1.0]])
    LARS([still, moved], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert moved.item() != 1.0


def test_state_resumes_to_the_same_bits() -> None:
    first = network(0)
    optimizer = LARS(first.parameters(), 0.1, 0.9, 1e-4)
    x = torch.randn(6, 3, 4, 4)

    def step(model: nn.Module, with_optimizer: LARS) -> None:
        with_optimizer.zero_grad()
        model(x).square().mean().backward()
        with_optimizer.step()

    step(first, optimizer)
    second = copy.deepcopy(first)
    resumed = LARS(second.parameters(), 0.1, 0.9, 1e-4)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(first, optimizer)
    step(second, resumed)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_settings_become_lars_over_what_is_given() -> None:
    model = network(0)
    chosen = schema.LARS(name="lars", lr=0.2, momentum=0.8, weight_decay=1e-4, trust_coefficient=0.01)
    optimizer = build_optimizer(chosen, model[1:].parameters())
    assert isinstance(optimizer, LARS)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["trust"]) == (0.2, 0.8, 1e-4, 0.01)
    assert len(group["params"]) == 4  # norm and linear layer, weight and bias each


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_of_weights_alone_excludes_biases_and_norms(name: str) -> None:
    """With gradients of 0 only weight decay moves anything (Adam has one of 0.5 w there, whose step is the rate)."""
    body = {"name": name, "lr": 0.1, "weight_decay": 0.5}
    for chosen in (body, body | {"decay": "weights"}):
        model = network(0)
        settings = TypeAdapter(schema.Optimizer).validate_python(chosen)
        optimizer = build_optimizer(settings, model.parameters())
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved = {p.ndim > 1: bool((p < 1).all()) for p in model.parameters()}
        assert moved == {True: True, False: "decay" not in chosen}


def test_decay_follows_half_a_cosine_and_spares_what_has_none() -> None:
    """DINO: 0.04 to 0.4; half way through it is the mean of both."""
    settings = schema.AdamW(name="adamw", weight_decay=0.04, weight_decay_end=0.4, decay="weights")
    optimizer = build_optimizer(settings, network(0).parameters())
    for step, expected in ((0, 0.04), (50, 0.22), (100, 0.4)):
        set_decay(optimizer, settings, step, 100)
        assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([expected, 0.0])


def test_gradients_are_clipped_together_or_one_by_one() -> None:
    """Norms 3 and 4: to 1 together they are divided by 5, one by one each becomes 1; 0.5 stays."""
    for clip, expected in ((None, [0.6, 0.8]), ("parameter", [1.0, 1.0])):
        parameters = [single([[0.0]], [[3.0]]), single([[0.0]], [[4.0]])]
        clip_gradients(iter(parameters), 1.0, clip)
        assert [float(p.grad) for p in parameters if p.grad is not None] == pytest.approx(expected, rel=1e-5)
    small = single([[0.0]], [[0.5]])
    clip_gradients([small], 1.0, "parameter")
    clip_gradients([small], None, None)
    assert small.grad is not None
    assert float(small.grad) == 0.5


@pytest.mark.parametrize("clip", [None, "parameter"])
@pytest.mark.parametrize("norm", [1e-3, 0.7, 50.0])
def test_clipping_gives_the_bits_of_torch(norm: float, clip: Literal["parameter"] | None) -> None:
    generator = torch.Generator().manual_seed(3)
    ours, torchs = ([nn.Parameter(torch.zeros(n, 3)) for n in (1, 4, 90)] for _ in range(2))
    for a, b in zip(ours, torchs, strict=True):
        a.grad = torch.randn(a.shape, generator=generator)
        b.grad = a.grad.clone()
    clip_gradients(ours, norm, clip)
    for part in [[parameter] for parameter in torchs] if clip else [torchs]:
        nn.utils.clip_grad_norm_(part, norm)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, torchs, strict=True))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- torch's, without its compiler


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours", "torchs", "more"),
    [
        (SGD, torch.optim.SGD, {"momentum": 0.8}),
        (SGD, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        (Adam, torch.optim.Adam, {}),
        (AdamW, torch.optim.AdamW, {}),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_steps_and_states_are_the_bits_of_torch(
    ours: Any, torchs: Any, more: dict[str, Any], decay: float, fused: bool
) -> None:
    networks = network(3), network(3)
    pair = [
        kind(net.parameters(), lr=0.05, weight_decay=decay, fused=fused, **more)
        for kind, net in zip((ours, torchs), networks, strict=True)
    ]
    for step in range(3):
        for net, optimizer in zip(networks, pair, strict=True):
            optimizer.zero_grad()
            torch.manual_seed(step)
            net(torch.randn(6, 3, 4, 4)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in networks), strict=True))
    state, theirs = (optimizer.state_dict() for optimizer in pair)
    assert str(state) == str(theirs)


WITHOUT_COMPILER = """
import json, sys, torch
from pydantic import TypeAdapter
from pretune.search_spaces import schema
from pretune.trainables.loop import build_optimizer
weights = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
for settings in json.load(sys.stdin):
    optimizer = build_optimizer(TypeAdapter(schema.Optimizer).validate_python(settings), weights)
    for _ in range(2):
        optimizer.zero_grad()
        sum(weight.sum() for weight in weights).backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_no_optimiser_loads_the_compiler() -> None:
    """In a process of its own: every stage's process would take 2 CPU seconds for it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], input=json.dumps([*OPTIMIZERS.values()]),
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
