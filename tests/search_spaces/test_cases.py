"""Small studies that once ended in a wrong table (../shared/cases), and what is beyond each of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import Study, from_dict, from_yaml, load

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")

STUDY = """
study: t
data:
  s: {dataset: scenes, images: 24, cache_size: 32, split: {test: 6, val: 6}}
model: {widths: [4, 8]}
finetune: {data: s, size: 16, epochs: 1, batch_size: 4}
seeds: {search: 1, report: 2}
"""


def study(**changes: str) -> Study:
    return from_yaml(STUDY, overrides=[f"{key}={value}" for key, value in changes.items()])


def refused(*overrides: str) -> list[str]:
    with pytest.raises(StudyError) as error:
        from_yaml(STUDY, overrides=overrides)
    return [f"{problem.where}: {problem.what} ({problem.fix})" for problem in error.value.problems]


@needs_cases
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("two-factors-one-key/study.yaml",
         ["study.yaml:37: factors.b.x.finetune.freeze: factor 'a' sets finetune.freeze too (line 33)"]),
        ("tuned-data/classes.yaml", ["classes.yaml:10: data.s.classes: a range here changes what is measured"]),
        ("tuned-data/seed.yaml", ["seed.yaml:10: data.s.seed: a range here changes what is measured"]),
        ("bool-as-number/study.yaml", ["study.yaml:17: finetune.epochs: should be a whole number, received 'yes'",
                                       "study.yaml:18: finetune.labels: should be a whole number or a number"]),
        ("range-interior/batch-uniform.yaml", ["batch-uniform.yaml:18: finetune.batch_size: should be a whole number"]),
        ("range-interior/size-int.yaml", ["size-int.yaml:17: finetune.size: 9 px is not a multiple of 4"]),
        ("ignore-hits-class/study.yaml", ["data.s: ignore: 255 is the mask value of 'leaf' too"]),
        ("classes-not-a-task/one.yaml", ["data.s: classes: one class ('bg') is not enough"]),
        ("classes-not-a-task/dup.yaml", ["data.s: classes: 'leaf' stands there twice"]),
    ],
)  # fmt: skip
def test_a_case_is_refused_with_its_line(file: str, said: list[str]) -> None:
    with pytest.raises(StudyError) as error:
        load(CASES / file)
    lines = str(error.value).splitlines()
    assert len(lines) == len(said)
    assert all(part in line for line, part in zip(lines, said, strict=True))


# ------------------------------------------------------------------------------------------------------- one writer
KEYS = [
    "finetune",
    "finetune.augment",
    "finetune.augment.flip",
    "finetune.freeze",
    "finetune.size",
    "model",
    "model.widths",
]
VALUES: dict[str, Any] = {
    "finetune": {"data": "s", "size": 8, "epochs": 1}, "finetune.augment": {"flip": 0.1}, "finetune.augment.flip": 0.2,
    "finetune.freeze": "encoder", "finetune.size": 8, "model": {"widths": [4, 4]}, "model.widths": [4, 6],
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(VALUES)), st.sampled_from(sorted(VALUES)))
def test_two_factors_are_refused_exactly_where_one_key_holds_the_other(one: str, other: str) -> None:
    touch = one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
    factors = {"a": {"x": {one: VALUES[one]}, "y": {}}, "b": {"x": {other: VALUES[other]}, "y": {}}}
    plain = from_yaml(STUDY).resolved
    if touch:
        with pytest.raises(StudyError, match=f"factor 'a' sets {one} too"):
            from_dict(plain | {"factors": factors})
    else:
        assert len(from_dict(plain | {"factors": factors}).cells) == 4


# ------------------------------------------------------------------------------------------------ nothing measured
@pytest.mark.parametrize(
    "override",
    [
        "data.s.classes={choice: [2, 6]}", "data.s.seed={int: [0, 9]}", "data.s.images={int: [24, 30]}",
        "data.s.split.test={choice: [6, 7]}", "data.s.split.seed={int: [0, 3]}", "data.s.split.val={int: [5, 6]}",
        "data.s.cache_size={choice: [32, 16]}", "data.s={choice: [{dataset: scenes}, {dataset: scenes, seed: 1}]}",
        "finetune.data={choice: [s, s]}", "finetune.test_sizes={choice: [[8], [32]]}",
        "finetune.boundary_tolerance={uniform: [0.001, 0.1]}",
        "finetune={choice: [{data: s, size: 16, epochs: 1}, {data: s, size: 16, epochs: 1, test_sizes: [8]}]}",
    ],
)  # fmt: skip
def test_a_range_on_what_is_measured_is_refused_and_a_factor_is_said_to_be_another_task(override: str) -> None:
    assert any("a range here changes what is measured" in line for line in refused(override))
    key = override.partition("=")[0]
    if key in ("data.s.classes", "data.s.split.test"):
        levels = {"data.s.classes": "[2, 6]", "data.s.split.test": "[6, 7]"}[key]
        found = from_yaml(STUDY, overrides=[f"factors={{a: {{{key}: {levels}}}}}"])
        assert [w for w in found.warnings if "they are different tasks" in w]


def test_a_range_on_images_that_pretraining_alone_sees_is_allowed() -> None:
    pool = "data.pool={dataset: scenes, images: {int: [20, 40]}, cache_size: 32, split: none}"
    pretrain = "pretrain={data: pool, method: {name: simclr}, views: {size: 16}, epochs: 1, batch_size: 4}"
    found = from_yaml(STUDY, overrides=[pool, pretrain])
    assert [name for cell in found.cells for name, _ in cell.all_ranges] == ["data.pool.images"]


# ---------------------------------------------------------------------------------------------------------- types
def number_fields(model: type[BaseModel], path: str) -> list[str]:
    """Dotted keys of a model's own fields that take a number and nothing else."""
    found = []
    for key, field in model.model_fields.items():
        taker = TypeAdapter(field.annotation)
        try:
            taken = taker.validate_python(True)
        except ValidationError:
            continue
        if isinstance(taken, int | float) and not isinstance(taken, bool):
            found.append(f"{path}.{key}")
    return found


