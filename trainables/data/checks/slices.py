"""One slice of a volume as an image, to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def telling_slice(mask: NDArray[np.uint8]) -> int:
    """The slice of (D, H, W) with the most foreground, which is all but class 0; the middle one where there is none."""
    counts = ((mask > 0) & (mask < 255)).sum(axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(mask) // 2


def slice_image(volume: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """Slice `at` of a grey volume (D, H, W, 1) as (H, W, 3)."""
    return np.repeat(volume[at], 3, axis=-1)


def shown(
    image: NDArray[np.uint8], mask: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """An image and its mask as they are; of a volume (D, H, W, 1) its telling slice, or the middle one without mask."""
    if image.ndim == 3:
        return image, mask
    at = len(image) // 2 if mask is None else telling_slice(mask)
    return slice_image(image, at), None if mask is None else mask[at]
