"""Two workers with half of each batch are one worker with all of it: loss, weights, statistics, queues and scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_contract_methods import METHOD_SETTINGS
from torch import Tensor
from workers import Images, exchange, failure, normalise, preempt_and_resume, scored, together, train_each

from pretune.search_spaces import schema
from pretune.trainables import loop
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.distributed import ALONE, World, whole_batch_norm
from pretune.trainables.files import HISTORY, WEIGHTS
from pretune.trainables.loop import CheckpointTimer, RunContext

MODEL = schema.UNet(widths=(4, 8))
SPLIT = Split(train=np.arange(27), val=np.arange(27, 34), test=np.arange(34, 40))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 scenes of 32 px with masks, regions and depth, and classes invented for the methods that need some."""
    scenes = load_images(schema.Scenes(dataset="scenes", images=40, cache_size=32), None, tmp_path_factory.mktemp("c"))
    arrays = {
        name: None if (a := getattr(scenes, name)) is None else np.array(a)
        for name in ("images", "masks", "regions", "depth")
    }
    return dataclasses.replace(scenes, labels=np.arange(40) % 3, **arrays)


def case(name: str, **changes: Any) -> schema.Pretrain:
    """Five steps, three to an epoch."""
    method = METHOD_SETTINGS[name] | {"name": name}
    body: dict[str, Any] = {"data": "scenes", "batch_size": 8, "steps": 5, "method": method, "views": {"size": 16}}
    return schema.Pretrain.model_validate(body | changes)


def tuning(**changes: Any) -> schema.Finetune:
    """Four steps an epoch, the last of them with 3 of 27 images."""
    body: dict[str, Any] = {"data": "scenes", "size": 16, "batch_size": 8, "steps": 9, "freeze": "none"}
    return schema.Finetune.model_validate(body | changes)


CASES: dict[str, schema.Pretrain | schema.Finetune] = {
    **{name: case(name) for name in METHOD_SETTINGS},
    "moco, symmetric, one part": case(
        "moco", method=METHOD_SETTINGS["moco"] | {"name": "moco", "bn_splits": 1, "symmetric": True}
    ),
    "mae, masked only": case("mae", method={"name": "mae", "patch": 5, "loss_on": "masked"}),
    "clipped, with a schedule": case("simclr", clip_norm=0.1, schedule={"name": "cosine", "warmup_epochs": 1}),
    "with a kNN": case("simclr", online_knn_every=1),
    "finetune": tuning(),
    "finetune, cross entropy": tuning(loss="dice+cross-entropy", augment={"flip": 0.5}),
    "finetune, frozen": tuning(freeze="encoder"),
    "finetune, thawed": tuning(freeze="encoder", unfreeze_epoch=1, checkpoint="best"),
    "finetune, fewer images than workers": tuning(labels=1, steps=3),
    "finetune, crops and windows": tuning(
        crops={"foreground": 0.33}, evaluate={"overlap": 0.5}, average="image", score_loss=True, validate_every=1
    ),
    "simclr, checkpointed": case("simclr"),
    "byol, checkpointed": case("byol"),
    "finetune, checkpointed": tuning(),
}
Each = tuple[dict[str, dict[str, float]], dict[str, dict[str, Tensor]]]  # metrics and weights by case


def both_ways(cases: dict[str, Any], data: ImageSet, out: Path, batch_norm: str = "sync") -> tuple[Each, Each]:
    """What one worker makes of each case, and what two do, who must agree."""
    for part in ("one", "two"):
        for name in cases:
            (out / part / name).mkdir(parents=True)
    one = train_each(ALONE, cases, MODEL, data, SPLIT, out / "one", batch_norm)
    answers = together(2, train_each, cases, MODEL, data, SPLIT, out / "two", batch_norm)
    assert answers[0] == answers[1]
    weights = [{name: load_file(out / part / name / WEIGHTS) for name in cases} for part in ("one", "two")]
    return (one, weights[0]), (answers[0], weights[1])


