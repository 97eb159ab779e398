"""What both loops do around their steps: what they report and write, whom they ask, and in which form networks run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import plain
import pytest
import torch
from cases import STREAMS
from recorded import recorded
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from workers import in_double_precision

from pretune.search_spaces import schema
from pretune.trainables import checkpoints, loop
from pretune.trainables import finetune as finetuning
from pretune.trainables import pretrain as pretraining
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split, label_subset
from pretune.trainables.distributed import RunningStatistics, World
from pretune.trainables.evaluation import Evaluated
from pretune.trainables.files import WEIGHTS
from pretune.trainables.loop import RunContext
from pretune.trainables.methods import collapse
from pretune.trainables.metrics.probabilities import no_sums, probability_scores, probability_sums
from pretune.trainables.models.table import build_encoder, build_unet

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
SPLIT = Split(train=np.arange(29, 7, -1), val=np.arange(8), test=np.arange(30, 32))
SIMCLR = {"name": "simclr", "hidden": 6, "dim": 4}
MOCO = {"name": "moco", "hidden": 6, "dim": 4, "queue": 20, "bn_splits": 2}
SGD = {"name": "sgd", "lr": 0.05}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """32 scenes of 16 px, with classes invented for kNN."""
    settings = schema.Scenes(dataset="scenes", images=32, cache_size=16)
    return dataclasses.replace(load_images(settings, None, tmp_path_factory.mktemp("cache")), labels=np.arange(32) % 3)


class Done(NamedTuple):
    metrics: dict[str, float]
    reports: list[dict[str, float]]
    history: list[dict[str, float]]
    notes: dict[str, Any]
    moments: list[plain.Moment]


def pretrained(data: ImageSet, out: Path, until: int | None = None, split: Split = SPLIT, **changes: Any) -> Done:
    """Two steps to an epoch: five steps are two epochs and a half."""
    how = {name: changes.pop(name) for name in list(changes) if name in vars(RunContext(out, CPU))}
    body: dict[str, Any] = {"data": "d", "batch_size": 8, "steps": 5, "views": {"size": 16}, "method": SIMCLR}
    settings = schema.Pretrain.model_validate(body | {"optimizer": SGD} | changes)

    def train(context: RunContext) -> Any:
        return pretraining.pretrain(settings, MODEL, data, split, STREAMS, context)

    return done(train, out, how | {"until": until})


def finetuned(data: ImageSet, out: Path, until: int | None = None, split: Split = SPLIT, **changes: Any) -> Done:
    """Three steps to an epoch: five are an epoch and two steps."""
    how = {name: changes.pop(name) for name in list(changes) if name in vars(RunContext(out, CPU))}
    on_test, strata = changes.pop("on_test", False), changes.pop("strata", None)
    body: dict[str, Any] = {"data": "d", "size": 16, "batch_size": 8, "steps": 5, "optimizer": SGD}
    settings = schema.Finetune.model_validate(body | changes)

    def train(context: RunContext) -> Any:
        return finetuning.finetune(settings, MODEL, data, split, STREAMS, context, on_test=on_test, strata=strata)

    return done(train, out, how | {"until": until})


def done(train: Callable[..., Any], out: Path, how: dict[str, Any]) -> Done:
    """In double precision, with states after every step that are not written."""
    out.mkdir(exist_ok=True)
    reports: list[dict[str, float]] = []
    with in_double_precision(), recorded() as moments:
        metrics = train(RunContext(out, CPU, checkpoint_seconds=0.0, report=reports.append, **how))
    files = [out / "history.json", out / "notes.json"]
    history, notes = (json.loads(file.read_text()) if file.exists() else None for file in files)
    return Done(metrics, reports, history, notes, moments)


LOOPS = {"pretrain": pretrained, "finetune": finetuned}
LOSS = {"pretrain": "train/pretext_loss", "finetune": "train/loss"}
ENDS = {"pretrain": [2, 4, 5], "finetune": [3, 5]}  # steps after which something is reported
BATCHES = {"pretrain": 2, "finetune": 3}  # of an epoch
both_loops = pytest.mark.parametrize("name", LOOPS)


def plain_losses(name: str, data: ImageSet, out: Path) -> list[float]:
    """Of each of the five steps."""
    context = RunContext(out, CPU)
    with in_double_precision():
        if name == "pretrain":
            body = {"data": "d", "batch_size": 8, "steps": 5, "views": {"size": 16}, "method": SIMCLR, "optimizer": SGD}
            settings = schema.Pretrain.model_validate(body)
            found = plain.pretrain(settings, MODEL, data, SPLIT.train, STREAMS, context)
        else:
            tuning = schema.Finetune(data="d", size=16, batch_size=8, steps=5, optimizer=SGD)
            labelled = label_subset(SPLIT.train, 1.0, STREAMS["labels"])
            found = plain.finetune(tuning, MODEL, data, labelled, STREAMS, context)
    return [moment.loss for moment in found]


# ------------------------------------------------------------------------------------------------ reports and history


@both_loops
def test_the_mean_loss_of_every_epoch_is_reported_and_kept(name: str, data: ImageSet, tmp_path: Path) -> None:
    """Of what is left at the end too."""
    found, losses = LOOPS[name](data, tmp_path), plain_losses(name, data, tmp_path)
    first = [0, *ENDS[name]]
    means = [np.mean(losses[start:end]) for start, end in zip(first, ENDS[name], strict=False)]
    assert [row[LOSS[name]] for row in found.history] == pytest.approx(means, rel=1e-6)
    assert [row["step"] for row in found.history] == ENDS[name]
    assert [row["epoch"] for row in found.history] == [end / BATCHES[name] for end in ENDS[name]]
    assert [(row["step"], row["total"]) for row in found.reports] == [(end, 5) for end in ENDS[name]]
    assert [row[LOSS[name]] for row in found.reports] == [row[LOSS[name]] for row in found.history]
    assert found.metrics[LOSS[name]] == found.history[-1][LOSS[name]]


def test_pretraining_reports_what_its_method_and_its_encoder_show_of_a_collapse(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spread of 0.004, which is below what is taken for alive, stands for what the encoder shows."""
    seen: list[Tensor] = []

    def measure(_: nn.Module, pixels: Tensor, __: World) -> dict[str, float]:
        seen.append(pixels)
        return {"encoder_spread": 0.004, "encoder_rank": 9.0}

    monkeypatch.setattr(collapse, "measure", measure)
    found = pretrained(data, tmp_path)
    assert [row["train/encoder_spread"] for row in found.history] == [0.004] * 3
    assert [len(pixels) for pixels in seen] == [8] * 3
    assert all("train/feature_std" in row for row in found.history)
    assert found.metrics["train/collapse_signs"] == len(found.notes["warnings"]) >= 1
    assert any("encoder_spread 0.004" in said for said in found.notes["warnings"])


