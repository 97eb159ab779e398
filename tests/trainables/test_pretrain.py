"""Pretraining: a killed and resumed run is the uninterrupted one, and what blows up is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split, draw_split, visible
from pretune.trainables.files import STATE, WEIGHTS
from pretune.trainables.loop import CollapsedError, DivergedError, RunContext
from pretune.trainables.methods import collapse
from pretune.trainables.pretrain import pretrain

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4}
SPLIT = schema.Split(test=0.25, val=0.2, seed=0)


class KilledError(BaseException):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 scenes of 32 px: test 10, validation 8, training 22."""
    torch.set_num_threads(1)
    chosen = schema.Scenes(dataset="scenes", images=40, cache_size=32, split=SPLIT)
    return load_images(chosen, None, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def split(data: ImageSet) -> Split:
    return draw_split(len(data.images), SPLIT, STREAMS["split"], None)


def settings(**changes: Any) -> schema.Pretrain:
    """22 training images in batches of 8: two steps per epoch."""
    plain: dict[str, Any] = {
        "data": "scenes",
        "method": {"name": "simclr", "hidden": 16, "dim": 8},
        "views": {"size": 16},
        "batch_size": 8,
        "steps": 7,
        "optimizer": {"lr": 0.01},
    }
    return schema.Pretrain.model_validate(plain | changes)


def run(chosen: schema.Pretrain, data: ImageSet, split: Split, out: Path, **how: Any) -> dict[str, float]:
    out.mkdir()
    return pretrain(chosen, MODEL, data, split, STREAMS, RunContext(out, CPU, **how))


def written(out: Path) -> tuple[bytes, Any, Any]:
    """Weights byte for byte, the learning curve and the notes."""
    history, notes = (json.loads((out / name).read_text()) for name in ("history.json", "notes.json"))
    return (out / WEIGHTS).read_bytes(), history, notes


def killed_at_save(number: int) -> Any:
    """The process dies right after it wrote its state for the given time: in the middle of an epoch or at its end."""
    real, count = checkpoints.save_state, iter(range(1, 1000))

    def save(state: dict[str, Any], folder: Path) -> None:
        real(state, folder)
        if next(count) == number:
            raise KilledError

    return mock.patch.object(checkpoints, "save_state", save)


@pytest.mark.parametrize("kills", [[1], [2], [3], [6], [7], [1, 1, 3], [3, 2]])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, data: ImageSet, split: Split, kills: list[int]
) -> None:
    """Each number is how many steps an attempt lived; every second step ends an epoch."""
    expected = run(settings(), data, split, tmp_path / "whole")
    resume = None
    for i, steps in enumerate(kills):
        out = tmp_path / f"attempt{i}"
        with killed_at_save(steps), pytest.raises(KilledError):
            run(settings(), data, split, out, resume=resume, checkpoint_seconds=0.0)
        resume = out / STATE
    assert run(settings(), data, split, tmp_path / "last", resume=resume, checkpoint_seconds=0.0) == expected
    assert written(tmp_path / "last") == written(tmp_path / "whole")


