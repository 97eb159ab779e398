"""Segmentation losses: logits (B, C, H, W) and int64 targets (B, H, W) to a scalar; volumes: (B, C, D, H, W).

With several workers each has its own images, and all get the loss of the whole batch. All losses are computed in
float32 whatever the precision of the logits (float64 stays float64). LOSSES names those that a study can choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from pretune.search_spaces import schema
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
    hits, predicted, true = _soft_counts(logits, target, world, ignore)
    dice: Tensor = (2 * hits + smooth) / (predicted + true + smooth)
    return dice


def _soft_counts(logits: Tensor, target: Tensor, world: World, ignore: int) -> Tensor:
    """sum p g, sum p and sum g of each class over the whole batch, (3, C)."""
    valid = (target != ignore).unsqueeze(1)  # B, 1, H, W
    p = torch.softmax(_precise(logits), dim=1) * valid
    g = torch.zeros_like(p).scatter_(1, _labels(target, ignore), valid.to(p.dtype))
    over = (0, *range(2, p.ndim))
    counts: Tensor = world.sum(torch.stack([(p * g).sum(over), p.sum(over), g.sum(over)]))
    return counts


def cross_entropy_loss(
    logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE, weights: Tensor | None = None
) -> Tensor:
    """Mean over pixels of -log p, in nats, with p the softmax at the target; pixels of `ignore` do not count.

    With `weights` (C,) of the classes: the weighted mean, sum w log p / sum w, as F.cross_entropy takes it. A batch
    without any pixel to count has loss 0, where F.cross_entropy gives NaN.
    """
    return -_mean(_log_likelihood(logits, target, ignore), _counted(target, ignore, weights), world)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    world: World = ALONE,
    ignore: int = IGNORE,
    gamma: float = 2.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean over pixels of -(1 - p)^gamma log p, with p the softmax at the target; pixels of `ignore` do not count.

    Lin, Goyal, Girshick, He, Dollar: "Focal loss for dense object detection", ICCV 2017, equation 4, for any number of
    classes; with `weights` (C,) equation 5, as a weighted mean. Pixels that are right already count little: at p = 0.9
    a hundredth.
    """
    log_p = _log_likelihood(logits, target, ignore)
    wrong = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)  # at 0, gamma < 1 has no slope
    return -_mean(wrong**gamma * log_p, _counted(target, ignore, weights), world)


def tversky_loss(
    logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE, beta: float = 0.7, smooth: float = 1e-5
) -> Tensor:
    """1 - mean over classes of (TP + s) / (TP + beta FN + (1 - beta) FP + s), of soft counts over the whole batch.

    Salehi, Erdogmus, Gholipour: "Tversky loss function for image segmentation using 3D fully convolutional deep
    networks", MLMI 2017, equation 3. TP = sum p g, FN = sum (1 - p) g, FP = sum p (1 - g). `beta` is the price of a
    missed pixel: at 0.5 this is `dice_loss` but for `smooth`; they found 0.7 the best for lesions of few pixels.
    """
    hits, predicted, true = _soft_counts(logits, target, world, ignore)
    index = (hits + smooth) / (hits + beta * (true - hits) + (1 - beta) * (predicted - hits) + smooth)
    loss: Tensor = 1 - index.mean()
    return loss


def dice_cross_entropy_loss(
    logits: Tensor, target: Tensor, world: World = ALONE, ignore: int = IGNORE, weights: Tensor | None = None
) -> Tensor:
    """Sum of `dice_loss` and `cross_entropy_loss`, the latter with `weights` (C,) of the classes."""
    return dice_loss(logits, target, world, ignore) + cross_entropy_loss(logits, target, world, ignore, weights)


class Loss(Protocol):
    def __call__(self, logits: Tensor, target: Tensor, world: World = ALONE) -> Tensor: ...


LOSSES: dict[str, Callable[..., Tensor]] = {  # each a Loss, some with numbers of their own
    "dice": dice_loss,
    "foreground-dice": foreground_dice_loss,
    "cross-entropy": cross_entropy_loss,
    "dice+cross-entropy": dice_cross_entropy_loss,
    "focal": focal_loss,
    "tversky": tversky_loss,
}


def loss_of(
    settings: schema.Finetune, classes: Sequence[str], pixels: Sequence[int], device: torch.device | None = None
) -> Loss:
    """The loss of a fine-tuning, with the numbers that its settings give.

    Args:
        pixels: (classes,) pixels of each class in the labelled training images, for `class_weights: balanced`.
        device: of the logits, where the weights of the classes then lie; default: a CPU.
    """
    weights = class_weights(settings.class_weights, classes, pixels)
    given = {
        "gamma": settings.focal_gamma,
        "beta": settings.tversky_beta,
        "weights": None if weights is None else weights.to(device),
    }
    return partial(LOSSES[settings.loss], **{name: value for name, value in given.items() if value is not None})


def class_weights(
    asked: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str], pixels: Sequence[int]
) -> Tensor | None:
    """Weights (C,), float32: 1 for a class that `asked` does not name.

    balanced: all pixels / (classes that occur * pixels of this class), so that the weighted pixels of all classes are
    as many (King and Zeng 2001; scikit-learn's rule). A class without a pixel has weight 1, which nothing uses.

    Raises ValueError for a name that is no class.
    """
    if asked is None:
        return None
    if asked == "balanced":
        present = sum(count > 0 for count in pixels)
        return torch.tensor([sum(pixels) / (present * count) if count else 1.0 for count in pixels])
    if unknown := [name for name in asked if name not in classes]:
        raise ValueError(f"class_weights names {unknown[0]!r}, and the classes are {', '.join(classes)}")
    return torch.tensor([float(asked.get(name, 1.0)) for name in classes])


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_likelihood(logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """Log softmax at the target, (B, H, W); at ignored pixels that of class 0.

    Gathered by hand, since torch's two-dimensional NLL loss has no deterministic CUDA kernel.
    """
    return torch.log_softmax(_precise(logits), dim=1).gather(1, _labels(target, ignore)).squeeze(1)


def _counted(target: Tensor, ignore: int, weights: Tensor | None) -> Tensor:
    """Weight of each pixel (B, H, W): whether it does, or the weight of its class."""
    valid = target != ignore
    return valid if weights is None else weights.to(target.device)[_labels(target, ignore).squeeze(1)] * valid


def _mean(values: Tensor, counted: Tensor, world: World) -> Tensor:
    """Mean over the pixels of all workers, by how much each counts; 0 where none does."""
    least = 1.0 if counted.dtype == torch.bool else torch.finfo(counted.dtype).tiny
    return world.sum((values * counted).sum()) / world.sum(counted.sum()).clamp(min=least)


def _labels(target: Tensor, ignore: int) -> Tensor:
    """Indices (B, 1, H, W) for gather and scatter: ignored pixels point at class 0; the caller gives them weight 0."""
    return target.masked_fill(target == ignore, 0).unsqueeze(1)
