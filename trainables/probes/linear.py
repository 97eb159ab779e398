"""The linear probe: a linear classifier on the features of a frozen encoder.

Settings of P4's library (Lightly's benchmarks): SGD, 90 epochs, cosine, no weight decay, no batch norm before the
classifier. The features of each image are taken once, without augmentation, which makes it minutes rather than hours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.trainables.loop import DivergedError, epoch_order, set_lr
from pretune.trainables.optimizers import SGD, without_compiler
from pretune.trainables.probes.features import PROBE_SEED
from pretune.trainables.schedules import cosine_ramp

MOMENTUM = 0.9


class Labelled(NamedTuple):
    """Features (N, C) of images and their classes (N,)."""

    features: Tensor
    classes: Tensor


class Scores(NamedTuple):
    """Accuracies on the validation images."""

    last: float  # after the last epoch: the number to report
    best: float  # of all epochs: optimistic, since it was chosen on the images that it is measured on


def linear_probe(train: Labelled, val: Labelled, epochs: int, lr: float, batch_size: int, batch_norm: bool) -> Scores:
    """Train a linear classifier with cross entropy by SGD (momentum 0.9, cosine to 0) and score it after each epoch.

    Args:
        batch_norm: normalise features by the statistics of their batch first, without learned scale or shift (MAE's
            habit).

    Raises DivergedError where the classifier is not finite after an epoch: the rate is too high.
    """
    torch.manual_seed(PROBE_SEED)
    x, y = train
    network = classifier(x.shape[1], int(torch.cat((y, val.classes)).max()) + 1, batch_norm).to(x.device)
    without_compiler()
    optimizer = SGD(network.parameters(), lr, MOMENTUM)
    accuracies = []
    for epoch in range(epochs):
        batches = np.array_split(epoch_order(len(x), PROBE_SEED, epoch), -(-len(x) // batch_size))
        for step, batch in enumerate(batches):
            set_lr(optimizer, cosine_ramp(lr, 0.0, epoch * len(batches) + step, epochs * len(batches)))
            _step(network, optimizer, x[batch], y[batch])
        if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
            raise DivergedError("classifier", (epoch + 1) * len(batches), math.nan)  # argmax would say class 0
        accuracies.append(accuracy(network, *val))
    return Scores(accuracies[-1], max(accuracies))


def classifier(inputs: int, classes: int, batch_norm: bool) -> nn.Sequential:
    """(B, inputs) -> logits (B, classes). Small normal weights and no bias at the start, as in MoCo's probe."""
    linear = nn.Linear(inputs, classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(*([nn.BatchNorm1d(inputs, affine=False)] if batch_norm else []), linear)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    network.train()
    loss = F.cross_entropy(network(x), y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of features (N, C) whose largest logit is that of their class (N,)."""
    network.eval()
    return float((network(x).argmax(dim=1) == y).double().mean())
