"""The logic of the check for a GPU, on a CPU: every part that does not need one, and how it treats failures."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_bench, gpu_check, gpu_correctness, gpu_memory, gpu_speed
from benchmarks.gpu_bench import Bench, Row, Training, pretraining
from pretune.trainables import finetune
from pretune.trainables.recomputation import recompute_activations


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(torch.device("cpu"), tmp_path, tiny=True)


def test_an_error_ends_a_part_and_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(bench: Bench) -> Iterator[Row]:
        yield {"case": "a", "result": "fine"}
        raise RuntimeError("no such kernel")

    def runs(bench: Bench) -> Iterator[Row]:
        yield {"case": "b", "result": "fine"}

    monkeypatch.setattr(gpu_check, "PARTS", {"one": (breaks, 1), "two": (runs, 1)})
    told: list[Row] = []
    rows = gpu_check.check(bench, ["one", "two"], 1, told.append)
    assert [(row["part"], row["result"]) for row in rows] == [
        ("one", "fine"),
        ("one", "FAILED: RuntimeError: no such kernel"),
        ("two", "fine"),
    ]
    assert told == rows


def test_a_part_ends_when_its_time_is_over() -> None:
    endless = ({"case": str(n), "result": "fine"} for n in itertools.count())
    over = iter([False, False, True])
    rows = list(gpu_check.guarded(endless, lambda: next(over)))
    assert [row["case"] for row in rows] == ["0", "1", "2", "the rest of this part"]


def test_warnings_of_waits_are_kept_and_others_are_not() -> None:
    said: list[str] = []
    with gpu_correctness.recorded_warnings(said):
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("cumsum_cuda_kernel does not have a deterministic implementation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [text.split(" ", 1)[1][:20] for text in said] == ["called a synchronizi", "cumsum_cuda_kernel d"]
    assert all(text.startswith("test_gpu_check.py:") for text in said)


def test_equal_runs_and_a_resumed_one_have_equal_bytes_here(bench: Bench) -> None:
    assert {row["case"]: row["result"] for row in gpu_correctness.equal_bytes(bench)} == {
        "simclr, twice": "equal",
        "simclr, cut and resumed": "equal",
        "mae, twice": "equal",
        "mae, cut and resumed": "equal",
    }


def test_different_weights_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(gpu_correctness, "digest", lambda path: str(next(numbers)))
    assert {row["result"] for row in gpu_correctness.equal_bytes(bench)} == {"DIFFERENT"}


def test_that_the_mode_is_new_is_no_wait() -> None:
    said: list[str] = []
    with gpu_correctness.recorded_warnings(said):
        warnings.warn("a prototype feature and does not yet detect all synchronizing operations", stacklevel=1)
    assert said == []


def test_steps_of_a_fine_tuning_are_watched_and_its_ends_are_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the device's mode, in which every step, end of an epoch and scoring waits."""
    watched, seen = [False], dict[str, list[bool]](step=[], epoch=[], score=[])

    @contextlib.contextmanager
    def mode(bench: Bench) -> Iterator[None]:
        watched[0] = True
        yield
        watched[0] = False

    def waiting(kind: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any, **named: Any) -> Any:
            seen[kind].append(watched[0])
            if watched[0]:
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            return run(*args, **named)

        return one

    monkeypatch.setattr(gpu_correctness, "METHODS", {})
    monkeypatch.setattr(gpu_correctness, "sync_warnings", mode)
    monkeypatch.setattr(finetune, "set_lr_and_decay", waiting("step", finetune.set_lr_and_decay))
    monkeypatch.setattr(finetune.Progress, "record", waiting("epoch", finetune.Progress.record))
    monkeypatch.setattr(finetune.Evaluator, "evaluate", waiting("score", finetune.Evaluator.evaluate))
    (row,) = gpu_correctness.waits(bench)
    assert row["result"] == "1 places"
    assert seen == {"step": [False] * 2 + [True] * 5 + [False], "epoch": [False], "score": [False]}


