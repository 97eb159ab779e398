"""`pretune export --encoder-only`: the fine-tuned encoder under the tensor names that torchvision or timm give it.

own            as Pretune names them, of any encoder; network.py computes its feature maps with torch alone
torchvision    of a ResNet with ImageNet's stem: torchvision.models.resnetN without its classifier
timm           of such a ResNet, or of a timm backbone: timm.create_model(NAME, num_classes=0)

Before anything is kept, the library's own model takes the file and has to give the same features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.errors import ModelError
from pretune.model.check_images import check_images, generated_images
from pretune.model.export import Exported, stride_of
from pretune.model.model_card import model_card
from pretune.model.predict import Model, load_model
from pretune.model.trace import source, trace
from pretune.trainables.models import resnet, timm_unet

FEATURES = 1e-3  # largest difference of a feature, relative to the largest feature

_LOADING = {
    "own": """\
from safetensors.torch import load_file
from network import network   # network.py; needs torch alone
maps = network(load_file("{file}"), images)   # a list of feature maps, the finest first""",
    "torchvision": """\
import torch, torchvision
from safetensors.torch import load_file
model = torchvision.models.{name}(weights=None)
model.fc = torch.nn.Identity()
model.load_state_dict(load_file("{file}"))""",
    "timm": """\
import timm
from safetensors.torch import load_file
model = timm.create_model("{name}", num_classes=0{options})
model.load_state_dict(load_file("{file}"), strict={strict})""",
}


class Named(NamedTuple):
    """An encoder for another library: its tensors, the library's name for the model, and that model's last features."""

    state: dict[str, Tensor]
    name: str
    strict: bool  # whether the library's model has no further tensors (a head)
    features: Callable[[Tensor], Tensor]
    mean: list[float]  # what the library's model wants subtracted from images in [0, 1], and
    std: list[float]  # what it wants them divided by
    options: str = ""  # further arguments that build the library's model

    @property
    def plain(self) -> bool:
        """Whether images in [0, 1] are what it wants."""
        return not any(self.mean) and all(value == 1 for value in self.std)


def export_encoder(study: Path, out: Path, keys: str, cache: Path) -> Exported:
    """Write the encoder of a study's best model to `out` as encoder.safetensors, checked, with its card.

    It is checked on test images from `cache` (`ROOT/cache`), or on generated ones where it does not hold them.

    Raises ModelError: no model, an encoder that the library has no names for, or other features (nothing is kept).
    """
    model = load_model(study)
    encoder: nn.Module = model.network.encoder  # type: ignore[assignment]
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    named = NAMERS[keys](encoder, state)
    path = out / "encoder.safetensors"
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(named.state, path)
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror}): choose another folder with --out") from error
    written = {}
    if keys == "own":
        stride = stride_of(model)
        graph = trace(encoder, generated_images(model, 2), stride)
        written["network.py"] = source(graph, stride, "its feature maps, a list, the finest first")
        named = named._replace(features=_by_source(written["network.py"], path))
    sentence = _checked(model, encoder, named, path, cache)
    loading = _LOADING[keys].format(file=path.name, name=named.name, strict=named.strict, options=named.options)
    what = f"the encoder's tensors under {keys} names" if keys != "own" else "the encoder's tensors"
    use = _use(loading, named, "RGB images" if len(model.shape) == 3 else "Grey volumes")
    config = {"encoder": model.card["model"], "keys": keys, "name": named.name, "mean": named.mean, "std": named.std}
    written["config.json"] = json.dumps(config, indent=1)
    written["README.md"] = model_card(model, study, path.name, sentence, what, use)
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    return Exported((path, *(out / name for name in written)), sentence)


def _by_source(text: str, weights: Path) -> Callable[[Tensor], Tensor]:
    """The last feature map as network.py computes it from the file beside it."""
    made: dict[str, Any] = {}
    exec(text, made)
    return lambda images: torch.as_tensor(made["network"](load_file(weights), images)[-1])


