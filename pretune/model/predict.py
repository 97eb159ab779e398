"""The best model of a study, and what it makes of one image of any size.

An image goes the way the study's images went: fitted to the square in which they were cached, then resized to the
model's size. Logits, not masks, are resized back, so that edges stay smooth at the image's own resolution.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pretune.errors import ModelError
from pretune.model.spans import Span, bands_of, spans, stacked
from pretune.search_spaces import schema
from pretune.trainables.data.checks.contact_sheets import class_color
from pretune.trainables.data.decode.fitting import fit_bands
from pretune.trainables.data.decode.images import Bands, in_color, read_bands
from pretune.trainables.data.listing import Reading
from pretune.trainables.models.table import build_unet
from pretune.trainables.views.joint import evaluation_batch
from pretune.trainables.windows import bands as rows_of
from pretune.trainables.windows import segmenting, slide

TILE_OVERLAP = 0.25  # of a tile, shared by neighbours
TILES_AT_ONCE = 16  # put through the network together
OVERLAY = 0.5  # share of the class colour in an overlay

Mask = NDArray[np.uint8]


class Prediction(NamedTuple):
    """Mask and probabilities of one image of `height` x `width` px."""

    mask: Mask  # (height, width) class indices
    probabilities: NDArray[np.float32]  # (classes, height, width), the softmax of the logits


@dataclass(frozen=True)
class Model:
    """A trained network in eval mode, and how images reach it."""

    network: nn.Module  # (B, C, size, size) in [0, 1] -> logits (B, classes, size, size)
    classes: tuple[str, ...]
    size: int  # px
    cache_size: int  # px of the square that images are first fitted to
    fit: Literal["squash", "pad", "crop", "tile"]
    card: dict[str, Any]  # the whole of best/model.json

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the network's input, without the batch: (C, size, size), or (1, slices, size, size) of a volume."""
        slices = self.card["data"].get("slices")
        return (
            (self.reading.channels or 3, self.size, self.size) if slices is None else (1, slices, self.size, self.size)
        )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the logits, without the batch."""
        return (len(self.classes), *self.shape[1:])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Phrases to read before it is used; () of a model that was kept before 2026-11-28."""
        return tuple(map(str, self.card.get("warnings", ())))

    @property
    def windows(self) -> schema.Evaluate | None:
        """Sliding windows, where the study scored by them."""
        asked = self.card.get("finetune", {}).get("evaluate")  # older cards have no settings
        return None if asked is None else schema.Evaluate.model_validate(asked)

    @property
    def reading(self) -> Reading:
        """The settings that the study's image files were read with; those of a published set plainly."""
        data, asked = self.card["data"], self.card["data"].get("value_range")
        percentiles = tuple(asked["percentiles"]) if isinstance(asked, dict) else None
        fixed = (
            tuple(tuple(one) if isinstance(one, list) else one for one in asked) if isinstance(asked, list) else None
        )
        background = data.get("background")
        laid_over = None if background is None else tuple(background)
        return Reading(fixed, percentiles, laid_over, data.get("page"), data.get("channels"))

    def predict(self, image: str | Path | Image.Image | NDArray[Any]) -> Prediction:
        """Segment one image of any size.

        Args:
            image: a file, a Pillow image, or an array: (H, W, 3) uint8 RGB, (H, W) grey or, for a
                model of other channels, (H, W, C), as a file would hold it.

        Raises:
            ModelError: the model takes volumes.
            pretune.trainables.data.errors.BadFileError: an image that cannot be read, or is none.
        """
        if len(self.shape) == 4:
            raise ModelError(f"this model takes volumes {self.shape}, not images")
        bands = self._bands(image)
        if self.fit == "tile" and self.windows is not None:
            scores = torch.cat(list(windowed_logits(self, bands)), dim=1)
        elif self.fit == "tile":
            scores = tiled_logits(self, bands)
        else:
            scores = resized_logits(self, logits_of(self, [prepare(self, bands)])[0], bands[0].size)
        return Prediction(scores.argmax(dim=0).to(torch.uint8).cpu().numpy(), scores.softmax(dim=0).cpu().numpy())

    def overlay(self, image: str | Path | Image.Image | NDArray[Any], mask: Mask) -> Image.Image:
        """The image as RGB with the colours of its mask (H, W) over it; the background is left as it is."""
        return overlay(in_color(self._bands(image)), mask, self.background)

    def _bands(self, image: str | Path | Image.Image | NDArray[Any]) -> Bands:
        return read_bands(Path(image) if isinstance(image, str) else image, reading=self.reading)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The RGB colour of each class in masks and overlays."""
        return tuple(class_color(number, self.background) for number in range(len(self.classes)))

    @property
    def background(self) -> int:
        """The class that is left uncoloured: the one of that name, else class 0."""
        return self.classes.index("background") if "background" in self.classes else 0


def load_model(study: Path, device: torch.device | None = None) -> Model:
    """The best model of a study's output folder. Raises ModelError where there is none, or it cannot be read."""
    folder = study / "best"
    if not (folder / "model.json").is_file():
        raise ModelError(
            f"{study} contains no best/model.json. The best model is chosen when a study ends: run the study again, "
            "which continues it"
        )
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        settings: schema.Model = TypeAdapter(schema.Model).validate_python(card["model"])
        size, cache_size, fit = int(card["input"]["size"]), int(card["data"]["cache_size"]), card["data"]["fit"]
        network = build_unet(settings, len(card["classes"]))
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, ValueError, ValidationError, RuntimeError, SafetensorError) as error:
        why = (str(error).splitlines() or [""])[0].rstrip(":")
        fix = "it is damaged or of another version of Pretune; run the study again"
        raise ModelError(f"{folder} cannot be used ({type(error).__name__}: {why}): {fix}") from error
    network.to(device or torch.device("cpu")).eval()
    return Model(network, tuple(card["classes"]), size, cache_size, fit, card)


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or another name PyTorch knows. Raises ModelError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda: PyTorch sees no GPU here; use cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name}: there is no such device; use auto, cpu or cuda") from error