@pytest.fixture(scope="module")
def trained(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Each, Each]:
    return both_ways(CASES, data, tmp_path_factory.mktemp("out"))


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_workers_equal_one(name: str, trained: tuple[Each, Each]) -> None:
    """In double precision, where a wrong gradient or statistic cannot hide behind rounding."""
    (one, one_weights), (two, two_weights) = trained
    assert two[name] == pytest.approx(one[name], rel=1e-6, abs=1e-9)
    assert_close(one_weights[name], two_weights[name])


EVERYTHING: dict[str, Any] = {"score_loss": True, "boundary_tolerance": 0.05}
SCORED = {
    "squares": tuning(size=16, **EVERYTHING),
    "windows": tuning(size=8, evaluate={"overlap": 0.5}, **EVERYTHING),
    "uniform windows": tuning(size=12, evaluate={"overlap": 0.2, "weights": "uniform"}, **EVERYTHING),
    "means over images": tuning(size=8, evaluate={"overlap": 0.5}, average="image", **EVERYTHING),
    "means over batches": tuning(size=16, average="batch", batch_size=3, **EVERYTHING),
    "batches of windows": tuning(size=8, evaluate={"overlap": 0.0}, average="batch", batch_size=2, **EVERYTHING),
}


def in_tiles(pixels: Any, masks: Any) -> Images:
    """Each image as four tiles; of every other one the last is missing."""
    parts = [(i, y, x) for i in range(len(pixels)) for y in (0, 1) for x in (0, 1) if not (i % 2 and y and x)]
    tiles = [np.stack([a[i, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] for i, y, x in parts]) for a in (pixels, masks)]
    return *tiles, tuple(f"p{i}#r{y:03d}c{x:03d}" for i, y, x in parts)  # type: ignore[return-value]


def images_to_score(count: int) -> Images:
    random = np.random.default_rng(count)
    pixels = random.integers(1, 256, (count, 16, 16, 3), np.uint8)
    masks = random.integers(0, 3, (count, 16, 16)).astype(np.uint8)
    masks[:, :3, :5] = IGNORE
    return pixels, masks, ()


def test_scores_do_not_depend_on_how_images_are_dealt_out() -> None:
    """To the last digit, of fewer images than workers and of batches that do not come out even."""
    sets = {f"{count} images": images_to_score(count) for count in (1, 7)}
    sets["tiles"] = in_tiles(*images_to_score(3)[:2])
    alone = scored(ALONE, SCORED, sets)
    for found in together(2, scored, SCORED, sets):
        assert found == alone
    for (case, name), (_, counts) in alone.items():
        of_images = [sum(truth for _, truth, _ in classes) for classes in counts]
        if name != "tiles":  # every pixel that is not ignored once
            assert of_images == [int((mask != IGNORE).sum()) for mask in sets[name][1]]
        elif SCORED[case].evaluate is not None:
            assert sum(of_images) == int((sets[name][1] != IGNORE).sum())


