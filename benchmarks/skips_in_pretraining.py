"""Do the U-Net's skip connections keep MAE from teaching its encoder? Pretraining without them, fine-tuning with them.

    python -m benchmarks.skips_in_pretraining --data <folder that holds oxford-iiit-pet> --out runs/ssl-length

`ssl_length --scale medium` has one network for both stages. Here the decoder of the pretraining has no skip
connections, and the encoder goes on into the same fine-tuning as there: equal images, labels, start of the decoder and
steps. So scores stand beside those of that study, seed by seed. Without skips all that the decoder restores must come
through the coarsest level.
"""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
METHODS = {
    "MAE": "{name: mae, patch: 8, ratio: 0.5}",
    "MAE, nothing masked": "{name: mae, masking: none}",
    "reconstruction": "{name: reconstruction}",
}
METRICS = ("test/dice", "test/jaccard")


def stages_of(method: str, epochs: int, skips: bool, where: Folders) -> dict[int, dict[str, Stage]]:
    """Seed -> the stages of ssl_length with this method and length alone."""
    overrides = [f"factors.method={{of: {{pretrain.method: {METHODS[method]}}}}}"]
    overrides += [f"model.skip_connections={str(skips).lower()}"]
    study = load(find_study(STUDY), SCALE, overrides)
    run, _ = simulate(study, prepared(study, where))
    return {p.replicate.seed: dict(p.stages) for p in run.replicates if p.cell.levels["epochs"] == str(epochs)}


def without_skips(method: str, epochs: int, where: Folders) -> Iterator[tuple[int, Stage]]:
    """Seeds and their fine-tuning with skips, of an encoder that was pretrained without them."""
    bare = stages_of(method, epochs, False, where)
    for seed, stages in stages_of(method, epochs, True, where).items():
        parent, finetune = bare[seed]["pretrain"], stages["finetune"]
        own = fingerprint({"stage": finetune.fingerprint, "parent": parent.fingerprint})
        yield seed, replace(finetune, parent=parent, fingerprint=own, series="")


def score(method: str, epochs: int, where: Folders) -> Iterator[dict[Hashable, Any]]:
    for seed, finetune in without_skips(method, epochs, where):
        for stage in (*finetune.ancestors(), finetune):
            outcome = execute(StageTask(stage, f"{method} seed {seed}", 0.0, where), lambda values: None)
            if outcome.state != "finished":
                raise SystemExit(f"{method} seed {seed}: {outcome.cause}")
        for metric in METRICS:
            yield {"method": method, "epochs": epochs, "seed": seed, "metric": metric, "value": outcome.metrics[metric]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ssl-length"))
    parser.add_argument("--methods", type=lambda text: text.split("|"), default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = Folders(str(options.out / "store"), str(options.out / "cache"), str(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "without_skips.csv"
    rows = pandas.read_csv(file).to_dict("records") if file.exists() else []
    for method in options.methods:
        for row in score(method, options.epochs, where):
            rows = [*rows, row]
            print(row, flush=True)
            pandas.DataFrame(rows).drop_duplicates(["method", "epochs", "seed", "metric"]).to_csv(file, index=False)


if __name__ == "__main__":
    main()
