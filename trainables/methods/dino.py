"""DINO: a student matches the centred, sharpened output of its own moving average, small crops against large ones.

Caron et al.: "Emerging properties in self-supervised vision transformers", ICCV 2021; details from
facebookresearch/dino.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.heads import pooled
from pretune.trainables.methods.momentum import follow, momentum_at, momentum_copy
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.recipes import asymmetric, multi_crop
from pretune.trainables.methods.simclr import diagnostics
from pretune.trainables.models.interface import Encoder

GLOBAL_VIEWS = 2


def dino_loss(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross entropy H(P_t(x), P_s(x')) over all pairs of a teacher's view x and another view x' (equation 3).

    P_s = softmax(student / T_s), P_t = softmax((teacher - center) / T_t); averaged over pairs and images.

    Args:
        student: outputs (V, B, K), the teacher's views first.
        teacher: outputs (G, B, K) of the first G views, G <= V and V >= 2, without a gradient.
        center: (K,).

    Returns:
        A scalar, computed in float32 whatever the precision of the inputs.
    """
    log_p = F.log_softmax(student.float() / student_temperature, dim=-1)
    target = F.softmax((teacher.float() - center) / teacher_temperature, dim=-1)
    return cross_view_entropy(target, log_p)


def cross_view_entropy(target: Tensor, log_p: Tensor) -> Tensor:
    """-sum of target log p over the last dimension, averaged over images and all pairs of two different views.

    Args:
        target: distributions (G, B, K) of the first G views.
        log_p: log probabilities (V, B, K) of all views, V >= 2.
    """
    pairs = [(t, v) for t in range(len(target)) for v in range(len(log_p)) if v != t]
    return torch.stack([-(target[t] * log_p[v]).sum(dim=-1).mean() for t, v in pairs]).mean()


def teacher_temperature(start: float, end: float, warmup_epochs: int, epoch: int) -> float:
    """Linear from `start` in epoch 0 to `end` in the last of the warm-up's epochs, `end` from then on."""
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / max(1, warmup_epochs - 1)


