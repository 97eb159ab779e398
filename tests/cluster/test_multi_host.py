"""A study on several hosts that `ray up` joins, one killed midway and another added: the table of a single machine.

Slow (minutes), and needs root: see hosts.why_not. Run it alone with

    python -m pytest tests/cluster/test_multi_host.py -m slow -s
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from hosts import Host, hosts, why_not

TOP = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NOTICE = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message taken --deadline-remaining-seconds 110"
PORT = 18265  # of the tunnel to the head's dashboard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]


def study_file(folder: Path) -> tuple[Path, list[str]]:
    """Two pretrainings and six fine-tunings, of real pets where they are, else of generated scenes."""
    pets = Path(os.environ.get("PRETUNE_TEST_DATA", TOP / ".." / "shared" / "data"))
    real = (pets / "oxford-iiit-pet").is_dir()
    data = {"dataset": "oxford-iiit-pet", "labels": "trimap", "limit": 120} if real else {"dataset": "scenes"}
    study = {
        "study": "hosts",
        "data": {"d": data | {"cache_size": 32, "split": {"test": 0.25, "val": 0.2, "seed": 0}}},
        "model": {"name": "unet", "widths": [4, 8]},
        "pretrain": {
            "data": "d", "method": {"name": "simclr", "hidden": 16, "dim": 8}, "views": {"size": 32}, "batch_size": 16,
            "epochs": 150,
        },
        "finetune": {"data": "d", "size": 32, "batch_size": 8, "epochs": 150, "optimizer": {"lr": 0.01}},
        "factors": {
            "encoder": {
                "unfrozen": {"finetune.freeze": "none"}, "frozen": {"finetune.freeze": "encoder"},
                "random": {"finetune.transfer": "none"},
            }
        },
        "seeds": {"search": 1, "report": 2},
        "report": {"rows": "encoder", "metrics": ["test/jaccard"]},
    }  # fmt: skip
    file = folder / "hosts.yaml"
    file.write_text(yaml.safe_dump(study))
    return file, ["--data", str(pets.resolve())] if real else []


def environment(folder: Path) -> dict[str, str]:
    """Of the machine that launches and submits: a home and a Ray folder of its own, the token, this code."""
    ours = {"HOME": folder, "RAY_TMPDIR": folder / "ray", "RAY_AUTH_TOKEN_PATH": folder / "token", "PYTHONPATH": TOP}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {name: str(value) for name, value in ours.items()} | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def cluster_file(folder: Path, made: list[Host]) -> Path:
    """cluster/local.yaml for these hosts: its addresses and key changed, and one CPU for each worker."""
    config = yaml.safe_load((TOP / "cluster" / "local.yaml").read_text())
    (folder / "token").write_text(secrets.token_hex(32))
    config["provider"] |= {"head_ip": made[0].address, "worker_ips": [host.address for host in made[1:]]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(made[0].key)}
    config["file_mounts"] = {"~/.ray/auth_token": str(folder / "token")}
    for role, cpus in (("head", 0), ("worker", 1)):
        config[f"{role}_start_ray_commands"][-1] += f" --num-cpus={cpus} --object-store-memory=100000000"
    file = folder / "local.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def call(arguments: list[str], env: dict[str, str], code: int = 0, timeout: float = 900) -> str:
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def until(what: str, ready: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(1)
    return found


@contextmanager
def tunnel(head: Host) -> Iterator[str]:
    """The head's dashboard, which listens on its loopback alone."""
    forward = subprocess.Popen(head.ssh_words("-N", "-L", f"127.0.0.1:{PORT}:127.0.0.1:8265"))
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        forward.terminate()
        forward.wait()


def alive(head: Host) -> int:
    """Machines with a CPU, as the head sees them."""
    script = "import ray; ray.init('auto', log_to_driver=False); print('CPUS', ray.cluster_resources().get('CPU', 0))"
    answer = head.ssh(f'RAY_AUTH_MODE=token python -c "{script}"')
    return int(float(answer.split("CPUS")[1].split()[0]))


def events(runs: Path) -> str:
    log = runs / "hosts" / "pretune.log"
    return log.read_text() if log.exists() else ""


