"""The schema for editors: it takes every study that resolves, and says what is wrong with the plainest faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pretune import search_spaces
from pretune.cli import cli
from pretune.search_spaces.json_schema import json_schema
from pretune.search_spaces.meanings import meanings

jsonschema = pytest.importorskip("jsonschema")
FOLDER = Path(search_spaces.__file__).parent
STUDIES = sorted([*FOLDER.glob("studies/*.yaml"), *FOLDER.glob("papers/*.yaml")])
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
BASE: dict[str, Any] = {"study": "s", "data": {"d": {"dataset": "scenes"}}, "finetune": {"data": "d", "epochs": 1}}


def faults(study: Any) -> list[str]:
    return [error.json_path for error in VALIDATOR.iter_errors(study)]


def test_it_is_a_schema_itself_and_always_the_same() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.dumps(json_schema()) == json.dumps(SCHEMA)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_fits(path: Path) -> None:
    assert faults(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"d": {"dataset": "image-folder", "root": "x", "split": "none"}}},
        {"data": {"d": {"dataset": "image-mask-folder", "root": "x", "mask_colors": "camvid"}}},
        {"data": {"d": {"dataset": "image-mask-folder", "root": "x", "mask_colors": {"a": [0, 0, 1]}}}},
        {"data": {"d": {"dataset": "scenes", "split": {"test": "10%", "group": {"pattern": "a"}}}}},
        {"finetune": {"data": "d", "epochs": {"int": [1, 3]}, "labels": "10%", "optimizer": {"lr": 0.1}}},
        {"pretrain": [{"data": "d", "method": {"name": "simclr"}, "epochs": 1}]},
        {"pretrain": {"data": "d", "method": {"choice": [{"name": "simclr"}, {"name": "byol"}]}, "epochs": 1}},
        {"seeds": {"report": 3}, "report": {"metrics": "test/jaccard"}},
    ],
)
def test_short_forms_and_ranges_fit(changes: dict[str, Any]) -> None:
    assert faults(BASE | changes) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"finetun": {}}, "$"),
        ({"finetune": {"data": "d", "epochs": 1, "freze": "encoder"}}, "$.finetune"),
        ({"finetune": {"data": "d", "epochs": 0}}, "$.finetune"),
        ({"data": {"d": {"dataset": "scenez"}}}, "$.data"),
        ({"study": "a b"}, "$.study"),
    ],
)
def test_plain_faults_are_marked_where_they_stand(changes: dict[str, Any], where: str) -> None:
    assert any(found.startswith(where) for found in faults(BASE | changes))


def test_settings_carry_their_meaning() -> None:
    finetune = SCHEMA["$defs"]["Finetune"]["properties"]
    assert finetune["size"]["description"] == meanings()["Finetune"]["size"] == "px (P2)"
    assert SCHEMA["$defs"]["ImageMaskFolder"]["properties"]["cache_size"]["description"].startswith("px; images are")
    assert finetune["size"]["default"] == 128


def test_the_command_prints_or_writes_it(tmp_path: Path) -> None:
    assert json.loads(CliRunner().invoke(cli, ["schema"]).output) == SCHEMA
    CliRunner().invoke(cli, ["schema", "--out", str(tmp_path / "deep" / "s.json")])
    assert json.loads((tmp_path / "deep" / "s.json").read_text()) == SCHEMA


def test_init_writes_the_line_and_the_file_that_editors_read(tmp_path: Path) -> None:
    CliRunner().invoke(cli, ["init", str(tmp_path / "s.yaml")])
    first = (tmp_path / "s.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=.pretune.schema.json"
    assert json.loads((tmp_path / ".pretune.schema.json").read_text()) == SCHEMA
    assert faults(yaml.safe_load((tmp_path / "s.yaml").read_text())) == []
