"""Self-supervised pretraining of an encoder: one stage, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet, Pixels
from pretune.trainables.data.splits import Split, visible
from pretune.trainables.distributed import ALONE, RunningStatistics, World, whole_batch_norm
from pretune.trainables.loop import (
    CollapsedError,
    DataFeed,
    DivergedError,
    Epochs,
    IntArray,
    Length,
    Lookup,
    Progress,
    RunContext,
    autocast,
    build_optimizer,
    clip_gradients,
    compile_parts,
    layout,
    set_lr_and_decay,
    training_length,
)
from pretune.trainables.methods import collapse
from pretune.trainables.methods.protocol import Batch, Method, Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.methods.weights import import_weights
from pretune.trainables.models.interface import Decoder
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.probes.accuracy import knn_accuracy
from pretune.trainables.recomputation import recompute_activations
from pretune.trainables.views.random import uniforms, uniforms_on
from pretune.trainables.views.regions import RegionBoxes, uses_regions
from pretune.trainables.views.two_views import views_of

VALIDATION_VIEWS = 0x5EED  # the views of the pretext validation are the same in every run


def pretrain(
    settings: schema.Pretrain,
    model: schema.Model,
    data: ImageSet,
    split: Split,
    streams: dict[str, int],
    context: RunContext,
) -> dict[str, float]:
    """Train the encoder of `model`, or the whole of it, on the images that `settings.sees` names.

    Writes `model.safetensors` (the whole method; later stages load `encoder.*` and `decoder.*`), `history.json` and
    `notes.json` into `context.out`, and now and then a state to resume from. A resumed run ends in the same weights as
    an uninterrupted one. Each of several workers (`context.world`) takes its part of every batch; the first one writes.

    Returns:
        `train/pretext_loss` (mean over the last epoch), the method's diagnostics, and `val/pretext_loss` where there
        are validation images that pretraining did not see.

    Raises:
        DivergedError: the loss is not finite, or (CollapsedError) `stop_on_collapse` epochs in a row showed a collapse.
        ValueError: fewer than two images, a batch that does not divide among the workers, or an online kNN without
            image classes or validation images.
        PreemptedError: preempted; the state is written.
    """
    if isinstance(settings.method, schema.Weights):
        return import_weights(settings.method, model, context)
    world, device = context.world, context.device

    # --- data: an epoch is every image once, in whole batches
    images = visible(split, settings.sees)
    if len(images) < 2:
        raise ValueError(f"pretraining needs at least 2 images, it may see {len(images)}")
    if settings.online_knn_every and (data.labels is None or len(split.val) == 0):
        raise ValueError("online_knn_every needs image classes and validation images")
    batch_size = min(settings.batch_size, len(images))
    if batch_size % world.size:
        raise ValueError(f"a batch of {batch_size} images does not divide among {world.size} workers")
    length = training_length(settings, len(images) // batch_size, context.until)
    epochs = Epochs(images, batch_size, streams["order"], length, data, world)
    feeds = make_feeds(data, context)

    # --- model
    torch.manual_seed(streams["init"])
    encoder = build_encoder(model)
    if context.parent is not None:
        checkpoints.load_part(encoder, context.parent, "encoder")
    parts = Parts(encoder, lambda: start_decoder(model, context), len(data.classes), image_classes(data))
    method = build_method(settings.method, settings.views, parts)
    assert isinstance(method, nn.Module)
    method.to(device).to(memory_format=layout(method))
    if context.batch_norm == "sync" and schema.batch_parts(settings.method) == 1:
        whole_batch_norm(method, world, device)
    recompute_activations(method, context.activation_checkpointing)
    compile_parts(method, settings.compile)
    trained = world.parallel(method)

    # --- optimiser, and where an earlier attempt stopped
    optimizer = build_optimizer(settings.optimizer, [p for p in method.parameters() if p.requires_grad])
    progress = Progress(context, length, "pretext_loss", {"method": method, "optimizer": optimizer})
    progress.resume()
    update = Update(settings, method, trained, optimizer, length, device)
    statistics = RunningStatistics(method, world)

    # --- training
    method.train()
    for step in range(progress.first, length.end):
        epoch = step // length.steps_per_epoch
        batch = make_batch(method, feeds, world.part(epochs.batch(step)), streams["augmentation"], epoch, world)
        batch = batch._replace(diagnosed=length.ends_epoch(step))

        loss, diagnostics = update(batch, step)
        statistics.merge()
        progress.meter.add(loss)

        if length.ends_epoch(step):
            values = {"train/pretext_loss": progress.meter.mean()}
            values |= {f"train/{name}": float(world.mean(value)) for name, value in diagnostics.items()}
            values |= collapse_values(method, batch)
            if settings.online_knn_every and (epoch + 1) % settings.online_knn_every == 0:
                values["val/online_knn"] = online_knn(method, settings, feeds, data, split, world)
            progress.record(step, values)
            stop_if_collapsed(settings, progress.history)
        progress.save_if_due(step)

    # --- score on images it never saw, keep
    if settings.online_knn_every and "val/online_knn" not in progress.history[-1]:  # always at the end
        progress.history[-1] |= {"val/online_knn": online_knn(method, settings, feeds, data, split, world)}
    metrics = progress.metrics()
    signs = collapse.signs({name.removeprefix("train/"): value for name, value in metrics.items()})
    metrics["train/collapse_signs"] = float(len(signs))
    if settings.sees == "train" and len(split.val) >= 2:
        metrics["val/pretext_loss"] = validate(method, settings, feeds, split.val, world)
    for name in sorted(metrics, reverse=True):  # val/ before train/
        if not math.isfinite(metrics[name]):  # the last update did it, no training loss came after it
            raise DivergedError(name, length.end - 1, metrics[name])
    notes = {"images": images.tolist(), "batch_size": batch_size, "steps": length.end}
    progress.finish(method, notes | {"steps_per_epoch": length.steps_per_epoch, "warnings": list(signs)})
    return metrics


@dataclass(frozen=True)
class Update:
    """One step of a pretraining, from a batch to new weights. Nothing in it waits for the device."""

    settings: schema.Pretrain
    method: Method
    trained: nn.Module  # the method, or what exchanges its gradients with other workers
    optimizer: torch.optim.Optimizer
    length: Length
    device: torch.device

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of step `step`, and the method's diagnostics."""
        settings, method, steps = self.settings, self.method, self.length.steps
        assert isinstance(method, nn.Module)
        set_lr_and_decay(self.optimizer, settings, step, self.length)
        with autocast(settings.precision, self.device):
            loss, diagnostics = self.trained(batch, step / steps)
        self.optimizer.zero_grad()
        loss.backward()
        method.after_backward(batch.epoch)
        clip_gradients(method.parameters(), settings.clip_norm, settings.clip)
        self.optimizer.step()
        method.after_step((step + 1) / steps)
        return loss.detach(), diagnostics


