"""PixelCL and PixelCL++: places of two views that show the same part of an image get the same features.

Xie et al.: "Propagate yourself: exploring pixel-level consistency for unsupervised visual representation learning",
CVPR 2021 (PixPro; details from zdaxie/PixPro). Ben Saad et al. (P5) add BYOL's loss with a weight and call it PixelCL;
their PixelCL++ also asks that the two places are equally far from the camera. P5 has no public code: how depth is
brought to the feature grid is this project's choice (bilinear, at the centre of each bin).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.methods.byol import byol_loss
from pretune.trainables.methods.heads import pooled
from pretune.trainables.methods.momentum import follow, momentum_at, momentum_copy
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.models.interface import Encoder
from pretune.trainables.upload import constant
from pretune.trainables.views.drawn import View
from pretune.trainables.views.geometry import crop_resize


class Grid(NamedTuple):
    """Return where the bins of a view's feature map (h, w) lie in the image, as fractions of its height and width."""

    y: Tensor  # (B, h * w) centres
    x: Tensor  # (B, h * w)
    diagonal: Tensor  # (B,) of one bin


def grid_of(boxes: Tensor, flipped: Tensor, height: int, width: int) -> Grid:
    """The bins of a view's feature map; in a mirrored view the columns run from right to left.

    Args:
        boxes: (B, 4) top, left, height, width as fractions of the image.
        flipped: (B,) bool.
        height, width: of the feature map.
    """
    top, left, tall, wide = boxes.float().unbind(dim=1)
    rows = (torch.arange(height, device=boxes.device) + 0.5) / height  # of the crop
    columns = (torch.arange(width, device=boxes.device) + 0.5) / width
    across = torch.where(flipped[:, None], 1 - columns, columns)  # B, w
    y, x = top[:, None] + rows * tall[:, None], left[:, None] + across * wide[:, None]
    y, x = y[:, :, None].expand(-1, -1, width), x[:, None, :].expand(-1, height, -1)
    return Grid(y.flatten(1), x.flatten(1), torch.hypot(tall / height, wide / width))


def positives(first: Grid, second: Grid, threshold: float) -> Tensor:
    """Return the pairs of places that show the same part of the image (PixPro equation 1).

    A(i, j) = 1 where |c_i - c_j| / max(d_1, d_2) < threshold, c the centres of the bins and d their diagonals.

    Returns:
        (B, h * w, h * w) bool: places of the first view down, of the second across.
    """
    dy, dx = (a[:, :, None] - b[:, None, :] for a, b in ((first.y, second.y), (first.x, second.x)))
    return torch.hypot(dy, dx) < threshold * torch.maximum(first.diagonal, second.diagonal)[:, None, None]


