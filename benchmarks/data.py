"""Images per second from disk and from the cache, and views per second, beside what people use otherwise.

    python -m benchmarks.data --data <folder that holds oxford-iiit-pet> [--device cuda]

Same images, same cores. The first part reads the photographs of Oxford-IIIT Pet at 128 px: our first decode into the
cache, and in turns epochs over the cache, of the stream (Ray Data), and of torch's DataLoader over torchvision.datasets
with the same resizing; once on the files as they are, and, if those are small, once on a copy enlarged to the original
photographs' size. Batches are uint8, as our loops take them; as float32 they are given beside.
The second part makes SimCLR views (64 px of 128; crop, flip, jitter, grey, blur) on batches in memory: ours, kornia
(batched, parameters per sample) and torchvision v2 (image by image, which is how its parameters are per sample).

Figures: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kornia
import kornia.augmentation as kaug
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms import v2

from pretune.cluster.tune import start_ray, stop_ray
from pretune.search_spaces import schema
from pretune.trainables.data import sources
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.views.two_views import make_views

CACHE, SIZE, BATCH = 128, 64, 256  # px, px, images
RECIPE = schema.Views(size=SIZE, gray=0.2, blur=0.5)
BLUR = (7, (0.1, 2.0))  # a tenth of the view, made odd; sigma
REPEATS = 3
TURNS = 3
EPOCHS = 8  # of a turn, one after the other, as in training; what starting costs is shared by them


# --------------------------------------------------------------------------------------------------- reading images


def reading(data: Path, count: int, workers: int) -> dict[str, float]:
    """Images per second: cold decode, and epochs of the resident copy, of the stream and of DataLoader, in uint8.

    The three epochs take turns, so that what else the machine does hits all of them; the median of each is given.
    """
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        held = load_images(pets(count), data, Path(cache))
        cold = count / (time.perf_counter() - start)
        start = time.perf_counter()
        load_images(pets(count), data, Path(cache))
        again = time.perf_counter() - start
        streaming = pets(count).model_copy(update={"source": "streaming"})
        stream = sources.open_set(streaming, content_digest(streaming, data), data, Path(cache), workers)
        loader, float_loader = (pets_loader(data, count, workers, as_float) for as_float in (False, True))
        epochs: dict[str, Callable[[], object]] = {
            "resident": lambda: epochs_of(held),
            "resident, as float": lambda: epochs_of(held, as_float=True),
            "streaming": lambda: epochs_of(stream),
            "DataLoader": lambda: [consumed(batch for batch, _ in loader) for _ in range(EPOCHS)],
            "DataLoader, as float": lambda: [consumed(batch for batch, _ in float_loader) for _ in range(EPOCHS)],
        }
        rates = in_turns(epochs, EPOCHS * count)
        stream.close()
    ratios = {f"{name} / DataLoader": rates[name] / rates["DataLoader"] for name in ("resident", "streaming")}
    ratios["resident / DataLoader, as float"] = rates["resident, as float"] / rates["DataLoader, as float"]
    return {"cold decode": cold} | rates | ratios | {"reopening, s": again}


def pets(count: int) -> schema.ImageFolder:
    """The photographs alone, as DataLoader reads them too."""
    root = "oxford-iiit-pet/images"
    return schema.ImageFolder(dataset="image-folder", root=root, cache_size=CACHE, limit=count)


def in_turns(runs: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Median rate per second of each over TURNS turns, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + TURNS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(taken[1:]) for name, taken in seconds.items()}


def enlarged(data: Path, count: int, folder: Path) -> Path:
    """The first `count` trainval pets at the size that most of the original photographs have, 500 x 375 px."""
    root, copy = data / "oxford-iiit-pet", folder / "oxford-iiit-pet"
    for part in ("images", "annotations/trimaps"):
        (copy / part).mkdir(parents=True)
    lines = (root / "annotations" / "trainval.txt").read_text().splitlines()[:count]
    (copy / "annotations" / "trainval.txt").write_text("\n".join(lines))
    (copy / "annotations" / "test.txt").write_text("")
    for name in (line.split()[0] for line in lines):
        image, mask = f"images/{name}.jpg", f"annotations/trimaps/{name}.png"
        Image.open(root / image).resize((500, 375), Image.Resampling.BICUBIC).save(copy / image, quality=90)
        Image.open(root / mask).resize((500, 375), Image.Resampling.NEAREST).save(copy / mask)
    return folder


def epochs_of(held: ImageSet, as_float: bool = False) -> float:
    """Every image EPOCHS times, shuffled, as the training loops take them: uint8 batches; views convert them."""
    random = np.random.default_rng(0)
    orders = [random.permutation(len(held.images)) for _ in range(EPOCHS)]
    held.coming(orders, BATCH)
    parts = (order[i : i + BATCH] for order in orders for i in range(0, len(order), BATCH))
    planes = (torch.from_numpy(held.images[part]).permute(0, 3, 1, 2) for part in parts)
    return consumed(batch.float().div_(255) if as_float else batch for batch in planes)


def pets_loader(data: Path, count: int, workers: int, as_float: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    """Its processes stay for all epochs, which is not the default and helps it."""
    last = [v2.ToDtype(torch.float32, scale=True)] if as_float else []
    resize = v2.Compose([v2.ToImage(), v2.Resize((CACHE, CACHE)), *last])
    listed = OxfordIIITPet(str(data), split="trainval", transform=resize)
    chosen = Subset(listed, range(count))
    return DataLoader(chosen, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=True)


def consumed(batches: Iterator[Tensor]) -> float:
    return sum(float(batch[0, 0, 0, 0]) for batch in batches)


# ------------------------------------------------------------------------------------------------------------ views


def viewing(pixels: Tensor) -> dict[str, float]:
    """Views per second on uint8 (B, H, W, 3), two views of every image."""
    indices, planes = np.arange(len(pixels)), pixels.permute(0, 3, 1, 2).contiguous()
    theirs, each = kornia_recipe().to(pixels.device), torchvision_recipe()

    def ours() -> None:
        make_views(pixels, indices, RECIPE, 0, 0)

    def kornia_views() -> None:
        unit = planes.float().div(255)
        for _ in range(2):
            theirs(unit)

    def torchvision_views() -> None:
        for _ in range(2):
            torch.stack([each(image) for image in planes])

    makers = {"ours": ours, "kornia": kornia_views, "torchvision v2 per image": torchvision_views}
    return {name: fastest(make, 2 * len(pixels), device=pixels.device) for name, make in makers.items()}


def kornia_recipe() -> torch.nn.Module:
    strength = (0.8, 0.8, 0.8, 0.2)
    return kaug.AugmentationSequential(
        kaug.RandomResizedCrop((SIZE, SIZE), scale=RECIPE.crop, ratio=RECIPE.aspect),
        kaug.RandomHorizontalFlip(p=RECIPE.flip),
        kaug.ColorJitter(*strength, p=RECIPE.color_jitter_probability),
        kaug.RandomGrayscale(p=RECIPE.gray),
        kaug.RandomGaussianBlur((BLUR[0], BLUR[0]), BLUR[1], p=RECIPE.blur),
        data_keys=["input"],
    )


def torchvision_recipe() -> v2.Compose:
    """Without antialiasing, as ours and kornia's default."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=RECIPE.crop, ratio=RECIPE.aspect, antialias=False),
            v2.RandomHorizontalFlip(RECIPE.flip),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=RECIPE.color_jitter_probability),
            v2.RandomGrayscale(RECIPE.gray),
            v2.RandomApply([v2.GaussianBlur(*BLUR)], p=RECIPE.blur),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


