"""Images and masks for fine-tuning: the same geometric transform for both, drawn per sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.upload import constant, upload
from pretune.trainables.views import geometry, volumes
from pretune.trainables.views.random import IntArray, uniforms
from pretune.trainables.views.two_views import BLUR_SIGMA, blur, jitter, jitter_factors

Drawn = Callable[[str, int], Tensor]  # (what for, how many) -> (B, how many) in [0, 1)
Doubles = NDArray[np.float64]

WHOLE = (1.0, 1.0)  # of the image's area, and of its aspect: no crop


def fine_tune_batch(
    images: Tensor, masks: Tensor, indices: IntArray, size: int, settings: schema.Augment, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """uint8 images (B, H, W, C) and masks (B, H, W) -> float32 (B, C, size, size) in [0, 1] and int64 (B, size, size).

    Images are bilinear, channels_last; masks nearest neighbour. An image's transform depends on its index in `indices`
    (B,) and on the epoch. Without a crop (both ranges (1, 1), the default) this is `evaluation_batch` with flips. A
    crop is resized without antialiasing unless `antialias` asks for it. Then come vertical flip, rotation, scale and
    displacement (in one sampling), colour jitter and blur; what comes from outside the image is black and IGNORE.
    Volumes (B, D, H, W, 1) go through `volumes.fine_tune_batch`.
    """
    if images.ndim == 5:
        return volumes.fine_tune_batch(images, masks, indices, settings, seed, epoch)
    _check(images, masks)
    if indices.shape != (len(images),):
        raise ValueError(f"indices must name the {len(images)} images of the batch, got shape {indices.shape}")

    def draw(purpose: str, count: int) -> Doubles:
        """(B, count) in [0, 1); one stream per transform, so that switching one on leaves the others' draws."""
        return uniforms(seed, f"joint/{purpose}", epoch, indices, 0, count)

    def here(purpose: str, count: int) -> Tensor:
        return upload(draw(purpose, count).astype(np.float32), images.device)

    pixels, target = _cut(images, masks, size, settings, draw)
    pixels, target = _moved(pixels, target, settings, here)
    if settings.color_jitter is not None:
        rounded = draw("jitter", 4).astype(np.float32).astype(np.float64)
        factors = jitter_factors(rounded, settings.color_jitter)
        pixels = _channels_last(jitter(pixels, upload(factors.astype(np.float32), pixels.device)))
    return _blurred(pixels, settings, here), target


def _moved(pixels: Tensor, target: Tensor, settings: schema.Augment, draw: Drawn) -> tuple[Tensor, Tensor]:
    if settings.flip_vertical:
        turned = draw("flip vertical", 1)[:, 0] < settings.flip_vertical
        pixels = torch.where(turned[:, None, None, None], pixels.flip(2), pixels)
        target = torch.where(turned[:, None, None], target.flip(1), target)
    if settings.rotation is None and settings.scale in (None, (1.0, 1.0)) and settings.elastic is None:
        return pixels, target
    degrees = (settings.rotation or 0.0) * (2 * draw("rotation", 1)[:, 0] - 1)
    low, high = (math.log(bound) for bound in settings.scale or (1.0, 1.0))
    factor = torch.exp(low + (high - low) * draw("scale", 1)[:, 0])
    grid = geometry.affine(pixels, degrees, factor)
    if settings.elastic is not None:
        grid = grid + geometry.smooth_field(draw("elastic", 18), pixels.shape[-1], settings.elastic)
    pixels, target = geometry.moved(pixels, target, grid, IGNORE)
    return _channels_last(pixels), target


def _blurred(pixels: Tensor, settings: schema.Augment, draw: Drawn) -> Tensor:
    if settings.blur:
        low, high = BLUR_SIGMA
        chosen = draw("blur?", 1)[:, 0] < settings.blur
        blurred = blur(pixels, low + (high - low) * draw("blur", 1))
        pixels = _channels_last(torch.where(chosen[:, None, None, None], blurred, pixels))
    return pixels


def _cut(
    images: Tensor, masks: Tensor, size: int, settings: schema.Augment, draw: Callable[[str, int], Doubles]
) -> tuple[Tensor, Tensor]:
    """Flipped left to right, cropped and resized."""
    flipped = upload(draw("flip", 1)[:, 0] < settings.flip, images.device)
    if settings.crop == WHOLE and settings.aspect == WHOLE:
        images = _flip(images, flipped) if settings.flip > 0 else images
        masks = _flip(masks, flipped) if settings.flip > 0 else masks
        return evaluation_batch(images, masks, size)
    boxes = geometry.crop_boxes(
        draw("crop", geometry.CROP_DRAWS), images.shape[1], images.shape[2], settings.crop, settings.aspect
    )
    where = upload(boxes, images.device)
    resize = geometry.crop_resize_antialiased if settings.antialias else geometry.crop_resize
    pixels = resize(images.permute(0, 3, 1, 2), where, flipped, size).div_(255)
    return _channels_last(pixels), geometry.crop_resize_masks(masks, where, flipped, size).long()


def evaluation_batch(images: Tensor, masks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same without any randomness: the whole image, resized with antialiasing.

    Where the images already have this size nothing is resampled, and pixels are exactly x / 255. Volumes never are.
    """
    if images.ndim == 5:
        return volumes.evaluation_batch(images, masks)
    _check(images, masks)
    if images.shape[1:3] == (size, size):
        return _planes(images).div_(255), masks.long()
    pixels = F.interpolate(_planes(images), (size, size), mode="bilinear", antialias=True).div_(255)
    box = constant((0, 0, *images.shape[1:3]), images.device, torch.int64)
    boxes = box.expand(len(images), 4)
    straight = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return _channels_last(pixels), geometry.crop_resize_masks(masks, boxes, straight, size).long()


def _check(images: Tensor, masks: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (B, H, W, C), got {images.dtype} {tuple(images.shape)}")
    if masks.dtype != torch.uint8 or masks.shape != images.shape[:3]:
        expected = tuple(images.shape[:3])
        raise ValueError(f"masks must be uint8 {expected} like their images, got {masks.dtype} {tuple(masks.shape)}")


def _flip(x: Tensor, flipped: Tensor) -> Tensor:
    """Mirrors the chosen samples of (B, H, W, ...) left to right."""
    return torch.where(flipped.reshape(-1, *[1] * (x.ndim - 1)), x.flip(2), x)


def _planes(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32; the memory stays channels last."""
    return images.permute(0, 3, 1, 2).float()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
