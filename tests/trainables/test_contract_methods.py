"""What every pretraining method promises to the loop, checked for all methods of the schema.

A new method is tested here as soon as the schema has it: widths and the like are taken from SMALL where it has settings
of these names, and PARTICULAR (and, where it needs other views, VIEWS) has what differs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.search_spaces.metrics import DEFINITIONS, pattern_of
from pretune.search_spaces.stages import depends_on_length
from pretune.trainables import checkpoints, loop, pretrain
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.files import CONTINUE, STATE, WEIGHTS
from pretune.trainables.finetune import finetune
from pretune.trainables.methods.protocol import Batch, Method, Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder

SMALL = {"hidden": 16, "dim": 8, "bottleneck": 8, "prototypes": 12, "local_views": 2, "local_size": 8}
PARTICULAR: dict[str, dict[str, Any]] = {
    "moco": {"queue": 20, "bn_splits": 2, "momentum": 0.9},  # 20: the queue wraps midway
    "moco-v3": {"momentum": 0.9, "projection_levels": 2},
    "byol": {"momentum": 0.9, "projection_levels": 2},
    "dino": {"momentum": 0.9},
    "swav": {"queue": 16, "queue_from_epoch": 1},
    "mae": {"patch": 5},
    "genesis": {"shuffle_blocks": 40},
    "reconstruction": {"tasks": ["reconstruction", "mask-location"]},
    "conrec": {"tasks": ["reconstruction", "original-colors", "mask-location", "black-masks"]},
}
SETTINGS_OF = {
    name: settings
    for settings in get_args(get_args(schema.Method)[0])
    for name in get_args(settings.model_fields["name"].annotation)
}
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in SMALL.items() if key in SETTINGS_OF[name].model_fields}
    | PARTICULAR.get(name, {})
    for name, facts in schema.FACTS.items()
    if facts.trains
}
VIEWS: dict[str, dict[str, Any]] = {}  # of methods that cannot do with {"size": 16}

IN_3D = {"genesis in 3D": "genesis"}  # cases on volumes, beside those of every method on images
MODEL = schema.UNet(widths=(4, 8))
MODEL_IN_3D = schema.GenesisUNet(name="genesis-unet", widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4}
SPLIT = Split(train=np.arange(24), val=np.arange(24, 32), test=np.arange(32, 40))
STEPS, DESCENT_STEPS = 7, 30
CPU = torch.device("cpu")

every_method = pytest.mark.parametrize("name", [*sorted(METHOD_SETTINGS), *IN_3D])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 volumes of 8 x 16 x 16 voxels."""
    settings = schema.Volumes(dataset="volumes", images=40, cache_size=16, slices=8)
    return load_images(settings, None, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def data(request: pytest.FixtureRequest, scenes: ImageSet, volumes: ImageSet) -> ImageSet:
    """What the method of this case takes."""
    return volumes if request.node.callspec.params["name"] in IN_3D else scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 scenes of 32 px with masks, regions and depth, and classes invented for the methods that need some."""
    settings = schema.Scenes(dataset="scenes", images=40, cache_size=32)
    scenes = load_images(settings, None, tmp_path_factory.mktemp("cache"))
    return dataclasses.replace(scenes, labels=np.arange(40) % 3)


def stage(name: str, **changes: Any) -> schema.Pretrain:
    """Three steps to an epoch."""
    body: dict[str, Any] = {"data": "volumes" if name in IN_3D else "scenes", "batch_size": 8, "steps": STEPS}
    name = IN_3D.get(name, name)
    body |= {"method": METHOD_SETTINGS[name] | {"name": name}, "views": {"size": 16} | VIEWS.get(name, {})}
    return schema.Pretrain.model_validate(body | changes)


def model_for(settings: schema.Pretrain) -> schema.Model:
    return MODEL_IN_3D if settings.data == "volumes" else MODEL


def run(settings: schema.Pretrain, data: ImageSet, out: Path, split: Split = SPLIT, **how: Any) -> dict[str, float]:
    out.mkdir()
    context = loop.RunContext(out, CPU, checkpoint_seconds=0.0, **how)
    return pretrain.pretrain(settings, model_for(settings), data, split, STREAMS, context)


def build(settings: schema.Pretrain) -> Method:
    torch.manual_seed(0)
    model = model_for(settings)
    parts = Parts(build_encoder(model), lambda: build_decoder(model), mask_classes=3, image_classes=3)
    return build_method(settings.method, settings.views, parts)


def batch_of(method: Method, data: ImageSet, count: int = 8) -> Batch:
    return pretrain.make_batch(method, pretrain.make_feeds(data, loop.RunContext(Path(), CPU)), np.arange(count), 5, 0)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / WEIGHTS)


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_what_is_particular_here_is_of_methods_that_there_are() -> None:
    assert PARTICULAR.keys() | VIEWS.keys() | set(IN_3D.values()) <= METHOD_SETTINGS.keys()


@every_method
def test_descent_lowers_the_loss_of_a_fixed_batch(name: str, data: ImageSet) -> None:
    """Targets are held still: no `after_step`, so neither queues nor momentum encoders move."""
    settings = stage(name)
    method = build(settings)
    assert isinstance(method, nn.Module)
    batch, losses = batch_of(method, data), []
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3)
    for _ in range(DESCENT_STEPS):
        loss, _ = method(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        method.after_backward(epoch=100)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < losses[0]


@every_method
def test_diagnostics_are_finite_scalars_and_those_that_the_facts_name(name: str, data: ImageSet) -> None:
    settings = stage(name)
    method = build(settings)
    loss, diagnostics = method(batch_of(method, data), 0.0)
    assert loss.shape == ()
    assert diagnostics.keys() == schema.metrics_of(settings.method), f"facts.metrics of {settings.method.name}"
    for key, value in diagnostics.items():
        assert math.isfinite(float(value)), key


@every_method
def test_every_metric_is_in_the_table(name: str, data: ImageSet, tmp_path: Path) -> None:
    knn = {} if data.labels is None else {"online_knn_every": 1}
    metrics = run(stage(name, steps=1, **knn), data, tmp_path / "out")
    history = json.loads((tmp_path / "out" / "history.json").read_text(encoding="utf-8"))
    written = {*metrics, *(key for row in history for key in row if key not in ("step", "epoch"))}
    assert [key for key in sorted(written) if pattern_of(key) not in DEFINITIONS] == []


@every_method
def test_evaluation_changes_no_state(name: str, data: ImageSet) -> None:
    """The pretext validation must leave queues, centres and statistics alone."""
    method = build(stage(name))
    assert isinstance(method, nn.Module)
    before = checkpoints.clone_state(method)
    method.eval()
    with torch.no_grad():
        method(batch_of(method, data), 1.0)
    assert_identical(before, method.state_dict())


@every_method
def test_a_resumed_run_is_bit_identical(
    name: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of a whole run are kept; a second run starts from one of them, drawn at random."""
    save, saved = checkpoints.save_state, tmp_path / "saved"
    saved.mkdir()

    def save_and_keep(state: dict[str, Any], folder: Path) -> None:
        save(state, folder)
        shutil.copy(folder / STATE, saved / f"{state['step']}.pt")

    monkeypatch.setattr(checkpoints, "save_state", save_and_keep)
    whole = run(stage(name), data, tmp_path / "whole")
    step = random.Random(name).randrange(1, STEPS)
    resumed = run(stage(name), data, tmp_path / "resumed", resume=saved / f"{step}.pt")
    assert_identical(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
    assert whole == resumed
    assert (tmp_path / "whole/history.json").read_text() == (tmp_path / "resumed/history.json").read_text()


@every_method
def test_the_same_seed_gives_the_same_numbers(name: str, data: ImageSet, tmp_path: Path) -> None:
    """Whatever state torch's global generator is in before the run, and between its steps."""
    torch.manual_seed(11)
    first = run(stage(name), data, tmp_path / "a")
    torch.manual_seed(12)
    assert run(stage(name), data, tmp_path / "b") == first
    assert_identical(weights(tmp_path / "a"), weights(tmp_path / "b"))


@every_method
def test_the_export_loads_into_a_finetuning(name: str, data: ImageSet, tmp_path: Path) -> None:
    """A frozen encoder comes out of the fine-tuning as it went in: exactly what pretraining exported."""
    run(stage(name, steps=2), data, tmp_path / "pretrained")
    settings = schema.Finetune(data="scenes", size=16, freeze="encoder", batch_size=8, steps=1)
    (tmp_path / "finetuned").mkdir()
    context = loop.RunContext(tmp_path / "finetuned", CPU, parent=tmp_path / "pretrained" / WEIGHTS)
    finetune(settings, model_for(stage(name)), data, SPLIT, STREAMS | {"labels": 6}, context, on_test=False)
    exported, used = (
        {key: value for key, value in weights(tmp_path / out).items() if key.startswith("encoder.")}
        for out in ("pretrained", "finetuned")
    )
    assert exported
    assert_identical(exported, used)


@every_method
def test_bfloat16_autocast_works(name: str, data: ImageSet, tmp_path: Path) -> None:
    """Finite, with a loss in float32 and parameters that stay float32."""
    settings = stage(name, precision="bfloat16", steps=3)
    metrics = run(settings, data, tmp_path / "out")
    assert all(math.isfinite(value) for value in metrics.values())
    method = build(settings)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method(batch_of(method, data), 0.0)
    assert loss.dtype == torch.float32
    stored = weights(tmp_path / "out").values()
    assert {tensor.dtype for tensor in stored if tensor.is_floating_point()} == {torch.float32}


@every_method
def test_a_batch_of_one_is_refused(name: str, data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size\n.*greater than or equal to 2"):
        stage(name, batch_size=1)
    with pytest.raises(ValueError, match=r"at least 2 images, .* 1"):
        run(stage(name), data, tmp_path / "out", SPLIT._replace(train=np.arange(1)))


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_small_views_below_the_encoders_stride_are_refused(name: str) -> None:
    """Two levels: the encoder halves once."""
    small = stage(name, method=METHOD_SETTINGS[name] | {"name": name, "local_size": 1})
    with pytest.raises(ValueError, match=f"{name}: local_size 1 px is below 2"):
        build(small)


# Of methods without a decoder, whose other losses have gradients of their own.
WIDTHS = [(name, key) for name in sorted(METHOD_SETTINGS) for key in ("dim", "bottleneck")
          if key in SETTINGS_OF[name].model_fields and not schema.FACTS[name].decoder]  # fmt: skip


@pytest.mark.parametrize(("name", "key"), WIDTHS)
def test_one_number_scaled_to_length_1_has_no_gradient(name: str, key: str, data: ImageSet) -> None:
    """It is 1 or -1 whatever the encoder gives; the facts say of which output that is."""
    method = build(stage(name, method=METHOD_SETTINGS[name] | {"name": name, key: 1}))
    loss, _ = method(batch_of(method, data), 0.0)
    loss.backward()
    assert isinstance(method, nn.Module)
    convolutions = [p for p in method.parameters() if p.ndim == 4 and p.grad is not None]
    largest = max(float(p.grad.abs().max()) for p in convolutions if p.grad is not None)
    assert (largest < 1e-5) == (schema.FACTS[name].unit_length == key), largest


# ------------------------------------------------------------------------------------------------------ continuing


def written(out: Path) -> bytes:
    return (out / WEIGHTS).read_bytes()


@every_method
def test_a_longer_training_is_a_shorter_one_continued_exactly_where_the_rule_says_so(
    name: str, data: ImageSet, tmp_path: Path
) -> None:
    """`depends_on_length` must neither let a wrong continuation through nor forbid one that is right."""
    short, long = (stage(name, steps=None, epochs=epochs) for epochs in (1, 3))
    run(short, data, tmp_path / "short", keep_state=True)
    continued = run(long, data, tmp_path / "continued", resume=tmp_path / "short" / CONTINUE)
    straight = run(long, data, tmp_path / "straight")
    same = written(tmp_path / "continued") == written(tmp_path / "straight")
    assert same == (depends_on_length(long) is None)
    if same:
        assert continued == straight
        assert (tmp_path / "continued/history.json").read_text() == (tmp_path / "straight/history.json").read_text()


@every_method
def test_a_rung_is_the_beginning_of_the_whole_training(name: str, data: ImageSet, tmp_path: Path) -> None:
    """Also where the schedules depend on the whole length."""
    whole = stage(name, steps=None, epochs=3, schedule={"name": "cosine"})
    (tmp_path / "rung").mkdir()
    context = loop.RunContext(tmp_path / "rung", CPU, keep_state=True, until=1)
    pretrain.pretrain(whole, model_for(whole), data, SPLIT, STREAMS, context)
    continued = run(whole, data, tmp_path / "continued", resume=tmp_path / "rung" / CONTINUE)
    straight = run(whole, data, tmp_path / "straight")
    assert continued == straight
    assert written(tmp_path / "continued") == written(tmp_path / "straight")
