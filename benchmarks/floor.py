"""Lower bound of the time of a step: its arithmetic and its memory traffic, over what this machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


class Peak(NamedTuple):
    """Return the speed of the cores in use, float32; the better of a few trials each."""

    gflops: float  # the faster of a 2048 x 2048 matrix product and a 3x3 convolution of 128 channels, forward
    gbytes: float  # per second, read and written: one tensor of 256 MB added to another in place


class Need(NamedTuple):
    """Costs of one step."""

    gflop: float  # forward and backward, products and convolutions alone
    gbyte: float  # what is saved for the backward written and read once; weights, gradients, Adam's state once each way


def measure_peak(device: torch.device) -> Peak:
    a = torch.rand(2048, 2048, device=device)
    x = torch.rand(64, 128, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    w = torch.rand(128, 128, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    products = 2 * 2048**3 / fastest(lambda: a @ a, device)
    convolutions = 2 * 9 * 128 * 128 * 64 * 32 * 32 / fastest(lambda: F.conv2d(x, w, padding=1), device)
    big, other = torch.rand(2, 2**26, device=device).unbind()
    traffic = 3 * 4 * 2**26 / fastest(lambda: big.add_(other), device)
    return Peak(max(products, convolutions) / 1e9, traffic / 1e9)


def fastest(run: Callable[[], object], device: torch.device, trials: int = 7) -> float:
    """Seconds of the best trial after one to warm up."""
    seconds = []
    for _ in range(1 + trials):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure_need(loss_of: Callable[[], Tensor], module: nn.Module) -> Need:
    """Counts one forward and backward; `loss_of` runs the forward."""
    saved: dict[int, int] = {}  # bytes by storage: a tensor saved twice is one

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of().backward()  # type: ignore[no-untyped-call]
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return Need(counter.get_total_flops() / 1e9, (2 * sum(saved.values()) + 7 * trained) / 1e9)


def floor_seconds(need: Need, peak: Peak) -> float:
    """Arithmetic and traffic overlap at best."""
    return max(need.gflop / peak.gflops, need.gbyte / peak.gbytes)
