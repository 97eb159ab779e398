"""Operators, waits and uploads of one training step, counted on a CPU as a GPU would meet them.

    python -m benchmarks.operators [--methods simclr,dino] [--sizes 64,224] [--out FILE.json]

Everything runs on torch's meta device, whose tensors have shapes and no values: it takes the paths of an accelerator,
and whatever asks for a value would make one wait. A dispatch mode counts:

- operators: kernels that a step launches. Reshapes, slices and allocations launch none and are left out. The backward
  pass is counted as it is dispatched, a fused optimiser as one;
- reads: the host asks for a value (`item`, `cpu`, `nonzero`, a boolean index) and waits for all that was launched;
- uploads: copies from the host, the batch's own images or indices among them. `blocking` ones come from pageable
  memory, for which a GPU waits too.

`tests/benchmarks/test_operators.py` holds the counts from above.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pretune.search_spaces import schema
from pretune.trainables import finetune, pretrain
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.distributed import ALONE
from pretune.trainables.loop import Length, RunContext, build_optimizer
from pretune.trainables.losses import loss_of
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.table import METHODS, build_method
from pretune.trainables.models.table import build_decoder, build_encoder, build_unet
from pretune.trainables.views.joint import fine_tune_batch

META = torch.device("meta")
PINNED = WeakIdKeyDictionary()  # tensors that would lie in page-locked memory
BATCH, CACHE, CLASSES = 16, 256, 3
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_consecutive", "_unique2"}
SETTINGS: dict[str, dict[str, Any]] = {  # what differs from the defaults
    "moco": {"queue": 1024, "bn_splits": 4},
    "dino": {"prototypes": 1024, "local_views": 6, "local_size": 32},
    "swav": {"prototypes": 256, "local_views": 6, "local_size": 32},
    "mae by pixels": {"masking": "pixels"},
    "conrec": {"tasks": ["reconstruction", "original-colors", "mask-location", "black-masks"]},
}
VIEWS = {"gray": 0.2, "blur": 0.5}  # SimCLR's own recipe
EXTRAS = {"extra": ["elastic", "rotation", "posterize", "solarize"]}
PRETRAININGS = (*sorted(METHODS), "mae by pixels", "simclr with all extras", "simclr with LARS on ResNet-50")
CROPS = {"augment": {"flip": 0.5, "crop": [0.5, 1.0], "aspect": [0.75, 1.33]}}
EVERYTHING = {"flip_vertical": 0.5, "rotation": 20, "scale": [0.8, 1.2], "color_jitter": 0.5, "blur": 0.5}
FINETUNINGS: dict[str, dict[str, Any]] = {
    "fine-tuning": {},
    "fine-tuning with crops": CROPS,
    "fine-tuning with every augmentation and class weights": {
        "augment": CROPS["augment"] | EVERYTHING,
        "loss": "dice+cross-entropy",
        "class_weights": "balanced",
    },
}


@dataclass
class Counts:
    """Counts of one part of a step."""

    operators: int = 0
    reads: int = 0
    uploads: int = 0
    blocking: int = 0  # uploads for which the host waits
    names: Counter[str] = field(default_factory=Counter)

    def numbers(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("operators", "reads", "uploads", "blocking")}


class Counting(TorchDispatchMode):
    """Counts what is dispatched into the current part, and answers reads with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Counts] = {}
        self._part = Counts()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        before, self._part = self._part, self.parts.setdefault(name, Counts())
        yield
        self._part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in READS and any(x.is_meta for x in given):
            self._part.reads += 1
            return _zero(func, args)
        if name.startswith("_fused_"):
            self._part.operators += 1
            self._part.names[name] += 1
            return None
        if name == "_to_copy" and args[0].is_meta and kwargs.get("device", META).type == "cpu":
            self._part.reads += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        made = func(*args, **kwargs)
        self._count(func, name, given, [x for x in tree_leaves(made) if isinstance(x, Tensor)])
        return made

    def _count(self, func: Any, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        if not any(x.is_meta for x in made):
            return
        hosts = [x for x in given if x.device.type == "cpu" and x.ndim > 0]
        if name == "lift_fresh" or hosts:
            self._part.uploads += 1
            self._part.blocking += name == "lift_fresh" or not all(map(pinned, hosts))
        elif not func.is_view and name not in ALLOCATIONS:
            self._part.operators += 1
            self._part.names[name] += 1


def pinned(x: Tensor) -> bool:
    """Whether the code asked for page-locked memory, which a machine without a GPU does not have."""
    return x in PINNED


def _zero(func: Any, args: Any) -> Any:
    if func.overloadpacket.__name__ == "_local_scalar_dense":
        return False if args[0].dtype == torch.bool else 0.5 if args[0].is_floating_point() else 0
    return torch.zeros(0, dtype=torch.int64)


@contextlib.contextmanager
def counting() -> Iterator[Counting]:
    """Count on the meta device, where fused optimisers are taken too."""
    devices = ["meta", "cpu", "cuda"]
    fused = mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", return_value=devices)
    each = mock.patch("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", return_value=devices)
    pinning = mock.patch("pretune.trainables.upload.page_locked", _asked_to_pin)
    drawing = mock.patch("pretune.trainables.methods.conrec.seeded", return_value=None)
    with fused, each, pinning, drawing, mock.patch("torch.autocast", _autocast), Counting() as mode:
        yield mode


def _asked_to_pin(x: Tensor, device: torch.device) -> Tensor:
    PINNED[x] = True
    return x


def _autocast(device: str, **how: Any) -> Any:
    """float32 is counted, and autocast does not know the meta device."""
    return contextlib.nullcontext()


# ---------------------------------------------------------------------------------------------------------- the steps


def images() -> ImageSet:
    """Images of CACHE px with every map there is."""
    shape = (2 * BATCH, CACHE, CACHE)
    return ImageSet(
        images=np.zeros((*shape, 3), np.uint8),
        masks=np.ones(shape, np.uint8),
        regions=np.ones(shape, np.uint16),
        depth=np.ones(shape, np.float16),
        labels=np.arange(len(np.zeros(shape))) % CLASSES,
        official_test=None,
        names=[""] * len(np.zeros(shape)),
        classes=tuple(map(str, range(CLASSES))),
        skipped=(),
    )


def pretraining(case: str, size: int) -> tuple[schema.Pretrain, schema.Model]:
    """Settings of a row of the table."""
    name = case.split()[0]
    body: dict[str, Any] = {"data": "d", "batch_size": BATCH, "steps": 100, "views": {"size": size, **VIEWS}}
    body["method"] = {"name": name} | SETTINGS.get(name, {}) | SETTINGS.get(case, {})
    model: dict[str, Any] = {"name": "unet"}
    if "extras" in case:
        body["views"] |= EXTRAS
    if "LARS" in case:
        body["optimizer"] = {"name": "lars", "lr": 1.0, "weight_decay": 1e-6}
        model = {"name": "resnet-unet", "depth": 50}
    return schema.Pretrain.model_validate(body), schema.Configuration.model_validate({"data": {}, "model": model}).model


def count_pretraining(case: str, size: int) -> dict[str, Counts]:
    """Counts of the parts of a pretraining's second step (the first one makes buffers), and of all together."""
    settings, model = pretraining(case, size)
    data, context = images(), RunContext(Path(), META)
    torch.manual_seed(0)
    parts = Parts(build_encoder(model), lambda: build_decoder(model), CLASSES, CLASSES)
    method: Any = build_method(settings.method, settings.views, parts)
    assert isinstance(method, nn.Module)
    method.to(META).train()
    optimizer = build_optimizer(settings.optimizer, [p for p in method.parameters() if p.requires_grad])
    update = pretrain.Update(settings, method, method, optimizer, Length(100, 100, 100), META)
    feeds = pretrain.make_feeds(data, context)
    with counting() as mode:
        for step in range(2):
            mode.parts.clear()
            with mode.part("batch"):
                batch = pretrain.make_batch(method, feeds, np.arange(BATCH), 1, 0, ALONE)
                batch = batch._replace(diagnosed=False)  # as in all steps but the last of an epoch
            with mode.part("update"):
                update(batch, step)
    return with_total(mode.parts)


def count_finetuning(case: str, size: int) -> dict[str, Counts]:
    body = {"data": "d", "size": size, "batch_size": BATCH, "steps": 100, **FINETUNINGS[case]}
    settings = schema.Finetune.model_validate(body)
    data = images()
    feed, masks = finetune.DataFeed(data.images, META), finetune.DataFeed(data.masks, META)
    network = build_unet(schema.UNet(name="unet"), CLASSES).to(META).train()
    optimizer = build_optimizer(settings.optimizer, network.parameters())
    loss = loss_of(settings, data.classes, [1] * CLASSES, META)
    update = finetune.Update(settings, optimizer, Length(100, 100, 100), loss, ALONE, META)
    chosen = np.arange(BATCH)
    with counting() as mode:
        for step in range(2):
            mode.parts.clear()
            with mode.part("batch"):
                pixels, target = fine_tune_batch(feed(chosen), masks(chosen), chosen, size, settings.augment, 1, 0)
            with mode.part("update"):
                update(network, pixels, target, step)
    return with_total(mode.parts)


def with_total(parts: dict[str, Counts]) -> dict[str, Counts]:
    total = Counts()
    for counts in parts.values():
        total.operators += counts.operators
        total.reads += counts.reads
        total.uploads += counts.uploads
        total.blocking += counts.blocking
        total.names += counts.names
    return {**parts, "step": total}


def count(case: str, size: int) -> dict[str, Counts]:
    return count_finetuning(case, size) if case in FINETUNINGS else count_pretraining(case, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*PRETRAININGS, *FINETUNINGS])
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[64, 224])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--names", action="store_true", help="list the operators of the batch")
    options = parser.parse_args()
    print("| step | px | operators of the batch | of the update | reads | uploads | of them blocking |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    found = []
    for case in options.methods:
        for size in options.sizes:
            try:
                parts = count(case, size)
            except Exception as error:  # a row that says so: the table goes on
                print(f"| {case} | {size} | {type(error).__name__}: {error}")
                continue
            step = parts["step"]
            numbers = (parts["batch"].operators, parts["update"].operators, step.reads, step.uploads, step.blocking)
            print(f"| {case} | {size} | {' | '.join(map(str, numbers))} |", flush=True)
            if options.names:
                print(parts["batch"].names)
            found.append({"case": case, "size": size} | {name: counts.numbers() for name, counts in parts.items()})
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
