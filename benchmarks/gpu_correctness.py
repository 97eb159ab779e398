"""Parts of the check for a GPU that concern its answers: waits, equal bytes, failures and several workers."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_bench import STREAMS, Bench, Row, Training, image_set, pretraining, set_as_stages, split, tuned
from pretune.trainables.distributed import World, whole_batch_norm
from pretune.trainables.loop import PreemptedError, RunContext
from pretune.trainables.methods.table import METHODS
from pretune.trainables.pretrain import make_batch, pretrain


def waits(bench: Bench) -> Iterator[Row]:
    """Every place of a step that waits for the device, and every operator without a deterministic kernel."""
    for name in (*sorted(METHODS), "fine-tuning"):
        said: list[str] = []
        with recorded_warnings(said), deterministic_warnings():
            if name == "fine-tuning":
                watched_tuning(bench)
            else:
                training = Training(bench, pretraining(bench, name, bench.sizes[0]))
                training.steps(2)  # the first steps make buffers
                with sync_warnings(bench):
                    training.steps(5)
        yield {"case": name, "places": sorted(set(said)), "result": f"{len(set(said))} places"}


def watched_tuning(bench: Bench) -> None:
    """A fine-tuning of eight steps of one epoch, from the third to the seventh under `sync_warnings`.

    What begins and ends a stage or an epoch reads from the device and may.
    """
    done = itertools.count(1)
    with contextlib.ExitStack() as watch:

        def after_a_step() -> bool:
            step = next(done)
            if step == 2:
                watch.enter_context(sync_warnings(bench))
            elif step == 7:
                watch.close()
            return False

        tuned(bench, bench.out / "waits", steps=8, batch=bench.batch // 8, preempted=after_a_step)


@contextlib.contextmanager
def recorded_warnings(said: list[str]) -> Iterator[None]:
    """File, line and first words of each warning that tells of a wait or of a missing deterministic kernel."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        if "called a synchronizing" in text or "deterministic" in text:  # the mode itself also warns, of being new
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


def equal_bytes(bench: Bench) -> Iterator[Row]:
    """Two runs, and a run that was cut and resumed: the same weights?"""
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
    set_as_stages()
    (bench.out / f"loss-{rank}").write_text(str(_first_loss(bench, World(rank, size))))
    dist.destroy_process_group()


def _first_loss(bench: Bench, world: World) -> float:
    training = Training(bench, pretraining(bench, "simclr", bench.sizes[0]))
    whole_batch_norm(training.method, world, bench.device)
    rows = world.part(np.arange(bench.batch))
    batch = make_batch(training.method, training.feeds, rows, 3, 0, world)
    return float(training.method(batch, 0.0)[0].detach())
