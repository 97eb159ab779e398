"""Gain of racing: regret for the same number of stage runs, on a closed-form benchmark with noise over seeds.

python -m benchmarks.regret               20 repetitions, Hartmann-3, 240 stage runs each

Score of a stage run = Hartmann-3 (largest 3.86) + effect of the seed + noise, the latter two with the standard
deviations below: noise as large as the differences between good configurations. Compared, with equally many stage
runs: plain Optuna (TPE) that runs all six seeds of every configuration, the engine without racing, with racing and
with racing and selection seeds. Regret = largest value - value of the configuration chosen, both without noise.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from scipy import stats

from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.replicates import Run
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage

REPETITIONS, STAGE_RUNS, SEEDS = 20, 240, 6
SEED_EFFECT, NOISE = 0.5, 0.3
LARGEST = 3.86278
A = np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]])
P = np.array([[0.3689, 0.1170, 0.2673], [0.4699, 0.4387, 0.7470], [0.1091, 0.8732, 0.5547], [0.03815, 0.5743, 0.8828]])
ALPHA = np.array([1.0, 1.2, 3.0, 3.2])

STUDY: dict[str, Any] = {
    "study": "regret",
    "data": {"d": {"dataset": "scenes"}},
    "finetune": {
        "data": "d",
        "epochs": 1,
        "optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}, "weight_decay": {"uniform": [0.0, 0.1]}},
        "augment": {"flip": {"uniform": [0.0, 1.0]}},
    },
    "seeds": {"search": SEEDS, "report": 1},
}


def hartmann(x: np.ndarray) -> float:
    """Hartmann-3 with its sign turned: three numbers in [0, 1], larger is better (Dixon and Szego 1978)."""
    return float((ALPHA * np.exp(-(A * (x - P) ** 2).sum(axis=1))).sum())


def place(settings: schema.Finetune) -> np.ndarray:
    """Return the place of a configuration in the unit cube."""
    lr, decay = settings.optimizer.lr, settings.optimizer.weight_decay
    return np.array([math.log10(lr / 1e-4) / 3, decay / 0.1, settings.augment.flip])


def normal(text: str) -> float:
    u = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
    return float(stats.norm.ppf(min(max(u, 1e-9), 1 - 1e-9)))


def engine(repetition: int, **tune: Any) -> tuple[float, int]:
    """Regret of what the engine would confirm, and the stage runs that its search took."""
    budget = {"cell": {"epochs": STAGE_RUNS - 3 * SEEDS if tune.get("top_k") else STAGE_RUNS}}
    chosen = {"trials": STAGE_RUNS, "startup": 10, "seed": repetition, "budget": budget} | tune
    run = Run(from_dict(STUDY | {"tune": chosen}), lambda data: "", InMemoryStorage())
    scheduler = Scheduler(lambda key: None, 0)
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        scheduler.complete(stage, Outcome("finished", {"val/jaccard": score(stage, repetition)}))
    searched = {use.stages["finetune"].fingerprint for use in run.replicates if use.phase != "confirm"}
    final = next(use.stages["finetune"].settings for use in run.replicates if use.phase == "confirm")
    assert isinstance(final, schema.Finetune)
    return LARGEST - hartmann(place(final)), len(searched)


def score(stage: Stage, repetition: int) -> float:
    assert isinstance(stage.settings, schema.Finetune)
    effect = SEED_EFFECT * normal(f"{repetition} seed {stage.streams['init']}")
    return hartmann(place(stage.settings)) + effect + NOISE * normal(f"{repetition} {stage.fingerprint}")


def plain_optuna(repetition: int) -> tuple[float, int]:
    """TPE as it comes, one configuration after the other, the mean over all seeds."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = np.random.default_rng(repetition)
    effects = SEED_EFFECT * rng.normal(size=SEEDS)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=repetition))

    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(name, 0, 1) for name in "abc"])
        return float(np.mean(hartmann(x) + effects + NOISE * rng.normal(size=SEEDS)))

    study.optimize(objective, n_trials=STAGE_RUNS // SEEDS)
    return LARGEST - hartmann(np.array([study.best_params[name] for name in "abc"])), STAGE_RUNS


def main() -> None:
    racing = {"racing": {"first": 2}}
    ways: dict[str, Any] = {
        "plain Optuna, TPE, all seeds": plain_optuna,
        "engine, all seeds": lambda k: engine(k),
        "engine, racing": lambda k: engine(k, **racing),
        "engine, racing, top_k 3 on fresh seeds": lambda k: engine(k, top_k=3, **racing),
    }
    regrets = {}
    print(f"regret on Hartmann-3 after {STAGE_RUNS} stage runs, {REPETITIONS} repetitions, mean and 95 % interval")
    for name, way in ways.items():
        found = [way(k) for k in range(REPETITIONS)]
        regrets[name] = np.array([regret for regret, _ in found])
        half = stats.t.ppf(0.975, REPETITIONS - 1) * stats.sem(regrets[name])
        runs = np.mean([count for _, count in found])
        print(f"{name:40} {regrets[name].mean():.3f} +- {half:.3f}   ({runs:.0f} stage runs)", flush=True)
    test = stats.ttest_rel(regrets["engine, racing"], regrets["plain Optuna, TPE, all seeds"])
    print(f"racing against plain Optuna: difference {test.statistic:.2f} standard errors, p {test.pvalue:.3g}")


if __name__ == "__main__":
    main()
