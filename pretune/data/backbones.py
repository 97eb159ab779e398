"""Check of timm's backbones and of packages of weights that a study asks for: whether they are there, found out before
anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pretune.errors import ModelError
from pretune.search_spaces import schema, space
from pretune.search_spaces.packaged_weights import PACKAGED_WEIGHTS
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.rules import extremes


class Network(NamedTuple):
    """A backbone of timm and the model that suits it."""

    backbone: str  # timm's name
    name: str  # of the model
    stride: int
    image_size: int | None  # px of all stages, of a backbone that is tied to one size
    weights: str | None = None  # source of a stage `weights`

    def multiple(self, size: int) -> int:
        """The largest size up to `size` px that it takes; of two places on a side, for batch norm of one image."""
        return self.image_size or max(2 * self.stride, size // self.stride * self.stride)


IMAGENET = Network("tf_efficientnet_lite0", "timm-unet", 32, None, "package:efficientnet-lite0")


def check_backbones(study: Study) -> None:
    """Raises ModelError for a backbone that timm does not have, or that cannot be an encoder."""
    cells = [cell for cell in study.cells if any(backbones(space.to_plain(cell.template.get("model"))))]
    if not cells:
        return
    from pretune.trainables.models.timm_unet import BackboneError, backbone_of, levels  # imports torch

    models = {cell.configuration(suggest).model for cell in cells for suggest in extremes(cell)}
    wanted = {backbone_of(model) for model in models if isinstance(model, schema.TimmUNet | schema.ViTPyramid)}
    for backbone in sorted(wanted, key=str):
        try:
            levels(backbone)
        except BackboneError as error:
            raise ModelError(f"model.backbone: {error}") from None


def network_of(backbone: str) -> Network:
    """The model that suits a backbone of timm, for `pretune init`. Raises ModelError where there is none."""
    from pretune.trainables.models.timm_unet import BackboneError, levels, suited

    try:
        found = suited(backbone)
    except BackboneError as error:
        raise ModelError(f"--backbone: {error}") from None
    name = "vit-pyramid" if found.plain else "timm-unet"
    return Network(backbone, name, levels(found).strides[-1], found.image_size)


def check_packaged_weights(study: Study) -> None:
    """Raises WeightsError for weights of a package (`source: package:NAME`) that is not installed."""
    wanted = {name for cell in study.cells for name in packages(space.to_plain(cell.template.get("pretrain")))}
    if not wanted:
        return
    from pretune.trainables.methods.weights import packaged_file

    for name in sorted(wanted):
        packaged_file(PACKAGED_WEIGHTS[name])


def packages(settings: Any) -> Iterator[str]:
    """Every package of weights in the settings of pretrainings, those inside a range too."""
    if isinstance(settings, str) and settings.startswith("package:"):
        yield settings.removeprefix("package:")
    elif isinstance(settings, list | Mapping):
        for part in settings if isinstance(settings, list) else settings.values():
            yield from packages(part)


def backbones(model: Any) -> Iterator[str]:
    """Every backbone in the settings of a model, those inside a range too."""
    if isinstance(model, list):
        for option in model:
            yield from backbones(option)
    elif isinstance(model, Mapping):
        for key, value in model.items():
            if key == "backbone":
                yield from [value] if isinstance(value, str) else value["choice"]
            else:
                yield from backbones(value)
