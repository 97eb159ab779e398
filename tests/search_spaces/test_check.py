"""Every bad input: which line is named, what is said, and what to do. Lines are counted by hand."""

import re
import subprocess
import sys

import pytest
import yaml

from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict, from_yaml
from pretune.search_spaces.schema import Header

GOOD = """\
study: s
data:
  scenes: {dataset: scenes}
model: {widths: [4, 8]}
pretrain:
  data: scenes
  method: {name: simclr}
  epochs: 1
finetune:
  data: scenes
  epochs: 1
"""  # 11 lines


def problems(text, **more):
    with pytest.raises(StudyError, match=r".") as caught:
        from_yaml(text, **more)
    return [problem.format("s") for problem in caught.value.problems]


def test_the_text_that_is_changed_here_is_in_order():
    assert len(from_yaml(GOOD).cells) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # unknown keys, at every depth and inside every union
        ("model:", "modle:", 's:4: modle: there is no such key (did you mean "model"?)'),
        ("{widths", "{norms: none, widths", 's:4: model.norms: there is no such key (did you mean "norm"?)'),
        ("dataset: scenes}", "dataset: scenes, clases: 3}",
         's:3: data.scenes.clases: there is no such key (did you mean "classes"?)'),
        ("dataset: scenes}", "dataset: scenes, split: {vla: 0.1}}",
         's:3: data.scenes.split.vla: there is no such key (did you mean "val"?)'),
        ("name: simclr", "name: simclr, temprature: 1",
         's:7: pretrain.method.temprature: there is no such key (did you mean "temperature"?)'),
        ("  epochs: 1\nfine", "  views:\n    szie: 3\n  epochs: 1\nfine",
         's:9: pretrain.views.szie: there is no such key (did you mean "size"?)'),
        ("finetune:\n", "finetune:\n  optimizer: {lr: 1, momentum: 0.9}\n",
         's:10: finetune.optimizer.momentum: there is no such key (known here: betas, decay, lr, name, weight_decay)'),
        ("study: s", "study: s\nseeds: {reports: 3}",
         's:2: seeds.reports: there is no such key (did you mean "report"?)'),
        ("study: s", "study: s\nresources: {pretrain: {gpu: 1}}",
         's:2: resources.pretrain.gpu: there is no such key (did you mean "gpus"?)'),
        # workers
        ("study: s", "study: s\nresources: {pretrain: {workers: 5}}",
         "s:6: pretrain.batch_size: 384 images are not divisible by 5 workers (resources.pretrain) (use a multiple of 5)"),  # noqa: E501
        ("study: s", "study: s\nresources: {pretrain: {workers: 6, min_workers: 5}}",
         "s:6: pretrain.batch_size: 384 images are not divisible by 5 workers (resources.pretrain) (use a multiple of 5)"),  # noqa: E501
        ("study: s", "study: s\nresources: {pretrain: {workers: 2, gpus: 1}}",
         "s:2: resources.pretrain: with several workers, give gpus_per_worker in place of gpus"),
        ("study: s", "study: s\nresources: {probe: {activation_checkpointing: true}}",
         "s:2: resources: probe.activation_checkpointing has no effect: probes train no network; leave it out"),
        ("study: s", "study: s\nresources: {pretrain: {gpus: 1.5}}",
         "s:2: resources.pretrain: 1.5 GPUs: above 1 the number must be whole, since a process shares at most one GPU"),
        ("study: s", "study: s\nresources: {pretrain: {workers: 2, min_workers: 3}}",
         "s:2: resources.pretrain: min_workers 3 is above workers 2"),
        ("study: s", "study: s\nresources: {pretrain: {workers: 2, min_workers: 1, batch_norm: local}}",
         "s:2: resources.pretrain: min_workers needs batch_norm: sync; with local, fewer workers train something else"),
        # unknown words
        ("dataset: scenes", "dataset: scene", 's:3: data.scenes.dataset: unknown value \'scene\' (did you mean "scenes"?)'),  # noqa: E501
        ("simclr", "simclear", "s:7: pretrain.method.name: unknown value 'simclear' (did you mean \"simclr\"?)"),
        ("finetune:\n", "finetune:\n  freeze: encodr\n",
         's:10: finetune.freeze: unknown value \'encodr\' (did you mean "encoder"?)'),
        ("study: s", "study: s\nseeds:\n  hold:\n    ordr: 3",
         's:4: seeds.hold.ordr: unknown value \'ordr\' (did you mean "order"?)'),
        # missing, empty, of the wrong kind
        ("  data: scenes\n  method", "  method", "s:5: pretrain.data: is missing (add it)"),
        ("study: s\n", "", "s:1: study: is missing (add it)"),
        ("dataset: scenes", "images: 5", "s:3: data.scenes: needs a key 'dataset' (for example dataset: ...)"),
        ("model: {widths: [4, 8]}", "model:", "s:4: model: is empty (give it keys, or remove it)"),
        ("{widths: [4, 8]}", "unet", "s:4: model: should be a mapping of keys to values, received 'unet'"),
        ("finetune:\n", "finetune:\n  optimizer: 5\n",
         "s:10: finetune.optimizer: should be a mapping of keys to values, received 5"),
        ("study: s", "study: my study!", "s:1: study: unusable name 'my study!' (use letters, digits, '.', '_' and '-')"),  # noqa: E501
        # values out of bounds
        ("  epochs: 1\nfine", "  epochs: 0\nfine", "s:8: pretrain.epochs: should be greater than 0, received 0"),
        ("  epochs: 1\nfine", "  epochs: many\nfine", "s:8: pretrain.epochs: should be a whole number, received 'many'"),  # noqa: E501
        ("[4, 8]", "[4, -8]", "s:4: model.widths.1: should be greater than 0, received -8"),
        ("[4, 8]", "[4]", "s:4: model.widths: tuple should have at least 2 items after validation, not 1, received [4]"),  # noqa: E501
        ("finetune:\n", "finetune:\n  labels: some\n",
         "s:10: finetune.labels: should be a whole number or a number, received 'some'"),
        ("finetune:\n", "finetune:\n  labels: 74.5\n",
         "s:10: finetune.labels: write a count as a whole number (74), a fraction as a percentage (10%) or below 1 (0.1), "  # noqa: E501
         "received 74.5"),
        ("finetune:\n", "finetune:\n  optimizer: {lr: .inf}\n",
         "s:10: finetune.optimizer.lr: should be a finite number, received inf"),
        ("study: s", "study: s\nseeds: {report: 0}",
         "s:2: seeds.report: should be greater than 0, received 0"),
        # rules between settings
        ("  epochs: 1\nfine", "  epochs: 1\n  steps: 9\nfine", "s:5: pretrain: give exactly one of epochs and steps"),
        ("  epochs: 1\nfine", "fine", "s:5: pretrain: give exactly one of epochs and steps"),
        ("  epochs: 1\nfine", "  views: {crop: [0.9, 0.2]}\n  epochs: 1\nfine",
         "s:8: pretrain.views: crop: the lower bound 0.9 is above the upper bound 0.2"),
        ("  data: scenes\n  epochs", "  data: scene\n  epochs",
         's:10: finetune.data: there is no data set \'scene\' (did you mean "scenes"?)'),
        ("  data: scenes\n  method", "  data: scene\n  method",
         's:6: pretrain.data: there is no data set \'scene\' (did you mean "scenes"?)'),
        ("finetune:\n", "finetune:\n  size: 33\n",
         "s:10: finetune.size: 33 px is not a multiple of 2, which a U-Net of 2 levels needs (use 32 or 34)"),
        ("  epochs: 1\nfine", "  views: {size: 1}\n  epochs: 1\nfine",
         "s:8: pretrain.views.size: 1 px is below 2, the minimum for the encoder of a U-Net of 2 levels (use 2 or more)"),  # noqa: E501
        ("finetune:\n", "finetune:\n  transfer: encoder+decoder\n",
         "s:10: finetune.transfer: simclr trains no decoder to transfer (use transfer: encoder)"),
        # ranges
        ("name: simclr", "name: simclr, temperature: {uniform: [1, 0]}",
         "s:7: pretrain.method.temperature: uniform needs low < high, received [1, 0]"),
        ("name: simclr", "name: simclr, temperature: {uniform: [-1, 1]}",
         "s:7: pretrain.method.temperature: should be greater than 0, received -1.0"),
        ("name: simclr", "name: simclr, hidden: {int: [0, 9]}",
         "s:7: pretrain.method.hidden: should be greater than 0, received 0"),
        ("finetune:\n", "finetune:\n  optimizer: {choice: [{name: sgd, momentum: {uniform: [0, 1.5]}}, {name: adam}]}\n",  # noqa: E501
         "s:10: finetune.optimizer.momentum: should be less than or equal to 1, received 1.5"),
        # report and tune
        ("study: s", "study: s\nreport: {metrics: test/jacard}",
         "s:2: report.metrics: no stage reports 'test/jacard' (did you mean \"test/jaccard\"?)"),
        ("study: s", "study: s\nreport: {metrics: probe/near/accuracy}",
         "s:2: report.metrics: there is no probe 'near'"),
        ("study: s", "study: s\nreport: {rows: labels}", "s:2: report.rows: there is no factor 'labels'"),
        ("study: s", "study: s\nreport: {published: P2}",
         "s:2: report.published: the section published has no table 'P2' (add published: {KEY: {values: [...]}})"),
        ("study: s", "study: s\nreport: {published: [P2, P3]}\npublished: {P2: {values: []}, P3: {values: []}}",
         "s:2: report.published: 'P2' and 'P3' are both of test/jaccard (name one table for each metric)"),
        ("study: s", "study: s\ntune: {target: test/jaccard}",
         "s:2: tune.target: tuning on the test set (use val/...)"),
        ("study: s", "study: s\ntune: {target: probe/near/accuracy}",
         "s:2: tune.target: no fine-tuning reports 'probe/near/accuracy' (did you mean \"val/accuracy\"?)"),
        ("study: s", "study: s\ntune: {pretrain: {target: near}}",
         "s:2: tune.pretrain.target: unknown target 'near' (cells, pretext or probe.NAME)"),
        ("study: s", "study: s\ntune: {pretrain: {target: probe.near}}",
         "s:2: tune.pretrain.target: there is no probe 'near'"),
        ("study: s", "study: s\nscales: {small: 3}",
         "s:2: scales.small: is a mapping of dotted keys to values (for example scales: {small: {finetune.epochs: 1}})"),  # noqa: E501
    ],
)  # fmt: skip
def test_each_bad_input_is_said_once_with_its_line_and_a_fix(old, new, said):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if "checkpoint" in said:
        text += "  checkpoint: best\n"
    (found,) = problems(text)
    assert found.startswith(said)


