"""Fine-tuning: resume equality, freezing, transfer, label subsets, and scores recomputed by scikit-learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.constants import RESUMED
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split, draw_split
from pretune.trainables.evaluation import Evaluator, images_at_once
from pretune.trainables.files import CONTINUE, STATE, TEST_IMAGES, WEIGHTS
from pretune.trainables.finetune import finetune, stalled, validation_due
from pretune.trainables.loop import DataFeed, DivergedError, RunContext
from pretune.trainables.models.table import build_encoder, build_unet
from pretune.trainables.models.unet import UNet
from pretune.trainables.views.joint import evaluation_batch

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "labels": 4, "split": 5}
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


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A pretrained encoder with a head beside it, its batch norm statistics unlike the initial ones."""
    torch.manual_seed(77)
    encoder = build_encoder(MODEL)
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.rand(4, 3, 16, 16))
    path = tmp_path / "parent.safetensors"
    checkpoints.save_weights(torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(2, 2)}), path)
    return path


def settings(**changes: Any) -> schema.Finetune:
    """22 training images in batches of 8: three steps per epoch, the last of 6 images."""
    plain: dict[str, Any] = {"data": "d", "size": 32, "batch_size": 8, "steps": 7, "optimizer": {"lr": 0.02}}
    return schema.Finetune.model_validate(plain | changes)


def run(
    chosen: schema.Finetune, data: ImageSet, split: Split, out: Path, model: schema.UNet = MODEL, **how: Any
) -> dict[str, float]:
    out.mkdir()
    return finetune(chosen, model, data, split, STREAMS, RunContext(out, CPU, **how), on_test=True)


def written(out: Path) -> tuple[bytes, Any, Any]:
    history, notes = (json.loads((out / name).read_text()) for name in ("history.json", "notes.json"))
    return (out / WEIGHTS).read_bytes(), history, notes


def loaded(out: Path, model: schema.UNet = MODEL, classes: int = 3) -> UNet:
    network = build_unet(model, classes).to(memory_format=torch.channels_last)
    network.load_state_dict(checkpoints.load_file(out / WEIGHTS))
    return network.eval()


def killed_at_save(number: int) -> Any:
    """The process dies right after it wrote its state for the given time."""
    real, count = checkpoints.save_state, iter(range(1, 1000))

    def save(state: dict[str, Any], folder: Path) -> None:
        real(state, folder)
        if next(count) == number:
            raise KilledError

    return mock.patch.object(checkpoints, "save_state", save)


# ---------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("checkpoint", ["last", "best"])
@pytest.mark.parametrize("kills", [[1], [3], [4], [7], [2, 2], [1, 1, 4]])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, data: ImageSet, split: Split, kills: list[int], checkpoint: str
) -> None:
    """Each number is how many steps an attempt lived; steps 3 and 6 end an epoch."""
    chosen = settings(checkpoint=checkpoint, augment={"flip": 0.5, "crop": [0.5, 1.0]})
    expected = run(chosen, data, split, tmp_path / "whole")
    resume = None
    for i, steps in enumerate(kills):
        out = tmp_path / f"attempt{i}"
        with killed_at_save(steps), pytest.raises(KilledError):
            run(chosen, data, split, out, resume=resume, checkpoint_seconds=0.0)
        resume = out / STATE
    assert run(chosen, data, split, tmp_path / "last", resume=resume, checkpoint_seconds=0.0) == expected
    assert written(tmp_path / "last") == written(tmp_path / "whole")


def test_a_resumed_run_reports_where_it_goes_on_before_its_first_step(
    tmp_path: Path, data: ImageSet, split: Split
) -> None:
    """Seven steps, of which four were done: without that report it would stand at 0 % until its next epoch ends."""
    with killed_at_save(4), pytest.raises(KilledError):
        run(settings(), data, split, tmp_path / "cut", checkpoint_seconds=0.0)
    said: list[dict[str, float]] = []
    run(settings(), data, split, tmp_path / "last", resume=tmp_path / "cut" / STATE, report=said.append)
    assert said[0] == {"step": 4, "total": 7, RESUMED: 1.0}
    assert [(row["step"], RESUMED in row) for row in said[1:]] == [(6, False), (7, False)]


