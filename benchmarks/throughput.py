"""Images per second of each pretraining method beside Lightly's, and how far a step is from its floor.

    python -m benchmarks.throughput --data <folder that holds oxford-iiit-pet> [--model small|unet|resnet18]
        [--methods simclr,moco,byol,dino,swav] [--device cuda] [--out FILE.json]

Pretraining: the real loop (`pretune.trainables.pretrain.pretrain`, from the memory-mapped cache) against Lightly as its
documentation writes it (LightlyDataset over the JPEG files, its transform, a DataLoader with as many workers as there
are cores, its heads and loss): same backbone, images, batch, view sizes, augmentation strengths, optimiser, float32.
Each side runs in a process of its own, in turn, `--repeats` times; the figure is the median over repeats of the median
epoch, the first left out, and the ratio is paired, also of CPU time (workers included), which a busy machine disturbs
less. "lightly+" is Lightly with the huge pages that Pretune's workers have. Both sides also give the shares of a step;
ours are of a second, instrumented loop with the same calls.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.floor import Need, floor_seconds, measure_need, measure_peak
from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.loop import RunContext, build_optimizer
from pretune.trainables.methods.heads import pooled
from pretune.trainables.methods.protocol import Method, Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.pretrain import make_batch, make_feeds, pretrain

CACHE, SIZE, LOCAL = 128, 64, {"local_size": 32, "local_views": 6}
MODELS: dict[str, dict[str, Any]] = {
    "small": {"name": "unet", "widths": (8, 16, 32, 64)},
    "unet": {"name": "unet"},
    "resnet18": {"name": "resnet-unet", "depth": 18},
}
RECIPES: dict[str, dict[str, Any]] = {  # method and views with Lightly's sizes and strengths
    "simclr": {"method": {}, "views": {"gray": 0.2, "blur": 0.5}},
    "moco": {
        "method": {"queue": 4096, "momentum": 0.99, "bn_splits": 1},
        "views": {"gray": 0.2, "blur": 0.5, "crop": (0.2, 1.0), "color_jitter": 0.5},
    },
    "byol": {
        "method": {"hidden": 1024, "momentum": 0.99},
        "views": {"gray": 0.2, "color_jitter": 0.5, "color_jitter_saturation": 0.5},
    },
    "dino": {
        "method": {"hidden": 512, "prototypes": 4096, "freeze_last_epochs": 0, "momentum": 0.99} | LOCAL,
        "views": {"gray": 0.2, "crop": (0.14, 1.0), "color_jitter": 0.5, "color_jitter_saturation": 0.5},
    },
    "swav": {
        "method": {"hidden": 512, "prototypes": 512, "queue": 0} | LOCAL,
        "views": {"gray": 0.2, "blur": 0.5, "crop": (0.14, 1.0)},
    },
    # no counterpart in Lightly for convolutional encoders: the breakdown and the floor alone
    "moco-v3": {"method": {"hidden": 1024}, "views": {"gray": 0.2}},
    "mae": {"method": {}, "views": {"color_jitter": 0.0}},
}
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}  # as in pretune.cluster.tune.ACTOR_ENVIRONMENT
SIDES = {"ours": HUGE_PAGES, "lightly": {}, "lightly+": HUGE_PAGES}


# ------------------------------------------------------------------------------------------- one side, in its process


def ours(a: argparse.Namespace, name: str) -> dict[str, Any]:
    device, data, model = torch.device(a.device), load(a), model_of(a.model)
    settings = schema.Pretrain.model_validate(
        {
            "data": "pets",
            "method": {"name": name} | RECIPES[name]["method"],
            "views": {"size": SIZE} | RECIPES[name]["views"],
            "batch_size": a.batch,
            "epochs": a.epochs,
            "optimizer": {"name": "adam"},
        }
    )
    stamps = [now()]
    split = Split(np.arange(a.images), np.arange(0), np.arange(0))
    streams = {"init": 0, "order": 0, "augmentation": 0}
    with tempfile.TemporaryDirectory() as out:
        context = RunContext(Path(out), device, report=lambda _: stamps.append(now()))
        pretrain(settings, model, data, split, streams, context)
        memory = peak_memory(device)
        feeds = make_feeds(data, context)
    parts = Parts(build_encoder(model), lambda: build_decoder(model), 0, 0)
    method = build_method(settings.method, settings.views, parts)
    assert isinstance(method, nn.Module)
    method.to(device).to(memory_format=torch.channels_last)
    shares = our_shares(method, settings, feeds, a)
    batch = make_batch(method, feeds, np.arange(a.batch), 0, 0)
    need = measure_need(lambda: method(batch, 0.0)[0], method)
    return rates(stamps, a) | {"shares": shares, "memory_mb": memory, "need": need}


def our_shares(method: Method, settings: schema.Pretrain, feeds: Any, a: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a step's parts, medians over steps."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]  # type: ignore[attr-defined]
    optimizer = build_optimizer(settings.optimizer, trained)
    laps = Laps(torch.device(a.device))
    for step in range(a.images // a.batch):
        indices = np.random.default_rng(step).permutation(a.images)[: a.batch]
        laps.start()
        held = {"images": feeds["images"](indices)}
        laps.lap("fetch")
        batch = make_batch(method, {"images": lambda _, held=held: held["images"]}, indices, 0, 0)
        laps.lap("augment")
        loss, _ = method(batch, 0.0)
        laps.lap("forward")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        laps.lap("backward")
        optimizer.step()
        method.after_step(0.0)
        laps.lap("optimiser")
    return laps.medians()


def lightly(a: argparse.Namespace, name: str) -> dict[str, Any]:
    from lightly.data import LightlyDataset
    from torch.utils.data import DataLoader

    from benchmarks import lightly_methods

    device = torch.device(a.device)
    folder = Path(a.scratch) / "files"  # the same files, by links
    dataset = LightlyDataset(str(folder), transform=lightly_methods.transform(name))
    loader = DataLoader(
        dataset, batch_size=a.batch, shuffle=True, drop_last=True, num_workers=a.threads, persistent_workers=True
    )
    encoder = build_encoder(model_of(a.model))
    model = lightly_methods.METHODS[name](Backbone(encoder), encoder.widths[-1]).to(device)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    laps, stamps = Laps(device), [now()]
    for _ in range(a.epochs):
        laps.start()
        for batch in loader:
            views = [view.to(device) for view in batch[0]]
            laps.lap("waiting")
            loss = model(views)
            laps.lap("forward")
            loss.backward()
            laps.lap("backward")
            optimizer.step()
            optimizer.zero_grad()
            laps.lap("optimiser")
        stamps.append(now())
    return rates(stamps, a) | {"shares": laps.means(), "memory_mb": peak_memory(device)}


class Backbone(nn.Module):
    """Pooled features of the coarsest level, as Lightly's modules expect them."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return pooled(self.encoder(x))