FACTORS = GOOD + "factors:\n"  # line 12


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ("  skip: {}\n", "s:13: factors.skip: has no levels "
                         "(write {dotted.key: [values]} or {level name: {dotted.key: value}})"),
        ("  skip: {model.norm: []}\n", "s:13: factors.skip.model.norm: has no levels (list its values)"),
        ("  skip:\n    a: {}\n    b: 3\n", "s:15: factors.skip.b: is not an override "
                                           "(write {level name: {dotted.key: value}}, or one dotted key with a list of values)"),  # noqa: E501
        ("  skip: {model.norm: [batch, batch]}\n",
         "s:13: factors.skip.model.norm.1: the level 'batch' stands there twice (remove one)"),
        ("  skip:\n    model.norm:\n      - batch\n      - bach\n",
         "s:16: model.norm: unknown value 'bach' (did you mean \"batch\"?)"),
        ("  loss:\n    a: {finetune.loss: dice}\n    b:\n      finetune.loss: dise\n",
         "s:16: finetune.loss: unknown value 'dise' (did you mean \"dice\"?)"),
        ("  lr:\n    a: {}\n    b:\n      finetune.optimizer:\n        name: sgd\n        lr: -1\n",
         "s:18: finetune.optimizer.lr: should be greater than 0, received -1"),
        ("  lr:\n    finetune.optimizer.lr:\n      - 0.1\n      - {log_uniform: [1]}\n",
         "s:16: factors.lr.finetune.optimizer.lr.1: log_uniform needs two numbers [low, high], received [1]"),
        ("  epochs: {pretrain.epochs: [1, -1]}\n", "s:13: pretrain.epochs: should be greater than 0, received -1"),
        ("  a: {finetune.fre: [none]}\n", 's:13: finetune.fre: there is no such key (did you mean "freeze"?)'),
        ("  a: {finetune.size.px: [3]}\n  b: {finetune.size: [4]}\n",
         "s:14: factors.b.finetune.size.0: factor 'a' sets finetune.size.px too (line 13)"),
        ("  start: {x: {pretrain: none}}\n  t: {pretrain.method.temperature: [0.1]}\n",
         "s:14: factors.t.pretrain.method.temperature.0: factor 'start' sets pretrain too (line 13)"),
        ("  lr: {finetune.optimizer.lr: [0.001, '1e-3']}\n",
         "s:13: factors.lr.finetune.optimizer.lr.1: the levels '0.001' and '1e-3' mean the same"),
        ("  labels: {finetune.labels: [10%, 5%, 10.0%]}\n",
         "s:13: factors.labels.finetune.labels.2: the levels '10%' and '10.0%' mean the same"),
        ("  a: {x: {finetune: {data: d}, finetune.size: 8}}\n",
         "s:13: factors.a.x.finetune.size: the same level sets finetune too (line 13)"),
        ("  a: {model.widths: [[4, 8], [4, 8, 16]]}\n  b: {finetune.size: [34]}\n",
         "s:14: finetune.size: 34 px is not a multiple of 4, which a U-Net of 3 levels needs (use 32 or 36)"),
    ],
)  # fmt: skip
def test_each_bad_level_is_said_with_the_line_on_which_its_value_stands(factors, said):
    (found,) = problems(FACTORS + factors)
    assert found.startswith(said)