@torch.no_grad()
def _checked(model: Model, encoder: nn.Module, named: Named, path: Path, cache: Path) -> str:
    """Features of the library's model from the file just written, beside ours. Raises ModelError where they differ."""
    images, what = check_images(model, cache)
    ours = encoder(images)[-1]
    theirs = named.features(images if named.plain else _normalised(images, named))
    largest = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))
    if not largest <= FEATURES:
        path.unlink()
        raise ModelError(
            f"{named.name} computes other features from these weights (by {largest:.1e}); they were deleted"
        )
    return f"checked: {named.name} gives the same features on {what}, within {largest:.1e} of the largest"


def _normalised(images: Tensor, named: Named) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (named.mean, named.std))
    return (images - mean) / std


def _use(loading: str, named: Named, kind: str) -> str:
    scale = "in [0, 1], with no further normalisation"
    if not named.plain:
        scale = f"normalised by mean {named.mean}, std {named.std}"
    return f"{kind} {scale}.\n\n```python\n{loading}\n```"


# ------------------------------------------------------------------------------------------------------------ names


def _own(encoder: nn.Module, state: dict[str, Tensor]) -> Named:
    return Named(state, "Pretune", True, lambda images: encoder(images)[-1], [0.0] * 3, [1.0] * 3)


def _torchvision(encoder: nn.Module, state: dict[str, Tensor]) -> Named:
    name = _resnet_name(encoder, "torchvision")
    from torchvision.models import get_model

    library = get_model(name, weights=None)
    library.fc = nn.Identity()
    library.load_state_dict(state)
    parts = [library.conv1, library.bn1, library.relu, library.maxpool]
    parts += [library.layer1, library.layer2, library.layer3, library.layer4]
    return Named(state, name, True, nn.Sequential(*parts).eval(), [0.0] * 3, [1.0] * 3)


def _timm(encoder: nn.Module, state: dict[str, Tensor]) -> Named:
    mean, std = [0.0] * 3, [1.0] * 3
    if isinstance(encoder, timm_unet.Encoder):
        backbone = encoder.backbone
        mean, std = encoder.mean.tolist(), encoder.std.tolist()
        state = {timm_unet.name_in_timm(key): value for key, value in state.items() if key not in ("mean", "std")}
    else:
        backbone = timm_unet.Backbone(_resnet_name(encoder, "timm"))
    library = timm_unet.created(backbone, num_classes=0)
    found = library.load_state_dict(state, strict=False)
    if found.unexpected_keys:
        raise ModelError(
            f"timm's {backbone.name} has no tensor {found.unexpected_keys[0]!r}: this backbone cannot be named for timm"
        )
    library.eval()

    def features(images: Tensor) -> Tensor:
        normed = {"norm": True} if backbone.plain else {}
        maps: list[Tensor] = library.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW", **normed)
        return maps[-1]

    options = f", img_size={backbone.image_size}" if backbone.image_size else ""
    if not options and getattr(library, "dynamic_img_size", False):
        options = ", dynamic_img_size=True"
    return Named(state, backbone.name, not found.missing_keys, features, mean, std, options)


def _resnet_name(encoder: nn.Module, library: str) -> str:
    if not isinstance(encoder, resnet.Encoder) or encoder.strides != resnet.STRIDES["imagenet"]:
        what = type(encoder).__module__.rpartition(".")[2]
        raise ModelError(
            f"{library} has no model like this encoder ({what}): --keys {library} is for ResNets with ImageNet's stem"
            + (" and timm backbones" if library == "timm" else "")
            + "; use --keys own"
        )
    return next(f"resnet{depth}" for depth in resnet.WIDTHS if _same_tensors(encoder, depth))


def _same_tensors(encoder: nn.Module, depth: int) -> bool:
    with torch.device("meta"):
        return encoder.state_dict().keys() == resnet.Encoder(depth).state_dict().keys()


NAMERS: dict[str, Callable[[nn.Module, dict[str, Tensor]], Named]] = {
    "own": _own,
    "torchvision": _torchvision,
    "timm": _timm,
}
