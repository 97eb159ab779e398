"""Whatever a study file holds: it is a study that expands, or every problem of it is a `StudyError`."""

import copy
import os
import time

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pretune.search_spaces import space
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict, from_yaml, load
from pretune.search_spaces.stages import fingerprint, replicates, stages_of

STUDY = {
    "study": "fuzz",
    "question": "Does it stand?",
    "data": {
        "scenes": {"dataset": "scenes", "split": {"test": 0.2, "val": 0.2}},
        "photos": {"dataset": "image-mask-folder", "root": "photos", "classes": ["ground", "leaf"]},
    },
    "model": {"name": "unet", "widths": [4, 8]},
    "pretrain": [
        "none",
        {
            "data": "photos",
            "method": {"choice": [{"name": "simclr", "temperature": {"log_uniform": [0.05, 1.0]}}, {"name": "none"}]},
            "views": {"size": 16, "crop": [0.2, 1.0], "extra": {"subset": ["elastic", "solarize"]}},
            "batch_size": {"int": [4, 8]},
            "epochs": 1,
        },
    ],
    "finetune": {"data": "scenes", "size": 32, "labels": "10%", "optimizer": {"lr": 0.01}, "epochs": 1},
    "probe": {"near": {"kind": "knn", "data": "scenes", "size": 32}},
    "factors": {
        "start": {"pretrained": {}, "random": {"pretrain": "none", "finetune.transfer": "none"}},
        "skip": {"model.skip_connections": [True, False]},
    },
    "seeds": {"search": 1, "report": {"pretrain": 2, "finetune": 2}, "hold": {"order": 3}},
    "tune": {"trials": 4, "target": "val/dice"},
    "report": {"rows": "start", "metrics": ["test/jaccard", "probe/near/accuracy"], "baseline": {"start": "random"}},
    "published": {"theirs": {"values": [["random", 0.5, [0.6, 0.1]]]}},
    "scales": {"small": {"finetune.epochs": 2}},
}
WORDS = ["none", "choice", "uniform", "int", "pretrain", "finetune.labels", "scenes", "name", "data", "", ".", "²", "0"]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from([10**400, "10%", "1e-3", "val/loss", "probe.near", "unet"]),
    st.sampled_from(WORDS),
    st.text(max_size=4),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner),
    max_leaves=6,
)


