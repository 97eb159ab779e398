"""Supervised segmentation, from pretrained weights or from scratch: one stage, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.crops import Places, TrainingCrops
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split, label_subset
from pretune.trainables.distributed import RunningStatistics, World, whole_batch_norm
from pretune.trainables.evaluation import Evaluator
from pretune.trainables.files import TEST_IMAGES
from pretune.trainables.loop import (
    DataFeed,
    Epochs,
    IntArray,
    Length,
    Progress,
    RunContext,
    autocast,
    build_optimizer,
    compile_parts,
    layout,
    multiply_lr,
    set_lr_and_decay,
    training_length,
)
from pretune.trainables.losses import Loss, loss_of
from pretune.trainables.models.interface import Encoder
from pretune.trainables.models.table import build_unet
from pretune.trainables.models.unet import UNet
from pretune.trainables.recomputation import recompute_activations
from pretune.trainables.views.joint import evaluation_batch, fine_tune_batch

TARGET = "jaccard"  # `checkpoint: best` keeps the weights with the highest mean validation Jaccard


def finetune(
    settings: schema.Finetune,
    model: schema.Model,
    data: ImageSet,
    split: Split,
    streams: dict[str, int],
    context: RunContext,
    *,
    on_test: bool,
    strata: IntArray | None = None,
) -> dict[str, float]:
    """Train a U-Net on `settings.labels` of the training images and score it.

    Writes `model.safetensors`, `history.json`, `notes.json` and, if `on_test`, `test_images.npz` (pixel counts of
    every test image) into `context.out`, and now and then a state to resume from. A resumed run ends in the same
    weights as an uninterrupted one. Each of several workers (`context.world`) takes its part of every batch; the first
    one writes. The labelled images hold each of the `strata` (N,) of all images by its share in the training images.

    Returns:
        `val/*` and, if `on_test`, `test/*` scores, from one confusion matrix over the whole split, and the extra ones
        that `settings` ask for; `test@SIZE/*` at other sizes of images and masks, `train/loss` (mean over the last
        epoch), and `train/stopped_epoch` where patience ended it.

    Raises:
        DivergedError: the loss or the scored logits are not finite.
        PreemptedError: preempted; the state is written.
    """
    # --- data
    assert data.masks is not None, "fine-tuning needs masks; resolve refuses data sets without"
    if settings.threshold_scores and len(data.classes) != 2:
        raise ValueError(f"threshold_scores needs two classes, the data set has {len(data.classes)}; leave it out")
    world, device = context.world, context.device
    images = label_subset(split.train, settings.labels, streams["labels"], strata)
    batch_size = min(settings.batch_size, len(images))
    length = training_length(settings, math.ceil(len(images) / batch_size), context.until)
    epochs = Epochs(images, batch_size, streams["order"], length, data, world)
    feed, masks = (DataFeed(array, device, context.residency) for array in (data.images, data.masks))
    seed, crops = streams.get("augmentation", 0), None
    if settings.crops is not None:
        crops = TrainingCrops(settings, (feed, masks), Places(data.names, images, masks, len(data.classes)), seed)

    # --- model
    torch.manual_seed(streams["init"])
    network = build_unet(model, len(data.classes))
    if context.parent is not None:
        checkpoints.load_part(network.encoder, context.parent, "encoder")
        if settings.transfer == "encoder+decoder":
            checkpoints.load_part(network.decoder, context.parent, "decoder")
    network.to(device).to(memory_format=layout(network))
    if context.batch_norm == "sync":
        whole_batch_norm(network, world, device)
    levels = None
    if settings.unfreeze_every is not None:
        one = evaluation_batch(feed(images[:1]), masks(images[:1]), settings.size)[0]
        levels = levels_of(network.encoder, one)
    recompute_activations(network, context.activation_checkpointing)
    compile_parts(network, settings.compile)

    # --- optimiser, and where an earlier attempt stopped
    freezing = Freezing(settings, length.steps_per_epoch, levels)
    optimizer = build_optimizer(settings.optimizer, freezing.trained_parameters(network))
    if settings.encoder_lr_mult not in (None, 1.0):
        multiply_lr(optimizer, network.encoder.parameters(), settings.encoder_lr_mult)
    counted = pixels_of_classes(masks, images, len(data.classes)) if settings.class_weights == "balanced" else []
    loss_function = loss_of(settings, data.classes, counted, device)
    best = BestWeights(network, settings)
    progress = Progress(context, length, "loss", {"network": network, "optimizer": optimizer, "best": best})
    progress.resume()
    update = Update(settings, optimizer, length, loss_function, world, device)
    statistics = RunningStatistics(network, world)
    scored_loss = loss_function if settings.score_loss else None
    evaluator = Evaluator(network, feed, masks, data.classes, settings, data.names, world, scored_loss)

    # --- training
    for step in range(progress.first, length.end):
        if stalled(progress.history, settings.patience):
            break
        epoch = step // length.steps_per_epoch
        if step == progress.first or length.starts_epoch(step):  # scores left the network in eval mode
            freezing.apply(network, step)
        if step == progress.first or step in freezing.unfreeze_steps:
            trained = world.parallel(network)
        batch = world.part(epochs.batch(step))
        taken, labels = (feed(batch), masks(batch)) if crops is None else crops(batch, epoch)
        pixels, target = fine_tune_batch(taken, labels, batch, settings.size, settings.augment, seed, epoch)

        loss = update(trained, pixels, target, step)
        statistics.merge()
        progress.meter.add(loss)

        if length.ends_epoch(step):
            values = {"train/loss": progress.meter.mean()}
            if validation_due(settings, epoch) and len(split.val):
                values |= evaluator.evaluate(split.val, settings.size, "val", step).scores
                best.update(values)
            progress.record(step, values)
        progress.save_if_due(step)

    # --- score the weights that are kept
    last = progress.history[-1]
    steps = int(last["step"])
    if len(split.val) and not any(name.startswith("val/") for name in last):  # always at the end
        last |= evaluator.evaluate(split.val, settings.size, "val", steps - 1).scores
        best.update(last)
    metrics = progress.metrics() | best.restore()
    if on_test:
        tested = evaluator.evaluate(split.test, settings.size, "test", steps - 1)
        metrics |= tested.scores
        for size in settings.test_sizes:
            metrics |= evaluator.evaluate(split.test, size, f"test@{size}", steps - 1).scores
        if world.first:
            counts = tested.counts.cpu().numpy()
            np.savez_compressed(context.out / TEST_IMAGES, images=tested.images, counts=counts)
    if steps < length.end:
        metrics["train/stopped_epoch"] = last["epoch"]
    notes = {"labelled": images.tolist(), "val": split.val.tolist(), "test": split.test.tolist(), "steps": steps}
    progress.finish(network, notes | {"classes": list(data.classes), "size": settings.size})
    return metrics


@dataclass(frozen=True)
class Update:
    """One step of a fine-tuning, from a batch to new weights. Nothing in it waits for the device."""

    settings: schema.Finetune
    optimizer: torch.optim.Optimizer
    length: Length
    loss: Loss
    world: World
    device: torch.device

    def __call__(self, trained: nn.Module, pixels: Tensor, target: Tensor, step: int) -> Tensor:
        """The loss of step `step` on pixels (B, 3, S, S) and classes (B, S, S)."""
        set_lr_and_decay(self.optimizer, self.settings, step, self.length)
        with autocast(self.settings.precision, self.device):
            loss = self.loss(trained(pixels), target, self.world)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def pixels_of_classes(masks: DataFeed, images: IntArray, classes: int) -> list[int]:
    """Pixels of each class in the masks of `images`, as they are cached; ignored ones do not count."""
    total = torch.zeros(256, dtype=torch.int64)
    for part in np.array_split(images, math.ceil(len(images) / 64)):
        total += torch.bincount(masks(part).flatten().long().cpu(), minlength=256)
    counts: list[int] = total[:classes].tolist()
    return counts


class Freezing:
    """When the encoder is frozen, and everything that depends on it.

    A frozen encoder gets no gradients and stays in eval mode, or its batch norm statistics would drift. The optimiser
    has the parameters of an encoder only if it is trained at some step. With `unfreeze_every` the coarsest level begins
    at `unfreeze_epoch`, and each finer one so many epochs after the one before (Howard and Ruder 2018).
    """

    def __init__(
        self, settings: schema.Finetune, steps_per_epoch: int, levels: Mapping[str, int] | None = None
    ) -> None:
        """`levels` of the encoder's parameters by name, 0 the finest, for `unfreeze_every`."""
        epoch = settings.unfreeze_epoch if settings.freeze == "encoder" else 0
        self.unfreeze_step = math.inf if epoch is None else epoch * steps_per_epoch  # the first that trains the encoder
        later = (settings.unfreeze_every or 0) * steps_per_epoch
        coarsest = max((levels or {}).values(), default=0)
        self._first = {name: self.unfreeze_step + (coarsest - level) * later for name, level in (levels or {}).items()}
        self.unfreeze_steps = {self.unfreeze_step, *self._first.values()}  # from which other parameters are trained

    def frozen_at(self, step: int) -> bool:
        """Whether `step` leaves the whole encoder as it is."""
        return step < self.unfreeze_step

    def trained_parameters(self, network: UNet) -> list[nn.Parameter]:
        """Parameters that the optimiser is given."""
        fixed = "encoder." if self.unfreeze_step == math.inf else ()
        return [parameter for name, parameter in network.named_parameters() if not name.startswith(fixed)]

    def apply(self, network: UNet, step: int) -> None:
        """Set the network to training mode, as it is from `step` to the end of its epoch."""
        network.train()
        network.encoder.train(not self.frozen_at(step))
        network.encoder.requires_grad_(not self.frozen_at(step))
        for name, module in network.encoder.named_modules() if self._first else ():
            own = dict(module.named_parameters(prefix=name, recurse=False))
            for parameter, tensor in own.items():
                tensor.requires_grad_(step >= self._first[parameter])
                module.training = step >= self._first[parameter]  # of batch norm: its children have no say


