"""One preflight: what it lets through trains, what it refuses cannot be trained or would learn nothing."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pretune.cli import cli
from pretune.data.facts import data_facts
from pretune.data.preflight import check_before_training, check_masks
from pretune.data.requirements import facts_before_decoding, without_folds
from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.resolve import Study, from_dict
from pretune.search_spaces.stages import stream_seed
from pretune.trainables.buildable import encoding_error, unet_error
from pretune.trainables.data.checks.contents import Glance, glance, glance_at_images
from pretune.trainables.data.checks.requirements import facts_of_images
from pretune.trainables.data.errors import RequirementsError
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split, label_subset
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import RunContext
from pretune.trainables.methods.mae import lowest, patch_count
from pretune.trainables.models.table import build_encoder, build_unet
from pretune.trainables.pretrain import pretrain

STREAMS = {name: stream_seed(name, 0) for name in ("init", "order", "augmentation", "split", "labels")}
SMALL = {"hidden": 6, "dim": 4, "bottleneck": 4, "prototypes": 5, "shuffle_blocks": 9}
METHODS = sorted(name for name, facts in schema.FACTS.items() if facts.trains)
SETTINGS = {
    name: kind
    for kind in get_args(get_args(schema.Method)[0])
    for name in get_args(kind.model_fields["name"].annotation)
}

FINETUNE: dict[str, Any] = {"data": "s", "size": 16, "epochs": 1, "batch_size": 4}
BODY: dict[str, Any] = {
    "study": "t",
    "data": {"s": {"dataset": "scenes", "images": 24, "cache_size": 16, "split": {"test": 6, "val": 6}}},
    "model": {"widths": [4, 8]},
    "finetune": FINETUNE,
    "seeds": {"search": 1, "report": 2},
}


def refusal(body: dict[str, Any], facts_of: Any = None) -> str:
    """What is said against a study before anything is decoded; "" where it may run."""
    try:
        check_before_training(from_dict(copy.deepcopy(body)), facts_of or facts_before_decoding(None))
    except UsageError as error:
        return str(error)
    return ""


def pretraining(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    body = {"data": "s", "method": method, "views": {"size": 16}, "epochs": 1, "batch_size": 6}
    return BODY | {"pretrain": body | changes}


# ------------------------------------------------------------------------------------------------------ known cases


SWAV = {"name": "swav", "queue": 4, "local_size": 8, "queue_from_epoch": 0}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "queue below the batch": (
        pretraining({"name": "moco", "queue": 4, "bn_splits": 1}),
        "queue: 4 cannot hold a batch of 6",
    ),
    "the same of SwAV": (pretraining(SWAV), "queue: 4 cannot hold a batch of 6"),
    "small views below the stride": (pretraining({"name": "dino", "local_size": 1}), "small views of 1 px are below 2"),
    "a single output of length 1": (pretraining({"name": "simclr", "dim": 1}), "pretrain.method.dim"),
    "the same of DINO": (
        pretraining({"name": "dino", "local_views": 0, "bottleneck": 1}),
        "1 or -1 and has no gradient",
    ),
    "warm-up longer than the training": (
        BODY | {"finetune": FINETUNE | {"schedule": {"name": "cosine", "warmup_epochs": 99}}},
        "a warm-up of 99 epochs does not end within the 1 trained",
    ),
    "the same in steps": (
        BODY | {"finetune": {"data": "s", "size": 16, "batch_size": 4, "steps": 6, "schedule": {"warmup_epochs": 2}}},
        "warmup_epochs: 2 are 6 steps of the 6 trained (3 to an epoch of 12 images",
    ),
    "one image left at one place": (
        BODY | {"model": {"widths": [4, 4, 4, 4]}, "finetune": FINETUNE | {"size": 8, "labels": 5}},
        "4 leaves one of 5 labelled images for the last step of an epoch, and at 8 px",
    ),
    "the same of a ResNet": (
        BODY
        | {"data": {"s": {"dataset": "scenes", "images": 40, "split": {"test": 6, "val": 6}}}}
        | {"model": {"name": "resnet-unet", "depth": 18}}
        | {"finetune": FINETUNE | {"size": 32, "labels": 17, "batch_size": 16}},
        "16 leaves one of 17 labelled images",
    ),
    "one factor in rows and columns": (
        BODY
        | {"factors": {"c": {"finetune.freeze": ["none", "encoder"]}, "d": {"finetune.size": [16, 32]}}}
        | {"report": {"rows": "c", "columns": "c"}},
        "factor 'c' is in the rows and in the columns",
    ),
    "a class that the report names": (
        BODY | {"report": {"metrics": ["test/jaccard/zzz"]}},
        "report.metrics: test/jaccard/zzz names a class that scenes does not have",
    ),
    "a class that the tuning names": (
        BODY
        | {"finetune": FINETUNE | {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}}}}
        | {"tune": {"trials": 2, "target": "val/jaccard/zzz"}},
        "tune.target: val/jaccard/zzz names a class that scenes does not have",
    ),
    "a patch that covers the view": (pretraining({"name": "mae"}), "one patch covers a view of 16 px (patch 20)"),
    "a ratio that masks nothing": (
        pretraining({"name": "mae", "ratio": 0.1, "patch": 8, "loss_on": "masked"}),
        "4 patches cover a view of 16 px (patch 8), and a ratio of 0.1 masks nothing",
    ),
    "the same of pixels": (
        pretraining({"name": "mae", "ratio": 0.001, "masking": "pixels"}),
        "a ratio of 0.001 masks nothing of 256 pixels",
    ),
    "a report on validation images that there are none of": (
        BODY
        | {"data": {"s": BODY["data"]["s"] | {"split": {"test": 6, "val": 0}}}}
        | {"report": {"metrics": ["val/jaccard"]}},
        "report.metrics: val/jaccard needs validation images",
    ),
    "a share that rounds to no validation image to tune by": (
        BODY
        | {"data": {"s": BODY["data"]["s"] | {"split": {"test": 6, "val": 0.01}}}}
        | {"finetune": FINETUNE | {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}}}},
        "tune.target: val/jaccard needs validation images",
    ),
    "attention over fewer than eight channels": (
        pretraining({"name": "conrec"}) | {"model": {"widths": [2, 4]}},
        "pretrain.method: conrec cannot be built for unet: pooling: attention needs 8 channels or more",
    ),
    "a level that the encoder does not have": (
        pretraining({"name": "simclr"}) | {"probe": {"m": {"kind": "maps", "data": "s", "size": 16, "level": 3}}},
        "level 3, and the encoder has 2 levels",
    ),
    "a linear probe's batch of one": (
        pretraining({"name": "simclr"})
        | {"probe": {"p": {"kind": "linear", "data": "s", "size": 16, "batch_size": 1, "batch_norm": True}}},
        "leave a batch of one",
    ),
    "a backbone that cannot take so small a view": (
        pretraining({"name": "dino", "local_size": 8}, views={"size": 64})
        | {"model": {"name": "timm-unet", "backbone": "resnet18"}, "finetune": FINETUNE | {"size": 64}},
        "local_size 8 px is below 32, what this encoder needs",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_run_is_refused_with_a_sentence(case: str) -> None:
    body, said = CASES[case]
    known, labels = facts_before_decoding(None), np.arange(24) % 3 if "probe" in body else None
    found = refusal(body, lambda data: dataclasses.replace(known(data), labels=labels))
    assert said in found


def test_the_body_of_these_cases_may_run() -> None:
    assert refusal(BODY) == ""
    assert refusal(pretraining({"name": "moco", "queue": 6, "bn_splits": 1})) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrain.method.queue_from_epoch": 1},  # the training ends before the queue is in use
        {"pretrain.method.queue": 0},
        {"pretrain.batch_size": 4},
        {"data.s.split": {"test": 10, "val": 10}},  # four images are left: a batch is no larger than that
    ],
)
def test_a_queue_that_is_never_too_small_is_let_through(changes: dict[str, Any]) -> None:
    study = from_dict(copy.deepcopy(pretraining(SWAV)), overrides=[f"{key}={value}" for key, value in changes.items()])
    check_before_training(study, facts_before_decoding(None))


def test_one_cell_that_has_the_class_is_enough_for_the_report() -> None:
    body = BODY | {
        "factors": {"n": {"data.s.classes": [3, 4]}},
        "report": {"metrics": ["test/jaccard/checked star"]},
    }
    assert refusal(body) == ""


# ------------------------------------------------------------------------------------- what it lets through trains


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """16 scenes of 16 px with invented image classes."""
    torch.set_num_threads(1)
    made = load_images(
        schema.Scenes(dataset="scenes", images=16, cache_size=16), None, tmp_path_factory.mktemp("cache")
    )
    return dataclasses.replace(made, labels=np.arange(16) % 3)


def first(data: ImageSet, n: int) -> ImageSet:
    """Its first n images."""
    assert data.masks is not None
    assert data.regions is not None
    assert data.depth is not None
    assert data.labels is not None
    return dataclasses.replace(
        data,
        images=data.images[:n],
        masks=data.masks[:n],
        regions=data.regions[:n],
        depth=data.depth[:n],
        labels=data.labels[:n],
    )


@st.composite
def pretrainings(draw: Any, name: str) -> dict[str, Any]:
    """A study of one pretraining with small numbers, many of which cannot be."""
    method: dict[str, Any] = {"name": name}
    fields = SETTINGS[name].model_fields
    method |= {key: value for key, value in SMALL.items() if key in fields}
    choices: dict[str, Any] = {
        "queue": st.integers(1, 12),
        "bn_splits": st.integers(1, 3),
        "queue_from_epoch": st.integers(0, 2),
        "local_size": st.integers(1, 8),
        "local_views": st.integers(0, 2),
        "patch": st.integers(1, 20),
        "ratio": st.floats(0.01, 0.99),
        "masking": st.sampled_from(["patches", "pixels"]),
        "loss_on": st.sampled_from(["all", "masked"]),
        "projection_levels": st.integers(1, 4),
        "pooling": st.sampled_from(["attention", "average"]),
    }
    method |= {key: draw(values) for key, values in choices.items() if key in fields}
    length = draw(st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 2}, {"steps": 4}]))
    size = draw(st.integers(1, 12) if not schema.FACTS[name].decoder else st.sampled_from([2, 4, 6, 8, 16]))
    stage = {
        "data": "s",
        "method": method,
        "views": {"size": size, "blur": 0.5},
        "batch_size": draw(st.integers(2, 9)),
        "schedule": draw(st.sampled_from([{}, {"name": "cosine", "warmup_epochs": 1}, {"warmup_epochs": 2}])),
        **length,
    }
    model = {
        "widths": [draw(st.sampled_from([2, 8]))] * draw(st.integers(2, 4)),
        "norm": draw(st.sampled_from(["batch", "none"])),
    }
    n = draw(st.integers(4, 12))
    data = {"s": {"dataset": "scenes", "images": n, "cache_size": 16, "split": {"test": 1, "val": 1}}}
    return {"study": "t", "data": data, "model": model, "pretrain": stage, "report": {"metrics": []}}


def train_once(body: dict[str, Any], data: ImageSet) -> None:
    """Run the only stage of a study, whatever the preflight says."""
    known = {key: value for key, value in body.items() if key in schema.Configuration.model_fields}
    known["pretrain"] = [body["pretrain"]] if "pretrain" in body else []
    configuration = schema.Configuration.model_validate(known)
    split = draw_split(len(data.images), configuration.data["s"].split, STREAMS["split"], None)
    with tempfile.TemporaryDirectory() as out:
        context = RunContext(Path(out), torch.device("cpu"))
        if configuration.finetune is not None:
            finetune(configuration.finetune, configuration.model, data, split, STREAMS, context, on_test=True)
        else:
            pretrain(configuration.pretrain[0], configuration.model, data, split, STREAMS, context)


def masks_a_part(stage: dict[str, Any]) -> bool:
    """Whether MAE hides some of a view and shows some."""
    method, size = stage["method"], stage["views"]["size"]
    places = patch_count(size, method["patch"] if method["masking"] == "patches" else 1) ** 2
    hidden = lowest(np.random.default_rng(0).random((1, places)), method["ratio"])
    return bool(hidden.any()) and not bool(hidden.all())


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_pretraining_trains_exactly_if_it_is_let_through(name: str, scenes: ImageSet, data: st.DataObject) -> None:
    body = data.draw(pretrainings(name))
    images = first(scenes, body["data"]["s"]["images"])
    facts = facts_of_images(images)
    said = refusal(body, lambda _: facts)
    if not said:
        train_once(body, images)
        return
    if name == "mae" and not masks_a_part(body["pretrain"]):
        return
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        train_once(body, images)


@st.composite
def fine_tunings(draw: Any) -> dict[str, Any]:
    """A study of one fine-tuning with small numbers."""
    levels = draw(st.integers(2, 4))
    model = draw(
        st.sampled_from(
            [
                {"name": "unet", "widths": [2] * levels},
                {"name": "unet", "widths": [2] * levels, "norm": "none"},
                {"name": "conrec-unet", "widths": [2] * levels},
                {"name": "genesis-unet", "dimensions": 2, "widths": [2] * levels},
            ]
        )
    )
    stage = {
        "data": "s",
        "size": draw(st.sampled_from([2, 4, 8, 16])),
        "labels": draw(st.integers(1, 9) | st.sampled_from([0.2, 0.5, 1.0])),
        "batch_size": draw(st.integers(1, 6)),
        "freeze": draw(st.sampled_from(["none", "encoder"])),
        "test_sizes": draw(st.sampled_from([[], [32]])),
        "schedule": draw(st.sampled_from([{}, {"name": "cosine", "warmup_epochs": 1}])),
        **draw(st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 2}])),
    }
    n = draw(st.integers(4, 12))
    data = {
        "s": {"dataset": "scenes", "images": n, "cache_size": 16, "split": {"test": 1, "val": draw(st.integers(0, 1))}}
    }
    return {"study": "t", "data": data, "model": model, "finetune": stage}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=fine_tunings())
def test_a_fine_tuning_trains_exactly_if_it_is_let_through(scenes: ImageSet, body: dict[str, Any]) -> None:
    images = first(scenes, body["data"]["s"]["images"])
    facts = facts_of_images(images)
    if not refusal(body, lambda _: facts):
        train_once(body, images)
        return
    with pytest.raises((ValueError, RuntimeError, UsageError)):
        train_once(body, images)


SMALL_MODELS: dict[str, dict[str, Any]] = {
    "unet": {"widths": [2, 4, 4]},
    "conrec-unet": {"widths": [2, 4, 4]},
    "genesis-unet": {"widths": [2, 4, 4], "dimensions": 2},
    "resnet-unet": {"depth": 18},
    "resnet-head": {"depth": 18},
    "timm-unet": {"backbone": "resnet18"},
    "vit-pyramid": {"backbone": "test_vit3", "pyramid_width": 8, "decoder_width": 4},
}


@pytest.mark.parametrize("name", sorted(schema.MODEL_FACTS))
def test_shapes_without_values_fail_where_real_images_do(name: str) -> None:
    """Every size up to 40 px for small models, a few for the others; one image and two."""
    model = schema.Configuration.model_validate({"data": {}, "model": {"name": name} | SMALL_MODELS[name]}).model
    sizes = range(1, 20) if "widths" in SMALL_MODELS[name] else (8, 32, 48)
    torch.manual_seed(0)
    encoder, network = build_encoder(model), build_unet(model, 2)
    for size in sizes:
        for rows in (1, 2):
            pixels = torch.rand(rows, 3, size, size)
            assert bool(encoding_error(model, size, None, rows, training=True)) == fails(encoder, pixels), (size, rows)
            said = unet_error(model, size, None, rows, training=True, frozen=False)
            assert bool(said) == fails(network, pixels), (size, rows)


def fails(network: torch.nn.Module, pixels: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            network.train()(pixels)
    except (ValueError, RuntimeError, AssertionError):  # the last from timm's patches
        return True
    return False


# ------------------------------------------------------------------------------------------------------------ masks


def folder(root: Path, masks: list[int], size: int = 8) -> dict[str, Any]:
    """Images, and masks of one value each."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, value in enumerate(masks):
        Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(np.full((size, size), value, np.uint8)).save(root / "masks" / f"{i:03d}.png")
    found = {"dataset": "image-mask-folder", "root": str(root), "classes": ["ground", "leaf", "stem"], "ignore": 255}
    return found | {"cache_size": 8, "split": {"test": 3, "val": 3}}


