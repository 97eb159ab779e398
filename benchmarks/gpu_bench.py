"""The bench of the checks for a GPU: its scale, made images, and trainings whose steps are taken one by one."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import RunContext, build_optimizer, compile_parts, layout, set_tf32, training_length
from pretune.trainables.memory import Residency
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.pretrain import Update, make_batch, make_feeds
from pretune.trainables.recomputation import recompute_activations

Row = dict[str, Any]
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "labels": 4}
CLASSES = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "moco": {"queue": 4096, "bn_splits": 4},
    "dino": {"prototypes": 4096, "local_views": 6, "local_size": 32},
    "swav": {"prototypes": 512, "local_views": 6, "local_size": 32},
}


@dataclass(frozen=True)
class Bench:
    """Device, scratch folder and scale of a check."""

    device: torch.device
    out: Path  # scratch
    tiny: bool = False

    @property
    def images(self) -> int:
        return 24 if self.tiny else 1024

    @property
    def batch(self) -> int:
        return 8 if self.tiny else 256

    @property
    def model(self) -> schema.Model:
        return schema.UNet(name="unet", widths=(4, 8, 8) if self.tiny else (32, 64, 128, 256))

    @property
    def sizes(self) -> tuple[int, ...]:
        return (32,) if self.tiny else (64, 224)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def forget(self) -> int:
        """Free what nothing holds and begin a new peak of memory; the bytes that are still held, 0 on a CPU."""
        gc.collect()
        if not self.on_gpu:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)


def set_as_stages(precision: str = "float32") -> None:
    """Set what pretune/worker/stage.py sets for each stage."""
    torch.backends.cudnn.deterministic = True
    set_tf32(precision == "tf32")


def image_set(bench: Bench) -> ImageSet:
    """Images of smooth noise, with every map that a method can ask for."""
    random, side = np.random.default_rng(0), 40 if bench.tiny else 256
    coarse = random.integers(0, 256, (bench.images, 8, 8, 3), np.uint8)
    images = coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    masks = (images[..., 0] // 86).astype(np.uint8)
    labels = np.arange(bench.images) % CLASSES
    depth = (images[..., 1] / 255).astype(np.float16)
    regions = masks.astype(np.uint16)
    return ImageSet(
        images, masks, regions, depth, labels, None, [""] * bench.images, tuple(map(str, range(CLASSES))), ()
    )


def split(bench: Bench) -> Split:
    n = bench.images
    return Split(np.arange(n // 2), np.arange(n // 2, 3 * n // 4), np.arange(3 * n // 4, n))


def pretraining(bench: Bench, name: str, size: int, **changes: Any) -> schema.Pretrain:
    small = {"hidden": 16, "dim": 8, "prototypes": 12, "queue": 16, "bottleneck": 8, "local_size": 16}
    small = {key: value for key, value in small.items() if bench.tiny and key in _kind(name).model_fields}
    method = {"name": name} | SETTINGS.get(name, {}) | small
    body = {"data": "d", "batch_size": bench.batch, "steps": 1000, "views": {"size": size, "gray": 0.2, "blur": 0.5}}
    return schema.Pretrain.model_validate(body | {"method": method} | changes)


def _kind(name: str) -> Any:
    return type(schema.Pretrain.model_validate({"data": "d", "steps": 1, "method": {"name": name}}).method)


class Training:
    """A pretraining whose steps are taken one by one."""

    def __init__(
        self, bench: Bench, settings: schema.Pretrain, checkpointing: bool = False, resident: bool = True
    ) -> None:
        """`resident` is whether images may lie on the device."""
        self.bench, self.settings = bench, settings
        self.data = image_set(bench)
        context = RunContext(bench.out, bench.device, residency=Residency(allowed=resident))
        torch.manual_seed(0)
        model = bench.model
        parts = Parts(build_encoder(model), lambda: build_decoder(model), CLASSES, CLASSES)
        self.method: Any = build_method(settings.method, settings.views, parts)
        assert isinstance(self.method, nn.Module)
        self.method.to(bench.device).to(memory_format=layout(self.method)).train()
        recompute_activations(self.method, checkpointing)
        compile_parts(self.method, settings.compile)
        self.feeds = make_feeds(self.data, context)
        optimizer = build_optimizer(settings.optimizer, [p for p in self.method.parameters() if p.requires_grad])
        length = training_length(settings, 100, None)
        self.update = Update(settings, self.method, self.method, optimizer, length, bench.device)

    def batch(self, step: int) -> Batch:
        first = step * self.bench.batch % (self.bench.images - self.bench.batch + 1)
        return make_batch(self.method, self.feeds, np.arange(first, first + self.bench.batch), 3, 0)

    def steps(self, count: int) -> None:
        for step in range(count):
            self.update(self.batch(step), step)


def tuned(bench: Bench, out: Path, steps: int, batch: int | None = None, **context: Any) -> None:
    out.mkdir(exist_ok=True)
    body = {"data": "d", "size": bench.sizes[0], "batch_size": batch or bench.batch, "steps": steps}
    settings = schema.Finetune.model_validate(body | {"transfer": "none"})
    where = RunContext(out, bench.device, **context)
    finetune(settings, bench.model, image_set(bench), split(bench), STREAMS, where, on_test=False)
