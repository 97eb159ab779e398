"""Views whose recipes differ: BYOL's two asymmetric views, and multi-crop's large and small ones."""

from __future__ import annotations

from pretune.search_spaces import schema

Pair = tuple[float, float]
Range = tuple[float, float]


def asymmetric(views: schema.Views, blur: Pair | None, solarize: Pair) -> tuple[schema.Views, ...]:
    """Two recipes that differ in how likely blur and solarisation are (BYOL, table 6); None keeps `views.blur`."""
    first, second = blur or (views.blur, views.blur)
    return (
        views.model_copy(update={"blur": first, "solarize": solarize[0]}),
        views.model_copy(update={"blur": second, "solarize": solarize[1]}),
    )


def with_local(
    large: tuple[schema.Views, ...], views: schema.Views, count: int, size: int, crop: Range, blur: float | None
) -> tuple[schema.Views, ...]:
    """The large views, then `count` small ones of `size` px that show the share `crop` of the image (SwAV, 3.3)."""
    small = views.model_copy(update={"size": size, "crop": crop, "blur": views.blur if blur is None else blur})
    return (*large, *[small] * count)
