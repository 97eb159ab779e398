"""Stages and fingerprints: what must change a fingerprint, what must not, and which seeds reach which stage."""

import copy
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretune.search_spaces.document import StudyError
from pretune.search_spaces.identities import data_identity, encoder_of, fingerprint
from pretune.search_spaces.resolve import from_dict, from_yaml
from pretune.search_spaces.schema import Finetune, Header, Scenes, Seeds, UNet
from pretune.search_spaces.stages import (
    FIRST_SEARCH_SEED,
    Replicate,
    replicates,
    stages_of,
    stream_seed,
    uses_pretraining,
)

FIRST = Replicate(0, 0, 0)
STUDY = {
    "study": "s",
    "data": {"scenes": {"dataset": "scenes"}},
    "model": {"widths": [4, 8]},
    "pretrain": {"data": "scenes", "method": {"name": "simclr"}, "epochs": 2},
    "finetune": {"data": "scenes", "epochs": 2},
    "probe": {"near": {"kind": "knn", "data": "scenes"}},
}
STAGES = ("pretrain", "finetune", "probe:near")


def digest_of(data):
    """As the data layer's: what the images hold, without their place on disk and without the split."""
    return fingerprint(data.model_dump(mode="json", exclude={"split", "root", "source", "shuffle_window"}))


def stages(*overrides, replicate=FIRST, on_test=True, study=STUDY):
    made = from_dict(study, overrides=overrides)
    return stages_of(made.cells[0].configuration(), replicate, made.header, digest_of, on_test)


def fingerprints(*overrides, **more):
    return {name: stage.fingerprint for name, stage in stages(*overrides, **more).items()}


def changed(*overrides, **more):
    """Which of the stages get another fingerprint."""
    before, after = fingerprints(), fingerprints(*overrides, **more)
    return {name for name in STAGES if before[name] != after.get(name)}


# ------------------------------------------------------------------------------------- what changes a fingerprint

EVERY = set(STAGES)


@pytest.mark.parametrize(
    ("override", "stages_changed"),
    [
        ("pretrain.method.temperature=0.3", EVERY),
        ("pretrain.method.hidden=64", EVERY),
        ("pretrain.views.size=32", EVERY),
        ("pretrain.views.extra=[elastic]", EVERY),
        ("pretrain.optimizer.lr=0.01", EVERY),
        ("pretrain.optimizer={name: sgd, lr: 0.001}", EVERY),
        ("pretrain.schedule.name=cosine", EVERY),
        ("pretrain.batch_size=8", EVERY),
        ("pretrain.epochs=3", EVERY),
        ("pretrain.precision=bfloat16", EVERY),
        ("pretrain.precision=tf32", EVERY),
        ("finetune.precision=tf32", {"finetune"}),
        ("pretrain.compile=true", EVERY),
        ("pretrain.compile=false", set()),
        ("finetune.compile=true", {"finetune"}),
        ("pretrain.sees=all", EVERY),
        ("model.widths=[4, 16]", EVERY),
        ("model.norm=none", EVERY),
        ("data.scenes.images=700", EVERY),
        ("data.scenes.shuffle_window=64", EVERY),
        ("data.scenes.split.seed=1", EVERY),
        ("data.scenes.split.test=0.2", EVERY),
        ("data.scenes.split.val=0.2", EVERY),
        ("resources.pretrain.cpus=2", EVERY),
        ("seeds.hold={init: 7}", EVERY),
        ("model.skip_connections=false", {"finetune"}),
        ("finetune.labels=10%", {"finetune"}),
        ("finetune.freeze=encoder", {"finetune"}),
        ("finetune.loss=cross-entropy", {"finetune"}),
        ("finetune.augment.flip=0.5", {"finetune"}),
        ("finetune.checkpoint=best", {"finetune"}),
        ("finetune.transfer=none", {"finetune"}),
        ("resources.finetune.cpus=2", {"finetune"}),
        ("seeds.hold={labels: 7}", EVERY),  # the split of train and val is held with the labels
        ("probe.near.k=5", {"probe:near"}),
        ("resources.probe.cpus=2", {"probe:near"}),
        ("data.scenes.source=resident", set()),
        ("resources.pretrain.workers=2", EVERY),
        ("resources.finetune={workers: 2, gpus_per_worker: 1}", {"finetune"}),
        ("resources.finetune={batch_norm: local, gpus_per_worker: 1}", set()),  # one worker has the whole batch
        ("resources.pretrain.activation_checkpointing=true", set()),  # the same digits, in less memory
        ("resources.finetune.activation_checkpointing=true", set()),
        ("study=other", set()),
        ("question=Why?", set()),
        ("tune.trials=99", set()),
        ("retries=7", set()),
        ("seeds.report=9", set()),
        ("report.metrics=[test/dice]", set()),
        ("report.percent=true", set()),
        ("published={theirs: {values: [[0.5]]}}", set()),
        ("scales={small: {finetune.epochs: 1}}", set()),
        ("pretrain.method.temperature=0.2", set()),  # the default, written out
        ("finetune.optimizer={name: adam, lr: 1.0e-3}", set()),
        ("finetune.labels=all", set()),
        ("finetune.labels=100%", set()),
    ],
)
def test_a_setting_changes_the_stages_that_depend_on_it_and_no_others(override, stages_changed):
    assert changed(override) == stages_changed


