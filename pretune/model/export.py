"""`pretune export`: the best model of a study in a format of others, with a model card, checked against the original.

safetensors    weights under PyTorch names, and the network as plain PyTorch operations (network.py)
onnx           the network as an ONNX graph
torch-export   the network as a PyTorch 2 exported program (.pt2)

The exported network maps float32 images (B, 3, H, W) in [0, 1] to logits (B, classes, H, W), H and W being multiples of
its stride; networks with attention and those of volumes keep the size that they were trained with. predict.py beside
it takes a photo of any size to its mask without Pretune (`pretune.model.standalone`).
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.errors import ModelError
from pretune.model.check_images import CheckImages, check_images, generated_images
from pretune.model.model_card import model_card
from pretune.model.predict import Model, load_model
from pretune.model.standalone import script
from pretune.model.trace import Traced, source, trace

OPSET = 18
LOGITS = 1e-2  # difference of logits beyond which an export is wrong, whatever its masks
TIE = 1e-3  # two best logits closer than this may change places where another library adds in another order

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """Files that were written, and the result of the check."""

    files: tuple[Path, ...]
    checked: str


@dataclass(frozen=True)
class Check:
    """Comparison of the exported network with the original on the same images."""

    pixels: int
    different: int  # pixels of another class
    ties: int  # of those, with the two best logits closer than TIE in the original
    largest: float  # absolute difference of any logit
    what: str  # the images
    seen: int  # classes in the original's masks
    classes: int

    def sentence(self) -> str:
        """The result in words."""
        same = "the same masks" if not self.different else f"the same masks but for {self.ties} pixels that are ties"
        found = f"in which the model finds {self.seen} of its {self.classes} classes"
        return f"checked: {same} on {self.pixels:,} pixels of {self.what}, {found}; logits within {self.largest:.1e}"


def export_model(study: Path, out: Path, kind: str, cache: Path) -> Exported:
    """Write the best model of a study's output folder to `out`, check it, and write its card.

    Args:
        kind: safetensors, onnx or torch-export.
        cache: where the study's images are decoded (`ROOT/cache`); it is checked on test images from there.

    Raises:
        ModelError: no model, a missing library, or an exported network that gives other masks (nothing is kept).
    """
    model = load_model(study)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{out} cannot be made ({error.strerror}): choose another folder with --out") from error
    stride = stride_of(model)
    traced = trace(model.network, generated_images(model, 2), stride)
    config = config_of(model, traced, stride)
    path, reload = WRITERS[kind](model, traced, out, config)
    shown = check_images(model, cache)
    check = compare(model, reload, shown)
    for found in [check, *([compare(model, reload, at_another_size(shown, stride))] if traced.free else [])]:
        if found.different > found.ties or not found.largest <= LOGITS:
            path.unlink()
            wrong = f"{found.different} of {found.pixels} pixels, logits differ by up to {found.largest:.2e}"
            raise ModelError(f"the exported {kind} model computes something else ({wrong}); it was deleted")
    shape = [len(model.classes), *config["input"]["shape"][1:]]
    what = f"logits (B, {', '.join(map(str, shape))}): {', '.join(model.classes)}"
    # the script takes whole colour photos: neither volumes, nor other channels, nor tiles without windows
    images = len(model.shape) == 3 and model.reading.channels is None
    images = images and (model.fit != "tile" or model.windows is not None)
    texts = {
        "config.json": json.dumps(config, indent=1),
        "README.md": model_card(model, study, path.name, check.sentence(), what, USE[kind], config),
        **({"predict.py": script(kind)} if images else {}),
        **({"network.py": source(traced, stride, what)} if kind == "safetensors" else {}),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return Exported((path, *(out / name for name in texts)), check.sentence())


def stride_of(model: Model) -> int:
    """Height and width of what the network takes are multiples of this."""
    encoder: Any = model.network.encoder
    return int(encoder.strides[-1])


def at_another_size(shown: CheckImages, stride: int) -> CheckImages:
    """The same images wider and higher than the network was trained for, and not square."""
    height, width = shown.images.shape[-2:]
    sides = (height + stride, width + 2 * stride)
    return CheckImages(nn.functional.interpolate(shown.images, sides, mode="bilinear"), shown.what)


# ---------------------------------------------------------------------------------------------------------- formats


def _safetensors(model: Model, traced: Traced, out: Path, config: Mapping[str, Any]) -> tuple[Path, Logits]:
    path = out / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}, path)
    written: dict[str, Any] = {}
    exec(source(traced, config["input"]["stride"], "logits"), written)
    weights = load_file(path)
    return path, lambda images: torch.as_tensor(written["network"](weights, images))


def _onnx(model: Model, traced: Traced, out: Path, config: Mapping[str, Any]) -> tuple[Path, Logits]:
    try:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]
        import onnxscript  # noqa: F401  # torch.onnx needs it, and says so less clearly
    except ImportError as error:
        raise ModelError(f"ONNX needs more libraries ({error.name}): pip install -e '.[onnx]'") from error
    path = out / "model.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own deprecations; the check below is what counts
        try:
            made = torch.onnx.export(
                traced.program, opset_version=OPSET, input_names=["image"], output_names=["logits"], verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ModelError(
                f"torch {torch.__version__} cannot write this network ({model.card['model']['name']}) as ONNX: use "
                "--format torch-export or safetensors"
            ) from error
        assert made is not None
        made.model.metadata_props.update({key: json.dumps(value) for key, value in config.items()})
        made.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, torch.get_num_threads())
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path, lambda images: torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def _torch_export(_: Model, traced: Traced, out: Path, config: Mapping[str, Any]) -> tuple[Path, Logits]:
    path = out / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(traced.program, path)
        reloaded: Any = torch.export.load(path).module()
    return path, lambda images: torch.as_tensor(reloaded(images))


USE = {
    "safetensors": """\
