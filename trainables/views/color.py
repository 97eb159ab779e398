"""Colour transforms of a batch in which every sample has its own parameter.

Images are float32 (B, C, H, W) in [0, 1]; a parameter is a tensor (B,) on the same device; the result is a new tensor
of the same shape. For equal parameters each gives, sample by sample, what torchvision.transforms.v2.functional gives
for that image alone (grey weights 0.2989, 0.587, 0.114). Of other than three channels grey is their mean, and there is
no hue to turn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with torchvision's digits


def grayscale(x: Tensor) -> Tensor:
    """Luma of three channels, the mean of others: (B, C, H, W) -> (B, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
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
    """Turns the hue by `shift` (B,) in [-0.5, 0.5] of the full circle, at constant HSV saturation and value.

    Other than three channels are left as they are.
    """
    if x.shape[1] != 3:
        return x
    r, g, b = x.unbind(1)  # each (B, H, W); pairwise extremes are several times as fast as a reduction over three
    low, high = torch.minimum(r, g).minimum(b), torch.maximum(r, g).maximum(b)
    chroma = high - low
    hue = _hue(r, g, b, high, chroma).add_(6 * shift[:, None, None])  # sextants
    hue.sub_(hue.mul(1 / 6).floor_(), alpha=6)  # in [0, 6]; several times as fast as remainder
    out = torch.empty_like(x)
    for channel, (start, sign, center) in enumerate(((low, 1, 3), (high, -1, 2), (high, -1, 4))):
        far = hue.sub(center).abs_().sub_(1).clamp_(0, 1)  # from red's opposite; from green; from blue
        torch.addcmul(start, far, chroma, value=sign, out=out[:, channel])
    return out


def to_gray(x: Tensor) -> Tensor:
    """Grey images that keep their number of channels."""
    return grayscale(x).repeat(1, x.shape[1], 1, 1)  # not expanded: the next transform may write into it


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur, sigma (B,) in px, over `kernel` px (odd); the border is reflected.

    Every sample has its own kernel, so both passes are depthwise convolutions. On a CPU oneDNN's takes five times as
    long as the sum over shifted copies (64 px, kernel 7).
    """
    if kernel % 2 == 0 or kernel // 2 >= min(x.shape[-2:]):
        raise ValueError(f"gaussian_blur: kernel must be odd and fit the image, got {kernel} for {tuple(x.shape)}")
    weights = _gaussian(sigma, kernel)
    if x.device.type == "cpu":
        return _sum_of_shifts(_sum_of_shifts(x, weights, dim=2), weights, dim=3)
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
    """Hue in sextants, (B, H, W) in [-1, 5]; 0 where there is no colour.

    `lerp` with a weight of exactly 0 or 1 chooses like `where`, and is vectorised where comparisons are not.
    """
    below_red, below_green = (high - r).sign_(), (high - g).sign_()  # 0 where that channel is the highest
    rest = (b - r).add_(chroma, alpha=2).lerp_((r - g).add_(chroma, alpha=4), below_green)
    return (g - b).lerp_(rest, below_red).div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny))


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


def _sum_of_shifts(x: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The same along `dim` (2 or 3), tap by tap."""
    pad, length = weights.shape[1] // 2, x.shape[dim]
    padded = F.pad(x, (0, 0, pad, pad) if dim == 2 else (pad, pad, 0, 0), mode="reflect")
    taps = [_per_sample(tap) for tap in weights.unbind(1)]
    total = padded.narrow(dim, 0, length) * taps[0]
    for k in range(1, len(taps)):
        total.addcmul_(padded.narrow(dim, k, length), taps[k])
    return total