def test_measuring_on_the_test_set_is_part_of_a_fine_tuning_alone():
    assert changed(on_test=False) == {"finetune"}


def test_another_replicate_is_another_run_of_everything():
    assert changed(replicate=Replicate(1, 1, 1)) == EVERY


@pytest.mark.parametrize("seen", ["train+val", "all"])
def test_what_sees_validation_images_does_not_depend_on_which_they_are(seen):
    before, after = fingerprints(f"pretrain.sees={seen}"), None
    for override in ("data.scenes.split.val=0.3", "seeds.hold={labels: 7}"):
        after = fingerprints(f"pretrain.sees={seen}", override)
        assert after["pretrain"] == before["pretrain"]
        assert after["finetune"] != before["finetune"]


def test_what_sees_all_images_does_not_depend_on_the_split_at_all():
    before, after = fingerprints("pretrain.sees=all"), None
    for override in ("data.scenes.split.test=0.3", "data.scenes.split.seed=5", "data.scenes.split.val=0.3"):
        after = fingerprints("pretrain.sees=all", override)
        assert after["pretrain"] == before["pretrain"]
        assert after["finetune"] != before["finetune"]
    assert "split" not in stages("pretrain.sees=all")["pretrain"].streams


@pytest.mark.parametrize(
    "override",
    ["pretrain.method.temperature=0.9", "pretrain.epochs=9", "pretrain=none", "pretrain.sees=all",
     "resources.pretrain.cpus=4", "pretrain.method.name=none"],
)  # fmt: skip
def test_what_takes_over_nothing_depends_on_no_pretraining(override):
    study = {key: value for key, value in STUDY.items() if key != "probe"}
    alone = fingerprints("finetune.transfer=none", study=study)
    assert fingerprints("finetune.transfer=none", override, study=study) == alone
    assert set(alone) == {"finetune"}  # and none is run for it


def test_transfer_from_no_pretraining_is_no_transfer():
    study = {key: value for key, value in STUDY.items() if key not in ("probe", "pretrain")}
    assert fingerprints("finetune.transfer=encoder", study=study) == fingerprints("finetune.transfer=none", study=study)


def test_a_model_without_skip_connections_is_the_same_encoder():
    assert encoder_of(UNet(skip_connections=False)) == encoder_of(UNet())
    assert encoder_of(UNet(widths=(8, 16))) != encoder_of(UNet())


@pytest.mark.parametrize(("role", "parts"), [("train", {"test", "val", "seed"}), ("train+val", {"test", "seed"})])
def test_parts_of_the_split_that_reach_a_role(role, parts):
    assert set(data_identity(Scenes(dataset="scenes"), "d", role)["split"]) == parts


# ------------------------------------------------------------------------------------- what must not change it