# ------------------------------------------------------------------------------------------------------- one image


def prepare(model: Model, image: Image.Image | Bands) -> Mask:
    """An RGB image, or one for each channel -> uint8 (cache_size, cache_size, C), fitted as the study's images were.

    A study that took centre squares (`fit: crop`) gets the whole image padded to a square, so that every pixel is
    segmented and nothing is distorted.
    """
    bands = (image,) if isinstance(image, Image.Image) else image
    return fit_bands(bands, model.cache_size, "pad" if model.fit == "crop" else model.fit)


@torch.no_grad()
def logits_of(model: Model, squares: Sequence[Mask]) -> Tensor:
    """Prepared images, or volumes of the cache (D, S, S, 1) -> logits (B, classes, size, size) or (.., D, S, S).

    Of a model with sliding windows they are as large as the cache.
    """
    images = torch.from_numpy(np.stack(squares)).to(next(model.network.parameters()).device)
    if model.windows is not None:
        how = (model.size, model.windows, segmenting(model.network), TILES_AT_ONCE)
        return torch.stack([slide(image, *how) for image in images])
    pixels, _ = evaluation_batch(
        images, torch.zeros(images.shape[:-1], dtype=torch.uint8, device=images.device), model.size
    )
    logits: Tensor = model.network(pixels)
    return logits.float()


def mask_of(model: Model, logits: Tensor, size: tuple[int, int]) -> Mask:
    """Logits (classes, S, S) of one image -> class indices (height, width); `size` is PIL's (width, height)."""
    shape = (size[1], size[0])
    grid = _grid(model, size).to(logits.device) if model.fit in ("pad", "crop") else None
    best = torch.full(shape, -torch.inf, device=logits.device)
    found = torch.zeros(shape, dtype=torch.uint8, device=logits.device)
    for number, plane in enumerate(logits):  # class by class: large photographs with many classes stay affordable
        scores = _sampled(plane[None, None], shape, grid)[0, 0]
        higher = scores > best
        best, found = torch.where(higher, scores, best), found.masked_fill_(higher, number)
    return found.cpu().numpy()


