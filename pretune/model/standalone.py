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

SIZE, SQUARE, FIT, WINDOWS = (CONFIG["input"][key] for key in ("size", "cache_size", "fit", "evaluate"))


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
    if FIT == "tile":
        width, height = photo.size
        beyond = [(0, max(0, SIZE - side)) for side in (height, width)]
        logits = logits_by_windows(np.pad(np.asarray(photo), [*beyond, (0, 0)]))[:, :height, :width]
    else:
        starts = [(SQUARE - side) // 2 for side in sides]
        square = Image.new("RGB", (SQUARE, SQUARE))
        square.paste(photo.resize(sides, Image.Resampling.BILINEAR, reducing_gap=3.0), tuple(starts))
        if WINDOWS:
            logits = logits_by_windows(np.asarray(square))
        else:
            planes = [plane.convert("F").resize((SIZE, SIZE), Image.Resampling.BILINEAR) for plane in square.split()]
            logits = logits_of(np.stack([np.asarray(plane) for plane in planes])[None] / np.float32(255))[0]
        columns, rows = (weights_along(*along, logits.shape[-1]) for along in zip(photo.size, sides, starts))
        logits = rows @ logits @ columns.T
    odds = np.exp(logits - logits.max(axis=0))
    return logits.argmax(axis=0).astype(np.uint8), odds / odds.sum(axis=0)


def logits_by_windows(pixels):
    """(H, W, 3) uint8 -> (classes, H, W): the weighted mean over all windows of SIZE px that lie over a pixel."""
    along = np.exp(-32 * ((np.arange(SIZE) - (SIZE - 1) / 2) / SIZE) ** 2)  # a Gaussian of an eighth of the side
    weight = np.maximum(np.outer(along, along), 1e-3) if WINDOWS["weights"] == "gaussian" else np.ones((SIZE, SIZE))
    total, share = 0, np.zeros(pixels.shape[:2], np.float32)
    for y in starts_along(len(pixels)):
        for x in starts_along(pixels.shape[1]):
            cut = pixels[y : y + SIZE, x : x + SIZE].transpose(2, 0, 1)[None].astype(np.float32)
            beyond = [(0, 0), (y, len(pixels) - y - SIZE), (x, pixels.shape[1] - x - SIZE)]
            total = total + np.pad(logits_of(cut / np.float32(255))[0] * weight, beyond).astype(np.float32)
            share[y : y + SIZE, x : x + SIZE] += weight
    return total / share


def starts_along(length):
    """First pixels of windows that lie evenly along a side and share at least `overlap` of their own."""
    step = max(1, SIZE - round(SIZE * WINDOWS["overlap"]))
    count = 1 - (SIZE - length) // step
    return [round(i * (length - SIZE) / max(1, count - 1)) for i in range(count)]


def weights_along(length, side, start, size):
    """Linear interpolation from `size` pixels of logits to those of one side of the photo: (length, size)."""
    at = ((np.arange(length) + 0.5) / length * side + start) * size / SQUARE - 0.5
    return np.maximum(0, 1 - np.abs(at.clip(0, size - 1)[:, None] - np.arange(size))).astype(np.float32)


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