MEANING = {
    "key order": """
        finetune: {epochs: 2, data: scenes}
        probe: {near: {data: scenes, kind: knn}}
        pretrain: {epochs: 2, method: {name: simclr}, data: scenes}
        model: {widths: [4, 8]}
        data: {scenes: {dataset: scenes}}
        study: s""",
    "comments and names": """
        study: another-name  # with a comment
        question: another question
        data: {pictures: {dataset: scenes}}
        model: {widths: [4, 8]}
        pretrain: {data: pictures, method: {name: simclr}, epochs: 2}
        finetune: {data: pictures, epochs: 2}
        probe: {near: {kind: knn, data: pictures}}""",
    "number formatting": """
        study: s
        data: {scenes: {dataset: scenes, images: 600, split: {test: 1.0e-1, val: .1}}}
        model: {widths: [0x4, 8]}
        pretrain: {data: scenes, method: {name: simclr, temperature: 2e-1}, epochs: 2, optimizer: {lr: 0.001}}
        finetune: {data: scenes, epochs: 2, optimizer: {lr: 1e-3}, labels: 1.0}
        probe: {near: {kind: knn, data: scenes, temperature: 1.0e-1}}""",
    "a chain of one": """
        study: s
        data: {scenes: {dataset: scenes}}
        model: {widths: [4, 8]}
        pretrain: [{data: scenes, method: {name: simclr}, epochs: 2}]
        finetune: {data: scenes, epochs: 2}
        probe: {near: {kind: knn, data: scenes}}""",
    "factors and levels": """
        study: s
        data: {scenes: {dataset: scenes}}
        model: {widths: [4, 8]}
        pretrain: {data: scenes, method: {name: simclr}, epochs: 5}
        finetune: {data: scenes, epochs: 2}
        probe: {near: {kind: knn, data: scenes}}
        factors: {length: {short: {pretrain.epochs: 2}}}""",
}


@pytest.mark.parametrize("text", MEANING.values(), ids=MEANING)
def test_the_same_meaning_has_the_same_fingerprints(text):
    made = from_yaml("\n".join(line[8:] for line in text.split("\n")))
    found = stages_of(made.cells[0].configuration(), FIRST, made.header, digest_of, True)
    assert {name: stage.fingerprint for name, stage in found.items()} == fingerprints()


def test_where_images_lie_is_not_what_they_are():
    folder = {"dataset": "image-mask-folder", "root": "here", "classes": ["a", "b"]}
    study = STUDY | {"data": {"scenes": folder}}
    assert fingerprints("data.scenes.root=/there", study=study) == fingerprints(study=study)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.floats(allow_nan=False), max_size=6))
def test_a_fingerprint_is_of_the_content_whatever_the_order(identity):
    assume(all(abs(value) != float("inf") for value in identity.values() if isinstance(value, float)))
    backwards = dict(reversed(identity.items()))
    assert fingerprint(backwards) == fingerprint(identity) == fingerprint(json.loads(json.dumps(identity)))
    assert fingerprint({**identity, "more than six characters": 1}) != fingerprint(identity)


def test_a_fingerprint_is_this_one():
    # echo -n '{"a":[1,0.001],"b":null}' | sha256sum, first 32 digits
    assert fingerprint({"b": None, "a": [1, 1e-3]}) == "a490616a41047cd6280a42874de82bcf"


def test_no_fingerprint_holds_a_number_that_equals_nothing():
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"lr": float("nan")})


# ------------------------------------------------------------------------- any two different settings

