"""From a study file to cells and configurations: factors, levels, scales, --set, branches, and what is tuned where."""

import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.search_spaces import space
from pretune.search_spaces.cells import level_label
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.overrides import split_key
from pretune.search_spaces.resolve import from_dict, from_yaml, load
from pretune.search_spaces.stages import fingerprint, replicates, stages_of

BASE = {
    "study": "s",
    "data": {"scenes": {"dataset": "scenes"}},
    "model": {"widths": [4, 8]},
    "pretrain": {"data": "scenes", "method": {"name": "simclr"}, "epochs": 2},
    "finetune": {"data": "scenes", "epochs": 2},
}


def make(*overrides, scale=None, **more):
    return from_dict(BASE | more, scale, overrides)


def configurations(study):
    return {cell.label: cell.configuration() for cell in study.cells}


# ------------------------------------------------------------------------------------------ factors and levels


def test_a_study_without_factors_is_one_cell():
    (cell,) = make().cells
    assert (cell.label, cell.levels) == ("all", {})
    assert cell.configuration().pretrain[0].epochs == 2


def test_factors_are_crossed_in_the_order_of_the_file_the_last_fastest():
    study = make(
        factors={"skip": {"model.skip_connections": [True, False]}, "labels": {"finetune.labels": ["all", "10%", 74]}}
    )
    assert study.factors == {"skip": ("true", "false"), "labels": ("all", "10%", "74")}
    assert [cell.label for cell in study.cells] == [
        f"skip={skip} labels={labels}" for skip in ("true", "false") for labels in ("all", "10%", "74")
    ]
    found = configurations(study)
    assert found["skip=false labels=10%"].model.skip_connections is False
    assert [found[f"skip=true labels={label}"].finetune.labels for label in ("all", "10%", "74")] == [1.0, 0.1, 74]


def test_a_named_level_overrides_settings_of_any_stage_together():
    levels = {
        "ImageNet size": {
            "pretrain.views.size": 32,
            "finetune.size": 64,
            "model.norm": "none",
            "data.scenes.images": 50,
        },
        "Random": {"pretrain": "none", "finetune.transfer": "none"},
        "as it is": None,
    }
    found = configurations(make(factors={"row": levels}))
    large, random, plain = (found[f"row={label}"] for label in levels)
    assert (large.pretrain[0].views.size, large.finetune.size, large.model.norm) == (32, 64, "none")
    assert large.data["scenes"].images == 50
    assert (random.pretrain, random.finetune.transfer) == ((), "none")
    assert plain == make().cells[0].configuration()


def test_a_level_may_replace_a_whole_section():
    factors = {"optimizer": {"sgd": {"finetune.optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.1}}, "own": {}}}
    found = [cell.configuration().finetune.optimizer for cell in make(factors=factors).cells]
    assert (found[0].name, found[0].lr, found[0].momentum) == ("sgd", 0.5, 0.1)
    assert found[1] == make().cells[0].configuration().finetune.optimizer


def test_a_level_may_be_a_range():
    study = make(factors={"lr": {"finetune.optimizer.lr": [0.1, {"log_uniform": [0.01, 1.0]}]}})
    assert [cell.ranges("finetune") for cell in study.cells] == [[], ["finetune.optimizer.lr"]]
    assert study.cells[1].configuration().finetune.optimizer.lr == pytest.approx(0.1)


def test_levels_of_one_cell_do_not_leak_into_another():
    study = make(
        factors={"a": {"x": {"finetune.augment": {"flip": 0.5}}, "y": {}}, "b": {"finetune.labels": [1.0, 0.5]}}
    )
    assert [cell.template["finetune"].get("augment") for cell in study.cells] == [{"flip": 0.5}] * 2 + [None] * 2
    assert "augment" not in BASE["finetune"]


def test_too_many_cells_are_refused():
    factors = {
        str(i): {f"data.scenes.split.{key}": [i / 100 for i in range(1, 30)]} for i, key in enumerate(["test", "val"])
    }
    factors["s"] = {"data.scenes.split.seed": list(range(12))}
    with pytest.raises(StudyError, match="10092 cells are more than 10000"):  # 29 * 29 * 12
        make(factors=factors)


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, "true"), (False, "false"), (None, "none"), ("10%", "10%"), (74, "74"), (0.2, "0.2"), (1e-3, "0.001"),
     ([8, 16], "[8, 16]"), ({"name": "sgd"}, "{name: sgd}"), (np.float64(0.5), "0.5"),
     (space.Int(1, 3), "{int: [1, 3]}"), (list(range(60)), str(list(range(60))))],
)  # fmt: skip
def test_how_levels_are_written_in_tables(value, label):
    assert level_label(value) == label


