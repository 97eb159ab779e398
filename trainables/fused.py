"""Fused replicates: K fine-tunings that differ only by their seeds, trained as one network.

Weights are stacked along a new first axis and the network is mapped over it (`torch.func.vmap`), so that K small
convolutions become one grouped one. Each replicate has its own initialisation, images, order, augmentation, batch
norm statistics and optimiser state; what it gets is what training alone gives it, up to rounding. HFTA (Wang et al.,
MLSys 2021) does the same for GPUs that small networks leave idle.

The engine does not use it: on the CPU it does not pay (benchmarks/README.md), and no GPU was there to measure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.finetune import encoder_frozen, train_mode
from pretune.trainables.loop import DataFeed, IntArray, build_optimizer, epoch_order, set_lr, total_steps
from pretune.trainables.losses import LOSSES
from pretune.trainables.models.unet import UNet
from pretune.trainables.schedules import learning_rate
from pretune.trainables.views.joint import fine_tune_batch


class Fused:
    """K networks of one architecture as one. They must be in equal modes and have equal parameters frozen.

    Args:
        networks: left alone until `unstack`.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.count = len(networks)
        self.base = copy.deepcopy(networks[0]).to("meta")  # the architecture and its modes; never computes
        self.parameters, self.buffers = stack_module_state(list(networks))
        self.replicas = [self._replica(k) for k in range(self.count)]

    def __call__(self, x: Tensor) -> Tensor:
        """(K, B, ...) -> (K, B, ...): row k through network k; batch norm sees each row alone."""
        run = lambda parameters, buffers, rows: functional_call(self.base, (parameters, buffers), (rows,))  # noqa: E731
        mapped: Callable[..., Tensor] = vmap(run, randomness="error")
        return mapped(self.parameters, self.buffers, x)

    def hand_out_gradients(self) -> None:
        """After backward: each replicate's part of the gradients, as views."""
        for k, replica in enumerate(self.replicas):
            for parameter, whole in zip(replica, self._trained(), strict=True):
                parameter.grad = None if whole.grad is None else whole.grad[k]

    def zero_grad(self) -> None:
        for parameter in self._trained():
            parameter.grad = None

    def unstack(self, networks: Sequence[nn.Module]) -> None:
        """Write replicate k's weights and buffers into `networks[k]`."""
        for k, network in enumerate(networks):
            whole = self.parameters | self.buffers
            network.load_state_dict({name: value[k].detach() for name, value in whole.items()})

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters.values() if parameter.requires_grad]

    def _replica(self, k: int) -> list[nn.Parameter]:
        """Replicate k's trained weights, which share memory with the stack: optimisers and norms see one replicate."""
        return [nn.Parameter(parameter.detach()[k]) for parameter in self._trained()]


@dataclass(frozen=True)
class Replicate:
    """What a replicate has of its own."""

    images: IntArray  # labelled, as many for each replicate
    streams: dict[str, int]  # order, and augmentation where there is any


def train(
    settings: schema.Finetune,
    networks: Sequence[UNet],
    data: ImageSet,
    replicates: Sequence[Replicate],
    steps: int,
    device: torch.device,
    clip_norm: float | None = None,
) -> list[list[float]]:
    """The first `steps` of `finetune` for all replicates together; the networks hold their weights afterwards.

    Args:
        clip_norm: of each replicate's own gradient; a setting that only pretraining's loop has.

    Returns:
        the losses, (steps, K).
    """
    assert data.masks is not None
    counts = {len(replicate.images) for replicate in replicates}
    if len(counts) != 1:
        raise ValueError(f"fused replicates have as many labelled images each, got {sorted(counts)}")
    unknown = {
        "unfreeze_epoch": settings.unfreeze_epoch is not None,
        "patience": settings.patience is not None,
        "checkpoint: best": settings.checkpoint == "best",
        "precision: bfloat16": settings.precision == "bfloat16",
        "compile": settings.compile,
        "weight_decay_end": getattr(settings.optimizer, "weight_decay_end", None) is not None,
    }
    if asked := [name for name, there in unknown.items() if there]:
        raise ValueError(f"fused replicates do not know {', '.join(asked)}: leave out")
    count = counts.pop()
    batch_size = min(settings.batch_size, count)
    per_epoch = -(-count // batch_size)
    whole = total_steps(settings.epochs, settings.steps, per_epoch)  # which schedules go by
    feed, masks, loss_of = DataFeed(data.images, device), DataFeed(data.masks, device), LOSSES[settings.loss]
    for network in networks:
        train_mode(network.to(device), encoder_frozen(settings, 0))
    fused = Fused(networks)
    optimizers = [build_optimizer(settings.optimizer, replica) for replica in fused.replicas]
    losses = []
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        rows = []
        for replicate in replicates:
            order = epoch_order(count, replicate.streams["order"], epoch, data.shuffle_window)
            batch = replicate.images[order[position * batch_size : (position + 1) * batch_size]]
            seed = replicate.streams.get("augmentation", 0)
            rows.append(fine_tune_batch(feed(batch), masks(batch), batch, settings.size, settings.augment, seed, epoch))
        pixels, targets = (torch.stack(part) for part in zip(*rows, strict=True))  # K, B, ...
        each = torch.stack([loss_of(*pair) for pair in zip(fused(pixels), targets, strict=True)])  # K
        fused.zero_grad()
        each.sum().backward()  # type: ignore[no-untyped-call]  # no replicate's loss depends on another's weights
        fused.hand_out_gradients()
        lr = learning_rate(settings.schedule, settings.optimizer.lr, step, per_epoch, whole)
        for replica, optimizer in zip(fused.replicas, optimizers, strict=True):
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(replica, clip_norm)
            set_lr(optimizer, lr)
            optimizer.step()
        losses.append(each.tolist())
    fused.unstack(networks)
    return losses
