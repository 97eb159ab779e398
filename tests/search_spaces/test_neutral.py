"""Optional settings that say what leaving them out means name the same result, and others name another one."""

import inspect
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.search_spaces import schema
from pretune.search_spaces.check import places_of_keys
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.schema import base
from pretune.search_spaces.stages import fingerprint, replicates, stages_of
from pretune.trainables import losses

EXEMPT = {  # optional keys of stages and models without a value that means what leaving them out means, and why
    **dict.fromkeys(("clip_norm", "stop_on_collapse", "patience", "boundary_tolerance"), "any value turns it on"),
    **dict.fromkeys(("clip", "decay", "on", "rotation", "color_jitter", "elastic"), "one that does nothing is "
                    "refused"),
    **dict.fromkeys(("antialias", "score_loss"), "true or left out"),
    "posterize_bits": "left out they are drawn",
    "unfreeze_every": "any value turns it on",
    "image_size": "a backbone tied to one size is built otherwise",
    **dict.fromkeys(("crops", "evaluate"), "another way to cut images, whatever its settings"),
    "class_weights": "names of classes are the data set's, and a mean weighted by 1 is another computation",
    "unfreeze_epoch": "the length of the training decides whether it changes anything; a warning says so",
    "region_source_area": "the cache size of the data set, which the views do not know",
    "epochs": "a length in epochs or steps", "steps": "a length in epochs or steps",
    "stop_after": "held by another test: a pretraining that stops at its end is the whole one",
    "channels": "held by the model: 3 is None once it is read",
    "average": "held by the setting: dataset is None once it is read",
    "blur": "of methods: left out it has a value of its own", "local_blur": "left out it has a value of its own",
}  # fmt: skip
STAGES = (schema.Pretrain, schema.Finetune, schema.KNN, schema.LinearProbe, schema.CKA, schema.CAM, schema.FeatureMaps)
NEUTRAL = {  # the stage's key, other settings that it needs, the neutral value, another value
    "finetune.augment.flip_vertical": ({}, 0, 0.5),
    "finetune.augment.scale": ({}, [1, 1.0], [0.5, 1]),
    "finetune.augment.blur": ({}, 0.0, 0.1),
    "finetune.encoder_lr_mult": ({}, 1, 0.1),
    "finetune.focal_gamma": ({"finetune.loss": "focal"}, 2, 1),
    "finetune.tversky_beta": ({"finetune.loss": "tversky"}, "0.7", 0.5),
    "finetune.optimizer.weight_decay_end": (
        {"finetune.optimizer.name": "adamw", "finetune.optimizer.weight_decay": 0.02}, 0.02, 0.2),
    "pretrain.method.head_norm": ({}, True, False),
    "pretrain.method.momentum_end": ({"pretrain.method.name": "moco", "pretrain.method.momentum": 0.9}, 0.9, 1.0),
    "pretrain.views.color_jitter_hue": ({"pretrain.views.color_jitter": 0.5}, 0.1, 0.5),
    "pretrain.views.solarize_threshold": ({}, 0.5, 0.75),
    "pretrain.optimizer.weight_decay_end": ({"pretrain.optimizer.name": "adamw"}, 0.01, 0.4),
}  # fmt: skip
STUDY = {
    "study": "s",
    "data": {"d": {"dataset": "scenes"}},
    "model": {"widths": [4, 8]},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "batch_size": 8, "epochs": 2},
    "finetune": {"data": "d", "size": 32, "epochs": 2},
}


def classes_below(annotation):
    """Every class of settings that an annotation leads to."""
    if inspect.isclass(annotation) and issubclass(annotation, base.Settings):
        yield annotation
        for field in annotation.model_fields.values():
            yield from classes_below(field.annotation)
    for inner in get_args(annotation):
        yield from classes_below(inner)


def names(**overrides):
    """Fingerprints and series of a study's stages."""
    study = from_dict(STUDY, overrides=[f"{key}={value}" for key, value in overrides.items()])
    first = replicates(study.header.seeds, "report")[0]
    digest = fingerprint({"data": 1})
    stages = stages_of(study.cells[0].configuration(), first, study.header, lambda _: digest, True)
    return {name: (stage.fingerprint, stage.series) for name, stage in stages.items()}


def test_every_optional_setting_has_a_neutral_value_or_a_reason_why_not():
    found = {
        name
        for stage in (*STAGES, schema.Model)
        for found_class in classes_below(stage)
        for name, field in found_class.model_fields.items()
        if field.default is None
    }
    assert found - EXEMPT.keys() == {key.rpartition(".")[2] for key in NEUTRAL} - {"blur"}
    places = {".".join(place).replace("NAME.", "") for place in places_of_keys(schema.Configuration)}
    assert places >= NEUTRAL.keys()


@given(st.sets(st.sampled_from(list(NEUTRAL)), min_size=1))
@settings(max_examples=40, deadline=None)
def test_neutral_values_name_the_result_of_leaving_them_out(keys):
    chosen = {}
    for key in keys:  # one loss, one method, one optimizer at a time
        if all(chosen.get(name, value) == value for name, value in NEUTRAL[key][0].items()):
            chosen |= NEUTRAL[key][0]
    fits = [key for key in keys if all(chosen.get(name) == value for name, value in NEUTRAL[key][0].items())]
    fits = [key for key in fits if key != "pretrain.method.head_norm" or "pretrain.method.name" not in chosen]
    assert names(**chosen, **{key: NEUTRAL[key][1] for key in fits}) == names(**chosen)


@pytest.mark.parametrize("key", NEUTRAL)
def test_other_values_name_another_result(key):
    others, _, other = NEUTRAL[key]
    stage = key.partition(".")[0]
    assert names(**others, **{key: other})[stage] != names(**others)[stage]


def test_the_neutral_numbers_of_losses_are_the_defaults_of_their_functions():
    neutral = schema.Finetune(data="d", epochs=1).neutral()
    for function, name, key in (
        (losses.focal_loss, "gamma", "focal_gamma"),
        (losses.tversky_loss, "beta", "tversky_beta"),
    ):
        assert inspect.signature(function).parameters[name].default == neutral[key]


def test_levels_of_which_one_is_neutral_and_one_left_out_mean_the_same():
    levels = {"as ever": {}, "none": {"finetune.augment.blur": 0}}
    with pytest.raises(StudyError, match="the levels 'as ever' and 'none' mean the same"):
        from_dict(STUDY | {"factors": {"blur": levels}})
