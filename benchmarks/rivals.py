"""One cell of P2's Table 2 as people write it by hand, for `benchmarks.whole_study`: no code of Pretune's loops.

The network, the split and the numbers of the study are Pretune's, so that the work is the same; data loading, views,
losses, loops and scores are torch's, torchvision's, Lightly's and scikit-learn's. Images lie decoded in memory, which
is better than the files that most scripts read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pretune.trainables.models.unet import Decoder, Encoder, UNet

WIDTHS, SIZE, CLASSES, TEMPERATURE = (8, 16, 32, 64), 64, 3, 0.2


Loss = Callable[[Tensor, Tensor], Tensor]  # of both views' projections


@dataclass(frozen=True)
class Work:
    """The numbers of the study that both sides share."""

    epochs: int  # of pretraining
    batch: int
    lr: float
    tune_epochs: int
    tune_batch: int
    tune_lr: float


@dataclass(frozen=True)
class Cell:
    frozen: bool
    skip: bool
    labels: int  # how many images


@dataclass(frozen=True)
class Pets:
    """Images (N, 3, 128, 128) and masks (N, 64, 64), uint8, and who is for what at a seed."""

    images: Tensor
    masks: Tensor
    train: Tensor
    test: Tensor
    order: Tensor  # the training images, the labelled first: `order[:labels]` are a cell's


class Views(Dataset[tuple[Tensor, ...]]):
    """Two random views of each training image."""

    def __init__(self, images: Tensor, view: Callable[[Any], Any]) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image = self.images[index]
        return self.view(image), self.view(image)


def torchvision_view() -> Callable[[Any], Any]:
    """The study's recipe: crop (0.08, 1), flip, colour jitter of strength 1."""
    jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
    crop = v2.RandomResizedCrop(SIZE, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.ToDtype(torch.float32, scale=True)])


