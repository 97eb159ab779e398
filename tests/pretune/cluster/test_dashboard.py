"""A study on Ray's own dashboard and in a real Prometheus, seen through a headless browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import browser
import pytest
import yaml
from click.testing import CliRunner

from pretune.cli import cli
from tests.pretune.heads import end

TOKEN = "0123456789abcdef0123456789abcdef0123456789abcdef"  # of the cluster that this test starts, nothing else


T = TypeVar("T")


def until(found: Callable[[], T | None], what: str, seconds: float = 180.0) -> T:
    end = time.monotonic() + seconds
    while (answer := found()) is None:
        assert time.monotonic() < end, f"never seen: {what}"
        time.sleep(0.5)
    return answer


def asked(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A study long enough to be looked at; Ray's temporary folder, and its dashboard's address."""
    tiny["finetune"]["steps"] = tiny["pretrain"]["steps"] = 4000
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    ray_temp = Path(f"/tmp/pretune-{os.getpid()}")  # paths of its sockets must be short
    environment = os.environ | {"RAY_TMPDIR": str(ray_temp), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    command = [sys.executable, "-c", "from pretune.cli import main; main()"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "run", str(tmp_path / "tiny.yaml"), "--root", str(tmp_path / "runs"), "--dashboard"],
            env=environment | {"PYTHONPATH": os.getcwd()}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def address() -> str | None:
        lines = (tmp_path / "log").read_text().splitlines()
        assert process.poll() is None, lines
        return next((line.split()[1] for line in lines if line.startswith("dashboard: ")), None)

    try:
        yield ray_temp, until(address, "the dashboard's address")
    finally:
        end(process)
        shutil.rmtree(ray_temp, ignore_errors=True)


@pytest.fixture
def prometheus(study: tuple[Path, str], tmp_path: Path) -> Iterator[str]:
    """A Prometheus that reads what `pretune monitor` wrote; its address."""
    if (binary := shutil.which("prometheus")) is None:
        pytest.skip("no prometheus on this machine (Debian: apt-get install prometheus)")
    made = CliRunner().invoke(cli, ["monitor", str(tmp_path), "--ray-temp", str(study[0] / "ray"), "--interval", "2"])
    assert made.exit_code == 0, made.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [binary, f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address={address}",
         f"--storage.tsdb.path={tmp_path / 'tsdb'}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.ray
def test_the_dashboard_shows_job_and_named_actors_and_prometheus_the_metrics(
    study: tuple[Path, str], prometheus: str, tmp_path: Path
) -> None:
    """PRETUNE_SCREENSHOT names a file that keeps the picture of the actors (docs/dashboard.png)."""
    if (binary := browser.find()) is None:
        pytest.skip("no Chromium or Chrome on this machine")
    query = f"{prometheus}/api/v1/query?query=ray_pretune_stage_runs"

    def running() -> Any:
        found = (asked(query) or {"data": {"result": []}})["data"]["result"]
        return next((s for s in found if s["metric"]["state"] == "running" and float(s["value"][1]) > 0), None)

    assert until(running, "a running stage in Prometheus")["metric"]["study"] == "tiny"
    with browser.browse(binary, tmp_path / "profile") as page:
        page.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Bearer {TOKEN}"})
        page.call("Emulation.setDeviceMetricsOverride", width=1500, height=900, deviceScaleFactor=1, mobile=False)
        page.call("Page.navigate", url=f"{study[1]}/#/jobs")
        page.wait("document.body && document.body.innerText.includes('RUNNING')", 120)
        page.call("Page.navigate", url=f"{study[1]}/#/actors")
        page.wait("document.body.innerText.includes('pretrain simclr seed 0')", 180)
        page.wait("document.body.innerText.includes('pretrain simclr seed 1')", 60)
        picture = Path(os.environ.get("PRETUNE_SCREENSHOT", tmp_path / "dashboard.png"))
        page.screenshot(picture, width=1500, whole=False)
        page.call("Network.setExtraHTTPHeaders", headers={})
        page.call("Page.navigate", url=f"{prometheus}/graph?g0.expr=ray_pretune_stage_runs&g0.tab=1")
        page.wait("document.body && document.body.innerText.includes('state=\"running\"')", 60)
    assert picture.stat().st_size < 300_000
