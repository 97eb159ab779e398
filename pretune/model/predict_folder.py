"""`pretune predict`: segment a folder of images with the best model of a study, here or by workers on Ray Data."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pretune.errors import ModelError
from pretune.model.coco import write_coco
from pretune.model.georeference import georeference, write_geotiff
from pretune.model.predict import Mask, Model, colored, load_model, logits_of, mask_of, overlay, pick_device, prepare
from pretune.model.tiles import tiled_mask, windowed_mask
from pretune.trainables.data.decode.images import TRANSPARENT, Bands, in_color, read_bands
from pretune.trainables.data.errors import BadFileError, printable
from pretune.trainables.data.image_files import (
    NOT_A_FILE,
    SUFFIXES,
    WITH_ARRAYS,
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

    tile: None resizes every image whole to the model's size, as in training; of a model that was trained on tiles
        (`fit: tile`) these are the default. A number cuts squares of so many px out of
        the image at its own resolution and segments each: for images much larger than those of the study, in which
        things are as many px large as in the study's own images when these are `tile` px.
    """

    overlays: bool = True
    device: str = "auto"  # auto, cpu, cuda
    tile: int | None = None  # px
    overlap: float = 0.25  # of a tile, shared by neighbours
    workers: int = 1  # more: so many processes on Ray Data
    address: str | None = None  # of a Ray cluster; None: this machine
    coco: bool = False  # also annotations.json
    one_by_one: bool = False  # images are as large as they come: one in memory at a time


class Predicted(NamedTuple):
    """Result of a folder: count of segmented images, and the reason for each that failed, by name."""

    done: int
    failed: dict[str, str]
    transparent: int = 0  # images segmented of which part was laid over black


class Segmented(NamedTuple):
    """Outcome of one image."""

    cause: str  # why its file cannot be used; "" where it was segmented
    transparent: bool  # whether part of it was laid over black


Item = tuple[str, str]  # an image's path, and its name below masks/ and overlays/


def predict_folder(study: Path, images: Path, out: Path, how: How, console: Console) -> Predicted:
    """Write out/masks/NAME.png (class indices) and out/overlays/NAME.jpg for every image below `images`;
    out/annotations.json if `how.coco`.

    Of a GeoTIFF out/masks/NAME.tif too, with its georeference.

    Raises ModelError for a model, device or folder that cannot be used; a bad image is named and left out.
    """
    device = pick_device(how.device)
    model = load_model(study, device)
    if len(model.shape) == 4:
        volumes = f"({', '.join(map(str, model.shape))})"
        raise ModelError(
            f"the best model of {study} takes volumes {volumes}, not images: export it to use it elsewhere"
        )
    how = for_model(how, model)
    paths = find_images(images, out, WITH_ARRAYS if model.reading.channels is not None else SUFFIXES)
    names = output_names(paths.images, images)
    write_classes(model, out)
    if ignored := not_read(by_suffix(paths.others)):
        console.print(printable(ignored), highlight=False, markup=False, soft_wrap=True)
    items = [(str(path), name) for path, name in names.items()]
    going = _by_workers(study, items, out, how) if how.workers > 1 else _here(model, items, out, how)
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    causes = {str(path): NOT_A_FILE for path in paths.irregular}
    transparent = 0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("segmenting", total=len(items))
        for path, one in going:
            bar.advance(task)
            causes |= {path: one.cause} if one.cause else {}
            transparent += one.transparent
    everything = sorted([*paths.images, *paths.irregular])
    failed = {path.relative_to(images).as_posix(): causes[str(path)] for path in everything if str(path) in causes}
    if how.coco:
        whole = {path.relative_to(images).as_posix(): name for path, name in names.items()}
        masks = {file: out / "masks" / f"{name}.png" for file, name in whole.items() if file not in failed}
        write_coco(masks, model.classes, model.background, out / "annotations.json")
    return Predicted(len(everything) - len(failed), failed, transparent)


def for_model(how: How, model: Model) -> How:
    """A model that was trained on tiles of its images segments new ones tile by tile too, or by its windows."""
    tiled = model.fit == "tile" and model.windows is None and how.tile is None
    return replace(how, tile=model.cache_size if tiled else how.tile, one_by_one=model.fit == "tile")


