"""Region and depth maps of images that are already decoded, computed once and kept beside them.

Regions: Felzenszwalb and Huttenlocher (2004) and SLIC (Achanta et al. 2012) from scikit-image, which need no weights.
SAM and HQ-SAM (see `segment_anything`) with weights of the user's own.
Depth: MiDaS, DPT, Depth Anything and their like through transformers, with weights of the user's own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.segment_anything import sam_maps

if TYPE_CHECKING:
    import torch

MAPS_RECIPE = 1  # raised whenever the same images and settings would give other maps
CHUNK = 64  # images of one task
BATCH = 16  # images of one forward pass
EXTRA = "pip install 'pretune[maps]'"

Regions = schema.Felzenszwalb | schema.SLIC | schema.SAM
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")  # of a model of transformers
Chunk = NDArray[np.uint8]  # (B, S, S, 3)


# ---------------------------------------------------------------------------------------------------------- regions


def region_maps(
    images: NDArray[np.uint8], settings: Regions, data_root: Path | None = None, padded: bool = False
) -> Iterator[NDArray[np.uint16]]:
    """(N, S, S, 3) -> chunks of (B, S, S), regions numbered from 1 in every image. Raises DataError.

    With `padded`, the black bars beside a fitted image are in no region (0): else views would be cut from them.
    """
    found = _region_maps(images, settings, data_root)
    if not padded:
        yield from found
        return
    first = 0
    for chunk in found:
        pixels = images[first : first + len(chunk)]
        yield np.stack([_without_bars(regions, image) for regions, image in zip(chunk, pixels, strict=True)])
        first += len(chunk)


def _without_bars(regions: NDArray[np.uint16], image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Regions (S, S) numbered anew, 0 in the rows and columns at the edges that are black all along (S, S, 3)."""
    lit = image.max(-1) > 0
    rows, columns = np.flatnonzero(lit.max(1)), np.flatnonzero(lit.max(0))
    inside = np.zeros(regions.shape, np.bool_)
    if len(rows):
        inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return _closed(np.where(inside, regions, 0))


def _closed(regions: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Numbers 0 and some above -> 0, 1, 2, ... in their order."""
    values, inverse = np.unique(regions, return_inverse=True)
    ranks = np.arange(len(values)) + (0 if values[0] == 0 else 1)
    return ranks.astype(np.uint16)[inverse].reshape(regions.shape)


def _region_maps(images: NDArray[np.uint8], settings: Regions, data_root: Path | None) -> Iterator[NDArray[np.uint16]]:
    """Large sets are worked on by one process for each core: scikit-image holds the interpreter."""
    if isinstance(settings, schema.SAM):
        _require("transformers", "region maps by SAM")
        yield from sam_maps(images, settings, region_weights(settings, data_root)[0].parent, BATCH)
        return
    _require("skimage", "region maps")
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    if len(chunks) < 4:
        yield from (regions_of(chunk, settings) for chunk in chunks)
        return
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(regions_of, map(np.asarray, chunks), [settings] * len(chunks))


def regions_of(images: Chunk, settings: Regions) -> NDArray[np.uint16]:
    """The maps of a few images, (B, S, S)."""
    cut = _felzenszwalb if settings.name == "felzenszwalb" else _slic
    return np.stack([numbered(cut(image, settings)) for image in images])


def numbered(regions: NDArray[np.integer[Any]]) -> NDArray[np.uint16]:
    """Any numbers (S, S) -> 1, 2, 3, ... in the order of the first pixel of each region."""
    _, first, inverse = np.unique(regions.ravel(), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint16)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1)
    return rank[inverse].reshape(regions.shape)


def _felzenszwalb(image: NDArray[np.uint8], settings: Any) -> NDArray[np.integer[Any]]:
    from skimage.segmentation import felzenszwalb

    found: NDArray[np.integer[Any]] = felzenszwalb(
        image, scale=settings.scale, sigma=settings.sigma, min_size=settings.min_size, channel_axis=-1
    )
    return found


def _slic(image: NDArray[np.uint8], settings: Any) -> NDArray[np.integer[Any]]:
    from skimage.segmentation import slic

    found: NDArray[np.integer[Any]] = slic(
        image, n_segments=settings.segments, compactness=settings.compactness, start_label=1, channel_axis=-1
    )
    return found


# ------------------------------------------------------------------------------------------------------------ depth


def depth_weights(settings: schema.Depth, data_root: Path | None) -> list[Path]:
    """The files that decide a depth map. Raises DataError naming what is expected and where to get it."""
    return _weights(settings.weights, data_root, "depth maps", "Intel/dpt-hybrid-midas", "another depth model")


def region_weights(settings: schema.SAM, data_root: Path | None) -> list[Path]:
    """The files that decide SAM's regions. Raises DataError naming what is expected and where to get it."""
    other = "syscv-community/sam-hq-vit-base or another SAM or HQ-SAM"
    return _weights(settings.weights, data_root, "region maps by SAM", "facebook/sam-vit-base", other)


def _weights(weights: str, data_root: Path | None, what: str, example: str, other: str) -> list[Path]:
    folder = (data_root or Path()) / Path(weights).expanduser()
    needed = [folder / name for name in FILES]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise DataError(
            f"{what}: {', '.join(missing)} expected in {folder}; fetch them with "
            f"`hf download {example} --local-dir {folder}` or from {other} of transformers"
        )
    return needed


def depth_maps(
    images: NDArray[np.uint8], settings: schema.Depth, data_root: Path | None
) -> Iterator[NDArray[np.float16]]:
    """(N, S, S, 3) -> chunks of (B, S, S), every image from 0 (nearest) to 1 (farthest). Raises DataError."""
    folder = depth_weights(settings, data_root)[0].parent
    predict = _depth_model(folder)
    for i in range(0, len(images), BATCH):
        yield normalised(predict(np.array(images[i : i + BATCH])), settings.output == "disparity")


def normalised(depth: NDArray[np.float32], disparity: bool) -> NDArray[np.float16]:
    """(B, S, S) of any unit and offset -> [0, 1] in each image, 0 near. An even map becomes 0.

    MiDaS gives disparities up to an unknown scale and shift, while P5's threshold is one number for all images.
    """
    low, high = depth.min(axis=(1, 2), keepdims=True), depth.max(axis=(1, 2), keepdims=True)
    span = np.where(high > low, high - low, 1)
    share: NDArray[np.float32] = (high - depth) / span if disparity else (depth - low) / span
    return share.astype(np.float16)


def _depth_model(folder: Path) -> Callable[[Chunk], NDArray[np.float32]]:
    _require("transformers", "depth maps")
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    device = "cuda" if torch.cuda.is_available() else "cpu"
    load_processor: Callable[..., Any] = AutoImageProcessor.from_pretrained  # it has no types of its own
    try:
        processor = load_processor(folder, local_files_only=True)
        model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise DataError(f"depth maps: {folder} holds no depth model that transformers can load ({error})") from error
    model.eval().to(device)

    def predict(images: Chunk) -> NDArray[np.float32]:
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode():
            depth = model(pixel_values=pixels).predicted_depth.float()
        return _resized(depth, images.shape[1]).cpu().numpy()

    return predict


def _resized(depth: torch.Tensor, size: int) -> torch.Tensor:
    from torch.nn import functional

    return functional.interpolate(depth[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def _require(module: str, what: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise DataError(f"{what} need {module}, which is not installed: {EXTRA}")