def equally_far(first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """|depth(i) - depth(j)| <= threshold (P5 equation 8): two (B, h * w) -> (B, h * w, h * w) bool."""
    return (first[:, :, None] - second[:, None, :]).abs() <= threshold


def pixel_consistency(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """-2 * the mean cosine over the positive pairs of each image, then over images (PixPro equation 6, its code).

    Args:
        prediction: propagated features of one view (B, C, h, w).
        target: features of the other view by the momentum network, without a gradient, (B, C, h, w).
        mask: (B, h * w, h * w) from `positives`; an image without a positive pair adds 0.

    Returns:
        A scalar in [-2, 2], computed in float32 whatever the precision of the inputs.
    """
    p, t = (F.normalize(x.float().flatten(2), dim=1) for x in (prediction, target))  # B, C, h*w
    with torch.autocast(p.device.type, enabled=False):
        cosine = p.transpose(1, 2) @ t
    total, count = (cosine * mask).sum(dim=(1, 2)), mask.sum(dim=(1, 2))
    return -2 * (total / count.clamp(min=1)).mean()


def propagate(features: Tensor, values: Tensor, gamma: float) -> Tensor:
    """Pixel propagation: y_i = sum over j of max(cos(x_i, x_j), 0)^gamma * g(x_j) / |g(x_j)| (PixPro equation 3).

    Args:
        features: x (B, C, h, w).
        values: g(x) (B, C', h, w).

    Returns:
        (B, C', h, w) in float32.
    """
    x, g = (F.normalize(part.float().flatten(2), dim=1) for part in (features, values))
    with torch.autocast(x.device.type, enabled=False):
        similarity = x.transpose(1, 2) @ x  # B, h*w, h*w, symmetric
        if gamma < 1:  # the slope at 0 is infinite: one place without features would make all gradients NaN
            alike = similarity > 0
            similarity = torch.where(alike, similarity, 1.0) ** gamma * alike
        else:
            similarity = similarity.clamp(min=0) ** gamma
        return (g @ similarity).reshape(*g.shape[:2], *features.shape[2:])


def pixel_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """1x1 convolution - BN - ReLU - 1x1 convolution: the same small network at every place."""
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Conv2d(hidden, outputs, 1)
    )


class Heads(nn.Module):
    """Projections of a feature map (B, inputs, h, w): for places, and for the whole view where there is that branch."""

    def __init__(self, inputs: int, hidden: int, dim: int, instance: bool) -> None:
        super().__init__()
        self.pixel = pixel_mlp(inputs, hidden, dim)
        self.instance = pixel_mlp(inputs, hidden, dim) if instance else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Two maps (B, dim, h, w), the second None without the branch."""
        return self.pixel(features), None if self.instance is None else self.instance(features)


class PixelCL(nn.Module):
    """Online and momentum network, the propagation's value transform, and the instance branch's predictor.

    The instance branch is that of PixPro's code: projected and predicted at every place, pooled last. The views go
    through the networks one after the other, each normalised by its own statistics.
    """

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        *,
        hidden: int,
        dim: int,
        threshold: float,
        depth_threshold: float | None,
        gamma: float,
        alpha: float,
        momentum: float,
        momentum_end: float,
    ) -> None:
        """`depth_threshold` makes it PixelCL++; `alpha` is the weight of BYOL's loss, 0 for none (PixPro itself)."""
        super().__init__()
        self.encoder = encoder
        self.heads = Heads(encoder.widths[-1], hidden, dim, instance=alpha > 0)
        self.values = nn.Conv2d(dim, dim, 1)
        self.predictor = pixel_mlp(dim, hidden, dim) if alpha > 0 else None
        self.target_encoder, self.target_heads = momentum_copy(encoder), momentum_copy(self.heads)
        self.threshold, self.depth_threshold, self.gamma, self.alpha = threshold, depth_threshold, gamma, alpha
        self.momentum, self.momentum_end = momentum, momentum_end
        self.recipes = recipes
        settings = schema.PixelCL if depth_threshold is None else schema.PixelCLDepth
        self.requirements = frozenset(settings.facts.requires)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, H, W) -> the loss (P5 equation 7), its parts, and how many pairs are positive."""
        online = [self.heads(self.encoder(view.pixels)[-1]) for view in batch.views]
        with torch.no_grad():
            target = [self.target_heads(self.target_encoder(view.pixels)[-1]) for view in batch.views]
        (x1, whole1), (x2, whole2) = online
        (t1, aim1), (t2, aim2) = target
        mask = self._mask(batch, x1.shape[2:])
        loss = pixel_consistency(self._propagated(x1), t2, mask)
        loss = loss + pixel_consistency(self._propagated(x2), t1, mask.transpose(1, 2))
        parts = {"pixel_loss": loss.detach()}
        if self.predictor is not None:
            instance = byol_loss(pooled([self.predictor(whole1)]), pooled([aim2]))
            instance = instance + byol_loss(pooled([self.predictor(whole2)]), pooled([aim1]))
            loss = loss + self.alpha * instance
            parts["instance_loss"] = instance.detach()
        if not batch.diagnosed:
            return loss, {}
        parts["positive_pairs"] = mask.sum(dim=(1, 2)).float().mean()
        parts["images_without_pairs"] = (~mask.flatten(1).any(dim=1)).float().mean()
        return loss, diagnostics(x1.mean(dim=(2, 3)), x2.mean(dim=(2, 3)), batch.world) | parts

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """The momentum network follows the online one."""
        momentum = momentum_at(self.momentum, self.momentum_end, progress)
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_heads, self.heads, momentum)

    def _propagated(self, features: Tensor) -> Tensor:
        return propagate(features, self.values(features), self.gamma)

    @torch.no_grad()
    def _mask(self, batch: Batch, grid: torch.Size) -> Tensor:
        """Positive pairs of the first view's places (down) and the second's (across), (B, h * w, h * w) bool."""
        first, second = (grid_of(view.boxes, view.flipped, *grid) for view in batch.views)
        mask = positives(first, second, self.threshold)
        if self.depth_threshold is None:
            return mask
        assert batch.depth is not None  # `requirements` says so
        d1, d2 = (depth_at(batch.depth, view, *grid) for view in batch.views)
        return mask & equally_far(d1, d2, self.depth_threshold)


def depth_at(depth: Tensor, view: View, height: int, width: int) -> Tensor:
    """Depth at the centres of a view's bins, whole maps (B, H, W) -> (B, height * width), bilinear.

    The grid is square as views are; it is read like the view's own pixels, mirrored where the view is.
    """
    if height != width:
        raise ValueError(f"the feature grid of a square view must be square, got {height} x {width}")
    scale = constant((*depth.shape[1:], *depth.shape[1:]), depth.device, torch.int64)
    boxes = (view.boxes * scale).round().long()
    return crop_resize(depth.float()[:, None], boxes, view.flipped, height).flatten(1)


def build_pixelcl(method: schema.PixelCL | schema.PixelCLDepth, views: schema.Views, parts: Parts) -> PixelCL:
    return PixelCL(
        parts.encoder,
        asymmetric(views, method.blur, method.solarize),
        hidden=method.hidden,
        dim=method.dim,
        threshold=method.threshold,
        depth_threshold=method.depth_threshold if isinstance(method, schema.PixelCLDepth) else None,
        gamma=method.gamma,
        alpha=method.alpha,
        momentum=method.momentum,
        momentum_end=method.momentum_end,
    )