def study_of(data: dict[str, Any]) -> Study:
    return from_dict(copy.deepcopy(BODY | {"data": {"s": data}, "finetune": FINETUNE | {"labels": 2}}))


def in_files(data: schema.Data) -> Glance | None:
    """A look at the masks before anything is decoded."""
    return glance(without_folds(data), None, None, "")


def looked_at(study: Study) -> str:
    """What a look at the masks refuses, from the files and from the decoded copy alike."""
    said = []
    with tempfile.TemporaryDirectory() as cache:
        for look in (in_files, lambda data: glance_at_images(load_images(data, None, Path(cache)), data.fit)):
            try:
                check_masks(study, facts_before_decoding(None), look)
                said.append("")
            except RequirementsError as error:
                said.append(str(error))
    assert said[0] == said[1]
    return said[0]


def part_of(data: dict[str, Any], part: str, seed: int) -> list[int]:
    """Rows of the part of a report replicate; of the training images those that are labelled."""
    chosen = study_of(data).cells[0].configuration().data["s"]
    drawn = draw_split(20, chosen.split, stream_seed("split", seed), None)
    rows = label_subset(drawn.train, 2, stream_seed("labels", seed)) if part == "train" else getattr(drawn, part)
    return [int(i) for i in rows]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("test", "data.s.split.test: the masks of all 3 test images are ignored"),
        ("val", "data.s.split.val: in a replicate, the masks of all 3 validation images are ignored"),
        ("train", "finetune.labels: in a replicate, the masks of all 2 labelled images of data.s are ignored"),
    ],
)
def test_a_part_that_is_wholly_ignored_in_one_replicate_is_refused(tmp_path: Path, part: str, said: str) -> None:
    """Of the second report seed; one pixel in one mask of the part is enough to be scored."""
    masks = [i % 3 for i in range(20)]
    whole = folder(tmp_path / "a", masks)
    assert looked_at(study_of(whole)) == ""
    rows = part_of(whole, part, 1)
    data = folder(tmp_path / "b", [255 if i in rows else value for i, value in enumerate(masks)])
    assert said in looked_at(study_of(data))
    one = np.full((8, 8), 255, np.uint8)
    one[3, 3] = 1
    Image.fromarray(one).save(tmp_path / "b" / "masks" / f"{rows[-1]:03d}.png")
    assert said not in looked_at(study_of(data))


