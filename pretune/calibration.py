"""The costs of planned stage runs: a few steps of each shape of stage, timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage

CALIBRATION_STEPS = 3


def calibrate(stages: list[Stage], images: Callable[[schema.Data], int]) -> tuple[float, float, int]:
    """Seconds of work on one worker, GPU hours and bytes of disk, from a few timed steps of each shape of stage.

    Steps are timed on this machine, on random pixels, with the stage's own model, batch and size; scoring is counted
    as forward passes. `images` says how many images a data set holds.
    """
    rates: dict[str, tuple[float, float, int]] = {}
    seconds, gpu_seconds, disk = 0.0, 0.0, 0
    for stage in stages:
        key = f"{stage.kind} {stage.model} {_size(stage)} {getattr(stage.settings, 'batch_size', 0)}"
        if key not in rates:
            rates[key] = _time_steps(stage)
        per_step, per_image, weights = rates[key]
        steps, scored = _steps(stage, images(stage.data))
        cost = steps * per_step + scored * per_image
        seconds, disk = seconds + cost, disk + weights
        gpu_seconds += cost * stage.resources.workers * (stage.resources.gpus_each or 0.0)
    return seconds, gpu_seconds / 3600, disk


def has_gpu() -> bool:
    """Whether torch finds a GPU here."""
    import torch

    return bool(torch.cuda.is_available())


def _size(stage: Stage) -> int:
    return stage.settings.views.size if isinstance(stage.settings, schema.Pretrain) else stage.settings.size


def _steps(stage: Stage, n: int) -> tuple[int, int]:
    """Training steps and scored images of a stage on a data set of n images."""
    split, settings = stage.data.split, stage.settings
    test = split.test if isinstance(split.test, int) else round(n * (0.5 if split.test == "official" else split.test))
    val = split.val if isinstance(split.val, int) else round(n * (0.1 if split.val == "official" else split.val))
    train = max(1, n - test - val)
    if isinstance(settings, schema.CKA):
        return 0, 2 * (val if settings.images == "val" else n)
    if isinstance(settings, schema.CAM | schema.FeatureMaps):
        return 0, val
    if isinstance(settings, schema.KNN | schema.LinearProbe):
        return 0, train + val
    if isinstance(settings, schema.Pretrain):
        seen = {"train": train, "train+val": train + val, "all": n}[settings.sees]
        per_epoch, scored = max(1, seen // settings.batch_size), val
    else:
        labelled = settings.labels if isinstance(settings.labels, int) else max(1, round(train * settings.labels))
        per_epoch, scored = -(-labelled // settings.batch_size), val + (test if stage.on_test else 0)
    return settings.steps or per_epoch * (settings.epochs or 0), scored


def _time_steps(stage: Stage) -> tuple[float, float, int]:
    """Seconds per training step, seconds per scored image, bytes of weights."""
    import numpy as np
    import torch

    from pretune.trainables.loop import DataFeed, Lookup
    from pretune.trainables.losses import LOSSES
    from pretune.trainables.methods.protocol import Parts
    from pretune.trainables.methods.table import build_method
    from pretune.trainables.models.table import build_decoder, build_encoder, build_unet
    from pretune.trainables.pretrain import make_batch
    from pretune.trainables.views.regions import RegionBoxes

    torch.set_num_threads(stage.resources.cpus)
    settings, size, slices = stage.settings, _size(stage), schema.slices_of(stage.data)
    batch = min(getattr(settings, "batch_size", 64), 64)
    space, channels = ((size, size), 3) if slices is None else ((slices, size, size), 1)
    pixels = torch.rand(batch, *space, channels).movedim(-1, 1)
    if isinstance(settings, schema.Pretrain) and isinstance(settings.method, schema.Weights):
        return 0.0, 0.0, sum(t.numel() * t.element_size() for t in build_encoder(stage.model).state_dict().values())
    if isinstance(settings, schema.Pretrain):
        parts = Parts(build_encoder(stage.model), lambda: build_decoder(stage.model), mask_classes=3, image_classes=10)
        method = build_method(settings.method, settings.views, parts)
        planes = np.zeros((batch, *space), np.uint8)
        maps = {
            "images": np.zeros((*planes.shape, channels), np.uint8),
            "labels": np.zeros(batch, np.int64),
            "masks": planes,
        }
        maps |= {"regions": planes.astype(np.uint16), "depth": planes.astype(np.float16)}
        images: dict[str, Lookup] = {name: DataFeed(array, torch.device("cpu")) for name, array in maps.items()}
        if slices is None:
            images["region boxes"] = RegionBoxes(maps["regions"])
        network: torch.nn.Module = method.encoder

        def step() -> None:
            method(make_batch(method, images, np.arange(batch), 0, 0), 0.0)[0].backward()  # type: ignore[no-untyped-call]
    else:
        unet = build_unet(stage.model, 3)
        target = torch.zeros(batch, *space, dtype=torch.int64)
        network = unet

        def step() -> None:
            LOSSES["dice"](unet(pixels), target).backward()  # type: ignore[no-untyped-call]

    step()  # the first allocates and chooses kernels
    per_step = _best_of(step) * getattr(settings, "batch_size", 64) / batch
    with torch.no_grad():
        per_image = _best_of(lambda: network(pixels)) / batch
    return per_step, per_image, sum(t.numel() * t.element_size() for t in network.state_dict().values())


def _best_of(work: Callable[[], object]) -> float:
    times = []
    for _ in range(CALIBRATION_STEPS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
