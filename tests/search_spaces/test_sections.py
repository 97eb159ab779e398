"""Sections of cells are read once: problems and settings are those of reading every cell whole, and the same again."""

import copy

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretune.search_spaces import cells, resolve, rules, space
from pretune.search_spaces.check import check_finite, problems_of
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.schema import Configuration

BASE = {
    "study": "s",
    "data": {"d": {"dataset": "scenes"}, "own": {"dataset": "image-mask-folder", "classes": ["a", "b"]}},
    "model": {"widths": [4, 8]},
    "pretrain": {"data": "d", "method": {"name": "simclr"}, "views": {"size": 32}, "batch_size": 8, "epochs": 2},
    "finetune": {"data": "d", "size": 32, "epochs": 2},
    "probe": {"near": {"kind": "knn", "data": "d", "size": 32}},
    "tune": {"trials": 4},
}
INF = float("inf")
RANGES = [{"uniform": [1, 8]}, {"int": [1, 9]}, {"log_uniform": [0.01, 1]}, {"choice": [2, INF]}, {"choice": [4, "4x"]}]
VALUES = {  # settings, and what may stand there: right, wrong, or the same written otherwise
    "finetune.batch_size": [1, 1.0, "1", True, "010", 0, 10**17, *RANGES],
    "finetune.optimizer.lr": [0.1, "1e-1", INF, float("nan"), -1, True, *RANGES],
    "finetune.optimizer": [{"name": "sgd", "lr": 0.1}, {"name": "sgdd"}, {"lr": True}],
    "finetune.size": [16, 32, 9, "32", {"int": [8, 32]}],
    "finetune.loss": ["dice", "focal", "dize", {"choice": ["dice", "focal"]}],
    "finetune.focal_gamma": [2, 2.0, INF],
    "finetune": [None, {"data": "gone", "epochs": 1}, {"data": "d", "steps": 3}, 3],
    "pretrain.method.temperature": [0.1, "0.1", 0, True, *RANGES],
    "pretrain.method": [{"name": "mae"}, {"name": "byol", "dim": 8}, {"choice": [{"name": "mae"}, {"name": "simclr"}]}],
    "pretrain": ["none", [{"data": "d", "method": {"name": "mae"}, "epochs": 1}] * 2],
    "pretrain.batch_size": [4, 1, {"int": [1, 8]}],
    "model.skip_connections": [True, "yes", 1],
    "model": [{"name": "resnet-unet"}, {"name": "unett"}, None],
    "data.d.limit": [100, 100.0, "100", True, 0],
    "data.own.classes": [["a", "b"], ["a", "a"], "a"],
    "data.d.split": ["none", {"test": "10%"}, {"test": 0}],
    "probe.near.k": [20, 20.5, "20"],
    "probe": [{}, {"far": {"kind": "cka", "data": "d", "between": "a"}}],
    "no.such": [1],
}
levels = st.sampled_from(list(VALUES)).flatmap(
    lambda key: st.lists(st.sampled_from(VALUES[key]), min_size=1, max_size=3).map(lambda values: {key: values})
)
named = st.dictionaries(
    st.sampled_from("xyz"),
    st.sampled_from(list(VALUES)).flatmap(lambda key: st.sampled_from(VALUES[key]).map(lambda value: {key: value})),
    min_size=1,
)
factors = st.dictionaries(st.sampled_from("abc"), levels | named, max_size=3)


class Whole:
    """Reads every configuration from the beginning, as before sections were kept."""

    def read(self, written, locations):
        found, problems = problems_of(Configuration, copy.deepcopy(written), locations)
        return found, [*problems, *check_finite(written, (), locations)]


def crossed_whole(template, lines, factors, problems):
    """Cells that share nothing: each from a copy of its own, whatever the factors set."""
    for cell, locations in cells.cross(copy.deepcopy(template), lines, factors, problems):
        yield cells.Cell(cell.label, cell.levels, copy.deepcopy(cell.template)), locations


def answer(study):
    """Every cell with all its configurations, and the warnings; or every problem."""
    try:
        found = from_dict(study)
    except StudyError as error:
        return error.problems
    tried = [
        (cell, [Configuration.model_validate(space.fill(cell.template, suggest)) for suggest in rules.extremes(cell)])
        for cell in found.cells
    ]
    return repr(tried), found.warnings


@given(factors)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_reading_sections_once_finds_what_reading_every_cell_finds(monkeypatch, crossed):
    study = BASE | {"factors": crossed}
    found = answer(study)
    with monkeypatch.context() as patch:
        patch.setattr(rules, "Sections", Whole)
        patch.setattr(resolve, "cross", crossed_whole)
        assert answer(study) == found


@given(factors)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_configuration_of_a_study_is_the_one_that_its_cell_says(monkeypatch, crossed):
    """The rules were given what `Cell.configuration` gives later."""
    checked = []
    looked_at = rules._check_configuration

    def recorded(cell, configuration, *rest):
        checked.append((cell, configuration))
        return looked_at(cell, configuration, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(rules, "_check_configuration", recorded)
        try:
            study = from_dict(BASE | {"factors": crossed})
        except StudyError:
            return
    expected = [(cell, cell.configuration(suggest)) for cell in study.cells for suggest in rules.extremes(cell)]
    assert checked == expected
