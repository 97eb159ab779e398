"""Views whose recipes differ: BYOL's two asymmetric views, and multi-crop's large and small ones."""

from __future__ import annotations

from pretune.search_spaces import schema
from pretune.trainables.models.interface import Encoder

Pair = tuple[float, float]


def asymmetric(views: schema.Views, blur: Pair | None, solarize: Pair) -> tuple[schema.Views, ...]:
    """Two recipes that differ in how likely blur and solarisation are (BYOL, table 6); None keeps `views.blur`."""
    first, second = blur or (views.blur, views.blur)
    return (
        views.model_copy(update={"blur": first, "solarize": solarize[0]}),
        views.model_copy(update={"blur": second, "solarize": solarize[1]}),
    )


def multi_crop(
    method: schema.DINO | schema.SwAV,
    large: tuple[schema.Views, ...],
    views: schema.Views,
    encoder: Encoder,
    blur: float | None,
) -> tuple[schema.Views, ...]:
    """The large views, and the small ones that a method asks for.

    Raises ValueError where the encoder cannot take so small an image.
    """
    if method.local_views and method.local_size < encoder.strides[-1]:
        raise ValueError(
            f"{method.name}: local_size {method.local_size} px is below {encoder.strides[-1]}, what this encoder needs"
        )
    return with_local(large, views, method.local_views, method.local_size, method.local_crop, blur)


def with_local(
    large: tuple[schema.Views, ...], views: schema.Views, count: int, size: int, crop: Pair, blur: float | None
) -> tuple[schema.Views, ...]:
    """The large views, then `count` small ones of `size` px that show the share `crop` of the image (SwAV, 3.3)."""
    small = views.model_copy(update={"size": size, "crop": crop, "blur": views.blur if blur is None else blur})
    return (*large, *[small] * count)