def test_pretrainings_notes_say_what_was_trained_on(data: ImageSet, tmp_path: Path) -> None:
    notes = pretrained(data, tmp_path).notes
    assert notes.pop("warnings") is not None
    assert notes == {"images": list(range(8, 30)), "batch_size": 8, "steps": 5, "steps_per_epoch": 2, "workers": 1}


def test_fine_tunings_notes_say_what_was_trained_on_and_scored(data: ImageSet, tmp_path: Path) -> None:
    labelled = label_subset(SPLIT.train, 6, STREAMS["labels"]).tolist()
    assert finetuned(data, tmp_path, labels=6, on_test=True).notes == {
        "labelled": labelled, "val": list(range(8)), "test": [30, 31], "steps": 5, "classes": list(data.classes),
        "size": 16, "workers": 1,
    }  # fmt: skip


def test_a_training_that_was_not_stopped_says_nothing_of_it(data: ImageSet, tmp_path: Path) -> None:
    """Nor does one that ends where a rung of it does."""
    for until, steps in ((None, 5), (1, 3)):
        found = finetuned(data, tmp_path / str(steps), until)
        assert found.notes["steps"] == steps
        assert "train/stopped_epoch" not in found.metrics


def test_label_subsets_hold_each_class_by_its_share_where_asked(data: ImageSet, tmp_path: Path) -> None:
    """Of 22 images 20 are of one class: of eleven labelled ones the other class has one, whatever is drawn."""
    rare = dataclasses.replace(data, labels=np.isin(np.arange(32), [10, 20]).astype(np.int64))
    assert rare.labels is not None
    notes = finetuned(rare, tmp_path, labels=11, steps=1, strata=rare.labels).notes
    assert rare.labels[notes["labelled"]].sum() == 1
    assert notes["labelled"] == label_subset(SPLIT.train, 11, STREAMS["labels"], rare.labels).tolist()
    assert notes["labelled"] != label_subset(SPLIT.train, 11, STREAMS["labels"]).tolist()


