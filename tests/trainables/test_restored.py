"""What is shown of a restoring method is what its loss is about: the errors it reports are those of these pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.restored import restored
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of


def made(settings: Any) -> Any:
    torch.manual_seed(0)
    model = schema.UNet(widths=(4, 8))
    parts = Parts(build_encoder(model), lambda: build_decoder(model), 0, 0)
    return build_method(settings, schema.Views(size=16), parts).eval()  # type: ignore[attr-defined]


def batch_of(method: Any) -> Batch:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), np.uint8))
    indices = np.arange(6)
    views = views_of(images, indices, method.recipes, 1, 0, None)
    return Batch(views, lambda purpose, count: uniforms(1, f"method/{purpose}", 0, indices, 0, count), images=images)


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


def test_maes_pictures_have_the_error_that_its_loss_reports() -> None:
    method = made(schema.MAE(name="mae", ratio=0.5, patch=4))
    batch = batch_of(method)
    found = restored(method, batch)
    mask = method.mask(batch).expand_as(found.shown)
    assert (found.shown[mask] == 0).all()
    assert torch.equal(found.shown[~mask], found.original[~mask])
    with torch.no_grad():
        _, told = method(batch, 0.0)
    assert error(found.output, found.original) == pytest.approx(float(told["error"]), rel=1e-5)


def test_reconstructions_pictures_have_the_error_that_its_loss_reports() -> None:
    method = made(schema.Reconstruction(name="reconstruction"))
    batch = batch_of(method)
    found = restored(method, batch)
    with torch.no_grad():
        _, told = method(batch, 0.0)
    assert error(found.output, found.original) == pytest.approx(float(told["reconstruction_error"]), rel=1e-5)
    assert not torch.equal(found.shown, found.original)


def test_conrec_shows_its_first_view() -> None:
    method = made(schema.ConRec(name="conrec", tasks=("black-masks", "reconstruction")))
    batch = batch_of(method)
    found = restored(method, batch)
    assert found.original.shape == found.shown.shape == found.output.shape == (6, 3, 16, 16)
    assert torch.equal(found.original, batch.views[0].pixels)


def test_a_method_without_the_task_is_said() -> None:
    method = made(schema.Reconstruction(name="reconstruction", tasks=("mask-location",)))
    with pytest.raises(ValueError, match="has no task 'reconstruction', it has mask-location"):
        restored(method, batch_of(method))
