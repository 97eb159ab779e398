"""BYOL's loss against arithmetic by hand and Lightly, its views, and what moves in a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.methods.byol import BYOL, byol_loss
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import jitter_factors, views_of

VIEWS = schema.Views(size=8, blur=0.3)


def batch_of(recipes: tuple[schema.Views, ...], count: int = 6) -> Batch:
    images = torch.randint(0, 256, (count, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(count)
    return Batch(views_of(images, indices, recipes, 0, 0), lambda what, n: uniforms(0, what, 0, indices, 0, n))


def build(momentum: float = 0.9) -> BYOL:
    torch.manual_seed(0)
    recipes = asymmetric(VIEWS, (1.0, 0.1), (0.0, 0.2))
    return BYOL(Encoder((4, 6)), recipes, hidden=16, dim=8, momentum=momentum, momentum_end=1.0)


def test_loss_worked_by_hand() -> None:
    """Cosines 1, 0 and -1 give 0, 2 and 4; lengths do not matter."""
    prediction = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-4.0, 0.0]])
    for row, expected in enumerate((0.0, 2.0, 4.0)):
        assert float(byol_loss(prediction[row : row + 1], target[row : row + 1])) == pytest.approx(expected, abs=1e-6)
    assert float(byol_loss(prediction, target)) == pytest.approx(2.0, abs=1e-6)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_loss_is_lightlys(seed: int, scale: float) -> None:
    """2 - 2 cos = 2 + 2 * (negative cosine), in value and gradient."""
    generator = torch.Generator().manual_seed(seed)
    start, target = torch.randn(2, 7, 5, generator=generator) * scale
    gradients: list[Tensor] = []
    values: list[Tensor] = []
    for loss in (byol_loss, lambda p, z: 2 + 2 * NegativeCosineSimilarity()(p, z)):
        p = start.clone().requires_grad_()
        value = loss(p, target)
        value.backward()
        assert p.grad is not None
        values.append(value.detach())
        gradients.append(p.grad)
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


def test_loss_of_half_precision_is_float32() -> None:
    p = torch.randn(4, 3).bfloat16()
    assert byol_loss(p, p).dtype == torch.float32


def test_views_differ_in_blur_and_solarisation_alone() -> None:
    first, second = asymmetric(VIEWS, (1.0, 0.1), (0.0, 0.2))
    assert (first.blur, second.blur, first.solarize, second.solarize) == (1.0, 0.1, 0.0, 0.2)
    assert first.model_copy(update={"blur": 0.3, "solarize": 0.0}) == VIEWS
    assert second.model_copy(update={"blur": 0.3, "solarize": 0.0}) == VIEWS


def test_without_a_blur_of_their_own_views_keep_the_settings() -> None:
    assert [view.blur for view in asymmetric(VIEWS, None, (0.0, 0.2))] == [0.3, 0.3]


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0)])
def test_solarisation_inverts_bright_pixels_of_that_share_of_views(probability: float, share: float) -> None:
    """400 otherwise plain views of white images: black where solarised. Three standard errors of 0.2 are 0.06."""
    plain = schema.Views(size=4, crop=(1, 1), aspect=(1, 1), flip=0, color_jitter=0, solarize=probability)
    white = torch.full((400, 4, 4, 3), 255, dtype=torch.uint8)
    (view,) = views_of(white, np.arange(400), [plain], 0, 0)
    values = view.pixels.flatten(1)
    assert torch.equal(values.amin(dim=1), values.amax(dim=1))
    assert float((values[:, 0] == 0).float().mean()) == pytest.approx(share, abs=0.06 if 0 < share < 1 else 0)


def test_saturation_has_a_strength_of_its_own() -> None:
    """Strength 0.5 gives 0.4, 0.4, 0.4 and 0.1; BYOL's saturation is half of that: 0.2 (lowest and highest draw)."""
    draws = np.array([[0.0] * 4, [1.0] * 4])
    expected = [[0.6, 0.6, 0.8, -0.1], [1.4, 1.4, 1.2, 0.1]]
    np.testing.assert_allclose(jitter_factors(draws, 0.5, 0.5), expected)


def test_the_turn_of_the_hue_may_be_given_by_itself() -> None:
    """P1's code: .5 of everything. Strength 0.625 gives 0.5 and, not given, a turn of 0.125."""
    draws = np.array([[0.0] * 4, [1.0] * 4])
    np.testing.assert_allclose(jitter_factors(draws, 0.625, hue=0.5), [[0.5, 0.5, 0.5, -0.5], [1.5, 1.5, 1.5, 0.5]])
    np.testing.assert_allclose(jitter_factors(draws, 0.625)[:, 3], [-0.125, 0.125])


def test_forward_is_the_sum_of_both_directions() -> None:
    """The same networks, asked view by view in eval mode."""
    method = build().eval()
    batch = batch_of(method.recipes)
    with torch.no_grad():
        loss, _ = method(batch, 0.0)
        pooled = [method.encoder(view.pixels)[-1].mean(dim=(2, 3)) for view in batch.views]
        p = [method.predictor(method.projector(x)) for x in pooled]
        z = [method.target_projector(x) for x in pooled]  # the target encoder is still equal to the online one
    torch.testing.assert_close(loss, byol_loss(p[0], z[1]) + byol_loss(p[1], z[0]))


def test_gradients_reach_the_online_network_only() -> None:
    method = build()
    method(batch_of(method.recipes), 0.0)[0].backward()
    online = [*method.encoder.parameters(), *method.projector.parameters(), *method.predictor.parameters()]
    assert all(parameter.grad is not None for parameter in online)
    target = [*method.target_encoder.parameters(), *method.target_projector.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in target)


def test_target_follows_with_the_momentum_of_the_schedule() -> None:
    """At half of training a momentum from 0.9 to 1 is 0.95; at its end the target stands still."""
    method = build(0.9)
    weight, target = method.projector[0].weight, method.target_projector[0].weight
    with torch.no_grad():
        weight += 1.0
    before = target.clone()
    method.after_step(0.5)
    torch.testing.assert_close(target, before + 0.05)
    after = target.clone()
    method.after_step(1.0)
    assert torch.equal(target, after)
