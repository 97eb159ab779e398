"""Supervised segmentation, from pretrained weights or from scratch: one stage, from top to bottom."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split, label_subset
from pretune.trainables.distributed import ALONE, RunningStatistics, World, whole_batch_norm
from pretune.trainables.files import TEST_IMAGES
from pretune.trainables.loop import (
    CheckpointTimer,
    DataFeed,
    DivergedError,
    Epochs,
    IntArray,
    LossMeter,
    Report,
    RunContext,
    autocast,
    build_optimizer,
    build_unet,
    compile_parts,
    finish,
    last_step,
    layout,
    set_decay,
    set_lr,
    total_steps,
)
from pretune.trainables.losses import LOSSES
from pretune.trainables.metrics.probabilities import Sums, no_sums, probability_scores, probability_sums
from pretune.trainables.metrics.segmentation import confusion_by_image, hits_truth_predicted, scores
from pretune.trainables.models.unet import UNet
from pretune.trainables.schedules import learning_rate
from pretune.trainables.views.joint import evaluation_batch, fine_tune_batch

TARGET = "jaccard"  # `checkpoint: best` keeps the weights with the highest mean validation Jaccard


def finetune(
    settings: schema.Finetune,
    model: schema.Model,
    data: ImageSet,
    split: Split,
    streams: dict[str, int],
    place: RunContext,
    report: Report,
    on_test: bool,
    stratify: bool = False,
    until: int | None = None,
) -> dict[str, float]:
    """Train a U-Net on `settings.labels` of the training images and score it.

    With `until`, for the first so many epochs of it: every step is that of the whole training.

    Writes `model.safetensors`, `history.json`, `notes.json` and, if `on_test`, `test_images.npz` (pixel counts of
    every test image) into `place.out`, and now and then a state to resume from; a resumed run ends in the same weights
    as an uninterrupted one. With several workers (`place.world`) each takes its part of every batch, and the first
    writes.

    With `stratify` the labelled images hold each image class by its share in the training images.

    Returns:
        `val/*` and, if `on_test`, `test/*` scores, each from one confusion matrix over the whole split,
        `test@SIZE/*` at other sizes of images and masks, `train/loss` (mean over the last epoch), and
        `train/stopped_epoch` where patience ended it.

    Raises:
        DivergedError: the loss or the scored logits are not finite.
    """
    # --- data
    assert data.masks is not None, "fine-tuning needs masks; resolve refuses data sets without"
    if settings.threshold_scores and len(data.classes) != 2:
        raise ValueError(f"threshold_scores needs two classes, the data set has {len(data.classes)}; leave it out")
    images = label_subset(split.train, settings.labels, streams["labels"], data.labels if stratify else None)
    batch_size = min(settings.batch_size, len(images))
    steps_per_epoch = math.ceil(len(images) / batch_size)
    steps = total_steps(settings.epochs, settings.steps, steps_per_epoch)
    end = last_step(steps, until, steps_per_epoch)
    feed, masks, soft = (
        DataFeed(data.images, place.device),
        DataFeed(data.masks, place.device),
        settings.threshold_scores,
    )

    # --- model and optimiser
    torch.manual_seed(streams["init"])
    network = build_unet(model, len(data.classes))
    if place.parent is not None:
        checkpoints.load_part(network.encoder, place.parent, "encoder")
        if settings.transfer == "encoder+decoder":
            checkpoints.load_part(network.decoder, place.parent, "decoder")
    network.to(place.device).to(memory_format=layout(network))
    world = place.world
    if place.batch_norm == "sync":
        whole_batch_norm(network, world, place.device)
    compile_parts(network, settings.compile)
    network.encoder.requires_grad_(settings.freeze == "none" or settings.unfreeze_epoch is not None)
    optimizer = build_optimizer(settings.optimizer, network.parameters())
    loss_of = LOSSES[settings.loss]

    # --- where an earlier attempt stopped
    first, history, losses, best = 0, [], [], None
    if state := checkpoints.load_state(place.resume, place.device):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first, history, losses, best = state["step"], state["history"], state["losses"], state["best"]

    # --- training
    statistics = RunningStatistics(network, world)
    track, clock = LossMeter("loss", first - len(losses), losses), CheckpointTimer(place)
    epochs = Epochs(images, batch_size, streams["order"], end, steps_per_epoch, data, world)
    for step in range(first, end):
        if stalled(history, settings.patience):
            break
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or step == first:
            train_mode(network, encoder_frozen(settings, epoch))
        if step == first or (position == 0 and epoch == settings.unfreeze_epoch):
            trained = world.parallel(network)
        batch = world.part(epochs.batch(step))
        pixels, target = fine_tune_batch(
            feed(batch), masks(batch), batch, settings.size, settings.augment, streams.get("augmentation", 0), epoch
        )

        set_lr(optimizer, learning_rate(settings.schedule, settings.optimizer.lr, step, steps_per_epoch, steps))
        set_decay(optimizer, settings.optimizer, step, steps)
        with autocast(settings.precision, place.device):
            loss = loss_of(trained(pixels), target, world)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        statistics.merge()
        track.add(world.mean(loss.detach()))

        if position == steps_per_epoch - 1 or step == end - 1:
            values = {"train/loss": track.mean()}
            if validation_due(settings, epoch) and len(split.val):
                values |= evaluate(
                    network, settings.size, feed, masks, split.val, data.classes, "val", step, soft, world
                )
                best = better(best, values, network) if settings.checkpoint == "best" else None
            history.append({"step": step + 1, "epoch": (step + 1) / steps_per_epoch} | values)
            report({"step": step + 1, "total": end} | values)
        ends = step == end - 1 and place.keep_state
        if ends or clock.due():
            if world.first:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                state |= {"history": history, "losses": track.losses, "best": best}
                (checkpoints.save_end if ends else checkpoints.save_state)(state, place.out)
            clock.leave_if_asked(step + 1)
    done = int(history[-1]["step"])
    if len(split.val) and not any(name.startswith("val/") for name in history[-1]):  # at the end always
        history[-1] |= evaluate(
            network, settings.size, feed, masks, split.val, data.classes, "val", done - 1, soft, world
        )
        best = better(best, history[-1], network) if settings.checkpoint == "best" else None

    # --- score the weights that are kept
    metrics = {name: value for name, value in history[-1].items() if name.startswith(("train/", "val/"))}
    if best is not None:
        network.load_state_dict(best["network"])
        metrics |= best["scores"]
    if on_test:
        counts = np.zeros((len(split.test), len(data.classes), 3), np.int64)
        where = (feed, masks, split.test, data.classes)
        metrics |= evaluate(network, settings.size, *where, "test", done - 1, soft, world, counts)
        for size in settings.test_sizes:
            metrics |= evaluate(network, size, *where, f"test@{size}", done - 1, soft, world)
        if world.first:
            np.savez_compressed(place.out / TEST_IMAGES, images=split.test, counts=counts)
    if done < end:
        metrics["train/stopped_epoch"] = history[-1]["epoch"]
    notes = {"labelled": images.tolist(), "val": split.val.tolist(), "test": split.test.tolist(), "steps": done}
    notes |= {"classes": list(data.classes), "size": settings.size, "workers": world.size}
    if world.first:
        finish(network, history, notes, place.out)
    return metrics


def encoder_frozen(settings: schema.Finetune, epoch: int) -> bool:
    """Whether the encoder is left as it is in this epoch, counted from 0."""
    thawed = settings.unfreeze_epoch is not None and epoch >= settings.unfreeze_epoch
    return settings.freeze == "encoder" and not thawed


def train_mode(network: UNet, frozen: bool) -> None:
    """Training mode; a frozen encoder stays in eval, or its batch norm statistics would drift."""
    network.train()
    network.encoder.requires_grad_(not frozen)
    if frozen:
        network.encoder.eval()


def validation_due(settings: schema.Finetune, epoch: int) -> bool:
    """`checkpoint: best` validates after every epoch unless `validate_every` says otherwise."""
    every = settings.validate_every or (1 if settings.checkpoint == "best" else 0)
    return every > 0 and (epoch + 1) % every == 0


def stalled(history: list[dict[str, float]], patience: int | None) -> bool:
    """Whether the last `patience` validations brought nothing better (Prechelt 1998)."""
    scored = [row[f"val/{TARGET}"] for row in history if f"val/{TARGET}" in row]
    return patience is not None and len(scored) - 1 - scored.index(max(scored)) >= patience if scored else False


def better(best: dict[str, Any] | None, values: dict[str, float], network: UNet) -> dict[str, Any]:
    """The earlier best, or these weights if their validation score is higher (the first of equals stays)."""
    scored = {name: value for name, value in values.items() if name.startswith("val/")}
    if best is not None and best["scores"][f"val/{TARGET}"] >= scored[f"val/{TARGET}"]:
        return best
    return {"scores": scored, "network": checkpoints.clone_state(network)}


@torch.no_grad()
def evaluate(
    network: UNet,
    size: int,
    feed: DataFeed,
    masks: DataFeed,
    images: IntArray,
    classes: tuple[str, ...],
    role: str,
    step: int,
    soft: bool = False,
    world: World = ALONE,
    counts: IntArray | None = None,
) -> dict[str, float]:
    """Scores `role/...` from one confusion matrix over all `images` at `size` px, in eval mode and float32.

    `counts` (len(images), classes, 3) is filled with `hits_truth_predicted` of every image. With `soft` the scores are
    also those of the foreground's probability. Workers take turns with the batches.

    Raises:
        DivergedError: logits that are not finite; argmax would quietly call them class 0. The update of `step` made
            them, and no loss came after it to tell.
    """
    network.eval()
    device = next(network.parameters()).device
    total = torch.zeros((len(classes), len(classes)), dtype=torch.int64, device=device)
    bad, sums = torch.zeros((), dtype=torch.int64, device=device), no_sums(device)
    at_once = 64 if feed(images[:1]).ndim == 4 else 8  # volumes are larger
    by_image = torch.zeros((len(images), len(classes), 3), dtype=torch.int64, device=device)
    places = np.arange(len(images))
    for here in np.array_split(places, math.ceil(len(images) / at_once))[world.rank :: world.size]:
        batch = images[here]
        pixels, target = evaluation_batch(feed(batch), masks(batch), size)
        logits = network(pixels)
        bad += ~torch.isfinite(logits).all()
        found = confusion_by_image(logits.argmax(dim=1), target, len(classes))
        total += found.sum(dim=0)
        by_image[here[0] : here[-1] + 1] = hits_truth_predicted(found)
        if soft:
            sums = probability_sums(logits, target, sums)
    if world.sum(bad):
        raise DivergedError(f"{role}/logits", step, math.nan)
    if counts is not None:
        counts[:] = world.sum(by_image).cpu().numpy()
    values = scores(world.sum(total), classes)
    values |= probability_scores(Sums(*(world.sum(part) for part in sums))) if soft else {}
    return {f"{role}/{name}": value for name, value in values.items()}
