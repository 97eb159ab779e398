"""Part of the check for a GPU that concerns memory: activation checkpointing beside steps that keep activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.gpu_bench import Bench, Row, Training, pretraining
from benchmarks.gpu_speed import attempted, rate
from pretune.trainables.sample_step import memory_of

METHODS = ("simclr", "mae", "conrec")


def checkpointing(bench: Bench) -> Iterator[Row]:
    """Peak of memory, beside the formula's, images per second, and whether the weights are the same bytes."""
    for size in bench.sizes:
        for name in METHODS:
            yield attempted(f"{name} {size} px", beside, bench, name, size)


def beside(bench: Bench, name: str, size: int) -> Row:
    """The row of a method. The plain steps run twice: do they equal themselves?

    The first run also makes what a library makes once and keeps, which would count as the memory of the next.
    """
    control, plain, again = (measured(bench, name, size, asked) for asked in (False, False, True))
    return compared(control, plain, again)


def measured(bench: Bench, name: str, size: int, asked: bool) -> Row:
    """Some steps of a pretraining: rate, peak and the formula's peak in bytes, and a digest of the weights."""
    settings = pretraining(bench, name, size)
    need = memory_of(settings, bench.model, None).as_run(asked)
    before = bench.forget()
    training = Training(bench, settings, checkpointing=asked, resident=False)  # the formula has no images there
    training.steps(3)
    bench.wait()
    found: Row = {"formula": need.of(bench.batch), "digest": digest(training.method)}
    if bench.on_gpu:
        found["peak"] = torch.cuda.max_memory_allocated(bench.device) - before
    return found | {"images_per_s": rate(training)["images_per_s"]}


def compared(control: Row, plain: Row, again: Row) -> Row:
    """A row of the table from steps that keep activations, twice, and steps that compute them again."""
    speed = again["images_per_s"] / plain["images_per_s"]
    if plain["digest"] != control["digest"]:
        equal = "bytes that DIFFER without checkpointing too"
    else:
        equal = "equal bytes" if plain["digest"] == again["digest"] else "DIFFERENT bytes"
    said = f"{equal}, {speed:.2f} times the images/s"
    if "peak" in plain:
        peaks = ", ".join(f"{one['peak'] / 2**20:.0f} MiB ({one['peak'] / one['formula']:.2f} of the formula's)"
                          for one in (plain, again))  # fmt: skip
        said += f"; peaks {peaks}"
    else:
        said += "; peaks not measured: no GPU"
    return {"result": said, "control": control, "plain": plain, "checkpointed": again}


def digest(network: nn.Module) -> str:
    """A hash of all weights and buffers."""
    whole = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()
