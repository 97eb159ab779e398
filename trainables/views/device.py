"""Views on an accelerator: all views of one size go through few kernels together, and nothing is waited for.

The same draws and transforms as on a CPU (`two_views`), equal to rounding. What differs is the form: a sample that a
transform was not drawn for gets parameters that leave it as it is, in place of being left out; parameters are made on
the host and go up in one copy; linear changes of colour are one matrix product of C x C per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretune.trainables.upload import upload
from pretune.trainables.views.color import GRAY_WEIGHTS
from pretune.trainables.views.drawn import Drawn, Step, View, blur_kernel

Floats = NDArray[np.float32]

SEXTANTS = np.array((5, 3, 1))  # of the circle of hues, by which the curves of red, green and blue are moved


def render(planes: Tensor, drawn: Sequence[Drawn], size: int) -> list[View]:
    """Views of `size` px of uint8 images (B, C, H, W), one for each of `drawn`, in its order."""
    B, V = len(planes), len(drawn)
    given = _Given(drawn, planes.shape[1:], size)
    table = upload(given.table(), planes.device)  # B * V, columns
    x = _crops(planes, *(table[:, given[axis]].view(B, V, size) for axis in ("y", "x")))
    x = _jitter(x, table, given) if "jitter" in given.names else x.mul_(1 / 255)
    if "gray" in given.names:
        x = _mixed(x, table[:, given["gray"]])
    if "blur" in given.names:
        x = _blurred(x, table[:, given["blur"]])
    for step in given.others:
        x = step.transform(x, table[:, given[step.name]])
    pixels = x.view(B, V, -1, size, size).permute(1, 0, 3, 4, 2).contiguous()  # V, B, S, S, C
    boxes, flipped = table[:, given["box"]].view(B, V, 4), table[:, given["flip"]].view(B, V) > 0.5
    return [View(pixels[v].permute(0, 3, 1, 2), boxes[:, v], flipped[:, v]) for v in range(V)]


class _Given:
    """Parameters of B * V samples by name, an image's views beside each other, as columns of one table."""

    def __init__(self, drawn: Sequence[Drawn], shape: Sequence[int], size: int) -> None:
        """`shape` is that of an image: channels, height, width."""
        channels, *sides = shape
        steps = [{step.name: step for step in view.steps} for view in drawn]
        self.names = list(dict.fromkeys(name for view in steps for name in view))
        first = {name: step for view in reversed(steps) for name, step in view.items()}
        self.others = [first[name] for name in self.names if name not in ("jitter", "gray", "blur")]
        parts = dict(_placed(drawn, sides, size))
        for name in self.names:
            values = np.stack([_everywhere(view.get(name), first[name], len(drawn[0].boxes)) for view in steps], axis=1)
            parts |= _columns(name, values.reshape(-1, values.shape[-1]), size, channels)
        self._parts = parts
        ends = [0, *np.cumsum([part.shape[1] for part in parts.values()]).tolist()]
        self._where = {name: slice(*ends[i : i + 2]) for i, name in enumerate(parts)}

    def table(self) -> Floats:
        return np.concatenate(list(self._parts.values()), axis=1, dtype=np.float32)

    def __getitem__(self, name: str) -> slice:
        return self._where[name]


def _everywhere(step: Step | None, like: Step, count: int) -> Floats:
    """Parameters (B, P) of a transform, with those that change nothing where it was not drawn."""
    unchanged = np.broadcast_to(np.asarray(like.unchanged, np.float32), (count, like.parameters.shape[1]))
    return unchanged if step is None else np.where(step.chosen[:, None], step.parameters, unchanged)


def _placed(drawn: Sequence[Drawn], sides: Sequence[int], size: int) -> Iterator[tuple[str, Floats]]:
    """Coordinates of the rows and columns to read, as grid_sample has them, and the view's box and mirroring."""
    height, width = sides
    boxes = np.stack([view.boxes for view in drawn], axis=1).reshape(-1, 4).astype(np.float64)  # B * V, 4
    flipped = np.stack([view.flipped for view in drawn], axis=1).reshape(-1, 1)
    y, x = (_source(boxes[:, axis, None], boxes[:, axis + 2, None], size) for axis in (0, 1))
    yield "y", ((2 * y + 1) / height - 1).astype(np.float32)
    yield "x", ((2 * np.where(flipped, x[:, ::-1], x) + 1) / width - 1).astype(np.float32)
    yield "box", (boxes / (height, width, height, width)).astype(np.float32)
    yield "flip", flipped.astype(np.float32)


