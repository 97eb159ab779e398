"""Random views for joint-embedding methods: SimCLR's augmentation, and P1's additions to it.

Every parameter is drawn per sample, as a function of (seed, epoch, image, view), on the host. Pixels are made here on a
CPU, and by `device` on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.upload import constant
from pretune.trainables.views import color, device, geometry, volumes
from pretune.trainables.views.drawn import Drawn, Step, View, blur_kernel
from pretune.trainables.views.extra import EXTRAS, NO_SOLARIZE, SOLARIZE_THRESHOLD, apply_solarize
from pretune.trainables.views.random import Draw, FloatArray, IntArray, uniforms
from pretune.trainables.views.regions import draw_windows

BLUR_SIGMA = (0.1, 2.0)  # px (SimCLR)
NO_BLUR = 1e-3  # px

CPU_BLOCK = 32  # samples; at 64 px within 10 % of the fastest of 4 to 256, and 3 MB of float32 at 128 px


def make_views(
    images: Tensor, indices: IntArray, settings: schema.Views, seed: int, epoch: int, views: int = 2
) -> list[View]:
    """Views of uint8 images (B, H, W, C), on the images' device.

    `indices` (B,) names the images: a view depends on its image's index and not on its place in the batch. Crops are
    resized without antialiasing. The order is fixed: crop and flip, colour jitter, grey, blur, solarize, then
    elastic, rotation, posterize, solarize of `settings.extra`, whatever their order there. `boxes` follow neither the
    (sub-pixel) elastic displacement nor a rotation.
    """
    return views_of(images, indices, [settings] * views, seed, epoch)


def views_of(
    images: Tensor,
    indices: IntArray,
    recipes: Sequence[schema.Views],
    seed: int,
    epoch: int,
    region_table: NDArray[np.integer[Any]] | None = None,
) -> list[View]:
    """The same with settings of its own for each view: asymmetric views, or large and small crops.

    `region_table` (B, K, 5), of `regions.region_table`, is for recipes whose views lie `within` a region: all such
    views of an image lie in the same one. Raises ValueError where it is needed and missing.
    Of volumes (B, D, H, W, 1) every view is the whole: a tensor of (B, 1, D, H, W).
    """
    if images.ndim == 5:
        whole = constant((0.0, 0.0, 1.0, 1.0), images.device, torch.float32).expand(len(images), 4)
        straight = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return [View(volumes.voxels(images), whole, straight) for _ in recipes]
    _check(images, indices)
    planes = images.permute(0, 3, 1, 2)  # uint8; the memory stays channels last
    which = uniforms(seed, "views/region", epoch, indices, 0, 1)[:, 0]  # the same for every view
    drawn = [
        draw_view(_drawing(seed, epoch, indices, i), _windows(planes, region_table, which, recipe), recipe)
        for i, recipe in enumerate(recipes)
    ]
    sizes = [recipe.size for recipe in recipes]
    if runs_here(images):
        return [_make_view(planes, view, size) for view, size in zip(drawn, sizes, strict=True)]
    return on_device(planes, drawn, sizes)


def runs_here(images: Tensor) -> bool:
    """Whether the host makes the pixels."""
    return images.device.type == "cpu"


def on_device(planes: Tensor, drawn: Sequence[Drawn], sizes: Sequence[int]) -> list[View]:
    """Views of uint8 images (B, 3, H, W) on an accelerator, those of one size together; the order stays."""
    made: dict[int, View] = {}
    for size in dict.fromkeys(sizes):
        numbers = [i for i, other in enumerate(sizes) if other == size]
        made |= zip(numbers, device.render(planes, [drawn[i] for i in numbers], size), strict=True)
    return [made[i] for i in range(len(sizes))]


def _windows(
    planes: Tensor, table: NDArray[np.integer[Any]] | None, which: FloatArray, settings: schema.Views
) -> NDArray[np.int64]:
    """Return the box in which each image's crop may lie, (B, 4) px."""
    count, _, height, width = planes.shape
    if settings.within == "image":
        return np.broadcast_to(np.array((0, 0, height, width)), (count, 4))
    if table is None:
        raise ValueError("views within a region need a region map, which this data set does not have")
    return draw_windows(table, which, height, width, settings)


def _check(images: Tensor, indices: IntArray) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (B, H, W, C), got {images.dtype} {tuple(images.shape)}")
    if indices.shape != (len(images),):
        raise ValueError(f"indices must name the {len(images)} images of the batch, got shape {indices.shape}")


def _drawing(seed: int, epoch: int, indices: IntArray, view: int) -> Draw:
    """One stream per transform, so that switching one on leaves the others' draws as they were."""
    return lambda purpose, count: uniforms(seed, f"views/{purpose}", epoch, indices, view, count)


def draw_view(draw: Draw, windows: NDArray[np.int64], settings: schema.Views) -> Drawn:
    """One view of each image, whose crops lie in `windows` (B, 4) px."""
    boxes = geometry.crop_boxes_within(draw("crop", geometry.CROP_DRAWS), windows, settings.crop, settings.aspect)
    flipped = draw("flip", 1)[:, 0] < settings.flip
    return Drawn(boxes, flipped, [*_photometric(draw, settings), *_extra(draw, settings)])


