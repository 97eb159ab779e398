"""Every shipped study keeps its fingerprints: a move of code changes none, so that no store is trained anew.

A mend that must change some raises the recipe's number, and `docs/decisions` names it. Then write the file anew, from
the repository's root: `python tests/search_spaces/test_golden_fingerprints.py`. With names of studies it writes these
and new ones alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune import search_spaces
from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.resolve import Study, load
from pretune.search_spaces.stages import encoder_stage, fingerprint, pair_stage, replicates, stages_of

FOLDER = Path(search_spaces.__file__).parent
FILES = sorted([*FOLDER.glob("studies/*.yaml"), *FOLDER.glob("papers/*.yaml")])
GOLDEN = Path(__file__).parent / "golden" / "fingerprints.json"


def last(name: str, item: space.Range) -> Any:
    """The last option of a choice, the whole subset, the upper end: what `space.centre` never names."""
    if isinstance(item, space.Choice):
        return len(item.options) - 1
    if isinstance(item, space.Subset):
        return list(item.of)
    return item.high


def digest_of(data: Any) -> str:
    """A stand-in for the content of a data set, which is not there in this test."""
    return fingerprint({"data": data.dataset})


def of_cell(study: Study, cell: Cell) -> str:
    """One hash over the fingerprints of a cell's stages: first seeds of both phases, ranges at centre and end."""
    found = []
    for suggest in (space.centre, last):
        configuration = cell.configuration(suggest)
        for phase, on_test in (("search", False), ("report", True)):
            (first, *_) = replicates(study.header.seeds, phase)
            stages = stages_of(configuration, first, study.header, digest_of, on_test)
            found += [(name, stage.fingerprint, stage.series) for name, stage in stages.items()]
            for name, probe in configuration.probe.items():
                if probe.kind == "cka" and (encoder := encoder_stage(stages, probe.of)):
                    pair = pair_stage(configuration, name, first, study.header, digest_of, (encoder, encoder))
                    found.append((pair.name, pair.fingerprint, pair.series))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def of_study(path: Path) -> dict[str, dict[str, str]]:
    """Scale -> cell -> hash of its fingerprints."""
    scales = [None, *(yaml.safe_load(path.read_text("utf-8")).get("scales") or {})]
    studies = {scale or "full": load(path, scale) for scale in scales}
    return {scale: {cell.label: of_cell(study, cell) for cell in study.cells} for scale, study in studies.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_study_keeps_its_fingerprints(path):
    expected = json.loads(GOLDEN.read_text("utf-8"))
    assert path.stem in expected, "a new study: write the file anew (see the head of this test)"
    assert of_study(path) == expected[path.stem]


def test_no_study_left_the_golden_file_behind():
    assert set(json.loads(GOLDEN.read_text("utf-8"))) == {path.stem for path in FILES}


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    kept = json.loads(GOLDEN.read_text("utf-8")) if sys.argv[1:] else {}
    found = {
        path.stem: of_study(path) if path.stem in sys.argv[1:] or path.stem not in kept else kept[path.stem]
        for path in FILES
    }
    lines = [f"{json.dumps(name)}: {json.dumps(cells, indent=0)}" for name, cells in found.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
