"""A check of all that a CPU cannot show, in at most 25 minutes of a GPU: one command for the day there is one.

    python -m benchmarks.gpu_check --out gpu.json [--parts waits,rates] [--minutes 25] [--device cuda]

It needs PyTorch from 2.11 on, numpy, pydantic, safetensors and scipy; neither Ray nor a network nor data: images are
made up. Every part runs alone too. A part that fails or outlasts its share is a row of the table, and the next one
runs; the JSON is written after each. Wanted: no place in `waits`, equal bytes, a busy share of 0.9, and no outcome
`FAILED`. On a CPU (`--device cpu --tiny`) the same code runs and says little; its tests do that.

On a machine without pydantic or optuna, make a folder that travels along, and put it on the path:

    python -m pip install --target .gpu --python-version 3.12 --only-binary=:all: pydantic optuna
    PYTHONPATH=.gpu python -m benchmarks.gpu_check --out gpu.json
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.gpu_bench import Bench, Row, set_as_stages
from benchmarks.gpu_correctness import equal_bytes, failures, waits, workers
from benchmarks.gpu_memory import checkpointing
from benchmarks.gpu_speed import compiling, one_stage, rates, sharing

PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], float]] = {  # and its share of the time, minutes
    "waits": (waits, 3),
    "equal bytes": (equal_bytes, 3),
    "rates": (rates, 5),
    "checkpointing": (checkpointing, 2),
    "sharing": (sharing, 3),
    "failures": (failures, 2),
    "compiling": (compiling, 4),
    "workers": (workers, 3),
}


def check(bench: Bench, parts: list[str], minutes: float, tell: Callable[[Row], None]) -> list[Row]:
    """Run the parts one after the other; each may take its share of `minutes`, and what is over goes to the next.

    A row that raises ends its part, and no other. Each part begins with the settings of a stage, whatever ran before.
    """
    rows: list[Row] = []
    began, whole = time.monotonic(), sum(PARTS[name][1] for name in parts)
    ends = 0.0
    for name in parts:
        run, share = PARTS[name]
        ends += 60 * minutes * share / whole
        set_as_stages()
        for row in guarded(run(bench), lambda end=ends: time.monotonic() - began > end):  # type: ignore[misc]
            rows.append({"part": name, **row})
            tell(rows[-1])
        if bench.on_gpu:
            torch.cuda.empty_cache()
    return rows


def guarded(rows: Iterator[Row], over: Callable[[], bool]) -> Iterator[Row]:
    """The rows, an error as one, and none after `over` says so."""
    try:
        for row in rows:
            yield row
            if over():
                yield {"case": "the rest of this part", "result": "not measured: its time was over"}
                return
    except Exception as error:  # a row that says so: the other parts are still measured
        yield {"case": "this part", "result": f"FAILED: {type(error).__name__}: {str(error)[:300]}"}


def about(device: torch.device) -> Row:
    found: Row = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "gpu_memory": torch.cuda.mem_get_info(device)[1]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="small images and networks: does it run at all?")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--fraction", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        one_stage(options.stage, options.tiny, options.fraction)
        return
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found = about(options.device)
    print(json.dumps(found))
    kept: list[Row] = []

    def tell(row: Row) -> None:
        kept.append(row)
        print(f"| {row['part']} | {row['case']} | {row['result']} |", flush=True)
        for place in row.get("places", ()):
            print(f"|  | {place} |  |", flush=True)
        options.out.write_text(json.dumps({"machine": found, "rows": kept}, indent=1), encoding="utf-8")

    with tempfile.TemporaryDirectory() as out:
        check(Bench(options.device, Path(out), options.tiny), options.parts, options.minutes, tell)


if __name__ == "__main__":
    main()
