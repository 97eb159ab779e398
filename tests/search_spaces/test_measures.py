"""A score that a setting changes the meaning of: never searched by, and said where cells have another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_yaml

STUDY = """
study: t
data:
  s: {dataset: scenes, images: 24, cache_size: 32, split: {test: 6, val: 6}}
model: {widths: [4, 8]}
finetune: {data: s, size: 16, epochs: 3, batch_size: 4, score_loss: true, average: batch}
seeds: {search: 1, report: 2}
"""
CHANGES = {  # key -> what else it needs, a range, and two levels
    "loss": ((), "{choice: [dice, cross-entropy]}", "[dice, cross-entropy]"),
    "focal_gamma": (("finetune.loss=focal",), "{uniform: [0, 5]}", "[0, 5]"),
    "tversky_beta": (("finetune.loss=tversky",), "{uniform: [0.1, 0.9]}", "[0.1, 0.9]"),
    "class_weights": (("finetune.loss=focal",), "{choice: [null, balanced]}", "[null, balanced]"),
    "class_weights.background": (
        ("finetune.loss=focal", "finetune.class_weights={background: 1}"), "{uniform: [1, 2]}", "[1, 2]",
    ),
    "batch_size": ((), "{int: [2, 6]}", "[2, 6]"),
}  # fmt: skip
METRICS = ["loss", "jaccard_batches", "dice_batches/background", "jaccard", "recall/background", "accuracy_batches"]


def changes(key: str, metric: str) -> bool:
    return "batches" in metric if key == "batch_size" else metric == "loss"


LR = "finetune.optimizer.lr={log_uniform: [1e-4, 1e-2]}"


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", ["target", "also", "constraints"])
def test_a_range_is_refused_exactly_where_it_changes_what_the_search_is_scored_by(
    key: str, metric: str, place: str
) -> None:
    name = f"val/{metric}"
    value = {"target": name, "also": f"[{name}]", "constraints": f"{{{name}: 0.5}}"}[place]
    if place == "also":
        value = f"[{name}]" if name != "val/jaccard" else "[val/dice]"
    needs, written, _ = CHANGES[key]
    overrides = [*needs, f"finetune.{key}={written}", f"tune.{place}={value}", "tune.sampler=random"]
    if not changes(key, metric):
        assert from_yaml(STUDY, overrides=overrides).cells
        return
    with pytest.raises(StudyError, match=f"finetune.{key}: a range here changes what {name} measures"):
        from_yaml(STUDY, overrides=overrides)


def test_options_of_a_whole_fine_tuning_are_ranges_on_their_keys() -> None:
    option = "{data: s, size: 16, epochs: 1, score_loss: true, loss: %s}"
    overrides = [f"finetune={{choice: [{option % 'dice'}, {option % 'tversky'}]}}", "tune.target=val/loss"]
    with pytest.raises(StudyError, match="finetune: a range here changes what val/loss measures"):
        from_yaml(STUDY, overrides=overrides)
    assert from_yaml(STUDY, overrides=[*overrides[:1], "tune.target=val/jaccard"]).cells


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("metric", METRICS)
def test_cells_that_a_metric_does_not_compare_are_said_and_others_are_not(key: str, metric: str) -> None:
    needs, _, levels = CHANGES[key]
    overrides = [*needs, f"factors={{f: {{finetune.{key}: {levels}}}}}", f"report.metrics=[test/{metric}]"]
    said = [text for text in from_yaml(STUDY, overrides=overrides).warnings if "does not measure the same" in text]
    assert len(said) == changes(key, metric)
    assert all(f"test/{metric}" in text and "(f=" in text for text in said)


def test_a_default_that_one_cell_names_is_no_other_measure() -> None:
    factors = "factors={f: {a: {finetune.size: 8}, b: {finetune.focal_gamma: 2}}}"
    overrides = ["finetune.loss=focal", factors, "report.metrics=[test/loss]"]
    assert not [text for text in from_yaml(STUDY, overrides=overrides).warnings if "does not measure" in text]


WINDOWS = "finetune.crops: {}, finetune.evaluate: {}"


@pytest.mark.parametrize(
    ("levels", "apart"),
    [
        ("finetune.size: [8, 16]", True),
        (f"a: {{finetune.size: 16}}, b: {{finetune.size: 16, {WINDOWS}}}", True),
        (f"a: {{finetune.size: 32}}, b: {{finetune.size: 16, {WINDOWS}}}", False),  # both at the cache's 32 px
        (f"a: {{finetune.size: 8, {WINDOWS}}}, b: {{finetune.size: 16, {WINDOWS}}}", False),
        ("finetune.epochs: [1, 2]", False),
    ],
)
def test_masks_that_are_scored_at_other_sizes_are_another_task(levels: str, apart: bool) -> None:
    warnings = from_yaml(STUDY, overrides=[f"factors={{f: {{{levels}}}}}"]).warnings
    assert any("they are different tasks (f=" in text for text in warnings) == apart


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetune.size={int: [8, 16], step: 8}"], True),
        (["finetune.size={int: [8, 16], step: 8}", "finetune.crops={}", "finetune.evaluate={}"], False),
        ([LR], False),
    ],
)
def test_that_a_search_over_sizes_compares_other_masks_is_said_once(overrides: list[str], said: bool) -> None:
    warnings = from_yaml(STUDY, overrides=overrides).warnings
    assert len([text for text in warnings if "masks are scored at that size" in text]) == said
    assert not [text for text in warnings if "different tasks" in text]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 14))
def test_levels_that_stay_frozen_are_counted(levels: int, first: int, every: int, epochs: int) -> None:
    overrides = [
        f"model.widths={[4] * levels}", "finetune.freeze=encoder", f"finetune.epochs={epochs}",
        f"finetune.unfreeze_epoch={first}", f"finetune.unfreeze_every={every}",
    ]  # fmt: skip
    begin = [first + level * every for level in range(levels)]  # the coarsest first
    frozen = sum(epoch >= epochs for epoch in begin)
    said = [text for text in from_yaml(STUDY, overrides=overrides).warnings if "stay frozen" in text]
    expected = f"{frozen} of the encoder's {levels} levels, the finest, stay frozen"
    assert [text.endswith(expected) for text in said] == [True] * (0 < frozen < levels)


def test_one_level_is_not_unfrozen_gradually() -> None:
    overrides = [
        "model={name: vit-pyramid, backbone: vit_tiny_patch16_224}", "finetune.freeze=encoder",
        "finetune.unfreeze_epoch=1", "finetune.unfreeze_every=1",
    ]  # fmt: skip
    assert any(
        "the encoder has one level: it changes nothing" in w for w in from_yaml(STUDY, overrides=overrides).warnings
    )


@pytest.mark.parametrize("backbone", ["resnet18.a1_in1k", "a-b", "hf_hub:x/y"])
def test_a_backbone_with_a_tag_is_refused_with_the_letters_it_may_have(backbone: str) -> None:
    with pytest.raises(StudyError, match="use only letters, digits and '_'; remove a tag"):
        from_yaml(STUDY, overrides=[f"model={{name: timm-unet, backbone: '{backbone}'}}"])
    with pytest.raises(StudyError, match=r"use letters, digits, '\.', '_' and '-'"):
        from_yaml(STUDY, overrides=["study=a b"])