NUMBERS = [
    *number_fields(schema.Finetune, "finetune"), *number_fields(schema.Tune, "tune"),
    *number_fields(schema.Adam, "finetune.optimizer"), *number_fields(schema.Augment, "finetune.augment"),
]  # fmt: skip

BESIDE = {  # what these need, so that nothing else is wrong
    "finetune.steps": ["finetune.epochs=null"],
    "finetune.unfreeze_epoch": ["finetune.freeze=encoder"],
    "finetune.unfreeze_every": ["finetune.freeze=encoder", "finetune.unfreeze_epoch=1"],
    "finetune.patience": ["finetune.checkpoint=best"],
    "finetune.focal_gamma": ["finetune.loss=focal"],
    "finetune.tversky_beta": ["finetune.loss=tversky"],
}


def test_there_are_numbers_to_try() -> None:
    assert {"finetune.epochs", "finetune.size", "finetune.optimizer.lr", "tune.trials"} <= set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("written", ["yes", "on", "true", "No", "1:30", "010"])
def test_what_is_a_number_to_yaml_1_1_alone_is_refused(key: str, written: str) -> None:
    start = ["finetune.optimizer.name=adam", *BESIDE.get(key, ())]
    assert any(line.startswith(f"{key}: should be") for line in refused(*start, f"{key}={written}"))


def test_words_for_true_and_false_stay_what_they_were_where_these_are_wanted() -> None:
    """Seeds are numbers too."""
    assert not study(**{"model.skip_connections": "no"}).cells[0].configuration().model.skip_connections
    assert study(**{"model.skip_connections": "on"}).cells[0].configuration().model.skip_connections
    assert refused("seeds.report=true") == ["seeds.report: should be a whole number, or {pretrain: 3, finetune: 2}, "
                                            "received True ()"]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("finetune.optimizer={name: adam, schedule: {name: cosine}}", "(it is finetune.schedule)"),
        ("finetune.lr=0.1", "(it is finetune.optimizer.lr)"),
        ("epochs=3", "(it is finetune.epochs or pretrain.epochs)"),
        ("seeds.trials=3", "(it is tune.trials)"),
        ("finetune.fre=none", '(did you mean "freeze"?)'),
    ],
)
def test_a_key_that_stands_elsewhere_is_pointed_to(override: str, fix: str) -> None:
    (line,) = refused(override)
    assert fix.removesuffix(")") in line


