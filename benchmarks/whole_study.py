"""P2's Table 2 at small scale, whole: Pretune, Ray Tune with OptunaSearch and Repeater, and a plain PyTorch script.

    python -m benchmarks.whole_study --data <folder with oxford-iiit-pet> [--quick] [--without-b] [--out FILE.json]

Freeze x skip x labels (90 %, 10 %, 1 %), three seeds, 400 real pets: twelve cells, 36 replicates.
a   `pretune run`, a process of its own from an empty store and an empty cache: 3 pretrainings and 36 fine-tunings;
    before all others and again after them, the mean of both
b   as people write it with Ray: Tune, OptunaSearch, Repeater; each trial launches a TorchTrainer that pretrains with
    Lightly's SimCLR modules and transforms and fine-tunes. Two trials at once, one core each. Six of 36 trials are run
    (two cells, three seeds) and the study is reckoned from them: 18 turns of two, fine-tuning taken as linear in the
    number of labelled images, so between the 1 % and the 90 % cell; the start of Ray is added once
c   a sequential script, a pretraining for every cell and seed, one thread and two DataLoader workers (more threads were
    slower on a busy machine); run whole, or with --quick two cells
c'  the same with the pretraining of a seed shared by hand; run whole
Same images, splits, labelled images, network, batch, epochs and rates; all scores are of the same test images. The
rivals (`benchmarks/rivals.py`) get their images decoded, in memory. Accuracy is compared over the cells both have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from benchmarks.rivals import Cell, Work, script, tuned
from pretune.analysis.load.timeline import StageSpan, Timeline, sentence, timeline
from pretune.cli.options import folder_of
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.resolve import load as load_study
from pretune.search_spaces.stages import stream_seed
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split, label_subset
from pretune.trainables.views.joint import evaluation_batch

STUDY = Path(__file__).parents[1] / "search_spaces/papers/p2_table2.yaml"
SEEDS = 3
OVERRIDES = (f"seeds.report={SEEDS}", "pretrain.epochs=10", "finetune.batch_size=8", "finetune.optimizer.lr=0.003")


def small_study() -> Study:
    return load_study(STUDY, "small", OVERRIDES)


# --------------------------------------------------------------------------------------------- what rivals are given


def cells_of(study: Study) -> list[Cell]:
    """The study's cells in numbers; label amounts as counts."""
    found = []
    for cell in study.cells:
        settings = cell.configuration()
        assert settings.finetune is not None
        frozen, skip = settings.finetune.freeze == "encoder", getattr(settings.model, "skip_connections", True)
        found.append(Cell(frozen, skip, labelled(settings.finetune.labels)))
    return found


def labelled(amount: float | int) -> int:
    return amount if isinstance(amount, int) else round(360 * amount)  # of 400 images, 40 are test


def work_of(study: Study) -> Work:
    settings = study.cells[0].configuration()
    first, tune = settings.pretrain[0], settings.finetune
    assert tune is not None
    epochs, tune_epochs = first.epochs or 0, tune.epochs or 0
    return Work(epochs, first.batch_size, first.optimizer.lr, tune_epochs, tune.batch_size, tune.optimizer.lr)


def lay_out(study: Study, data: Path, folder: Path) -> None:
    """Arrays for the rivals: the study's images and masks, and for each seed who is for what."""
    settings = study.cells[0].configuration().data["pets"]
    found = load_images(settings, data, folder / "cache")
    assert found.masks is not None
    pixels, marks = torch.from_numpy(np.array(found.images)), torch.from_numpy(np.array(found.masks))
    np.save(folder / "images.npy", pixels.permute(0, 3, 1, 2).contiguous().numpy())
    np.save(folder / "masks.npy", evaluation_batch(pixels, marks, 64)[1].to(torch.uint8).numpy())
    for seed in range(SEEDS):
        split = draw_split(len(pixels), settings.split, stream_seed("split", seed), found.official_test)
        order = label_subset(split.train, len(split.train), stream_seed("labels", seed))
        for name, array in {"train": split.train, "test": split.test, "order": order}.items():
            np.save(folder / f"{name}{seed}.npy", array)


# ------------------------------------------------------------------------------------------------- the four ways


