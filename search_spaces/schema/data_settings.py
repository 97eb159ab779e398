"""Settings that every data set has, and those of its region and depth maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from pretune.search_spaces.schema.base import Settings
from pretune.search_spaces.schema.splits import Split, undivided


class Felzenszwalb(Settings):
    """Regions by Felzenszwalb and Huttenlocher's graph (2004), on the cached images."""

    name: Literal["felzenszwalb"]
    scale: PositiveFloat = 200.0  # larger: larger regions
    sigma: Annotated[float, Field(ge=0)] = 0.8  # px of the blur before
    min_size: PositiveInt = 50  # px


class SLIC(Settings):
    """Superpixels (Achanta et al. 2012), on the cached images."""

    name: Literal["slic"]
    segments: PositiveInt = 16  # about how many
    compactness: PositiveFloat = 10.0  # larger: squarer


class SAM(Settings):
    """Segment Anything or HQ-SAM through transformers: the coarsest of the masks of a grid of points (P4)."""

    name: Literal["sam"]
    weights: str  # folder with config.json, preprocessor_config.json and model.safetensors, relative to --data if given
    points_per_side: PositiveInt = 32  # of the grid
    min_iou: Annotated[float, Field(ge=0, le=1)] = 0.88  # that the model predicts for a mask
    min_stability: Annotated[float, Field(ge=0, le=1)] = 0.95  # IoU of the mask cut higher and lower


Regions = Annotated[Felzenszwalb | SLIC | SAM, Field(discriminator="name")]


class Depth(Settings):
    """Depth by a model of transformers (MiDaS, DPT, Depth Anything, ...), to [0, 1] in each image, 0 near."""

    weights: str  # folder with config.json, preprocessor_config.json and model.safetensors, relative to --data if given
    output: Literal["disparity", "depth"] = "disparity"  # what it predicts: larger is nearer (MiDaS), or farther


class DataSettings(Settings):
    """Settings that every data set has."""

    split: Annotated[Split, BeforeValidator(undivided)] = Split()  # or none: all images are for pretraining
    limit: PositiveInt | None = None  # use a random subset of this many images (drawn with split.seed)
    cache_size: PositiveInt = 128  # px; images are decoded once to this square, whatever size the views have
    fit: Literal["squash", "pad", "crop", "tile"] = "squash"  # into a square, or (tile) into squares of full resolution
    on_error: Literal["fail", "skip"] = "fail"  # a bad file stops the study, or is excluded and recorded
    regions: Regions | None = None  # region maps, computed once; scenes have exact ones unless this is given
    depth: Depth | None = None  # depth maps, computed once; scenes have exact ones unless this is given
    source: Literal["auto", "resident", "streaming"] = (
        "auto"  # decoded once and mapped, or anew in every epoch (same digits)
    )
    shuffle_window: PositiveInt | None = (
        None  # images shuffled together: a set in shards is read nearly in its order; default: all
    )

    @model_validator(mode="before")
    @classmethod
    def _tiles_together(cls, values: Any) -> Any:
        """Tiles of one image are of one part: they are a group unless another is named."""
        if not isinstance(values, Mapping) or values.get("fit") != "tile":
            return values
        split = values.get("split", {})
        if not isinstance(split, Mapping) or "group" in split or ("file" in split and "fold" in split):
            return values
        return {**values, "split": {**split, "group": {"pattern": "(.*)"}}}
