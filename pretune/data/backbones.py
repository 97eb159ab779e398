"""Which backbones of timm a study asks for, and whether timm has them: found out before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pretune.errors import ModelError
from pretune.search_spaces import space
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