def test_matching_cells_by_levels_as_they_are_written_in_the_file():
    study = make(
        factors={"skip": {"model.skip_connections": [True, False]}, "lr": {"finetune.optimizer.lr": [0.1, 0.2]}}
    )
    assert [cell.label for cell in study.matching({"skip": True})] == ["skip=true lr=0.1", "skip=true lr=0.2"]
    assert [cell.label for cell in study.matching({"lr": 0.2, "skip": "false"})] == ["skip=false lr=0.2"]
    assert study.matching({}) == study.cells


# ---------------------------------------------------------------------------------------------- scales and --set


def test_a_scale_is_laid_over_the_file_and_set_over_both():
    scales = {"small": {"pretrain.epochs": 1, "data.scenes.limit": 30, "seeds.report": 1}}
    study = make("pretrain.epochs=7", "finetune.optimizer={name: sgd, lr: 1e-2}", scale="small", scales=scales)
    found = study.cells[0].configuration()
    assert (found.pretrain[0].epochs, found.data["scenes"].limit) == (7, 30)
    assert (found.finetune.optimizer.name, found.finetune.optimizer.lr) == ("sgd", 0.01)
    assert study.header.seeds.report.pretrain == 1
    assert "scales" not in study.resolved
    assert make(scales=scales).cells[0].configuration().data["scenes"].limit is None


PUBLISHED = {"P": {"values": [["all", 0.5]]}}


@pytest.mark.parametrize(
    ("scale", "overrides", "said"),
    [
        (None, (), ["Labels are counts."]),
        ("small", (), ["Labels are counts.", "Scale small replaces pretrain.epochs (1), data.scenes.limit (30)."]),
        (None, ("seeds.report=2", " finetune.size = 32"), ["Labels are counts.", "--set replaces finetune.size = 32."]),
    ],
)
@pytest.mark.parametrize("given", ["Labels are counts.", ["Labels are counts."]])
def test_what_a_scale_and_set_replace_differs_from_the_published_study(scale, overrides, said, given):
    scales = {"small": {"pretrain.epochs": 1, "data.scenes.limit": 30, "seeds.report": 1}}
    report = {"published": "P", "differs": given}
    study = make(*overrides, scale=scale, scales=scales, published=PUBLISHED, report=report)
    assert list(study.header.report.differs) == said
    again = from_yaml(study.to_yaml())  # of a study's folder, where no scale is named any more
    assert list(again.header.report.differs) == said
    assert make(scale="small", scales=scales).header.report.differs is None  # nothing published is shown


def test_set_reaches_into_lists_and_takes_ranges_and_factors():
    factors = "factors={lr: {finetune.optimizer.lr: [0.1, {uniform: [0.5, 1]}]}}"
    study = make("pretrain.1.epochs=9", factors, pretrain=[BASE["pretrain"]] * 2)
    assert [stage.epochs for stage in study.cells[0].configuration().pretrain] == [2, 9]
    assert [cell.configuration().finetune.optimizer.lr for cell in study.cells] == [0.1, 0.75]


def test_the_value_of_set_may_hold_equals_signs():
    assert make("question=a=b").header.question == "a=b"


def test_a_part_shared_in_python_is_set_in_one_place_only():
    optimizer = {"name": "adam", "lr": 0.5}
    study = make("finetune.optimizer.lr=0.25", pretrain=BASE["pretrain"] | {"optimizer": optimizer},
                 finetune=BASE["finetune"] | {"optimizer": optimizer})  # fmt: skip
    found = study.cells[0].configuration()
    assert (found.pretrain[0].optimizer.lr, found.finetune.optimizer.lr) == (0.5, 0.25)


def test_dotted_keys_count_in_lists_and_name_elsewhere():
    data = {"pretrain": [{"epochs": 1}], "data": {"0": {}}}
    assert split_key("pretrain.0.epochs", data) == ("pretrain", 0, "epochs")
    assert split_key("data.0.limit", data) == ("data", "0", "limit")
    assert split_key("pretrain.7.x", data) == ("pretrain", 7, "x")