class DINOHead(nn.Module):
    """Three layers with GELU, L2 normalisation, and cosines with `prototypes` unit vectors.

    The authors' last layer is weight-normalised with its scale held at 1, which is what normalising the rows gives.
    """

    def __init__(self, inputs: int, *, hidden: int, bottleneck: int, prototypes: int, norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            *([nn.BatchNorm1d(hidden)] if norm else []),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            *([nn.BatchNorm1d(hidden)] if norm else []),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs) -> (B, prototypes), each in [-1, 1]."""
        x = F.normalize(self.layers(features).float(), dim=1)
        with torch.autocast(
            x.device.type, enabled=False
        ):  # of cosines in bfloat16 a softmax at 0.04 makes other targets
            return F.linear(x, F.normalize(self.prototypes.weight, dim=1))


class DINO(nn.Module):
    """Student and teacher, and the centre of the teacher's outputs.

    `encoder` is what fine-tuning loads: the teacher's, which the authors evaluate, or the student's (`export`). `twin`
    is the other one. Views of one size go through the network as one batch, as in the authors' code.
    """

    requirements = frozenset(schema.DINO.facts.requires)
    center: Tensor

    def __init__(
        self,
        encoder: Encoder,
        recipes: tuple[schema.Views, ...],
        head: DINOHead,
        *,
        student_temperature: float,
        teacher_temperature: float,
        teacher_temperature_start: float,
        teacher_warmup_epochs: int,
        center_momentum: float,
        momentum: float,
        momentum_end: float,
        freeze_last_epochs: int,
        export: Literal["teacher", "student"],
    ) -> None:
        """`teacher_temperature` is that after the warm-up, `teacher_temperature_start` that of the first epoch."""
        super().__init__()
        self.exports_teacher = export == "teacher"
        self.encoder = encoder if not self.exports_teacher else momentum_copy(encoder)
        self.twin = encoder if self.exports_teacher else momentum_copy(encoder)
        self.head, self.teacher_head = head, momentum_copy(head)
        self.register_buffer("center", torch.zeros(head.prototypes.out_features))
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.teacher_temperature_start, self.teacher_warmup_epochs = teacher_temperature_start, teacher_warmup_epochs
        self.center_momentum = center_momentum
        self.momentum, self.momentum_end = momentum, momentum_end
        self.freeze_last_epochs = freeze_last_epochs
        self.recipes = recipes

    @property
    def student(self) -> Encoder:
        return self.twin if self.exports_teacher else self.encoder

    @property
    def teacher(self) -> Encoder:
        return self.encoder if self.exports_teacher else self.twin

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Two large views (B, 3, S, S) and any number of small ones -> the loss, and signs of collapse."""
        pixels = [view.pixels for view in batch.views]
        large = torch.cat(pixels[:GLOBAL_VIEWS])
        features = [pooled(self.student(large))]
        if len(pixels) > GLOBAL_VIEWS:
            features.append(pooled(self.student(torch.cat(pixels[GLOBAL_VIEWS:]))))
        student = self.head(torch.cat(features)).unflatten(0, (len(pixels), -1))  # V, B, K
        with torch.no_grad():
            teacher = self.teacher_head(pooled(self.teacher(large))).float().unflatten(0, (GLOBAL_VIEWS, -1))
        loss = dino_loss(student, teacher, self.center, self.student_temperature, self._temperature(batch.epoch))
        signs = self._diagnostics(loss, features[0], teacher, batch.world) if batch.diagnosed else {}
        if self.training:
            self._move_center(teacher, batch.world)  # only now: the loss is with the centre of the batches before
        return loss, signs

    def after_backward(self, epoch: int) -> None:
        """The last layer stays as it is for the first epochs: its gradient is dropped, and counts in no clipping."""
        if epoch < self.freeze_last_epochs:
            self.head.prototypes.weight.grad = None

    def after_step(self, progress: float) -> None:
        """The teacher follows the student."""
        momentum = momentum_at(self.momentum, self.momentum_end, progress)
        follow(self.teacher, self.student, momentum)
        follow(self.teacher_head, self.head, momentum)

    def _temperature(self, epoch: int) -> float:
        if not self.training:
            return self.teacher_temperature
        start, warmup = self.teacher_temperature_start, self.teacher_warmup_epochs
        return teacher_temperature(start, self.teacher_temperature, warmup, epoch)

    @torch.no_grad()
    def _move_center(self, teacher: Tensor, world: World = ALONE) -> None:
        """Moving average of the mean over all workers' teacher outputs (equation 4); teacher (G, B, K)."""
        self.center.lerp_(world.mean(teacher.mean(dim=(0, 1))), 1 - self.center_momentum)

    @torch.no_grad()
    def _diagnostics(self, loss: Tensor, features: Tensor, teacher: Tensor, world: World) -> dict[str, Tensor]:
        """A loss at log K with a teacher entropy at log K is a uniform collapse; an entropy at 0, also of the mean over
        images, is one to a corner."""
        p = F.softmax((teacher - self.center) / self.teacher_temperature, dim=-1)
        entropy = torch.special.entr(p).sum(dim=-1).mean()
        mean = torch.special.entr(world.mean(p.mean(dim=(0, 1)))).sum()
        uniform = math.log(len(self.center))
        signs = {"loss_over_uniform": loss.detach() / uniform, "teacher_entropy_over_uniform": entropy / uniform}
        signs["teacher_mean_entropy_over_uniform"] = mean / uniform
        first, second = features.chunk(2)
        return diagnostics(first, second, world) | signs


def build_dino(method: schema.DINO, views: schema.Views, parts: Parts) -> DINO:
    head = DINOHead(
        parts.encoder.widths[-1],
        hidden=method.hidden,
        bottleneck=method.bottleneck,
        prototypes=method.prototypes,
        norm=method.head_norm,
    )
    return DINO(
        parts.encoder,
        multi_crop(method, asymmetric(views, method.blur, method.solarize), views, parts.encoder, method.local_blur),
        head,
        student_temperature=method.student_temperature,
        teacher_temperature=method.teacher_temperature,
        teacher_temperature_start=method.teacher_temperature_start,
        teacher_warmup_epochs=method.teacher_warmup_epochs,
        center_momentum=method.center_momentum,
        momentum=method.momentum,
        momentum_end=method.momentum_end,
        freeze_last_epochs=method.freeze_last_epochs,
        export=method.export,
    )
