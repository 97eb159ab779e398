"""Shared parts of the training loops: where they run, which images a step takes, and their bookkeeping.

A loop itself (data, model, optimiser, schedule, forward, backward, step, scores) stands whole in `pretrain` and
`finetune`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.constants import RESUMED
from pretune.trainables.data.image_set import ImageSet, Pixels
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.files import HISTORY, NOTES, WEIGHTS
from pretune.trainables.memory import Residency
from pretune.trainables.models.interface import Decoder, Encoder
from pretune.trainables.optimizers import LARS, SGD, Adam, AdamW, without_compiler
from pretune.trainables.schedules import cosine_ramp, learning_rate
from pretune.trainables.upload import upload, upload_whole

STATE_SHARE = 0.05  # of the time, that writing resumable states may take
EXCHANGE_SECONDS = 2.0  # between two exchanges of workers whether one is preempted
EXCHANGE_MAX_STEPS = 1000  # between two such exchanges, at any pace: the latest may be that of the fastest steps
WINDOW_RUNS = 16  # runs of neighbouring images that a shuffle window mixes
ANNOUNCED = 50_000  # images announced to a stream at once, in whole epochs: starting to read takes 0.2 s

IntArray = NDArray[np.int64]
Lookup = Callable[[IntArray], Tensor]  # (B,) image indices -> (B, ...), as `DataFeed` does
Report = Callable[[dict[str, float]], None]  # receives step, total and the latest values; may raise to stop the run


class DivergedError(Exception):
    """A value that must be finite is not. Deterministic, so trying again is no use."""

    def __init__(self, metric: str, step: int, value: float) -> None:
        self.metric, self.step, self.value = metric, step, value
        super().__init__(f"{metric} is {value} at step {step}")


class CollapsedError(DivergedError):
    """Pretraining whose encoder collapsed, stopped as the study asked."""

    def __init__(self, signs: tuple[str, ...], step: int) -> None:
        self.metric, self.step, self.value = "collapse", step, float("nan")
        Exception.__init__(self, f"collapsed, stopped after step {step}: {'; '.join(signs)}")


class PreemptedError(Exception):
    """The loop was preempted (its node is drained, the study is stopped) and has written its state."""


@dataclass(frozen=True)
class RunContext:
    """Place of a stage run: its device and workers, what it starts from, where it writes and reports."""

    out: Path  # an existing folder of this attempt alone
    device: torch.device
    parent: Path | None = None  # weights of the stage before
    resume: Path | None = None  # the state that an earlier attempt, or a shorter training, left
    keep_state: bool = False  # leave behind what a longer training continues from
    checkpoint_seconds: float = 60.0  # wall time between resumable states; 0: one after every step
    world: World = ALONE  # the workers that run it together, all in a `RunContext` of their own
    batch_norm: str = "sync"  # statistics of the whole batch, or `local`: of each worker's rows
    activation_checkpointing: bool = False  # compute activations again in the backward pass; digits stay
    report: Report = lambda values: None
    until: int | None = None  # end after this many epochs; every step is that of the whole training
    residency: Residency = field(default_factory=Residency)  # of its images on the GPU
    writer: checkpoints.StateWriter = field(default_factory=checkpoints.StateWriter)  # of its states
    preempted: Callable[[], bool] = lambda: False  # asked after every step; several workers: every two seconds or so


class DataFeed:
    """Serves batches of a memory-mapped array, or of a stream, on the training device.

    On a GPU with room for it the whole array lives there from the first batch on: one that no batch needs takes none.
    Else each batch is gathered from the mapped file.
    """

    def __init__(self, array: Pixels, device: torch.device, residency: Residency | None = None) -> None:
        """`residency` is the budget that the arrays of a stage share; one of its own without."""
        self._array = array
        self._device = device
        self._residency: Residency | None = residency or Residency()  # None: it was asked
        self._resident: Tensor | None = None

    def __call__(self, indices: IntArray) -> Tensor:
        """(B,) image indices -> (B, ...) in the array's own type."""
        if self._residency is not None and self._residency.take(self._array, self._device):
            assert isinstance(self._array, np.ndarray)  # nothing else is taken
            self._resident = upload_whole(self._array, self._device)
        self._residency = None
        if self._resident is not None:
            return self._resident[upload(indices, self._device)]
        return upload(self._array[indices], self._device)


