"""Images per second of fine-tuning at 1 %, 10 % and 90 % of the labels, beside a plain loop over a DataLoader.

    python -m benchmarks.finetune_throughput --data <folder that holds oxford-iiit-pet> [--model small|unet]

The real loop (`pretune.trainables.finetune.finetune`, from the memory-mapped cache of 64 px) against the loop of
`benchmarks.rivals` over a DataLoader without workers, images decoded in memory: same network, images, batches of 16,
Adam, dice. Each side runs in a process of its own, in turn, `--repeats` times; the figure is the median epoch without
the first; ratios are paired. Memory is the peak of the process, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rivals import Pairs, tuning_step
from benchmarks.throughput import HUGE_PAGES, MODELS, model_of, now, peak_memory
from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import RunContext
from pretune.trainables.models.table import build_unet

SIZE, BATCH, STEPS = 64, 16, 60  # px, images, least steps of a run, so that few labels are measured too
SHARES = ("1%", "10%", "90%")
SIDES = {"ours": HUGE_PAGES, "plain": {}}


def ours(a: argparse.Namespace, data: ImageSet, count: int) -> list[tuple[float, float]]:
    """Wall and CPU seconds at the start and after each epoch."""
    settings = schema.Finetune(data="pets", size=SIZE, batch_size=BATCH, epochs=epochs_of(count), labels=count)
    split = Split(np.arange(a.images), np.arange(0), np.arange(0))
    stamps = [now()]
    with tempfile.TemporaryDirectory() as out:
        context = RunContext(Path(out), torch.device("cpu"), report=lambda _: stamps.append(now()))
        streams = {"init": 0, "order": 0, "labels": 0}
        finetune(settings, model_of(a.model), data, split, streams, context, on_test=False)
    return stamps


def plain(a: argparse.Namespace, data: ImageSet, count: int) -> list[tuple[float, float]]:
    assert data.masks is not None
    pixels, masks = (torch.from_numpy(np.array(x[:count])) for x in (data.images, data.masks))
    pairs = Pairs(pixels.permute(0, 3, 1, 2).float().div(255).contiguous(), masks)
    loader = torch.utils.data.DataLoader(pairs, BATCH, shuffle=True)
    network = build_unet(model_of(a.model), len(data.classes))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    stamps = [now()]
    for _ in range(epochs_of(count)):
        for image, mask in loader:
            tuning_step(network, optimizer, image, mask)
        stamps.append(now())
    return stamps


def epochs_of(count: int) -> int:
    return max(3, STEPS // -(-count // BATCH))


def one(a: argparse.Namespace, side: str, share: str) -> dict[str, float]:
    """One side, in its process."""
    data, count = load(a), round(a.images * float(share.rstrip("%")) / 100)
    stamps = {"ours": ours, "plain": plain}[side](a, data, count)
    wall, cpu = np.median(np.diff(stamps, axis=0)[1:], axis=0)
    memory = peak_memory(torch.device("cpu"))
    return {"images per second": count / wall, "cpu ms per image": 1000 * cpu / count, "memory, MB": memory}


def load(a: argparse.Namespace) -> ImageSet:
    chosen = schema.Pets(dataset="oxford-iiit-pet", cache_size=SIZE, limit=a.images)
    return load_images(chosen, a.data, Path(a.scratch))


def in_process(a: argparse.Namespace, side: str, share: str) -> dict[str, float]:
    keep = [f"--{key}={value}" for key, value in vars(a).items() if key != "one"]
    command = [sys.executable, "-m", "benchmarks.finetune_throughput", *keep, f"--one={side}:{share}"]
    shown = subprocess.run(command, env=os.environ | SIDES[side], capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(shown.stderr[-2000:])
    found: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
    return found


def compared(a: argparse.Namespace, share: str) -> dict[str, Any]:
    """Both sides in turn, `repeats` times."""
    runs = [{side: in_process(a, side, share) for side in SIDES} for _ in range(a.repeats)]
    result: dict[str, Any] = {
        name: {side: round(statistics.median(run[side][name] for run in runs), 1) for side in SIDES}
        for name in runs[0]["ours"]
    }
    rate, cpu = "images per second", "cpu ms per image"
    result["ours over plain"] = [round(run["ours"][rate] / run["plain"][rate], 2) for run in runs]
    result["CPU time of plain over ours"] = [round(run["plain"][cpu] / run["ours"][cpu], 2) for run in runs]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.one:
        print(json.dumps(one(a, *a.one.split(":"))))
        return
    with tempfile.TemporaryDirectory() as a.scratch:
        load(a)
        for share in SHARES:
            print(json.dumps({"labels": share} | compared(a, share)), flush=True)
    print(json.dumps({"load at end": os.getloadavg()[0], "torch": torch.__version__, "threads": a.threads}))


if __name__ == "__main__":
    main()