SETTINGS = {
    "data.scenes.images": [600, 601],
    "data.scenes.split.test": [0.1, 0.2, 100],
    "data.scenes.split.val": [0.1, 60],
    "data.scenes.split.seed": [0, 1],
    "model.widths": [[4, 8], [8, 4], [4, 8, 16], [48, 8]],
    "model.norm": ["batch", "none"],
    "pretrain.method.temperature": [0.2, 0.1, 2.0],
    "pretrain.method.dim": [128, 12],
    "pretrain.views.crop": [[0.08, 1.0], [0.08, 0.9], [0.8, 1.0]],
    "pretrain.views.gray": [0.0, 0.2],
    "pretrain.views.blur": [0.0, 0.2],  # the value of another setting
    "pretrain.views.extra": [[], ["elastic"], ["elastic", "solarize"], ["solarize", "elastic"]],
    "pretrain.optimizer": [{"name": "adam"}, {"name": "adamw"}, {"name": "sgd"}, {"name": "sgd", "nesterov": True}],
    "pretrain.schedule": [{"name": "constant"}, {"name": "cosine"}, {"name": "cosine", "warmup_epochs": 1}],
    "pretrain.batch_size": [384, 38],
    "pretrain.sees": ["train", "all"],
}
choices = st.fixed_dictionaries({key: st.sampled_from(values) for key, values in SETTINGS.items()})


def configured(choice):
    return [f"{key}={json.dumps(value)}" for key, value in choice.items()]


@given(choices, choices)
@settings(max_examples=40, deadline=None)
def test_any_two_different_pretrainings_have_different_fingerprints(one, other):
    assume(one != other and "all" not in (one["pretrain.sees"], other["pretrain.sees"]))
    assert fingerprints(*configured(one))["pretrain"] != fingerprints(*configured(other))["pretrain"]


@given(choices, st.sampled_from(list(SETTINGS)), st.data())
@settings(max_examples=40, deadline=None)
def test_a_change_of_any_one_setting_changes_the_whole_line_of_stages(one, key, data):
    other = {**one, key: data.draw(st.sampled_from([value for value in SETTINGS[key] if value != one[key]]))}
    assume(one["pretrain.sees"] == other["pretrain.sees"] == "train")
    before, after = fingerprints(*configured(one)), fingerprints(*configured(other))
    assert not set(before.values()) & set(after.values())


# ------------------------------------------------------------------------------------------------------- seeds


def test_nested_seeds_share_a_pretraining_among_their_fine_tunings():
    seeds = Seeds.model_validate({"report": {"pretrain": 2, "finetune": 3}})
    assert replicates(seeds, "report") == (
        Replicate(0, 0, 0), Replicate(1, 0, 1), Replicate(2, 0, 2), Replicate(3, 1, 3), Replicate(4, 1, 4),
        Replicate(5, 1, 5),
    )  # fmt: skip
    found = [fingerprints(replicate=replicate) for replicate in replicates(seeds, "report")]
    assert len({one["pretrain"] for one in found}) == 2
    assert len({one["finetune"] for one in found}) == 6


def test_a_plain_number_of_seeds_is_one_pretraining_each():
    assert replicates(Seeds.model_validate({"report": 2}), "report") == (Replicate(0, 0, 0), Replicate(1, 1, 1))


def test_inner_seeds_validate_on_what_their_pretraining_did_not_see():
    inner = [stages(replicate=Replicate(f, 0, f)) for f in range(3)]
    outer = inner[0]["pretrain"].streams["split"]
    assert [one["finetune"].streams["split"] for one in inner] == [outer] * 3
    assert len({one["finetune"].streams["init"] for one in inner}) == 3


@given(*(st.integers(1, 20) for _ in range(4)))
@settings(max_examples=40)
def test_search_and_report_never_share_a_seed(a, b, c, d):
    seeds = Seeds.model_validate({
        "search": {"pretrain": a, "finetune": b}, "report": {"pretrain": c, "finetune": d}
    })  # fmt: skip
    search, report = replicates(seeds, "search"), replicates(seeds, "report")
    assert len(set(search)) == a * b
    assert len(set(report)) == c * d
    for name in Replicate._fields:
        assert not {getattr(one, name) for one in search} & {getattr(one, name) for one in report}


def test_search_seeds_begin_far_above_report_seeds():
    assert replicates(Seeds(), "search") == (Replicate(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED, FIRST_SEARCH_SEED),)


