"""The Slurm script, with stand-ins for Slurm, Ray and Pretune: what it starts, waits for and hands on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"

# srun runs its command here; the others say in `calls` how they were called. `python -P -c` is the count of nodes.
STANDINS = {
    "scontrol": 'echo "scontrol $*" >> $T/calls; [[ $1 != show ]] || printf "%s\\n" n1 n2 n3 | head -n $NODES',
    "getent": 'echo "getent $*" >> $T/calls; echo "10.0.0.1 STREAM n1"',
    "srun": 'echo "srun $*" >> $T/calls; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": """
echo "ray $* drain=$RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S cpus=$SRUN_CPUS_PER_TASK" >> $T/calls
[[ $FAULT != "ray ends" ]] || exit 1
[[ $* == *--head* ]] && echo 1 > $T/alive
[[ $* == *--head* || $FAULT == "a node is lost" ]] || echo $NODES > $T/alive
exec sleep 60""",
    "python": """
if [[ $2 == -c ]]; then cat $T/alive; exit; fi
echo "python $*" >> $T/calls
trap 'echo "driver asked" >> $T/calls; exit $ASKED' TERM
touch $T/driving
for i in {1..100}; do [[ ! -e $T/end ]] || exit $(cat $T/end); sleep 0.1; done""",
}


@dataclass
class Job:
    folder: Path
    process: subprocess.Popen[str]

    def end(self, code: int, within: float = 20) -> str:
        """Its output; the exit code must be `code`."""
        out, _ = self.process.communicate(timeout=within)
        assert self.process.returncode == code, out
        return out

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def driving(self) -> None:
        until = time.monotonic() + 20
        while not (self.folder / "driving").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.2)  # for the script to wait for it


def submit(folder: Path, nodes: int = 3, fault: str = "", asked: int = 130, patience: int = 10) -> Job:
    for name, body in STANDINS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    ours = {"T": folder, "NODES": nodes, "FAULT": fault, "ASKED": asked, "PRETUNE_START_SECONDS": patience}
    ours |= {"SLURM_JOB_ID": 4711, "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": 8}
    env = {name: str(value) for name, value in ours.items()} | {"PATH": f"{folder}:{os.environ['PATH']}"}
    words = ["bash", str(SCRIPT), "study.yaml", "--root", "/shared/runs"]
    return Job(
        folder,
        subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
    )


def test_a_head_and_all_others_are_there_before_the_study_starts(tmp_path: Path) -> None:
    """Job 4711 has the ports from 20000 + 4711 % 1200 * 10 = 31110 on."""
    job = submit(tmp_path)
    job.driving()
    (tmp_path / "end").write_text("0")
    job.end(0)
    assert "getent ahostsv4 n1" in job.calls
    assert job.calls[-1] == "srun --nodes=3 --ntasks=3 --overlap rm -rf /tmp/ray-4711"  # nothing stays on a node
    assert any("--nodelist=n3 getent" in call for call in job.calls)  # asked from another node
    head, others = (call for call in job.calls if call.startswith("ray start"))
    assert "--node-ip-address=10.0.0.1 --port=31110 --ray-client-server-port=31111" in head
    assert "--dashboard-host=127.0.0.1 --dashboard-port=31112" in head
    assert "--address=10.0.0.1:31110" in others
    assert all(
        "--min-worker-port=0" in call and "--dashboard-agent-listen-port=31113" in call for call in (head, others)
    )
    assert all(call.endswith("drain=25 cpus=8") for call in (head, others))
    assert any("--nodes=2 --ntasks=2" in call and "--nodelist=n2,n3" in call for call in job.calls)
    assert job.calls[-2] == "python -P -m pretune run study.yaml --address 10.0.0.1:31110 --root /shared/runs"


def test_one_node_is_enough(tmp_path: Path) -> None:
    job = submit(tmp_path, nodes=1)
    job.driving()
    (tmp_path / "end").write_text("3")
    job.end(3)
    assert len([call for call in job.calls if call.startswith("ray start")]) == 1


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("a node is lost", "error: 1 of 3 nodes joined Ray's head at 10.0.0.1:31110 within 3 s; are ports 31110 to"),
        ("ray ends", "error: ray start ended on a node; its lines above say why"),
    ],
)  # fmt: skip
def test_what_does_not_come_up_ends_the_job_with_a_sentence(tmp_path: Path, fault: str, sentence: str) -> None:
    (tmp_path / "alive").write_text("0")
    job = submit(tmp_path, fault=fault, patience=3)
    assert sentence in job.end(1)
    assert not [call for call in job.calls if call.startswith("python -m")]


@pytest.mark.parametrize(("asked", "requeued"), [(130, True), (143, True), (0, False), (2, False)])
def test_before_the_time_limit_the_driver_is_asked_and_the_job_queues_again(
    tmp_path: Path, asked: int, requeued: bool
) -> None:
    job = submit(tmp_path, nodes=1, asked=asked)
    job.driving()
    job.process.send_signal(signal.SIGTERM)
    job.end(asked)
    assert "driver asked" in job.calls
    assert ("scontrol requeue 4711" in job.calls) == requeued


def test_a_study_that_was_stopped_from_elsewhere_does_not_queue_again(tmp_path: Path) -> None:
    job = submit(tmp_path, nodes=1)
    job.driving()
    (tmp_path / "end").write_text("130")
    job.end(130)
    assert not [call for call in job.calls if call.startswith("scontrol requeue")]