@pytest.mark.parametrize(
    ("masks", "only"),
    [
        ([0] * 20, "ground"),
        ([2] * 20, "stem"),
        ([0, 255] * 10, "ground"),  # white was the second class, and is ignored
        ([0] * 7 + [1] + [0] * 12, ""),
        ([255] * 9 + [0, 1] + [255] * 9, ""),
    ],
)
def test_masks_of_one_class_alone_are_refused_and_one_image_of_another_is_enough(
    tmp_path: Path, masks: list[int], only: str
) -> None:
    said = looked_at(study_of(folder(tmp_path / "a", masks)))
    assert (f"data.s: all 20 masks contain only '{only}' (and ignored pixels)" in said) == bool(only)
    assert ("contain only" in said) == bool(only)


def test_a_plan_shows_what_the_data_hold(tmp_path: Path) -> None:
    """Five masks in ten are ground, four leaf, one is ignored; no mask shows stem."""
    study = study_of(folder(tmp_path / "d", [0, 0, 1, 1, 255, 0, 0, 1, 1, 0] * 2))
    (found,) = data_facts(study, facts_before_decoding(None), in_files, None)
    assert (found.images, found.train, found.val, found.test) == (20, 14, 3, 3)
    assert (found.looked_at, found.usable, found.absent) == (20, 20, ("stem",))
    assert found.shares == pytest.approx({"ground": 0.5, "leaf": 0.4, "stem": 0.0, "ignored": 0.1})
    assert list(found.sentences()) == [
        "data s: 20 images (14 train, 3 validation, 3 test)",
        "data s: 20 of 20 pairs of image and mask are usable; share of pixels: ground 50.0%, leaf 40.0%, stem 0.0%, "
        "ignored 10.0%",
        "note: data s: no checked mask contains stem",
    ]