def test_every_step_of_every_method_runs(bench: Bench) -> None:
    rows = list(gpu_correctness.waits(bench))
    assert [row["case"] for row in rows] == [*sorted(gpu_correctness.METHODS), "fine-tuning"]


def test_rates_and_failures_without_a_gpu(bench: Bench) -> None:
    training = Training(bench, pretraining(bench, "simclr", 32))
    assert gpu_speed.rate(training)["images_per_s"] > 0
    assert gpu_speed.rate(training, training.batch(0))["images_per_s"] > 0
    assert [row["result"] for row in gpu_correctness.failures(bench)] == ["not measured: no GPU"]


class Clock:
    """Seconds, and a profiler that takes ten to start and ten to collect; it keeps the kernels since its last step."""

    def __init__(self) -> None:
        self.now, self.kernels = 0.0, list[float]()

    def __enter__(self) -> Clock:
        self.now += 10
        return self

    def __exit__(self, *error: object) -> None:
        self.now += 10

    def step(self) -> None:
        self.now += 10
        self.kernels.clear()

    def key_averages(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(self_device_time_total=1e6 * seconds) for seconds in self.kernels]

    def run(self, steps: int) -> None:
        self.now += steps
        self.kernels += [0.75] * steps


def test_the_busy_share_is_of_five_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(gpu_speed.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(torch.profiler, "profile", lambda **settings: clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert gpu_speed.busy_share(clock.run) == 0.75


def test_the_schedule_leaves_out_the_step_that_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true profiler, with calls on a CPU in place of kernels."""
    used: list[torch.profiler.profile] = []
    real, cpu = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]

    def profile(activities: object, schedule: Any) -> torch.profiler.profile:
        used.append(real(activities=cpu, schedule=schedule))
        return used[0]

    monkeypatch.setattr(torch.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    x = torch.ones(4)
    gpu_speed.busy_share(lambda steps: [x.cos() for _ in range(steps)] and None)
    assert [event.count for event in used[0].key_averages() if event.key == "aten::cos"] == [5]


def device_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Stand-in for a device's memory: bytes `held`, their `peak`, and how often it was begun anew."""
    memory = {"held": 0, "peak": 0, "begun": 0}

    def begin(device: torch.device) -> None:
        memory.update(peak=memory["held"], begun=memory["begun"] + 1)

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", begin)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory["peak"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory["held"])
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    return memory


def test_each_rate_has_a_peak_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, bench = device_memory(monkeypatch), Bench(torch.device("cuda"), tmp_path, tiny=True)
    monkeypatch.setattr(gpu_speed, "busy_share", lambda run: 0.5)

    def peak(mib: int) -> int:
        def update(batch: object, step: int) -> None:
            memory["peak"] = max(memory["peak"], mib << 20)

        row = gpu_speed.rate(SimpleNamespace(bench=bench, update=update, batch=lambda step: None))  # type: ignore[arg-type]
        return int(row["peak_mib"])

    assert (peak(300), peak(100)) == (300, 100)


def test_garbage_is_no_part_of_the_memory_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = device_memory(monkeypatch)
    memory.update(held=7, peak=9)

    class Held:
        def __del__(self) -> None:
            memory["held"] = 3

    circle = [Held()]
    circle.append(circle)  # type: ignore[arg-type]
    del circle
    assert Bench(torch.device("cuda"), tmp_path).forget() == 3
    assert memory == {"held": 3, "peak": 3, "begun": 1}


def test_a_lack_of_memory_is_of_its_row_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room_for_dino(bench: Bench, settings: Any, **changes: Any) -> Training:
        if settings.method.name in ("dino", "mae"):
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return Training(bench, settings, **changes)

    lack = "FAILED: out of memory: tried to allocate 9 GiB"
    for module in (gpu_speed, gpu_memory):
        monkeypatch.setattr(module, "Training", without_room_for_dino)
    monkeypatch.setattr(gpu_speed, "RATED", ("dino", "simclr"))
    monkeypatch.setattr(gpu_speed, "lightly_rate", lambda *given: {"result": "none"})
    monkeypatch.setattr(gpu_memory, "METHODS", ("mae", "simclr"))
    for part, failed, fine in ((gpu_speed.rates, 5, 5), (gpu_memory.checkpointing, 1, 1)):
        results = [row["result"] for row in part(bench)]
        assert results[:failed] == [lack] * failed
        assert all("images/s" in result for result in results[failed : failed + fine])


def test_every_part_begins_with_the_settings_of_a_stage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, ...]] = []

    def look(bench: Bench) -> Iterator[Row]:
        cudnn = torch.backends.cudnn
        seen.append((cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        other_settings()
        yield {"case": "a", "result": "fine"}

    def other_settings() -> None:
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True

    other_settings()
    monkeypatch.setattr(gpu_check, "PARTS", {"one": (look, 1), "two": (look, 1)})
    gpu_check.check(bench, ["one", "two"], 1, lambda row: None)
    monkeypatch.setattr(gpu_speed, "Training", lambda bench, settings: SimpleNamespace(steps=lambda n: [*look(bench)]))
    gpu_speed.one_stage("cpu", True, None)
    gpu_bench.set_as_stages()
    assert seen == [(True, False, False)] * 3


def test_checkpointing_gives_equal_bytes_here_and_less_memory_by_the_formula(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wanted kind of training is run: with segments that are computed again for the second of each pair."""
    asked: list[bool] = []

    def recompute(network: torch.nn.Module, on: bool) -> None:
        asked.append(on)
        recompute_activations(network, on)

    monkeypatch.setattr(gpu_bench, "recompute_activations", recompute)
    rows = list(gpu_memory.checkpointing(bench))
    assert [row["case"] for row in rows] == [f"{name} 32 px" for name in gpu_memory.METHODS]
    assert asked == [False, False, True] * len(rows)
    for row in rows:
        assert row["plain"]["digest"] == row["checkpointed"]["digest"]
        assert row["checkpointed"]["formula"] < row["plain"]["formula"]
        assert row["result"].startswith("equal bytes, ")
        assert row["result"].endswith("; peaks not measured: no GPU")


def test_peaks_stand_beside_the_formulas_and_other_bytes_are_told() -> None:
    plain = {"digest": "a", "images_per_s": 100.0, "peak": 300 << 20, "formula": 200 << 20}
    again = {"digest": "b", "images_per_s": 75.0, "peak": 100 << 20, "formula": 125 << 20}
    assert gpu_memory.compared(plain, plain, again)["result"] == (
        "DIFFERENT bytes, 0.75 times the images/s; "
        "peaks 300 MiB (1.50 of the formula's), 100 MiB (0.80 of the formula's)"
    )


def test_checkpointing_is_not_charged_with_what_plain_steps_do_too() -> None:
    first, second, third = ({"digest": digest, "images_per_s": 100.0} for digest in "abc")
    said = gpu_memory.compared(first, second, third)["result"]
    assert said.startswith("bytes that DIFFER without checkpointing too, 1.00 times")


def test_weights_that_differ_have_another_digest() -> None:
    layer = torch.nn.BatchNorm2d(2)
    first = gpu_memory.digest(layer)
    assert gpu_memory.digest(layer) == first
    assert layer.running_mean is not None
    layer.running_mean[1] = 1e-7
    assert gpu_memory.digest(layer) != first


def test_neither_ray_nor_optuna_is_imported() -> None:
    """The machines that lend a GPU have neither."""
    code = "import sys, benchmarks.gpu_check; print({'ray', 'optuna', 'torchvision', 'timm'} & set(sys.modules))"
    root = Path(gpu_check.__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