def test_a_study_on_three_hosts_one_killed_and_one_added_gives_the_table_of_one_machine(tmp_path: Path) -> None:
    file, data = study_file(tmp_path)
    env, runs = environment(tmp_path), tmp_path / "runs"
    times = {"start": time.monotonic()}
    with hosts(tmp_path, 4, str(BIN)) as (head, first, second, spare):
        launched = cluster_file(tmp_path, [head, first, second])
        call(["ray", "up", "-y", "--no-config-cache", str(launched)], env)
        until("two workers", lambda: alive(head) == 2)
        times["up"] = time.monotonic()
        with tunnel(head) as address:
            pretune = [sys.executable, "-m", "pretune"]
            # --- what is wrong is said in one sentence, and nothing is started
            wrong = env | {"RAY_AUTH_TOKEN": "0" * 64}
            wrong.pop("RAY_AUTH_TOKEN_PATH")
            say = call([*pretune, "submit", str(file), "--address", address, "--root", str(runs)], wrong, code=2)
            assert "the cluster refuses the token" in say
            nowhere = ["--address", address, "--root", str(runs), "--data", "/nowhere"]
            say = call([*pretune, "submit", str(file), *nowhere], env, 2)
            assert "--data /nowhere: this folder does not exist on pretune1, where the study would run" in say
            assert not runs.exists()
            if data:  # there on the head alone
                head.ssh(f"mkdir /run/data && mount --bind {data[1]} /run/data")
                there = ["--address", address, "--root", str(runs), "--data", "/run/data"]
                say = call([*pretune, "submit", str(file), *there], env, 2)
                assert "does not see /run/data (--data): use a path that is mounted on every node" in say
                assert not list((runs / "store").glob("*/*/"))

            # --- the study
            submitted = call(
                [*pretune, "submit", str(file), "--address", address, "--root", str(runs), "--no-wait", *data], env
            )
            job = submitted.split("submitted ")[1].split()[0]
            until("two stages under way", lambda: events(runs).count("started   pretrain") == 2)
            until("a state to go on from", lambda: len(list((runs / "store").glob("*/*/"))) == 2)
            time.sleep(5)
            second.kill()
            times["killed"] = time.monotonic()
            spare.ssh(f"mkdir -p ~/.ray && cp {tmp_path}/token ~/.ray/auth_token")
            start = f"ray start --address={head.address}:6379 --num-cpus=1 --object-store-memory=100000000"
            spare.ssh(f"RAY_AUTH_MODE=token {start}", timeout=300)
            times["added"] = time.monotonic()

            def ended() -> Any:
                found = call(["ray", "job", "status", job, "--address", address], env)
                return next((word for word in ("succeeded", "failed", "stopped") if word in found.lower()), None)

            state = until("the end of the study", ended, 900)
            log = call(["ray", "job", "logs", job, "--address", address], env)
            times["end"] = time.monotonic()
            assert state == "succeeded", log[-3000:]
            assert "the process that ran it died" in events(runs), events(runs)
            where = used_hosts(runs)
            assert where.keys() == {first.name, spare.name}, where  # the one that was added, too
            secret = (tmp_path / "token").read_text()
            assert secret not in call(["ray", "job", "list", "--address", address], env) + log

            # --- what cluster/spot_notice.sh tells Ray, on a machine without work: it leaves at once
            first.ssh(f"RAY_AUTH_MODE=token ray drain-node {NOTICE}")
            until("the drained machine to leave", lambda: alive(head) == 1, 60)

    # --- the same on this machine alone
    alone = tmp_path / "alone"
    env.pop("RAY_TMPDIR")  # too long a path for its sockets
    call([sys.executable, "-m", "pretune", "run", str(file), "--root", str(alone), "--parallel", "2", *data], env)
    tables = [pd.read_parquet(root / "hosts" / "results.parquet") for root in (runs, alone)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert (runs / "hosts" / "table.md").read_text() == (alone / "hosts" / "table.md").read_text()
    assert not any(path for path in runs.rglob("*") if path.is_file() and secret.encode() in path.read_bytes())
    print(json.dumps({name: round(at - times["start"], 1) for name, at in times.items()}), where)


def used_hosts(runs: Path) -> dict[str, int]:
    """How many stage runs each machine finished."""
    found: dict[str, int] = {}
    for done in (runs / "store").glob("*/done.json"):
        host = json.loads(done.read_text())["about"]["host"]
        found[host] = found.get(host, 0) + 1
    return found