@pytest.mark.parametrize("name", ["init", "order", "augmentation"])
def test_a_held_stream_is_the_same_in_every_replicate(name):
    held = [stages(f"seeds.hold={{{name}: 7}}", replicate=Replicate(i, i, i))["pretrain"].streams for i in range(3)]
    assert [streams[name] for streams in held] == [stream_seed(name, 7)] * 3
    assert all(len({streams[other] for streams in held}) == 3 for other in held[0] if other != name)


def test_held_labels_hold_the_split_too():
    held = [stages("seeds.hold={labels: 7}", replicate=Replicate(i, i, i))["finetune"].streams for i in range(2)]
    assert held[0]["labels"] == held[1]["labels"] == stream_seed("labels", 7)
    assert held[0]["split"] == held[1]["split"] == stream_seed("split", 7)
    assert held[0]["init"] != held[1]["init"]


def test_streams_of_a_seed_are_unrelated_and_fit_into_63_bits():
    names = ("init", "order", "augmentation", "labels", "split")
    seeds = [stream_seed(name, seed) for name in names for seed in range(200)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed("init", 0) == 0x6D7013F2ECB446E7  # half of the first 8 bytes of sha256("init:0")


def test_only_an_augmented_fine_tuning_depends_on_the_augmentation_stream():
    assert "augmentation" not in stages()["finetune"].streams
    assert "augmentation" in stages("finetune.augment.flip=0.5")["finetune"].streams


# ------------------------------------------------------------------------------------------------------ chains


def chain(*methods):
    study = copy.deepcopy(STUDY)
    study["pretrain"] = [STUDY["pretrain"] | {"epochs": i + 1} if name == "simclr" else name
                         for i, name in enumerate(methods)]  # fmt: skip
    return study


def test_each_stage_of_a_chain_starts_from_the_one_before():
    found = stages(study=chain("simclr", "simclr"))
    assert list(found) == ["pretrain.0", "pretrain.1", "finetune", "probe:near"]
    assert found["pretrain.0"].parent is None
    assert found["pretrain.1"].parent == found["pretrain.0"]
    assert found["finetune"].parent == found["probe:near"].parent == found["pretrain.1"]
    assert found["finetune"].ancestors() == [found["pretrain.0"], found["pretrain.1"]]


def test_a_change_of_the_first_stage_reaches_the_whole_chain():
    one, other = chain("simclr", "simclr"), chain("simclr", "simclr")
    other["pretrain"][0]["epochs"] = 7
    assert not set(fingerprints(study=one).values()) & set(fingerprints(study=other).values())


def test_none_leaves_a_stage_of_a_chain_out():
    study = chain("none", "simclr")
    assert fingerprints(study=study) == fingerprints("pretrain.epochs=2")


def test_a_stage_of_a_chain_is_not_the_same_without_its_parent():
    both, alone = fingerprints(study=chain("simclr", "simclr")), fingerprints(study=chain("none", "simclr"))
    assert both["pretrain.1"] != alone["pretrain"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["pretrain", "finetune", "probe:near"]),
        (["finetune.transfer=none"], ["pretrain", "finetune", "probe:near"]),  # the probe wants it
        (["finetune.transfer=none", "probe={}"], ["finetune"]),
        (["finetune=null", "report.metrics=[probe/near/accuracy]"], ["pretrain", "probe:near"]),
        (["pretrain=none"], ["finetune"]),
    ],
)
def test_which_stages_a_configuration_has(overrides, names):
    assert list(stages(*overrides)) == names
    cell = from_dict(STUDY, overrides=overrides).cells[0]
    assert uses_pretraining(cell.configuration()) is ("pretrain" in names or "pretrain=none" in overrides)


def test_stages_are_equal_by_their_fingerprints():
    one, same, other = stages(), stages("study=other"), stages("pretrain.epochs=9")
    assert one["pretrain"] == same["pretrain"]
    assert len({one["pretrain"], same["pretrain"], other["pretrain"]}) == 2
    assert one["pretrain"] != "pretrain"


