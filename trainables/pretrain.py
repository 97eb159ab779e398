"""Self-supervised pretraining of an encoder: one stage, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet, Pixels
from pretune.trainables.data.splits import Split, visible
from pretune.trainables.distributed import ALONE, RunningStatistics, World, whole_batch_norm
from pretune.trainables.loop import (
    CheckpointTimer,
    CollapsedError,
    DataFeed,
    DivergedError,
    Epochs,
    IntArray,
    Lookup,
    LossMeter,
    Report,
    RunContext,
    autocast,
    build_encoder,
    build_optimizer,
    clip_gradients,
    compile_parts,
    finish,
    last_step,
    layout,
    set_decay,
    set_lr,
    total_steps,
)
from pretune.trainables.methods import collapse
from pretune.trainables.methods.protocol import Batch, Method, Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.methods.weights import import_weights
from pretune.trainables.models.interface import Decoder
from pretune.trainables.models.table import build_decoder
from pretune.trainables.probes.accuracy import knn_accuracy
from pretune.trainables.schedules import learning_rate
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.regions import RegionBoxes, uses_regions
from pretune.trainables.views.two_views import views_of

VALIDATION_VIEWS = 0x5EED  # the views of the pretext validation are the same in every run


def pretrain(
    settings: schema.Pretrain,
    model: schema.Model,
    data: ImageSet,
    split: Split,
    streams: dict[str, int],
    place: RunContext,
    report: Report,
    until: int | None = None,
) -> dict[str, float]:
    """Train the encoder of `model`, or the whole of it, on the images that `settings.sees` names.

    With `until`, for the first so many epochs of it: every step is that of the whole training.

    Writes `model.safetensors` (the method whole; `encoder.*` and `decoder.*` are what others load), `history.json` and
    `notes.json` into `place.out`, and now and then a state to resume from; a resumed run ends in the same weights as
    an uninterrupted one. With several workers (`place.world`) each takes its part of every batch, and the first writes.

    Returns:
        `train/pretext_loss` (mean over the last epoch), the method's diagnostics, and `val/pretext_loss` where there
        are validation images that pretraining did not see.

    Raises:
        DivergedError: the loss is not finite, or (CollapsedError) `stop_on_collapse` epochs in a row showed a collapse.
        ValueError: fewer than two images, a batch that does not divide among the workers, or an online kNN without
            image classes or validation images.
    """
    if isinstance(settings.method, schema.Weights):
        return import_weights(settings.method, model, place)

    # --- data: an epoch is every image once, in whole batches
    images = visible(split, settings.sees)
    if len(images) < 2:
        raise ValueError(f"pretraining needs at least 2 images, it may see {len(images)}")
    if settings.online_knn_every and (data.labels is None or len(split.val) == 0):
        raise ValueError("online_knn_every needs image classes and validation images")
    batch_size = min(settings.batch_size, len(images))
    world = place.world
    if batch_size % world.size:
        raise ValueError(f"a batch of {batch_size} images does not divide among {world.size} workers")
    steps_per_epoch = len(images) // batch_size
    steps = total_steps(settings.epochs, settings.steps, steps_per_epoch)
    end = last_step(steps, until, steps_per_epoch)
    feeds = make_feeds(data, place)

    # --- model and optimiser
    torch.manual_seed(streams["init"])
    encoder = build_encoder(model)
    if place.parent is not None:
        checkpoints.load_part(encoder, place.parent, "encoder")
    parts = Parts(encoder, lambda: start_decoder(model, place), len(data.classes), image_classes(data))
    method = build_method(settings.method, settings.views, parts)
    assert isinstance(method, nn.Module)
    method.to(place.device).to(memory_format=layout(method))
    if place.batch_norm == "sync" and schema.batch_parts(settings.method) == 1:
        whole_batch_norm(method, world, place.device)
    compile_parts(method, settings.compile)
    trained = world.parallel(method)
    optimizer = build_optimizer(settings.optimizer, method.parameters())

    # --- where an earlier attempt stopped
    first, history, losses = 0, [], []
    if state := checkpoints.load_state(place.resume, place.device):
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        first, history, losses = state["step"], state["history"], state["losses"]

    # --- training
    statistics = RunningStatistics(method, world)
    track, clock = LossMeter("pretext_loss", first - len(losses), losses), CheckpointTimer(place)
    epochs = Epochs(images, batch_size, streams["order"], end, steps_per_epoch, data, world)
    method.train()
    for step in range(first, end):
        epoch, position = divmod(step, steps_per_epoch)
        batch = make_batch(method, feeds, world.part(epochs.batch(step)), streams["augmentation"], epoch, world)

        set_lr(optimizer, learning_rate(settings.schedule, settings.optimizer.lr, step, steps_per_epoch, steps))
        set_decay(optimizer, settings.optimizer, step, steps)
        with autocast(settings.precision, place.device):
            loss, diagnostics = trained(batch, step / steps)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(epoch)
        clip_gradients(method.parameters(), settings.clip_norm, settings.clip)
        optimizer.step()
        method.after_step((step + 1) / steps)
        statistics.merge()
        track.add(world.mean(loss.detach()))

        if position == steps_per_epoch - 1 or step == end - 1:
            values = {"train/pretext_loss": track.mean()}
            values |= {f"train/{name}": float(world.mean(value)) for name, value in diagnostics.items()}
            values |= collapse_values(method, batch)
            if settings.online_knn_every and (epoch + 1) % settings.online_knn_every == 0:
                values["val/online_knn"] = online_knn(method, settings, feeds, data, split, world)
            history.append({"step": step + 1, "epoch": (step + 1) / steps_per_epoch} | values)
            report({"step": step + 1, "total": end} | values)
            if settings.stop_on_collapse and (condemned := collapse.condemned(history, settings.stop_on_collapse)):
                raise CollapsedError(condemned, step + 1)
        ends = step == end - 1 and place.keep_state
        if ends or clock.due():
            if world.first:
                state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                state |= {"history": history, "losses": track.losses}
                (checkpoints.save_end if ends else checkpoints.save_state)(state, place.out)
            clock.leave_if_asked(step + 1)
    if settings.online_knn_every and "val/online_knn" not in history[-1]:  # due at the end, whatever the interval
        history[-1] |= {"val/online_knn": online_knn(method, settings, feeds, data, split, world)}

    # --- score on images it never saw, keep
    metrics = {name: value for name, value in history[-1].items() if name.startswith(("train/", "val/"))}
    signs = collapse.signs({name.removeprefix("train/"): value for name, value in metrics.items()})
    metrics["train/collapse_signs"] = float(len(signs))
    if settings.sees == "train" and len(split.val) >= 2:
        metrics["val/pretext_loss"] = validate(method, settings, feeds, split.val, world)
    for name in sorted(metrics, reverse=True):  # val/ before train/
        if not math.isfinite(metrics[name]):  # the last update did it, no training loss came after it
            raise DivergedError(name, end - 1, metrics[name])
    notes = {"images": images.tolist(), "batch_size": batch_size, "steps": end, "steps_per_epoch": steps_per_epoch}
    notes |= {"warnings": list(signs), "workers": world.size}
    if world.first:
        finish(method, history, notes, place.out)
    return metrics


def start_decoder(model: schema.Model, place: RunContext) -> Decoder:
    """A new decoder, or the one that the stage before trained."""
    decoder = build_decoder(model)
    if place.parent is not None and checkpoints.has_part(place.parent, "decoder"):
        checkpoints.load_part(decoder, place.parent, "decoder")
    return decoder


def image_classes(data: ImageSet) -> int:
    return 0 if data.labels is None else int(np.max(data.labels)) + 1


def collapse_values(method: Method, batch: Batch) -> dict[str, float]:
    """What shows a collapse in the encoder, on the first view of a batch; the encoder's state is left alone."""
    if not batch.views:
        return {}
    found = collapse.measure(method.encoder, batch.views[0].pixels, batch.world)
    return {f"train/{name}": value for name, value in found.items()}


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


def make_feeds(data: ImageSet, place: RunContext) -> dict[str, Lookup]:
    """Feeds of the images, of every map that the data set has, and of the boxes of its regions."""
    maps: dict[str, Pixels | None] = {"images": data.images, "labels": data.labels, "masks": data.masks}
    maps |= {"regions": data.regions, "depth": data.depth}
    feeds: dict[str, Lookup] = {
        name: DataFeed(array, place.device) for name, array in maps.items() if array is not None
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
    """The views that a method wants of some images, and the maps it needs; `world` has the rest of the batch."""
    boxed = uses_regions(method.recipes)
    if missing := (method.requirements | ({"region boxes"} if boxed else set())) - feeds.keys():
        raise ValueError(f"this method needs {', '.join(sorted(missing))}, which the data set does not have")
    boxes = feeds["region boxes"](indices).numpy() if boxed else None
    views = views_of(feeds["images"](indices), indices, method.recipes, seed, epoch, boxes)
    maps = {name: feeds[name](indices) for name in method.requirements}
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
