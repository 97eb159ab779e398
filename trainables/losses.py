"""Segmentation losses: logits (B, C, H, W) and int64 targets (B, H, W) to a scalar; volumes: (B, C, D, H, W).

With several workers each has its own images, and all get the loss of the whole batch. All losses are computed in
float32 whatever the precision of the logits (float64 stays float64). LOSSES names those that a study can choose.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pretune.trainables.constants import IGNORE
from pretune.trainables.distributed import ALONE, World


def dice_loss(
    logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE, smooth: float = 1e-5
) -> Tensor:
    """Soft multi-class dice, 1 - mean over classes of (2 sum p g + s) / (sum p + sum g + s); in [0, 1].

    p is the softmax, g the one-hot target, and the sums run over all pixels of the batch but those of `ignore`. The
    denominators are plain sums: the squared ones of Milletari et al. 2016 (V-Net) are NOT used. A class that is absent
    from the batch's target still counts: predicting any of it costs up to 1 / C. A batch without any pixel to count
    has loss 0.
    """
    return 1 - _dice(logits, target, world, ignore, smooth).mean()


def foreground_dice_loss(
    logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE, smooth: float = 1.0
) -> Tensor:
    """`dice_loss` over all classes but the first, which is the background (Models Genesis, whose `smooth` is 1).

    With two classes this is the dice of a sigmoid: the softmax of two logits is the sigmoid of their difference.
    """
    return 1 - _dice(logits, target, world, ignore, smooth)[1:].mean()


def _dice(logits: Tensor, target: Tensor, world: World, ignore: int, smooth: float) -> Tensor:
    """Soft dice of each class, (C,), over the whole batch."""
    valid = (target != ignore).unsqueeze(1)  # B, 1, H, W
    p = torch.softmax(_precise(logits), dim=1) * valid
    g = torch.zeros_like(p).scatter_(1, _labels(target, ignore), valid.to(p.dtype))
    over = (0, *range(2, p.ndim))
    sums = world.sum(torch.stack([(p * g).sum(over), p.sum(over) + g.sum(over)]))  # 2, C
    dice: Tensor = (2 * sums[0] + smooth) / (sums[1] + smooth)
    return dice


def cross_entropy_loss(logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE) -> Tensor:
    """Mean over pixels of -log p, in nats, with p the softmax at the target; pixels of `ignore` do not count.

    A batch without any pixel to count has loss 0, where F.cross_entropy gives NaN.
    """
    return -_mean(_log_likelihood(logits, target, ignore), target != ignore, world)


def focal_loss(
    logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE, gamma: float = 2.0
) -> Tensor:
    """Mean over pixels of -(1 - p)^gamma log p, with p the softmax at the target; pixels of `ignore` do not count.

    Lin, Goyal, Girshick, He, Dollar: "Focal loss for dense object detection", ICCV 2017, equation 4, for any number of
    classes and without class weights. Pixels that are right already count little: at p = 0.9 a hundredth.
    """
    log_p = _log_likelihood(logits, target, ignore)
    return -_mean((-torch.expm1(log_p)) ** gamma * log_p, target != ignore, world)


def dice_cross_entropy_loss(logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE) -> Tensor:
    """Sum of `dice_loss` and `cross_entropy_loss`."""
    return dice_loss(logits, target, world, ignore) + cross_entropy_loss(logits, target, world, ignore)


class Loss(Protocol):
    def __call__(self, logits: Tensor, target: Tensor, world: World = ALONE) -> Tensor: ...


LOSSES: dict[str, Loss] = {
    "dice": dice_loss,
    "foreground-dice": foreground_dice_loss,
    "cross-entropy": cross_entropy_loss,
    "dice+cross-entropy": dice_cross_entropy_loss,
    "focal": focal_loss,
}


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_likelihood(logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """Log softmax at the target, (B, H, W); at ignored pixels that of class 0.

    Gathered by hand, since torch's two-dimensional NLL loss has no deterministic CUDA kernel.
    """
    return torch.log_softmax(_precise(logits), dim=1).gather(1, _labels(target, ignore)).squeeze(1)


def _mean(values: Tensor, valid: Tensor, world: World) -> Tensor:
    """Mean over the valid pixels of all workers; 0 where there are none."""
    return world.sum((values * valid).sum()) / world.sum(valid.sum()).clamp(min=1)


def _labels(target: Tensor, ignore: int) -> Tensor:
    """Indices (B, 1, H, W) for gather and scatter: ignored pixels point at class 0; the caller gives them weight 0."""
    return target.masked_fill(target == ignore, 0).unsqueeze(1)