# -------------------------------------------------------------------------------------------------------- classes
MASKS = "data.s={dataset: image-mask-folder, root: here, cache_size: 32, split: {test: 6, val: 6}, "


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("classes: [a]}", "one class ('a') is not enough"),
        ("classes: [a, b, a]}", "'a' stands there twice"),
        ("classes: [a, b/c]}", "'b/c' cannot stand in the name of a metric"),
        ("classes: [a, '']}", "'' cannot stand in the name of a metric"),
        ("classes: [a, b], ignore: 1}", "ignore: 1 is the mask value of 'b' too"),
        ("classes: [a, b], mask_values: [3, 9], ignore: 3}", "ignore: 3 is the mask value of 'a' too"),
        ("classes: [a, b], mask_values: [3, 3]}", "one value for each of the 2 classes, none twice"),
        ("classes: [a, b], mask_values: [3]}", "one value for each of the 2 classes, none twice"),
    ],
)
def test_classes_that_are_no_task_are_refused(classes: str, said: str) -> None:
    assert [line for line in refused(MASKS + classes) if said in line]


@pytest.mark.parametrize("name", ["bone loss", "glossy", "cost", "Accuracy", "jaccard", "ä b"])
def test_any_other_name_of_a_class_is_right(name: str) -> None:
    found = from_yaml(STUDY, overrides=[MASKS + f"classes: [bg, {name}]}}", f"report.metrics=[test/jaccard/{name}]"])
    assert found.cells


