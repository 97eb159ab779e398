"""What is published of a study, and the files for Prometheus and Grafana that go with it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pretune.cli import cli
from pretune.cluster.log_to import check_packages
from pretune.errors import LoggerError
from pretune.monitor.prometheus import METRICS, MOST, Facts, readings
from pretune.monitor.terminal import CellStatus, Snapshot

SHOT = Snapshot("leaves", "confirm", (), 3, 5, 2, 1, 11, (), 60.0, 90.0, ())


def facts(shot: Snapshot = SHOT, seconds: Any = None, images: Any = None) -> Facts:
    return Facts(shot, seconds or {}, images or {}, {})


def values(found: Any) -> dict[tuple[str, str], float]:
    return {(r.name.removeprefix("pretune_"), "".join(r.labels.values())): r.value for r in found}


def test_counts_reuse_and_time_left() -> None:
    """Of 11 known stage runs the store held 2."""
    found = values(readings(facts(), None, 0.0))
    assert [found["stage_runs", s] for s in ("waiting", "running", "finished", "reused", "failed")] == [3, 0, 5, 2, 1]
    assert found["reuse_ratio", ""] == pytest.approx(2 / 11)
    assert found["seconds_left", ""] == 90.0


def test_images_per_second_are_of_the_time_between_two_readings() -> None:
    """640 - 400 images in 2 s."""
    before, now = facts(images={"pretrain": 400}), facts(images={"pretrain": 640})
    found = values(readings(now, before, 2.0))
    assert (found["images", "pretrain"], found["images_per_second", "pretrain"]) == (240, 120.0)


@given(st.lists(st.lists(st.floats(0.1, 1e4), max_size=5), min_size=1, max_size=6))
def test_each_stage_run_is_observed_once(growth: list[list[float]]) -> None:
    seen, before, so_far = list[float](), None, list[float]()
    for more in growth:
        so_far += more
        now = facts(seconds={"finetune": tuple(so_far)})
        seen += [r.value for r in readings(now, before, 1.0) if r.name == "pretune_stage_seconds"]
        before = now
    assert seen == so_far


@given(st.integers(0, 300), st.integers(0, 300))
def test_series_are_bounded_and_left_out_cells_counted(cells: int, stages: int) -> None:
    shot = SHOT.__class__(
        **SHOT.__dict__ | {"cells": tuple(CellStatus(f"c{i}", 1, 1, 0.5, None) for i in range(cells))}
    )
    names = {f"probe {i}": 1 for i in range(stages)}
    found = list(readings(facts(shot, dict.fromkeys(names, (1.0,)), names), None, 1.0))
    for name in METRICS:
        assert sum(reading.name == name for reading in found) <= MOST
    assert values(found)["cells_left_out", ""] == max(0, cells - MOST)


def test_labels_are_those_declared() -> None:
    shot = SHOT.__class__(**SHOT.__dict__ | {"cells": (CellStatus("a=1", 1, 1, 0.5, None),)})
    for reading in readings(Facts(shot, {"p": (1.0,)}, {"p": 1}, {"p": 1e9}), None, 1.0):
        assert tuple(reading.labels) == METRICS[reading.name].labels


# ------------------------------------------------------------------------------------------------------------ files


# of Ray 2.60: metrics and the labels that panels sum by
RAYS_OWN = {
    "ray_cluster_active_nodes", "ray_cluster_failed_nodes", "ray_node_cpu_utilization", "ray_node_gpus_utilization",
    "ray_node_gram_used", "ray_train_controller_state", "ray_train_run_name", "ray_data_output_rows",
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    assert CliRunner().invoke(cli, ["monitor", str(tmp_path / "made")]).exit_code == 0
    return tmp_path / "made"


def test_panels_ask_for_every_metric_and_for_no_other(written: Path) -> None:
    board = json.loads((written / "grafana-pretune.json").read_text())
    suffix = {"gauge": ("",), "counter": ("_total",), "histogram": ("_sum", "_count", "_bucket")}
    there = {f"ray_{name}{end}" for name, metric in METRICS.items() for end in suffix[metric.kind]}
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert {name for query in queries for name in re.findall(r"ray_\w+", query)} == there | RAYS_OWN


def test_panels_have_places_and_numbers_of_their_own(written: Path) -> None:
    board = json.loads((written / "grafana-pretune.json").read_text())
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["datasource"]["uid"] == "${DS_PROMETHEUS}" for panel in board["panels"])


def test_prometheus_accepts_the_scrape_configuration(written: Path) -> None:
    discovery = yaml.safe_load((written / "prometheus.yml").read_text())["scrape_configs"][0]["file_sd_configs"]
    assert discovery[0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]  # as Ray's own configuration
    if (tool := shutil.which("promtool")) is None:
        pytest.skip("no promtool on this machine (Debian: apt-get install prometheus)")
    subprocess.run([tool, "check", "config", str(written / "prometheus.yml")], check=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------------- loggers


def test_a_logger_without_its_package_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretune.cluster.log_to.find_spec", lambda name: None)
    with pytest.raises(LoggerError, match=r"--log-to wandb .*'\.\[wandb\]'"):
        check_packages(["wandb"])
