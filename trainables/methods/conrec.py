"""ConRec: contrastive learning and restoring corrupted views together; and restoring alone.

Dippel, Vogler, Höhne: "Towards fine-grained visual representations by combining contrastive learning with image
reconstruction and attention-weighted pooling", 2021, and their public code; the four decoding tasks are P3's, for
which there is none. Loss = 100 mean squared error + the contrastive loss of both directions, whose sum is twice
SimCLR's mean over views.

P3: "The first three blocks of the decoder are shared between the reconstruction tasks, and the last decoder block is
unique to each task." ConRec's decoder has three up-sampling blocks and an output, which makes four: each task has an
output of its own (`branch: output`). That the last up-sampling block is a task's own too is a setting (`branch:
block`); then the decoder that fine-tuning loads has the block of the first task in the order of TASKS, which is
reconstruction unless that is switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.mae import constant_error, restoration_error
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.simclr import SimCLR, diagnostics, nt_xent
from pretune.trainables.methods.supervised import whole_colors
from pretune.trainables.models.conrec_unet import AttentionPooling
from pretune.trainables.models.interface import Decoder, Encoder, Segmented, pixel_head, resized, skips_of, trunk
from pretune.trainables.upload import constant, upload
from pretune.trainables.views.corruptions import Corrupted, corrupt
from pretune.trainables.views.drawn import View
from pretune.trainables.views.random import Draw, DrawHere, seeded

TASKS = ("reconstruction", "original-colors", "mask-location", "black-masks")  # the mask is one channel, others images


def corrupted(batch: Batch) -> Corrupted:
    """The batch's views, one after the other, each corrupted by draws of its own: (views * B, ...)."""

    def draw_for(number: int) -> Draw:
        return lambda name, count: batch.draw(f"corrupt/{number}/{name}", count)

    def here_for(number: int) -> DrawHere:
        return lambda name, count: batch.drawn(f"corrupt/{number}/{name}", count)

    parts = [corrupt(view.pixels, draw_for(i), here_for(i)) for i, view in enumerate(batch.views)]
    return Corrupted(torch.cat([part.pixels for part in parts]), torch.cat([part.mask for part in parts]))


def targets_of(tasks: Sequence[str], views: Sequence[View], images: Tensor | None, mask: Tensor) -> dict[str, Tensor]:
    """Return the target of each task, (views * B, 1 or C, S, S) in [0, 1]; `mask` is where views were corrupted."""
    clean = torch.cat([view.pixels for view in views])
    targets: dict[str, Callable[[], Tensor]] = {
        "reconstruction": lambda: clean,
        "original-colors": lambda: torch.cat([whole_colors(view, images) for view in views if images is not None]),
        "mask-location": lambda: mask.float(),
        "black-masks": lambda: clean.masked_fill(mask, 0.0),
    }
    return {task: targets[task]() for task in tasks}