# ------------------------------------------------------------------------------------- Python, YAML, and back again

RANGED = {
    "pretrain": BASE["pretrain"] | {"method": {"name": "simclr", "temperature": {"log_uniform": [0.05, 1.0]}}},
    "finetune": BASE["finetune"] | {"optimizer": {"lr": {"log_uniform": [0.01, 0.1]}}},
}


def test_python_yaml_and_a_file_are_one_study(tmp_path):
    text = yaml.safe_dump(BASE | RANGED)
    (tmp_path / "s.yaml").write_text(text)
    studies = [from_dict(BASE | RANGED), from_yaml(text), load(tmp_path / "s.yaml")]
    assert all(study.cells == studies[0].cells and study.header == studies[0].header for study in studies)
    assert studies[2].source == str(tmp_path / "s.yaml")


def test_ranges_may_be_objects_in_python():
    method = {"name": "simclr", "temperature": space.LogUniform(0.05, 1.0)}
    study = make(pretrain=BASE["pretrain"] | {"method": method}, factors={"w": {"model.widths": ((4, 8), (8, 16))}})
    assert study.cells[0].ranges("pretrain") == ["pretrain.0.method.temperature"]
    assert from_yaml(study.to_yaml()).cells == study.cells


def test_none_pretraining_is_an_empty_chain():
    for none in ("none", None, {"method": "none"}, {"method": {"name": "none"}}, ["none", "none"]):
        study = make(pretrain=none)
        assert study.cells[0].template["pretrain"] == []
        assert study.cells[0].configuration().pretrain == ()


# -------------------------------------------------------------------------------------------- ranges and branches

BRANCHED = {
    "pretrain": BASE["pretrain"] | {"method": {"choice": [
        {"name": "simclr", "temperature": {"uniform": [0.1, 0.5]}}, {"name": "simclr", "dim": {"int": [8, 16]}},
    ]}}
}  # fmt: skip


def test_a_choice_of_methods_asks_only_for_the_ranges_of_the_chosen_one():
    (cell,) = make(**BRANCHED).cells
    asked = []

    def second(name, item):
        asked.append(name)
        return 1 if isinstance(item, space.Choice) else 12

    assert cell.configuration(second).pretrain[0].method.dim == 12
    assert asked == ["pretrain.0.method", "pretrain.0.method[simclr#1].dim"]
    assert cell.ranges("pretrain") == [
        "pretrain.0.method", "pretrain.0.method[simclr#0].temperature", "pretrain.0.method[simclr#1].dim"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "pretrain", "finetune"),
    [
        ([], ["pretrain.0.method.temperature"], ["finetune.optimizer.lr"]),
        (["finetune.transfer=none"], [], ["finetune.optimizer.lr"]),
        (["pretrain=none"], [], ["finetune.optimizer.lr"]),
        (["model.widths=[4, {int: [8, 9]}]"], ["model.widths.1", "pretrain.0.method.temperature"],
         ["finetune.optimizer.lr"]),
        (["model.widths=[4, {int: [8, 9]}]", "pretrain=none"], [], ["model.widths.1", "finetune.optimizer.lr"]),
    ],
)  # fmt: skip
def test_which_ranges_are_tuned_with_which_stage(overrides, pretrain, finetune):
    (cell,) = from_dict(BASE | RANGED, overrides=overrides).cells
    assert (cell.ranges("pretrain"), cell.ranges("finetune")) == (pretrain, finetune)


def test_cells_share_a_pretraining_exactly_if_no_factor_reaches_it():
    factors = {
        "freeze": {"finetune.freeze": ["none", "encoder"]},
        "skip": {"model.skip_connections": [True, False]},
        "labels": {"finetune.labels": ["all", "10%"]},
    }
    assert len({cell.pretraining() for cell in make(factors=factors, **RANGED).cells}) == 1
    for key, values in {
        "model.norm": ["batch", "none"],
        "pretrain.epochs": [1, 2],
        "data.scenes.images": [50, 60],
    }.items():
        study = make(factors={**factors, "reaching": {key: values}}, **RANGED)
        assert len({cell.pretraining() for cell in study.cells}) == 2