```python
from safetensors.torch import load_file
from network import network   # network.py
masks = network(load_file("model.safetensors"), images).argmax(1)   # images: torch float32
```""",
    "onnx": """\
```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(["logits"], {"image": images})   # images: NumPy float32
masks = logits.argmax(1)
```""",
    "torch-export": """\
```python
import torch
masks = torch.export.load("model.pt2").module()(images).argmax(1)
```""",
}

WRITERS: dict[str, Callable[[Model, Traced, Path, Mapping[str, Any]], tuple[Path, Logits]]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch-export": _torch_export,
}


# ------------------------------------------------------------------------------------------------------------ check


@torch.no_grad()
def compare(model: Model, exported: Logits, shown: CheckImages) -> Check:
    """Masks of both networks on the same images, at a batch size that the export has not seen."""
    ours, theirs = model.network(shown.images), exported(shown.images)
    masks = ours.argmax(dim=1)
    differ = masks != theirs.argmax(dim=1)
    best = ours.topk(min(2, ours.shape[1]), dim=1).values
    ties = differ & (best[:, 0] - best[:, -1] < TIE)
    largest = float((ours - theirs).abs().max())
    seen = len(masks.unique())
    return Check(differ.numel(), int(differ.sum()), int(ties.sum()), largest, shown.what, seen, ours.shape[1])


def config_of(model: Model, traced: Traced, stride: int) -> dict[str, Any]:
    """Settings that feed the network and name its outputs; an ONNX file has it as its metadata."""
    reading = model.reading
    given: dict[str, Any] = {
        "cache_size": model.cache_size,
        "fit": model.fit if model.fit in ("squash", "tile") else "pad",
        "stride": stride,
    }
    given["shape"] = [model.shape[0], "H", "W"] if traced.free else list(model.shape)
    given["evaluate"] = None if model.windows is None else model.windows.model_dump()
    given["background"] = reading.background or (0, 0, 0)
    given["value_range"] = reading.value_range or (
        None if reading.percentiles is None else {"percentiles": reading.percentiles}
    )
    return {
        "model": model.card["model"],
        "classes": list(model.classes),
        "palette": [list(color) for color in model.palette],
        "input": model.card["input"] | given,
        "steps": photo_to_mask(model),
    }


def photo_to_mask(model: Model) -> list[str]:
    """The steps from a photo to its mask, as predict.py takes them; none for volumes."""
    if len(model.shape) > 3:
        return []
    square, size = model.cache_size, model.size
    sides = "both sides" if model.fit == "squash" else "the longer side, the aspect kept and the rest black around it,"
    back = "" if model.fit == "squash" else ", the black border left out"
    whole = "photo"
    read = "decode to 8-bit RGB and turn upright by the EXIF orientation"
    if (channels := model.reading.channels) is not None:
        read = f"read all {channels} channels, each with 8 bits from black to white by `value_range`"
    fitted = f"resize {sides} to {square} px: bilinear, antialiased (Pillow's BILINEAR), rounded to 8 bits"
    scaled = (
        f"resize to {size} x {size} px: bilinear, antialiased, in float32"
        if size != square
        else f"nothing to resize: the network takes {size} x {size} px"
    )
    if model.windows is not None:
        fitted = fitted if model.fit != "tile" else "leave it at its own resolution"
        shared = f"neighbours sharing at least {model.windows.overlap:g} of one, evenly from edge to edge"
        scaled = f"cut windows of {size} px, {shared}; their logits count by `{model.windows.weights}` weights"
        back += " (the weighted mean of those of all windows over a pixel)"
    elif model.fit == "tile":
        whole, back = "tile", "; of tiles that share a pixel, the one in which it lies further from the edge counts"
        fitted = f"cut it into overlapping tiles of {square} px at its own resolution; what follows is for each"
    return [
        read,
        fitted,
        scaled,
        "divide by 255; channels first; no normalisation by mean and standard deviation",
        f"resize the logits to the size of the {whole}: bilinear, half-pixel centres, not antialiased{back}",
        "the mask is the class with the largest logit; probabilities are the softmax of the resized logits",
    ]