@pytest.mark.parametrize("key", ["data", "epochs"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("slip", ["{}x", "my_{}", "all but the last letter"])
def test_a_misspelt_key_is_one_problem_and_not_two(stage, key, slip):
    """The key that it stands for is not missing: it is there under another name."""
    study = yaml.safe_load(GOOD)
    wrong = key[:-1] if slip.startswith("all") else slip.format(key)
    study[stage][wrong] = study[stage].pop(key)
    (found,) = problems(yaml.safe_dump(study))
    assert f"{stage}.{wrong}: there is no such key" in found


def test_a_key_that_is_missing_beside_a_strange_one_is_another_problem():
    study = yaml.safe_load(GOOD)
    del study["finetune"]["epochs"]
    study["finetune"]["colour"] = 1
    length, colour = problems(yaml.safe_dump(study))
    assert length.endswith("finetune: give exactly one of epochs and steps")
    assert "finetune.colour: there is no such key" in colour


def test_a_bad_value_in_a_scale_is_on_the_line_of_the_scale():
    text = GOOD + "scales:\n  small:\n    finetune.epochs: 0\n    pretrain.views: {szie: 3}\n"
    assert len(from_yaml(text).cells) == 1
    assert problems(text, scale="small") == [
        "s:14: finetune.epochs: should be greater than 0, received 0",
        's:15: pretrain.views.szie: there is no such key (did you mean "size"?)',
    ]
    assert problems(text, scale="smal") == ["s:12: scales: there is no scale 'smal' (did you mean \"small\"?)"]
    assert problems(GOOD, scale="small") == ["s:1: scales: there is no scale 'small' (the study has no scales)"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("finetune.epochs=0", "s: finetune.epochs: should be greater than 0, received 0"),
        ("finetune.epoch=1", 's: finetune.epoch: there is no such key (did you mean "epochs"?)'),
        ("finetune.epochs", "s: --set finetune.epochs: is not of the form dotted.key=value"),
        ("finetune.epochs=[1", "s: --set finetune.epochs=[1: the value cannot be read: not valid YAML: "
                               "expected ',' or ']', but got '<stream end>' (quote it)"),
        ("study.name=3", "s: --set study.name: cannot be set, because study is 's' "
                         "(set the whole of it, in one level if factors meet here)"),
    ],
)  # fmt: skip
def test_a_bad_override_stands_on_no_line(override, said):
    assert problems(GOOD, overrides=[override]) == [said]


def test_stages_of_a_chain_are_counted_as_they_are_written():
    stage = "\n  - data: scenes\n    method: {name: simclr}\n    epochs: "
    text = f"study: s\ndata: {{scenes: {{dataset: scenes}}}}\npretrain:\n  - none{stage}1{stage}0\nfinetune: {{data: scenes, epochs: 1}}\n"  # noqa: E501
    assert problems(text) == ["s:10: pretrain.2.epochs: should be greater than 0, received 0"]


BAD = """\
study: bad study!
data:
  pets: {dataset: oxford-iiit-pets}
  sc: {dataset: scenes, clases: 3}
modle: {name: unet}
pretrain:
  data: pet
  method: {name: simclr, temprature: 0.2}
  views:
    crop: [0.9, 0.2]
  optimizer: {name: adm}
  epochs: 2
  steps: 3
finetune:
  data: sc
  freeze: encodr
  epochs: 1
  optimizer: {lr: {log_uniform: [1, 0]}}
factors:
  skip: {model.skip_connections: [true, maybe]}
  x: {}
  labels:
    finetune.labels:
      - 10%
      - 0%
seeds: {report: 0, hold: {ordr: 3}}
report: {rows: skp, baseline: {skip: yess}, metrics: test/jacard}
tune: {target: test/jaccard}
"""


def test_all_problems_of_a_file_are_reported_together_in_its_order():
    assert [line.partition(": ")[0] + " " + line.split(": ")[1] for line in problems(BAD)] == [
        "s:1 study", "s:3 data.pets.dataset", "s:4 data.sc.clases", "s:5 modle", "s:6 pretrain", "s:7 pretrain.data",
        "s:8 pretrain.method.temprature", "s:9 pretrain.views", "s:11 pretrain.optimizer.name", "s:16 finetune.freeze",
        "s:18 finetune.optimizer.lr", "s:20 model.skip_connections", "s:21 factors.x", "s:25 finetune.labels",
        "s:26 seeds.hold.ordr", "s:26 seeds.report", "s:27 report.baseline.skip", "s:27 report.metrics",
        "s:27 report.rows", "s:28 tune.target",
    ]  # fmt: skip


def test_the_command_line_names_every_problem_and_ends_with_2_without_a_traceback(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD, encoding="utf-8")
    command = [sys.executable, "-c", "from pretune.cli import main; main()", "plan", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 21
    assert all(re.match(rf"{re.escape(str(path))}:\d+: [\w.]+: ", line) for line in lines[:20])
    assert lines[20] == "20 problems; nothing was started."


def test_the_same_problems_are_found_in_python_data_without_lines():
    with pytest.raises(StudyError, match=r'study: data.a.clases: .*"classes"'):
        from_dict(
            {"study": "s", "data": {"a": {"dataset": "scenes", "clases": 3}}, "finetune": {"data": "a", "epochs": 1}}
        )


def test_a_long_value_is_not_repeated_whole():
    (said,) = problems(GOOD.replace("epochs: 1\nfine", f"epochs: {'x' * 500}\nfine"))
    assert len(said) < 160


def test_a_fault_that_shows_in_every_cell_is_said_once():
    text = GOOD.replace("simclr}", "simclr, dim: 0}") + "factors: {a: {finetune.labels: [10%, 20%, 30%]}}\n"
    assert problems(text) == ["s:7: pretrain.method.dim: should be greater than 0, received 0"]


def test_ranges_need_something_that_tunes_them():
    text = GOOD.replace("simclr}", "simclr, temperature: {uniform: [0.1, 1]}}").replace(
        "dataset: scenes", "dataset: scenes, split: {val: 0}"
    )
    assert problems(text) == ["s:3: data.scenes.split.val: tuning needs validation images (set it above 0)"]
    alone = (
        text[: text.index("finetune:")].replace(", split: {val: 0}", "") + "probe: {near: {kind: knn, data: scenes}}\n"
    )
    alone += "report: {metrics: probe/near/accuracy}\n"
    assert problems(alone) == [
        "s:1: tune.pretrain.target: the ranges of the pretraining are tuned by fine-tunings, and there are none "
        "(set tune.pretrain.target to pretext or probe.NAME)"
    ]
    assert len(from_yaml(alone + "tune: {pretrain: {target: probe.near}}\n").cells) == 1


def test_the_pretext_target_needs_images_that_pretraining_did_not_see():
    text = GOOD.replace("  epochs: 1\nfine", "  sees: all\n  epochs: 1\nfine") + "tune: {pretrain: {target: pretext}}\n"
    assert problems(text) == [
        "s:8: pretrain.sees: the pretext target needs validation images that pretraining did not see (set sees: train)"
    ]


def test_nothing_to_run_is_said():
    found = problems("study: s\ndata: {a: {dataset: scenes}}\npretrain: none\nreport: {metrics: test/dice}\n")
    assert found == [
        "s: study: neither pretrain nor finetune: there is nothing to run (add one of them)",
        "s:4: report.metrics: no stage reports test/dice (add finetune, or report a probe)",
    ]


@pytest.mark.parametrize("name", ["store", "cache", "Store", "CACHE"])
def test_a_study_is_not_named_like_a_folder_that_all_studies_share(name: str) -> None:
    """It would write among the fingerprints; a disk may not tell upper case from lower."""
    with pytest.raises(ValueError, match=f"{name} is the folder that holds the {name.lower()} of all studies; choose"):
        Header(study=name)
    assert Header(study=f"{name}-2").study == f"{name}-2"