def pretrain(
    work: Work, pets: Pets, view: Callable[[Any], Any], loss_of: Loss, head: nn.Module, workers: int
) -> Encoder:
    """SimCLR with Adam on the training images."""
    encoder = Encoder(WIDTHS)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], work.lr)
    loader = DataLoader(
        Views(pets.images[pets.train], view),
        batch_size=work.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for _ in range(work.epochs):
        for first, second in loader:
            z = head(encoder(torch.cat([first, second]))[-1].mean(dim=(2, 3)))
            loss = loss_of(*z.chunk(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder


def nt_xent(z0: Tensor, z1: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    n = len(z0)
    similarity = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e9)
    return F.cross_entropy(similarity, torch.cat([torch.arange(n) + n, torch.arange(n)]))


def projection() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTHS[-1], 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, 128)
    )


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks at the size of fine-tuning."""

    def __init__(self, images: Tensor, masks: Tensor) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.masks[index]


def finetune(work: Work, pets: Pets, small: Tensor, cell: Cell, encoder: Encoder) -> UNet:
    """Soft dice over the batch, Adam; `small` are the images (N, 3, 64, 64) in [0, 1], resized once."""
    network = UNet(encoder, Decoder(WIDTHS, cell.skip), CLASSES)
    encoder.requires_grad_(not cell.frozen)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], work.tune_lr)
    chosen = pets.order[: cell.labels]
    loader = DataLoader(Pairs(small[chosen], pets.masks[chosen]), min(work.tune_batch, len(chosen)), shuffle=True)
    network.train()
    if cell.frozen:
        encoder.eval()
    for _ in range(work.tune_epochs):
        for image, mask in loader:
            tuning_step(network, optimizer, image, mask)
    return network.eval()


def tuning_step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, mask: Tensor) -> None:
    p = network(image).softmax(dim=1)
    g = F.one_hot(mask.long(), CLASSES).permute(0, 3, 1, 2).float()
    overlap, total = (p * g).sum(dim=(0, 2, 3)), (p + g).sum(dim=(0, 2, 3))
    loss = 1 - (2 * overlap / total).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def test_jaccard(network: UNet, pets: Pets, small: Tensor) -> float:
    predicted = torch.cat([network(part).argmax(dim=1) for part in small[pets.test].split(64)])
    truth = pets.masks[pets.test]
    return float(jaccard_score(truth.flatten().numpy(), predicted.flatten().numpy(), average="macro"))


def resized(images: Tensor) -> Tensor:
    """(N, 3, 128, 128) uint8 -> (N, 3, 64, 64) in [0, 1], antialiased."""
    return F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", antialias=True) / 255


def open_pets(folder: Path, seed: int) -> Pets:
    """Return the results of `whole_study` for a seed."""
    names = ("images", "masks", f"train{seed}", f"test{seed}", f"order{seed}")
    return Pets(*(torch.from_numpy(np.load(folder / f"{name}.npy")) for name in names))


# ------------------------------------------------------------------------------------- (c) a sequential script


def script(folder: Path, work: Work, cells: list[Cell], seeds: int, shared: bool, workers: int) -> list[dict[str, Any]]:
    """Cell by cell, seed by seed: a pretraining for each, or one per seed where `shared` by hand."""
    rows = []
    for seed in range(seeds):
        pets = open_pets(folder, seed)
        small, kept = resized(pets.images), None
        for cell in cells:
            torch.manual_seed(seed)
            began = time.perf_counter()
            if kept is None or not shared:
                encoder = pretrain(work, pets, torchvision_view(), nt_xent, projection(), workers)
                kept = {name: value.clone() for name, value in encoder.state_dict().items()}
            encoder = Encoder(WIDTHS)
            encoder.load_state_dict(kept)
            pretrained = time.perf_counter()
            network = finetune(work, pets, small, cell, encoder)
            value = test_jaccard(network, pets, small)
            ended = time.perf_counter()
            row = {"seed": seed, "jaccard": value, "pretrain": pretrained - began, "finetune": ended - pretrained}
            rows.append(vars(cell) | row)
    return rows


# ------------------------------------------------------------- (b) Ray Tune, OptunaSearch, Repeater, Ray Train


def train_per_worker(config: dict[str, Any]) -> None:
    """Training of the one worker of a `TorchTrainer`: Lightly's SimCLR, then fine-tuning."""
    import ray.train
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    work, cell = Work(**config["work"]), Cell(**config["cell"])
    pets = open_pets(Path(config["folder"]), config["seed"])
    view = SimCLRTransform(input_size=SIZE, random_gray_scale=0.0, gaussian_blur=0.0, normalize=None)
    to_image = v2.ToPILImage()  # Lightly's transforms take what LightlyDataset gives: PIL images
    began = time.perf_counter()
    encoder = pretrain(
        work,
        pets,
        lambda image: view.transforms[0](to_image(image)),
        NTXentLoss(TEMPERATURE),
        SimCLRProjectionHead(WIDTHS[-1], 512, 128),
        config["workers"],
    )
    pretrained = time.perf_counter()
    small = resized(pets.images)
    value = test_jaccard(finetune(work, pets, small, cell, encoder), pets, small)
    parts = {"pretrain": pretrained - began, "finetune": time.perf_counter() - pretrained}
    ray.train.report({"jaccard": value} | parts | vars(cell) | {"seed": config["seed"]})


def drive(config: dict[str, Any]) -> None:
    """A trial: a `TorchTrainer` of one worker, its report handed to Tune (Ray's guide to Train under Tune)."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    cell = {"frozen": config["freeze"], "skip": config["skip"], "labels": config["labels"]}
    TorchTrainer(
        train_per_worker,
        train_loop_config=config["fixed"] | {"cell": cell, "seed": int(config["__trial_index__"])},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=f"trial-{time.time_ns()}", storage_path=config["storage"], callbacks=[TuneReportCallback()]
        ),
    ).fit()


def tuned(folder: Path, work: Work, first: list[Cell], seeds: int, cores: int) -> list[dict[str, Any]]:
    """The first trials of the study: `first` cells in order, each `seeds` times, `cores` trials at once."""
    import ray
    from ray import tune
    from ray.tune.search import Repeater
    from ray.tune.search.optuna import OptunaSearch

    # two CPUs a trial, one of them for its driver, which does nothing: declared double so that no core is idle
    ray.init(address="local", num_cpus=2 * cores, include_dashboard=False, log_to_driver=False)
    points = [{"freeze": cell.frozen, "skip": cell.skip, "labels": cell.labels} for cell in first]
    space = {"freeze": tune.choice([False, True]), "skip": tune.choice([True, False])}
    fixed = {"folder": str(folder), "work": vars(work), "workers": 0}
    space |= {
        "labels": tune.choice(sorted({cell.labels for cell in first})),
        "fixed": fixed,
        "storage": str(folder / "ray"),
    }
    found = tune.Tuner(
        drive,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="jaccard",
            mode="max",
            search_alg=Repeater(OptunaSearch(points_to_evaluate=points), repeat=seeds),
            num_samples=len(first) * seeds,
            max_concurrent_trials=cores,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    ).fit()
    rows = []
    for result in found:
        if result.error is not None:
            raise result.error
        assert result.metrics is not None
        names = ("frozen", "skip", "labels", "seed", "jaccard", "pretrain", "finetune")
        rows.append({name: result.metrics[name] for name in names} | {"trial": result.metrics["time_total_s"]})
    ray.shutdown()
    return rows
