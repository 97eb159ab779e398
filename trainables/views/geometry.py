"""Geometric transforms of a batch in which every sample has its own parameters.

A box is (top, left, height, width) in whole pixels, as in torchvision. Pixel centres lie at half coordinates
(`align_corners=False`).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretune.trainables.views.random import FloatArray

TRIES = 10  # torchvision's number of attempts at a box that fits
CROP_DRAWS = 2 * TRIES + 2
ELASTIC_ALPHA, ELASTIC_SIGMA, ELASTIC_SIZE = 50.0, 5.0, 224  # torchvision's defaults, taken to be meant for 224 px
NODE_SPACING = 1.5  # in sigmas, of the noise behind an elastic field: its correlations are then within 0.04 everywhere

Range = tuple[float, float]


def crop_boxes(draws: FloatArray, height: int, width: int, area: Range, aspect: Range) -> NDArray[np.int64]:
    """Random boxes, (B, 4), by the rule of torchvision's RandomResizedCrop.

    `draws` (B, CROP_DRAWS) in [0, 1). The area's share is uniform in `area`, width / height is log-uniform in
    `aspect`; the first of ten attempts that fits is taken, else the largest central box of an allowed aspect.
    """
    whole = np.array((0, 0, height, width))
    return crop_boxes_within(draws, np.broadcast_to(whole, (len(draws), 4)), area, aspect)


def crop_boxes_within(draws: FloatArray, windows: NDArray[np.int64], area: Range, aspect: Range) -> NDArray[np.int64]:
    """The same with a window (B, 4) of its own for each sample: shares are of its window, and boxes lie in it."""
    height, width = windows[:, 2:3], windows[:, 3:]  # B, 1
    share = area[0] + (area[1] - area[0]) * draws[:, :TRIES]
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(log_low + (log_high - log_low) * draws[:, TRIES : 2 * TRIES])
    w = np.rint(np.sqrt(height * width * share * ratio)).astype(np.int64)  # B, TRIES
    h = np.rint(np.sqrt(height * width * share / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    placed = _place(h[rows, first], w[rows, first], windows, draws[:, 2 * TRIES :])
    return np.where(fits[rows, first, None], placed, central_boxes(windows, aspect))


def _place(
    h: NDArray[np.int64], w: NDArray[np.int64], windows: NDArray[np.int64], draws: FloatArray
) -> NDArray[np.int64]:
    """Boxes of the given sizes (B,) at uniform positions; where a box does not fit, the result is meaningless."""
    top = windows[:, 0] + np.floor(draws[:, 0] * (windows[:, 2] - h + 1)).astype(np.int64)
    left = windows[:, 1] + np.floor(draws[:, 1] * (windows[:, 3] - w + 1)).astype(np.int64)
    return np.stack((top, left, h, w), axis=1)


def central_boxes(windows: NDArray[np.int64], aspect: Range) -> NDArray[np.int64]:
    """The largest central box of each window (B, 4) whose width / height is in `aspect`; at least a pixel each way."""
    top, left, height, width = windows.T
    ratio = width / height
    h = np.where(ratio < aspect[0], np.rint(width / aspect[0]), height).astype(np.int64)
    w = np.where(ratio > aspect[1], np.rint(height * aspect[1]), width).astype(np.int64)
    h, w = np.maximum(h, 1), np.maximum(w, 1)
    return np.stack((top + (height - h) // 2, left + (width - w) // 2, h, w), axis=1)


def central_box(height: int, width: int, aspect: Range) -> NDArray[np.int64]:
    """The largest central box, (4,), whose width / height lies in `aspect`."""
    box: NDArray[np.int64] = central_boxes(np.array(((0, 0, height, width),)), aspect)[0]
    return box


def crop_resize(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Crops, resizes to (size, size) and mirrors, bilinear, without antialiasing.

    images (B, C, H, W), uint8 or float, fastest in channels_last; boxes (B, 4) in px; flipped (B,) bool. Returns
    float32 (B, C, size, size), contiguous. Equals torchvision's resized_crop with antialias=False, then
    horizontal_flip.

    Bilinear weights are separable: rows first, two of the source for one of the result, then columns. Only the rows
    that are needed are read, and converted; on a CPU this takes a third of grid_sample's time.
    """
    B, C, H, W = images.shape
    y = _source(boxes[:, 0], boxes[:, 2], size)  # B, S
    x = _source(boxes[:, 1], boxes[:, 3], size)
    x = torch.where(flipped[:, None], x.flip(1), x)
    rows = _between(images.permute(0, 2, 3, 1).reshape(B * H, W * C), y, H)  # B*S, W*C
    columns = rows.view(B, size, W, C).permute(0, 2, 3, 1).reshape(B * W, C * size)
    resized = _between(columns, x, W)  # B*S, C*S
    return resized.view(B, size, C, size).permute(0, 2, 3, 1).contiguous()


