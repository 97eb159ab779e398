"""A check of all that a CPU cannot show, in at most 25 minutes of a GPU: one command for the day there is one.

    python -m benchmarks.gpu_check --out gpu.json [--parts waits,rates] [--minutes 25] [--device cuda]

It needs PyTorch from 2.11 on, numpy, pydantic, safetensors and scipy; neither Ray nor a network nor data: images are
made up. Every part runs alone too. A part that fails or outlasts its share is a row of the table, and the next one
runs; the JSON is written after each. Wanted: no row of `waits`, equal bytes, a busy share of 0.9, and no outcome
`FAILED`. On a CPU (`--device cpu --tiny`) the same code runs and says little; its tests do that.

On a machine without pydantic or optuna, make a folder that travels along, and put it on the path:

    python -m pip install --target .gpu --python-version 3.12 --only-binary=:all: pydantic optuna
    PYTHONPATH=.gpu python -m benchmarks.gpu_check --out gpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.distributed import World
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import (
    PreemptedError,
    RunContext,
    build_optimizer,
    compile_parts,
    layout,
    set_tf32,
    training_length,
)
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.table import METHODS, build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.pretrain import Update, make_batch, make_feeds, pretrain

Row = dict[str, Any]
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "labels": 4}
CLASSES = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "moco": {"queue": 4096, "bn_splits": 4},
    "dino": {"prototypes": 4096, "local_views": 6, "local_size": 32},
    "swav": {"prototypes": 512, "local_views": 6, "local_size": 32},
}
RATED = ("simclr", "dino", "mae", "conrec")


@dataclass(frozen=True)
class Bench:
    """Device, scratch folder and scale of a check."""

    device: torch.device
    out: Path  # scratch
    tiny: bool = False

    @property
    def images(self) -> int:
        return 24 if self.tiny else 1024

    @property
    def batch(self) -> int:
        return 8 if self.tiny else 256

    @property
    def model(self) -> schema.Model:
        return schema.UNet(name="unet", widths=(4, 8, 8) if self.tiny else (32, 64, 128, 256))

    @property
    def sizes(self) -> tuple[int, ...]:
        return (32,) if self.tiny else (64, 224)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def image_set(bench: Bench) -> ImageSet:
    """Images of smooth noise, with every map that a method can ask for."""
    random, side = np.random.default_rng(0), 40 if bench.tiny else 256
    coarse = random.integers(0, 256, (bench.images, 8, 8, 3), np.uint8)
    images = coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    masks = (images[..., 0] // 86).astype(np.uint8)
    labels = np.arange(bench.images) % CLASSES
    depth = (images[..., 1] / 255).astype(np.float16)
    regions = masks.astype(np.uint16)
    return ImageSet(
        images, masks, regions, depth, labels, None, [""] * bench.images, tuple(map(str, range(CLASSES))), ()
    )


def split(bench: Bench) -> Split:
    n = bench.images
    return Split(np.arange(n // 2), np.arange(n // 2, 3 * n // 4), np.arange(3 * n // 4, n))


def pretraining(bench: Bench, name: str, size: int, **changes: Any) -> schema.Pretrain:
    small = {"hidden": 16, "prototypes": 12, "queue": 16, "bottleneck": 8, "local_size": 16} if bench.tiny else {}
    known = _kind(name).model_fields
    method = {"name": name} | SETTINGS.get(name, {}) | {key: value for key, value in small.items() if key in known}
    body = {"data": "d", "batch_size": bench.batch, "steps": 1000, "views": {"size": size, "gray": 0.2, "blur": 0.5}}
    return schema.Pretrain.model_validate(body | {"method": method} | changes)


def _kind(name: str) -> Any:
    return type(schema.Pretrain.model_validate({"data": "d", "steps": 1, "method": {"name": name}}).method)


class Training:
    """A pretraining whose steps are taken one by one."""

    def __init__(self, bench: Bench, settings: schema.Pretrain, data: ImageSet | None = None) -> None:
        self.bench, self.settings = bench, settings
        self.data = image_set(bench) if data is None else data
        context = RunContext(bench.out, bench.device)
        torch.manual_seed(0)
        model = bench.model
        parts = Parts(build_encoder(model), lambda: build_decoder(model), CLASSES, CLASSES)
        self.method: Any = build_method(settings.method, settings.views, parts)
        assert isinstance(self.method, nn.Module)
        self.method.to(bench.device).to(memory_format=layout(self.method)).train()
        compile_parts(self.method, settings.compile)
        self.feeds = make_feeds(self.data, context)
        optimizer = build_optimizer(settings.optimizer, [p for p in self.method.parameters() if p.requires_grad])
        length = training_length(settings, 100, None)
        self.update = Update(settings, self.method, self.method, optimizer, length, bench.device)

    def batch(self, step: int) -> Batch:
        first = step * self.bench.batch % (self.bench.images - self.bench.batch + 1)
        return make_batch(self.method, self.feeds, np.arange(first, first + self.bench.batch), 3, 0)

    def steps(self, count: int) -> None:
        for step in range(count):
            self.update(self.batch(step), step)


# ------------------------------------------------------------------------------------------------------------- parts


def waits(bench: Bench) -> Iterator[Row]:
    """Every place of a step that waits for the device, and every operator without a deterministic kernel."""
    for name in (*sorted(METHODS), "fine-tuning"):
        said: list[str] = []
        with recorded_warnings(said), deterministic_warnings():
            if name == "fine-tuning":
                tuned(bench, bench.out / "waits", steps=3)
            else:
                training = Training(bench, pretraining(bench, name, bench.sizes[0]))
                training.steps(2)  # the first steps make buffers
                with sync_warnings(bench):
                    training.steps(5)
        yield {"case": name, "places": sorted(set(said)), "result": f"{len(set(said))} places"}


@contextlib.contextmanager
def recorded_warnings(said: list[str]) -> Iterator[None]:
    """File, line and first words of each warning that tells of a wait or of a missing deterministic kernel."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        if "synchroniz" in text or "deterministic" in text:
            said.append(f"{Path(warning.filename).name}:{warning.lineno} {text.splitlines()[0][:120]}")


