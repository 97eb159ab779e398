"""Digits are equal within one kind of processor: a table whose replicates ran on several says so."""

import json

import pandas
import pytest
from studies import MACHINE, write_study

from pretune.analysis.load.runs import hardware_used, processors_of_table
from pretune.analysis.report.html import build_page
from pretune.analysis.report.tables import write_tables

XEON = {"gpu": None, "cpu": "Xeon (family 6, model 143)", "instructions": "AVX512 avx2 avx512f amx_tile", "threads": 1}
EPYC = XEON | {"cpu": "EPYC", "instructions": "AVX2 avx2"}
LOWERED = XEON | {"instructions": "AVX2 avx2 avx512f amx_tile ATEN_CPU_CAPABILITY=avx2"}
NOTE = "kinds of processor, which round differently"


def ran_on(folder, *machines):
    """The study's stage runs on these, in turn."""
    path = folder / "stage_runs.parquet"
    runs = pandas.read_parquet(path)
    texts = [text if isinstance(text, str) else json.dumps(text) for text in machines]
    runs["machine"] = [texts[i % len(texts)] for i in range(len(runs))]
    runs.to_parquet(path)


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "s", {"a=x": [0.5, 0.6, 0.7], "a=y": [0.4, 0.5, 0.6]}, {"a": ["x", "y"]})


@pytest.mark.parametrize(
    ("machines", "kinds"),
    [
        ([XEON], 1),
        ([XEON, XEON | {"threads": 2, "gpu_memory": 7, "python": "3.13"}], 1),  # threads are part of fingerprints
        ([XEON, EPYC], 2),
        ([XEON, LOWERED], 2),
        ([XEON, EPYC, XEON | {"gpu": "H100"}, EPYC | {"gpu": "H100"}], 3),  # the host of a GPU is another matter
        ([MACHINE], 1),  # stored before instruction sets were kept
    ],
)
def test_kinds_are_told_apart_by_model_and_instruction_sets(study, machines, kinds):
    ran_on(study, *machines)
    write_tables(study)
    for text in ((study / "table.md").read_text(), build_page(study)):
        assert (NOTE in text) == (kinds > 1)
        assert kinds == 1 or f"the replicates ran on {kinds} {NOTE}" in text


def test_the_note_counts_the_tables_own_stage_runs(study):
    """Stage runs of a search are in no table, wherever they ran."""
    ran_on(study, XEON, EPYC)
    results, runs = pandas.read_parquet(study / "results.parquet"), pandas.read_parquet(study / "stage_runs.parquet")
    assert list(processors_of_table(results, runs).values()) == [3, 3]
    of_epyc = runs.loc[runs["machine"].str.contains("EPYC"), "fingerprint"]
    results.loc[results["fingerprint"].isin(of_epyc), "phase"] = "search"
    assert processors_of_table(results, runs) == {"Xeon (family 6, model 143) [AVX512 avx2 avx512f amx_tile]": 3}


def test_the_hardware_of_a_report_names_instruction_sets(study):
    ran_on(study, XEON)
    (said,) = hardware_used(pandas.read_parquet(study / "stage_runs.parquet"))
    assert said.startswith("Xeon (family 6, model 143) [AVX512 avx2 avx512f amx_tile], 1 thread")


def test_hardware_is_named_once_whatever_else_a_record_holds(study):
    """The memory of a GPU, and whether images stayed on the host, differ from one stage run to the next."""
    ran_on(study, XEON, XEON | {"images_kept_on_host": False}, XEON | {"images_kept_on_host": True, "gpu_memory": 7})
    assert len(hardware_used(pandas.read_parquet(study / "stage_runs.parquet"))) == 1