def test_a_model_that_is_itself_a_choice_is_a_branch():
    study = make(model={"choice": [{"widths": [4, 8]}, {"widths": [8, 16], "norm": "none"}]}, **RANGED)
    assert study.cells[0].ranges("pretrain")[0] == "model"
    assert json.loads(study.cells[0].pretraining())["model"]["choice"][1]["norm"] == "none"


# ------------------------------------------------------------------------------------------------------- warnings


def test_a_tune_section_without_ranges_is_pointed_out():
    said = "the study has a tune section but no ranges, so nothing is searched"
    assert make(tune={"trials": 3, "startup": 1}).warnings == (said,)
    assert make(tune={"trials": 3, "startup": 1}, **RANGED).warnings == ()
    assert (
        make(
            tune={"trials": 3, "startup": 1}, factors={"lr": {"finetune.optimizer.lr": [{"uniform": [0.1, 1]}]}}
        ).warnings
        == ()
    )


def test_freezing_what_nothing_was_transferred_to_is_pointed_out_once_per_cell():
    study = make(factors={"freeze": {"finetune.freeze": ["none", "encoder"]}}, pretrain="none")
    assert study.warnings == (
        "cell freeze=encoder: the encoder is frozen with random weights, because nothing is transferred to it",
    )


def finetuned(data, **changes):
    """A study of fine-tuning alone on CamVid with these settings."""
    plain = {"data": "d", "epochs": 2, "size": 64}
    return make(data={"d": {"dataset": "camvid", "cache_size": 128} | data}, pretrain="none", finetune=plain | changes)


OVERLAP, CENTRED = {"overlap": 0.5}, {"foreground": 0.33}


@pytest.mark.parametrize(
    ("data", "changes", "said"),
    [
        ({}, {"evaluate": OVERLAP}, r"finetune.evaluate: .*without crops training images would be shrunk"),
        ({}, {"crops": CENTRED}, r"finetune.crops: .*add finetune.evaluate: \{overlap: 0.5\}"),
        ({}, {"size": 128, "evaluate": OVERLAP}, "evaluate: without effect, as finetune.size takes"),
        ({}, {"size": 128, "crops": CENTRED, "evaluate": OVERLAP}, "crops and evaluate: without effect, as"),
        ({"fit": "tile"}, {"size": 256, "evaluate": OVERLAP}, r"cached at 128 px \(set finetune.size to 128 or less"),
        ({"fit": "tile"}, {"size": 128, "evaluate": OVERLAP, "test_sizes": [64]}, "finetune.test_sizes: sliding"),
    ],
)
def test_crops_and_windows_that_do_not_fit_the_cache_are_refused(data, changes, said):
    with pytest.raises(StudyError, match=said):
        finetuned(data, **changes)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ({}, {"crops": CENTRED, "evaluate": OVERLAP}),
        ({"fit": "tile"}, {"size": 128, "evaluate": OVERLAP}),
        ({"fit": "tile"}, {"size": 128, "crops": CENTRED}),
        ({"fit": "tile"}, {"crops": CENTRED, "evaluate": OVERLAP}),
    ],
)
def test_crops_and_windows_at_one_scale_are_taken(data, changes):
    assert finetuned(data, **changes).warnings == ()


@pytest.mark.parametrize(("metric", "average"), [("jaccard_images", "image"), ("dice_batches/car", "batch")])
@pytest.mark.parametrize("asked", [None, "dataset", "image", "batch"])
def test_a_metric_of_another_average_is_refused_with_the_setting_to_write(metric, average, asked):
    report = {"metrics": [f"test/{metric}"]}
    plain = {"data": "scenes", "epochs": 2} | ({} if asked is None else {"average": asked})
    if asked == average:
        make(finetune=plain, report=report)
    else:
        with pytest.raises(StudyError, match=f"set finetune.average: {average}"):
            make(finetune=plain, report=report)


def test_naming_the_average_that_is_always_there_is_no_other_stage():
    named, plain = (make(finetune={"data": "scenes", "epochs": 2} | more) for more in ({"average": "dataset"}, {}))
    assert configurations(named) == configurations(plain)


# ---------------------------------------------------------------------------------- whatever validates is expanded