def test_a_resumed_frozen_encoder_stays_frozen(tmp_path: Path, data: ImageSet, split: Split, parent: Path) -> None:
    chosen = settings(freeze="encoder")
    expected = run(chosen, data, split, tmp_path / "whole", parent=parent)
    with killed_at_save(4), pytest.raises(KilledError):
        run(chosen, data, split, tmp_path / "cut", parent=parent, checkpoint_seconds=0.0)
    state = tmp_path / "cut" / STATE
    assert run(chosen, data, split, tmp_path / "last", parent=parent, resume=state) == expected
    assert written(tmp_path / "last") == written(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------ divergence


@pytest.mark.parametrize(("steps", "metric", "step"), [(7, "loss", 1), (1, "val/logits", 0)])
@pytest.mark.parametrize("loss", ["dice", "cross-entropy", "dice+cross-entropy"])
def test_a_blow_up_names_its_metric_and_step(
    tmp_path: Path, data: ImageSet, split: Split, steps: int, metric: str, step: int, loss: str
) -> None:
    """At a rate of 1e30 the first update ruins the weights: the next loss shows it, or the scores after the last."""
    chosen = settings(steps=steps, loss=loss, optimizer={"lr": 1e30})
    with pytest.raises(DivergedError, match=rf"^{metric} is -?(nan|inf) at step {step}$"):
        run(chosen, data, split, tmp_path / "a")
    assert not (tmp_path / "a" / WEIGHTS).exists()


# -------------------------------------------------------------------------------------------- transfer and freezing


def test_a_frozen_encoder_keeps_its_weights_and_its_batch_norm_statistics(
    tmp_path: Path, data: ImageSet, split: Split, parent: Path
) -> None:
    run(settings(freeze="encoder", checkpoint="best"), data, split, tmp_path / "a", parent=parent)
    before = checkpoints.load_file(parent)
    after = checkpoints.load_file(tmp_path / "a" / WEIGHTS)
    names = [name for name in after if name.startswith("encoder.")]
    assert any("running_var" in name for name in names)
    assert all(torch.equal(after[name], before[name]) for name in names)
    initial = fresh().state_dict()
    assert any(not torch.equal(after[n], initial[n]) for n in after if n.startswith("decoder."))


def test_an_unfrozen_encoder_moves(tmp_path: Path, data: ImageSet, split: Split, parent: Path) -> None:
    run(settings(), data, split, tmp_path / "a", parent=parent)
    before = checkpoints.load_file(parent)
    after = checkpoints.load_file(tmp_path / "a" / WEIGHTS)
    assert all(not torch.equal(after[n], before[n]) for n in after if n.startswith("encoder.") and "weight" in n)


def fresh() -> UNet:
    torch.manual_seed(STREAMS["init"])
    return build_unet(MODEL, 3)


@pytest.mark.parametrize("transferred", [True, False])
def test_transfer_loads_exactly_the_encoder(
    tmp_path: Path, data: ImageSet, split: Split, parent: Path, transferred: bool
) -> None:
    """At a rate of nearly nothing, parameters after training are those before it: the encoder the parent's, all else
    the replicate's own initialisation, the same with and without transfer."""
    chosen = settings(steps=1, optimizer={"lr": 1e-30}, transfer="encoder" if transferred else "none")
    run(chosen, data, split, tmp_path / "a", parent=parent if transferred else None)
    own, given = fresh().state_dict(), checkpoints.load_file(parent)
    after = loaded(tmp_path / "a").named_parameters()
    for name, tensor in after:
        expected = given[name] if transferred and name.startswith("encoder.") else own[name]
        torch.testing.assert_close(tensor.detach(), expected, rtol=0, atol=1e-25)


def test_a_parent_without_a_decoder_cannot_give_one(tmp_path: Path, data: ImageSet, split: Split, parent: Path) -> None:
    with pytest.raises(KeyError, match="no weights below 'decoder'"):
        run(settings(transfer="encoder+decoder"), data, split, tmp_path / "a", parent=parent)


@pytest.mark.parametrize("skip", [True, False])
def test_without_skip_connections_fine_encoder_features_do_not_reach_the_logits(
    tmp_path: Path, data: ImageSet, split: Split, skip: bool
) -> None:
    model = MODEL.model_copy(update={"skip_connections": skip})
    run(settings(steps=2), data, split, tmp_path / "a", model)
    network = loaded(tmp_path / "a", model)
    with torch.no_grad():
        fine, coarse = network.encoder(torch.rand(1, 3, 32, 32))
        changed = network.decoder([fine + 1.0, coarse])
        assert torch.equal(network.decoder([fine, coarse]), changed) != skip


# ----------------------------------------------------------------------------------------------------------- labels


def test_label_subsets_are_nested_and_disjoint_from_what_is_scored(
    tmp_path: Path, data: ImageSet, split: Split
) -> None:
    used = []
    for amount in (3, 0.5, 1.0):
        run(settings(steps=1, labels=amount), data, split, tmp_path / str(amount))
        notes = written(tmp_path / str(amount))[2]
        used.append(set(notes["labelled"]))
        assert not used[-1] & {*notes["val"], *notes["test"]}
    assert [len(images) for images in used] == [3, 11, 22]
    assert used[0] < used[1] < used[2]


def test_masks_beyond_the_label_subset_are_never_read(tmp_path: Path, data: ImageSet, split: Split) -> None:
    chosen = settings(steps=4, labels=5)
    run(chosen, data, split, tmp_path / "a")
    assert data.masks is not None
    masks, notes = np.array(data.masks), written(tmp_path / "a")[2]
    masks[np.setdiff1d(split.train, notes["labelled"])] = 99  # no class has this label: reading it would raise
    hidden = ImageSet(data.images, masks, *list(vars(data).values())[2:])
    run(chosen, hidden, split, tmp_path / "b")
    assert written(tmp_path / "a") == written(tmp_path / "b")


# ----------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_test_scores_are_those_scikit_learn_finds_for_the_saved_weights(
    tmp_path: Path, data: ImageSet, split: Split, checkpoint: str
) -> None:
    """Every pixel of the test set, one image at a time; 32 px images need no resizing, so pixels are x / 255."""
    metrics = run(settings(steps=12, checkpoint=checkpoint), data, split, tmp_path / "a")
    network, predicted = loaded(tmp_path / "a"), []
    for i in split.test:
        pixels = torch.from_numpy(np.array(data.images[i])).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            predicted.append(network(pixels).argmax(1).numpy().ravel())
    assert data.masks is not None
    truth, guess = data.masks[split.test].ravel(), np.concatenate(predicted)
    per_class = {"jaccard": jaccard_score, "dice": f1_score, "precision": precision_score, "recall": recall_score}
    assert metrics["test/accuracy"] == pytest.approx(accuracy_score(truth, guess), abs=1e-9)
    for name, score in per_class.items():
        values = score(truth, guess, average=None, zero_division=0)
        assert metrics[f"test/{name}"] == pytest.approx(values.mean(), abs=1e-9)
        found = [metrics[f"test/{name}/{label}"] for label in data.classes]
        assert found == pytest.approx(list(values), abs=1e-9)