# ---------------------------------------------------------------------------------------------------------- ranges
@settings(max_examples=30, deadline=None)
@given(low=st.integers(5, 40), length=st.integers(1, 60), levels=st.integers(2, 5))
def test_a_range_of_sizes_is_let_through_exactly_if_all_of_its_values_fit(low: int, length: int, levels: int) -> None:
    """And what the message offers in its place is let through."""
    factor, high = 2 ** (levels - 1), low + length
    override = f"model.widths={[4] * levels}"
    fits = all(size % factor == 0 for size in range(low, high + 1))
    if fits:
        assert from_yaml(STUDY, overrides=[override, f"finetune.size={{int: [{low}, {high}]}}"]).cells
        return
    (line,) = [line for line in refused(override, f"finetune.size={{int: [{low}, {high}]}}") if "multiple" in line]
    offered = line.partition("(write ")[2].removesuffix(")")
    first, last = -(-low // factor) * factor, high // factor * factor
    if first <= last:
        assert from_yaml(STUDY, overrides=[override, f"finetune.size={offered}"]).cells


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_a_range_of_fractions_for_a_whole_number_is_refused_with_the_range_of_whole_ones(kind: str) -> None:
    whole = {"uniform": "int", "log_uniform": "log_int"}[kind]
    (line,) = refused(f"finetune.batch_size={{{kind}: [2, 8]}}")
    assert line.endswith(f"(write {{{whole}: [2, 8]}})")
    assert study(**{"finetune.batch_size": f"{{{whole}: [2, 8]}}"}).cells
    assert study(**{"finetune.batch_size": "{int: [2, 8], step: 3}"}).cells


# ------------------------------------------------------------- numbers that mean nothing, settings that change nothing

SEARCHED = "finetune.optimizer.lr={log_uniform: [1e-4, 1e-2]}"
SCORES_OF_CLASSES = ("jaccard", "dice", "recall", "precision", "accuracy")


@given(score=st.sampled_from(SCORES_OF_CLASSES), value=st.floats(-2, 101).filter(lambda value: value < 0 or value > 1))
@settings(max_examples=20, deadline=None)
def test_a_constraint_that_no_score_can_meet_or_miss_is_refused(score: str, value: float) -> None:
    said = refused(SEARCHED, f"tune.constraints={{val/{score}: {value!r}}}")
    assert len(said) == 1
    assert f"is outside 0 to 1, the range of val/{score}" in said[0]


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_a_constraint_within_the_range_is_allowed(value: float) -> None:
    assert from_yaml(STUDY, overrides=[SEARCHED, f"tune.constraints={{val/jaccard: {value}, cost/seconds: 900}}"]).cells


@pytest.mark.parametrize(("margin", "fix"), [(1, "write 0.01 for 1 %"), (2.5, "write 0.025 for 2.5 %")])
@pytest.mark.parametrize("percent", ["true", "false"])
def test_a_margin_that_no_difference_exceeds_is_refused(margin: float, fix: str, percent: str) -> None:
    said = refused(f"report.margin={margin}", f"report.percent={percent}")
    assert said[0].startswith("report.margin: no two values of test/jaccard differ by more than 1")
    assert fix in said[0]
    assert from_yaml(STUDY, overrides=["report.margin=0.99"]).cells


def test_published_values_beyond_the_metric_are_refused_and_levels_are_no_values() -> None:
    table = "published={p: {values: [[64, 57.3]], metric: test/jaccard}}"
    factor = "factors={f: {finetune.batch_size: [4, 64]}}"
    said = refused(factor, table, "report.published=[p]")
    assert said == ["published.p.values: 57.3 is outside 0 to 1, the range of test/jaccard "
                    "(set percent: true if these are percent)"]  # fmt: skip
    right = table.replace("metric", "percent: true, metric")
    assert from_yaml(STUDY, overrides=[factor, right, "report.published=[p]"]).cells


@pytest.mark.parametrize(
    ("target", "direction", "said"),
    [("val/jaccard", "minimize", True), ("val/jaccard", "maximize", False), ("val/dice", "minimize", True)],
)
def test_a_search_for_the_worst_is_said(target: str, direction: str, said: bool) -> None:
    found = from_yaml(STUDY, overrides=[SEARCHED, f"tune.target={target}", f"tune.direction={direction}"]).warnings
    assert any(f"looks for the worst {target}" in warning for warning in found) == said


TRAINED = "pretrain={data: s, method: {name: simclr}, views: {size: 16}, epochs: 3, batch_size: 4}"
DINO = "pretrain.method={name: dino, local_size: 8, prototypes: 8, %s}"
SWAV = "pretrain.method={name: swav, local_size: 8, prototypes: 8, %s}"


@pytest.mark.parametrize(
    ("form", "setting", "said"),
    [
        ("finetune.freeze=encoder,finetune.unfreeze_epoch=%d", "finetune.unfreeze_epoch", "stays frozen"),
        ("finetune.schedule={name: step; every: %d}", "finetune.schedule.every", "the rate never falls"),
        (DINO % "freeze_last_epochs: %d", "pretrain.method.freeze_last_epochs", "the last layer never moves"),
        (DINO % "teacher_temperature: 0.07; teacher_warmup_epochs: %d", "pretrain.method.teacher_warmup_epochs",
         "does not come to its value"),
        (SWAV % "queue: 0; freeze_prototypes_epochs: %d", "pretrain.method.freeze_prototypes_epochs", "never move"),
        (SWAV % "queue: 4; queue_from_epoch: %d", "pretrain.method.queue_from_epoch", "the queue is never used"),
    ],
)  # fmt: skip
def test_a_setting_that_waits_for_an_epoch_behind_the_last_is_said(form: str, setting: str, said: str) -> None:
    changes = [TRAINED, "finetune.epochs=3"]
    for epoch in (1, 2, 3, 50):
        written = form.split(",") if form.startswith("finetune.freeze") else [form]
        asked = [(part % epoch if "%d" in part else part).replace(";", ",") for part in written]
        found = [one for one in from_yaml(STUDY, overrides=[*changes, *asked]).warnings if one.startswith(setting)]
        assert len(found) == (epoch >= 3), found
        assert all(f"is {epoch}, and 3 epochs are trained: " in one and said in one for one in found)


# -------------------------------------------------------------------------------- what a second look at the kinds found
POOL = "data.pool={dataset: scenes, images: 30, cache_size: 32, split: none}"
PRETRAIN = "pretrain={data: pool, method: {name: simclr}, views: {size: 16}, epochs: 1, batch_size: 4}"


@pytest.mark.parametrize(
    ("key", "levels"),
    [
        ("finetune.labels", "[all, 100%]"), ("finetune.labels", "[10%, 0.1]"), ("finetune.labels", "['0.5', 0.5]"),
        ("model.skip_connections", "['yes', true]"), ("finetune.optimizer", "[{name: adam}, {lr: 0.001}]"),
        ("finetune.optimizer.lr", "[0.001, 1e-3]"),
        ("finetune.optimizer.lr", "[{uniform: [1, 2]}, {uniform: [1, 2.0]}]"),
    ],
)  # fmt: skip
def test_levels_that_mean_the_same_are_refused_however_they_are_written(key: str, levels: str) -> None:
    found = refused("finetune.optimizer={name: adam}", f"factors={{f: {{{key}: {levels}}}}}")
    assert [line for line in found if "mean the same" in line] or [
        line for line in found if "stands there twice" in line
    ]


def test_a_level_that_names_a_default_is_the_level_that_names_nothing() -> None:
    (line,) = refused("factors={f: {plain: {}, named: {finetune.freeze: none}}, g: {finetune.size: [8, 16]}}")
    assert line == "factors.f.named.finetune.freeze: the levels 'plain' and 'named' mean the same (remove one)"


@pytest.mark.parametrize(
    "levels", ["[1, 1.0]", "[{uniform: [0.2, 0.4]}, 0.3]", "[{int: [1, 3]}, 2]", "[{choice: [1, 2]}, 1]"]
)
def test_one_image_and_all_of_them_or_a_range_and_its_middle_are_two_levels(levels: str) -> None:
    assert len(study(factors=f"{{f: {{finetune.labels: {levels}}}}}").cells) == 2


@pytest.mark.parametrize("options", ["[0.001, 0.001]", "[0.001, 1e-3]", "['8', 8]", "[{a: 1}, {a: '1'}]"])
def test_options_of_a_choice_that_mean_the_same_are_refused(options: str) -> None:
    assert [line for line in refused(f"finetune.optimizer.lr={{choice: {options}}}") if "mean the same" in line]


@pytest.mark.parametrize(
    ("key", "options", "needs"),
    [
        ("encoder_lr_mult", "[1, null, 2]", ""), ("augment.blur", "[null, 0]", ""),
        ("augment.scale", "[[1, 1], null]", ""), ("focal_gamma", "[2, null]", "finetune.loss=focal"),
        ("optimizer", "[{name: adam}, {lr: 0.001}]", ""),
        ("schedule", "[{name: cosine}, {name: cosine, final: 0}]", ""),
        ("optimizer.weight_decay_end", "[null, 0.01]", "finetune.optimizer={name: adamw}"),
    ],
)  # fmt: skip
def test_options_that_name_a_default_and_leave_it_out_are_refused(key: str, options: str, needs: str) -> None:
    found = refused(*filter(None, [needs]), f"finetune.{key}={{choice: {options}}}")
    assert [line for line in found if "mean the same" in line]


def test_options_that_hold_ranges_are_told_apart_by_them() -> None:
    options = "[{name: adam, lr: {uniform: [0.0005, 0.0015]}}, {name: adam, lr: 0.001}, {name: adam, lr: 0.002}]"
    assert study(**{"finetune.optimizer": f"{{choice: {options}}}"}).cells
    assert study(**{"finetune.encoder_lr_mult": "{choice: [null, 2]}", "finetune.batch_size": "{choice: [2, 4]}"}).cells


def test_options_that_differ_by_kind_are_two() -> None:
    assert study(**{"finetune.labels": "{choice: [1, 1.0]}"}).cells


def test_the_same_stage_of_a_chain_has_one_name() -> None:
    chain = "pretrain=[{data: pool, method: {name: simclr}, views: {size: 16}, epochs: 1, batch_size: 4}]"
    factors = "factors={a: {pretrain.0.epochs: [1, 2]}, b: {pretrain.00.epochs: [3, 4]}}"
    assert refused(POOL, chain, factors)


@pytest.mark.parametrize(
    ("level", "key"), [("finetune.freeze", "finetune.freeze"), ("finetune.augment", "finetune.augment.flip")]
)
def test_an_override_that_a_factor_writes_over_is_refused(level: str, key: str) -> None:
    values = {"finetune.freeze": "[none, encoder]", "finetune.augment": "[{flip: 0.1}, {flip: 0.2}]"}[level]
    value = {"finetune.freeze": "encoder", "finetune.augment.flip": "0.3"}[key]
    factors = f"factors={{f: {{{level}: {values}}}}}"
    assert (
        f"--set {key}: has no effect: factor 'f' sets it in every level (change factors.f, or remove this setting)"
        in refused(f"{key}={value}", factors)
    )
    text = from_yaml(STUDY, overrides=[factors]).to_yaml() + f"scales: {{x: {{{key}: {value}}}}}\n"
    with pytest.raises(StudyError, match=f"scales.x.{key}: has no effect: factor 'f' sets it in every level"):
        from_yaml(text, scale="x")
    assert from_yaml(text).cells


def test_an_override_that_some_levels_leave_alone_is_taken() -> None:
    found = study(**{"finetune.size": "8", "factors": "{f: {as it is: {}, large: {finetune.size: 32}}}"})
    sizes = [cell.configuration().finetune for cell in found.cells]
    assert [stage.size for stage in sizes if stage is not None] == [8, 32]


def test_two_keys_of_a_scale_that_touch_are_refused() -> None:
    text = STUDY + "scales: {x: {finetune: {data: s, epochs: 2, size: 16}, finetune.epochs: 3}}\n"
    with pytest.raises(StudyError, match=r"scales\.x\.finetune\.epochs: .*sets finetune too"):
        from_yaml(text, scale="x")


@pytest.mark.parametrize(
    "overrides",
    [
        ["pretrain.sees={choice: [train, train+val]}"],
        ["tune.pretrain.target=pretext", "data.pool.images={int: [20, 40]}", "data.pool.split={val: 6, test: 6}"],
        ["tune.pretrain.target=pretext", "pretrain.data={choice: [pool, s]}", "data.pool.split={val: 6, test: 6}"],
        ["finetune={choice: [{data: s, size: 16, epochs: 1}, {data: s, size: 16, epochs: 1, test_sizes: [32]}]}"],
    ],
)
def test_a_range_on_what_a_score_is_taken_of_is_refused_wherever_it_stands(overrides: list[str]) -> None:
    found = refused(POOL, PRETRAIN, *overrides)
    assert [line for line in found if "a range here changes what is measured" in line]


def test_levels_of_a_tolerance_are_different_tasks() -> None:
    found = study(factors="{f: {finetune.boundary_tolerance: [0.01, 0.1]}}")
    assert [warning for warning in found.warnings if "they are different tasks" in warning]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("written", ["1_0", "1__0", "٣", "0_1", "-010", "'1_0'"])
def test_what_is_a_number_to_python_alone_is_refused(key: str, written: str) -> None:
    start = ["finetune.optimizer.name=adam", *BESIDE.get(key, ())]
    assert [line for line in refused(*start, f"{key}={written}") if line.startswith(f"{key}: ")]


@pytest.mark.parametrize("written", ["010", "1_0", "yes", "0x10", "'010'"])
@pytest.mark.parametrize("kind", ["int", "uniform", "log_int", "log_uniform"])
def test_ends_of_ranges_are_yaml_numbers_too(kind: str, written: str) -> None:
    """A whole number in hexadecimal is one to YAML 1.2."""
    override = f"finetune.batch_size={{{kind}: [{written}, 20]}}"
    if written == "0x10" and kind in ("int", "log_int"):
        assert study(**{"finetune.batch_size": f"{{{kind}: [0x10, 20]}}"}).cells
    else:
        assert refused(override)


@pytest.mark.parametrize("step", ["", "0", "-1", "true", "'1'", "yes", ".inf", ".nan", "1" + "0" * 400, "3", "[1]"])
@pytest.mark.parametrize("kind", ["int", "uniform"])
def test_a_step_that_leads_nowhere_is_refused(kind: str, step: str) -> None:
    assert refused(f"finetune.batch_size={{{kind}: [2, 9], step: {step}}}")


def test_classes_whose_names_look_alike_are_one() -> None:
    for names in ('[leaf, "leaf "]', '["bl\\u00e4tt", "bla\\u0308tt"]', '[big leaf, "big  leaf"]'):
        assert [line for line in refused(MASKS + f"classes: {names}}}") if "stands there twice" in line]


def nested(levels: int, merged: bool) -> str:
    """Aliases of aliases: 9 to the power of `levels` values."""
    first = "{x: 1, y: 2}" if merged else "1"
    below = "{<<: [%s]}" if merged else "[%s]"
    held = [f"a{i}: &a{i} " + (below % ", ".join([f"*a{i - 1}"] * 9) if i else first) for i in range(levels)]
    return f"{{{', '.join(held)}}}"


@pytest.mark.parametrize("value", [nested(12, merged=False), nested(12, merged=True), "1" + "0" * 5000, "[" * 3000])
def test_an_override_is_held_to_the_limits_of_a_file(value: str) -> None:
    assert [line for line in refused(f"model={value}") if line.startswith("--set model=")]


def test_bytes_are_no_text() -> None:
    assert refused("data.f={dataset: image-folder, root: !!binary aGVsbG8=}") == [
        "data.f.root: should be text, received b'hello' ()"
    ]


def test_many_levels_and_many_ranges_are_looked_through_in_seconds() -> None:
    """2,000 levels take 2 s of processor time, 20 s where every line is looked at for each of them."""
    levels = ", ".join(str(1 + i / 10_000) for i in range(2_000))
    began = time.process_time()
    assert len(study(factors=f"{{a: {{finetune.optimizer.lr: [{levels}]}}}}").cells) == 2_000
    probes = "".join(f"p{i}: {{kind: knn, data: s, k: {{int: [1, 9]}}}}, " for i in range(300))
    assert refused(f"probe={{{probes}}}")
    assert time.process_time() - began < 15


@pytest.mark.parametrize("key", ["finetune.accumulate_grad_batches", "finetune.gradient_accumulation_steps"])
def test_accumulated_gradients_are_refused_with_the_reason(key: str) -> None:
    (said,) = refused(f"{key}=4")
    assert "there is no such key" in said
    assert "take the whole batch at once" in said
    assert "resources.*.workers" in said


def test_compiled_networks_are_not_checkpointed() -> None:
    """Each stage by its own setting."""
    asked = "resources={finetune: {activation_checkpointing: true}}"
    (said,) = refused("finetune.compile=true", asked)
    assert said.startswith("finetune.compile: resources.finetune.activation_checkpointing is of networks that are not")
    other = "resources={pretrain: {activation_checkpointing: true}}"
    assert from_yaml(STUDY, overrides=["finetune.compile=true", other])
    assert from_yaml(STUDY, overrides=[asked])


@pytest.mark.parametrize("key", ["finetune.gradient_checkpointing", "model.gradient_checkpointing"])
def test_the_other_name_of_activation_checkpointing_leads_to_it(key: str) -> None:
    (said,) = refused(f"{key}=true")
    assert "resources.*.activation_checkpointing" in said
