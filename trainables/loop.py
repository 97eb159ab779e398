"""What the three loops share: where they run, how they report, and how they stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet, Pixels
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.files import HISTORY, NOTES, WEIGHTS
from pretune.trainables.models.interface import Decoder, Encoder
from pretune.trainables.models.table import build_encoder as build_encoder  # the loops' own name for them
from pretune.trainables.models.table import build_unet as build_unet
from pretune.trainables.optimizers import LARS
from pretune.trainables.schedules import cosine_ramp

ASK_SECONDS = 2.0  # between two exchanges of workers whether one was asked to leave
MOST_STEPS = 1000  # between two such exchanges, whatever the pace was: it may have been that of the fastest steps
WINDOW_RUNS = 16  # runs of neighbouring images that a shuffle window mixes
ANNOUNCED = 50_000  # images that a stream is told of at once, in whole epochs: starting to read takes 0.2 s

IntArray = NDArray[np.int64]
Lookup = Callable[[IntArray], Tensor]  # (B,) image indices -> (B, ...), as `DataFeed` does
Report = Callable[[dict[str, float]], None]  # receives step, total and the latest values; may raise to stop the run


class DivergedError(Exception):
    """A value that must be finite is not. Deterministic, so trying again is no use."""

    def __init__(self, metric: str, step: int, value: float) -> None:
        self.metric, self.step, self.value = metric, step, value
        super().__init__(f"{metric} is {value} at step {step}")


@dataclass(frozen=True)
class RunContext:
    """Where a stage runs: what it starts from and where it writes."""

    out: Path  # an existing folder of this attempt alone
    device: torch.device
    parent: Path | None = None  # weights of the stage before
    resume: Path | None = None  # the state that an earlier attempt, or a shorter training, left
    keep_state: bool = False  # leave behind what a longer training continues from
    checkpoint_seconds: float = 60.0  # wall time between resumable states
    world: World = ALONE  # the workers that run it together, all in a `RunContext` of their own
    batch_norm: str = "sync"  # statistics of the whole batch, or `local`: of each worker's rows
    preempted: Callable[[], bool] = lambda: False  # asked after every step, of several workers now and then


class DataFeed:
    """Hands out batches of a memory-mapped array, or of a stream, on the training device.

    On a GPU with room for it the whole array lives there; else each batch is gathered from the mapped file.
    """

    def __init__(self, array: Pixels, device: torch.device) -> None:
        self._array = array
        self._device = device
        fits = isinstance(array, np.ndarray) and device.type == "cuda" and array.nbytes < _free_bytes(device) / 2
        self._resident = torch.from_numpy(np.array(array)).to(device) if fits else None

    def __call__(self, indices: IntArray) -> Tensor:
        """(B,) image indices -> (B, ...) in the array's own type."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(indices).pin_memory().to(self._device, non_blocking=True)]
        batch = torch.from_numpy(self._array[indices])
        if self._device.type == "cuda":
            batch = batch.pin_memory()  # else the copy would wait for what the GPU has to do before it
        return batch.to(self._device, non_blocking=True)


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


@dataclass
class LossMeter:
    """Losses as they come, kept on the device so that the loop need not wait for them; checked at intervals."""

    metric: str
    first_step: int  # of the losses held
    losses: list[Tensor]

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def mean(self) -> float:
        """Mean since the last call. Raises `DivergedError` naming the first step whose loss is not finite."""
        values = torch.stack(self.losses).double().cpu()
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            step = int(bad[0])
            raise DivergedError(self.metric, self.first_step + step, float(values[step]))
        self.first_step += len(values)
        self.losses.clear()
        return float(values.mean())


class CollapsedError(DivergedError):
    """Pretraining that its collapse signs condemn, stopped as the study asked."""

    def __init__(self, signs: tuple[str, ...], step: int) -> None:
        self.metric, self.step, self.value = "collapse", step, float("nan")
        Exception.__init__(self, f"collapsed, stopped after step {step}: {'; '.join(signs)}")


class PreemptedError(Exception):
    """The loop was asked to leave (a preempted machine, a stopped study) and has written its state."""


class CheckpointTimer:
    """Says when the next resumable state is due: now and then, and at once where the loop must leave.

    Several workers must leave after the same step. They tell each other every few steps whether one of them was asked,
    about every ASK_SECONDS by the first worker's clock, since telling is an exchange that a GPU has to wait for.
    """

    def __init__(self, place: RunContext) -> None:
        self._place = place
        self._last = self._told = time.monotonic()
        self._asked = False
        self._between = self._left = 1  # steps from one exchange to the next, and of those still to come

    def due(self) -> bool:
        """Whether to write the state now. To be called by all workers, after every step."""
        self._asked = self._asked or (self._place.preempted() if self._place.world.size == 1 else self._any_asked())
        if not self._asked and time.monotonic() - self._last < self._place.checkpoint_seconds:
            return False
        self._last = time.monotonic()
        return True

    def _any_asked(self) -> bool:
        self._left -= 1
        if self._left > 0:
            return False
        now, world = time.monotonic(), self._place.world
        fitting = round(self._between * ASK_SECONDS / max(now - self._told, 1e-3))  # steps, at the latest pace
        proposed = min(max(fitting, 1), MOST_STEPS) if world.first else 0
        told = torch.tensor([float(self._place.preempted()), float(proposed)], device=self._place.device)
        asked, steps = world.sum(told).tolist()
        self._told, self._between, self._left = now, int(steps), int(steps)
        return bool(asked)

    def leave_if_asked(self, step: int) -> None:
        """Call when the state is written. Raises `PreemptedError`."""
        if self._asked:
            raise PreemptedError(f"asked to leave, state written after step {step}")


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