def crop_resize_antialiased(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """As `crop_resize`, with antialiasing: F.interpolate(crop, size, antialias=True) of each sample.

    The triangle under which source pixels count is as wide as a pixel of the result, or of the source where that is
    larger.
    """
    height, width = images.shape[2:]
    rows = _triangles(boxes[:, 0], boxes[:, 2], size, height)[:, None]  # B, 1, S, H
    columns = _triangles(boxes[:, 1], boxes[:, 3], size, width)
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)[:, None]
    resized = rows @ images.float() @ columns.transpose(2, 3)
    return resized.contiguous()


def _triangles(start: Tensor, length: Tensor, size: int, count: int) -> Tensor:
    """Weights (B, size, count) of source pixels along a side; those beyond the crop have none."""
    step = (length / size)[:, None, None]
    centres = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    pixels = torch.arange(count, device=start.device)
    weights = (1 - (pixels + 0.5 - centres).abs() / step.clamp(min=1)).clamp(min=0)
    inside = (pixels >= start[:, None, None]) & (pixels < (start + length)[:, None, None])
    weights = weights * inside
    return weights / weights.sum(dim=2, keepdim=True)


def _between(lines: Tensor, at: Tensor, count: int) -> Tensor:
    """Linear interpolation between the lines of a sample: (B*count, L), at (B, S) in [0, count - 1] -> (B*S, L)."""
    low = at.floor()
    first = torch.arange(len(at), device=at.device)[:, None] * count
    above = low.long().add_(first)
    below = (low + 1).clamp_(max=count - 1).long().add_(first)
    weight = (at - low).view(-1, 1)
    pair = (lines.index_select(0, index.view(-1)).float() for index in (above, below))
    return next(pair).lerp_(next(pair), weight)


def _source(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Pixel coordinates (B, size) at which a crop is read; the crop's own edge is repeated, never its surroundings."""
    centres = torch.arange(size, dtype=torch.float32, device=start.device) + 0.5
    inside = centres * (length[:, None] / size) - 0.5
    return inside.clamp(min=0).minimum(length[:, None] - 1) + start[:, None]


def _normalised(pixels: Tensor, length: int) -> Tensor:
    """Pixel coordinates to grid_sample's [-1, 1]."""
    return (2 * pixels + 1) / length - 1


def crop_resize_masks(masks: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """The same crop for masks (B, H, W) of any integer type: nearest neighbour (interpolate's "nearest-exact").

    Integer arithmetic throughout, so that no rounding error picks a neighbour.
    """
    odd = 2 * torch.arange(size, device=masks.device) + 1
    rows = boxes[:, :1] + odd * boxes[:, 2:3] // (2 * size)  # B, S
    columns = boxes[:, 1:2] + odd * boxes[:, 3:] // (2 * size)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    samples = torch.arange(len(masks), device=masks.device)[:, None, None]
    return masks[samples, rows[:, :, None], columns[:, None, :]]


def elastic(x: Tensor, displacement: Tensor) -> Tensor:
    """Moves every pixel by its own displacement, (B, H, W, 2) as x, y in units of half the image (grid_sample's).

    Bilinear; what comes from outside the image is black, as in torchvision's elastic.
    """
    rows, columns = (_normalised(torch.arange(n, dtype=x.dtype, device=x.device), n) for n in x.shape[-2:])
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1) + displacement  # B, H, W, 2
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Turns square images (B, C, S, S) about their centre, counter-clockwise by `degrees` (B,).

    Bilinear; what comes from outside the image is black, as in torchvision's rotate.
    """
    grid = F.affine_grid(_turn(degrees), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotate_and_scale(x: Tensor, masks: Tensor, degrees: Tensor, factor: Tensor, outside: int) -> tuple[Tensor, Tensor]:
    """Turns as `rotate`, and magnifies by `factor` (B,) about the centre, images (B, C, S, S) and masks (B, S, S).

    Masks by nearest neighbour. What comes from outside is black, and `outside` in masks. Not antialiased.
    """
    return moved(x, masks, affine(x, degrees, factor), outside)


def affine(x: Tensor, degrees: Tensor, factor: Tensor) -> Tensor:
    """(B, S, S, 2): from where each pixel of a turned and magnified image comes, as grid_sample has it."""
    return F.affine_grid(_turn(degrees) / factor[:, None, None], list(x.shape), align_corners=False)


def moved(x: Tensor, masks: Tensor, grid: Tensor, outside: int) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S) and masks (B, S, S) read at `grid` (B, S, S, 2), as `rotate_and_scale` has them."""
    pixels = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shifted = (masks + 1).to(x.dtype)[:, None]  # 0 is what grid_sample puts outside
    labels = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0].long() - 1
    return pixels, labels.masked_fill_(labels < 0, outside)