@both_loops
@pytest.mark.parametrize(("length", "until", "steps"), [({"steps": 5}, 1, 1), ({"epochs": 3, "steps": None}, 2, 2)])
def test_a_training_cut_short_ends_with_an_epoch_and_has_steps_of_the_whole(
    name: str, length: Any, until: int, steps: int, data: ImageSet, tmp_path: Path
) -> None:
    schedule = {"name": "cosine"}
    whole = LOOPS[name](data, tmp_path / "whole", schedule=schedule, **length)
    cut = LOOPS[name](data, tmp_path / "cut", until, schedule=schedule, **length)
    assert len(cut.moments) == steps * BATCHES[name]
    assert [moment.rates for moment in cut.moments] == [moment.rates for moment in whole.moments[: len(cut.moments)]]
    assert cut.notes["steps"] == len(cut.moments)


def test_ready_made_weights_are_imported_and_nothing_is_trained(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, context = {"name": "weights", "source": "timm:any"}, RunContext(tmp_path, CPU)
    settings = schema.Pretrain.model_validate({"data": "d", "method": method})
    expected = (settings.method, MODEL, context)
    monkeypatch.setattr(pretraining, "import_weights", lambda *given: {"imported": given == expected})
    assert pretraining.pretrain(settings, MODEL, data, SPLIT, STREAMS, context) == {"imported": True}


def test_a_decoder_goes_on_from_the_stage_before_where_that_trained_one(data: ImageSet, tmp_path: Path) -> None:
    """At a rate of nearly nothing weights stay what they were at the start."""
    mae = {"method": {"name": "mae", "patch": 5}, "steps": 1}
    still = mae | {"optimizer": SGD | {"lr": 1e-30}}
    for name, changes, parts in (("mae", mae, ("encoder", "decoder")), ("simclr", {"steps": 1}, ("encoder",))):
        before = pretrained(data, tmp_path / name, **changes).moments[-1].weights
        parent = tmp_path / name / WEIGHTS
        after = pretrained(data, tmp_path / f"after {name}", parent=parent, **still).moments[0].weights
        weights = [weight for weight in after if weight.startswith(parts) and weight.endswith("weight")]
        assert {weight.partition(".")[0] for weight in weights} == set(parts)
        for weight in weights:
            torch.testing.assert_close(after[weight], before[weight], rtol=0, atol=1e-7)


def test_a_method_says_which_maps_the_data_set_lacks(data: ImageSet, tmp_path: Path) -> None:
    method = {"name": "pixelcl++", "hidden": 6, "dim": 4}
    with pytest.raises(ValueError, match="needs depth, which the data set"):
        pretrained(dataclasses.replace(data, depth=None), tmp_path, method=method)


def test_without_a_view_there_is_nothing_to_measure_a_collapse_on(data: ImageSet) -> None:
    method = built(data)
    batch = pretraining.make_batch(method, pretraining.make_feeds(data, RunContext(Path(), CPU)), np.arange(4), 3, 0)
    assert pretraining.collapse_values(method, batch).keys() == {"train/encoder_spread", "train/encoder_rank"}
    assert pretraining.collapse_values(method, batch._replace(views=[])) == {}


# ------------------------------------------------------------------------------------------------------ what is scored


def test_the_pretext_loss_of_validation_images_is_their_mean_in_eval_mode(data: ImageSet, tmp_path: Path) -> None:
    """Eight images are one batch where training's are of six, and two of four where they are of three."""
    for batch_size, parts in ((6, [range(8)]), (3, [range(4), range(4, 8)])):
        out = tmp_path / str(batch_size)
        found = pretrained(data, out, batch_size=batch_size)
        with in_double_precision():
            method = built(data)
            method.load_state_dict(checkpoints.load_file(out / WEIGHTS))
            method.eval()
            feeds = pretraining.make_feeds(data, RunContext(out, CPU))
            batches = [pretraining.make_batch(method, feeds, np.array(part), 0x5EED, 0) for part in parts]
            with torch.no_grad():
                expected = np.mean([float(method(batch, 1.0)[0]) for batch in batches])
        assert found.metrics["val/pretext_loss"] == pytest.approx(expected, rel=1e-6)


def built(data: ImageSet) -> Any:
    settings = schema.Pretrain.model_validate({"data": "d", "method": SIMCLR, "steps": 1, "views": {"size": 16}})
    parts = plain.Parts(build_encoder(MODEL), lambda: plain.build_decoder(MODEL), 3, 3)
    return plain.build_method(settings.method, settings.views, parts)


def test_two_images_are_enough_to_train_on_and_two_to_validate_on(data: ImageSet, tmp_path: Path) -> None:
    two = Split(train=np.array([9, 8]), val=np.array([1, 0]), test=SPLIT.test)
    found = pretrained(data, tmp_path, split=two)
    assert found.notes["images"] == [8, 9]
    assert found.notes["batch_size"] == 2
    assert "val/pretext_loss" in found.metrics


def test_a_worker_without_a_batch_of_its_own_has_the_others_pretext_loss(data: ImageSet, tmp_path: Path) -> None:
    """Eight images are one batch, which is the first worker's: 24 in all, 3 an image."""

    class Second(World):
        def sum(self, x: Tensor) -> Tensor:
            return x + 24

    settings = schema.Pretrain.model_validate({"data": "d", "method": SIMCLR, "steps": 1, "batch_size": 8})
    feeds = pretraining.make_feeds(data, RunContext(tmp_path, CPU))
    assert pretraining.validate(built(data), settings, feeds, SPLIT.val, Second(1, 2)) == 3


@pytest.mark.parametrize(("sees", "val"), [("train+val", 8), ("train", 1)])
def test_there_is_no_pretext_loss_of_images_that_it_saw_or_of_one_alone(
    sees: str, val: int, data: ImageSet, tmp_path: Path
) -> None:
    split = SPLIT._replace(val=SPLIT.val[:val])
    assert "val/pretext_loss" not in pretrained(data, tmp_path, split=split, sees=sees).metrics


def test_knn_scores_come_every_so_many_epochs_and_at_the_end_and_leave_training_alone(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs and a half: scored after the second and at the end. The score leaves the encoder in eval mode."""
    asked: list[Any] = []

    def accuracy(encoder: nn.Module, feed: Any, labels: Any, split: Split, how: schema.KNN, world: World) -> float:
        asked.append((how.size, len(labels), len(split.val)))
        encoder.eval()
        return 0.25 * len(asked)

    monkeypatch.setattr(pretraining, "knn_accuracy", accuracy)
    found = pretrained(data, tmp_path / "scored", online_knn_every=2)
    assert [row.get("val/online_knn") for row in found.history] == [None, 0.25, 0.5]
    assert [row.get("val/online_knn") for row in found.reports] == [None, 0.25, None]
    assert found.metrics["val/online_knn"] == 0.5
    assert asked == [(16, 32, 8)] * 2
    plainly = pretrained(data, tmp_path / "plain")
    for one, other in zip(found.moments, plainly.moments, strict=True):
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_knn_score_that_was_due_at_the_end_is_not_made_again(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.25, 0.5))
    monkeypatch.setattr(pretraining, "knn_accuracy", lambda *_: next(scores))
    assert pretrained(data, tmp_path, online_knn_every=1, steps=4).metrics["val/online_knn"] == 0.5


@pytest.mark.parametrize(("labels", "val"), [(None, 8), (np.arange(32) % 3, 0)])
def test_knn_scores_need_image_classes_and_validation_images(
    labels: Any, val: int, data: ImageSet, tmp_path: Path
) -> None:
    without = dataclasses.replace(data, labels=labels)
    with pytest.raises(ValueError, match="online_knn_every needs image classes"):
        pretrained(without, tmp_path, split=SPLIT._replace(val=SPLIT.val[:val]), online_knn_every=1)


def test_of_equally_good_weights_the_first_are_kept() -> None:
    """And the better of two unequal ones: scores 0.5, 0.5, 0.4, 0.6 and 0.6 of weights 0 to 4, of which 0 and 3 are."""
    network, target = nn.Linear(1, 1), f"val/{finetuning.TARGET}"
    best = finetuning.BestWeights(network, schema.Finetune(data="d", steps=1, checkpoint="best"))
    assert best.restore() == {}
    kept = []
    for weight, score in enumerate((0.5, 0.5, 0.4, 0.6, 0.6)):
        nn.init.constant_(network.weight, weight)
        best.update({target: score, "train/loss": 1.0})
        assert best.restore() == {target: max(0.5, score)}
        kept.append(network.weight.item())
    assert kept == [0, 0, 0, 3, 3]


def test_with_the_last_weights_none_are_kept() -> None:
    best = finetuning.BestWeights(nn.Linear(1, 1), schema.Finetune(data="d", steps=1))
    best.update({f"val/{finetuning.TARGET}": 0.5})
    assert best.restore() == {}


@pytest.mark.parametrize(
    ("every", "scores", "kept"),
    [(0, [0.5, 0.9, 0.3], 6), (0, [0.5, 0.6, 0.7], 9), (2, [0.6, 0.4], 6), (2, [0.4, 0.6], 9)],
)
def test_the_best_weights_are_those_of_the_best_validation_the_one_at_the_end_included(
    every: int, scores: list[float], kept: int, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of three steps; validated after each, or after the second and at the end."""
    answers = iter(scores)
    none = torch.zeros(0)
    monkeypatch.setattr(
        finetuning.Evaluator,
        "evaluate",
        lambda _, __, ___, role, ____: Evaluated({f"{role}/jaccard": next(answers)}, np.zeros(0, np.int64), none),
    )
    found = finetuned(data, tmp_path, steps=9, checkpoint="best", validate_every=every)
    assert found.metrics["val/jaccard"] == max(scores)
    written = checkpoints.load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(value, written[name]) for name, value in found.moments[kept - 1].weights.items())


def test_balanced_weights_are_those_of_the_labelled_pixels(data: ImageSet, tmp_path: Path) -> None:
    """As scikit-learn weighs them, without ignored pixels and without images whose masks are not used."""
    assert data.masks is not None
    masks = np.array(data.masks)
    masks[:, :3] = 255
    some = dataclasses.replace(data, masks=masks)
    labelled = masks[label_subset(SPLIT.train, 5, STREAMS["labels"])]
    present = np.unique(labelled[labelled != 255])
    weights = compute_class_weight("balanced", classes=present, y=labelled[labelled != 255])
    numbers = {some.classes[index]: weight for index, weight in zip(present, weights, strict=True)}
    found = [
        finetuned(some, tmp_path / name, labels=5, loss="cross-entropy", class_weights=asked).metrics["train/loss"]
        for name, asked in (("balanced", "balanced"), ("numbers", numbers), ("none", None))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != pytest.approx(found[2], rel=1e-3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"loss": "focal", "focal_gamma": 0.0}, {"loss": "cross-entropy"}),
        ({"loss": "focal"}, {"loss": "focal", "focal_gamma": 2.0}),
        ({"loss": "tversky"}, {"loss": "tversky", "tversky_beta": 0.7}),
    ],
)
def test_numbers_of_a_loss_reach_it(one: dict[str, Any], other: dict[str, Any], data: ImageSet, tmp_path: Path) -> None:
    found = [finetuned(data, tmp_path / name, **how).metrics for name, how in (("one", one), ("other", other))]
    assert found[0]["train/loss"] == pytest.approx(found[1]["train/loss"], rel=1e-9)


