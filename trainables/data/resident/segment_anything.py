"""Region maps by SAM (Kirillov et al., ICCV 2023) or HQ-SAM (Ke et al., NeurIPS 2023), with weights of the user's own.

A grid of points is asked for masks; those with a high predicted IoU and a stable border are kept, and of overlapping
ones the coarsest (`coarsest`), as P4 does. Both models run through transformers' mask generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError

Masks = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]  # (S, S, 3) -> (K, S, S)


def coarsest(masks: NDArray[np.bool_], inside: float = 0.5) -> NDArray[np.uint16]:
    """Overlapping masks (K, H, W), as SAM gives them, to one map (H, W) of the coarsest: 0 none, 1.. from the largest.

    Taken from the largest down, a mask is dropped where at least `inside` of it lies in those already taken; of one
    that is kept, what was free is its region. Masks without a pixel are dropped.
    """
    areas = masks.sum(axis=(1, 2))
    regions = np.zeros(masks.shape[1:], np.uint16)
    for number in np.argsort(-areas, kind="stable"):
        free = masks[number] & (regions == 0)
        if areas[number] > 0 and free.sum() > (1 - inside) * areas[number]:
            regions[free] = regions.max() + 1
    return regions


def sam_maps(images: NDArray[np.uint8], settings: schema.SAM, folder: Path, chunk: int) -> Iterator[NDArray[np.uint16]]:
    """(N, S, S, 3) -> chunks of (B, S, S): the coarsest masks, numbered from 1; 0 is none. Raises DataError."""
    masks_of = mask_model(settings, folder)
    for i in range(0, len(images), chunk):
        yield np.stack([coarsest(masks_of(np.array(image))) for image in images[i : i + chunk]])


def mask_model(settings: schema.SAM, folder: Path) -> Masks:
    """SAM or HQ-SAM, whichever the folder holds."""
    import torch
    from PIL import Image
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForMaskGeneration, pipeline

    load_config: Callable[..., Any] = AutoConfig.from_pretrained  # these have no types of their own
    load_processor: Callable[..., Any] = AutoImageProcessor.from_pretrained
    try:
        kind = load_config(folder, local_files_only=True).model_type
        if kind not in ("sam", "sam_hq"):
            raise ValueError(f"it holds a {kind}")
        model = AutoModelForMaskGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        processor = load_processor(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"region maps: {folder} holds no SAM that transformers can load ({error})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generate: Any = pipeline("mask-generation", model=model.eval(), image_processor=processor, device=device)

    def masks_of(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        found = generate(
            Image.fromarray(image),
            points_per_crop=settings.points_per_side,
            points_per_batch=settings.points_per_side**2 // 4 or 1,
            pred_iou_thresh=settings.min_iou,
            stability_score_thresh=settings.min_stability,
        )["masks"]
        return (
            np.stack([np.asarray(mask, np.bool_) for mask in found])
            if len(found)
            else np.zeros((0, *image.shape[:2]), bool)
        )

    return masks_of