def places(data, path=()):
    """The paths of everything that stands in nested data."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


PLACES = list(places(STUDY))[1:]


def changed(path, action, key, value):
    """STUDY with what stands at `path` replaced, taken out, put into a list, or joined by another key."""
    study = copy.deepcopy(STUDY)
    holder = study
    for part in path[:-1]:
        holder = holder[part]
    if action == "remove":
        del holder[path[-1]]
    elif action == "wrap":
        holder[path[-1]] = [holder[path[-1]], value]
    elif action == "branch":
        holder[path[-1]] = {"choice": [holder[path[-1]], value]}
    elif action == "add" and isinstance(holder[path[-1]], dict):
        holder[path[-1]][key] = value
    else:
        holder[path[-1]] = value
    return study


studies = st.builds(
    changed,
    st.sampled_from(PLACES),
    st.sampled_from(["replace", "remove", "wrap", "branch", "add"]),
    st.sampled_from(WORDS) | st.text(max_size=4),
    values,
)


def expand(study):
    """All that a study is asked for before anything trains."""
    for cell in study.cells:
        cell.pretraining()
        own = set(cell.ranges("pretrain")) | set(cell.ranges("finetune"))
        assert own <= {name for name, _ in space.ranges(cell.template)}
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        for suggest in (space.centre, space.suggest_from(drawn)):
            for phase in ("search", "report"):
                for replicate in replicates(study.header.seeds, phase)[:2]:
                    stages_of(cell.configuration(suggest), replicate, study.header, digest_of, phase == "report")
    assert from_yaml(study.to_yaml()).cells == study.cells


def digest_of(data):
    return fingerprint(data.model_dump(mode="json", exclude={"split"}))


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_the_study_that_is_changed_here_is_itself_in_order():
    assert len(from_dict(STUDY).cells) == 4
    expand(from_dict(STUDY))


def study_or_error(make, *args, **more):
    """What `make` answers: a study that expands, or the problems as they are printed."""
    try:
        found = make(*args, **more)
    except StudyError as error:
        return str(error)
    expand(found)
    return found.name


@given(studies)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_study_expands_or_is_a_study_error_from_python(study):
    assert study_or_error(from_dict, study)


@given(studies, st.sampled_from([None, "small"]))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_study_expands_or_is_a_study_error_from_yaml(study, scale):
    assert study_or_error(from_yaml, yaml.safe_dump(study, allow_unicode=True), scale)


@given(st.text(st.sampled_from("abc:{}[],&*!<>-#'\"\n ~0.%|?\x00"), max_size=40))
@example("a: &a [*a]")
@example("a: &a {b: *a}")
@example("study: 2024-99-99")
@example("study: !!int abc")
@example("study: !!bool abc")
@example("study: !!timestamp x")
@example("study: !!binary é")
@example("study: !!python/object:os.system {}")
@example("[a, b]: c")
@example("<<: 3")
@example("---\na: 1\n---\nb: 2")
@example("a: " + "[" * 2000 + "]" * 2000)
@example("study: x\x00")
@example("\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(7)]))
@settings(max_examples=40, deadline=None)
def test_any_text_is_a_study_error(text):
    with pytest.raises(StudyError, match=r"."):
        from_yaml(text)


@given(st.text(max_size=12) | st.sampled_from([".".join(map(str, path)) for path in PLACES]), values)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_override_is_a_study_or_a_study_error(key, value):
    override = f"{key}={yaml.safe_dump(value, default_flow_style=True)}"
    assert study_or_error(from_dict, STUDY, overrides=[override])


GOOD = "study: s\ndata: {d: {dataset: scenes}}\nfinetune: {data: d, epochs: 1}\n"
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
HOSTILE = {  # the whole file, and a part of what is said of it; None: it is a study
    "merge bomb": (MERGES, "more than 20000 values"),
    "mapping merged into itself": ("a: &a {<<: *a, b: 1}", "there is nothing to run"),
    "alias bomb": ("".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" if i else "a0: &a0 1\n" for i in range(30)),
                   "more than 20000 values"),
    "many seeds": (GOOD + "seeds: {report: 100001}", "seeds.report: should be less than or equal to"),
    "nested seeds": (GOOD + "seeds: {report: {pretrain: 1000, finetune: 1000}}", "1000000 replicates"),
    "many trials": (GOOD + "tune: {trials: 1000000000}", "tune.trials: should be less than or equal to 10000"),
    "huge number": (GOOD + f"seeds: {{report: {'9' * 5000}}}", "not a value: Exceeds the limit"),
    "many options": (GOOD.replace("1}", f"{{choice: {list(range(1, 9000))}}}}}"), "choice has 8999 options"),
    "many levels": (GOOD + f"factors: {{a: {{finetune.epochs: {list(range(1, 10002))}}}}}", "10001 cells are more"),
    "many factors": (GOOD + "factors:\n" + "".join(f"  f{i}: {{finetune.epochs: [1]}}\n" for i in range(2000)),
                     "2000 factors are more than 100"),
    "many faults": (GOOD + f"factors: {{a: {{finetune.epochs: {list(range(-2000, 0))}}}}}", "should be greater than 0"),
    "many unknown keys": (GOOD + "".join(f"k{i}: 1\n" for i in range(3000)), "k2999: there is no such key"),
    "large": (GOOD + "#" * 10_000_000, "has 10.0 MB; a study is a few kilobytes, and at most 0.5 MB are read"),
    "long list": (GOOD + f"model: {{widths: [{'4,' * 30_000}4]}}", "more than 20000 values"),
    "deep lists": ("a: " + "[" * 1500 + "]" * 1500, "is nested too deeply"),
    "deep mappings": ("\n".join(" " * i + "a:" for i in range(100)), "more than 50 mappings and lists in each other"),
    "deep key": (GOOD + f"factors: {{a: {{{'.' * 500}: [1]}}}}", "is a key of 501 parts: at most 50"),
    "infinite rate": (GOOD.replace("1}", "1, optimizer: {lr: 1e400}}"), "should be a finite number"),
    "infinite word": (GOOD.replace("1}", "1, optimizer: {lr: inf}}"), "should be a finite number"),
    "infinite hours": (GOOD + "tune: {budget: {study: {hours: .inf}}}", "should be a finite number"),
    "no number": (GOOD + "tune: {constraints: {val/dice: .nan}}", "should be a finite number"),
    "numbers as keys": ("1: 2\n~: 3\n" + GOOD, "there is no such key"),
    "list as key": ("? [a]\n: 1\n" + GOOD, "a key is a list or a mapping"),
    "key twice": (GOOD + "study: t", "the key is given twice"),
    "byte-order mark": ("\ufeff" + GOOD, None),
    "Windows lines": (GOOD.replace("\n", "\r\n"), None),
    "UTF-16": (GOOD.encode("utf-16"), "cannot be read: 'utf-8' codec"),
    "bytes": (bytes(range(256)), "cannot be read: 'utf-8' codec"),
    "half a pair": ('study: "\\ud800"\n' + GOOD[9:], "should be a valid string"),
    "empty": ("", "a study is a mapping of keys to values"),
    "blank": (" \n# nothing\n", "a study is a mapping of keys to values"),
    "tabs": ("study: s\n\tdata: x", "cannot start any token"),
    "long key": ("k" * 100_000 + ": 1\n" + GOOD, "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_answered_in_seconds(tmp_path, name):
    content, said = HOSTILE[name]
    path = tmp_path / "study.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    begun = time.process_time()
    if said is None:
        assert load(path).name == "s"
    else:
        with pytest.raises(StudyError) as caught:
            load(path)
        assert said in str(caught.value)
        assert "Traceback" not in str(caught.value)
    assert time.process_time() - begun < 10


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml", "/dev/zero"):
        with pytest.raises(StudyError, match="no regular file"):
            load(path)


def test_levels_that_differ_in_type_alone_differ_in_meaning():
    study = from_yaml(GOOD + "factors: {labels: {finetune.labels: [1, 1.0]}}")  # one image, and all of them
    assert [cell.configuration().finetune.labels for cell in study.cells] == [1, 1.0]