def test_a_plan_counts_the_usable_images_before_and_after_they_are_decoded(tmp_path: Path) -> None:
    """Of 20 pairs one has an empty image and one a mask of another value; the split leaves 12 of 18 for training."""
    data = folder(tmp_path / "d", [0, 1] * 9 + [7, 0]) | {"on_error": "skip"}
    (tmp_path / "d" / "images" / "019.png").write_bytes(b"")
    study = study_of(data)
    settings = study.cells[0].configuration().data["s"]
    opened = load_images(settings, None, tmp_path / "cache")
    assert len(opened.images) == 18
    for look in (in_files, lambda one: glance_at_images(opened, one.fit)):
        (found,) = data_facts(study, facts_before_decoding(None), look, None)
        assert (found.images, found.train, found.val, found.test, found.usable, found.listed) == (18, 12, 3, 3, 18, 20)
        first, second, *_ = found.sentences()
        assert first == "data s: 18 usable images (12 train, 3 validation, 3 test)"
        assert "18 of 20 pairs" in second


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_masks_of_which_no_pair_is_usable_end_plan_and_run(tmp_path: Path, command: str, on_error: str) -> None:
    data = folder(tmp_path / "e", [7] * 150) | {"on_error": on_error}
    file = tmp_path / "study.yaml"
    file.write_text(study_of(data).to_yaml())
    ended = CliRunner().invoke(cli, [command, str(file), "--root", str(tmp_path / "runs")])
    assert isinstance(ended.exception, UsageError)
    assert "mask values outside the classes: 7" in str(ended.exception)