LEVELS = {
    "model.skip_connections": [True, False],
    "model.norm": ["batch", "none"],
    "pretrain.epochs": [1, 3],
    "pretrain.method.temperature": [0.1, {"log_uniform": [0.05, 1.0]}],
    "pretrain.sees": ["train", "train+val", "all"],
    "finetune.labels": ["all", "10%", 5],
    "finetune.freeze": ["none", "encoder"],
    "finetune.optimizer.lr": [1e-3, "1e-2", {"uniform": [0.1, 0.2]}],
}
factors_of = st.lists(st.sampled_from(list(LEVELS)), unique=True, max_size=4)


def expanded(study):
    """The fingerprints of all stages, in order."""
    return [
        stage.fingerprint
        for cell in study.cells
        for replicate in replicates(study.header.seeds, "report")
        for stage in stages_of(
            cell.configuration(), replicate, study.header, lambda data: fingerprint({"images": data.images}), True
        ).values()
    ]


@given(factors_of)
@settings(max_examples=25, deadline=None)
def test_a_study_expands_the_same_every_time_and_from_its_own_yaml(keys):
    factors = {f"f{i}": {key: LEVELS[key]} for i, key in enumerate(keys)}
    study = make(factors=factors)
    assert len(study.cells) == np.prod([len(LEVELS[key]) for key in keys])
    assert len({cell.label for cell in study.cells}) == len(study.cells)
    assert expanded(study) == expanded(make(factors=factors)) == expanded(from_yaml(study.to_yaml()))


def test_a_sentence_on_what_differs_changes_no_fingerprint():
    told, silent = ({"published": "P"} | differs for differs in ({"differs": ["Labels are counts."]}, {}))
    assert expanded(make(published=PUBLISHED, report=told)) == expanded(make(published=PUBLISHED, report=silent))


@given(factors_of, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_order_and_names_of_factors_and_levels_change_no_fingerprint(keys, random):
    one = make(factors={f"f{i}": {key: LEVELS[key]} for i, key in enumerate(keys)})
    shuffled = random.sample(keys, len(keys))
    named = {f"g{i}": {f"level {j}": {key: value} for j, value in enumerate(LEVELS[key])}
             for i, key in enumerate(shuffled)}  # fmt: skip
    assert sorted(expanded(one)) == sorted(expanded(make(factors=named)))


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        (
            {"trials": 3},
            "purely random, because tune.trials (3) is not above tune.startup (8); set tune.startup: 1",
        ),
        ({"sampler": "genetic", "trials": 16}, "there will be no second generation"),
        ({"rungs": {"epochs": [1], "keep": 0.9}, "batch": 4}, "every rung keeps all of a batch of 4"),
        ({"budget": {"study": {"hours": 1}}}, "depends on the machine, and with it the table"),
    ],
)
def test_what_is_probably_not_meant_is_said(tune, says):
    finetune = BASE["finetune"] | {"epochs": 5, "optimizer": {"lr": {"log_uniform": [0.001, 0.1]}}}
    assert any(says in warning for warning in make(tune=tune, finetune=finetune).warnings)


TEMPERATURE = {"method": {"name": "simclr", "temperature": {"log_uniform": [0.05, 1.0]}}}
PROBE = {"probe": {"near": {"kind": "knn", "data": "scenes"}}}


@pytest.mark.parametrize(
    ("target", "pretrain", "says"),
    [
        ("pretext", TEMPERATURE, "pretrain.0.method.temperature changes what the loss measures"),
        ("pretext", {"optimizer": {"lr": {"log_uniform": [0.001, 0.1]}}}, None),
        (
            "pretext",
            {"method": {"name": "simclr"}, "batch_size": {"choice": [16, 64]}},
            "pretrain.0.batch_size changes what the loss measures",
        ),
        ("pretext", {"method": {"name": "mae"}, "batch_size": {"choice": [16, 64]}}, None),
        ("pretext", {"method": {"name": "segmentation"}, "views": {"size": {"choice": [16, 24]}}}, None),
        ("probe.near", TEMPERATURE | {"sees": "all"}, "probe.near is scored on validation images that pretraining"),
        ("probe.near", TEMPERATURE, None),
    ],
)
def test_a_target_that_judges_a_pretraining_unfairly_is_pointed_out(target, pretrain, says):
    study = make(tune={"trials": 9, "pretrain": {"target": target}}, pretrain=BASE["pretrain"] | pretrain, **PROBE)
    found = [warning for warning in study.warnings if warning.startswith("tune.pretrain.target")]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]