def levels_of(encoder: Encoder, images: Tensor) -> dict[str, int]:
    """The finest of the encoder's maps that each parameter has a part in, by name: 0 is the finest.

    Found by gradients, whatever the encoder is made of; one that no map depends on counts as the coarsest's. Nothing
    is changed by it.
    """
    was_training = encoder.training
    maps = encoder.eval()(images)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    found = dict.fromkeys(names, len(maps) - 1)
    for level in reversed(range(len(maps))):
        used = torch.autograd.grad(maps[level].sum(), parameters, retain_graph=True, allow_unused=True)
        found |= {name: level for name, gradient in zip(names, used, strict=True) if gradient is not None}
    encoder.train(was_training)
    return found


class BestWeights:
    """Weights and scores of the best validation so far; the first of equals stays. Empty with `checkpoint: last`."""

    def __init__(self, network: UNet, settings: schema.Finetune) -> None:
        self._network = network
        self._wanted = settings.checkpoint == "best"
        self._best: dict[str, Any] | None = None

    def update(self, values: dict[str, float]) -> None:
        """Keep the network's weights if these values of it are better."""
        scores, target = {name: value for name, value in values.items() if name.startswith("val/")}, f"val/{TARGET}"
        if not self._wanted or (self._best is not None and self._best["scores"][target] >= scores[target]):
            return
        self._best = {"scores": scores, "network": checkpoints.clone_state(self._network)}

    def restore(self) -> dict[str, float]:
        """Load the best weights into the network; their scores, or none where nothing was kept."""
        if self._best is None:
            return {}
        self._network.load_state_dict(self._best["network"])
        scores: dict[str, float] = self._best["scores"]
        return scores

    def state_dict(self) -> dict[str, Any] | None:
        return self._best

    def load_state_dict(self, state: dict[str, Any] | None, /) -> None:
        self._best = state


def validation_due(settings: schema.Finetune, epoch: int) -> bool:
    """`checkpoint: best` validates after every epoch unless `validate_every` says otherwise."""
    every = settings.validate_every or (1 if settings.checkpoint == "best" else 0)
    return every > 0 and (epoch + 1) % every == 0


def stalled(history: list[dict[str, float]], patience: int | None) -> bool:
    """Whether the last `patience` validations brought nothing better (Prechelt 1998)."""
    scored = [row[f"val/{TARGET}"] for row in history if f"val/{TARGET}" in row]
    return patience is not None and len(scored) - 1 - scored.index(max(scored)) >= patience if scored else False
