"""`pretune monitor`: files for Prometheus and Grafana that show the metrics of running studies (`metrics.METRICS`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml

PROMETHEUS, GRAFANA = "prometheus.yml", "grafana-pretune.json"
DISCOVERY = "prom_metrics_service_discovery.json"  # Ray keeps the addresses of all its nodes in this file


class Panel(NamedTuple):
    """One panel: each query with the legend of its series."""

    title: str
    kind: str  # of Grafana: timeseries, stat, bargauge
    unit: str  # of Grafana
    queries: dict[str, str]


_OF = '{study=~"$study"}'
PANELS = (
    Panel("Stage runs", "timeseries", "none", {f"sum by (state) (ray_pretune_stage_runs{_OF})": "{{state}}"}),
    Panel("Time left", "stat", "s", {f"max by (study) (ray_pretune_seconds_left{_OF})": "{{study}}"}),
    Panel("From the store", "stat", "percentunit", {f"max by (study) (ray_pretune_reuse_ratio{_OF})": "{{study}}"}),
    Panel(
        "Training images per second", "timeseries", "none",
        {f"sum by (stage) (ray_pretune_images_per_second{_OF})": "{{stage}} now",
         f"sum by (stage) (rate(ray_pretune_images_total{_OF}[5m]))": "{{stage}} over 5 min"},
    ),
    Panel(
        "Seconds per stage run", "timeseries", "s",
        {f"sum by (stage) (rate(ray_pretune_stage_seconds_sum{_OF}[15m])) / "
         f"sum by (stage) (rate(ray_pretune_stage_seconds_count{_OF}[15m]))": "{{stage}} mean",
         "histogram_quantile(0.9, sum by (stage, le) "
         f"(rate(ray_pretune_stage_seconds_bucket{_OF}[15m])))": "{{stage}} 90 %"},
    ),
    Panel("Target by cell", "bargauge", "none", {f"max by (cell) (ray_pretune_cell_target{_OF})": "{{cell}}"}),
    Panel("GPU memory of a stage run", "timeseries", "bytes",
          {f"max by (stage) (ray_pretune_gpu_memory_bytes{_OF})": "{{stage}}"}),
    Panel("Cells without a series", "stat", "none", {f"max by (study) (ray_pretune_cells_left_out{_OF})": "{{study}}"}),
    # Ray's own, of the whole cluster
    Panel("Nodes", "timeseries", "none",
          {"sum(ray_cluster_active_nodes)": "there", "sum(ray_cluster_failed_nodes)": "failed"}),
    Panel("Use of nodes", "timeseries", "percent",
          {"ray_node_cpu_utilization": "{{instance}} CPU",
           "ray_node_gpus_utilization": "{{instance}} GPU {{GpuIndex}}"}),
    Panel("GPU memory of nodes", "timeseries", "decmbytes", {"ray_node_gram_used": "{{instance}} GPU {{GpuIndex}}"}),
    Panel("Worker groups of Ray Train", "timeseries", "none",
          {"sum by (ray_train_run_name, ray_train_controller_state) (ray_train_controller_state) > 0":
           "{{ray_train_run_name}}: {{ray_train_controller_state}}"}),
    Panel("Rows per second through Ray Data", "timeseries", "none",
          {"sum by (dataset) (rate(ray_data_output_rows[1m]))": "{{dataset}}"}),
)  # fmt: skip


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("monitoring"))
@click.option(
    "--ray-temp",
    type=click.Path(path_type=Path),
    default=Path("/tmp/ray"),
    show_default=True,
    help="Ray's temporary folder on the machine where Prometheus runs.",
)
@click.option("--interval", type=click.IntRange(1), default=5, show_default=True, help="Seconds between two readings.")
def monitor(out: Path, ray_temp: Path, interval: int) -> None:  # fmt: skip
    """Write configuration files for Prometheus and Grafana.

    These are a scrape configuration and a dashboard.

    \b
    pretune monitor monitoring/
    prometheus --config.file=monitoring/prometheus.yml --web.listen-address=127.0.0.1:9090

    Metrics exist while a study runs with --dashboard or --address. If Ray uses its default settings,
    `ray metrics launch-prometheus` can replace the first file.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / PROMETHEUS).write_text(yaml.safe_dump(prometheus(ray_temp, interval), sort_keys=False), encoding="utf-8")
    (out / GRAFANA).write_text(json.dumps(grafana(), indent=1), encoding="utf-8")
    click.echo(f"prometheus --config.file={out / PROMETHEUS} --web.listen-address=127.0.0.1:9090")
    click.echo(f"Grafana: Dashboards, Import, {out / GRAFANA}; its data source is that Prometheus")


def prometheus(ray_temp: Path, interval: int) -> dict[str, Any]:
    """A scrape configuration: every node of the cluster, found through the file that Ray keeps."""
    job = {"job_name": "ray", "file_sd_configs": [{"files": [str(ray_temp / DISCOVERY)], "refresh_interval": "5s"}]}
    return {"global": {"scrape_interval": f"{interval}s"}, "scrape_configs": [job]}


def grafana() -> dict[str, Any]:
    """A dashboard in Grafana's import format, two panels in a row; the data source is asked for on import."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    study = {
        "name": "study", "label": "Study", "type": "query", "datasource": source, "multi": True, "includeAll": True,
        "refresh": 2, "query": {"query": "label_values(ray_pretune_stage_runs, study)", "refId": "study"},
        "current": {"text": "All", "value": "$__all"}, "allValue": ".*",
    }  # fmt: skip
    return {
        "__inputs": [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}],
        "uid": "pretune", "title": "Pretune", "schemaVersion": 39, "version": 1, "editable": True, "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"}, "templating": {"list": [study]},
        "panels": [_panel(number, panel, source) for number, panel in enumerate(PANELS)],
    }  # fmt: skip


def _panel(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "datasource": source}
        for i, (query, legend) in enumerate(panel.queries.items())
    ]
    return {
        "id": number + 1, "title": panel.title, "type": panel.kind, "datasource": source, "targets": targets,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
    }  # fmt: skip