@pytest.mark.parametrize("name", ["simclr", "byol", "finetune"])
def test_activations_that_two_workers_compute_again_change_no_bit(name: str, trained: tuple[Each, Each]) -> None:
    """Also not the statistics of batch norms over both, which a second pass exchanges once more."""
    for metrics, weights in trained:
        assert metrics[f"{name}, checkpointed"] == metrics[name]
        assert all(torch.equal(weights[f"{name}, checkpointed"][key], value) for key, value in weights[name].items())


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Parameters and buffers, queues and running statistics among them."""
    assert one.keys() == two.keys()
    apart = {name: float((one[name] - two[name]).abs().max()) for name in one}
    assert {name: far for name, far in apart.items() if far > 1e-7} == {}


def test_gradients_of_exchanges_are_those_of_the_sum_of_all_workers_losses() -> None:
    """With what one process gets by autograd: of sum over w of weights_w sin(all rows), and of sin(sum of shares)."""
    generator = torch.Generator().manual_seed(0)
    rows, weights = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 12))
    weights = weights.view(2, 6, 3)
    answers = together(2, exchange, rows, weights)
    x = rows.clone().requires_grad_()
    (x.sin() * weights.sum(dim=0)).sum().backward()
    np.testing.assert_allclose(np.concatenate([answer[0] for answer in answers]), x.grad.numpy())
    x.grad = None
    ((x[:3] + x[3:]).sin() * weights[:, :3].sum(dim=0)).sum().backward()
    np.testing.assert_allclose(np.concatenate([answer[1] for answer in answers]), x.grad.numpy())


@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_own_statistics_add_up_to_those_of_one_process_that_takes_the_parts_in_order(momentum: float) -> None:
    rows = list(torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(1)) * 3 + 1)
    alone = normalise(ALONE, rows, momentum)
    for found in together(2, normalise, rows, momentum):
        assert found["num_batches_tracked"] == alone["num_batches_tracked"] == 8
        for name in ("running_mean", "running_var"):
            assert found[name] == pytest.approx(alone[name], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"name": "sgd", "lr": 1e30}}, "DivergedError: pretext_loss is "),
        ({"batch_size": 7}, "ValueError: a batch of 7 images does not divide among 2 workers"),
        (
            {"method": METHOD_SETTINGS["moco"] | {"name": "moco", "bn_splits": 3}},
            "ValueError: moco: with 2 workers bn_splits 3 must be a multiple of them",
        ),
    ],
)
def test_what_goes_wrong_is_said_by_all_workers(changes: Any, said: str, data: ImageSet, tmp_path: Path) -> None:
    for text in together(2, failure, case("simclr", **changes), MODEL, data, SPLIT, tmp_path):
        assert text.startswith(said)


def test_a_batch_norm_with_more_to_it_is_refused() -> None:
    class WithActivation(torch.nn.BatchNorm2d):
        """As timm has them."""

    with pytest.raises(ValueError, match=r"WithActivation .*resources"):
        whole_batch_norm(torch.nn.Sequential(WithActivation(3)), World(0, 2), torch.device("cpu"))


@pytest.mark.parametrize("stage", [case("simclr"), tuning(steps=5)], ids=["pretrain", "finetune"])
def test_where_one_worker_is_preempted_all_stop_after_the_same_step_and_nothing_is_lost(
    stage: Any, data: ImageSet, tmp_path: Path
) -> None:
    """The second of two workers is preempted at step 3 of 5; the first writes the state. Then both resume."""
    for name in ("cut", "resumed", "whole"):
        (tmp_path / name).mkdir()
    ends = together(2, preempt_and_resume, stage, MODEL, data, SPLIT, tmp_path)
    assert ends == [["state written after step 3", "finished", "finished"]] * 2
    resumed, whole = (load_file(tmp_path / name / WEIGHTS) for name in ("resumed", "whole"))
    curves = [(tmp_path / name / HISTORY).read_text() for name in ("resumed", "whole")]
    assert curves[0] == curves[1]  # the state has the losses of both workers
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


class Echo(World):
    """The first of two workers, the other of which has nothing to add; counts the exchanges."""

    exchanges: list[float]

    def sum(self, x: Tensor) -> Tensor:
        self.exchanges.append(0.0)
        return x


@settings(max_examples=30, deadline=None)
@given(step=st.floats(1e-4, 20.0))
def test_workers_exchange_about_every_two_seconds_and_never_more_than_once_a_step(step: float) -> None:
    """With steps of equal length: after the first, then every 2 s or every step, whichever is longer.

    1,000 steps at most lie between, which for steps shorter than 2 ms is less than 2 s.
    """
    now, world = [100.0], Echo(0, 2)
    object.__setattr__(world, "exchanges", [])
    steps = 2000
    with mock.patch.object(loop.time, "monotonic", side_effect=lambda: now[0]):
        timer = CheckpointTimer(RunContext(Path(), torch.device("cpu"), world=world))
        for _ in range(steps):
            now[0] += step
            timer.due()
    ideal = loop.EXCHANGE_SECONDS / step  # 2.5 steps are two or three, as the sums of floats have it
    between = [min(max(1, round(ideal + side)), loop.EXCHANGE_MAX_STEPS) for side in (0.01, -0.01)]
    least, most = (1 + (steps - 1) / each for each in between)
    assert least - 1 - 0.02 * least <= len(world.exchanges) <= most + 1 + 0.02 * most