def find_images(images: Path, out: Path, suffixes: frozenset[str] = SUFFIXES) -> ImageFiles:
    """Image files below a folder as training lists them, without what an earlier run wrote to `out`.

    Raises ModelError where there are none, or the folder may not be read.
    """
    ours = [os.path.realpath(out / part) for part in ("masks", "overlays")]

    def others(files: Sequence[Path]) -> list[Path]:
        return [path for path in files if not any(_below(path, folder) for folder in ours)]

    try:
        found = ImageFiles(*map(others, image_files(images, suffixes)))
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read ({error.strerror}): check the path") from error
    if not found.images and not found.irregular:
        raise ModelError(f"{images} holds no images ({', '.join(sorted(suffixes))}): check the path")
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


# ------------------------------------------------------------------------------------------------------------ work


def _here(model: Model, items: Sequence[Item], out: Path, how: How) -> Iterator[tuple[str, Segmented]]:
    size = batch_size(how)
    for first in range(0, len(items), size):
        part = items[first : first + size]
        ended = segment(model, part, out, how)
        yield from ((path, one) for (path, _), one in zip(part, ended, strict=True))


def batch_size(how: How) -> int:
    """Images that are in memory together: one where they are so large that they come in tiles."""
    return _BATCH if how.tile is None and not how.one_by_one else 1


def segment(model: Model, items: Sequence[Item], out: Path, how: How) -> list[Segmented]:
    """Write the masks of some images; how each went."""
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(functools.partial(_read, model.reading), (path for path, _ in items)))
    images = [bands for bands in found if not isinstance(bands, str)]
    masks = iter(_masks(model, images, how))
    for (path, name), bands in zip(items, found, strict=True):
        if not isinstance(bands, str):
            mask = next(masks)
            _save(colored(mask, model.background), out / "masks" / f"{name}.png")
            if where := georeference(Path(path)):
                write_geotiff(out / "masks" / f"{name}.tif", mask, where)
            if how.overlays:
                _save(overlay(in_color(bands), mask, model.background), out / "overlays" / f"{name}.jpg")
    return [
        Segmented(bands, False) if isinstance(bands, str) else Segmented("", TRANSPARENT in bands[0].info)
        for bands in found
    ]


def _masks(model: Model, images: Sequence[Bands], how: How) -> Iterator[Mask]:
    if how.tile is not None:
        yield from (tiled_mask(model, image, how.tile, how.overlap) for image in images)
    elif model.fit == "tile":
        yield from (windowed_mask(model, image) for image in images)
    elif images:
        logits = logits_of(model, [prepare(model, image) for image in images])
        yield from (mask_of(model, scores, bands[0].size) for bands, scores in zip(images, logits, strict=True))


def _read(reading: Reading, path: str) -> Bands | str:
    """The image as the study's were read, or what is wrong with its file."""
    try:
        return read_bands(Path(path), reading=reading)
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
        self.out, self.how = Path(out), for_model(how, self.model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        items = [(str(path), str(name)) for path, name in zip(batch["path"], batch["name"], strict=True)]
        causes, transparent = zip(*segment(self.model, items, self.out, self.how), strict=True)
        return {"path": batch["path"], "cause": np.array(causes, object), "transparent": np.array(transparent)}


def _by_workers(study: Path, items: Sequence[Item], out: Path, how: How) -> Iterator[tuple[str, Segmented]]:
    """Paths go to the workers; images and masks go through the file system, never through Ray's object store."""
    from pretune.cluster.ray_data import Pool, run_in_pool

    rows = [{"path": str(Path(path).resolve()), "name": name, "asked": path} for path, name in items]
    asked = {row["path"]: row["asked"] for row in rows}
    pool = Pool(how.workers, batch_size(how), how.address, on_gpus=pick_device(how.device).type == "cuda")
    arguments = (str(study.resolve()), str(out.resolve()), how)
    for row in run_in_pool(Worker, arguments, rows, pool, blocks=len(rows) // (4 * _BATCH)):
        yield asked[str(row["path"])], Segmented(str(row["cause"]), bool(row["transparent"]))
