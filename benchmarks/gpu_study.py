"""Two tables of the papers at full size on one GPU, without Ray: as far as the time goes, and on from there next time.

    python -m benchmarks.gpu_study --data D --out runs/gpu --minutes 20
    python -m benchmarks.gpu_study --data D --pack small-pets      64 MB that travel: images of 128 px

P2's Table 2 (`--scale pets`) and P3's Table 2 (Pets). Stages run one after the other in this process, by the same code
and into the same store as those of `pretune run`, all cells of a seed before the next seed. A stage that the store
holds is not run again, so the command is given again until nothing is left; `pretune run` on that store then makes the
report. `scores.json` holds what is finished, and the means of each cell are printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pretune.outcomes import Outcome
from pretune.plan import simulate
from pretune.search.replicates import ReplicatePlan
from pretune.search_spaces.resolve import Study, load
from pretune.search_spaces.shipped import find_study
from pretune.search_spaces.stages import Stage
from pretune.worker.execute import execute
from pretune.worker.task import Folders, StageTask

STUDIES = {"p2_table2": "pets", "p3_table2_pets": None}  # and their scale
PACKED_SIDE, PACKED_QUALITY = 128, 88
Runs = Callable[[Stage, str], Outcome]  # a stage and a readable name


def in_order(plans: Iterable[ReplicatePlan]) -> list[tuple[str, Stage]]:
    """Distinct stages with a name, parents first; a seed is finished in all cells before the next one begins."""
    found: dict[str, tuple[str, Stage]] = {}
    for plan in sorted(plans, key=lambda plan: plan.replicate):
        for stage in plan.stages.values():
            for one in (*stage.ancestors(), stage):
                found.setdefault(one.fingerprint, (f"{plan.cell.label} seed {plan.replicate.pretrain} {one.name}", one))
    return list(found.values())


def run_until(stages: list[tuple[str, Stage]], run: Runs, over: Callable[[], bool]) -> dict[str, Outcome]:
    """Outcomes by fingerprint until `over`. What needs a stage that did not finish is left out."""
    outcomes: dict[str, Outcome] = {}
    for name, stage in stages:
        if over():
            print("the time is over; the same command goes on from here", flush=True)
            break
        if all(outcomes[parent.fingerprint].state == "finished" for parent in stage.parents):
            outcomes[stage.fingerprint] = run(stage, name)
        else:
            outcomes[stage.fingerprint] = Outcome("blocked", {})
    return outcomes


def scores(plans: Iterable[ReplicatePlan], outcomes: dict[str, Outcome]) -> Iterator[dict[str, Any]]:
    """A row for each finished last stage of a replicate."""
    for plan in plans:
        last = list(plan.stages.values())[-1]
        outcome = outcomes.get(last.fingerprint)
        if outcome is not None and outcome.state == "finished":
            yield {"cell": plan.cell.label, "seed": plan.replicate.pretrain, **outcome.metrics}


def means(rows: Iterable[dict[str, Any]], metric: str) -> list[str]:
    """'cell | mean ± std (n)' of the metric."""
    found = defaultdict[str, list[float]](list)
    for row in rows:
        if metric in row:
            found[row["cell"]].append(row[metric])
    return [
        f"{cell} | {statistics.mean(values):.3f}"
        + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
        + f" (n = {len(values)})"
        for cell, values in found.items()
    ]


def folders(options: argparse.Namespace) -> Folders:
    return Folders(str(options.out / "store"), str(options.out / "cache"), str(options.data))


def prepared(study: Study, where: Folders) -> Callable[[Any], str]:
    """Decode the study's data sets; the digest of each."""
    from pretune.trainables.data.sources import prepare

    known: dict[Any, str] = {}

    def digest_of(settings: Any) -> str:
        if settings not in known:
            known[settings] = prepare(settings, Path(where.data or "."), Path(where.cache))[0]
        return known[settings]

    return digest_of


def pack(data: Path, out: Path, side: int = PACKED_SIDE) -> None:
    """The pets with images and trimaps of `side` px, in the same layout: what fits where 64 MB may travel.

    Scores on them are near those on the originals, whose 128 px are made from more pixels, and are not the same.
    """
    from PIL import Image

    source, target = data / "oxford-iiit-pet", out / "oxford-iiit-pet"
    for folder, how in (("images", Image.Resampling.BILINEAR), ("annotations/trimaps", Image.Resampling.NEAREST)):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for file in sorted((source / folder).glob("[!.]*.jpg" if folder == "images" else "[!.]*.png")):
            image = Image.open(file).convert("RGB" if folder == "images" else "L").resize((side, side), how)
            image.save(target / folder / file.name, quality=PACKED_QUALITY)
    for file in (source / "annotations").glob("*.txt"):
        shutil.copyfile(file, target / "annotations" / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--gpus", type=float, default=1.0, help="0 runs on the CPU")
    parser.add_argument("--studies", type=lambda text: text.split(","), default=list(STUDIES))
    parser.add_argument("--pack", type=Path)
    options = parser.parse_args()
    if options.pack is not None:
        pack(options.data, options.pack)
        return
    began, where = time.monotonic(), folders(options)
    options.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[dict[str, Any]]] = {}
    for file in options.studies:
        study = load(find_study(Path(file)), STUDIES.get(file))
        run, _ = simulate(study, prepared(study, where))
        stages = in_order(run.replicates)

        def one(stage: Stage, name: str) -> Outcome:
            started = time.monotonic()
            outcome = execute(StageTask(stage, name, options.gpus, where), lambda values: None)
            print(f"{name}: {outcome.state}, {time.monotonic() - started:.0f} s {outcome.cause}", flush=True)
            return outcome

        outcomes = run_until(stages, one, lambda: time.monotonic() - began > 60 * options.minutes)
        kept[file] = list(scores(run.replicates, outcomes))
        (options.out / "scores.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
        print(f"{file}: {len(outcomes)} of {len(stages)} stages", *means(kept[file], "test/jaccard"), sep="\n")


if __name__ == "__main__":
    main()
