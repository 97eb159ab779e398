"""`pretune export`: the best model of a study in a format of others, with a model card, checked against the original.

safetensors    weights under PyTorch names, and config.json to build the network from
onnx           the network as an ONNX graph, any batch size
torch-export   the network as a PyTorch 2 exported program (.pt2), any batch size

The exported network maps float32 images (B, 3, size, size) in [0, 1] to logits (B, classes, size, size).
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from pretune.errors import ModelError
from pretune.model.check_images import CheckImages, check_images, generated_images
from pretune.model.model_card import model_card
from pretune.model.predict import Model, load_model
from pretune.search_spaces import schema
from pretune.trainables.models.table import build_unet

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
    path, reload = WRITERS[kind](model, study, out)
    check = compare(model, reload, check_images(model, cache))
    if check.different > check.ties or not check.largest <= LOGITS:
        path.unlink()
        wrong = f"{check.different} of {check.pixels} pixels, logits differ by up to {check.largest:.2e}"
        raise ModelError(f"the exported {kind} model computes something else ({wrong}); it was deleted")
    config, card = out / "config.json", out / "README.md"
    config.write_text(json.dumps(_config(model), indent=1), encoding="utf-8")
    what = f"logits (B, {', '.join(map(str, model.output_shape))}): {', '.join(model.classes)}"
    card.write_text(model_card(model, study, path.name, check.sentence(), what, USE[kind]), encoding="utf-8")
    return Exported((path, config, card), check.sentence())


# ---------------------------------------------------------------------------------------------------------- formats


def _safetensors(model: Model, study: Path, out: Path) -> tuple[Path, Logits]:
    path = out / "model.safetensors"
    shutil.copyfile(study / "best" / "model.safetensors", path)
    settings: schema.Model = TypeAdapter(schema.Model).validate_python(model.card["model"])
    network = build_unet(settings, len(model.classes))
    network.load_state_dict(load_file(path))
    return path, network.eval()


def _onnx(model: Model, study: Path, out: Path) -> tuple[Path, Logits]:
    try:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]
        import onnxscript  # noqa: F401  # torch.onnx needs it, and says so less clearly
    except ImportError as error:
        raise ModelError(f"ONNX needs more libraries ({error.name}): pip install -e '.[onnx]'") from error
    path = out / "model.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own deprecations; the check below is what counts
        torch.onnx.export(
            model.network, (generated_images(model, 2),), path, dynamo=True, opset_version=OPSET, external_data=False,
            input_names=["image"], output_names=["logits"], dynamic_shapes=[{0: torch.export.Dim("batch")}],
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, torch.get_num_threads())
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path, lambda images: torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def _torch_export(model: Model, study: Path, out: Path) -> tuple[Path, Logits]:
    path = out / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model.network, (generated_images(model, 2),), dynamic_shapes=[{0: torch.export.Dim("batch")}]
        )
        torch.export.save(program, path)
        reloaded: Any = torch.export.load(path).module()
    return path, lambda images: torch.as_tensor(reloaded(images))


USE = {
    "safetensors": """\
```python
from safetensors.torch import load_file
from pydantic import TypeAdapter
from pretune.search_spaces import schema
from pretune.trainables.models.table import build_unet
network = build_unet(TypeAdapter(schema.Model).validate_python(config["model"]), len(config["classes"]))
network.load_state_dict(load_file("model.safetensors"))   # config: what config.json holds
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

WRITERS: dict[str, Callable[[Model, Path, Path], tuple[Path, Logits]]] = {
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


def _config(model: Model) -> dict[str, Any]:
    """Settings that build the network and feed it."""
    card = model.card
    fitted = {"cache_size": model.cache_size, "fit": model.fit}
    return {"model": card["model"], "classes": card["classes"], "input": card["input"] | fitted}
