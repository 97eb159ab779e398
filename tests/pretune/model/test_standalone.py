"""An exported model, used without Pretune, gives the masks of `pretune.load(...).predict(...)`."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console
from safetensors.torch import save_file

import pretune
from pretune.errors import ModelError
from pretune.model.export import export_model
from pretune.model.predict import load_model, logits_of, mask_of, prepare, resized_logits
from pretune.model.predict_folder import How, predict_folder
from pretune.search_spaces import schema
from pretune.trainables.models.table import build_unet
from pretune.trainables.windows import segmenting, slide

SIZES = [(64, 64), (97, 41), (40, 130), (16, 12), (333, 222)]  # width, height (px): larger, smaller, wide and high
CLASSES = ["background", "one", "two"]


def study_of(folder: Path, fit: str = "pad", size: int = 16, evaluate: Any = None, **data: Any) -> Path:
    """A study's folder with an untrained network that finds every class."""
    settings = TypeAdapter(schema.Model).validate_python({"name": "unet", "widths": [4, 8]})
    torch.manual_seed(0)
    network = build_unet(settings, len(CLASSES))
    images = torch.from_numpy(np.array(photo(32, 32))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():  # every class is the likeliest somewhere
        means = network.eval()(images).mean(dim=(0, 2, 3))
        network.head.bias -= means  # type: ignore[operator]
        network.head.weight *= 10  # type: ignore[operator]
        network.head.bias *= 10  # type: ignore[operator]
    card = {
        "study": "s", "cell": "", "seed": 1, "fingerprint": "f", "question": "", "target": "val/jaccard",
        "model": settings.model_dump(mode="json"), "data_digest": "d", "pretraining": [], "chosen": {},
        "finetune": {"evaluate": evaluate},
        "data": {"dataset": "image-mask-folder", "cache_size": 32, "fit": fit, **data},
        "classes": CLASSES, "input": {"size": size}, "test": [], "scores": {},
    }  # fmt: skip
    (folder / "best").mkdir(parents=True)
    save_file(dict(network.state_dict()), folder / "best" / "model.safetensors")
    (folder / "best" / "model.json").write_text(json.dumps(card))
    return folder


def photo(width: int, height: int) -> Image.Image:
    """Smooth blobs, as photos have, and not noise."""
    cells = np.random.default_rng(width).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float((one == other).mean())


# ------------------------------------------------------------------------------------------------------ three lines


def test_three_lines_give_a_mask_and_probabilities_of_the_images_size(tmp_path: Path) -> None:
    study = study_of(tmp_path / "runs" / "leaves")
    photo(97, 41).save(tmp_path / "a.png")
    model = pretune.load(str(study / "best"))
    mask, probabilities = model.predict(tmp_path / "a.png")
    assert (mask.shape, mask.dtype, probabilities.shape) == ((41, 97), np.uint8, (3, 41, 97))
    assert probabilities.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert (probabilities.argmax(axis=0) == mask).all()
    assert len(np.unique(mask)) > 1
    assert model.overlay(photo(97, 41), mask).size == (97, 41)


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_predict_gives_the_masks_of_the_command(fit: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = pretune.load(study_of(tmp_path / "study", fit))
    image = photo(*size)
    of_command = mask_of(model, logits_of(model, [prepare(model, image)])[0], image.size)
    assert (model.predict(image).mask == of_command).all()


def test_files_arrays_and_pillow_images_are_read_alike(tmp_path: Path) -> None:
    model = pretune.load(study_of(tmp_path / "study"), "cpu")
    image = photo(40, 30)
    image.save(tmp_path / "a.png")
    turned = photo(40, 30).transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # show it turned clockwise
    for same in (str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(image), turned, image.convert("RGBA")):
        assert (model.predict(same).mask == model.predict(image).mask).all()
    grey = image.convert("L")
    assert (model.predict(np.asarray(grey)).mask == model.predict(grey).mask).all()


def test_importing_pretune_imports_no_torch() -> None:
    code = "import sys, pretune; assert pretune.load; assert not {'torch', 'ray', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="abacus: there is no such device"):
        pretune.load(study_of(tmp_path / "study"), "abacus")


# --------------------------------------------------------------------------------------------------- without Pretune

# An environment that holds torch, safetensors, NumPy and Pillow alone is too large to build in a test. So the script
# runs in a process that cannot import Pretune nor any of its other dependencies, from a folder of its own; -I leaves
# out PYTHONPATH and the user's packages.
_RUN = """
import runpy, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
    sys.argv[1:] = [name, name + ".mask.png"]
    runpy.run_path({script!r}, run_name="__main__")
"""
ABSENT = {"pretune", "torchvision", "timm", "ray", "pydantic", "yaml", "click", "rich", "pandas", "pyarrow", "scipy",
          "sklearn", "optuna", "plotly", "statsmodels", "kornia", "skimage"}  # fmt: skip


def test_the_script_alone_gives_the_masks_of_predict(tmp_path: Path) -> None:
    study = study_of(tmp_path / "study")
    export_model(study, tmp_path / "out", "safetensors", tmp_path)
    alone = (tmp_path / "out").rename(tmp_path / "elsewhere")
    names = [f"{width}x{height}.png" for width, height in SIZES]
    for name, size in zip(names, SIZES, strict=True):
        photo(*size).save(alone / name)
    code = _RUN.format(absent=ABSENT, script=str(alone / "predict.py"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "-", *names], cwd=alone, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    model = load_model(study)
    for name, size in zip(names, SIZES, strict=True):
        with Image.open(alone / f"{name}.mask.png") as mask:
            assert agreement(np.asarray(mask), model.predict(photo(*size)).mask) >= 0.999
            assert mask.getpalette()[3:6] == [230, 159, 0]  # type: ignore[index]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two studies, `fit: pad` as ONNX and `fit: squash` as a program, each with its export in out/."""
    folders = {}
    for kind, fit in (("onnx", "pad"), ("torch-export", "squash")):
        folders[kind] = study_of(tmp_path_factory.mktemp("exported") / "study", fit, background=[9, 8, 7])
        export_model(folders[kind], folders[kind] / "out", kind, folders[kind] / "cache")
    (folders["onnx"] / "out" / "config.json").unlink()  # its metadata are enough
    return folders


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
@pytest.mark.parametrize("size", SIZES)
def test_other_formats_agree_with_predict(kind: str, size: tuple[int, int], exported: dict[str, Path]) -> None:
    used = runpy.run_path(str(exported[kind] / "out" / "predict.py"))
    mask, probabilities = used["predict"](photo(*size))
    expected = load_model(exported[kind]).predict(photo(*size))
    assert agreement(mask, expected.mask) >= 0.999
    assert probabilities == pytest.approx(expected.probabilities, abs=1e-3)


@pytest.mark.parametrize(
    ("fit", "evaluate"), [("pad", {"overlap": 0.5}), ("squash", {"weights": "uniform"}), ("tile", {"overlap": 0.25})]
)
def test_a_model_with_windows_is_used_by_the_same_rule_everywhere(fit: str, evaluate: Any, tmp_path: Path) -> None:
    """By one call, for a folder and without Pretune: at the resolution of the cache, or of the image (`fit: tile`)."""
    study = study_of(tmp_path / "study", fit, evaluate=evaluate)
    export_model(study, tmp_path / "out", "safetensors", tmp_path)
    used, model = runpy.run_path(str(tmp_path / "out" / "predict.py")), load_model(study)
    (tmp_path / "photos").mkdir()
    for size in SIZES:
        photo(*size).save(tmp_path / "photos" / f"{size[0]}.png")
    predict_folder(study, tmp_path / "photos", tmp_path / "masks", How(device="cpu"), Console(quiet=True))
    how = schema.Evaluate.model_validate(evaluate)
    for size in SIZES:
        expected, (mask, probabilities) = model.predict(photo(*size)), used["predict"](photo(*size))
        assert agreement(mask, expected.mask) >= 0.999
        assert probabilities == pytest.approx(expected.probabilities, abs=1e-3)
        with Image.open(tmp_path / "masks" / "masks" / f"{size[0]}.png") as of_folder:
            assert agreement(np.asarray(of_folder), expected.mask) >= 0.999
        pixels = np.asarray(photo(*size)) if fit == "tile" else prepare(model, photo(*size))
        if min(pixels.shape[:2]) >= model.size:
            with torch.no_grad():
                logits = slide(torch.from_numpy(pixels.copy()), model.size, how, segmenting(model.network), 4)
            whole = resized_logits(model, logits, size) if fit != "tile" else logits
            assert (whole.argmax(0).numpy() == expected.mask).mean() >= 0.999
    steps = (tmp_path / "out" / "README.md").read_text()
    assert "cut windows of 16 px, neighbours sharing at least" in steps


def test_an_onnx_file_takes_any_height_and_width_and_says_what_it_is(exported: dict[str, Path]) -> None:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    path = exported["onnx"] / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = load_model(exported["onnx"]).network
    for count, height, width in ((1, 16, 16), (3, 2, 40), (2, 50, 6)):  # the stride is 2
        images = torch.rand(count, 3, height, width)
        (logits,) = session.run(["logits"], {"image": images.numpy()})
        with torch.no_grad():
            assert logits == pytest.approx(network(images).numpy(), abs=1e-3)
    held = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert held["classes"] == CLASSES
    assert held["palette"] == [[0, 0, 0], [230, 159, 0], [86, 180, 233]]
    assert held["input"]["background"] == [9, 8, 7]
    assert held["input"]["shape"] == [3, "H", "W"]
    assert any("bilinear, antialiased" in step for step in held["steps"])
    card = (path.parent / "README.md").read_text()
    assert "1. decode to 8-bit RGB and turn upright by the EXIF orientation" in card
    assert "(B, 3, H, W), H and W multiples of 2" in card


def test_the_script_reads_photos_as_training_did_or_refuses_them(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = exported["torch-export"] / "out"
    Image.new("LA", (4, 4), (200, 0)).save(tmp_path / "clear.png")
    used = runpy.run_path(str(folder / "predict.py"))
    assert used["read"](tmp_path / "clear.png").getpixel((0, 0)) == (9, 8, 7)
    used["CONFIG"]["input"]["value_range"] = [0, 4095]
    with pytest.raises(SystemExit, match="its values need a range"):
        used["read"](tmp_path / "clear.png")