def _make_view(planes: Tensor, drawn: Drawn, size: int) -> View:
    """The view on a CPU."""
    (count, channels, height, width), boxes, flipped = planes.shape, drawn.boxes, drawn.flipped
    pixels = torch.empty((count, channels, size, size), device=planes.device, memory_format=torch.channels_last)
    for rows in _blocks(count):
        x = geometry.crop_resize(planes[rows], _tensor(boxes[rows]), _tensor(flipped[rows]), size)
        x.div_(255)
        for step in drawn.steps:
            x = _apply(step, rows, x)
        pixels[rows] = x
    shares = (boxes / np.array((height, width, height, width))).astype(np.float32)
    return View(pixels, _tensor(shares), _tensor(flipped))


def _blocks(count: int) -> list[slice]:
    """A few samples go through all transforms before the next few, so that they stay in the cache."""
    return [slice(start, min(start + CPU_BLOCK, count)) for start in range(0, count, CPU_BLOCK)]


def _apply(step: Step, rows: slice, x: Tensor) -> Tensor:
    """Transforms the chosen among the samples `rows` of the batch; `x` (b, 3, S, S) holds these and may be changed."""
    chosen = np.flatnonzero(step.chosen[rows])
    if len(chosen) == 0:
        return x
    parameters = _tensor(step.parameters[rows][chosen])
    if len(chosen) == len(x):
        return step.transform(x, parameters)
    where = _tensor(chosen)
    return x.index_copy_(0, where, step.transform(x.index_select(0, where), parameters))


def _photometric(draw: Draw, settings: schema.Views) -> Iterator[Step]:
    if settings.color_jitter > 0:
        strength, saturation, hue = settings.color_jitter, settings.color_jitter_saturation, settings.color_jitter_hue
        factors = jitter_factors(draw("jitter", 4), strength, saturation, hue)
        yield _step("jitter", jitter, draw("jitter?", 1), settings.color_jitter_probability, factors, (1, 1, 1, 0))
    if settings.gray > 0:
        chance = draw("gray?", 1)
        yield _step("gray", lambda x, _: color.to_gray(x), chance, settings.gray, np.ones_like(chance), 0.0)
    if settings.blur > 0:
        low, high = BLUR_SIGMA
        sigma = low + (high - low) * draw("blur", 1)
        yield _step("blur", blur, draw("blur?", 1), settings.blur, sigma, NO_BLUR)
    if settings.solarize > 0:
        chance = draw("plain solarize?", 1)
        given = settings.solarize_threshold
        threshold = np.full_like(chance, SOLARIZE_THRESHOLD if given is None else given)
        yield _step("plain solarize", apply_solarize, chance, settings.solarize, threshold, NO_SOLARIZE)


def _extra(draw: Draw, settings: schema.Views) -> Iterator[Step]:
    fixed = {"posterize": settings.posterize_bits, "solarize": settings.solarize_threshold}
    for name, extra in EXTRAS.items():
        if name in settings.extra:
            chance, count = draw(f"{name}?", 1), extra.draws(settings.size)
            parameters = extra.parameters(draw(name, count) if count else chance)
            if (given := fixed.get(name)) is not None:
                parameters = np.full_like(parameters, given)
            yield _step(name, extra.transform, chance, settings.extra_probability, parameters, extra.unchanged)


def _step(
    name: str,
    transform: Callable[[Tensor, Tensor], Tensor],
    chance: FloatArray,
    probability: float,
    parameters: FloatArray,
    unchanged: float | tuple[float, ...],
) -> Step:
    """Applied where `chance` (B, 1) is below `probability`."""
    return Step(name, transform, chance[:, 0] < probability, parameters.astype(np.float32), unchanged)


def jitter_factors(draws: FloatArray, strength: float, saturation: float = 1.0, hue: float | None = None) -> FloatArray:
    """Factors (B, 4) of brightness, contrast, saturation and the shift of hue, from draws (B, 4) in [0, 1).

    torchvision's ColorJitter(0.8 s, 0.8 s, 0.8 s, 0.2 s): uniform in [max(0, 1 - 0.8 s), 1 + 0.8 s], hue in ±0.2 s. The
    third 0.8 is multiplied by `saturation`; `hue`, where given, takes the place of 0.2 s.
    """
    spread, turn = 0.8 * strength * np.array((1.0, 1.0, saturation)), 0.2 * strength if hue is None else hue
    low: FloatArray = np.append(np.maximum(0.0, 1 - spread), -turn)
    high: FloatArray = np.append(1 + spread, turn)
    return low + (high - low) * draws


def jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue by factors (B, 4), in this order.

    torchvision draws the order anew for every image; a batch would fall into 24 groups, each with four passes of its
    own. This is the order of the TensorFlow pseudo-code in SimCLR's appendix A, where shuffling is left optional.
    """
    x = color.adjust_brightness(x, factors[:, 0])
    x = color.adjust_contrast(x, factors[:, 1])
    x = color.adjust_saturation(x, factors[:, 2])
    return color.adjust_hue(x, factors[:, 3])


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur by sigma (B, 1) in px."""
    return color.gaussian_blur(x, sigma[:, 0], blur_kernel(x.shape[-1]))


def _tensor(values: NDArray[np.generic]) -> Tensor:
    """With the array's own type."""
    return torch.from_numpy(np.ascontiguousarray(values))
