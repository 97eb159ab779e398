"""Do the U-Net's skip connections keep MAE from teaching its encoder? Pretraining without them, fine-tuning with them.

    python -m benchmarks.skips_in_pretraining --data <folder that holds oxford-iiit-pet> --out runs/ssl-length

`ssl_length --scale medium` has one network for both stages. Here the decoder of the pretraining has no skip
connections, and the encoder goes on into the same fine-tuning as there: equal images, labels, start of the decoder and
steps. So scores stand beside those of that study, seed by seed. Without skips all that the decoder restores must come
through the coarsest level.
"""

from __future__ import annotations

import argparse
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch

from benchmarks.gpu_study import prepared
from pretune.plan import simulate
from pretune.search_spaces.identities import fingerprint
from pretune.search_spaces.resolve import load
from pretune.search_spaces.shipped import find_study
from pretune.search_spaces.stages import Stage
from pretune.worker.execute import execute
from pretune.worker.task import Folders, StageTask

STUDY, SCALE = Path("ssl_length"), "medium"
METRICS = ("test/dice", "test/jaccard")


class Arm(NamedTuple):
    method: str
    skips: bool  # in the pretraining
    epochs: int | None = None  # as asked


HALF, WHOLE = "{name: mae, patch: 8, ratio: 0.5}", "{name: mae, masking: none}"
ARMS = {
    "no pretraining": Arm(HALF, True, 0),
    "MAE, nothing masked, no skips": Arm(WHOLE, False),
    "MAE, half masked, no skips": Arm(HALF, False),
    "MAE, nothing masked": Arm(WHOLE, True),
    "MAE, half masked": Arm(HALF, True),
}


def stages_of(method: str, skips: bool, epochs: int, where: Folders) -> dict[int, dict[str, Stage]]:
    """Seed -> the stages of ssl_length with this method, network and length."""
    overrides = [
        f"factors.method={{of: {{pretrain.method: {method}}}}}",
        f"model.skip_connections={str(skips).lower()}",
    ]
    study = load(find_study(STUDY), SCALE, overrides)
    run, _ = simulate(study, prepared(study, where))
    return {p.replicate.seed: dict(p.stages) for p in run.replicates if p.cell.levels["epochs"] == str(epochs)}


def finetunings(arm: Arm, epochs: int, where: Folders) -> dict[int, Stage]:
    """Seed -> the fine-tuning with skips, of an encoder whose pretraining had them or not."""
    found = {seed: stages["finetune"] for seed, stages in stages_of(arm.method, True, epochs, where).items()}
    return found if arm.skips else _bare(arm, epochs, found, where)


def _bare(arm: Arm, epochs: int, found: dict[int, Stage], where: Folders) -> dict[int, Stage]:
    parents = {seed: stages["pretrain"] for seed, stages in stages_of(arm.method, False, epochs, where).items()}
    return {
        seed: replace(
            stage,
            parent=parents[seed],
            fingerprint=fingerprint({"stage": stage.fingerprint, "parent": parents[seed].fingerprint}),
            series="",
        )
        for seed, stage in found.items()
    }


def score(finetune: Stage, name: str, where: Folders) -> dict[str, float]:
    for stage in (*finetune.ancestors(), finetune):
        outcome = execute(StageTask(stage, name, 0.0, where), lambda values: None)
        if outcome.state != "finished":
            raise SystemExit(f"{name}: {outcome.cause}")
    return {metric: outcome.metrics[metric] for metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ssl-length"))
    parser.add_argument("--arms", type=lambda text: text.split("|"), default=list(ARMS))
    parser.add_argument("--epochs", type=int, default=4, choices=(4, 16))
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = Folders(str(options.out / "store"), str(options.out / "cache"), str(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "skips.csv"
    rows: list[dict[Hashable, Any]] = pandas.read_csv(file).to_dict("records") if file.exists() else []
    lengths = {arm: options.epochs if ARMS[arm].epochs is None else 0 for arm in options.arms}
    stages = {arm: finetunings(ARMS[arm], lengths[arm], where) for arm in options.arms}
    for seed in sorted(next(iter(stages.values()))):
        for arm in options.arms:
            found = score(stages[arm][seed], f"{arm} seed {seed}", where)
            print(arm, seed, found, flush=True)
            shared: dict[Hashable, Any] = {"arm": arm, "epochs": lengths[arm], "seed": seed}
            rows += [{**shared, "metric": metric, "value": value} for metric, value in found.items()]
            pandas.DataFrame(rows).drop_duplicates(["arm", "epochs", "seed", "metric"]).to_csv(file, index=False)


if __name__ == "__main__":
    main()
