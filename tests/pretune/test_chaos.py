"""Small real studies under seeded schedules of signals, at moments from their start to their last file.

SIGKILL, SIGTERM, SIGSTOP and SIGCONT to drivers, trial actors, Ray's node process, head and agents, workers of Ray
Train, nodes and whole machines. After all of it, the study that was merely run again each time must hold exactly what
an undisturbed one does, which ran without Ray.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import ray
import yaml
from chaos import Blow, Struck, World, schedule
from inline import run_inline

from pretune.cluster.tune import ACTOR_ENVIRONMENT
from pretune.search_spaces.resolve import load
from pretune.store.store import Store
from pretune.trainables.files import WEIGHTS

EPOCHS = 40  # of a fine-tuning: about a second
STATE_SECONDS = 0.1  # between two states: several in a stage run


# ------------------------------------------------------------------------------------------------------- the studies


def searched(tiny: dict[str, Any], cells: int, trials: int, seeds: int) -> dict[str, Any]:
    """Rungs in every cell: half of each batch of three goes on from half its epochs to all; each epoch is scored."""
    del tiny["finetune"]["steps"]
    tiny["pretrain"]["steps"] = EPOCHS
    tiny["finetune"] |= {"epochs": EPOCHS, "validate_every": 1, "optimizer": {"lr": {"log_uniform": [0.001, 0.1]}}}
    tiny["factors"] = {"encoder": tiny["factors"]["encoder"]}
    if cells == 4:
        tiny["factors"]["skip"] = {"model.skip_connections": [True, False]}
        tiny["report"]["rows"] = ["encoder", "skip"]
    tiny["tune"] = {"trials": trials, "batch": 3, "startup": 2, "rungs": {"epochs": [EPOCHS // 2], "keep": 0.5}}
    tiny["seeds"] = {"search": 1, "report": seeds}
    return tiny | {"retries": 100, "checkpoint_seconds": STATE_SECONDS}


def storm_and_compare(study: dict[str, Any], tmp_path: Path, blows: list[Blow], nodes: int = 0) -> list[Struck]:
    """Run the study undisturbed, then under the signals, and compare."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(study))
    run_inline(load(file, None, ()), tmp_path / "calm")
    ray.shutdown()  # which a stage on several workers needs, also in this process
    calm, draw, struck = Store(tmp_path / "calm" / "store"), random.Random(1), []
    world = World(file, tmp_path / "storm", frozenset(entry.fingerprint for entry in calm.entries()), nodes)
    began = time.monotonic()
    try:
        for blow in blows:
            struck.append(world.strike(blow, draw))
            print(time.strftime("%H:%M:%S"), len(struck), struck[-1], flush=True)
        world.finish()
    finally:
        world.stop()
    check_equal(tmp_path / "storm", tmp_path / "calm")
    check_counted_once(tmp_path / "storm")
    text = world.log.read_text()
    print(
        json.dumps(
            {
                "signals": Counter(f"{one.blow.number.name} to {one.blow.target}" for one in struck),
                "moment was still there": sum(one.inside for one in struck),
                "longest silence after one": max(one.silence for one in struck),
                "longest silence": world.longest,
                "drivers": Counter(map(str, world.ends)),
                "stage runs": text.count(" finished "),
                "retried": text.count(" retried "),
                "seconds": time.monotonic() - began,
            }
        )
    )
    return struck


def check_equal(disturbed: Path, undisturbed: Path) -> None:
    """Byte for byte: the table, and the weights of every stage run; and the numbers of each."""
    contents = [(root / "tiny" / "results.parquet").read_bytes() for root in (disturbed, undisturbed)]
    assert contents[0] == contents[1]
    assert not pd.read_parquet(disturbed / "tiny" / "results.parquet").drop(columns="value").duplicated().any()
    stores = [
        {entry.fingerprint: (entry.metrics, entry.files.get(WEIGHTS)) for entry in Store(root / "store").entries()}
        for root in (disturbed, undisturbed)
    ]
    assert stores[0] == stores[1]


def check_counted_once(root: Path) -> None:
    """No stage run was trained to its end twice, and no question has two answers."""
    log = [line.split() for line in (root / "tiny" / "pretune.log").read_text().splitlines()]
    ends = Counter(words[2] for words in log if words[3] == "finished")
    assert ends.most_common(1)[0][1] == 1
    journal = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(root / "tiny" / "optuna.journal"))
    )
    for summary in optuna.get_all_study_summaries(journal):
        trials = optuna.load_study(study_name=summary.study_name, storage=journal).get_trials()
        answered = [trial.user_attrs["pretune:index"] for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
        assert len(answered) == len(set(answered)) > 0


# --------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.ray
def test_five_signals_from_a_state_to_the_tables_change_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    blows = schedule(
        1,
        [
            ("actor", "KILL", "state"),
            ("actor", "TERM", "training"),
            ("agent", "STOP", "training"),
            ("driver", "KILL", "entry"),
            ("driver", "TERM", "tables"),
        ],
    )
    storm_and_compare(searched(tiny, 2, 3, 2), tmp_path, blows)


LONG = {
    "drivers and actors": [
        ("driver", "KILL", "start training state evaluation entry ended tables report"),
        ("driver", "TERM", "start training entry ended tables report"),
        ("driver", "STOP", "training entry tables"),
        ("actor", "KILL", "training state evaluation entry"),
        ("actor", "TERM", "training evaluation entry"),
        ("actor", "STOP", "state entry"),
    ],
    "Ray itself": [
        ("raylet", "KILL", "start training state"),
        ("raylet", "TERM", "training entry"),
        ("raylet", "STOP", "start training entry"),
        ("head", "KILL", "start training entry"),
        ("head", "TERM", "state"),
        ("head", "STOP", "start training"),
        ("agent", "KILL", "start training entry"),
        ("agent", "TERM STOP", "training"),
    ],
}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", LONG)
def test_forty_five_signals_on_one_machine_change_nothing(part: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    storm_and_compare(searched(tiny, 2, 9, 3), tmp_path, schedule(5, LONG[part]))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")  # Ray Train's own, in this process: the undisturbed study has workers too
def test_six_signals_to_workers_of_ray_train_change_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both pretrainings run on two workers each; one is lost while the other waits for it."""
    tiny["pretrain"]["steps"] = 3000
    tiny["resources"] = {"pretrain": {"workers": 2}}
    for name, value in ACTOR_ENVIRONMENT.items():  # else each report waits for Ray Train's look every 2 s
        monkeypatch.setenv(name, value)
    ray.init(address="local", log_to_driver=False)  # by default it would join what an earlier test left behind
    blows = schedule(2, [("worker", "KILL", "training state"), ("worker", "TERM STOP", "training"),
                         ("actor", "KILL TERM", "training")])  # fmt: skip
    storm_and_compare(tiny | {"retries": 100, "checkpoint_seconds": 0.5}, tmp_path, blows)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(7200)
def test_thirteen_signals_on_a_cluster_of_two_nodes_change_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a cluster of this test alone, gone with it
    blows = schedule(
        5,
        [
            ("driver", "KILL", "training entry tables"),
            ("actor", "KILL", "state evaluation"),
            ("actor", "STOP", "entry"),
            ("node", "KILL", "training state entry"),
            ("machine", "KILL", "training entry"),
            ("head", "STOP", "training"),
            ("head", "KILL", "training"),
        ],
    )
    storm_and_compare(searched(tiny, 2, 9, 3), tmp_path, blows, nodes=2)