class Epochs:
    """Which images each step takes. A streamed set is told of them ahead, some epochs at a time where these are short.

    Args:
        images: of an epoch.
        seed: of the order stream.
        steps: of the training, in epochs of `steps_per_epoch`.
    """

    def __init__(
        self,
        images: IntArray,
        batch_size: int,
        seed: int,
        steps: int,
        steps_per_epoch: int,
        data: ImageSet,
        world: World,
    ) -> None:
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._steps, self._steps_per_epoch = steps, steps_per_epoch
        self._data, self._world = data, world
        self._epoch, self._order = -1, images[:0]
        self._told = -1  # the first step that the stream has not been told of

    def batch(self, step: int) -> IntArray:
        """(B,) image indices, of all workers together. To be asked for in the order of the steps."""
        if self._data.streamed and step >= self._told:
            self._tell(step)
        epoch, position = divmod(step, self._steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._of(epoch)
        return self._order[position * self._batch_size : (position + 1) * self._batch_size]

    def _of(self, epoch: int) -> IntArray:
        return self._images[epoch_order(len(self._images), self._seed, epoch, self._data.shuffle_window)]

    def _tell(self, step: int) -> None:
        orders: list[IntArray] = []
        while step < self._steps and sum(map(len, orders)) < ANNOUNCED:
            epoch, position = divmod(step, self._steps_per_epoch)
            end = min(self._steps_per_epoch, position + self._steps - step)
            rows = self._of(epoch)[position * self._batch_size : end * self._batch_size]
            orders.append(self._world.shares(rows, self._batch_size))
            step += end - position
        self._told = step
        self._data.coming(orders, self._batch_size)


def last_step(steps: int, until: int | None, steps_per_epoch: int) -> int:
    """Where this run of a training of `steps` ends: after `until` epochs, if that is sooner."""
    return steps if until is None else min(steps, until * steps_per_epoch)


def total_steps(epochs: int | None, steps: int | None, steps_per_epoch: int) -> int:
    """Training length in steps from whichever of the two the settings give."""
    return steps if steps is not None else (epochs or 0) * steps_per_epoch


def build_optimizer(settings: schema.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are trained; one kernel per step, on a CPU too."""
    kept = [parameter for parameter in parameters if parameter.requires_grad]
    trained: list[Any] = kept
    if not isinstance(settings, schema.LARS) and settings.decay == "weights":  # LARS leaves them out by itself
        still = [parameter for parameter in kept if parameter.ndim < 2]
        trained = [{"params": [p for p in kept if p.ndim > 1]}, {"params": still, "weight_decay": 0.0}]
    if isinstance(settings, schema.SGD):
        sgd = torch.optim.SGD(
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
    kind = torch.optim.AdamW if isinstance(settings, schema.AdamW) else torch.optim.Adam
    return kind(trained, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)


def with_momentum(sgd: torch.optim.SGD, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """Momentum buffers from zeros, in place: the fused kernel makes all of them or none, and a parameter that thaws
    has none yet. From zeros the first step leaves the gradient in them, as torch does without."""
    for parameter in parameters:
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_decay(optimizer: torch.optim.Optimizer, settings: schema.Optimizer, step: int, steps: int) -> None:
    """The weight decay of step `step`, where it has a schedule: half a cosine to `weight_decay_end` (DINO)."""
    if not isinstance(settings, schema.AdamW) or settings.weight_decay_end is None:
        return
    decay = cosine_ramp(settings.weight_decay, settings.weight_decay_end, step, steps)
    optimizer.param_groups[0]["weight_decay"] = decay  # what has none is the second group


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float | None, clip: Literal["parameter"] | None) -> None:
    """Scale gradients down to the norm: all together, or those of each parameter by itself (DINO's code)."""
    if norm is None:
        return
    parts = [[parameter] for parameter in parameters] if clip == "parameter" else [list(parameters)]
    for part in parts:
        nn.utils.clip_grad_norm_(part, norm)


def layout(network: nn.Module) -> torch.memory_format:
    """How the network's weights and maps lie in memory: channels last, of images or of volumes."""
    solid = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return torch.channels_last_3d if solid else torch.channels_last


def compile_parts(network: nn.Module, asked: bool) -> None:
    """Where asked, encoders and decoders run as torch.compile makes them, from their first batch on; names of weights
    stay. Its cache on disk is shared by all processes of a machine, so equal networks are compiled once."""
    for part in network.modules() if asked else ():
        if isinstance(part, Encoder | Decoder):
            part.compile(dynamic=False)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def finish(model: nn.Module, history: list[dict[str, float]], notes: dict[str, Any], out: Path) -> None:
    """What every trained stage leaves: weights, learning curve, and which images it used for what."""
    checkpoints.save_weights(model, out / WEIGHTS)
    (out / HISTORY).write_text(json.dumps(history))
    (out / NOTES).write_text(json.dumps(notes))
