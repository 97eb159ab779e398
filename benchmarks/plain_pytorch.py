"""The cell "unfrozen, skip, most labels" of pets_freeze_skip.yaml as people write it by hand.

    python -m benchmarks.plain_pytorch --data <folder that holds oxford-iiit-pet>

Same U-Net, same images and splits, same epochs; but torchvision's transforms image by image, a DataLoader, a
SimCLR loss and a dice loss written out here, PyTorch's global random state, and scikit-learn's Jaccard. It shares no
training code with Pretune, so that agreement of the two says something about Pretune.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import jaccard_score
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.rivals import tuning_step
from pretune.search_spaces.resolve import load as load_study
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split
from pretune.trainables.models.heads import ProjectionHead
from pretune.trainables.models.unet import Decoder, Encoder, UNet

WIDTHS, SIZE, CLASSES = (8, 16, 32, 64), 64, 3


def pretrain(images: torch.Tensor, epochs: int) -> Encoder:
    """SimCLR at temperature 0.2, Adam 1e-3, batch 128; images (N, 3, H, W) uint8."""
    jitter = v2.RandomApply([v2.ColorJitter(0.64, 0.64, 0.64, 0.16)], p=0.8)
    view = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            jitter,
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    encoder, head = Encoder(WIDTHS), ProjectionHead(WIDTHS[-1], 512, 128)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-3)
    pairs = [(image, image) for image in images]
    loader = DataLoader(
        pairs,  # type: ignore[arg-type]
        batch_size=128,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda batch: torch.stack([view(a) for a, _ in batch] + [view(b) for _, b in batch]),
    )
    for _ in range(epochs):
        for views in loader:
            z = F.normalize(head(encoder(views)[-1]), dim=1)
            n = len(z) // 2
            similarity = (z @ z.T / 0.2).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e9)
            loss = F.cross_entropy(similarity, torch.cat([torch.arange(n) + n, torch.arange(n)]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder


def finetune(encoder: Encoder, images: torch.Tensor, masks: torch.Tensor, epochs: int) -> UNet:
    """Soft dice over the batch, Adam 2e-3, batch 16."""
    network = UNet(encoder, Decoder(WIDTHS, True), CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    pairs = list(zip(images, masks, strict=True))
    loader = DataLoader(pairs, batch_size=16, shuffle=True)  # type: ignore[arg-type]
    network.train()
    for _ in range(epochs):
        for image, mask in loader:
            tuning_step(network, optimizer, image.float() / 255, mask)
    return network.eval()


@torch.no_grad()
def test_jaccard(network: UNet, images: torch.Tensor, masks: torch.Tensor) -> float:
    predicted = torch.cat([network(part.float() / 255).argmax(dim=1) for part in images.split(64)])
    return float(jaccard_score(masks.flatten().numpy(), predicted.flatten().numpy(), average="macro"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study = load_study(Path(__file__).parents[1] / "search_spaces/studies/pets_freeze_skip.yaml")
    settings = study.cells[0].configuration()
    data = load_images(settings.data["pets"], arguments.data, arguments.cache)
    assert data.masks is not None
    assert settings.finetune is not None
    pixels = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2).contiguous()
    masks = torch.from_numpy(np.array(data.masks))
    scores, began = [], time.monotonic()
    for seed in range(arguments.seeds):
        split = draw_split(len(pixels), settings.data["pets"].split, seed, data.official_test)
        torch.manual_seed(seed)
        encoder = pretrain(pixels[split.train], settings.pretrain[0].epochs or 0)
        network = finetune(encoder, pixels[split.train], masks[split.train], settings.finetune.epochs or 0)
        scores.append(test_jaccard(network, pixels[split.test], masks[split.test]))
        print(f"seed {seed}: test Jaccard {scores[-1]:.4f}, {time.monotonic() - began:.0f} s so far", flush=True)
    truth = masks[split.test].flatten().numpy()
    commonest = np.full_like(truth, np.bincount(truth).argmax())
    print(f"plain PyTorch: {statistics.fmean(scores):.4f} ± {statistics.stdev(scores):.4f} (n={len(scores)})")
    print(f"most frequent class: {jaccard_score(truth, commonest, average='macro'):.4f}")


if __name__ == "__main__":
    main()
