"""`pretune predict`: segment a folder of images with the best model of a study, here or by workers on Ray Data."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pretune.errors import ModelError
from pretune.model.predict import Mask, Model, colored, load_model, logits_of, mask_of, overlay, prepare
from pretune.model.tiles import tiled_mask
from pretune.trainables.data.decode import read_image
from pretune.trainables.data.errors import BadFileError, printable
from pretune.trainables.data.image_files import (
    NOT_A_FILE,
    SUFFIXES,
    ImageFiles,
    by_suffix,
    composed,
    image_files,
    not_read,
)
from pretune.trainables.data.listing import Reading

_BATCH = 16  # images read together and put through the network together
_READERS = 2  # threads


@dataclass(frozen=True)
class How:
    """Options of segmenting a folder.

    tile: None resizes every image whole to the model's size, as in training. A number cuts squares of so many px out of
        the image at its own resolution and segments each: for images much larger than those of the study, in which
        things are as many px large as in the study's own images when these are `tile` px.
    """

    overlays: bool = True
    device: str = "auto"  # auto, cpu, cuda
    tile: int | None = None  # px
    overlap: float = 0.25  # of a tile, shared by neighbours
    workers: int = 1  # more: so many processes on Ray Data
    address: str | None = None  # of a Ray cluster; None: this machine


class Predicted(NamedTuple):
    """Result of a folder: count of segmented images, and the reason for each that failed, by name."""

    done: int
    failed: dict[str, str]


Item = tuple[str, str]  # an image's path, and its name below masks/ and overlays/


def predict_folder(study: Path, images: Path, out: Path, how: How, console: Console) -> Predicted:
    """Write out/masks/NAME.png (class indices) and out/overlays/NAME.jpg for every image below `images`.

    Raises ModelError for a model, device or folder that cannot be used; a bad image is named and left out.
    """
    device = pick_device(how.device)
    model = load_model(study, device)
    if len(model.shape) == 4:
        volumes = f"({', '.join(map(str, model.shape))})"
        raise ModelError(
            f"the best model of {study} takes volumes {volumes}, not images: export it to use it elsewhere"
        )
    paths = find_images(images, out)
    names = output_names(paths.images, images)
    write_classes(model, out)
    if ignored := not_read(by_suffix(paths.others)):
        console.print(printable(ignored), highlight=False, markup=False, soft_wrap=True)
    items = [(str(path), name) for path, name in names.items()]
    going = _by_workers(study, items, out, how) if how.workers > 1 else _here(model, items, out, how)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    causes = {str(path): NOT_A_FILE for path in paths.irregular}
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("segmenting", total=len(items))
        for path, cause in going:
            bar.advance(task)
            causes |= {path: cause} if cause else {}
    everything = sorted([*paths.images, *paths.irregular])
    failed = {path.relative_to(images).as_posix(): causes[str(path)] for path in everything if str(path) in causes}
    return Predicted(len(everything) - len(failed), failed)


def find_images(images: Path, out: Path) -> ImageFiles:
    """Image files below a folder as training lists them, without what an earlier run wrote to `out`.

    Raises ModelError where there are none, or the folder may not be read.
    """
    ours = [os.path.realpath(out / part) for part in ("masks", "overlays")]

    def others(files: Sequence[Path]) -> list[Path]:
        return [path for path in files if not any(_below(path, folder) for folder in ours)]

    try:
        found = ImageFiles(*map(others, image_files(images)))
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read ({error.strerror}): check the path") from error
    if not found.images and not found.irregular:
        raise ModelError(f"{images} holds no images ({', '.join(sorted(SUFFIXES))}): check the path")
    return found


def _below(path: Path, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def output_names(paths: Sequence[Path], images: Path) -> dict[Path, str]:
    """Path -> its name below `images` without the ending; with it, where two files would get one name.

    Names that differ in case or Unicode form alone count as one: there are disks to which they are. Whoever keeps its
    ending may meet a file of that name without one (a.jpg and a.jpg.png), which then keeps its own.
    """
    whole = {path: path.relative_to(images).as_posix() for path in paths}
    chosen = {path: path.relative_to(images).with_suffix("").as_posix() for path in paths}
    while True:
        times = Counter(_key(name) for name in chosen.values())
        twice = {path for path, name in chosen.items() if times[_key(name)] > 1 and name != whole[path]}
        if not twice:
            return chosen
        chosen |= {path: whole[path] for path in twice}


def _key(name: str) -> str:
    return composed(name).casefold()


def write_classes(model: Model, out: Path) -> None:
    """classes.json: mask value -> class name."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {str(number): name for number, name in enumerate(model.classes)}
        (out / "classes.json").write_text(json.dumps(names, indent=1), encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror}): choose another output folder") from error


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or another name PyTorch knows. Raises ModelError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"--device {name}: there is no such device; use auto, cpu or cuda") from error