@contextlib.contextmanager
def sync_warnings(bench: Bench) -> Iterator[None]:
    if not bench.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def deterministic_warnings() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def tuned(bench: Bench, out: Path, steps: int, **context: Any) -> None:
    out.mkdir(exist_ok=True)
    body = {"data": "d", "size": bench.sizes[0], "batch_size": bench.batch, "steps": steps, "transfer": "none"}
    settings = schema.Finetune.model_validate(body)
    where = RunContext(out, bench.device, **context)
    finetune(settings, bench.model, image_set(bench), split(bench), STREAMS, where, on_test=False)


def equal_bytes(bench: Bench) -> Iterator[Row]:
    """Two runs, and a run that was cut and resumed: the same weights?"""
    torch.backends.cudnn.deterministic = True
    for name in ("simclr", "mae"):
        once, again = (digest(pretrained(bench, name, bench.out / f"{name}-{i}")) for i in range(2))
        resumed = digest(cut_and_resumed(bench, name, bench.out / f"{name}-cut"))
        yield {"case": f"{name}, twice", "result": "equal" if once == again else "DIFFERENT"}
        yield {"case": f"{name}, cut and resumed", "result": "equal" if once == resumed else "DIFFERENT"}


def pretrained(bench: Bench, name: str, out: Path, **context: Any) -> Path:
    out.mkdir(exist_ok=True)
    settings = pretraining(bench, name, bench.sizes[0], steps=6)
    pretrain(settings, bench.model, image_set(bench), split(bench), STREAMS, RunContext(out, bench.device, **context))
    return out / "model.safetensors"


def cut_and_resumed(bench: Bench, name: str, out: Path) -> Path:
    asked = iter([False, False, True])
    try:
        pretrained(bench, name, out, preempted=lambda: next(asked))
    except PreemptedError:
        return pretrained(bench, name, out.with_name(out.name + "-2"), resume=next(out.glob("*.pt")))
    raise RuntimeError("the training ended before it was cut")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rates(bench: Bench) -> Iterator[Row]:
    """Images per second, and how long the device is busy, by method, size, precision and where images lie."""
    for size in bench.sizes:
        for name in RATED:
            for precision in ("float32", "tf32", "bfloat16"):
                set_tf32(precision == "tf32")
                training = Training(bench, pretraining(bench, name, size, precision=precision))
                yield {"case": f"{name} {size} px {precision}, resident", **rate(training)}
            set_tf32(False)
            mapped = Training(bench, pretraining(bench, name, size))
            for feed in mapped.feeds.values():
                feed._resident = None  # type: ignore[attr-defined]
            yield {"case": f"{name} {size} px float32, mapped", **rate(mapped)}
            batch = mapped.batch(0)
            yield {"case": f"{name} {size} px float32, views made before", **rate(mapped, batch)}
        yield {"case": f"simclr {size} px, Lightly's loss on views made before", **lightly_rate(bench, size)}
    yield {"case": "streamed", "result": "not measured: Ray Data is not part of this check"}