def start_decoder(model: schema.Model, context: RunContext) -> Decoder:
    """Decoder of the parent stage where it has one, else a new one."""
    decoder = build_decoder(model)
    if context.parent is not None and checkpoints.has_part(context.parent, "decoder"):
        checkpoints.load_part(decoder, context.parent, "decoder")
    return decoder


def image_classes(data: ImageSet) -> int:
    """Number of image classes; 0 without labels."""
    return 0 if data.labels is None else int(np.max(data.labels)) + 1


def collapse_values(method: Method, batch: Batch) -> dict[str, float]:
    """Collapse measures of the encoder on the first view of a batch; the encoder's state stays as it is."""
    if not batch.views:
        return {}
    found = collapse.measure(method.encoder, batch.views[0].pixels, batch.world)
    return {f"train/{name}": value for name, value in found.items()}


def stop_if_collapsed(settings: schema.Pretrain, history: list[dict[str, float]]) -> None:
    """Raise `CollapsedError` where the last `stop_on_collapse` epochs all showed a collapse."""
    if settings.stop_on_collapse and (signs := collapse.collapsed(history, settings.stop_on_collapse)):
        raise CollapsedError(signs, int(history[-1]["step"]))


def online_knn(
    method: Method,
    settings: schema.Pretrain,
    feeds: Mapping[str, Lookup],
    data: ImageSet,
    split: Split,
    world: World,
) -> float:
    """kNN accuracy of the encoder as it is now, on validation images."""
    assert data.labels is not None  # refused before training
    how = schema.KNN(kind="knn", data=settings.data, size=settings.views.size)
    accuracy = knn_accuracy(method.encoder, feeds["images"], data.labels, split, how, world)
    method.encoder.train()
    return accuracy


def make_feeds(data: ImageSet, context: RunContext) -> dict[str, Lookup]:
    """Feeds of the images, of every map that the data set has, and of the boxes of its regions."""
    maps: dict[str, Pixels | None] = {"images": data.images, "labels": data.labels, "masks": data.masks}
    maps |= {"regions": data.regions, "depth": data.depth}
    feeds: dict[str, Lookup] = {
        name: DataFeed(array, context.device, context.residency) for name, array in maps.items() if array is not None
    }
    return feeds if data.regions is None else feeds | {"region boxes": RegionBoxes(data.regions)}


def make_batch(
    method: Method,
    feeds: Mapping[str, Lookup],
    indices: IntArray,
    seed: int,
    epoch: int,
    world: World = ALONE,
) -> Batch:
    """Batch of a method: the views of its recipes and the maps it needs; `world` has the rest of the batch."""
    boxed = uses_regions(method.recipes)
    if missing := (method.requirements | ({"region boxes"} if boxed else set())) - feeds.keys():
        raise ValueError(f"this method needs {', '.join(sorted(missing))}, which the data set does not have")
    boxes = feeds["region boxes"](indices).numpy() if boxed else None
    views = views_of(feeds["images"](indices), indices, method.recipes, seed, epoch, boxes)
    maps = {name: feeds[name](indices) for name in method.requirements}
    device = views[0].pixels.device if views else torch.device("cpu")

    def draw_here(purpose: str, count: int) -> Tensor:
        return uniforms_on(device, seed, f"method/{purpose}", epoch, indices, 0, count)

    return Batch(
        views,
        lambda purpose, count: uniforms(seed, f"method/{purpose}", epoch, indices, 0, count),
        images=maps.get("images"),
        labels=maps.get("labels"),
        masks=maps.get("masks"),
        regions=maps.get("regions"),
        depth=maps.get("depth"),
        epoch=epoch,
        world=world,
        draw_here=None if device.type == "cpu" else draw_here,
    )


@torch.no_grad()
def validate(
    method: Method, settings: schema.Pretrain, feeds: Mapping[str, Lookup], images: IntArray, world: World
) -> float:
    """Mean pretext loss over validation images, batch by batch, in eval mode and with fixed views.

    The batches, whose images are each other's negatives, stay whole: workers take turns.
    """
    assert isinstance(method, nn.Module)
    method.eval()
    batches = np.array_split(images, max(1, len(images) // settings.batch_size))
    losses = [
        method(make_batch(method, feeds, batch, VALIDATION_VIEWS, 0), 1.0)[0] * len(batch)
        for batch in batches[world.rank :: world.size]
    ]
    device = next(method.parameters()).device
    total = torch.stack(losses).sum() if losses else torch.zeros((), device=device)
    return float(world.sum(total)) / len(images)