def test_a_kill_in_the_report_of_an_epoch_loses_no_more_than_the_step(
    tmp_path: Path, data: ImageSet, split: Split
) -> None:
    """The second report comes at step 4; the state then is that of step 3."""
    reports = []

    def report(values: dict[str, float]) -> None:
        reports.append(values)
        if len(reports) == 2:
            raise KilledError

    expected = run(settings(), data, split, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(settings(), data, split, tmp_path / "cut", checkpoint_seconds=0.0, report=report)
    state = tmp_path / "cut" / STATE
    loaded = checkpoints.load_state(state, CPU)
    assert loaded is not None
    assert loaded["step"] == 3
    assert run(settings(), data, split, tmp_path / "last", resume=state) == expected
    assert written(tmp_path / "last") == written(tmp_path / "whole")


def test_a_run_is_a_function_of_its_streams(tmp_path: Path, data: ImageSet, split: Split) -> None:
    run(settings(steps=2), data, split, tmp_path / "a")
    run(settings(steps=2), data, split, tmp_path / "b")
    assert written(tmp_path / "a") == written(tmp_path / "b")
    for name in ("init", "order", "augmentation"):
        out = tmp_path / name
        out.mkdir()
        streams = STREAMS | {name: 99}
        pretrain(settings(steps=2), MODEL, data, split, streams, RunContext(out, CPU))
        assert written(out)[0] != written(tmp_path / "a")[0]


@pytest.mark.parametrize("sees", ["train", "train+val", "all"])
def test_only_the_images_that_it_may_see_are_read(tmp_path: Path, data: ImageSet, split: Split, sees: Any) -> None:
    """Other images may hold anything: the weights are the same."""
    chosen = settings(steps=4, sees=sees)
    seen = visible(split, sees)
    images = np.array(data.images)
    images[np.setdiff1d(np.arange(len(images)), seen)] = 255
    hidden = ImageSet(images, *list(vars(data).values())[1:])
    metrics = run(chosen, data, split, tmp_path / "a")
    run(chosen, hidden, split, tmp_path / "b")
    weights, _, notes = written(tmp_path / "a")
    assert weights == written(tmp_path / "b")[0]
    assert notes["images"] == seen.tolist()
    assert ("val/pretext_loss" in metrics) == (sees == "train")


def test_reports_and_history_come_once_per_epoch_and_at_the_end(tmp_path: Path, data: ImageSet, split: Split) -> None:
    reports: list[dict[str, float]] = []
    run(settings(steps=5), data, split, tmp_path / "a", report=reports.append)
    assert [(r["step"], r["total"]) for r in reports] == [(2, 5), (4, 5), (5, 5)]
    assert [h["epoch"] for h in written(tmp_path / "a")[1]] == [1.0, 2.0, 2.5]


@pytest.mark.parametrize(("steps", "metric", "step"), [(6, "pretext_loss", 1), (1, "val/pretext_loss", 0)])
def test_a_blow_up_names_its_metric_and_step(
    tmp_path: Path, data: ImageSet, split: Split, steps: int, metric: str, step: int
) -> None:
    """At a rate of 1e30 the first update ruins the weights: the next loss shows it, or the validation after it."""
    chosen = settings(steps=steps, optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(DivergedError, match=rf"^{metric} is (nan|inf) at step {step}$") as caught:
        run(chosen, data, split, tmp_path / "a")
    assert (caught.value.metric, caught.value.step) == (metric, step)
    assert not (tmp_path / "a" / WEIGHTS).exists()


def test_a_chain_starts_from_the_encoder_before(tmp_path: Path, data: ImageSet, split: Split) -> None:
    """At a rate of nearly nothing the encoder's parameters stay those of the parent."""
    run(settings(steps=4), data, split, tmp_path / "a")
    parent = tmp_path / "a" / WEIGHTS
    still = settings(steps=2, optimizer={"lr": 1e-30})
    run(still, data, split, tmp_path / "b", parent=parent)
    before, after = (checkpoints.load_file(tmp_path / name / WEIGHTS) for name in "ab")
    trained = [n for n in before if n.startswith("encoder.") and "running" not in n and "num_batches" not in n]
    assert trained
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-25) for name in trained)


def test_one_image_is_too_few(tmp_path: Path, data: ImageSet, split: Split) -> None:
    one = Split(split.train[:1], split.val, split.test)
    with pytest.raises(ValueError, match=r"at least 2 images, .* 1"):
        run(settings(), data, one, tmp_path / "a")


def test_a_batch_larger_than_the_data_is_all_of_it(tmp_path: Path, data: ImageSet, split: Split) -> None:
    run(settings(batch_size=384, steps=1), data, split, tmp_path / "a")
    assert written(tmp_path / "a")[2]["batch_size"] == 22


def test_a_collapsed_pretraining_is_stopped_where_the_study_asks_for_it(
    tmp_path: Path, data: ImageSet, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder whose features show no spread for two epochs of ten."""
    monkeypatch.setattr(collapse, "measure", lambda *args: {"encoder_spread": 1e-4, "encoder_rank": 9.0})
    asked = settings(steps=None, epochs=10, stop_on_collapse=2)
    with pytest.raises(CollapsedError, match=r"collapsed, .* step 4: encoder_spread 0\.0001"):
        run(asked, data, split, tmp_path / "a")
    run(settings(steps=None, epochs=3), data, split, tmp_path / "b")  # by default it is only said
    assert "encoder_spread" in json.loads((tmp_path / "b/notes.json").read_text())["warnings"][0]


# ---------------------------------------------------------------------------------------------------- torch.compile


def test_encoder_and_decoder_are_compiled_where_asked_and_by_shapes_of_their_own(
    tmp_path: Path, data: ImageSet, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that leaves functions as they are, the bits are those of the run without one."""
    compiled: list[tuple[str, dict[str, Any]]] = []

    def left_alone(call: Any, **options: Any) -> Any:
        compiled.append((type(call.__self__).__module__ + "." + type(call.__self__).__name__, options))
        return call

    monkeypatch.setattr(torch, "compile", left_alone)
    chosen = settings(method={"name": "reconstruction"})
    plain = run(chosen, data, split, tmp_path / "plain")
    assert compiled == []
    asked = chosen.model_copy(update={"compile": True})
    assert run(asked, data, split, tmp_path / "asked") == plain
    assert compiled == [
        (f"pretune.trainables.models.unet.{part}", {"dynamic": False}) for part in ("Encoder", "Decoder")
    ]
    assert written(tmp_path / "asked") == written(tmp_path / "plain")


@pytest.mark.slow  # compiling takes a minute
def test_a_compiled_training_is_that_without_up_to_rounding(tmp_path: Path, data: ImageSet, split: Split) -> None:
    plain = run(settings(), data, split, tmp_path / "plain")
    compiled = run(settings(compile=True), data, split, tmp_path / "compiled")
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert written(tmp_path / "compiled")[2] == written(tmp_path / "plain")[2]
