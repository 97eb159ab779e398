"""Lightly's methods as its documentation writes them, on a backbone and with sizes that are given.

docs.lightly.ai, "Models": per method its transform, its heads, its loss, and momentum encoders that are updated before
the forward. Transforms are Lightly's, with strengths that `recipes` of `benchmarks.throughput` has too; nothing is
normalised on either side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform, MoCoV2Transform, SimCLRTransform, SwaVTransform
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import Tensor, nn

SIZE, LOCAL_SIZE, LOCAL_VIEWS = 64, 32, 6  # px, px, views
PROTOTYPES = {"dino": 4096, "swav": 512}
LOCAL_CROP = (0.05, 0.14)


def transform(name: str) -> Callable[[Any], list[Tensor]]:
    """PIL image -> views."""
    if name == "simclr":
        return SimCLRTransform(input_size=SIZE, normalize=None)
    if name == "moco":
        return MoCoV2Transform(input_size=SIZE, normalize=None)
    if name == "byol":
        first = BYOLView1Transform(input_size=SIZE, normalize=None)
        return BYOLTransform(first, BYOLView2Transform(input_size=SIZE, normalize=None))
    if name == "dino":
        return DINOTransform(
            global_crop_size=SIZE,
            global_crop_scale=(0.14, 1.0),
            local_crop_size=LOCAL_SIZE,
            local_crop_scale=LOCAL_CROP,
            n_local_views=LOCAL_VIEWS,
            normalize=None,
        )
    return SwaVTransform(crop_sizes=(SIZE, LOCAL_SIZE), crop_counts=(2, LOCAL_VIEWS), normalize=None)


class SimCLR(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = heads.SimCLRProjectionHead(features, 512, 128)
        self.criterion = NTXentLoss(temperature=0.2)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(x)) for x in views)
        return self.criterion(z0, z1)


class MoCo(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = heads.MoCoProjectionHead(features, 512, 128)
        self.backbone_momentum, self.head_momentum = copy.deepcopy(backbone), copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(4096, 128))

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, 0.99)
        update_momentum(self.projection_head, self.head_momentum, 0.99)
        query = self.projection_head(self.backbone(views[0]))
        key = self.head_momentum(self.backbone_momentum(views[1])).detach()
        return self.criterion(query, key)


class BYOL(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = heads.BYOLProjectionHead(features, 1024, 256)
        self.prediction_head = heads.BYOLPredictionHead(256, 1024, 256)
        self.backbone_momentum, self.head_momentum = copy.deepcopy(backbone), copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, 0.99)
        update_momentum(self.projection_head, self.head_momentum, 0.99)
        p0, p1 = (self.prediction_head(self.projection_head(self.backbone(x))) for x in views)
        z0, z1 = (self.head_momentum(self.backbone_momentum(x)).detach() for x in views)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class DINO(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.student_backbone = backbone
        self.student_head = heads.DINOProjectionHead(features, 512, 256, PROTOTYPES["dino"], batch_norm=True)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = heads.DINOProjectionHead(features, 512, 256, PROTOTYPES["dino"], batch_norm=True)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=PROTOTYPES["dino"])

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        update_momentum(self.student_backbone, self.teacher_backbone, 0.99)
        update_momentum(self.student_head, self.teacher_head, 0.99)
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher_backbone(x)) for x in views[:2]]
        student = [self.student_head(self.student_backbone(x)) for x in views]
        return self.criterion(teacher, student, epoch=0)


class SwAV(nn.Module):
    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = heads.SwaVProjectionHead(features, 512, 128)
        self.prototypes = heads.SwaVPrototypes(128, n_prototypes=PROTOTYPES["swav"])
        self.criterion = SwaVLoss()

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        self.prototypes.normalize()
        projected = [nn.functional.normalize(self.projection_head(self.backbone(x)), dim=1, p=2) for x in views]
        scores = [self.prototypes(x) for x in projected]
        return self.criterion(scores[:2], scores[2:])


METHODS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "dino": DINO,
    "swav": SwAV,
}