def test_best_keeps_the_weights_with_the_highest_validation_score(tmp_path: Path, data: ImageSet, split: Split) -> None:
    """`last` and `best` train alike; best scores as the best epoch of the shared curve, last as its last."""
    last = run(settings(steps=12, validate_every=1), data, split, tmp_path / "last")
    best = run(settings(steps=12, checkpoint="best"), data, split, tmp_path / "best")
    curve = [row["val/jaccard"] for row in written(tmp_path / "last")[1]]
    assert curve == [row["val/jaccard"] for row in written(tmp_path / "best")[1]]
    assert len(curve) == 4
    assert best["val/jaccard"] == max(curve)
    assert last["val/jaccard"] == curve[-1]


def test_validating_on_the_way_does_not_change_training(tmp_path: Path, data: ImageSet, split: Split) -> None:
    run(settings(), data, split, tmp_path / "a")
    run(settings(validate_every=1), data, split, tmp_path / "b")
    assert written(tmp_path / "a")[0] == written(tmp_path / "b")[0]


def test_without_validation_images_there_are_no_validation_scores(tmp_path: Path, data: ImageSet, split: Split) -> None:
    metrics = run(settings(), data, Split(split.train, split.val[:0], split.test), tmp_path / "a")
    assert not [name for name in metrics if name.startswith("val/")]
    assert "test/jaccard" in metrics


