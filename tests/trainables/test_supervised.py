"""Supervised pretraining: masks and colours follow the views, and losses are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pretune.search_spaces import schema
from pretune.trainables.losses import dice_loss
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.supervised import Classification, Segmentation, masks_of, pixel_boxes, whole_colors
from pretune.trainables.models.unet import Decoder, Encoder
from pretune.trainables.views.drawn import View
from pretune.trainables.views.two_views import views_of

INDICES = np.arange(6)


def image_like_mask(count: int = 6, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images whose value says which column and row a pixel is in, and the same numbers as masks."""
    ramp = torch.arange(size, dtype=torch.uint8) * 4
    images = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), ramp.expand(size, size)], dim=-1)
    return images.expand(count, -1, -1, -1).contiguous(), ramp.expand(count, size, size).contiguous()


def view_of(images: torch.Tensor, seed: int = 0) -> View:
    settings = schema.Views(size=16, color_jitter=0.0)
    return views_of(images, INDICES, [settings], seed, 0)[0]


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_cut_and_mirrored_as_their_view(seed: int) -> None:
    """Images hold the column's number (times 4), masks too: nearest neighbour is at most half a step away."""
    images, masks = image_like_mask()
    view = view_of(images, seed)
    step = view.boxes[:, 3].view(-1, 1, 1) * 32 * 4 / 16  # of a view's pixel, in grey values
    difference = (masks_of(view, masks) - view.pixels[:, 0] * 255).abs()
    assert bool((difference <= torch.maximum(step, torch.tensor(4.0)) / 2 + 2.1).all())


def test_boxes_come_back_in_whole_pixels() -> None:
    images, _ = image_like_mask()
    boxes = pixel_boxes(view_of(images), 32, 32)
    assert boxes.dtype == torch.int64
    torch.testing.assert_close(boxes / 32, view_of(images).boxes)


def test_whole_colours_are_the_view_where_nothing_changed_them() -> None:
    images, _ = image_like_mask()
    view = view_of(images)
    torch.testing.assert_close(whole_colors(view, images), view.pixels)


def batch_of(masks: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> Batch:
    images, _ = image_like_mask()
    settings = schema.Views(size=32, crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, color_jitter=0.0)
    views = views_of(images, INDICES, [settings], 0, 0)
    return Batch(views, lambda purpose, n: np.zeros((6, n)), masks=masks, labels=labels)


def test_the_segmentation_loss_is_that_of_fine_tuning_on_the_view() -> None:
    torch.manual_seed(0)
    method = Segmentation(Encoder((4, 8)), Decoder((4, 8), True), schema.Views(), loss="dice", classes=3).eval()
    masks = torch.randint(0, 3, (6, 32, 32), dtype=torch.uint8)
    batch = batch_of(masks=masks)
    with torch.no_grad():
        logits = method.head(method.decoder(method.encoder(batch.views[0].pixels)))
        loss, found = method(batch, 0.0)
    assert float(loss) == pytest.approx(float(dice_loss(logits, masks.long())), rel=1e-6)
    right = (logits.argmax(dim=1) == masks).double().mean()
    assert float(found["accuracy"]) == pytest.approx(float(right), rel=1e-6)


def test_ignored_pixels_count_in_neither_loss_nor_accuracy() -> None:
    method = Segmentation(
        Encoder((4, 8)), Decoder((4, 8), True), schema.Views(), loss="cross-entropy", classes=3
    ).eval()
    masks = torch.full((6, 32, 32), 255, dtype=torch.uint8)
    with torch.no_grad():
        loss, found = method(batch_of(masks=masks), 0.0)
    assert (float(loss), float(found["accuracy"])) == (0.0, 0.0)


def test_a_classifier_of_equal_logits_has_the_loss_of_chance() -> None:
    """log 4 for four classes; class 0 is right for 2 of 6 images, since argmax takes the first of equals."""
    method = Classification(Encoder((4, 8)), schema.Views(), classes=4).eval()
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    with torch.no_grad():
        loss, found = method(batch_of(labels=torch.tensor([0, 1, 2, 3, 0, 1])), 0.0)
    assert float(loss) == pytest.approx(math.log(4), rel=1e-6)
    assert float(found["loss_over_uniform"]) == pytest.approx(1.0, rel=1e-6)
    assert float(found["accuracy"]) == pytest.approx(2 / 6)


def test_classification_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two classes, .* 0"):
        Classification(Encoder((4, 8)), schema.Views(), classes=0)
