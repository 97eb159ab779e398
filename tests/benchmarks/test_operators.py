"""A step waits for nothing, uploads from page-locked memory alone, and launches no more operators than it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import operators
from benchmarks.operators import FINETUNINGS, META, PRETRAININGS, counting
from pretune.trainables.upload import upload

MOST = {  # operators of the views and maps, and of the update
    "barlow-twins": (41, 236),
    "byol": (41, 358),
    "classification": (37, 75),
    "conrec": (38, 657),
    "dino": (79, 409),
    "genesis": (37, 164),
    "mae": (37, 130),
    "moco": (38, 547),
    "moco-v3": (41, 368),
    "pixelcl": (41, 600),
    "pixelcl++": (41, 708),
    "reconstruction": (37, 263),
    "samclr": (38, 121),
    "segmentation": (37, 171),
    "simclr": (38, 121),
    "swav": (76, 376),
    "vicreg": (41, 299),
    "mae by pixels": (37, 149),
    "simclr with all extras": (73, 121),
    "simclr with LARS on ResNet-50": (38, 471),
    "fine-tuning": (18, 154),
    "fine-tuning with crops": (66, 154),
    "fine-tuning with every augmentation and class weights": (168, 177),
}
AUGMENTED = "fine-tuning with every augmentation and class weights"
MOST_UPLOADS = {"conrec": 23, "reconstruction": 12, "genesis": 11, AUGMENTED: 10}  # corruptions: one for each kind
UPLOADS = 4


@pytest.mark.parametrize("case", [*PRETRAININGS, *FINETUNINGS])
def test_a_step_does_not_wait_and_launches_no_more_than_it_did(case: str) -> None:
    parts = operators.count(case, 64)
    step = parts["step"]
    assert (step.reads, step.blocking) == (0, 0)
    assert step.uploads <= MOST_UPLOADS.get(case, UPLOADS)
    batch, update = MOST[case]
    assert parts["batch"].operators <= batch
    assert parts["update"].operators <= update


def test_reads_and_uploads_are_seen() -> None:
    with counting() as mode, mode.part("here"):
        x = torch.zeros(3, device=META)
        float(x.sum())
        x.cpu()
        x.add_(1).mul_(2)
        torch.ones(3).to(META)
        upload(np.ones(3), META)
        torch.tensor([1.0, 2.0], device=META)
    here = mode.parts["here"]
    assert (here.reads, here.uploads, here.blocking) == (2, 3, 2)
    assert here.names == {"zeros": 1, "sum": 1, "add_": 1, "mul_": 1}
    assert here.operators == 4