def test_the_order_and_batching_of_scored_images_change_nothing(data: ImageSet, split: Split) -> None:
    """80 images are two batches of 40; the same images once forwards, once backwards."""
    network, chosen = fresh(), settings()
    assert data.masks is not None
    evaluator = Evaluator(network, DataFeed(data.images, CPU), DataFeed(data.masks, CPU), data.classes, settings())
    once, twice = split.test, np.concatenate([split.test] * 8)
    scores = [evaluator.evaluate(order, chosen.size, "test", 0).scores for order in (once, once[::-1], twice)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-12)
    assert scores[0] == pytest.approx(scores[2], abs=1e-12)


def test_pixel_counts_of_every_test_image_are_kept_beside_the_weights_and_make_the_score(
    tmp_path: Path, data: ImageSet, split: Split
) -> None:
    metrics = run(settings(test_sizes=[16]), data, split, tmp_path / "a")
    with np.load(tmp_path / "a" / TEST_IMAGES) as kept:
        assert kept["images"].tolist() == split.test.tolist()
        assert kept["counts"].dtype == np.int64
        assert kept["counts"].shape == (len(split.test), len(data.classes), 3)
        right, true, guessed = kept["counts"].sum(axis=0).T
    present = true + guessed > 0
    assert metrics["test/jaccard"] == pytest.approx(
        float((right / (true + guessed - right))[present].mean()), abs=1e-12
    )


def test_other_test_sizes_are_scored_with_the_same_weights_on_images_and_masks_of_that_size(
    tmp_path: Path, data: ImageSet, split: Split
) -> None:
    """Trained at 32 px and tested at 16 and 64 too: as if the data had been made in that size. Same training."""
    plain = run(settings(), data, split, tmp_path / "a")
    metrics = run(settings(test_sizes=[16, 64]), data, split, tmp_path / "b")
    assert written(tmp_path / "a")[0] == written(tmp_path / "b")[0]
    assert {name: value for name, value in metrics.items() if "@" not in name} == plain
    assert data.masks is not None
    network = loaded(tmp_path / "b")
    for size in (16, 64):
        pixels, masks = evaluation_batch(
            torch.from_numpy(data.images[split.test]), torch.from_numpy(data.masks[split.test]), size
        )
        with torch.no_grad():
            guess = network(pixels).argmax(1).numpy().ravel()
        expected = jaccard_score(masks.numpy().ravel(), guess, average=None, zero_division=0).mean()
        assert metrics[f"test@{size}/jaccard"] == pytest.approx(expected, abs=1e-6)
    assert not [name for name in metrics if name.startswith("val@")]


def test_scoring_refuses_logits_that_are_not_finite(data: ImageSet, split: Split) -> None:
    network = fresh()
    with torch.no_grad():
        assert network.head.bias is not None
        network.head.bias[1] = math.nan
    assert data.masks is not None
    evaluator = Evaluator(network, DataFeed(data.images, CPU), DataFeed(data.masks, CPU), data.classes, settings())
    with pytest.raises(DivergedError, match="test/logits is nan at step 6"):
        evaluator.evaluate(split.test, settings().size, "test", 6)


