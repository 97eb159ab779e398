"""Exchanges of several workers that train one stage together, and batch norm over all of them.

Every worker takes its rows of the same global batch; losses, negatives, statistics and queues are those of the whole
batch, so that the number of workers changes digits and nothing else. Two conventions make this hold:

- an exchange with a gradient is differentiated as what it is, a function of all workers' inputs: the gradient of `sum`
  and of `gather` is summed over workers. With the mean over workers that DistributedDataParallel takes, parameters
  get the gradient of the mean over workers of their losses;
- that mean is the loss of the whole batch: a worker's own loss is the mean over its rows, or already that of the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

M = TypeVar("M", bound=nn.Module)
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class World:
    """The workers of a stage, seen from one of them. With one worker every exchange gives back what it was given.

    Tensors are on the device that training runs on. All workers must make the same exchanges in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this worker is the one that writes files."""
        return self.rank == 0

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This worker's share of some rows, consecutive; shares differ by one row where they do not divide."""
        return np.array_split(rows, self.size)[self.rank]

    def shares(self, rows: NDArray[Any], batch: int) -> NDArray[Any]:
        """This worker's parts of consecutive batches, one after the other."""
        parts = [self.part(rows[first : first + batch]) for first in range(0, len(rows), batch)]
        return np.concatenate(parts) if parts else rows

    def own(self, gathered: Tensor) -> Tensor:
        """This worker's rows of what `gather` gave: (n * size, ...) -> (n, ...)."""
        return gathered.chunk(self.size)[self.rank]

    def sum(self, x: Tensor) -> Tensor:
        """The sum over workers, element by element; differentiable."""
        if self.size == 1:
            return x
        total: Tensor = _Sum.apply(x)
        return total

    def mean(self, x: Tensor) -> Tensor:
        """The mean over workers, element by element; differentiable."""
        return x if self.size == 1 else self.sum(x) / self.size

    def gather(self, x: Tensor) -> Tensor:
        """All workers' rows in the order of the global batch: (n, ...) -> (n * size, ...); differentiable.

        Every worker must have the same n.
        """
        if self.size == 1:
            return x
        rows: Tensor = _Gather.apply(x, self.rank)
        return rows

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module to call for the training loss: its backward pass leaves the mean gradient on every worker.

        Made anew whenever other parameters are trained. Buffers are left alone: `whole_batch_norm` and
        `RunningStatistics` keep them equal.
        """
        if self.size == 1:
            return module
        with warnings.catch_warnings():  # torch 2.15 has a new name for the setting, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(module, broadcast_buffers=False)


ALONE = World()


# torch.distributed.nn.functional has both exchanges; torch 2.15 deprecates them in favour of private functions.
class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int) -> Tensor:
        ctx.rank, ctx.size = rank, dist.get_world_size()
        gathered = x.new_empty((ctx.size * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sum.forward(ctx, gradients[0]).chunk(ctx.size)[ctx.rank], None


# -------------------------------------------------------------------------------------------------------- batch norm


def whole_batch_norm(module: M, world: World, device: torch.device) -> M:
    """Let every batch norm in `module` take the statistics of the whole batch, in place where it can.

    Parameters, buffers and their names stay. On GPUs this is torch's own SyncBatchNorm, which refuses CPU tensors.

    Raises:
        ValueError: a batch norm that does more than normalise (some of timm's backbones), which neither can stand for.
    """
    if world.size == 1:
        return module
    for child in module.modules():
        if isinstance(child, _BatchNorm) and type(child) not in PLAIN:
            name = type(child).__name__
            raise ValueError(f"{name} cannot take the statistics of all workers; set resources.*.batch_norm: local")
    if device.type == "cuda":
        converted: M = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, WholeBatchNorm(child, world))
    return module


class WholeBatchNorm(_BatchNorm):
    """Batch norm by the statistics of all workers' rows, for CPUs; takes over the tensors of `norm`.

    Workers may have different numbers of rows, or none.
    """

    def __init__(self, norm: _BatchNorm, world: World) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.world = world
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (B, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        over = [d for d in range(x.ndim) if d != 1]
        total = self.world.sum(torch.cat([x.sum(over), x.new_tensor([x.numel() / x.shape[1]])]))
        count = total[-1].detach()
        centred = x - _across(total[:-1] / count, x)
        variance = self.world.sum(centred.square().sum(over)) / count
        self._update(total[:-1] / count, variance * count / (count - 1).clamp(min=1))
        normalised = centred * _across((variance + self.eps).rsqrt(), x)
        if self.affine:
            normalised = normalised * _across(self.weight, x) + _across(self.bias, x)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.num_batches_tracked is not None and self.momentum is not None  # noqa: PT018
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)


def _across(values: Tensor, x: Tensor) -> Tensor:
    """(C,) so that it broadcasts over x (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


class RunningStatistics:
    """Keeps running statistics equal on all workers where each normalises by its own rows.

    They are those of one process that goes through the workers' rows in order, each part normalised by its own
    statistics. An update of momentum a is linear, r <- (1 - a) r + a s; so with m updates on each worker and
    d = (1 - a)^m, worker w's share is c_w = r_w - d r, and the whole is d^W r + sum over w of d^(W - 1 - w) c_w.
    """

    def __init__(self, module: nn.Module, world: World) -> None:
        self._world = world
        self._norms = list(_norms(module)) if world.size > 1 else []
        self._before = [self._read(norm) for norm in self._norms]

    @torch.no_grad()
    def merge(self) -> None:
        """To be called after every step; does nothing with one worker, or where nothing was normalised."""
        if not self._norms:
            return
        shares, carried = [], []
        for norm, (seen, before) in zip(self._norms, self._before, strict=True):
            new_seen, after = self._read(norm)
            decay = (1 - (norm.momentum or 0.0)) ** (new_seen - seen)
            shares.append((after - decay * before) * decay ** (self._world.size - 1 - self._world.rank))
            carried.append(before * decay**self._world.size)
        sums = torch.split(self._world.sum(torch.cat(shares)), [len(share) for share in shares])
        for norm, (seen, _), share, rest in zip(self._norms, self._before, sums, carried, strict=True):
            self._write(norm, seen, share + rest)
        self._before = [self._read(norm) for norm in self._norms]

    @staticmethod
    def _read(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
        """Number of updates so far, and both statistics in one row."""
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        assert norm.num_batches_tracked is not None
        return norm.num_batches_tracked.clone(), torch.cat([norm.running_mean, norm.running_var])

    def _write(self, norm: _BatchNorm, seen: Tensor, values: Tensor) -> None:
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.copy_(seen + (norm.num_batches_tracked - seen) * self._world.size)
        mean, variance = values.chunk(2)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """Batch norms that keep running statistics and normalise by a worker's own rows."""
    for child in module.modules():
        if not isinstance(child, _BatchNorm) or isinstance(child, nn.SyncBatchNorm | WholeBatchNorm):
            continue
        if child.track_running_stats:
            yield child
