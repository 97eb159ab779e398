"""Signs that a pretraining has collapsed: what it measures in the encoder itself, and when a value is suspicious.

A collapse shows in one of four ways. All images get the same features (their spread goes to 0), or the same projections
of them; features vary along few directions (the effective rank goes to 1; Jing et al.: "Understanding dimensional
collapse in contrastive self-supervised learning", ICLR 2022); the loss stays at the value of an answer that is the same
for all inputs; or it goes to 0 since all images get one and the same output or prototype, a corner of the simplex
(Caron et al.: "Emerging properties in self-supervised vision transformers", ICCV 2021, section 5.3), which the encoder
need not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.trainables.distributed import ALONE, World

MIN_SPREAD = 0.01  # the mean cosine of two images is then 1 - 0.01^2 = 0.9999
MIN_RANK = 2.0  # features that vary along one line alone have 1
MIN_STD = 5e-4  # of projections; 0.09 where they fill the sphere in 128 dimensions, 0.02 in 2048
MIN_ENTROPY = (
    0.01  # share of the uniform value; a healthy teacher that is sure of a few clusters has ln(clusters) / ln K
)
MIN_CHOSEN = 2.0  # prototypes
UNIFORM_MARGIN = 0.01  # share of the uniform value within which a loss counts as stuck there


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation over images of the L2-normalised features (N, C), averaged over channels.

    0 where all images have the same features, 1 / sqrt(C) where they fill the sphere.
    """
    return F.normalize(features.float(), dim=1).std(dim=0, correction=0).mean()


def spread(features: Tensor) -> Tensor:
    """sqrt(1 - |mean|^2) of the L2-normalised features (N, C): 0 where all are the same, 1 where they balance out."""
    return F.normalize(features.double(), dim=1).var(dim=0, correction=0).sum().sqrt()


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares, of centred features (N, C): from 1 to min(N - 1, C).

    Roy, Vetterli: "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. Features without any
    variation have 1; NaN where a feature is not finite.
    """
    x = features.double()
    x = x - x.mean(dim=0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the smaller of the two; same non-zero eigenvalues
    if not torch.isfinite(gram).all():  # LAPACK would raise
        return gram.new_tensor(torch.nan)
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


@torch.no_grad()
def measure(encoder: nn.Module, pixels: Tensor, world: World = ALONE) -> dict[str, float]:
    """Spread and effective rank of the encoder's pooled features of all workers' images (or volumes), in eval mode.

    The encoder is left in training mode, and its statistics as they were.
    """
    encoder.eval()
    features = encoder(pixels)[-1]
    features = world.gather(features.mean(dim=tuple(range(2, features.ndim))))
    encoder.train()
    return {"encoder_spread": float(spread(features)), "encoder_rank": float(effective_rank(features))}


def collapsed(history: Sequence[Mapping[str, float]], epochs: int) -> tuple[str, ...]:
    """The signs of the last epoch if each of the last `epochs` showed some, else none."""
    recent = [signs({key.removeprefix("train/"): value for key, value in row.items()}) for row in history[-epochs:]]
    return recent[-1] if len(recent) == epochs and all(recent) else ()


def signs(values: Mapping[str, float]) -> tuple[str, ...]:
    """Warnings by name, one for each suspicious value; empty where nothing points to a collapse.

    Looks at `encoder_spread` and `encoder_rank`; at `loss_over_uniform` where the method has a uniform loss, that of an
    answer which is the same for all inputs; and where the method reports them at `feature_std` of its projections, the
    entropy of its teacher's answers (of single images, and of their mean, which is small only if all images get the
    same answer), and how many prototypes are any image's first choice.
    """
    found = []
    if (value := values.get("encoder_spread", 1.0)) < MIN_SPREAD:
        found.append(f"encoder_spread {value:.4g} is below {MIN_SPREAD}: all images get nearly the same features")
    if (value := values.get("encoder_rank", MIN_RANK)) < MIN_RANK:
        found.append(f"encoder_rank {value:.4g} is below {MIN_RANK}: the features vary along hardly one direction")
    share = values.get("loss_over_uniform")
    if share is not None and abs(share - 1) <= UNIFORM_MARGIN:
        found.append(f"loss_over_uniform {share:.4g}: the loss is that of one answer for all inputs")
    if (value := values.get("feature_std", MIN_STD)) < MIN_STD:
        found.append(f"feature_std {value:.4g} is below {MIN_STD}: all images get nearly the same projection")
    single = values.get("teacher_entropy_over_uniform", 1.0)
    if max(single, values.get("teacher_mean_entropy_over_uniform", 0.0)) < MIN_ENTROPY:
        found.append(f"teacher_entropy_over_uniform {single:.4g}: the teacher gives all images one and the same output")
    if (value := values.get("prototypes_chosen", MIN_CHOSEN)) < MIN_CHOSEN:
        found.append(f"prototypes_chosen {value:.4g}: all images choose one and the same prototype")
    return tuple(found)
