"""Whether the networks of a stage can be built and take its batches.

They are built on torch's meta device, whose tensors have shapes and no values: nothing is computed or downloaded, and a
network of any size costs a fraction of a second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pretune.search_spaces import schema
from pretune.trainables.data.checks.requirements import Facts, StageSettings, labelled_by, seen_by
from pretune.trainables.methods.protocol import Method, Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.methods.weights import check_weights
from pretune.trainables.models.table import build_decoder, build_encoder, build_unet
from pretune.trainables.models.timm_unet import backbone_of, levels

ONE_VALUE = "Expected more than 1 value per channel"  # torch's words where batch norm has no statistics
MANY = 2  # images that stand for any number of them


def unbuildable(
    where: str,
    settings: StageSettings,
    model: schema.Model,
    data: schema.Data,
    facts: Facts,
    workers: int = 1,
    batch_norm: str = "sync",
) -> Iterator[str]:
    """Reasons why a stage cannot be built, or cannot take its smallest batch; a sentence each.

    Args:
        where: the stage's key, such as `pretrain` or `probe.knn`.
        data: the settings of its data set, with `val_fold` in place of `val_folds`.
        workers: of the stage.
        batch_norm: `local` takes the statistics of each worker's share of a batch.
    """
    sizes, slices = facts.sizes(data.split)[0], schema.slices_of(data)
    shares = workers if batch_norm == "local" else 1
    if isinstance(settings, schema.Pretrain) and isinstance(settings.method, schema.Weights):
        try:
            check_weights(settings.method, model)
        except Exception as error:  # whatever a damaged file makes a library raise
            yield f"{where}.method.source: {_first_line(error)}"
    elif isinstance(settings, schema.Pretrain):
        yield from _pretraining(where, settings, model, slices, facts, seen_by(settings, sizes), shares)
    elif isinstance(settings, schema.Finetune):
        yield from _fine_tuning(where, settings, model, slices, labelled_by(settings, sizes), shares)
    elif misfit := _misfit(model, settings.size):
        yield f"{where}.size: {misfit}"
    elif said := encoding_error(model, settings.size, slices, MANY, training=False):
        yield f"{where}.size: {_cannot_take(model, settings.size, said)}"


def _pretraining(
    where: str,
    settings: schema.Pretrain,
    model: schema.Model,
    slices: int | None,
    facts: Facts,
    images: int | None,
    shares: int,
) -> Iterator[str]:
    try:
        method = _built(settings, model, facts)
    except Exception as error:  # whatever a method's or a library's constructor raises
        yield f"{where}.method: {settings.method.name} cannot be built for {model.name}: {_first_line(error)}"
        return
    batch = settings.batch_size if images is None else min(settings.batch_size, images)
    rows = max(1, batch // shares // schema.batch_parts(settings.method))  # whose statistics are taken together
    said = {}
    for size in sorted({recipe.size for recipe in method.recipes}):
        key = "views.size" if size == settings.views.size else "method.local_size"
        if misfit := _misfit(model, size, decoded=settings.method.facts.decoder):
            yield f"{where}.{key}: {misfit}"
            continue
        said[size] = encoding_error(model, size, slices, min(MANY, rows), training=True)
        if not said[size] and settings.method.facts.decoder:
            said[size] = unet_error(model, size, slices, min(MANY, rows), training=True, frozen=False)
        if said[size] and ONE_VALUE not in said[size]:
            yield f"{where}.{key}: {_cannot_take(model, size, said[size])}"
    assert isinstance(method, nn.Module)
    pooled = any(isinstance(module, nn.BatchNorm1d) for module in method.modules())
    if rows == 1 and (pooled or any(ONE_VALUE in words for words in said.values())):
        yield (
            f"{where}.batch_size: {settings.batch_size} leaves one image for batch norm to take statistics of, and it "
            "needs two or more; raise it"
        )


def _built(settings: schema.Pretrain, model: schema.Model, facts: Facts) -> Method:
    """The method without values. Too few classes are a requirement's affair."""
    labels = 2 if facts.labels is None or not len(facts.labels) else max(2, int(facts.labels.max()) + 1)
    with torch.device("meta"), _Shapes():
        parts = Parts(build_encoder(model), lambda: build_decoder(model), max(2, facts.mask_classes), labels)
        return build_method(settings.method, settings.views, parts)


