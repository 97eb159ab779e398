"""Cells share a search of their pretraining exactly if they share the pretraining itself, by its fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretune import search_spaces
from pretune.search_spaces import resolve, stages
from pretune.search_spaces.document import StudyError

FOLDER = Path(search_spaces.__file__).parent
GOLDEN: dict[str, list[list[str]]] = json.loads(
    (Path(__file__).parent / "golden" / "shared_pretrainings.json").read_text("utf-8")
)


def study(method: str, first: dict[str, Any], second: dict[str, Any]) -> resolve.Study:
    """Two cells that differ in their model alone, with a range in the pretraining."""
    pretrain = {"data": "d", "method": {"name": method}, "views": {"size": 32}, "batch_size": 8, "epochs": 1}
    body: dict[str, Any] = {
        "study": "s",
        "data": {"d": {"dataset": "scenes"}},
        "pretrain": pretrain | {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}}},
        "finetune": {"data": "d", "size": 32, "epochs": 1},
        "factors": {"network": {"first": {"model": first}, "second": {"model": second}}},
    }
    return resolve.from_dict(body)


def searches(found: resolve.Study) -> int:
    return len({cell.pretraining() for cell in found.cells})


def fingerprints(found: resolve.Study) -> int:
    replicate = stages.replicates(found.header.seeds, "search")[0]
    both = [
        stages.stages_of(cell.configuration(), replicate, found.header, lambda data: "digest", False)
        for cell in found.cells
    ]
    return len({each["pretrain"].fingerprint for each in both})


WIDTHS = [64, 32, 16, 8, 4]
TIMM = {"name": "timm-unet", "backbone": "resnet10t"}
SAME_ENCODER = [
    ({"name": "resnet-unet", "depth": 18}, {"name": "resnet-head", "depth": 18}),
    ({"name": "resnet-unet"}, {"name": "resnet-head", "depth": 34}),  # the default
    ({"name": "resnet-unet"}, {"name": "resnet-unet", "decoder_widths": WIDTHS}),
    ({"name": "resnet-unet"}, {"name": "resnet-unet", "skip_connections": False}),
    (TIMM, TIMM | {"decoder_widths": WIDTHS}),
    ({"name": "genesis-unet", "dimensions": 2}, {"name": "genesis-unet", "dimensions": 2, "up": "transposed"}),
    ({"widths": [4, 8]}, {"name": "unet", "widths": [4, 8], "skip_connections": False}),
]  # fmt: skip
OTHER_ENCODER = [
    ({"name": "resnet-unet", "depth": 18}, {"name": "resnet-head", "depth": 34}),
    ({"name": "resnet-unet", "stem": "cifar"}, {"name": "resnet-head"}),
    ({"widths": [4, 8]}, {"widths": [4, 16]}),
    ({"widths": [4, 8]}, {"widths": [4, 8], "norm": "none"}),
    ({"name": "unet", "widths": [4, 8]}, {"name": "conrec-unet", "widths": [4, 8]}),
]


@pytest.mark.parametrize(("first", "second"), SAME_ENCODER)
def test_models_that_differ_in_their_decoders_share_a_search(first: dict[str, Any], second: dict[str, Any]) -> None:
    found = study("simclr", first, second)
    assert (searches(found), fingerprints(found)) == (1, 1)


@pytest.mark.parametrize(("first", "second"), OTHER_ENCODER)
def test_models_of_different_encoders_do_not(first: dict[str, Any], second: dict[str, Any]) -> None:
    found = study("simclr", first, second)
    assert (searches(found), fingerprints(found)) == (2, 2)


@pytest.mark.parametrize(("first", "second"), SAME_ENCODER)
def test_a_method_that_trains_a_decoder_depends_on_all_of_it(first: dict[str, Any], second: dict[str, Any]) -> None:
    found = study("reconstruction", first, second)
    assert (searches(found), fingerprints(found)) == (2, 2)


def test_a_range_of_the_decoder_is_tuned_with_the_pretraining_and_keeps_searches_apart() -> None:
    """The search of the one has a parameter that the other has not."""
    skips = {"skip_connections": {"choice": [True, False]}}
    assert searches(study("simclr", {"widths": [4, 8]} | skips, {"widths": [4, 8]})) == 2
    resnet = {"name": "resnet-unet"} | skips
    assert searches(study("simclr", resnet, resnet | {"decoder_widths": WIDTHS})) == 1


OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "unet": {"widths": st.sampled_from([[4, 8], [8, 16]]), "skip_connections": st.booleans()},
    "conrec-unet": {"widths": st.sampled_from([[4, 8], [8, 16]]), "skip_connections": st.booleans()},
    "resnet-unet": {
        "depth": st.sampled_from([18, 34]), "skip_connections": st.booleans(), "decoder_widths": st.just(WIDTHS),
    },
    "resnet-head": {"depth": st.sampled_from([18, 34])},
}  # fmt: skip
MODELS = st.one_of(
    *(st.fixed_dictionaries({"name": st.just(name)}, optional=options) for name, options in OPTIONS.items())
)


@settings(max_examples=60, deadline=None)
@given(method=st.sampled_from(["simclr", "byol", "reconstruction"]), first=MODELS, second=MODELS)
def test_searches_are_as_many_as_pretrainings(method: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    try:
        found = study(method, first, second)
    except StudyError:
        assume(False)  # a setting that this model does not have, or two equal levels
    assert searches(found) == fingerprints(found)


@pytest.mark.parametrize("path", GOLDEN)
def test_the_cells_of_shipped_studies_share_the_searches_that_they_shared(path: str) -> None:
    """As of commit 6c09781: Optuna's names of their searches hold the settings of all cells that share one."""
    shared: dict[str, list[str]] = {}
    for cell in resolve.load(FOLDER / path).cells:
        shared.setdefault(cell.pretraining(), []).append(cell.label)
    assert list(shared.values()) == GOLDEN[path]


def test_every_shipped_study_is_among_them() -> None:
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")} == GOLDEN.keys()
