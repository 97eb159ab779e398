"""Every study of a paper has the settings that its paper states, in every cell that they are about.

One row: the key in the resolved settings, the value, and where the paper says it. A paper's silence has no row: the
head of its study file says what was chosen. Where ours differs from the paper on purpose, the row has our value and
`where` ends in `; deviates:` and the reason, which the head of the file says too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from pretune import search_spaces
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.resolve import load

FOLDER = Path(search_spaces.__file__).parent / "papers"


class Stated(NamedTuple):
    key: str  # dotted, in the resolved settings; pretrain.0 is the first pretraining
    value: Any
    where: str
    levels: Mapping[str, str] = MappingProxyType({})  # the cells it is about; none: all


PETS_OF_P1 = [
    Stated("model.name", "resnet-head", "section 2: five convolutions, bilinear up-sampling between each pair"),
    Stated("model.depth", 34, "section 2: ResNet-34"),
    Stated("data.imagenet.dataset", "imagenet64", "section 2: 64 x 64 ImageNet"),
    Stated("data.imagenet.split.val", 0.2, "section 2: a 4:1 training/validation split for ImageNet"),
    Stated("data.pets.split.test", "official", "section 2: a 1:1 training+validation/test split"),
    Stated("pretrain.0.method.name", "simclr", "section 1"),
    Stated("pretrain.0.views.size", 64, "section 2: 64 x 64"),
    Stated("pretrain.0.batch_size", 2048, "section 2"),
    Stated("pretrain.0.optimizer.name", "adam", "section 2"),
    Stated("finetune.loss", "cross-entropy", "section 2"),
    Stated("finetune.batch_size", 128, "section 2"),
    Stated("finetune.optimizer.name", "adam", "section 2"),
    Stated("finetune.optimizer.lr", 1e-3, "section 2: eta_FT"),
]
VALIDATED = Stated("data.pets.split.val", 0.1, "section 2: 4:1 of the half that is not test")
TEMPERATURE = Stated("pretrain.0.method.temperature", 0.5, "section 2: tau = 0.5")
HEAD = [
    Stated("pretrain.0.method.hidden", 512, "section 2: two fully connected layers with 512 neurons each"),
    Stated("pretrain.0.method.dim", 512, "section 2: two fully connected layers with 512 neurons each"),
    Stated("pretrain.0.method.head_norm", False, "section 2: a ReLU, and no norm named"),
]
STEP = [
    Stated("pretrain.0.schedule.name", "step", "section 2: step decay"),
    Stated("pretrain.0.schedule.every", 10, "section 2: time-step 10"),
    Stated("pretrain.0.schedule.gamma", 0.5, "section 2: decay rate 0.5"),
]
RATE = Stated("pretrain.0.optimizer.lr", 1e-2, "section 2: eta_PT")
OF_IMAGES = Stated("finetune.average", "image", "authors' code: a score for each image; the text does not say")
P1_TEXT = [*PETS_OF_P1, VALIDATED, TEMPERATURE, *HEAD, *STEP, RATE]

PETS_OF_P2 = [
    Stated("model.name", "unet", "section 2.1"),
    Stated("data.pets.split.test", 0.1, "section 2.2: 90-10"),
    Stated("finetune.size", 128, "section 2.1"),
    Stated("finetune.loss", "dice", "section 2.5"),
    Stated("finetune.epochs", 20, "section 2.1"),
    Stated("finetune.batch_size", 256, "section 2.1"),
    Stated("finetune.optimizer.name", "adam", "section 2.1"),
    Stated("finetune.optimizer.lr", 1e-3, "section 2.1"),
    Stated("finetune.average", "batch", "section 2.7: across classes, before finally averaging over batches"),
    Stated("finetune.augment.flip", 0.0, "section 2.5: no further image augmentations"),
    Stated("finetune.augment.crop", [1.0, 1.0], "section 2.5: no further image augmentations"),
    Stated("model.widths", [32, 64, 128, 256], "section 2.1"),
    Stated("pretrain.0.optimizer.name", "adam", "section 2.1"),
    Stated("pretrain.0.optimizer.lr", 1e-3, "section 2.1"),
]
INATURALIST = [
    Stated("data.inaturalist.limit", 350000, "section 2.2"),
    Stated("data.inaturalist.leave_out", ["Plants", "Fungi"], "section 2.2"),
    Stated("data.inaturalist.cache_size", 128, "section 2.2"),
    Stated("data.inaturalist.split.test", 0.2, "section 2.2: 80-20"),
]


def simclr_of_p2(**levels: str) -> list[Stated]:
    return [
        Stated("pretrain.0.method.name", "simclr", "section 2.3", levels),
        Stated("pretrain.0.method.temperature", 0.2, "section 2.3", levels),
        Stated("pretrain.0.views.size", 64, "section 2.1", levels),
        Stated(
            "pretrain.0.views.color_jitter",
            1.0,
            "section 2.3: 0.8 of brightness, contrast, saturation; hue 0.2",
            levels,
        ),
        Stated("pretrain.0.views.gray", 0.0, "section 2.3: crops, flips and jitter", levels),
        Stated("pretrain.0.views.blur", 0.0, "section 2.3: crops, flips and jitter", levels),
        Stated("pretrain.0.batch_size", 384, "section 2.1", levels),
    ]


LENGTH_OF_P2 = Stated("pretrain.0.epochs", 20, "section 2.1")

FINE_TUNED_P3 = [
    Stated("model.name", "conrec-unet", "section 2.3: four blocks of two convolutions with batch norm"),
    Stated("model.widths", [64, 128, 256, 512], "section 5.2: 8 x 8 x 512"),
    Stated("finetune.loss", "dice", "section 2.3"),
    Stated("finetune.augment.flip", 0.5, "section 2.3: randomly flip horizontally"),
    Stated("finetune.augment.crop", [0.5, 1.0], "section 2.3: at least 50 % of the image"),
    Stated("finetune.augment.aspect", [0.75, 1.3333], "section 2.3: maximally (3/4, 4/3)"),
    Stated("finetune.augment.antialias", True, "not stated; chosen: crops are resized as test images are"),
]


def steps_of_p3(index: int = 0, **levels: str) -> Stated:
    return Stated(f"pretrain.{index}.steps", 150000, "section 5.2, of its VOC models", levels)


ALL_TASKS = ["reconstruction", "original-colors", "mask-location", "black-masks"]
UNLABELLED = Stated("pretrain.0.sees", "all", "Table 2: on the entire unlabeled dataset")
PADDED = Stated("data.pets.fit", "pad", "section 2.3: resize with padding")

PIXEL = [
    Stated("model.depth", 34, "section 3: ResNet34"),
    Stated("data.imagenet.subset", "tiny-imagenet", "section 3: the 200 classes of TinyImageNet"),
    Stated("pretrain.0.method.source", "torchvision:resnet34", "section 3: trained on ImageNet before"),
    Stated("pretrain.1.method.threshold", 0.7, "section 2.2: T = 0.7"),
    Stated("pretrain.1.method.depth_threshold", 0.2, "section 2.2: T' = 0.2", {"method": "PixelCL++"}),
]

ENCODER_OF_P4 = [
    Stated("model.depth", 18, "section 3: ResNet18"),
    Stated("pretrain.0.batch_size", 256, "section 3"),
    Stated("pretrain.0.views.size", 128, "section 3: views of 128 px"),
    Stated("pretrain.0.views.region_min_area", 1000, "section 3: regions below 1000 px are dropped"),
    Stated("pretrain.0.views.region_enlarge", 1.3, "section 2.2: c = 1.3"),
]


def methods_of_p4(epochs: int) -> list[Stated]:
    local = "section 3: 6 local crops of 64 px"
    return [
        *ENCODER_OF_P4,
        Stated("pretrain.0.epochs", epochs, "section 3; Table 3: appendix A.1"),
        Stated("pretrain.0.method.temperature", 0.07, "section 3", {"method": "SAMCLR"}),
        Stated("pretrain.0.method.local_views", 6, local, {"method": "DINO"}),
        Stated("pretrain.0.method.local_size", 64, local, {"method": "DINO"}),
    ]


MOCO = Stated("pretrain.0.method.temperature", 0.07, "section 3: as in MoCo", {"method": "MoCo"})

STATED: dict[str, list[Stated]] = {
    "p1_table1_text": [*P1_TEXT, OF_IMAGES],
    "p1_figure3": [
        *P1_TEXT,
        Stated("finetune.validate_every", 1, "Figure 3: over epochs"),
        Stated("finetune.score_loss", True, "Figure 3: cross entropy loss on validation images"),
    ],
    "p1_figure5": [*P1_TEXT, OF_IMAGES],
    "p1_outlook_resnet50": [stated for stated in P1_TEXT if stated.key != "model.depth"],
    "p1_outlook_pretraining_size": [
        *PETS_OF_P1,
        VALIDATED,
        TEMPERATURE,
        *HEAD,
        Stated("pretrain.0.optimizer.lr", 1e-3, "section 2: 1e-2; deviates: 1e-3, since the rate stays constant"),
    ],
    "p1_outlook_optimizer_batch": [
        Stated("pretrain.0.optimizer.name", "adam", "section 2", {"optimizer": "adam"}),
        Stated("pretrain.0.batch_size", 2048, "section 2", {"batch": "2048"}),
        *[
            s
            for s in PETS_OF_P1
            if not s.key.startswith(("pretrain.0.opt", "pretrain.0.batch", "finetune.optimizer.lr"))
        ],
        *HEAD,
        *STEP,
    ],
    "p1_outlook_genetic": [
        *[s._replace(levels={"settings": "paper"}) for s in (*PETS_OF_P1, TEMPERATURE, *HEAD, *STEP, RATE)],
    ],
    "p1_table1_code": [
        *PETS_OF_P1,
        OF_IMAGES,
        VALIDATED,
        TEMPERATURE,
        *STEP,
        Stated("pretrain.0.optimizer.lr", 1e-3, "authors' code"),
        Stated("pretrain.0.method.hidden", 128, "authors' code: 512 -> 128 -> 128"),
        Stated("pretrain.0.method.dim", 128, "authors' code: 512 -> 128 -> 128"),
        Stated("pretrain.0.method.head_norm", False, "authors' code"),
        Stated("pretrain.0.views.crop", [0.5, 1.0], "authors' code, view 1; deviates: to both views"),
        Stated("pretrain.0.views.color_jitter", 0.625, "authors' code, view 2: .5/.5/.5; deviates: to both views"),
        Stated("pretrain.0.views.color_jitter_hue", 0.5, "authors' code, view 2: .5; deviates: to both views"),
        Stated("pretrain.0.views.posterize_bits", 4, "authors' code: 4 bits"),
        Stated("pretrain.0.views.solarize_threshold", 0.7529, "authors' code: 192/255"),
        Stated("pretrain.0.views.color_jitter_probability", 1.0, "authors' code: always"),
        Stated("pretrain.0.views.extra_probability", 1.0, "authors' code: always"),
    ],
    "p2_table1": [
        *PETS_OF_P2,
        *INATURALIST,
        LENGTH_OF_P2,
        *simclr_of_p2(method="SimCLR"),
        Stated("finetune.freeze", "encoder", "Table 1: frozen encoder weights"),
        Stated("finetune.labels", 1.0, "Table 1: 90 %, all that are not test"),
        *[
            Stated("pretrain.0.views.size", 128, "section 2.1", {"method": name})
            for name in ("MAE patch masking", "MAE pixel masking", "MAE no masking")
        ],
        Stated("pretrain.0.method.patch", 20, "section 2.4: 20 pixels wide", {"method": "MAE patch masking"}),
        Stated("pretrain.0.method.ratio", 0.75, "section 2.4: 75 %", {"method": "MAE patch masking"}),
        Stated("pretrain.0.method.ratio", 0.75, "section 2.4: 75 %", {"method": "MAE pixel masking"}),
    ],
    "p2_table2": [
        *PETS_OF_P2,
        *INATURALIST,
        LENGTH_OF_P2,
        *simclr_of_p2(),
        Stated("finetune.labels", 1.0, "section 2.6: 90 %, all that are not test", {"labels": "90%"}),
        Stated("finetune.labels", 739, "section 2.6: 10 % of 7,390", {"labels": "10%"}),
        Stated("finetune.labels", 74, "section 2.6: 1 % of 7,390", {"labels": "1%"}),
    ],
    "p2_outlook_projection": [*PETS_OF_P2, *INATURALIST, LENGTH_OF_P2, *simclr_of_p2()],
    "p2_outlook_resolution": [*PETS_OF_P2, *INATURALIST, LENGTH_OF_P2, *simclr_of_p2()],
    "p2_outlook_pretraining_data": [*PETS_OF_P2, *INATURALIST, *simclr_of_p2()],
    "p3_table2_pets": [
        *FINE_TUNED_P3,
        UNLABELLED,
        PADDED,
        steps_of_p3(),
        *[Stated("finetune.labels", n, "Table 2", {"labels": f}) for f, n in (("1%", 74), ("5%", 368), ("20%", 1475))],
        *[Stated("finetune.transfer", "encoder", "Figure 1", {"init": i}) for i in ("2 SimCLR", "4 ConRec")],
        Stated(
            "finetune.transfer",
            "encoder+decoder",
            "Figure 1: entire network; deviates: without the output layer",
            {"init": "3 ConRec"},
        ),
        Stated("pretrain.0.method.tasks", ALL_TASKS, "section 2.2: four tasks", {"init": "3 ConRec"}),
    ],
    "p3_table2_flowers": [
        *FINE_TUNED_P3,
        UNLABELLED,
        steps_of_p3(),
        *[Stated("finetune.labels", n, "Table 2", {"labels": f}) for f, n in (("1%", 8), ("5%", 42), ("20%", 170))],
    ],
    "p3_table6": [
        *FINE_TUNED_P3,
        UNLABELLED,
        Stated("finetune.transfer", "encoder+decoder", "Table 6: the same setup as in Table 2"),
        Stated("pretrain.0.method.tasks", ALL_TASKS, "Table 6", {"tasks": "4 decoding tasks"}),
    ],
    "p3_table4": [
        Stated("data.car-patches.patches.share", 0.2, "section 5.1: at least 20 % of the pixels"),
        Stated("data.car-patches.split.val", 0.3, "section 5.1: a random 70/30 split"),
        Stated("finetune.loss", "dice", "section 2.3"),
    ],
    "p3_table5": [
        Stated("data.dogs.species", "dogs", "section 5.1: only the dog images"),
        Stated("data.cat.split.test", "official", "section 5.1: 131 to train on, 119 to evaluate on"),
        Stated("data.horse.split.test", "official", "section 5.1: 68 to train on, 79 to evaluate on"),
    ],
    "p3_figure4a": FINE_TUNED_P3,
    "p3_figure4b": [*FINE_TUNED_P3, Stated("data.car-patches.patches.share", 0.2, "section 5.1")],
    "p3_figure5c": [
        Stated("data.car-patches.patches.share", 0.2, "section 5.1: at least 20 % of the pixels"),
        Stated("data.car-patches.split.val", 0.3, "section 5.1: a random 70/30 split of the patches"),
        Stated("pretrain.0.method.name", "classification", "Figure 5: a car or no car"),
        Stated("pretrain.0.schedule.name", "constant", "section 5.1: a constant learning rate"),
        Stated("model.name", "conrec-unet", "section 2.3"),
        Stated("probe.where.kind", "cam", "Figure 5c"),
    ],
    "p3_figure6": [
        *FINE_TUNED_P3,
        PADDED,
        Stated("pretrain.0.sees", "all", "Figure 6: self-supervised models were pretrained on the whole dataset"),
        Stated("data.cat.split.test", "official", "Figure 6: 131 training samples"),
    ],
    "p3_figure7": [
        *[steps_of_p3(model=model) for model in ("SimCLR", "ConRec")],
        Stated("data.four-classes.classify", ["motorbike", "car", "cat", "aeroplane"], "section 5.2"),
        Stated("probe.alike.layers", "output", "section 5.2: the encoder output"),
        Stated("probe.alike.images", "all", "section 5.2: all images from Pascal VOC"),
    ],
    "p3_outlook_architectures": [
        *[stated for stated in FINE_TUNED_P3 if not stated.key.startswith("model.")],
        Stated("data.dogs.species", "dogs", "section 5.1: only the dog images"),
        Stated("data.cat.fit", "pad", "section 2.3: resize with padding"),
        Stated("model.name", "conrec-unet", "section 2.3", {"network": "ConRec's U-Net"}),
    ],
    "p3_outlook_methods": [*FINE_TUNED_P3, UNLABELLED, PADDED],
    "p3_outlook_tasks": [*FINE_TUNED_P3, UNLABELLED, PADDED],
    "p4_table1": [*methods_of_p4(1600), MOCO],
    "p4_table2": [*methods_of_p4(250), MOCO],
    "p4_table3": [
        *methods_of_p4(800),
        Stated("pretrain.0.views.color_jitter", 1.0, "Lightly's default: .8/.8/.8/.2", {"method": "SwaV"}),
    ],
    "p4_regions_x_temperature": ENCODER_OF_P4,
    "p4_figure2": ENCODER_OF_P4,
    "p4_outlook_regions": [*ENCODER_OF_P4, Stated("pretrain.0.epochs", 1600, "section 3")],
    "p4_outlook_segmentation": [*ENCODER_OF_P4, Stated("pretrain.0.epochs", 1600, "section 3")],
    "p5_table1": PIXEL,
    "p5_figure1": PIXEL,
}
STATES_NOTHING_OF_ITS_OWN = {"p3_table3"}  # Models Genesis' own settings


def found(cell: Cell, key: str) -> Any:
    value: Any = cell.configuration().model_dump(mode="json")
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def test_every_study_of_a_paper_has_its_rows():
    assert STATED.keys() | STATES_NOTHING_OF_ITS_OWN == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", STATED)
def test_a_study_has_the_settings_that_its_paper_states(name):
    cells = load(FOLDER / f"{name}.yaml").cells
    wrong = []
    for key, value, where, levels in STATED[name]:
        about = [cell for cell in cells if levels.items() <= cell.levels.items()]
        if key.startswith("pretrain."):  # a start without pretraining has no settings of one
            about = [cell for cell in about if cell.configuration().pretrain]
        assert about, f"no cell has {levels}"
        wrong += [f"{cell.label}: {key} is {got}, {where}" for cell in about if (got := found(cell, key)) != value]
    assert not wrong, "\n".join(wrong)
