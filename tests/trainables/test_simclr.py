"""NT-Xent against hand-worked numbers and against lightly's implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.methods.heads import pooled
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.simclr import SimCLR, build_simclr, diagnostics, nt_xent
from pretune.trainables.models.heads import ProjectionHead
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.drawn import View

E = math.e


@pytest.mark.parametrize(
    ("z1", "z2", "temperature", "expected"),
    [
        # all four agree with their partner (cosine 1) and are orthogonal to the other two: -log(e / (e + 1 + 1))
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], 1.0, math.log(E + 2) - 1),
        # the same at T = 0.5: -log(e^2 / (e^2 + 2))
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], 0.5, math.log(E**2 + 2) - 2),
        # partners orthogonal (cosine 0), one stranger equal (1), one orthogonal (0): log(1 + e + 1)
        ([[1, 0], [0, 1]], [[0, 1], [1, 0]], 1.0, math.log(E + 2)),
        # everything one point: 3 equal candidates, log 3, which is uniform_loss(2)
        ([[1, 0], [1, 0]], [[1, 0], [1, 0]], 0.1, math.log(3)),
        # partners opposite (-1), strangers orthogonal: log(e^-1 + 2) + 1
        ([[1, 0], [0, 1]], [[-1, 0], [0, -1]], 1.0, math.log(1 / E + 2) + 1),
    ],
)
def test_nt_xent_of_two_by_two_vectors(
    z1: list[list[float]], z2: list[list[float]], temperature: float, expected: float
) -> None:
    loss = nt_xent(torch.tensor(z1).float(), torch.tensor(z2).float(), temperature)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_nt_xent_normalises_and_averages_over_all_four_views() -> None:
    """a = (1, 0), b = (0, 2) -> (0, 1), partners c = (3, 4) -> (.6, .8), d = (0, 1).

    Cosines: ab 0, ac .6, ad 0, bc .8, bd 1, cd .8. With T = 1 the four terms are
    a: log(1 + e^.6 + 1) - .6, b: log(1 + e^.8 + e) - 1, c: log(e^.6 + e^.8 + e^.8) - .6, d: log(1 + e + e^.8) - 1.
    """
    terms = [
        math.log(2 + E**0.6) - 0.6,
        math.log(1 + E**0.8 + E) - 1,
        math.log(E**0.6 + 2 * E**0.8) - 0.6,
        math.log(1 + E + E**0.8) - 1,
    ]
    loss = nt_xent(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 4], [0, 1]]), 1.0)
    assert float(loss) == pytest.approx(sum(terms) / 4, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(2, 12), dim=st.integers(2, 16), temperature=st.floats(0.07, 2.0), seed=st.integers(0, 10**6))
def test_nt_xent_agrees_with_lightly_in_value_and_gradient(batch: int, dim: int, temperature: float, seed: int) -> None:
    z = torch.randn(2, batch, dim, generator=torch.Generator().manual_seed(seed))
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    mine = nt_xent(ours[0], ours[1], temperature)
    reference = NTXentLoss(temperature=temperature)(theirs[0], theirs[1])
    mine.backward()
    reference.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    z = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    loss = nt_xent(z[0], z[1], 0.05)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z[0].float(), z[1].float(), 0.05), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_and_its_gradient_stay_in_float32_under_autocast(temperature: float) -> None:
    """To the last bit. Cosines in bfloat16 are wrong by up to 0.002, 0.03 of a logit at T 0.07."""
    values, gradients = [], []
    for enabled in (False, True):
        z = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values.append(nt_xent(z[0], z[1], temperature))
        gradients.append(torch.autograd.grad(values[-1], z)[0])
    assert values[1].dtype == torch.float32
    assert torch.equal(*values)
    assert torch.equal(*gradients)


def test_a_head_without_batch_norm_is_two_layers_and_a_relu() -> None:
    """P1's text; each row is projected by itself, and 6 x 5 + 5 + 5 x 3 + 3 parameters do it."""
    head = ProjectionHead(6, 5, 3, norm=False)
    assert sum(p.numel() for p in head.parameters()) == 6 * 5 + 5 + 5 * 3 + 3
    x = torch.randn(4, 6, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x)[:1], head(x[:1]))
    chosen = schema.SimCLR(name="simclr", head_norm=False)
    built = build_simclr(chosen, schema.Views(), Parts(Encoder((4, 6)), lambda: pytest.fail("no decoder"), 0, 0))
    assert isinstance(built, SimCLR)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in built.head.modules())