# ------------------------------------------------------------------------------------------------------------ parts


def fastest(run: Callable[[], object], count: int, repeats: int = REPEATS, device: torch.device | None = None) -> float:
    """The best rate per second of some runs after one to warm up: on a shared machine the least disturbed one."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        run()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return count / min(seconds[1:])


def rounded(rates: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{rate:.3g}") for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-views", action="store_true", help="Only the first part.")
    parser.add_argument("--out", type=Path, help="Also write the result to this JSON file.")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)

    start_ray(None, cores)
    read = {"files as they are": rounded(reading(arguments.data, arguments.images, cores))}
    with tempfile.TemporaryDirectory() as folder:
        large = enlarged(arguments.data, arguments.images // 2, Path(folder))
        read["files of 500 x 375 px"] = rounded(reading(large, arguments.images // 2, cores))
    stop_ray()
    result: dict[str, object] = {"images per second": read}
    if not arguments.skip_views:
        result |= views_result(arguments.device)
    result |= {
        "machine": f"{platform.processor() or platform.machine()}, {cores} cores, views on {arguments.device}",
        "load": os.getloadavg()[0],
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, kornia, np)},
    }
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def views_result(device: str) -> dict[str, object]:
    pixels = torch.randint(0, 256, (BATCH, CACHE, CACHE, 3), dtype=torch.uint8, device=device)
    seen = viewing(pixels)
    better = max(rate for name, rate in seen.items() if name != "ours")
    return {
        "views per second": {name: round(rate) for name, rate in seen.items()},
        "ours over the better": round(seen["ours"] / better, 2),
    }


if __name__ == "__main__":
    main()