def rate(training: Training, batch: Batch | None = None) -> Row:
    """Images per second over some steps, after a few to warm up; `batch` in place of a new one for each step."""
    bench, count = training.bench, 2 if training.bench.tiny else 20

    def run(steps: int) -> None:
        for step in range(steps):
            training.update(training.batch(step) if batch is None else batch, step)

    seconds = timed(bench, run, count)
    found: Row = {
        "result": f"{bench.batch * count / seconds:.0f} images/s",
        "images_per_s": bench.batch * count / seconds,
    }
    if bench.on_gpu:
        found |= {"busy": busy_share(run), "peak_mib": torch.cuda.max_memory_allocated(bench.device) >> 20}
        found["result"] += f", busy {found['busy']:.2f}"
    return found


def timed(bench: Bench, run: Callable[[int], None], count: int) -> float:
    """Seconds that `run(count)` takes, after two to warm up."""
    run(2)
    bench.wait()
    began = time.perf_counter()
    run(count)
    bench.wait()
    return time.perf_counter() - began


def busy_share(run: Callable[[int], None]) -> float:
    """Time in kernels over wall time, of five steps under the profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    began = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        run(5)
        torch.cuda.synchronize()
    wall = time.perf_counter() - began
    return sum(event.self_device_time_total for event in profile.key_averages()) * 1e-6 / wall


def lightly_rate(bench: Bench, size: int) -> Row:
    """Lightly's SimCLR on views that are there: what its loss and head let a device do at best."""
    try:
        from benchmarks import lightly_methods
        from benchmarks.throughput import Backbone
    except ImportError as error:
        return {"result": f"not measured: {error}"}
    encoder = build_encoder(bench.model)
    model = lightly_methods.METHODS["simclr"](Backbone(encoder), encoder.widths[-1]).to(bench.device)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    views = [torch.rand(bench.batch, 3, size, size, device=bench.device) for _ in range(2)]

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(views).backward()
            optimizer.step()

    count = 2 if bench.tiny else 20
    found = bench.batch * count / timed(bench, run, count)
    return {"result": f"{found:.0f} images/s", "images_per_s": found}


def sharing(bench: Bench) -> Iterator[Row]:
    """Four small stages at a quarter of the device each beside one after the other, and memory after each stage."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--stage", str(bench.device)]
    command += ["--tiny"] if bench.tiny else []
    count = 2 if bench.tiny else 4
    began = time.perf_counter()
    for _ in range(count):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    apart = time.perf_counter() - began
    began = time.perf_counter()
    started = [
        subprocess.Popen([*command, "--fraction", str(1 / count)], stdout=subprocess.DEVNULL) for _ in range(count)
    ]
    ended = [process.wait(timeout=300) for process in started]
    together = time.perf_counter() - began
    failed = f", FAILED {ended}" if any(ended) else ""
    yield {"case": f"{count} stages at once", "result": f"{apart / together:.2f} times one at a time{failed}"}
    for number in range(3):
        tuned(bench, bench.out / f"stage-{number}", steps=2)
        held = torch.cuda.memory_allocated(bench.device) >> 20 if bench.on_gpu else 0
        yield {"case": f"held after stage {number + 1} of one process", "result": f"{held} MiB", "mib": held}


def one_stage(device: str, tiny: bool, fraction: float | None) -> None:
    """A stage in a process of its own, in a part of the device's memory."""
    with tempfile.TemporaryDirectory() as out:
        bench = Bench(torch.device(device), Path(out), tiny)
        if fraction is not None and bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(fraction)
        Training(bench, pretraining(bench, "simclr", bench.sizes[0])).steps(3 if tiny else 60)
        bench.wait()


