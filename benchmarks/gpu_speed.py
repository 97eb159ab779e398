"""Parts of the check for a GPU that concern its speed: rates, stages that share it, and compiling."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_bench import Bench, Row, Training, pretraining, set_as_stages, tuned
from pretune.search_spaces import schema
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.models.table import build_encoder

RATED = ("simclr", "dino", "mae", "conrec")


def rates(bench: Bench) -> Iterator[Row]:
    """Images per second, and how long the device is busy, by method, size, precision and where images lie."""
    for size in bench.sizes:
        for name in RATED:
            for precision in ("float32", "tf32", "bfloat16"):
                settings = pretraining(bench, name, size, precision=precision)
                yield attempted(f"{name} {size} px {precision}, resident", rate_of, bench, settings)
            settings = pretraining(bench, name, size)
            yield attempted(f"{name} {size} px float32, mapped", rate_of, bench, settings, False)
            yield attempted(f"{name} {size} px float32, views made before", rate_of, bench, settings, False, True)
        set_as_stages()
        yield attempted(f"simclr {size} px, Lightly's loss on views made before", lightly_rate, bench, size)
    yield {"case": "streamed", "result": "not measured: Ray Data is not part of this check"}


def attempted(case: str, measure: Callable[..., Row], *given: Any) -> Row:
    """The row of `measure(*given)`, or one that says that memory ran out: others may need less."""
    try:
        return {"case": case, **measure(*given)}
    except torch.OutOfMemoryError as error:
        return {"case": case, "result": f"FAILED: out of memory: {str(error)[:200]}"}


def rate_of(bench: Bench, settings: schema.Pretrain, resident: bool = True, made: bool = False) -> Row:
    """The rate of a new training, with its own precision; `made` takes views that were made before."""
    set_as_stages(settings.precision)
    training = Training(bench, settings, resident=resident)
    return rate(training, training.batch(0) if made else None)


def rate(training: Training, batch: Batch | None = None) -> Row:
    """Images per second over some steps, after a few to warm up; `batch` in place of a new one for each step."""
    bench, count = training.bench, 2 if training.bench.tiny else 20
    bench.forget()

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
    """Time in kernels over wall time, of five steps under the profiler.

    Its start and the collecting at its end take longer than the steps. A step before them warms it up, and `schedule`
    leaves the kernels of that step out.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1)
    with torch.profiler.profile(activities=activities, schedule=schedule) as profile:
        run(1)
        torch.cuda.synchronize()
        profile.step()
        began = time.perf_counter()
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
        set_as_stages()
        if fraction is not None and bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(fraction)
        Training(bench, pretraining(bench, "simclr", bench.sizes[0])).steps(3 if tiny else 60)
        bench.wait()


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