def _fine_tuning(
    where: str, settings: schema.Finetune, model: schema.Model, slices: int | None, images: int | None, shares: int
) -> Iterator[str]:
    batch = MANY if images is None else min(settings.batch_size, images)
    rest = 0 if images is None else images % batch
    if settings.steps is not None and images is not None and settings.steps < -(-images // batch):
        rest = 0  # the training ends before the last step of an epoch
    rows = max(1, (rest or batch) // shares)
    frozen = settings.freeze == "encoder" and settings.unfreeze_epoch is None
    misfits = {size: _misfit(model, size, decoded=True) for size in (settings.size, *settings.test_sizes)}
    for size, misfit in misfits.items():
        if misfit:
            yield f"{where}.{'size' if size == settings.size else 'test_sizes'}: {misfit}"
    if any(misfits.values()):
        return
    said = unet_error(model, settings.size, slices, min(MANY, rows), training=True, frozen=frozen)
    if ONE_VALUE in said:
        held = f"{settings.batch_size} leaves one of {images} labelled images for the last step of an epoch"
        yield (
            f"{where}.batch_size: {held}, and at {settings.size} px the coarsest features of {model.name} have one "
            f"place, so that batch norm has a single value; {_other_batch(images or 1, settings.batch_size)}a larger "
            "size, or another number of labels"
        )
    elif said:
        yield f"{where}.size: {_cannot_take(model, settings.size, said)}"
    for size in settings.test_sizes:
        if said := unet_error(model, size, slices, MANY, training=False, frozen=False):
            yield f"{where}.test_sizes: {_cannot_take(model, size, said)}"


def _other_batch(images: int, batch: int) -> str:
    """The next batch size that leaves no single image."""
    fits = [size for size in range(2, images + 1) if images % size != 1]
    nearest = min(fits, key=lambda size: abs(size - batch), default=None)
    return "use " if nearest is None else f"use batch_size {nearest}, "


# --------------------------------------------------------------------------------------------------------- networks


@functools.lru_cache(maxsize=10_000)
def _misfit(model: schema.Model, size: int, *, decoded: bool = False) -> str:
    """Say why a backbone of timm cannot take images of `size` px, and which sizes it takes; "" where it can.

    With `decoded` its maps must fit those of the decoder. Other models' sizes were checked with the file.
    """
    if not isinstance(model, schema.TimmUNet | schema.ViTPyramid):
        return ""
    backbone = backbone_of(model)
    stride = levels(backbone).strides[-1]
    if backbone.image_size is not None and size != backbone.image_size:
        return f"{size} px, but {backbone} is built for {backbone.image_size} px; let model.image_size be the same"
    if size < stride:
        return f"{size} px is below {stride}, the stride of {backbone}; use {stride} or more"
    if size % stride == 0 or not (decoded or encoding_error(model, size, None, MANY, training=False)):
        return ""
    low = size // stride * stride
    return f"{size} px is not a multiple of {stride}, the stride of {backbone}; use {low} or {low + stride}"


@functools.lru_cache(maxsize=10_000)
def encoding_error(model: schema.Model, size: int, slices: int | None, rows: int, *, training: bool) -> str:
    """Return an encoder's error for `rows` images of `size` px; "" where it takes them."""
    try:
        with torch.device("meta"), torch.no_grad(), _Shapes():
            build_encoder(model).train(training)(_images(model, size, slices, rows))
    except NotImplementedError:  # an operator without a meta kernel: nothing is known
        return ""
    except Exception as error:  # whatever torch raises for shapes that do not fit
        return _first_line(error)
    return ""


@functools.lru_cache(maxsize=10_000)
def unet_error(model: schema.Model, size: int, slices: int | None, rows: int, *, training: bool, frozen: bool) -> str:
    """The same of encoder, decoder and head; a `frozen` encoder takes no statistics."""
    try:
        with torch.device("meta"), torch.no_grad(), _Shapes():
            network = build_unet(model, 2).train(training)
            network.encoder.train(training and not frozen)
            network(_images(model, size, slices, rows))
    except NotImplementedError:
        return ""
    except Exception as error:
        return _first_line(error)
    return ""


FILLING = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)  # what initial weights are made by


class _Shapes(TorchFunctionMode):
    """Convolutions, batch norm and concatenation by their shapes alone, and no values. On the meta device, torch's own
    load its compiler and sympy first, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FILLING:
            return args[0]
        if func in (F.conv2d, F.conv3d):
            return _convolved(*args, **(kwargs or {}))
        if func in (F.conv_transpose2d, F.conv_transpose3d):
            return _raised(*args, **(kwargs or {}))
        if func in (F.max_pool2d, F.max_pool3d):
            return _pooled(*args, **(kwargs or {}))
        if func is F.batch_norm:
            return _normalised(*args, **(kwargs or {}))
        if func is torch.cat:
            return _joined(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


Sides = int | Sequence[int]


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
) -> Tensor:
    """F.conv2d and F.conv3d of a batch. Raises ValueError for a kernel that does not fit, or other channels."""
    axes = x.ndim - 2
    strides, dilations = (_each(sides, axes) for sides in (stride, dilation))
    spans = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    padded = {"same": spans, "valid": [0] * axes}.get(padding) if isinstance(padding, str) else None
    pads = [2 * p for p in _each(padding, axes)] if padded is None else padded  # type: ignore[arg-type]
    room = [n + p - span - 1 for n, p, span in zip(x.shape[2:], pads, spans, strict=True)]
    if min(room) < 0:
        raise ValueError(f"a kernel of {tuple(weight.shape[2:])} px does not fit features of {tuple(x.shape[2:])}")
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"features have {x.shape[1]} channels, the convolution takes {weight.shape[1] * groups}")
    return x.new_empty(len(x), len(weight), *(n // s + 1 for n, s in zip(room, strides, strict=True)))


def _raised(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sides = 1,
    padding: Sides = 0,
    output_padding: Sides = 0,
    groups: int = 1,
    dilation: Sides = 1,
) -> Tensor:
    """F.conv_transpose2d and F.conv_transpose3d of a batch. Raises ValueError for other channels."""
    axes = x.ndim - 2
    if x.shape[1] != len(weight):
        raise ValueError(f"features have {x.shape[1]} channels, the convolution takes {len(weight)}")
    each = zip(*(_each(sides, axes) for sides in (stride, padding, output_padding, dilation)), strict=True)
    sides = [
        (n - 1) * s - 2 * p + d * (k - 1) + more + 1
        for n, k, (s, p, more, d) in zip(x.shape[2:], weight.shape[2:], each, strict=True)
    ]
    return x.new_empty(len(x), weight.shape[1] * groups, *sides)


def _pooled(
    x: Tensor,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    dilation: Sides = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """F.max_pool2d and F.max_pool3d of a batch, without the indices. Raises ValueError where nothing would be left."""
    axes = x.ndim - 2
    kernels, pads, dilations = (_each(sides, axes) for sides in (kernel_size, padding, dilation))
    strides = kernels if stride is None else _each(stride, axes)
    spans = zip(x.shape[2:], kernels, pads, dilations, strict=True)
    room = [n + 2 * p - d * (k - 1) - 1 for n, k, p, d in spans]
    sides = [(-(-n // s) if ceil_mode else n // s) + 1 for n, s in zip(room, strides, strict=True)]
    if min(sides) < 1:
        raise ValueError(f"features of {tuple(x.shape[2:])} px are too small to be pooled over {kernels} px")
    return x.new_empty(*x.shape[:2], *sides)


def _each(sides: Sides, axes: int) -> list[int]:
    return [sides] * axes if isinstance(sides, int) else list(sides) * (axes if len(sides) == 1 else 1)


def _normalised(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm. Raises ValueError in torch's words where a channel has one value."""
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"{ONE_VALUE} when training, got input size {tuple(x.shape)}")
    return x


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat. Raises ValueError where other sides than `dim` differ."""
    shapes = [list(x.shape) for x in tensors]
    lengths = [shape.pop(dim) for shape in shapes]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"features of {' and '.join(str(tuple(x.shape)) for x in tensors)} cannot be joined")
    shapes[0].insert(dim % tensors[0].ndim, sum(lengths))
    return tensors[0].new_empty(shapes[0])


def _images(model: schema.Model, size: int, slices: int | None, rows: int) -> Tensor:
    solid = schema.dimensions_of(model) == 3
    space = (slices or size, size, size) if solid else (size, size)
    return torch.empty(rows, schema.channels_of(model), *space)


def _cannot_take(model: schema.Model, size: int, error: str) -> str:
    return f"{model.name} cannot take {size} px ({error}); take another size"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
