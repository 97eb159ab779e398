"""Every study that ships resolves, at full size and at every scale, and is worth its header."""

from pathlib import Path

import pytest
import yaml

from pretune import search_spaces
from pretune.search_spaces.resolve import from_yaml, load
from pretune.search_spaces.stages import fingerprint, replicates, stages_of

FOLDER = Path(search_spaces.__file__).parent
FILES = sorted([*FOLDER.glob("studies/*.yaml"), *FOLDER.glob("papers/*.yaml")])
SCALED = [
    (path, scale) for path in FILES for scale in (None, *(yaml.safe_load(path.read_text("utf-8")).get("scales") or {}))
]


def named(value):
    return value.stem if isinstance(value, Path) else str(value)


def test_some_studies_ship():
    assert {"quickstart", "pets_freeze_skip"} <= {path.stem for path in FILES}


@pytest.mark.parametrize(("path", "scale"), SCALED, ids=named)
def test_a_shipped_study_resolves_and_its_stages_expand(path, scale):
    study = load(path, scale)
    cell = study.cells[0]
    (first, *_) = replicates(study.header.seeds, "report")
    stages = stages_of(
        cell.configuration(), first, study.header, lambda data: fingerprint({"data": data.dataset}), True
    )
    assert stages
    assert from_yaml(study.to_yaml()).cells == study.cells
    assert study.header.question


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_shipped_study_opens_with_the_command_that_runs_it(path):
    head = path.read_text("utf-8").partition("\nstudy:")[0]
    assert "pretune run" in head
    assert all(line.startswith("#") for line in head.splitlines())
