"""predict.py beside an exported model: photo to mask in an environment without Pretune."""

from __future__ import annotations

from typing import NamedTuple


class _Kind(NamedTuple):
    """Parts of the script that differ between the formats."""

    libraries: str  # to be installed, beside NumPy and Pillow
    imports: str
    network: str  # defines CONFIG and logits_of


_SCRIPT = '''\
"""Photo to mask with the model in this folder: python predict.py photo.jpg mask.png

Written by Pretune and free to copy. It needs numpy, pillow and {libraries}, and gives the masks of `pretune predict`.
"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
{network}

SIZE, SQUARE, FIT = (CONFIG["input"][key] for key in ("size", "cache_size", "fit"))


def read(path):
    """An 8-bit photo as RGB, upright; what is transparent is laid over the background colour of training."""
    photo = ImageOps.exif_transpose(Image.open(path))
    if photo.mode[0] in "IF" or CONFIG["input"]["value_range"]:
        sys.exit(f"{{path}}: its values need a range; give predict() an 8-bit RGB image, or use `pretune predict`")
    if photo.has_transparency_data:
        below = Image.new("RGBA", photo.size, (*CONFIG["input"]["background"], 255))
        photo = Image.alpha_composite(below, photo.convert("RGBA"))
    return photo.convert("RGB")


def predict(photo):
    """An RGB photo of any size -> class indices (height, width) and probabilities (classes, height, width)."""
    squash = FIT == "squash"
    sides = [SQUARE if squash else max(1, round(side * SQUARE / max(photo.size))) for side in photo.size]
    starts = [(SQUARE - side) // 2 for side in sides]
    square = Image.new("RGB", (SQUARE, SQUARE))
    square.paste(photo.resize(sides, Image.Resampling.BILINEAR, reducing_gap=3.0), tuple(starts))
    planes = [plane.convert("F").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for plane in square.split()]
    logits = logits_of(np.stack([np.asarray(plane) for plane in planes])[None] / np.float32(255))[0]
    columns, rows = (weights_along(*along) for along in zip(photo.size, sides, starts))
    logits = rows @ logits @ columns.T
    odds = np.exp(logits - logits.max(axis=0))
    return logits.argmax(axis=0).astype(np.uint8), odds / odds.sum(axis=0)


def weights_along(length, side, start):
    """Linear interpolation from the model's pixels to those of one side of the photo: (length, SIZE)."""
    at = ((np.arange(length) + 0.5) / length * side + start) * SIZE / SQUARE - 0.5
    return np.maximum(0, 1 - np.abs(at.clip(0, SIZE - 1)[:, None] - np.arange(SIZE))).astype(np.float32)


if __name__ == "__main__":
    image = Image.fromarray(predict(read(sys.argv[1]))[0])
    image.putpalette([value for color in CONFIG["palette"] for value in color])
    image.save(sys.argv[2])
'''

_FROM_FILE = 'CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))'

_KINDS = {
    "safetensors": _Kind(
        "torch and safetensors",
        "import torch\nfrom safetensors.torch import load_file",
        f"""\
from network import network  # the file beside this one

{_FROM_FILE}
WEIGHTS = load_file(HERE / "model.safetensors")


@torch.no_grad()
def logits_of(pixels):
    return network(WEIGHTS, torch.from_numpy(pixels)).numpy()
""",
    ),
    "torch-export": _Kind(
        "torch",
        "import torch",
        f"""\
{_FROM_FILE}
NETWORK = torch.export.load(HERE / "model.pt2").module()


@torch.no_grad()
def logits_of(pixels):
    return NETWORK(torch.from_numpy(pixels)).numpy()
""",
    ),
    "onnx": _Kind(
        "onnxruntime",
        "import onnxruntime",
        """\
SESSION = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
CONFIG = {key: json.loads(text) for key, text in SESSION.get_modelmeta().custom_metadata_map.items()}


def logits_of(pixels):
    return SESSION.run(["logits"], {"image": pixels})[0]
""",
    ),
}


def script(kind: str) -> str:
    """The text of predict.py for a format of `pretune export`."""
    how = _KINDS[kind]
    return _SCRIPT.format(libraries=how.libraries, imports=how.imports, network=how.network.strip("\n"))
