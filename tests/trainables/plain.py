"""Both training loops once more, as plainly as they can be written: what the engine's are held against, step by step.

Nothing of `trainables.loop`, `schedules` or `optimizers` is used. Rates, decays, clipping and LARS are written from
their definitions, the other optimisers are torch's one-tensor-at-a-time forms. Modules, views and losses are the
project's own: other tests prove those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import finetune as finetuning
from pretune.trainables import pretrain as pretraining
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.losses import LOSSES
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder, build_unet

FROZEN_LAYER = {"dino": "head.prototypes.weight", "swav": "prototypes.weight"}  # what the papers hold still at first
Named = dict[str, nn.Parameter]


class Moment(NamedTuple):
    """What a step leaves behind; gradients and slots by a parameter's place among the optimiser's."""

    loss: float
    gradients: dict[int, Tensor]  # as the optimiser met them; none for a parameter that is held still
    weights: dict[str, Tensor]  # parameters and buffers
    rates: list[float]  # of each group of parameters
    decays: list[float]
    slots: dict[int, dict[str, Tensor]]  # momentum and the like; none for a parameter that never moved


# ---------------------------------------------------------------------------------------------------------- schedules


def rate(optimizer: schema.Optimizer, schedule: schema.Schedule, step: int, per_epoch: int, steps: int) -> float:
    """Linear warm-up to the rate, times what the schedule leaves of it."""
    warmup = schedule.warmup_epochs * per_epoch
    lr = optimizer.lr * ((step + 1) / warmup if step < warmup else 1.0)
    if schedule.name == "step":  # halved, say, after every so many epochs of all
        return lr * math.prod([schedule.gamma] * (step // per_epoch // schedule.every))
    if schedule.name == "cosine" and step >= warmup:  # from 1 to `final` over what follows the warm-up
        angle = math.pi * (step - warmup) / (steps - warmup)
        return lr * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(angle)))
    if schedule.name == "polynomial" and step >= warmup:  # (1 - t)^power over what follows the warm-up
        return lr * (1 - (step - warmup) / (steps - warmup)) ** schedule.power
    return lr


def decay(optimizer: schema.Optimizer, step: int, steps: int) -> float:
    """Of weight matrices: constant, or half a cosine from the first value to the last (DINO)."""
    start, end = optimizer.weight_decay, getattr(optimizer, "weight_decay_end", None)
    return start if end is None else end - (end - start) * 0.5 * (1 + math.cos(math.pi * step / steps))


# --------------------------------------------------------------------------------------------------------- optimisers


class Lars:
    """You, Gitman, Ginsburg 2017, equation 6, one parameter after the other."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float, trust: float) -> None:
        self.param_groups, self.momentum, self.trust = groups, momentum, trust
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _move(self, w: nn.Parameter, g: Tensor, lr: float, beta: float) -> None:
        if w.ndim > 1 and w.norm() > 0 and g.norm() > 0:
            local = self.trust * w.norm() / (g.norm() + beta * w.norm() + 1e-8)  # against 0 / 0
            g = local * (g + beta * w)
        before = self.state.get(w, {"velocity": torch.zeros_like(w)})["velocity"]
        self.state[w] = {"velocity": self.momentum * before + g}
        w -= lr * self.state[w]["velocity"]


def groups_of(settings: schema.Optimizer, parameters: list[nn.Parameter], mult: float) -> list[dict[str, Any]]:
    """One group; two where biases and norms have no weight decay (`decay: weights`)."""
    whole = {"lr": settings.lr, "weight_decay": settings.weight_decay, "mult": mult, "decayed": True}
    if getattr(settings, "decay", None) != "weights":
        return [{**whole, "params": parameters}]
    matrices, others = ([p for p in parameters if (p.ndim > 1) == wanted] for wanted in (True, False))
    return [{**whole, "params": matrices}, {**whole, "params": others, "weight_decay": 0.0, "decayed": False}]


def optimiser(settings: schema.Optimizer, parts: list[tuple[list[nn.Parameter], float]]) -> Any:
    """Over lists of parameters, each with a multiple of the rate."""
    groups = [group for parameters, mult in parts for group in groups_of(settings, parameters, mult)]
    if isinstance(settings, schema.LARS):
        return Lars(groups, settings.momentum, settings.trust_coefficient)
    plain: dict[str, Any] = {"foreach": False, "fused": False}
    if isinstance(settings, schema.SGD):
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **plain)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(groups, betas=settings.betas, **plain)


def clip(parameters: list[nn.Parameter], norm: float | None, how: str | None) -> None:
    """Gradients above the norm are scaled down to it, together or one by one; torch adds 1e-6 to what it divides by."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    for part in [] if norm is None else [[g] for g in gradients] if how == "parameter" else [gradients]:
        total = math.sqrt(sum(float((g**2).sum()) for g in part))
        for gradient in part:
            gradient *= min(1.0, norm / (total + 1e-6))


# -------------------------------------------------------------------------------------------------------------- loops


def rows(images: Any, seed: int, epoch: int, position: int, batch_size: int) -> Any:
    """The images of a step: a slice of the epoch's permutation, shorter at the end."""
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    return images[order[position * batch_size :][:batch_size]]


def descend(loss: Tensor, parameters: Named, still: Callable[[str], bool]) -> None:
    """Make the gradients anew; `still` says, by its name, whose are dropped."""
    for parameter in parameters.values():
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in parameters.items():
        if still(name):
            parameter.grad = None


def schedule_step(optimizer: Any, settings: Any, step: int, per_epoch: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["mult"] * rate(settings.optimizer, settings.schedule, step, per_epoch, steps)
        if group["decayed"]:
            group["weight_decay"] = decay(settings.optimizer, step, steps)


def places(optimizer: Any) -> dict[int, nn.Parameter]:
    return dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))