# ------------------------------------------------------------------------------------------------------------ parts


class Laps:
    """Seconds between calls, by name."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, defaultdict[str, list[float]](list)

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        before = self._last
        self.start()
        self._seconds[name].append(self._last - before)

    def medians(self) -> dict[str, float]:
        return {name: 1000 * statistics.median(seconds) for name, seconds in self._seconds.items()}

    def means(self) -> dict[str, float]:
        """For parts that come in bursts, as waiting for workers does."""
        return {name: 1000 * statistics.mean(seconds) for name, seconds in self._seconds.items()}


def now() -> tuple[float, float]:
    """Seconds on the wall, and of CPU: this process and the workers that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def rates(stamps: list[tuple[float, float]], a: argparse.Namespace) -> dict[str, float]:
    """Return the median epoch after the first, whole batches; other work disturbs CPU time least."""
    wall, cpu = np.median(np.diff(stamps, axis=0)[1:], axis=0)
    seen = a.images // a.batch * a.batch
    return {"rate": seen / wall, "cpu_ms": 1000 * cpu / seen}


def peak_memory(device: torch.device) -> int:
    """MB: of the device, or of this process (a DataLoader's workers have theirs beside it)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    status = Path("/proc/self/status").read_text()  # getrusage's maximum would begin with the parent's
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def model_of(name: str) -> Any:
    kind = schema.UNet if MODELS[name]["name"] == "unet" else schema.ResNetUNet
    return kind(**MODELS[name])


def load(a: argparse.Namespace) -> ImageSet:
    chosen = schema.Pets(dataset="oxford-iiit-pet", cache_size=CACHE, limit=a.images)
    return load_images(chosen, a.data, Path(a.scratch) / "cache")


def link_files(a: argparse.Namespace) -> None:
    """The first `a.images` files, for LightlyDataset."""
    folder = Path(a.scratch) / "files"
    folder.mkdir()
    for file in sorted((a.data / "oxford-iiit-pet" / "images").glob("*.jpg"))[: a.images]:
        (folder / file.name).symlink_to(file.resolve())


# ------------------------------------------------------------------------------------------------------------- main


def in_process(a: argparse.Namespace, side: str, name: str) -> Any:
    """One side in a fresh process; its last line is the result."""
    keep = [f"--{key}={value}" for key, value in vars(a).items() if key not in ("one", "out") and value is not None]
    command = [sys.executable, "-m", "benchmarks.throughput", *keep, f"--one={side}:{name}"]
    shown = subprocess.run(command, env=os.environ | SIDES[side], capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(shown.stderr[-2000:])
    return json.loads(shown.stdout.splitlines()[-1])


def compared(a: argparse.Namespace, name: str, peak: Any) -> dict[str, Any]:
    """All sides in turn, `repeats` times."""
    from benchmarks import lightly_methods

    sides = list(SIDES) if name in lightly_methods.METHODS else ["ours"]
    runs = [{side: in_process(a, side, name) for side in sides} for _ in range(a.repeats)]
    need = Need(*runs[0]["ours"]["need"])
    step = statistics.median(a.batch / run["ours"]["rate"] for run in runs)
    result: dict[str, Any] = {
        "method": name,
        "images per second": {side: round(statistics.median(run[side]["rate"] for run in runs), 1) for side in sides},
        "cpu ms per image": {side: round(statistics.median(run[side]["cpu_ms"] for run in runs), 2) for side in sides},
        "shares, ms": {side: rounded(runs[-1][side]["shares"]) for side in sides},
        "memory, MB": {side: runs[-1][side]["memory_mb"] for side in sides},
        "step": rounded({"ms": 1000 * step, "gflop": need.gflop, "gbyte": need.gbyte}),
        "times its floor": round(step / floor_seconds(need, peak), 2),
    }
    for other in sides[1:]:
        ratios = [run["ours"]["rate"] / run[other]["rate"] for run in runs]
        result[f"ours over {other}"] = [round(ratio, 2) for ratio in ratios]
        ratios = [run[other]["cpu_ms"] / run["ours"]["cpu_ms"] for run in runs]
        result[f"CPU time of {other} over ours"] = [round(ratio, 2) for ratio in ratios]
    return result


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


ONE: dict[str, Callable[[argparse.Namespace, str], dict[str, Any]]] = {
    "ours": ours,
    "lightly": lightly,
    "lightly+": lightly,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--methods", default="simclr,moco,byol,dino,swav")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.one:
        side, name = a.one.split(":")
        print(json.dumps(ONE[side](a, name)))
        return
    with tempfile.TemporaryDirectory() as a.scratch:
        load(a)
        link_files(a)
        result: dict[str, Any] = {"model": a.model, "batch": a.batch, "images": a.images, "threads": a.threads}
        result |= {"machine": platform.processor() or platform.machine(), "device": a.device}
        result["torch"] = torch.__version__
        result["load at start"] = os.getloadavg()[0]
        peak = measure_peak(torch.device(a.device))
        result["peak"] = rounded(peak._asdict())
        result["methods"] = []
        for name in a.methods.split(","):
            result["methods"].append(compared(a, name, peak))
            print(json.dumps(result["methods"][-1]), flush=True)
    print(json.dumps({key: value for key, value in result.items() if key != "methods"}))
    if a.out is not None:
        a.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
