"""Supervised pretraining, usually on another data set (P3 Tables 4 and 5): with masks, or with image labels."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.losses import LOSSES
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.models.interface import Decoder, Encoder, pixel_head, resized
from pretune.trainables.upload import constant
from pretune.trainables.views import geometry
from pretune.trainables.views.drawn import View


def pixel_boxes(view: View, height: int, width: int) -> Tensor:
    """A view's boxes (B, 4) in whole pixels of the (height, width) images it was cut from."""
    sides = constant((height, width, height, width), view.boxes.device, view.boxes.dtype)
    return (view.boxes * sides).round().long()


def masks_of(view: View, masks: Tensor) -> Tensor:
    """The part of whole masks (B, H, W) that a view shows, (B, S, S) int64, nearest neighbour."""
    boxes = pixel_boxes(view, masks.shape[1], masks.shape[2])
    return geometry.crop_resize_masks(masks, boxes, view.flipped, view.pixels.shape[-1]).long()


class Segmentation(nn.Module):
    """The whole U-Net, trained as in fine-tuning but on views."""

    requirements = frozenset(schema.Segmentation.facts.requires)

    def __init__(self, encoder: Encoder, decoder: Decoder, views: schema.Views, *, loss: str, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = pixel_head(decoder, classes)
        self.recipes = (views,)
        self.loss = loss

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """One view of (B, 3, S, S) and whole masks (B, H, W) -> the loss, and the share of pixels that are right."""
        assert batch.masks is not None  # `requirements` asks for them
        view = batch.views[0]
        target = masks_of(view, batch.masks)
        logits = self.head(self.decoder(self.encoder(view.pixels)))
        logits = resized(logits, (view.pixels.shape[-2], view.pixels.shape[-1]))
        loss = LOSSES[self.loss](logits, target, batch.world)
        if not batch.diagnosed:
            return loss, {}
        counted = target != IGNORE
        right = batch.world.sum(((logits.argmax(dim=1) == target) & counted).sum())
        accuracy = right / batch.world.sum(counted.sum()).clamp(min=1)
        return loss, {"accuracy": accuracy}

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


class Classification(nn.Module):
    """The encoder and a linear classifier on its pooled features."""

    requirements = frozenset(schema.Classification.facts.requires)

    def __init__(self, encoder: Encoder, views: schema.Views, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classification needs images of at least two classes, the data set has {classes}")
        self.encoder = encoder
        self.head = nn.Linear(encoder.widths[-1], classes)
        self.recipes = (views,)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """One view of (B, 3, S, S) and labels (B,) -> mean cross entropy in nats, and the share that is right.

        `loss_over_uniform` compares with the loss of equal chances for all classes, log(classes).
        """
        assert batch.labels is not None  # `requirements` asks for them
        logits = self.head(self.encoder(batch.views[0].pixels)[-1].mean(dim=(2, 3))).float()  # B, classes
        loss = F.cross_entropy(logits, batch.labels)
        if not batch.diagnosed:
            return loss, {}
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return loss, {"accuracy": right, "loss_over_uniform": loss.detach() / math.log(logits.shape[1])}

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def whole_colors(view: View, images: Tensor) -> Tensor:
    """A view's crop of whole uint8 images (B, H, W, 3) without any change of colour, (B, 3, S, S) in [0, 1]."""
    boxes = pixel_boxes(view, images.shape[1], images.shape[2])
    planes = images.permute(0, 3, 1, 2)
    return geometry.crop_resize(planes, boxes, view.flipped, view.pixels.shape[-1]).div_(255)


def build_segmentation(method: schema.Segmentation, views: schema.Views, parts: Parts) -> Segmentation:
    return Segmentation(parts.encoder, parts.decoder(), views, loss=method.loss, classes=parts.mask_classes)


def build_classification(method: schema.Classification, views: schema.Views, parts: Parts) -> Classification:
    return Classification(parts.encoder, views, classes=parts.image_classes)
