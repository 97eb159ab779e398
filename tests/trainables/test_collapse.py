"""Collapse detectors: values worked by hand, and encoders that have collapsed on purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.methods import collapse
from pretune.trainables.methods.dino import DINO, DINOHead
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.drawn import View

STEPS = 40


def test_spread_is_zero_for_equal_features_and_one_for_opposite_ones() -> None:
    same = torch.tensor([[3.0, 4.0]]).repeat(5, 1)
    assert float(collapse.spread(same)) == pytest.approx(0, abs=1e-7)
    assert float(collapse.spread(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))) == pytest.approx(1)


def test_spread_by_hand() -> None:
    """Unit vectors along x and y have the mean (1/2, 1/2): sqrt(1 - 1/2)."""
    assert float(collapse.spread(torch.eye(2))) == pytest.approx(math.sqrt(0.5))


def test_feature_std_by_hand() -> None:
    """(1, 0) and (0, 2) become unit vectors; both channels are 0 and 1, with a standard deviation of 1/2."""
    assert float(collapse.feature_std(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))) == pytest.approx(0.5)


def test_effective_rank_counts_equally_strong_directions() -> None:
    """Plus and minus each of three axes: three equal singular values."""
    x = torch.cat((torch.eye(3), -torch.eye(3)))
    assert float(collapse.effective_rank(torch.cat((x, torch.zeros(6, 2)), dim=1))) == pytest.approx(3)


def test_effective_rank_by_hand() -> None:
    """Singular values 3 and 1: shares 3/4 and 1/4, of entropy 0.75 ln(4/3) + 0.25 ln 4."""
    x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert float(collapse.effective_rank(x)) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


@pytest.mark.parametrize(("images", "channels"), [(5, 12), (12, 5)])
def test_effective_rank_is_that_of_the_singular_values(images: int, channels: int) -> None:
    x = torch.randn(images, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    shares = values / values.sum()
    expected = math.exp(-sum(float(s) * math.log(float(s)) for s in shares if s > 1e-12))
    assert float(collapse.effective_rank(x)) == pytest.approx(expected, rel=1e-5)


def test_features_without_variation_have_rank_one() -> None:
    assert float(collapse.effective_rank(torch.ones(4, 3))) == pytest.approx(1)


def test_features_that_are_not_finite_have_no_rank() -> None:
    assert math.isnan(float(collapse.effective_rank(torch.tensor([[1.0, 2.0], [math.nan, 0.0]]))))


class Constant(nn.Module):
    """An encoder that has collapsed to a point."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.ones(len(x), 6, 2, 2)]


class Line(nn.Module):
    """An encoder whose features vary along one direction alone."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.mean(dim=(1, 2, 3))[:, None, None, None] * torch.tensor([1.0, -2.0, 3.0])[None, :, None, None] + 1]


def test_collapsed_encoders_are_named() -> None:
    pixels = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    (point, rank), (line,) = (collapse.signs(collapse.measure(network, pixels)) for network in (Constant(), Line()))
    assert point.startswith("encoder_spread 0 ")
    assert rank.startswith("encoder_rank 1 ")
    assert line.startswith("encoder_rank 1 ")


def test_a_healthy_encoder_is_not_and_measuring_leaves_it_as_it_was() -> None:
    torch.manual_seed(0)
    encoder = Encoder((4, 8))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    values = collapse.measure(encoder, torch.rand(32, 3, 16, 16) * torch.rand(32, 3, 1, 1))
    assert collapse.signs(values) == ()
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(("share", "found"), [(1.0, True), (0.991, True), (1.009, True), (0.98, False), (1.3, False)])
def test_a_loss_at_its_uniform_value_is_named(share: float, found: bool) -> None:
    assert any("one answer for all inputs" in text for text in collapse.signs({"loss_over_uniform": share})) == found


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert collapse.signs({}) == ()
    assert collapse.signs({"positive_similarity": 1.0}) == ()


CORNER = {"loss_over_uniform": 0.0, "encoder_spread": 0.6, "encoder_rank": 9.0, "feature_std": 0.07}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (CORNER | {"teacher_entropy_over_uniform": 0.0}, "teacher_entropy_over_uniform 0"),
        (
            CORNER | {"teacher_entropy_over_uniform": 0.001, "teacher_mean_entropy_over_uniform": 0.003},
            "teacher_entropy_over_uniform 0.001",
        ),
        (CORNER | {"prototypes_used": 1 / 3000, "prototypes_chosen": 1.0}, "prototypes_chosen 1"),
        ({"encoder_spread": 0.3, "encoder_rank": 40.0, "feature_std": 1e-6}, "feature_std 1e-06"),
    ],
)
def test_a_corner_that_the_encoder_does_not_show_is_named(values: dict[str, float], named: str) -> None:
    (found,) = collapse.signs(values)
    assert found.startswith(named)


def test_a_teacher_that_is_sure_of_several_clusters_is_no_corner() -> None:
    """Four clusters of 2048 outputs, one-hot: the mean over images has the entropy ln 4."""
    values = {"teacher_entropy_over_uniform": 0.0, "teacher_mean_entropy_over_uniform": math.log(4) / math.log(2048)}
    assert collapse.signs(CORNER | values | {"prototypes_chosen": 2.0}) == ()


def test_dino_whose_centre_stands_still_ends_in_a_corner_and_is_named() -> None:
    """Without centring the sharpened outputs of all images drift to one (Caron et al., figure 7), here within 40
    steps of an encoder whose features still vary. A centre that moves keeps the same run healthy."""
    found = {momentum: dino_signs(momentum) for momentum in (0.9, 1.0)}
    assert any(text.startswith("teacher_entropy_over_uniform") for text in found[1.0])
    assert found[0.9] == ()


def dino_signs(center_momentum: float) -> tuple[str, ...]:
    """The signs after some steps on images that are mostly one colour each; each view adds another one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 1, 1, generator=generator) + 0.2 * torch.rand(64, 3, 16, 16, generator=generator)
    torch.manual_seed(0)
    method = DINO(
        Encoder((8, 16)),
        (schema.Views(), schema.Views()),
        DINOHead(16, hidden=64, bottleneck=16, prototypes=64, norm=True),
        student_temperature=0.1,
        teacher_temperature=0.04,
        teacher_temperature_start=0.04,
        teacher_warmup_epochs=0,
        center_momentum=center_momentum,
        momentum=0.5,
        momentum_end=0.5,
        freeze_last_epochs=0,
        export="teacher",
    )
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)
    for _ in range(STEPS):
        noise = [torch.rand(64, 3, 1, 1, generator=generator) for _ in range(2)]
        batch = Batch(
            [View(images + n, torch.zeros(64, 4), torch.zeros(64, dtype=torch.bool)) for n in noise],
            lambda what, count: np.zeros((64, count)),
        )
        loss, values = method(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(0.0)
    floats = {name: float(value) for name, value in values.items()}
    return collapse.signs(floats | collapse.measure(method.encoder, images))
