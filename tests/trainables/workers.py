"""Several gloo processes for tests, without Ray: `together(2, f, args)` runs `f(world, *args)` in each."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from pretune.search_spaces import schema
from pretune.trainables import evaluation, loop
from pretune.trainables import finetune as finetuning
from pretune.trainables import pretrain as pretraining
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.distributed import RunningStatistics, World
from pretune.trainables.evaluation import Evaluator
from pretune.trainables.files import STATE
from pretune.trainables.loop import DivergedError, PreemptedError, RunContext
from pretune.trainables.losses import LOSSES


def together(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """The answers of all workers, in order; AssertionError with the traceback of the first to fail.

    `work` is at module level, and answers hold no tensors: those would end with the process that made them.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = context.SimpleQueue()
    workers = [context.Process(target=_worker, args=(rank, size, port, answers, work, args)) for rank in range(size)]
    for worker in workers:
        worker.start()
    found: dict[int, Any] = {}
    try:
        for _ in workers:
            rank, answer, error = answers.get()
            if error:
                raise AssertionError(f"worker {rank}: {error}")
            found[rank] = answer
    finally:
        for worker in workers:
            worker.join(timeout=10 if len(found) == size else 0.5)
            worker.kill()
    return [found[rank] for rank in range(size)]


def _worker(rank: int, size: int, port: int, answers: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        answers.put((rank, work(World(rank, size), *args), None))
        dist.barrier()
    except Exception:
        answers.put((rank, None, traceback.format_exc()))


# ------------------------------------------------------------------------------------- what the workers of tests do

STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4, "labels": 5}


@contextlib.contextmanager
def in_double_precision() -> Iterator[None]:
    """Networks, losses and statistics in float64, so that sums in another order agree to many digits. Views stay as
    they are made, in float32."""
    single, make_batch, joint = torch.Tensor.float, pretraining.make_batch, finetuning.fine_tune_batch

    @contextlib.contextmanager
    def precision(dtype: torch.dtype) -> Iterator[None]:
        before = torch.get_default_dtype(), torch.Tensor.float
        torch.set_default_dtype(dtype)
        torch.Tensor.float = torch.Tensor.double if dtype == torch.float64 else single
        try:
            yield
        finally:
            torch.set_default_dtype(before[0])
            torch.Tensor.float = before[1]

    def double_batch(*args: Any) -> Any:
        with precision(torch.float32):
            batch = make_batch(*args)
        return batch._replace(views=[view._replace(pixels=view.pixels.double()) for view in batch.views])

    def double_joint(*args: Any) -> Any:
        with precision(torch.float32):
            pixels, target = joint(*args)
        return pixels.double(), target

    with (
        mock.patch.object(pretraining, "make_batch", double_batch),
        mock.patch.object(finetuning, "fine_tune_batch", double_joint),
        precision(torch.float64),
    ):
        yield


def train_each(
    world: World,
    cases: dict[str, schema.Pretrain | schema.Finetune],
    model: schema.Model,
    data: ImageSet,
    split: Split,
    out: Path,
    batch_norm: str,
) -> dict[str, dict[str, float]]:
    """The metrics of each case; its files are in `out/NAME`. Names that end so checkpoint their activations."""
    found = {}
    with in_double_precision():
        for name, settings in cases.items():
            context = RunContext(
                out / name,
                torch.device("cpu"),
                world=world,
                batch_norm=batch_norm,
                activation_checkpointing=name.endswith("checkpointed"),
                checkpoint_seconds=0.0,
            )
            if isinstance(settings, schema.Pretrain):
                found[name] = pretraining.pretrain(settings, model, data, split, STREAMS, context)
            else:
                found[name] = finetuning.finetune(settings, model, data, split, STREAMS, context, on_test=True)
    return found


def normalise(world: World, rows: list[torch.Tensor], momentum: float) -> dict[str, Any]:
    """Two steps of two calls each: what running statistics become where each worker normalises its own rows."""
    norm = torch.nn.BatchNorm1d(rows[0].shape[1], momentum=momentum)
    statistics = RunningStatistics(norm, world)
    for step in range(0, len(rows), 2 * world.size):
        for part in rows[step + 2 * world.rank : step + 2 * world.rank + 2]:
            norm(part)
        statistics.merge()
    return {name: values.tolist() for name, values in norm.state_dict().items()}


