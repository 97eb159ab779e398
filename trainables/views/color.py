"""Colour transforms of a batch in which every sample has its own parameter.

Images are float32 (B, 3, H, W) in [0, 1]; a parameter is a tensor (B,) on the same device; the result is a new tensor
of the same shape. For equal parameters each gives, sample by sample, what torchvision.transforms.v2.functional gives
for that image alone (grey weights 0.2989, 0.587, 0.114).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with torchvision's digits


def grayscale(x: Tensor) -> Tensor:
    """Luma, (B, 3, H, W) -> (B, 1, H, W)."""
    r, g, b = GRAY_WEIGHTS
    return (x[:, :1] * r).add_(x[:, 1:2], alpha=g).add_(x[:, 2:], alpha=b)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor; factor (B,) >= 0, 1 leaves the image as it is."""
    return x.mul(_per_sample(factor)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean luma; factor (B,) >= 0, 1 leaves the image as it is."""
    # the mean of the luma is the luma of the channel means: no grey image is needed
    mean = grayscale(x.mean(dim=(2, 3), keepdim=True))
    f = _per_sample(factor)
    return x.mul(f).add_(mean * (1 - f)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image; factor (B,) >= 0, 1 leaves the image as it is, 0 removes all colour."""
    f = _per_sample(factor)
    return x.mul(f).add_(grayscale(x).mul_(1 - f)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` (B,) in [-0.5, 0.5] of the full circle, at constant HSV saturation and value."""
    r, g, b = x.unbind(1)  # each (B, H, W); pairwise extremes are several times as fast as a reduction over three
    low, high = torch.minimum(r, g).minimum(b), torch.maximum(r, g).maximum(b)
    chroma = high - low
    hue = _hue(r, g, b, high, chroma).add_(6 * shift[:, None, None]).remainder_(6.0)  # sextants, in [0, 6)
    red = (hue - 3).abs_().sub_(1)
    green = (hue - 2).abs_().neg_().add_(2)
    blue = hue.sub_(4).abs_().neg_().add_(2)
    share = torch.stack((red, green, blue), dim=1).clamp_(0, 1)  # of the chroma, in each channel
    return share.mul_(chroma[:, None]).add_(low[:, None])


def to_gray(x: Tensor) -> Tensor:
    """Grey images that keep their three channels."""
    return grayscale(x).expand(-1, 3, -1, -1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur, sigma (B,) in px, over `kernel` px (odd); the border is reflected.

    The two passes are depthwise convolutions in which every sample has its own kernel.
    """
    if kernel % 2 == 0 or kernel // 2 >= min(x.shape[-2:]):
        raise ValueError(f"gaussian_blur: kernel must be odd and fit the image, got {kernel} for {tuple(x.shape)}")
    weights = _gaussian(sigma, kernel)
    rows = _filter_columns(x, weights)
    return _filter_columns(rows.transpose(2, 3), weights).transpose(2, 3)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Rounds down to 2^bits levels; bits (B,) in 1 to 8."""
    levels = _per_sample(torch.exp2(bits.to(x.dtype)))
    return x.mul(levels).floor_().minimum(levels - 1).div_(levels)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Inverts what is at or above `threshold` (B,)."""
    return torch.where(x >= _per_sample(threshold), 1 - x, x)


def _per_sample(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None]


def _hue(r: Tensor, g: Tensor, b: Tensor, high: Tensor, chroma: Tensor) -> Tensor:
    """Hue in sextants, (B, H, W) in [-1, 5]; 0 where there is no colour."""
    rest = torch.where(high == g, (b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4))
    return torch.where(high == r, g - b, rest).div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny))


def _gaussian(sigma: Tensor, kernel: int) -> Tensor:
    """Normalised weights, (B, kernel)."""
    distance = torch.arange(kernel, dtype=sigma.dtype, device=sigma.device) - kernel // 2
    return torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, dim=1)


def _filter_columns(x: Tensor, weights: Tensor) -> Tensor:
    """Convolves along H with one kernel per sample; weights (B, K)."""
    B, C, H, W = x.shape
    pad = weights.shape[1] // 2
    padded = F.pad(x, (0, 0, pad, pad), mode="reflect").reshape(1, B * C, H + 2 * pad, W)
    kernels = weights.repeat_interleave(C, dim=0)[:, None, :, None]  # B*C, 1, K, 1
    return F.conv2d(padded, kernels, groups=B * C).reshape(B, C, H, W)
