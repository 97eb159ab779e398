"""Self-supervised pretraining of an encoder: one stage, from top to bottom."""

from __future__ import annotations

import numpy as np
import torch

from search_spaces import schema
from trainables import checkpoints
from trainables.data.images import ImageSet
from trainables.data.splits import Split, visible
from trainables.loop import (
    Clock,
    Feed,
    IntArray,
    Place,
    Report,
    Track,
    autocast,
    build_encoder,
    build_optimizer,
    epoch_order,
    finish,
    set_lr,
    total_steps,
)
from trainables.methods.simclr import SimCLR
from trainables.schedules import learning_rate
from trainables.views.two_views import make_views

VALIDATION_VIEWS = 0x5EED  # the views of the pretext validation are the same in every run


def pretrain(
    settings: schema.Pretrain,
    model: schema.UNet,
    data: ImageSet,
    split: Split,
    streams: dict[str, int],
    place: Place,
    report: Report,
) -> dict[str, float]:
    """Train the encoder of `model` on the images that `settings.sees` names.

    Writes `model.safetensors` (the method whole; `encoder.*` is what others load), `history.json` and `notes.json`
    into `place.out`, and now and then a state to resume from; a resumed run ends in the same weights as an
    uninterrupted one.

    Returns:
        `train/pretext_loss` (mean over the last epoch), the method's diagnostics, and `val/pretext_loss` where there
        are validation images that pretraining did not see.

    Raises:
        DivergedError: the loss is not finite.
        ValueError: fewer than two images.
    """
    # --- data: an epoch is every image once, in whole batches
    images = visible(split, settings.sees)
    if len(images) < 2:
        raise ValueError(f"pretraining needs at least 2 images, it may see {len(images)}")
    batch_size = min(settings.batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    steps = total_steps(settings.epochs, settings.steps, steps_per_epoch)
    feed = Feed(data.images, place.device)

    # --- model and optimiser
    torch.manual_seed(streams["init"])
    encoder = build_encoder(model)
    if place.parent is not None:
        checkpoints.load_part(encoder, place.parent, "encoder")
    assert isinstance(settings.method, schema.SimCLR)
    method = SimCLR(encoder, settings.method.temperature, settings.method.hidden, settings.method.dim)
    method.to(place.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(settings.optimizer, method.parameters())

    # --- where an earlier attempt stopped
    first, history, losses = 0, [], []
    if state := checkpoints.load_state(place.resume, place.device):
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        first, history, losses = state["step"], state["history"], state["losses"]

    # --- training
    track, clock = Track("pretext_loss", first - len(losses), losses), Clock(place.checkpoint_seconds)
    method.train()
    for step in range(first, steps):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or step == first:
            order = epoch_order(len(images), streams["order"], epoch)
        batch = images[order[position * batch_size : (position + 1) * batch_size]]
        views = make_views(feed(batch), batch, settings.views, streams["augmentation"], epoch)

        set_lr(optimizer, learning_rate(settings.schedule, settings.optimizer.lr, step, steps_per_epoch, steps))
        with autocast(settings.precision, place.device):
            loss, diagnostics = method(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        track.add(loss)

        if position == steps_per_epoch - 1 or step == steps - 1:
            values = {"train/pretext_loss": track.mean()}
            values |= {f"train/{name}": float(value) for name, value in diagnostics.items()}
            history.append({"step": step + 1, "epoch": (step + 1) / steps_per_epoch} | values)
            report({"step": step + 1, "total": steps} | values)
        if clock.due():
            state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            checkpoints.save_state(state | {"history": history, "losses": track.losses}, place.out)

    # --- score on images it never saw, keep
    metrics = {name: value for name, value in history[-1].items() if name.startswith("train/")}
    if settings.sees == "train" and len(split.val) >= 2:
        metrics["val/pretext_loss"] = validate(method, settings, feed, split.val)
    notes = {"images": images.tolist(), "batch_size": batch_size, "steps": steps, "steps_per_epoch": steps_per_epoch}
    finish(method, history, notes, place.out)
    return metrics


@torch.no_grad()
def validate(method: SimCLR, settings: schema.Pretrain, feed: Feed, images: IntArray) -> float:
    """Mean pretext loss over validation images, batch by batch, in eval mode and with fixed views."""
    method.eval()
    batches = np.array_split(images, max(1, len(images) // settings.batch_size))
    losses = [
        method(make_views(feed(batch), batch, settings.views, VALIDATION_VIEWS, 0))[0] * len(batch) for batch in batches
    ]
    return float(torch.stack(losses).sum()) / len(images)