def failures(bench: Bench) -> Iterator[Row]:
    """A provoked lack of memory, and a device assert in a process of its own: what is said, and the next stage."""
    if not bench.on_gpu:
        yield {"case": "out of memory, device assert", "result": "not measured: no GPU"}
        return
    free = torch.cuda.mem_get_info(bench.device)[0]
    try:
        torch.empty(free * 2, dtype=torch.uint8, device=bench.device)
        yield {"case": "out of memory", "result": "FAILED: nothing was raised"}
    except torch.OutOfMemoryError as error:
        tuned(bench, bench.out / "after-memory", steps=2)
        yield {"case": "out of memory, and a stage after it", "result": f"ran; {str(error)[:100]}"}
    code = "import torch; x = torch.zeros(4, device='cuda'); print(x[torch.tensor([9], device='cuda')].cpu())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    yield {"case": "device assert", "result": f"exit code {ended.returncode}: {last[:100]}"}


def compiling(bench: Bench) -> Iterator[Row]:
    """Seconds to compile and what it gains; and SimCLR's views as one captured graph."""
    plain = rate(Training(bench, pretraining(bench, "simclr", bench.sizes[0])))
    began = time.perf_counter()
    training = Training(bench, pretraining(bench, "simclr", bench.sizes[0], compile=True))
    training.steps(1)
    bench.wait()
    seconds, compiled = time.perf_counter() - began, rate(training)
    gain = compiled["images_per_s"] / plain["images_per_s"]
    yield {"case": "compile", "result": f"{seconds:.0f} s, then {gain:.2f} times", "seconds": seconds, "gain": gain}
    yield {
        "case": "SimCLR's step as a CUDA graph",
        "result": graphed(bench) if bench.on_gpu else "not measured: no GPU",
    }


def graphed(bench: Bench) -> str:
    """Forward and backward pass of SimCLR captured and replayed: how much faster than launched one by one."""
    training = Training(bench, pretraining(bench, "simclr", bench.sizes[0]))
    batch = training.batch(0)

    def step(count: int) -> None:
        for _ in range(count):
            training.method(batch, 0.0)[0].backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(3)
    torch.cuda.current_stream().wait_stream(stream)
    eager = timed(bench, step, 20)
    for parameter in training.method.parameters():
        parameter.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(1)
    return f"{eager / timed(bench, lambda count: [graph.replay() for _ in range(count)] and None, 20):.2f} times"


def workers(bench: Bench) -> Iterator[Row]:
    """Two workers on one device over gloo beside one alone: the same loss at the first step?"""
    import torch.multiprocessing as mp

    file = bench.out / "rendezvous"
    mp.spawn(_worker, args=(2, str(file), str(bench.device), bench.tiny, str(bench.out)), nprocs=2)  # type: ignore[no-untyped-call]
    alone = _first_loss(bench, World())
    both = [float((bench.out / f"loss-{rank}").read_text()) for rank in range(2)]
    off = abs(sum(both) / 2 - alone) / abs(alone)
    yield {"case": "two workers (gloo) against one", "result": f"losses differ by {off:.1e}", "relative": off}
    if bench.on_gpu and torch.cuda.device_count() < 2:
        yield {"case": "NCCL", "result": "not measured: one GPU"}


def _worker(rank: int, size: int, file: str, device: str, tiny: bool, out: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    bench = Bench(torch.device(device), Path(out), tiny)
    (bench.out / f"loss-{rank}").write_text(str(_first_loss(bench, World(rank, size))))
    dist.destroy_process_group()


def _first_loss(bench: Bench, world: World) -> float:
    from pretune.trainables.distributed import whole_batch_norm

    training = Training(bench, pretraining(bench, "simclr", bench.sizes[0]))
    whole_batch_norm(training.method, world, bench.device)
    rows = world.part(np.arange(bench.batch))
    batch = make_batch(training.method, training.feeds, rows, 3, 0, world)
    return float(training.method(batch, 0.0)[0].detach())


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], float]] = {  # and its share of the time, minutes
    "waits": (waits, 3),
    "equal bytes": (equal_bytes, 3),
    "rates": (rates, 6),
    "sharing": (sharing, 3),
    "failures": (failures, 2),
    "compiling": (compiling, 4),
    "workers": (workers, 4),
}


# -------------------------------------------------------------------------------------------------------------- main


def check(bench: Bench, parts: list[str], minutes: float, tell: Callable[[Row], None]) -> list[Row]:
    """Run the parts one after the other; each may take its share of `minutes`, and what is over goes to the next.

    A row that raises ends its part, and no other.
    """
    rows: list[Row] = []
    began, whole = time.monotonic(), sum(PARTS[name][1] for name in parts)
    ends = 0.0
    for name in parts:
        run, share = PARTS[name]
        ends += 60 * minutes * share / whole
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
