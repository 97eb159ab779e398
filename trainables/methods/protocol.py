"""Interface between the loop and every pretraining method.

A method is a module: whatever must survive a checkpoint (queues, centres, momentum encoders) is a parameter or buffer
of it. Tensors in, a loss and named diagnostics out; it sees no settings objects after construction, moves nothing
between devices and logs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.models.interface import Decoder, Encoder
from pretune.trainables.views.drawn import View
from pretune.trainables.views.random import DrawHere


class Batch(NamedTuple):
    """One step's images, as views and with whatever maps the data set has; with several workers, this one's rows."""

    views: list[View]  # one per recipe of the method
    draw: Callable[[str, int], NDArray[Any]]  # (what for, how many) -> (B, how many) uniforms, a function of the image
    images: Tensor | None = None  # (B, H, W, 3) uint8, whole and as they are; crop with a view's boxes
    labels: Tensor | None = None  # (B,) int64
    masks: Tensor | None = None  # (B, H, W) uint8, of the whole images; crop with a view's boxes
    regions: Tensor | None = None  # (B, H, W) uint16
    depth: Tensor | None = None  # (B, H, W) in [0, 1]
    epoch: int = 0  # of training, counted from 0
    world: World = ALONE  # who has the other rows of the batch, as many each
    diagnosed: bool = True  # whether somebody reads the diagnostics of this step
    draw_here: DrawHere | None = None  # `draw` on the training device; None: on a CPU, where it is the same

    def drawn(self, purpose: str, count: int) -> Tensor:
        """`draw` as a tensor on the training device, without anything that waits for it."""
        return torch.from_numpy(self.draw(purpose, count)) if self.draw_here is None else self.draw_here(purpose, count)


class Parts(NamedTuple):
    """Parts that a method is built from."""

    encoder: Encoder
    decoder: Callable[[], Decoder]  # made on demand: a method that trains none draws no random numbers for it
    mask_classes: int  # of the data set; 0 without masks
    image_classes: int  # 0 without labels


class Method(Protocol):
    """The loop's view of a method. `encoder` (and `decoder`, where it trains one) is what fine-tuning loads."""

    @property
    def encoder(self) -> nn.Module: ...

    @property
    def recipes(self) -> tuple[schema.Views, ...]:
        """Recipe of each view."""
        ...

    @property
    def requirements(self) -> frozenset[schema.Map]:
        """Those of images, labels, masks, regions and depth that a batch must carry."""
        ...

    def __call__(self, batch: Batch, progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss to descend and diagnostics. `progress` is the share of training done, 0 to 1.

        The mean over the batch's workers of either is that of the whole batch. Diagnostics that nobody reads
        (`batch.diagnosed`) may be left out: they cost kernels, and exchanges where there are several workers.
        """
        ...

    def after_backward(self, epoch: int) -> None:
        """Between the gradients and their clipping: what must not move this time loses its gradient here."""
        ...

    def after_step(self, progress: float) -> None:
        """After the optimiser's step: momentum encoders, queues."""
        ...