# ------------------------------------------------------------------------------------------------------------ work


def _here(model: Model, items: Sequence[Item], out: Path, how: How) -> Iterator[tuple[str, str]]:
    size = batch_size(how)
    for first in range(0, len(items), size):
        part = items[first : first + size]
        causes = segment(model, part, out, how)
        yield from ((path, cause) for (path, _), cause in zip(part, causes, strict=True))


def batch_size(how: How) -> int:
    """Images that are in memory together: one where they are so large that they come in tiles."""
    return _BATCH if how.tile is None else 1


def segment(model: Model, items: Sequence[Item], out: Path, how: How) -> list[str]:
    """Write the masks of some images; for each "", or what is wrong with its file."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(functools.partial(_read, model.reading), (path for path, _ in items)))
    images = [image for image in found if isinstance(image, Image.Image)]
    masks = iter(_masks(model, images, how))
    for (_, name), image in zip(items, found, strict=True):
        if isinstance(image, Image.Image):
            mask = next(masks)
            _save(colored(mask, model.background), out / "masks" / f"{name}.png")
            if how.overlays:
                _save(overlay(image, mask, model.background), out / "overlays" / f"{name}.jpg")
    return [image if isinstance(image, str) else "" for image in found]


def _masks(model: Model, images: Sequence[Image.Image], how: How) -> Iterator[Mask]:
    if how.tile is not None:
        yield from (tiled_mask(model, image, how.tile, how.overlap) for image in images)
    elif images:
        logits = logits_of(model, [prepare(model, image) for image in images])
        yield from (mask_of(model, scores, image.size) for image, scores in zip(images, logits, strict=True))


def _read(reading: Reading, path: str) -> Image.Image | str:
    """The image as the study's were read, or what is wrong with its file."""
    try:
        return read_image(Path(path), reading=reading)
    except BadFileError as error:
        return str(error)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)  # what a PNG does not know it ignores


# --------------------------------------------------------------------------------------------------------- Ray Data


class Worker:
    """One process of many: its own copy of the model, one CPU, or one GPU where the device is one."""

    def __init__(self, study: str, out: str, how: How) -> None:
        torch.set_num_threads(1)
        self.model = load_model(Path(study), pick_device(how.device))
        self.out, self.how = Path(out), how

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        items = [(str(path), str(name)) for path, name in zip(batch["path"], batch["name"], strict=True)]
        return {"path": batch["path"], "cause": np.array(segment(self.model, items, self.out, self.how), dtype=object)}


def _by_workers(study: Path, items: Sequence[Item], out: Path, how: How) -> Iterator[tuple[str, str]]:
    """Paths go to the workers; images and masks go through the file system, never through Ray's object store."""
    from pretune.cluster.ray_data import Pool, run_in_pool

    rows = [{"path": str(Path(path).resolve()), "name": name, "asked": path} for path, name in items]
    asked = {row["path"]: row["asked"] for row in rows}
    pool = Pool(how.workers, batch_size(how), how.address, on_gpus=pick_device(how.device).type == "cuda")
    arguments = (str(study.resolve()), str(out.resolve()), how)
    for row in run_in_pool(Worker, arguments, rows, pool, blocks=len(rows) // (4 * _BATCH)):
        yield asked[str(row["path"])], str(row["cause"])