def gradients_of(optimizer: Any) -> dict[int, Tensor]:
    return {i: p.grad.clone() for i, p in places(optimizer).items() if p.grad is not None}


def moment(module: nn.Module, optimizer: Any, loss: Tensor, gradients: dict[int, Tensor]) -> Moment:
    kept = {i: optimizer.state.get(p, {}) for i, p in places(optimizer).items()}
    return Moment(
        float(loss.detach()),
        gradients,
        {name: value.detach().clone() for name, value in module.state_dict().items()},
        [group["lr"] for group in optimizer.param_groups],
        [group["weight_decay"] for group in optimizer.param_groups],
        {i: {key: slot.clone() for key, slot in slots.items() if slot is not None} for i, slots in kept.items()},
    )


def pretrain(
    settings: schema.Pretrain, model: schema.Model, data: ImageSet, images: Any, streams: dict[str, int], context: Any
) -> list[Moment]:
    """Whole batches of `images`; what is left of an epoch is left out."""
    batch_size = settings.batch_size
    per_epoch = len(images) // batch_size
    steps = settings.steps or settings.epochs * per_epoch
    torch.manual_seed(streams["init"])
    labels = 0 if data.labels is None else int(data.labels.max()) + 1
    parts = Parts(build_encoder(model), lambda: build_decoder(model), len(data.classes), labels)
    method: Any = build_method(settings.method, settings.views, parts)
    feeds = pretraining.make_feeds(data, context)
    parameters = {name: p for name, p in method.named_parameters() if p.requires_grad}
    optimizer = optimiser(settings.optimizer, [(list(parameters.values()), 1.0)])
    held = getattr(settings.method, "freeze_last_epochs", getattr(settings.method, "freeze_prototypes_epochs", 0))
    found = []
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        chosen = rows(np.sort(images), streams["order"], epoch, position, batch_size)
        loss, _ = method(
            pretraining.make_batch(method, feeds, chosen, streams["augmentation"], epoch, context.world), step / steps
        )
        frozen = FROZEN_LAYER.get(settings.method.name) if epoch < held else None
        descend(loss, parameters, lambda name, frozen=frozen: name == frozen)
        clip(list(parameters.values()), settings.clip_norm, settings.clip)
        gradients = gradients_of(optimizer)
        schedule_step(optimizer, settings, step, per_epoch, steps)
        optimizer.step()
        method.after_step((step + 1) / steps)
        found.append(moment(method, optimizer, loss, gradients))
    return found


def frozen_parts(network: Any, settings: schema.Finetune, epoch: int) -> list[str]:
    """The encoder, or those of its levels that are not trained yet: the coarsest is first."""
    if settings.freeze == "none" or (settings.unfreeze_epoch is not None and settings.unfreeze_every is None):
        return ["encoder"] if settings.freeze == "encoder" and epoch < settings.unfreeze_epoch else []
    if settings.unfreeze_epoch is None:
        return ["encoder"]
    trained = 0 if epoch < settings.unfreeze_epoch else 1 + (epoch - settings.unfreeze_epoch) // settings.unfreeze_every
    return [f"encoder.levels.{level}" for level in range(max(0, len(network.encoder.levels) - trained))]


def finetune(
    settings: schema.Finetune, model: schema.Model, data: ImageSet, images: Any, streams: dict[str, int], context: Any
) -> list[Moment]:
    """All of the labelled `images` in every epoch; the last batch of one is what is left.

    A frozen encoder's gradients are made and dropped; its batch norm is in eval mode.
    """
    batch_size = min(settings.batch_size, len(images))
    per_epoch = -(-len(images) // batch_size)
    steps = settings.steps or settings.epochs * per_epoch
    torch.manual_seed(streams["init"])
    network = build_unet(model, len(data.classes))
    if context.parent is not None:
        given = load_file(context.parent)
        parts = {"none": (), "encoder": ("encoder.",), "encoder+decoder": ("encoder.", "decoder.")}[settings.transfer]
        own = network.state_dict()
        network.load_state_dict(own | {name: given[name] for name in own if name.startswith(parts)})
    forever = settings.freeze == "encoder" and settings.unfreeze_epoch is None
    parameters = {n: p for n, p in network.named_parameters() if not (forever and n.startswith("encoder."))}
    optimizer = optimiser(settings.optimizer, [(list(parameters.values()), 1.0)])
    if (mult := settings.encoder_lr_mult) is not None:
        encoder, decoder = (
            [p for n, p in parameters.items() if n.startswith("encoder.") == own] for own in (True, False)
        )
        optimizer = optimiser(settings.optimizer, [(decoder, 1.0), (encoder, mult)])
    found = []
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        still = frozen_parts(network, settings, epoch)
        network.train()
        for part in still:
            network.get_submodule(part).eval()
        chosen = rows(images, streams["order"], epoch, position, batch_size)
        pixels, target = finetuning.fine_tune_batch(
            torch.from_numpy(data.images[chosen]), torch.from_numpy(data.masks[chosen]), chosen, settings.size,
            settings.augment, streams["augmentation"], epoch,
        )  # fmt: skip
        loss = LOSSES[settings.loss](network(pixels), target)
        descend(loss, parameters, lambda name, still=still: name.startswith(tuple(f"{part}." for part in still)))
        gradients = gradients_of(optimizer)
        schedule_step(optimizer, settings, step, per_epoch, steps)
        optimizer.step()
        found.append(moment(network, optimizer, loss, gradients))
    return found
