"""`pretune.load`: the best model of a study for programs, one image at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pretune.errors import ModelError
from pretune.model.predict import Mask, Model, load_model, logits_of, overlay, pick_device, prepare, resized_logits
from pretune.model.tiles import tiled_logits
from pretune.trainables.data.decode import Bands, in_color, read_bands

OVERLAP = 0.25  # of a tile, shared by neighbours: the default of `pretune predict`

AnyImage = str | Path | Image.Image | NDArray[Any]


class Prediction(NamedTuple):
    """Mask and probabilities of one image."""

    mask: Mask  # (height, width) class indices
    probabilities: NDArray[np.float32]  # (classes, height, width), the softmax of the logits


@dataclass(frozen=True)
class Predictor:
    """A model that segments single images."""

    model: Model

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by the values of a mask."""
        return self.model.classes

    def predict(self, image: AnyImage) -> Prediction:
        """Segment one image of any size, as `pretune predict` does: tile by tile if the study was (`fit: tile`).

        Args:
            image: a file, a Pillow image, or an array: (H, W, 3) uint8 RGB, (H, W) grey or, for a model of other
                channels, (H, W, C), as a file would hold it.

        Raises:
            pretune.trainables.data.errors.BadFileError: an image that cannot be read, or is none.
        """
        model, bands = self.model, self._bands(image)
        if model.fit == "tile":
            scores = tiled_logits(model, bands, model.cache_size, OVERLAP)
        else:
            scores = resized_logits(model, logits_of(model, [prepare(model, bands)])[0], bands[0].size)
        return Prediction(scores.argmax(dim=0).to(torch.uint8).cpu().numpy(), scores.softmax(dim=0).cpu().numpy())

    def overlay(self, image: AnyImage, mask: Mask) -> Image.Image:
        """The image as RGB with the colours of its mask (H, W) over it; the background is left as it is."""
        return overlay(in_color(self._bands(image)), mask, self.model.background)

    def _bands(self, image: AnyImage) -> Bands:
        return read_bands(Path(image) if isinstance(image, str) else image, reading=self.model.reading)


def load_predictor(folder: Path, device: str) -> Predictor:
    """The best model of a study's output folder, or of its best/. Raises ModelError, also for a model of volumes."""
    model = load_model(folder.parent if folder.name == "best" else folder, pick_device(device))
    if len(model.shape) == 4:
        raise ModelError(f"the model in {folder} takes volumes {model.shape}, not images")
    return Predictor(model)