def _source(start: NDArray[np.float64], length: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Pixel coordinates (n, size) at which a crop is read; its own edge is repeated, never its surroundings."""
    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    return np.clip(centres, 0, length - 1) + start


def _columns(name: str, values: Floats, size: int, channels: int) -> dict[str, Floats]:
    """Parameters (n, P) in the form that the kernels take."""
    gray = _gray_weights(channels)
    if name == "jitter":
        brightness, contrast, saturation, hue = (values[:, k, None] for k in range(4))
        return {
            "brightness": brightness / 255,
            "contrast": contrast,
            "mean": (1 - contrast) * gray,  # of the channel means, what contrast adds
            "saturation": _gray_matrix(1 - saturation, gray),
            "hue": 6 * hue + SEXTANTS,
        }
    if name == "gray":
        return {name: _gray_matrix(values, gray)}
    if name == "blur":
        return {name: gaussian_weights(values, blur_kernel(size))}
    return {name: values}


def _gray_weights(channels: int) -> Floats:
    """Luma of three channels, the mean of others, as `color.grayscale`."""
    return np.array(GRAY_WEIGHTS if channels == 3 else [1 / channels] * channels, np.float32)


def _gray_matrix(share: Floats, gray: Floats) -> Floats:
    """(n, 1) and (C,) -> (n, C * C): (1 - share) of the colour and `share` of its grey in every channel."""
    channels = len(gray)
    return (1 - share) * np.eye(channels, dtype=np.float32).ravel() + share * np.tile(gray, channels)


def gaussian_weights(sigma: Floats, kernel: int) -> Floats:
    """Normalised weights (n, kernel) for sigma (n, 1) in px."""
    distance = np.arange(kernel) - kernel // 2
    weights = np.exp(-0.5 * (distance / sigma.astype(np.float64)) ** 2)
    normalised: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


# ---------------------------------------------------------------------------------------------------------- kernels


def _crops(planes: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Images (B, C, H, W), rows and columns to read (B, V, S) -> (B * V, C, S, S) in [0, 255].

    The views of an image lie under each other in one grid, so that no image is repeated.
    """
    B, V, S = x.shape
    grid = torch.stack((x[:, :, None, :].expand(B, V, S, S), y[..., None].expand(B, V, S, S)), dim=-1)
    grid = grid.view(B, V * S, S, 2)
    crops = F.grid_sample(planes.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return crops.view(B, -1, V, S, S).transpose(1, 2).reshape(B * V, -1, S, S)


def _mixed(x: Tensor, matrices: Tensor) -> Tensor:
    """Every pixel's colour by the matrix (n, C * C) of its sample."""
    channels = x.shape[1]
    return torch.bmm(matrices.reshape(-1, channels, channels), x.flatten(2)).view(x.shape)


def _jitter(x: Tensor, table: Tensor, given: _Given) -> Tensor:
    """Brightness (from [0, 255]), contrast, saturation and hue, as `two_views.jitter`."""

    def column(name: str) -> Tensor:
        return table[:, given[name], None, None]

    x = x.mul_(column("brightness")).clamp_(0, 1)
    added = torch.linalg.vecdot(x.mean(dim=(2, 3)), table[:, given["mean"]])
    x = torch.addcmul(added[:, None, None, None], x, column("contrast")).clamp_(0, 1)
    x = _mixed(x, table[:, given["saturation"]]).clamp_(0, 1)
    return turned(x, column("hue")) if x.shape[1] == 3 else x  # others have no hue, as `color.adjust_hue`


def turned(x: Tensor, sextants: Tensor) -> Tensor:
    """Turns the hue; sextants (n, 3, 1, 1) hold six times the turn plus SEXTANTS.

    As `color.adjust_hue`, where every channel is high - chroma * clamp(min(k, 4 - k), 0, 1) with k the hue moved by
    the channel's number of sextants, in [0, 6).
    """
    high, largest = x.max(dim=1, keepdim=True)
    low = x.amin(dim=1, keepdim=True)
    chroma = high - low
    differences = x.roll(-1, 1).sub_(x.roll(-2, 1))  # g - b, b - r, r - g: which counts is told by the largest channel
    hue = differences.gather(1, largest).div_(chroma.clamp(min=torch.finfo(x.dtype).tiny)).add_(largest, alpha=2)
    far = (hue + sextants).remainder_(6).sub_(2).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(low, far, chroma)


def _blurred(x: Tensor, weights: Tensor) -> Tensor:
    """Both passes with one kernel (n, K) per sample, as depthwise convolutions; the border is reflected."""
    n, C, H, W = x.shape
    K = weights.shape[1]
    kernels = weights[:, None].expand(n, C, K).reshape(n * C, 1, K, 1)
    rows = F.pad(x, (0, 0, K // 2, K // 2), mode="reflect").view(1, n * C, H + K - 1, W)
    columns = F.conv2d(rows, kernels, groups=n * C).view(n, C, H, W)
    padded = F.pad(columns, (K // 2, K // 2, 0, 0), mode="reflect").view(1, n * C, H, W + K - 1)
    return F.conv2d(padded, kernels.view(n * C, 1, 1, K), groups=n * C).view(n, C, H, W)