def test_resources_and_settings_travel_with_the_stage():
    found = stages("resources.pretrain={cpus: 2, gpus: 0.5}")
    assert (found["pretrain"].resources.cpus, found["pretrain"].resources.gpus) == (2, 0.5)
    assert (found["finetune"].resources.cpus, found["finetune"].on_test) == (1, True)
    assert isinstance(found["finetune"].settings, Finetune)
    assert found["pretrain"].on_test is False


def test_a_gpu_share_is_no_digit():
    assert changed("resources.pretrain.gpus=1") == set()


def test_headers_need_nothing_but_a_name():
    assert Header(study="s").seeds.report.pretrain == 3


def test_workers_and_what_they_normalise_by_change_digits_and_where_they_run_does_not():
    two = fingerprints("resources.pretrain.workers=2")["pretrain"]
    local = fingerprints("resources.pretrain={workers: 2, batch_norm: local}")["pretrain"]
    assert len({two, local, fingerprints("resources.pretrain.workers=4")["pretrain"]}) == 3
    for same in ("gpus_per_worker: 0.5", "min_workers: 1"):
        assert fingerprints(f"resources.pretrain={{workers: 2, {same}}}")["pretrain"] == two


def test_ready_made_weights_are_read_by_one_process():
    settings = {"name": "weights", "source": "torchvision:resnet18"}
    chain = {"pretrain": [{"data": "scenes", "method": settings}], "model": {"name": "resnet-unet", "depth": 18}}
    found = stages("resources.pretrain.workers=4", study=STUDY | chain)
    assert found["pretrain"].resources.workers == 1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_states_on_the_way_of_one_pretraining_are_a_series(schedule):
    """As a rung is: the beginning of the long training where the schedule knows its length, else a shorter one."""
    base = STUDY["pretrain"] | {"epochs": 8, "schedule": {"name": schedule}}
    factors = {"epochs": {"pretrain.stop_after": [2, 4, 8]}}
    cells = from_dict(STUDY | {"pretrain": base, "factors": factors}).cells
    whole = from_dict(STUDY | {"pretrain": base})
    found = [stages_of(cell.configuration(), FIRST, whole.header, digest_of, True)["pretrain"] for cell in cells]
    [end] = whole.cells
    last = stages_of(end.configuration(), FIRST, whole.header, digest_of, True)["pretrain"]
    assert found[-1] == last
    assert [stage.reach for stage in found] == [2, 4, 8]
    assert [stage.until for stage in found] == ([2, 4, None] if schedule == "cosine" else [None, None, None])
    assert {stage.series for stage in found} == {last.series} - {""}
    assert all(stage.keep_state for stage in found[:-1])


@pytest.mark.parametrize(
    ("length", "says"),
    [({"epochs": 8, "stop_after": 9}, "at most the 8 epochs"), ({"steps": 8, "stop_after": 2}, "a length in epochs")],
)
def test_a_state_on_the_way_lies_on_the_way(length, says):
    body = {key: value for key, value in STUDY["pretrain"].items() if key != "epochs"} | length
    with pytest.raises(StudyError, match=says):
        from_dict(STUDY | {"pretrain": body})


def test_a_probe_on_the_test_set_is_of_the_confirm_phase_alone():
    on_test = "probe.near.on=test"
    assert "probe:near" not in stages(on_test, on_test=False)
    assert "probe:near" in stages(on_test, on_test=True)
    assert "probe:near" in stages(on_test=False)
    assert fingerprints(on_test)["probe:near"] != fingerprints()["probe:near"]


def test_a_probe_on_the_test_set_is_taught_by_all_others_whichever_are_validation():
    """Its own split does not depend on the replicate; what it probes does."""
    stage = stages("probe.near.on=test")["probe:near"]
    assert stage.streams == {}
    assert stage.on_test


def test_no_pretraining_is_tuned_by_a_probe_on_the_test_set():
    ranged = ("pretrain.method.temperature={log_uniform: [0.1, 1]}", "tune.pretrain.target=probe.near")
    assert from_dict(STUDY, overrides=ranged).cells
    with pytest.raises(StudyError, match=r"probe 'near' .*test set"):
        from_dict(STUDY, overrides=(*ranged, "probe.near.on=test"))
