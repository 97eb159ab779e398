"""Check of timm's backbones and of packages of weights that a study asks for: whether they are there, found out before
anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pretune.errors import ModelError
from pretune.search_spaces import space
from pretune.search_spaces.packaged_weights import PACKAGED_WEIGHTS
from pretune.search_spaces.resolve import Study


def check_backbones(study: Study) -> None:
    """Raises ModelError for a backbone that timm does not have, or that cannot be an encoder."""
    wanted = {name for cell in study.cells for name in backbones(space.to_plain(cell.template.get("model")))}
    if not wanted:
        return
    from pretune.trainables.models.timm_unet import BackboneError, levels  # torch is imported only where it is needed

    for name in sorted(wanted):
        try:
            levels(name)
        except BackboneError as error:
            raise ModelError(f"model.backbone: {error}") from None


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