class TaskHeads(Segmented):
    """Parts of each decoding task beyond the decoder: outputs, and with `branch: block` the last block.

    The first task uses the decoder's own last block. `channels` are those of the images.
    """

    def __init__(
        self, tasks: Sequence[str], decoder: Decoder, more: Callable[[], Decoder], branch: str, channels: int
    ) -> None:
        super().__init__()
        self.tasks = tuple(task for task in TASKS if task in tasks)
        others = self.tasks[1:] if branch == "block" else ()
        self.outputs = nn.ModuleDict(
            {task: pixel_head(decoder, 1 if task == "mask-location" else channels) for task in self.tasks}
        )
        self.blocks = nn.ModuleDict({task: more().blocks[-1] for task in others})

    def forward(self, decoder: Decoder, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """The encoder's maps -> (B, 1 or C, *size) in [0, 1] for each task, float32."""
        shared, skip = trunk(decoder, features), skips_of(decoder, features)[-1]
        first = decoder.blocks[-1](shared, skip)
        found = {}
        for task in self.tasks:
            x = self.blocks[task](shared, skip) if task in self.blocks else first
            found[task] = resized(self.outputs[task](x), size).float().sigmoid()
        return found

    def segments(self) -> Sequence[nn.Module]:
        return list(self.blocks.values())


def task_errors(restored: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean squared error of each task over all pixels."""
    return {task: restoration_error(restored[task], targets[task]) for task in restored}


def weighted_mean(errors: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Our choice for the four-task form: weights 1 where none is given, normalised, so that the balance with the
    contrastive loss stays that of one task."""
    values = torch.stack(list(errors.values()))
    shares = constant(tuple(weights.get(task, 1.0) for task in errors), values.device, torch.float32)
    return (values * (shares / shares.sum())).sum()


def error_names(errors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{task.replace('-', '_')}_error": value.detach() for task, value in errors.items()}


class Projection(nn.Module):
    """Linear - BN - ReLU twice, Linear - BN without shift: no linear layer has a bias; weights start at N(0, 0.01)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in (inputs, hidden):
            layers += [nn.Linear(i, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, outputs, bias=False))
        self.norm = nn.BatchNorm1d(outputs, affine=False)
        self.scale = nn.Parameter(torch.ones(outputs))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        projected: Tensor = self.norm(self.layers(x)) * self.scale
        return projected


class Reconstruction(nn.Module):
    """Restoring one corrupted view of each image."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[[], Decoder],
        views: schema.Views,
        *,
        tasks: Sequence[str],
        weights: Mapping[str, float],
        branch: str,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder()
        self.heads = TaskHeads(tasks, self.decoder, decoder, branch, encoder.channels)
        self.weights = dict(weights)
        self.recipes = (views,)
        self.requirements = schema.requirements_of_tasks(tasks)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """One view of (B, 3, S, S) -> the tasks' weighted mean error, and each error."""
        pixels, mask = corrupted(batch)
        targets = targets_of(self.heads.tasks, batch.views, batch.images, mask)
        errors = task_errors(self.heads(self.decoder, self.encoder(pixels), pixels.shape[-2:]), targets)
        loss = weighted_mean(errors, self.weights)
        if not batch.diagnosed:
            return loss, {}
        return loss, error_names(errors) | over_constant(errors, targets, batch.world)

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def over_constant(
    errors: Mapping[str, Tensor], targets: Mapping[str, Tensor], world: World = ALONE
) -> dict[str, Tensor]:
    """The first task's error relative to that of one colour for everything."""
    task = next(iter(errors))
    return {"loss_over_uniform": errors[task].detach() / constant_error(targets[task], world).clamp(min=1e-8)}


class ConRec(nn.Module):
    """Restoring two corrupted views of each image, and telling from their pooled features which belong together."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[[], Decoder],
        views: schema.Views,
        *,
        tasks: Sequence[str],
        weights: Mapping[str, float],
        branch: str,
        temperature: float,
        reconstruction_weight: float,
        pooling: str,
        hidden: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder()
        self.heads = TaskHeads(tasks, self.decoder, decoder, branch, encoder.channels)
        self.pooling = AttentionPooling(encoder.widths[-1]) if pooling == "attention" else None
        self.projection = Projection(encoder.widths[-1], hidden, dim)
        self.weights = dict(weights)
        self.temperature, self.reconstruction_weight = temperature, reconstruction_weight
        self.recipes = (views, views)
        self.requirements = schema.requirements_of_tasks(tasks)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two views of (B, 3, S, S) -> the loss, its parts, and signs of a collapse."""
        pixels, mask = corrupted(batch)
        features = self.encoder(pixels)
        targets = targets_of(self.heads.tasks, batch.views, batch.images, mask)
        errors = task_errors(self.heads(self.decoder, features, pixels.shape[-2:]), targets)
        z1, z2 = self.projection(self.pooled(features[-1], batch)).chunk(2)
        contrast = nt_xent(z1, z2, self.temperature, batch.world)
        loss = self.reconstruction_weight * weighted_mean(errors, self.weights) + 2 * contrast
        if not batch.diagnosed:
            return loss, {}
        uniform = contrast.detach() / SimCLR.uniform_loss(len(z1) * batch.world.size)
        found = {"contrastive_loss": contrast.detach(), "loss_over_uniform": uniform}
        return loss, found | error_names(errors) | diagnostics(z1, z2, batch.world)

    def pooled(self, features: Tensor, batch: Batch) -> Tensor:
        """(2B, C, H, W) -> (2B, C). What attention's dropout drops is a function of the whole batch's first draw."""
        if self.pooling is None:
            return features.mean(dim=(2, 3))
        first = batch.draw("dropout", 1)[:1]
        if batch.world.size > 1:  # the one exchange that the host waits for
            first = batch.world.gather(upload(first, features.device)).cpu().numpy()
        generator = seeded(features.device, int(first[0, 0] * 2**53))
        size, rank = batch.world.size, batch.world.rank
        draws = torch.rand(
            (2, size, len(features) // 2, *features.shape[1:]), generator=generator, device=features.device
        )
        pooled: Tensor = self.pooling(features, draws[:, rank].flatten(0, 1))
        return pooled

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def build_reconstruction(method: schema.Reconstruction, views: schema.Views, parts: Parts) -> Reconstruction:
    return Reconstruction(
        parts.encoder,
        parts.decoder,
        views,
        tasks=method.tasks,
        weights={str(task): weight for task, weight in method.task_weights.items()},
        branch=method.branch,
    )


def build_conrec(method: schema.ConRec, views: schema.Views, parts: Parts) -> ConRec:
    return ConRec(
        parts.encoder,
        parts.decoder,
        views,
        tasks=method.tasks,
        weights={str(task): weight for task, weight in method.task_weights.items()},
        branch=method.branch,
        temperature=method.temperature,
        reconstruction_weight=method.reconstruction_weight,
        pooling=method.pooling,
        hidden=method.hidden,
        dim=method.dim,
    )