def test_scores_of_probabilities_need_two_classes(data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threshold_scores needs two classes.* 3"):
        finetuned(data, tmp_path, threshold_scores=True)


def test_probabilities_are_scored_where_asked(data: ImageSet, tmp_path: Path) -> None:
    """On validation, test, and test at other sizes; eight images are one batch."""
    assert data.masks is not None
    two = dataclasses.replace(data, classes=data.classes[:2], masks=np.minimum(data.masks, 1))
    metrics = finetuned(two, tmp_path, threshold_scores=True, on_test=True, test_sizes=[8]).metrics
    assert {"val/soft_dice", "test/soft_dice", "test@8/soft_dice"} <= metrics.keys()
    with in_double_precision(), torch.no_grad():
        network = build_unet(MODEL, 2).eval()
        network.load_state_dict(checkpoints.load_file(tmp_path / WEIGHTS))
        logits = network(torch.from_numpy(two.images[SPLIT.val]).permute(0, 3, 1, 2).double() / 255)
        truth = torch.from_numpy(two.masks[SPLIT.val]).long()
        scored = probability_scores(probability_sums(logits, truth, no_sums(CPU)))
    assert {name: metrics[f"val/{name}"] for name in scored} == pytest.approx(scored, abs=1e-5)
    assert "val/soft_dice" not in finetuned(two, tmp_path / "plain").metrics


# -------------------------------------------------------------------------------------------------------------- states


@both_loops
def test_a_state_to_continue_from_is_written_where_asked_and_only_there(
    name: str, data: ImageSet, tmp_path: Path
) -> None:
    for keep in (True, False):
        (tmp_path / str(keep)).mkdir()
        ended: list[Any] = []
        with mock.patch.object(checkpoints, "save_end", lambda state, _, ended=ended: ended.append(state["step"])):
            train(name, data, RunContext(tmp_path / str(keep), CPU, keep_state=keep))
        assert ended == ([5] if keep else [])


def train(name: str, data: ImageSet, context: RunContext) -> dict[str, float]:
    """As `LOOPS` do, in single precision and with nothing recorded."""
    if name == "pretrain":
        body = {"data": "d", "batch_size": 8, "steps": 5, "views": {"size": 16}, "method": SIMCLR, "optimizer": SGD}
        settings = schema.Pretrain.model_validate(body)
        return pretraining.pretrain(settings, MODEL, data, SPLIT, STREAMS, context)
    tuning = schema.Finetune(data="d", size=16, batch_size=8, steps=5, optimizer=SGD)
    return finetuning.finetune(tuning, MODEL, data, SPLIT, STREAMS, context, on_test=True)


# ------------------------------------------------------------------------------------------------------------- workers


class Other(World):
    """A worker that is not the first, and whose means show that they were asked for. The others are as if not there."""

    @property
    def first(self) -> bool:
        return False

    def mean(self, x: Tensor) -> Tensor:
        return x + 1000

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.size)

    def parallel(self, module: nn.Module) -> nn.Module:
        return module

    def part(self, rows: Any) -> Any:
        return rows[:4]