def test_a_collapsed_encoder_has_the_uniform_loss_no_spread_and_equal_views() -> None:
    z = torch.ones(5, 4)
    assert float(nt_xent(z, z, 0.2)) == pytest.approx(SimCLR.uniform_loss(5), abs=1e-6)
    assert SimCLR.uniform_loss(5) == pytest.approx(math.log(9))
    values = diagnostics(z, z)
    assert float(values["feature_std"]) == pytest.approx(0, abs=1e-6)
    assert float(values["positive_similarity"]) == pytest.approx(1, abs=1e-6)


def test_diagnostics_by_hand() -> None:
    """Rows (1,0), (0,1), (1,0), (0,1): per dimension 1,0,1,0, whose sample std is sqrt(4 * .25 / 3); partners equal."""
    z = torch.tensor([[2.0, 0], [0, 3]])
    values = diagnostics(z, z)
    assert float(values["feature_std"]) == pytest.approx(math.sqrt(1 / 3), abs=1e-6)
    assert float(values["positive_similarity"]) == pytest.approx(1, abs=1e-6)


def test_both_views_pass_batch_norm_as_one_batch() -> None:
    """Running statistics move once per step, and only the encoder and the head hold parameters."""
    torch.manual_seed(0)
    method = SimCLR(Encoder((4, 8)), schema.Views(), temperature=0.2, hidden=16, dim=8)
    views = [View(torch.rand(3, 3, 8, 8), torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool)) for _ in range(2)]
    loss, _ = method(Batch(views, lambda purpose, count: np.zeros((3, count))), 0.0)
    counts = {int(b) for name, b in method.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {1}
    assert loss.shape == ()
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"encoder", "head"}


def test_the_head_sees_as_many_levels_as_asked_the_coarsest_first() -> None:
    """Widths 4, 8, 16: one level is the bottleneck's 16 channels, two are 16 + 8, pooled over their own places."""
    encoder = Encoder((4, 8, 16)).eval()
    maps = encoder(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    means = [one.mean(dim=(2, 3)) for one in maps]
    assert torch.equal(pooled(maps), means[2])
    assert torch.equal(pooled(maps, 2), torch.cat([means[2], means[1]], dim=1))
    for levels, inputs in ((1, 16), (2, 24), (3, 28)):
        method = SimCLR(encoder, schema.Views(), temperature=0.2, hidden=5, dim=8, levels=levels)
        assert method.head.layers[0].weight.shape == (5, inputs)
    with pytest.raises(ValueError, match="projection_levels 4: this encoder has 3 levels"):
        SimCLR(encoder, schema.Views(), temperature=0.2, hidden=5, dim=8, levels=4)


def test_the_bottleneck_alone_gives_the_digits_of_the_plain_head() -> None:
    torch.manual_seed(0)
    method = SimCLR(Encoder((4, 8)), schema.Views(), temperature=0.2, hidden=16, dim=8).eval()
    pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = torch.full((3, 4), 1.0)
    views = [View(part, whole, torch.zeros(3, dtype=torch.bool)) for part in pixels.chunk(2)]
    z1, z2 = method.head(method.encoder(pixels)[-1]).chunk(2)
    loss, _ = method(Batch(views, lambda purpose, count: np.zeros((3, count))), 0.0)
    assert torch.equal(loss, nt_xent(z1, z2, 0.2))