def epoch_order(count: int, seed: int, epoch: int, window: int | None = None) -> IntArray:
    """The order of `count` images in an epoch: a function of (order stream, epoch), each image once.

    With `window`, runs of neighbours (WINDOW_RUNS of them in a window) are put in random order, and images are shuffled
    within each window of so many: images stored beside each other are read together.
    """
    random = np.random.default_rng([seed, epoch])
    if window is None or window >= count:
        return random.permutation(count).astype(np.int64)
    run = max(1, window // WINDOW_RUNS)
    starts = random.permutation(-(-count // run)) * run
    order = (starts[:, None] + np.arange(run)).ravel()
    order = order[order < count].astype(np.int64)
    for start in range(0, count, window):
        random.shuffle(order[start : start + window])
    return order


class Length(NamedTuple):
    """Length of a training. Schedules go by all of its steps; this run may end sooner."""

    steps_per_epoch: int
    steps: int
    end: int  # of this run

    def starts_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last of an epoch, or of this run."""
        return self.starts_epoch(step + 1) or step == self.end - 1


def training_length(settings: schema.Pretrain | schema.Finetune, steps_per_epoch: int, until: int | None) -> Length:
    """Length from the epochs or the steps of the settings, of which this run does the first `until` epochs."""
    steps = settings.steps if settings.steps is not None else (settings.epochs or 0) * steps_per_epoch
    return Length(steps_per_epoch, steps, steps if until is None else min(steps, until * steps_per_epoch))


class Epochs:
    """Images that each step takes. They are announced to a streamed set, some epochs at once where these are short.

    Args:
        images: of an epoch.
        seed: of the order stream.
    """

    def __init__(
        self, images: IntArray, batch_size: int, seed: int, length: Length, data: ImageSet, world: World
    ) -> None:
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._length, self._data, self._world = length, data, world
        self._epoch, self._order = -1, images[:0]
        self._announced = -1  # the first step that was not announced

    def batch(self, step: int) -> IntArray:
        """(B,) image indices, of all workers together. To be asked for in the order of the steps."""
        if self._data.streamed and step >= self._announced:
            self._announce(step)
        epoch, position = divmod(step, self._length.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._of(epoch)
        return self._order[position * self._batch_size : (position + 1) * self._batch_size]

    def _of(self, epoch: int) -> IntArray:
        return self._images[epoch_order(len(self._images), self._seed, epoch, self._data.shuffle_window)]

    def _announce(self, step: int) -> None:
        orders: list[IntArray] = []
        while step < self._length.end and sum(map(len, orders)) < ANNOUNCED:
            epoch, position = divmod(step, self._length.steps_per_epoch)
            end = min(self._length.steps_per_epoch, position + self._length.end - step)
            rows = self._of(epoch)[position * self._batch_size : end * self._batch_size]
            orders.append(self._world.shares(rows, self._batch_size))
            step += end - position
        self._announced = step
        self._data.coming(orders, self._batch_size)


# --------------------------------------------------------------------------------------------------------- bookkeeping


@dataclass
class LossMeter:
    """Losses of the current epoch, kept on the device so that the loop need not wait for them.

    Each of several workers keeps its own. They are averaged over workers where somebody reads them.
    """

    metric: str
    first_step: int = 0  # of the losses held
    losses: list[Tensor] = field(default_factory=list)
    world: World = ALONE
    averaged: int = 0  # the first so many of the losses are those of whole batches already

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def of_whole_batches(self) -> list[Tensor]:
        """The losses held, averaged over workers in one exchange. All workers call it after the same step."""
        if self.world.size > 1 and (own := self.losses[self.averaged :]):
            self.losses[self.averaged :] = self.world.mean(torch.stack(own)).unbind()
        self.averaged = len(self.losses)
        return self.losses

    def mean(self) -> float:
        """Mean since the last call, equal on all workers, who all call it.

        Raises `DivergedError` naming the first step whose loss is not finite, on all workers alike.
        """
        values = torch.stack(self.of_whole_batches()).double().cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            step = int(bad[0])
            raise DivergedError(self.metric, self.first_step + step, float(values[step]))
        self.first_step += len(values)
        self.losses.clear()
        self.averaged = 0
        return float(values.mean())


class CheckpointTimer:
    """Decides when to write a resumable state: every `checkpoint_seconds`, and at once when preempted.

    Where a state takes long to write (a large model, a slow disk) it is written less often: see `took`.

    Several workers write and stop after the same step: a state has the losses of whole batches, for which all exchange
    theirs. Every few steps they exchange whether one of them is preempted, and whether a state is due by the first
    worker's time: about every EXCHANGE_SECONDS, since a GPU has to wait for an exchange.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._saved = self._exchanged = time.monotonic()
        self._pause = context.checkpoint_seconds
        self._preempted = False
        self._interval = self._remaining = 1  # steps from one exchange to the next, and those still to come

    def due(self) -> bool:
        """Whether to write the state now, equal on all workers, who all call it after every step."""
        due = self._due_alone() if self._context.world.size == 1 else self._due_together()
        if due:
            self._saved = time.monotonic()
        return due

    def _due_alone(self) -> bool:
        self._preempted = self._preempted or self._context.preempted()
        return self._preempted or self._pause_is_over()

    def _due_together(self) -> bool:
        self._remaining -= 1
        return self._remaining <= 0 and self._exchange()

    def _pause_is_over(self) -> bool:
        """Whether it is time for a state; while the last one is still being written it is only if each step has one."""
        busy = bool(self._context.checkpoint_seconds) and self._context.writer.busy
        return not busy and time.monotonic() - self._saved >= self._pause

    def took(self, seconds: float) -> None:
        """The last state took so long to write: the next comes late enough that writing takes STATE_SHARE at most."""
        asked = self._context.checkpoint_seconds
        self._pause = max(asked, seconds / STATE_SHARE) if asked else 0.0

    def _exchange(self) -> bool:
        """Whether a worker is preempted or the first has a state due; its pace sets the steps to the next exchange."""
        now, world = time.monotonic(), self._context.world
        wanted = min(EXCHANGE_SECONDS, self._pause)
        fitting = round(self._interval * wanted / max(now - self._exchanged, 1e-3))
        interval = min(max(fitting, 1), EXCHANGE_MAX_STEPS) if world.first else 0
        own = (self._context.preempted(), interval, world.first and self._pause_is_over())
        total = world.sum(torch.tensor(own, dtype=torch.float32, device=self._context.device))
        preempted, steps, due = total.tolist()
        self._exchanged, self._interval, self._remaining = now, int(steps), int(steps)
        self._preempted = bool(preempted)
        return self._preempted or bool(due)

    def stop_if_preempted(self, step: int) -> None:
        """Wait for the state after `step` and raise `PreemptedError` if a worker is preempted."""
        if self._preempted:
            self._context.writer.wait()
            raise PreemptedError(f"state written after step {step}")


class Stateful(Protocol):
    """Part of a training that a resumable state holds: a module, an optimiser, the best weights so far."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> object: ...


class Progress:
    """Bookkeeping of a training: the steps done, its learning curve, and its resumable state.

    Args:
        loss: the metric's name of the loss that is descended.
        parts: what a resumed training needs, by the names in the state.
    """

    def __init__(self, context: RunContext, length: Length, loss: str, parts: Mapping[str, Stateful]) -> None:
        self._context, self._length, self._parts = context, length, parts
        self._timer = CheckpointTimer(context)
        self.first = 0  # the step to begin with
        self.history: list[dict[str, float]] = []  # a row for each epoch
        self.meter = LossMeter(loss, world=context.world)

    def resume(self) -> None:
        """Continue from the state that an earlier attempt, or a shorter training, left, and report where.

        Without a state the training starts from the beginning.
        """
        state = checkpoints.load_state(self._context.resume, self._context.device)
        if state is None:
            return
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.first, self.history, losses = state["step"], state["history"], state["losses"]
        self.meter = LossMeter(
            self.meter.metric, self.first - len(losses), losses, self._context.world, averaged=len(losses)
        )
        self._context.report({"step": self.first, "total": self._length.end, RESUMED: 1.0})

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch that ends with `step` to the learning curve, and report them."""
        self.history.append({"step": step + 1, "epoch": (step + 1) / self._length.steps_per_epoch, **values})
        self._context.report({"step": step + 1, "total": self._length.end, **values})

    def save_if_due(self, step: int) -> None:
        """Write the state after `step` where it is time to. All workers call it.

        Raises `PreemptedError` once the state is written, and what the writing of the last one failed of.
        """
        writer = self._context.writer
        writer.raise_if_failed()
        ends = step == self._length.end - 1 and self._context.keep_state
        if not ends and not self._timer.due():
            return
        losses = self.meter.of_whole_batches()
        if self._context.world.first:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            state |= {"step": step + 1, "history": self.history, "losses": losses}
            save = checkpoints.save_end if ends else checkpoints.save_state
            writer.write(save, state, self._context.out, self._timer.took)
        self._timer.stop_if_preempted(step + 1)

    def metrics(self) -> dict[str, float]:
        """Training and validation values of the last epoch."""
        return {name: value for name, value in self.history[-1].items() if name.startswith(("train/", "val/"))}

    def finish(self, model: nn.Module, notes: dict[str, Any]) -> None:
        """Write the outputs of the stage, by the first worker alone.

        Raises DivergedError for weights that are not finite: the last update made them, and no loss came to tell; and
        what the writing of the last state failed of.
        """
        self._context.writer.wait()
        if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
            raise DivergedError("weights", int(self.history[-1]["step"]) - 1, math.nan)
        if self._context.world.first:
            finish(model, self.history, notes | {"workers": self._context.world.size}, self._context.out)


def finish(model: nn.Module, history: list[dict[str, float]], notes: dict[str, Any], out: Path) -> None:
    """Write what every trained stage leaves: weights, learning curve, and which images it used for what."""
    checkpoints.save_weights(model, out / WEIGHTS)
    (out / HISTORY).write_text(json.dumps(history))
    (out / NOTES).write_text(json.dumps(notes))


# ---------------------------------------------------------------------------------------- optimiser and network


def build_optimizer(settings: schema.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over these parameters, also those that are frozen now; one kernel per step, on a CPU too."""
    without_compiler()
    kept = list(parameters)
    trained: list[Any] = kept
    if not isinstance(settings, schema.LARS) and settings.decay == "weights":  # LARS leaves them out by itself
        still = [parameter for parameter in kept if parameter.ndim < 2]
        trained = [{"params": [p for p in kept if p.ndim > 1]}, {"params": still, "weight_decay": 0.0}]
    if isinstance(settings, schema.SGD):
        sgd = SGD(
            trained,
            settings.lr,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=True,
        )
        return with_momentum(sgd, kept)
    if isinstance(settings, schema.LARS):
        return LARS(kept, settings.lr, settings.momentum, settings.weight_decay, settings.trust_coefficient)
    kind = AdamW if isinstance(settings, schema.AdamW) else Adam
    return kind(trained, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)


def with_momentum(sgd: torch.optim.SGD, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """Make momentum buffers of zeros, in place: the fused kernel makes all of them or none, and a parameter that is
    unfrozen later has none yet. From zeros the first step leaves the gradient in them, as torch does without."""
    for parameter in parameters:
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_lr_and_decay(
    optimizer: torch.optim.Optimizer, settings: schema.Pretrain | schema.Finetune, step: int, length: Length
) -> None:
    """Set the learning rate and the weight decay of `step`."""
    steps_per_epoch, steps = length.steps_per_epoch, length.steps
    set_lr(optimizer, learning_rate(settings.schedule, settings.optimizer.lr, step, steps_per_epoch, steps))
    set_decay(optimizer, settings.optimizer, step, steps)


def multiply_lr(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Train these parameters at `factor` times the rate, in groups of their own behind the ones there are."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        optimizer.add_param_group({**group, "params": moved, "lr_mult": factor})


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)


def set_decay(optimizer: torch.optim.Optimizer, settings: schema.Optimizer, step: int, steps: int) -> None:
    """The weight decay of step `step`, where it has a schedule: half a cosine to `weight_decay_end` (DINO)."""
    if not isinstance(settings, schema.AdamW) or settings.weight_decay_end in (None, settings.weight_decay):
        return
    decay = cosine_ramp(settings.weight_decay, settings.weight_decay_end, step, steps)
    for group in optimizer.param_groups[:: 2 if settings.decay == "weights" else 1]:  # every second one has none
        group["weight_decay"] = decay


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float | None, clip: Literal["parameter"] | None) -> None:
    """Scale gradients down to the norm: all together, or those of each parameter by itself (DINO's code)."""
    if norm is None:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    together = clip is None
    norms = torch.linalg.vector_norm(norms[None] if together else norms[:, None], dim=1).expand(len(gradients))
    torch._foreach_mul_(gradients, list((norm / (norms + 1e-6)).clamp(max=1.0).unbind()))


def layout(network: nn.Module) -> torch.memory_format:
    """Memory format of a network's weights and maps: channels last, of images or of volumes."""
    solid = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return torch.channels_last_3d if solid else torch.channels_last


def compile_parts(network: nn.Module, asked: bool) -> None:
    """Compile encoders and decoders at their first batch, if `asked`; names of weights stay.

    All processes of a node share torch.compile's cache on disk, so equal networks are compiled once.
    """
    for part in network.modules() if asked else ():
        if isinstance(part, Encoder | Decoder):
            part.compile(dynamic=False)


def set_tf32(on: bool) -> None:
    """Let a GPU round the factors of products and convolutions to 10 bits of mantissa, or forbid it.

    torch allows it in convolutions unless it is told, so that float32 would mean another precision on each GPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def autocast(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