def by_pretune(data: Path, folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of the command, and its scores."""
    command = [str(Path(sys.executable).with_name("pretune")), "run", str(STUDY), "--scale", "small"]
    command += [part for text in OVERRIDES for part in ("--set", text)]
    began = time.time()
    seconds, _ = timed([*command, "--data", str(data), "--root", str(folder)])
    out = folder_of(small_study(), "small", folder)
    runs = pd.read_parquet(out / "stage_runs.parquet")
    lanes = timeline(runs)
    assert lanes is not None
    first = float(runs.started.min()) - began
    print(f"a: {seconds:.1f} s, of which {first:.1f} s before the first stage run and", flush=True)
    print(
        f"   {seconds - first - lanes.seconds:.1f} s after the last; {len(runs)} stage runs, {sentence(lanes)}",
        flush=True,
    )
    gaps = [1000 * (b.start - a.start - a.seconds) for a in lanes.spans if (b := following(lanes, a)) is not None]
    print(
        f"   between two stage runs of a lane: median {statistics.median(gaps):.0f} ms, most {max(gaps):.0f} ms",
        flush=True,
    )
    rows = pd.read_parquet(out / "results.parquet")
    rows = rows[(rows.metric == "test/jaccard") & (rows.phase == "confirm")]
    cells = {cell.label: numbers for cell, numbers in zip(small_study().cells, cells_of(small_study()), strict=True)}
    return seconds, [vars(cells[row.cell]) | {"seed": int(row.seed), "jaccard": row.value} for row in rows.itertuples()]


def following(lanes: Timeline, span: StageSpan) -> StageSpan | None:
    """The next stage run on the lane."""
    later = [other for other in lanes.spans if other.lane == span.lane and other.start > span.start]
    return min(later, key=lambda other: other.start, default=None)


def by_rival(name: str, folder: Path, arguments: dict[str, Any]) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a rival in a process of its own, its start included, and its rows."""
    command = [sys.executable, "-m", "benchmarks.whole_study", "--data", "-", "--one", name]
    seconds, shown = timed([*command, "--folder", str(folder), "--arguments", json.dumps(arguments)])
    return seconds, json.loads(shown.splitlines()[-1])


def timed(command: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(shown.stdout[-2000:] + shown.stderr[-2000:])
    return time.perf_counter() - began, shown.stdout


def run_rival(name: str, folder: Path, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Within its process."""
    study = small_study()
    cells, work = cells_of(study), work_of(study)
    if name == "tuned":
        return tuned(folder, work, [cells[i] for i in arguments["cells"]], SEEDS, arguments["cores"])
    torch.set_num_threads(arguments["threads"])
    chosen = [cells[i] for i in arguments["cells"]]
    return script(folder, work, chosen, SEEDS, arguments["shared"], arguments["workers"])


def reckoned(rows: list[dict[str, Any]], seconds: float, cells: list[Cell], cores: int) -> float:
    """Wall seconds of the study in turns of `cores` trials, from some of its trials."""
    start = seconds - statistics.fmean(row["trial"] for row in rows) * len(rows) / cores
    rest = statistics.fmean(row["trial"] - row["finetune"] for row in rows)
    means = {
        n: statistics.fmean(row["finetune"] for row in rows if row["labels"] == n) for n in {r["labels"] for r in rows}
    }
    slope, base = np.polyfit(list(means), list(means.values()), 1)
    trials = [rest + base + slope * cell.labels for cell in cells for _ in range(SEEDS)]
    return max(start, 0.0) + sum(trials) / cores


# ------------------------------------------------------------------------------------------------------- the answer


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean test Jaccard over the replicates that both have, with the paired difference and its 95 % interval over
    seeds (means over cells, n = seeds)."""
    key = ["frozen", "skip", "labels", "seed"]
    both = pd.DataFrame(ours).merge(pd.DataFrame(theirs), on=key, suffixes=("_ours", "_theirs"))
    gap = (both.jaccard_ours - both.jaccard_theirs).groupby(both.seed).mean()
    low, high = stats.t.interval(0.95, len(gap) - 1, gap.mean(), stats.sem(gap))
    values = {"ours": both.jaccard_ours.mean(), "theirs": both.jaccard_theirs.mean(), "difference": gap.mean()}
    values |= {"low": low, "high": high}
    found = {name: round(float(value), 4) for name, value in values.items()}
    return found | {"replicates": len(both), "equal within noise": bool(low <= 0 <= high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="two cells of (c), the rest reckoned")
    parser.add_argument("--without-b", action="store_true", help="leave out the trials of Ray Train")
    parser.add_argument("--threads", type=int, default=1, help="of the sequential script")
    parser.add_argument("--workers", type=int, default=2, help="of its DataLoader")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(run_rival(a.one, a.folder, json.loads(a.arguments))))
        return
    result = measure(a)
    print(json.dumps(result, indent=1))
    if a.out is not None:
        a.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(a: argparse.Namespace) -> dict[str, Any]:
    study, cores = small_study(), len(os.sched_getaffinity(0))
    cells = cells_of(study)
    extremes = [next(i for i, c in enumerate(cells) if c == Cell(f, True, n)) for f, n in ((True, 360), (False, 4))]
    how = {"threads": a.threads, "workers": a.workers}
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"load at start": os.getloadavg()[0], "cores": cores} | how
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lay_out(study, a.data, folder)
        seconds["a"], ours = by_pretune(a.data, folder / "runs")
        every = list(range(len(cells)))
        seconds["c'"], shared = by_rival("script", folder, how | {"cells": every, "shared": True})
        chosen = extremes if a.quick else every
        seconds["c"], alone = by_rival("script", folder, how | {"cells": chosen, "shared": False})
        if a.quick:
            fixed = seconds["c"] - sum(row["pretrain"] + row["finetune"] for row in alone)
            tuning = sum(row["finetune"] for row in shared)
            seconds["c"] = fixed + tuning + 36 * statistics.fmean(row["pretrain"] for row in alone)
        print(f"c: {seconds['c']:.0f} s", flush=True)
        result["accuracy over c'"], result["accuracy over c"] = compare(ours, shared), compare(ours, alone)
        if not a.without_b:
            measured, trials = by_rival("tuned", folder, {"cells": extremes, "cores": cores})
            seconds["b"] = reckoned(trials, measured, cells, cores)
            result |= {"trials of b": trials, "seconds of these": measured, "accuracy over b": compare(ours, trials)}
            print(f"b: {seconds['b']:.0f} s, from {len(trials)} trials in {measured:.0f} s", flush=True)
        again, repeated = by_pretune(a.data, folder / "again")  # a machine that others use changes on the way
        assert repeated == ours, "two runs of Pretune differ"
    result["seconds of a, first and last"] = [round(seconds["a"], 1), round(again, 1)]
    seconds["a"] = (seconds["a"] + again) / 2
    result["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    result["over a"] = {name: round(value / seconds["a"], 2) for name, value in seconds.items() if name != "a"}
    versions = {"torch": torch.__version__, "ray": version("ray"), "lightly": version("lightly")}
    return result | versions | {"python": platform.python_version()}


if __name__ == "__main__":
    main()