def exchange(world: World, rows: torch.Tensor, weights: torch.Tensor) -> tuple[list[Any], ...]:
    """The gradients of own rows of a function of all workers' rows, each worker's its own: through gather and sum."""
    own = torch.from_numpy(world.part(rows.numpy())).requires_grad_()
    (world.gather(own).sin() * weights[world.rank]).sum().backward()
    gathered, own.grad = own.grad, None
    (world.sum(own).sin() * weights[world.rank, : len(own)]).sum().backward()
    return gathered.tolist(), own.grad.tolist()


def losses_of_parts(
    world: World, names: list[str], logits: torch.Tensor, target: torch.Tensor
) -> dict[str, tuple[float, list[Any]]]:
    """Each loss of a batch of which this worker has its part, and the gradient of that part."""
    found = {}
    for name in names:
        own = torch.from_numpy(world.part(logits.numpy())).clone().requires_grad_()
        loss = LOSSES[name](own, torch.from_numpy(world.part(target.numpy())), world)
        loss.backward()
        assert own.grad is not None
        found[name] = float(loss.detach()), own.grad.tolist()
    return found


def failure(world: World, settings: Any, model: Any, data: ImageSet, split: Split, out: Path) -> str:
    """What a training raises, as text."""
    context = RunContext(out, torch.device("cpu"), world=world)
    try:
        pretraining.pretrain(settings, model, data, split, STREAMS, context)
    except (DivergedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def preempt_and_resume(
    world: World, settings: schema.Pretrain | schema.Finetune, model: Any, data: ImageSet, split: Split, out: Path
) -> list[str]:
    """How three trainings ended on this worker: one in which the last worker alone is preempted from step 3 on,
    the same gone on with, and one undisturbed. Their files are in `out/cut`, `out/resumed` and `out/whole`."""
    asks = itertools.count(1)
    ends = []
    for name in ("cut", "resumed", "whole"):
        context = RunContext(
            out / name,
            torch.device("cpu"),
            world=world,
            resume=out / "cut" / STATE if name == "resumed" else None,
            preempted=lambda cut=name == "cut": cut and world.rank == world.size - 1 and next(asks) >= 3,
        )
        try:
            with mock.patch.object(loop, "EXCHANGE_SECONDS", 0.0):  # workers exchange after every step
                if isinstance(settings, schema.Pretrain):
                    pretraining.pretrain(settings, model, data, split, STREAMS, context)
                else:
                    finetuning.finetune(settings, model, data, split, STREAMS, context, on_test=False)
            ends.append("finished")
        except PreemptedError as left:
            ends.append(str(left))
        dist.barrier()  # the first may still be writing
    return ends


class Middle(torch.nn.Module):
    """Class 1 where a pixel is brighter than its window, class 2 where it is much brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside = self.slope * (x[:, :1] - x.mean(dim=(1, 2, 3), keepdim=True))
        return torch.cat([0.3 - beside, beside - 0.1, 2 * beside - 0.9], dim=1)


Images = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]  # pixels, masks, names of tiles


def scored(world: World, cases: dict[str, schema.Finetune], sets: dict[str, Images]) -> dict[tuple[str, str], Any]:
    """Scores and pixel counts of all images by each case, in batches of three images at most."""
    found = {}
    for case, settings in cases.items():
        loss = LOSSES["dice"] if settings.score_loss else None
        for name, (pixels, masks, names) in sets.items():
            feeds = (loop.DataFeed(array, torch.device("cpu")) for array in (pixels, masks))
            evaluator = Evaluator(Middle(), *feeds, ("a", "b", "c"), settings, names, world, loss)  # type: ignore[arg-type]
            with mock.patch.object(evaluation, "images_at_once", return_value=3):
                made = evaluator.evaluate(np.arange(len(pixels)), settings.size, "val", 0)
            found[case, name] = made.scores, made.counts.tolist()
    return found