def smooth_field(draws: Tensor, size: int, deviation: float) -> Tensor:
    """Displacements of an image of `size` px, (B, size, size, 2) in grid_sample's units, from draws (B, 18) in [0, 1).

    The U-Net's: normal displacements at the nodes of a 3 x 3 grid from corner to corner, bicubic in between. Their
    standard deviation at the nodes is `deviation` of the side (the authors': 10 px of 512).
    """
    normal = torch.special.ndtri(draws.double().clamp(1e-6, 1 - 1e-6)).float()
    nodes = 2 * deviation * normal.view(-1, 2, 3, 3)  # the side is 2 units long
    field = F.interpolate(nodes, (size, size), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def _turn(degrees: Tensor) -> Tensor:
    """(B,) -> (B, 2, 3): from where each pixel of a turned image comes."""
    angle = torch.deg2rad(degrees)
    cosine, sine, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=-1).view(-1, 2, 3)


def elastic_nodes(size: int) -> int:
    """Count the noise nodes per side of an elastic field of `size` px; it takes 2 * nodes^2 draws per sample."""
    return math.ceil((size - 1) / _node_distance(size)) + 1 + 2 * _MARGIN


def elastic_field(draws: Tensor, size: int) -> Tensor:
    """Smooth random displacements, draws (B, 2 * nodes^2) in [0, 1) -> (B, size, size, 2), for `elastic`.

    torchvision's ElasticTransform blurs one uniform number per pixel with a Gaussian of `sigma` and multiplies by
    `alpha`. Here the noise sits on a coarser grid of nodes, with the same variance and correlation. alpha and sigma
    are torchvision's 50 and 5 times size / 224, which keeps the displacement in pixels (standard deviation 0.8 px).
    """
    nodes = elastic_nodes(size)
    noise = 2 * draws.reshape(-1, 2, nodes, nodes) - 1
    weights = _weights_on(noise.device, noise.dtype, size, nodes)  # S, nodes
    rows = noise @ weights.T  # B, 2, nodes, S: along x. The shared matrix stands right: one product, not B of them
    field = rows.transpose(2, 3) @ weights.T  # B, 2, S, S: x, then y
    alpha = ELASTIC_ALPHA * size / ELASTIC_SIZE
    return field.permute(0, 3, 2, 1) * (alpha / size)


_MARGIN = 3  # nodes beyond either edge: 4.5 sigmas, as far as torchvision's kernel (4 sigmas) reaches


def _sigma(size: int) -> float:
    return ELASTIC_SIGMA * size / ELASTIC_SIZE


def _node_distance(size: int) -> float:
    return NODE_SPACING * _sigma(size)


@functools.lru_cache(maxsize=64)
def _weights_on(device: torch.device, dtype: torch.dtype, size: int, nodes: int) -> Tensor:
    return _node_weights(size, nodes).to(device, dtype)


def _node_weights(size: int, nodes: int) -> Tensor:
    """Gaussian weights (size, nodes) whose squares sum to 1 / (2 sqrt(pi) sigma), as those of a blur of pixel noise."""
    sigma = _sigma(size)
    places = (torch.arange(nodes, dtype=torch.float64) - _MARGIN) * _node_distance(size)
    distance = torch.arange(size, dtype=torch.float64)[:, None] - places
    weights = torch.exp(-0.5 * (distance / sigma) ** 2)
    weights = weights.where(weights > 1e-6, 0.0)  # what underflows later would be denormal, and slow
    scale = (2 * math.sqrt(math.pi) * sigma * weights.square().sum(1, keepdim=True)).rsqrt()
    return weights * scale