@both_loops
def test_a_worker_takes_its_part_of_a_batch_and_means_with_the_others(
    name: str, data: ImageSet, tmp_path: Path
) -> None:
    sizes: list[int] = []
    module, make = {"pretrain": (pretraining, "make_batch"), "finetune": (finetuning, "fine_tune_batch")}[name]
    real = getattr(module, make)

    def counting(*args: Any) -> Any:
        sizes.append(len(args[2]))  # the indices of the images, in both
        return real(*args)

    with mock.patch.object(module, make, counting):
        found = LOOPS[name](data, tmp_path, split=SPLIT._replace(val=SPLIT.val[:0]), world=Other(1, 2))
    assert sizes == [4] * 5
    assert found.metrics[LOSS[name]] > 900
    assert name == "finetune" or found.metrics["train/feature_std"] > 900


@both_loops
def test_only_the_first_worker_writes(name: str, data: ImageSet, tmp_path: Path) -> None:
    found = LOOPS[name](data, tmp_path, world=Other(), keep_state=True)
    assert found.moments == []
    assert list(tmp_path.iterdir()) == []


@both_loops
def test_a_worker_that_is_not_the_first_writes_no_test_counts(name: str, data: ImageSet, tmp_path: Path) -> None:
    train(name, data, RunContext(tmp_path, CPU, world=Other()))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_must_divide_among_the_workers(data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch of 8 .* 3 workers"):
        pretrained(data, tmp_path, world=World(0, 3))


@pytest.mark.parametrize(
    ("name", "changes", "asked"),
    [
        ("pretrain", {}, True),
        ("pretrain", {"batch_norm": "local"}, False),
        ("pretrain", {"method": MOCO}, False),
        ("pretrain", {"method": MOCO | {"bn_splits": 1}}, True),
        ("finetune", {}, True),
        ("finetune", {"batch_norm": "local"}, False),
    ],
)
def test_batch_norm_is_of_the_whole_batch_unless_it_is_to_be_of_parts(
    name: str, changes: dict[str, Any], asked: bool, data: ImageSet, tmp_path: Path
) -> None:
    module = {"pretrain": pretraining, "finetune": finetuning}[name]
    with mock.patch.object(module, "whole_batch_norm") as whole:
        LOOPS[name](data, tmp_path, **changes)
    assert [call.args[1:] for call in whole.call_args_list] == ([(loop.ALONE, CPU)] if asked else [])


@both_loops
def test_the_loss_is_that_of_the_parallel_module_and_statistics_are_merged_after_every_step(
    name: str, data: ImageSet, tmp_path: Path
) -> None:
    """Calls of the module itself would leave each worker its own gradients."""
    calls: list[nn.Module] = []

    class Parallel(World):
        def parallel(self, module: nn.Module) -> Any:
            return lambda *args: calls.append(module) or module(*args)

    with mock.patch.object(RunningStatistics, "merge", autospec=True) as merge:
        LOOPS[name](data, tmp_path, world=Parallel())
    assert len(calls) == merge.call_count == 5


def test_a_parallel_network_is_made_again_when_other_parameters_are_trained(data: ImageSet, tmp_path: Path) -> None:
    """At the first step, and at that of the thaw: three steps are an epoch."""
    made: list[bool] = []

    class Parallel(World):
        def parallel(self, module: nn.Module) -> nn.Module:
            made.append(all(parameter.requires_grad for parameter in module.parameters()))
            return module

    finetuned(data, tmp_path, world=Parallel(), freeze="encoder", unfreeze_epoch=1)
    assert made == [False, True]


# ---------------------------------------------------------------------------------------------------------------- form


@both_loops
def test_weights_lie_channels_last(name: str, data: ImageSet, tmp_path: Path) -> None:
    seen: list[bool] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.ndim == 4]
        seen.append(all(p.is_contiguous(memory_format=torch.channels_last) for p in weights))

    hook = register_optimizer_step_pre_hook(look)
    try:
        train(name, data, RunContext(tmp_path, CPU))
    finally:
        hook.remove()
    assert seen == [True] * 5