def test_scoring_refuses_labels_that_are_no_class(data: ImageSet, split: Split) -> None:
    masks = np.array(data.masks)
    masks[split.test[0], 0, 0] = masks[split.test[-1], 0, :2] = len(data.classes)
    evaluator = Evaluator(fresh(), DataFeed(data.images, CPU), DataFeed(masks, CPU), data.classes, settings())
    with pytest.raises(ValueError, match="3 labels are none of the"):
        evaluator.evaluate(split.test, masks.shape[-1], "test", 6)


@pytest.mark.parametrize(
    ("changes", "due"),
    [({}, [False] * 3), ({"validate_every": 2}, [False, True, False]), ({"checkpoint": "best"}, [True] * 3)],
)
def test_when_validation_is_due(changes: dict[str, Any], due: list[bool]) -> None:
    assert [validation_due(settings(**changes), epoch) for epoch in range(3)] == due


@pytest.mark.parametrize(
    "changes", [{}, {"checkpoint": "best"}, {"validate_every": 2}, {"schedule": {"name": "cosine"}}]
)
def test_a_rung_is_the_beginning_of_the_whole_training(
    tmp_path: Path, data: ImageSet, split: Split, changes: dict[str, Any]
) -> None:
    """Stopped after one epoch of five and continued: what it validated at its end leaves no trace."""
    whole = settings(steps=None, epochs=5, **changes)
    for name in ("rung", "continued", "straight"):
        (tmp_path / name).mkdir()
    rung = RunContext(tmp_path / "rung", CPU, keep_state=True, until=1)
    scored = finetune(whole, MODEL, data, split, STREAMS, rung, on_test=False)
    assert "val/jaccard" in scored
    resume = tmp_path / "rung" / CONTINUE
    contexts = RunContext(tmp_path / "continued", CPU, resume=resume), RunContext(tmp_path / "straight", CPU)
    ends = [finetune(whole, MODEL, data, split, STREAMS, context, on_test=True) for context in contexts]
    assert ends[0] == ends[1]
    assert (tmp_path / "continued/history.json").read_text() == (tmp_path / "straight/history.json").read_text()
    one, two = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("continued", "straight"))
    assert one == two


def test_patience_stops_after_so_many_validations_without_a_better_one(
    tmp_path: Path, data: ImageSet, split: Split
) -> None:
    patient = settings(steps=None, epochs=40, checkpoint="best", patience=2, optimizer={"lr": 0.05})
    (tmp_path / "a").mkdir()
    scored = finetune(patient, MODEL, data, split, STREAMS, RunContext(tmp_path / "a", CPU), on_test=False)
    history = json.loads((tmp_path / "a/history.json").read_text())
    curve = [row["val/jaccard"] for row in history]
    assert len(curve) < 40
    assert scored["train/stopped_epoch"] == len(curve)
    assert curve.index(max(curve)) == len(curve) - 3
    assert scored["val/jaccard"] == max(curve)


@pytest.mark.parametrize(
    ("curve", "patience", "expected"),
    [
        ([0.1, 0.2], None, False),
        ([0.2, 0.1], 2, False),
        ([0.2, 0.1, 0.2], 2, True),
        ([0.1, 0.1, 0.3], 2, False),
        ([], 1, False),
    ],
)
def test_when_training_has_stalled(curve: list[float], patience: int | None, expected: bool) -> None:
    assert stalled([{"val/jaccard": value} for value in curve], patience) == expected


@pytest.mark.parametrize(
    ("classes", "size", "solid", "expected"),
    [(21, 512, False, 64), (150, 512, False, 13), (1000, 2048, False, 1), (2, 64, True, 8)],
)
def test_logits_that_are_scored_together_stay_below_two_gibibytes(
    classes: int, size: int, solid: bool, expected: int
) -> None:
    found = images_at_once(classes, size, solid=solid)
    assert found == expected
    assert found == 1 or solid or 4 * classes * size * size * found <= 2**31
