"""Whether fused replicates pay: milliseconds of a step for K replicates, as one network and one after the other.

    python -m benchmarks.fused [--threads 1] [--device cuda] [--repeats 5]

Fine-tuning steps (dice, Adam, 64 px) of U-Nets on random pixels: forward, backward and optimiser, without data loading,
which is the same for both. "separate" is the step of `pretune.trainables.finetune` K times; "fused" that of
`pretune.trainables.fused`.
Both in one process, in turn; medians over repeats of the mean over some steps; ratios are paired.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.fused import Fused
from pretune.trainables.loop import build_optimizer, build_unet, layout
from pretune.trainables.losses import dice_loss

SIZE, CLASSES, STEPS = 64, 3, 8
CASES = {  # widths, batch: 1 % of 400 labels, a full batch, and P2's widths with 1 % of its labels
    "8-16-32-64, batch 4": ((8, 16, 32, 64), 4),
    "8-16-32-64, batch 16": ((8, 16, 32, 64), 16),
    "32-64-128-256, batch 4": ((32, 64, 128, 256), 4),
}
OPTIMIZER = schema.Adam(name="adam", lr=1e-3)
Step = Callable[[Tensor, Tensor], None]


def separate(widths: tuple[int, ...], count: int, device: torch.device) -> Step:
    networks = [build_unet(schema.UNet(widths=widths), CLASSES).to(device) for _ in range(count)]
    networks = [network.to(memory_format=layout(network)).train() for network in networks]
    optimizers = [build_optimizer(OPTIMIZER, network.parameters()) for network in networks]

    def step(pixels: Tensor, targets: Tensor) -> None:
        for network, optimizer, x, target in zip(networks, optimizers, pixels, targets, strict=True):
            loss = dice_loss(network(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def fused(widths: tuple[int, ...], count: int, device: torch.device) -> Step:
    networks = [build_unet(schema.UNet(widths=widths), CLASSES).to(device).train() for _ in range(count)]
    whole = Fused(networks)
    optimizers = [build_optimizer(OPTIMIZER, replica) for replica in whole.replicas]

    def step(pixels: Tensor, targets: Tensor) -> None:
        losses = [dice_loss(*pair) for pair in zip(whole(pixels), targets, strict=True)]
        whole.zero_grad()
        torch.stack(losses).sum().backward()
        whole.hand_out_gradients()
        for optimizer in optimizers:
            optimizer.step()

    return step


def seconds(step: Step, pixels: Tensor, targets: Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of a step, mean over STEPS."""
    began = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step(pixels, targets)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began[0]) / STEPS, (time.process_time() - began[1]) / STEPS


def measure(case: str, count: int, repeats: int, device: torch.device) -> dict[str, object]:
    widths, batch = CASES[case]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, batch, SIZE, SIZE, 3, generator=generator).permute(0, 1, 4, 2, 3).to(device)
    targets = torch.randint(CLASSES, (count, batch, SIZE, SIZE), generator=generator).to(device)
    steps = {"separate": separate(widths, count, device), "fused": fused(widths, count, device)}
    for step in steps.values():
        seconds(step, pixels, targets)
    turns = [{name: seconds(step, pixels, targets) for name, step in steps.items()} for _ in range(repeats)]
    times = {name: round(1000 * statistics.median(turn[name][0] for turn in turns), 1) for name in steps}
    over = [statistics.median(turn["separate"][i] / turn["fused"][i] for turn in turns) for i in (0, 1)]
    return {"case": case, "K": count, "ms": times, "gain": round(over[0], 2), "gain in CPU time": round(over[1], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=8, help="replicates")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    for case in CASES:
        for count in (1, 2, 4, 8):
            if count <= a.most:
                print(json.dumps(measure(case, count, a.repeats, torch.device(a.device))), flush=True)
    print(json.dumps({"threads": a.threads, "torch": torch.__version__, "load at end": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
