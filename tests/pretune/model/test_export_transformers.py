"""Transformers of timm, exported: the ONNX file and its predict.py give the masks of `predict`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import save_file

from pretune.model.export import export_model
from pretune.model.predict import load_model
from pretune.search_spaces import schema
from pretune.trainables.models.table import build_unet

CLASSES = ["background", "one", "two"]
SIZES = [(64, 64), (97, 41), (40, 130), (16, 12), (133, 222)]  # width, height (px)
PYRAMID = {"name": "vit-pyramid", "pyramid_width": 8, "decoder_width": 4}
UNET = {"name": "timm-unet", "decoder_widths": [8] * 5}


def photo(width: int, height: int) -> Image.Image:
    cells = np.random.default_rng(width).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def study_of(folder: Path, body: dict[str, Any], size: int) -> Path:
    """A study's folder with a network of random weights that finds every class."""
    model = TypeAdapter(schema.Model).validate_python(body)
    torch.manual_seed(0)
    network = build_unet(model, len(CLASSES)).eval()
    pixels = torch.from_numpy(np.array(photo(size, size))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        network.head.bias -= network(pixels).mean(dim=(0, 2, 3))  # type: ignore[operator]
    card = {
        "study": "s", "cell": "", "seed": 1, "fingerprint": "f", "question": "", "target": "val/jaccard",
        "model": model.model_dump(mode="json"), "data_digest": "d", "pretraining": [], "chosen": {}, "finetune": {},
        "data": {"dataset": "image-mask-folder", "cache_size": size, "fit": "pad"},
        "classes": CLASSES, "input": {"size": size}, "test": [], "scores": {},
    }  # fmt: skip
    (folder / "best").mkdir(parents=True)
    save_file(dict(network.state_dict()), folder / "best" / "model.safetensors")
    (folder / "best" / "model.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (PYRAMID | {"backbone": "test_vit3"}, 32),
    ],
    ids=lambda value: value["backbone"] if isinstance(value, dict) else "",
)
def test_onnx_of_a_transformer_gives_the_masks_of_predict(body: dict[str, Any], size: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    study = study_of(tmp_path / "study", body, size)
    export_model(study, tmp_path / "out", "onnx", tmp_path)
    used, model = runpy.run_path(str(tmp_path / "out" / "predict.py")), load_model(study)
    for width, height in SIZES:
        expected = model.predict(photo(width, height))
        mask, probabilities = used["predict"](photo(width, height))
        assert (mask == expected.mask).mean() >= 0.999
        assert probabilities == pytest.approx(expected.probabilities, abs=1e-3)
        assert len(np.unique(mask)) > 1 or (width, height) != SIZES[0]
