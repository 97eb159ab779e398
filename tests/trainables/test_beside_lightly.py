"""BYOL and SwAV put together: some steps of training end in the weights that the same steps with Lightly's modules do.

Losses alone agreeing would not show a target that lags by a step, a gradient that is lost, or prototypes that are
normalised too late. Both sides start from the same weights and see the same views; a linear layer before batch norm
has a bias here and none in Lightly's (it is without effect), and Lightly's last bias, which BYOL's authors do not
have, is held at 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, SwaVLoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.methods.byol import BYOL
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.methods.swav import SwAV
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of

STEPS, COUNT, RATE = 6, 16, 0.003
VIEWS = schema.Views(size=8)
MOMENTUM = 0.9


def batches(recipes: tuple[schema.Views, ...]) -> Iterator[Batch]:
    images = torch.randint(0, 256, (COUNT, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(COUNT)
    for epoch in range(STEPS):
        views = views_of(images, indices, recipes, 0, epoch)
        yield Batch(views, lambda what, n: uniforms(0, what, 0, indices, 0, n), epoch=epoch)


def descend(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=1e-3)


def pooled(encoder: nn.Module, x: Tensor) -> Tensor:
    features: Tensor = encoder(x)[-1].mean(dim=(2, 3))
    return features


def same_head(theirs: nn.Module, ours: nn.Module) -> None:
    """Our linear, batch norm, ReLU, linear into Lightly's."""
    layers = [layer for layer in theirs.modules() if isinstance(layer, nn.Linear | nn.BatchNorm1d)]
    originals = [layer for layer in ours.modules() if isinstance(layer, nn.Linear | nn.BatchNorm1d)]
    assert [type(layer) for layer in layers] == [type(layer) for layer in originals]
    for layer, original in zip(layers, originals, strict=True):
        with torch.no_grad():
            layer.weight.copy_(original.weight)
            if layer.bias is not None and original.bias is not None:
                layer.bias.copy_(original.bias)
            elif layer.bias is not None:  # the last of BYOL's
                layer.bias.zero_().requires_grad_(False)


def ours_trained(method: BYOL | SwAV) -> nn.Module:
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = descend(trained, RATE)
    for step, batch in enumerate(batches(method.recipes)):
        loss, _ = method(batch, step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(batch.epoch)
        optimizer.step()
        method.after_step((step + 1) / STEPS)
    return method.encoder


def lightly_byol(method: BYOL, late: int = 0) -> nn.Module:
    """As in Lightly's documentation, with its momentum schedule; the target first moves `late` steps too late."""
    encoder = copy.deepcopy(method.encoder)
    projection, prediction = heads.BYOLProjectionHead(6, 16, 8), heads.BYOLPredictionHead(8, 16, 8)
    same_head(projection, method.projector)
    same_head(prediction, method.predictor)
    target_encoder, target_projection = copy.deepcopy(encoder), copy.deepcopy(projection)
    deactivate_requires_grad(target_encoder)
    deactivate_requires_grad(target_projection)
    criterion = NegativeCosineSimilarity()
    trained = [*encoder.parameters(), *projection.parameters(), *prediction.parameters()]
    optimizer = descend([parameter for parameter in trained if parameter.requires_grad], RATE)
    for step, batch in enumerate(batches(method.recipes)):
        if step > late:
            momentum = cosine_schedule(step, STEPS + 1, MOMENTUM, 1.0)
            update_momentum(encoder, target_encoder, momentum)
            update_momentum(projection, target_projection, momentum)
        x0, x1 = (view.pixels for view in batch.views)
        p0, p1 = (prediction(projection(pooled(encoder, x))) for x in (x0, x1))
        z0, z1 = (target_projection(pooled(target_encoder, x)).detach() for x in (x0, x1))
        loss = 2 * (criterion(p0, z1) + criterion(p1, z0))  # 2 - 2 cos, both directions (BYOL equation 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


def lightly_swav(method: SwAV) -> nn.Module:
    """As in Lightly's documentation; both views in one batch, as in the authors' code."""
    encoder = copy.deepcopy(method.encoder)
    projection, prototypes = heads.SwaVProjectionHead(6, 16, 8), heads.SwaVPrototypes(8, n_prototypes=12)
    same_head(projection, method.head)
    same_head(prototypes, method.prototypes)
    criterion = SwaVLoss(temperature=0.1, sinkhorn_epsilon=0.05, sinkhorn_iterations=3)
    optimizer = descend([*encoder.parameters(), *projection.parameters(), *prototypes.parameters()], RATE)
    for batch in batches(method.recipes):
        prototypes.normalize()
        z = F.normalize(projection(pooled(encoder, torch.cat([view.pixels for view in batch.views]))), dim=1)
        loss = criterion(list(prototypes(z).chunk(2)), [])
        optimizer.zero_grad()
        loss.backward()
        if batch.epoch < 2:
            for parameter in prototypes.parameters():
                parameter.grad = None
        optimizer.step()
    return encoder


def byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(
        Encoder((4, 6)), asymmetric(VIEWS, None, (0.0, 0.0)), hidden=16, dim=8, momentum=MOMENTUM, momentum_end=1.0
    )


def swav() -> SwAV:
    torch.manual_seed(0)
    return SwAV(
        Encoder((4, 6)),
        (VIEWS, VIEWS),
        hidden=16,
        dim=8,
        prototypes=12,
        temperature=0.1,
        epsilon=0.05,
        iterations=3,
        queue=0,
        queue_from_epoch=0,
        freeze_prototypes_epochs=2,
    )


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest of all weights and batch norm statistics."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs if x.is_floating_point())


CASES: dict[str, tuple[Callable[[], BYOL | SwAV], Callable[..., nn.Module]]] = {
    "byol": (byol, lightly_byol),
    "swav": (swav, lightly_swav),
}


@pytest.mark.parametrize("name", CASES)
def test_training_ends_in_the_weights_of_lightlys_modules(name: str) -> None:
    """Within a thousandth of how far the weights moved: 3e-7 to 2e-4 of it was seen, the latter where a ReLU or a
    pooling met a tie that rounding decides, after which the two go on from other gradients."""
    build, lightly = CASES[name]
    ours, moved = ours_trained(build()), distance(ours_trained(build()), build().encoder)
    assert moved > 0.1
    assert distance(ours, lightly(build())) < 1e-3 * moved


def test_a_target_that_starts_a_step_late_would_be_seen() -> None:
    ours, moved = ours_trained(byol()), distance(ours_trained(byol()), byol().encoder)
    assert distance(ours, lightly_byol(byol(), late=1)) > 3e-3 * moved
