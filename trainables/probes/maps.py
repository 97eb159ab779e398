"""Maps of what an encoder sees: features in three colours and similarity to a chosen place (P5, Figure 1), and where a
classifier finds its class (P3, Figure 5c).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet, shown_in_color
from pretune.trainables.data.splits import Split
from pretune.trainables.files import MAPS
from pretune.trainables.loop import DataFeed, RunContext
from pretune.trainables.probes.features import load_encoder, pixels_of, pooled_features


def write_maps(
    settings: schema.CAM | schema.FeatureMaps, model: schema.Model, data: ImageSet, split: Split, context: RunContext
) -> dict[str, float]:
    """Maps of the first validation images as arrays in `maps.npz`, in `context.out`.

    `images` (n,) indices and `pixels` (n, S, S, 3) uint8; class-activation maps add `maps` (n, h, w) float32, `labels`
    and `predicted` (n,); feature maps add `components` (n, h, w, 3) and `similarity` (n, h, w) float32.

    Returns:
        `probe/accuracy` of the classifier on all validation images, or `probe/explained_variance`, the share of the
        first three principal components in the variance of the features kept.

    Raises:
        ValueError: no validation images; for class-activation maps no classifier beside the encoder, or no labels.
    """
    if context.parent is None or len(split.val) == 0:
        raise ValueError("maps are of a pretrained encoder and of validation images; split.val leaves none")
    encoder = load_encoder(model, context.parent, context.device)
    feed, images = DataFeed(data.images, context.device, context.residency), split.val[: settings.count]
    with torch.no_grad():
        pixels = pixels_of(feed, images, settings.size)
        features = encoder(pixels)
    shown = shown_in_color((pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    kept: dict[str, NDArray[Any]] = {"images": images, "pixels": shown}
    if isinstance(settings, schema.FeatureMaps):
        if settings.level > len(features):
            raise ValueError(f"level {settings.level}: this encoder has {len(features)} levels")
        chosen = features[-settings.level].float().cpu()
        row, column = (int(share * n) for share, n in zip(settings.place, chosen.shape[2:], strict=True))
        similar = torch.stack([similarity_map(one, row, column) for one in chosen]).float().numpy()
        kept |= {"components": pca_map(chosen).permute(0, 2, 3, 1).float().numpy(), "similarity": similar}
        kept["place"] = np.array([row, column])
        np.savez_compressed(context.out / MAPS, allow_pickle=False, **kept)
        return {"probe/explained_variance": explained_variance(chosen)}
    weights = load_file(context.parent)
    if data.labels is None or "head.weight" not in weights or "head.bias" not in weights:
        raise ValueError("class-activation maps need image classes and the classifier of a classification")
    weight, bias = (weights[f"head.{name}"].float() for name in ("weight", "bias"))
    logits = pooled_features(encoder, feed, split.val, settings.size).float().cpu() @ weight.T + bias
    predicted, labels = logits.argmax(dim=1).numpy(), data.labels[split.val]
    maps = class_activation_maps(features[-1].float().cpu(), weight, torch.from_numpy(labels[: len(images)]))
    kept |= {"maps": maps.numpy(), "labels": labels[: len(images)], "predicted": predicted[: len(images)]}
    np.savez_compressed(context.out / MAPS, allow_pickle=False, **kept)
    return {"probe/accuracy": float((predicted == labels).mean())}


def class_activation_maps(features: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """M(x, y) = sum over k of w_k f_k(x, y) (Zhou et al., CVPR 2016, equation 2), of one class per image.

    Its mean over all places, plus the classifier's bias, is the logit of that class.

    Args:
        features: the maps (B, C, h, w) that are average pooled before the classifier.
        weight: of the linear classifier (classes, C).
        classes: (B,) int64.

    Returns:
        (B, h, w).
    """
    return torch.einsum("bchw,bc->bhw", features, weight[classes])


def explained_variance(features: Tensor) -> float:
    """Share of the first three principal components in the variance of all places' features (B, C, h, w); 0 without
    variation."""
    x = features.double().permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    values = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    return float(values[:3].sum() / values.sum()) if values.sum() > 0 else 0.0


def similarity_map(features: Tensor, row: int, column: int) -> Tensor:
    """Cosine of every place's features with those of one place: (C, h, w) -> (h, w) in [-1, 1].

    Raises ValueError for a place outside the map.
    """
    height, width = features.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"row and column must lie in the {height} x {width} map, got {row}, {column}")
    unit = F.normalize(features.double(), dim=0)
    return torch.einsum("chw,c->hw", unit, unit[:, row, column])


def pca_map(features: Tensor) -> Tensor:
    """The first three principal components of the features of all places, as red, green and blue.

    (B, C, h, w), C >= 3 -> (B, 3, h, w) in [0, 1], each component scaled to its own range over the batch; of the two
    directions of a component, that with the largest loading positive. A component without variation is 0.
    """
    batch, channels, height, width = features.shape
    if channels < 3:
        raise ValueError(f"three components need at least 3 channels, got {channels}")
    x = features.double().permute(0, 2, 3, 1).reshape(-1, channels)
    x = x - x.mean(dim=0)
    axes = torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)  # C, 3, the strongest first
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    scores = x @ (axes * largest.sign())
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    varies = high - low > 1e-9 * x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    scaled = torch.where(varies, (scores - low) / torch.where(varies, high - low, 1), 0)
    return scaled.reshape(batch, height, width, 3).permute(0, 3, 1, 2)