@pytest.mark.parametrize(("kind", "expected"), [(nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d)])
def test_maps_lie_channels_last_in_two_and_three_dimensions(kind: Any, expected: torch.memory_format) -> None:
    assert loop.layout(nn.Sequential(nn.Linear(2, 2), kind(2, 2, 1))) is expected


def test_a_method_is_trained_in_training_mode_whatever_mode_it_comes_in(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in batch norm's count of the batches that it trained on."""
    build: Any = pretraining.build_method
    monkeypatch.setattr(pretraining, "build_method", lambda *args: build(*args).eval())
    weights = pretrained(data, tmp_path).moments[-1].weights
    counts = [value for name, value in weights.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(int(count) == 5 for count in counts)


@both_loops
@pytest.mark.parametrize(("precision", "asked"), [("float32", False), ("bfloat16", True)])
def test_a_step_is_in_the_precision_asked_for(
    name: str, precision: str, asked: bool, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on: list[bool] = []
    real = nn.Conv2d.forward

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        on.append(torch.is_autocast_enabled("cpu") and self.training)
        return real(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    body = {"precision": precision, "steps": 1, "batch_size": 8, "optimizer": SGD, "data": "d"}
    if name == "pretrain":
        settings = schema.Pretrain.model_validate(body | {"views": {"size": 16}, "method": SIMCLR})
        pretraining.pretrain(settings, MODEL, data, SPLIT, STREAMS, RunContext(tmp_path, CPU))
    else:
        tuning = schema.Finetune.model_validate(body | {"size": 16})
        finetuning.finetune(tuning, MODEL, data, SPLIT, STREAMS, RunContext(tmp_path, CPU), on_test=False)
    assert any(on) == asked


@both_loops
def test_networks_are_compiled_where_asked(
    name: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that leaves functions as they are."""
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(type(call.__self__).__name__) or call)
    LOOPS[name](data, tmp_path)
    assert compiled == []
    LOOPS[name](data, tmp_path, compile=True)
    assert compiled == {"pretrain": ["Encoder"], "finetune": ["Encoder", "Decoder"]}[name]