def resized_logits(model: Model, logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (classes, S, S) -> (classes, height, width) of an image: what `mask_of` compares class by class."""
    grid = _grid(model, size).to(logits.device) if model.fit in ("pad", "crop") else None
    return _sampled(logits[None], (size[1], size[0]), grid)[0]


@torch.no_grad()
def windowed_logits(model: Model, bands: Bands) -> Iterator[Tensor]:
    """Logits of an image at its own resolution by sliding windows, from top to bottom: (classes, h, width) each.

    An image smaller than a window is continued in black, as the study's tiles were.
    """
    assert model.windows is not None
    pixels, device = stacked(bands), next(model.network.parameters()).device
    height, width = pixels.shape[:2]
    more = [(0, max(0, model.size - side)) for side in (height, width)]
    image = torch.from_numpy(np.pad(pixels, [*more, (0, 0)])).to(device)
    left = height
    for rows in rows_of(image, model.size, model.windows, segmenting(model.network), TILES_AT_ONCE):
        yield rows[:, :left, :width].cpu()
        left -= min(left, rows.shape[1])


def tiled_logits(model: Model, bands: Bands) -> Tensor:
    """Logits (classes, height, width) of an image of a model that was trained on tiles, by tiles of that size.

    They overlap by a quarter; each pixel is taken from the tile in which it lies further from the edge.
    """
    tile, pixels = model.cache_size, stacked(bands)
    height, width = pixels.shape[:2]
    found = torch.empty(len(model.classes), max(height, tile), max(width, tile))
    for y, x, logits in logits_of_tiles(model, pixels, tile, TILE_OVERLAP):
        own = resized_logits(model, logits, (tile, tile))
        found[:, y.own, x.own] = own[:, y.inside, x.inside].cpu()
    return found[:, :height, :width]


def logits_of_tiles(
    model: Model, pixels: NDArray[np.uint8], tile: int, overlap: float
) -> Iterator[tuple[Span, Span, Tensor]]:
    """Place and logits (classes, S, S) of each tile of an image (H, W, C), each segmented as an image of its own.

    An image smaller than a tile is continued by its mirror image, so that all things keep their size.
    """
    height, width = pixels.shape[:2]
    pixels = np.pad(pixels, [(0, max(0, tile - height)), (0, max(0, tile - width)), (0, 0)], mode="symmetric")
    places = [(y, x) for y in spans(pixels.shape[0], tile, overlap) for x in spans(pixels.shape[1], tile, overlap)]
    for first in range(0, len(places), TILES_AT_ONCE):
        part = places[first : first + TILES_AT_ONCE]
        cut = [bands_of(pixels[y.start : y.start + tile, x.start : x.start + tile], model.reading) for y, x in part]
        logits = logits_of(model, [prepare(model, square) for square in cut])
        yield from ((y, x, own) for (y, x), own in zip(part, logits, strict=True))


def _sampled(plane: Tensor, shape: tuple[int, int], grid: Tensor | None) -> Tensor:
    """(1, C, S, S) -> (1, C, height, width): the whole square, or the part of it that `grid` covers."""
    if grid is None:
        return F.interpolate(plane, shape, mode="bilinear")
    return F.grid_sample(plane, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _grid(model: Model, size: tuple[int, int]) -> Tensor:
    """Return the place of each pixel of an image in its padded square, in [-1, 1]: (1, height, width, 2)."""
    side = model.cache_size
    theta = torch.zeros(1, 2, 3)
    for axis, length in enumerate(size):
        inside = max(1, round(length * side / max(size)))  # as `pretune.trainables.data.decode.fitting` pads
        theta[0, axis, axis] = inside / side
        theta[0, axis, 2] = (2 * ((side - inside) // 2) + inside) / side - 1
    return F.affine_grid(theta, [1, 1, size[1], size[0]], align_corners=False)


def colored(mask: Mask, background: int = 0) -> Image.Image:
    """Class indices as a palette image: values are the classes, colours are for people, black for the background."""
    image = Image.fromarray(mask)
    image.putpalette([channel for number in range(256) for channel in class_color(number, background)])
    return image


def overlay(image: Image.Image, mask: Mask, background: int = 0) -> Image.Image:
    """The image with its mask's colours over it; the background is left as it is."""
    mixed = Image.blend(image, colored(mask, background).convert("RGB"), OVERLAY)
    return Image.composite(mixed, image, Image.fromarray((mask != background).astype(np.uint8) * 255))