def test_a_late_usable_pair_is_found_where_bad_ones_are_skipped(tmp_path: Path) -> None:
    """128 of 151 pairs are looked at, and the usable one is not among them."""
    sample = set(np.linspace(0, 150, 128).astype(int).tolist())
    late = next(i for i in range(150, 0, -1) if i not in sample)
    masks = [0 if i == late else 7 for i in range(151)]
    study = study_of(folder(tmp_path / "f", masks) | {"on_error": "skip"})
    (found,) = data_facts(study, facts_before_decoding(None), in_files, None)
    assert (found.looked_at, found.usable) == (128, 0)
    assert any("128 of 128 checked pairs cannot be used" in sentence for sentence in found.sentences())


# ----------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("case", ["queue below the batch", "a patch that covers the view"])
@pytest.mark.parametrize("command", ["plan", "run", "submit"])
def test_plan_run_and_submit_refuse_alike(tmp_path: Path, command: str, case: str) -> None:
    body, said = CASES[case]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(body))
    where = ["--root", str(tmp_path / "runs")] + (["--address", "http://localhost:1"] if command == "submit" else [])
    ended = CliRunner().invoke(cli, [command, str(file), *where])
    assert isinstance(ended.exception, UsageError | StudyError)
    assert said in str(ended.exception)
    assert not list((tmp_path / "runs").glob("cache/*"))


def test_init_says_what_plan_would_refuse(tmp_path: Path) -> None:
    folder(tmp_path / "g", [5] * 12)
    folders = ["--images", str(tmp_path / "g" / "images"), "--masks", str(tmp_path / "g" / "masks")]
    ended = CliRunner().invoke(cli, ["init", str(tmp_path / "s.yaml"), *folders, "--classes", "ground,leaf"])
    assert isinstance(ended.exception, UsageError)
    assert "all 12 checked masks contain only 5; a task needs" in str(ended.exception)
    assert not (tmp_path / "s.yaml").exists()
