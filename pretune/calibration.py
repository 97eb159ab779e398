"""The costs of planned stage runs: a few steps of each shape of stage, timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage

if TYPE_CHECKING:
    from torch import nn

    from pretune.trainables.data.checks.requirements import StageSettings

CALIBRATION_STEPS = 3
PARTS = {
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "probe": "probes",
}  # kind of stage -> where its time goes
EVALUATION = "evaluation"


class Peak(NamedTuple):
    """Bytes at the peak of a training step, by formula; 0 where nothing is trained."""

    asked: int = 0  # as the study asks for it
    checkpointed: int = 0  # with activation checkpointing


class Estimate(NamedTuple):
    """Costs of stages."""

    seconds: float  # of work on one worker
    seconds_by_part: dict[str, float]  # the same: pretraining, fine-tuning, evaluation, probes
    gpu_hours: float
    disk_bytes: int  # weights, and states that are kept
    kept_bytes: int  # of that the states
    state_bytes: int  # the largest state of a stage run, which is there while it runs
    peak_bytes: dict[str, int]  # of a training step by kind of stage, the largest of its shapes; of all workers
    checkpointed_bytes: dict[str, int]  # of the same step with activation checkpointing


def calibrate(stages: list[Stage], images: Callable[[schema.Data], int]) -> Estimate:
    """Costs from a few timed steps of each shape of stage.

    Steps are timed on this machine, on random pixels, with the stage's own model, batch and size; scoring is counted
    as forward passes. `images` says how many images a data set holds.
    """
    from pretune.trainables.sample_step import size_of

    rates: dict[str, Costs] = {}
    peaks: dict[str, Peak] = {}
    seconds = dict.fromkeys(PARTS.values(), 0.0) | {EVALUATION: 0.0}
    gpu_seconds, weights, kept, state = 0.0, 0, 0, 0
    for stage in stages:
        key = f"{stage.kind} {stage.model} {size_of(stage.settings)} {getattr(stage.settings, 'batch_size', 0)}"
        if key not in rates:
            rates[key] = _time_steps(stage)
        costs = rates[key]
        peaks[stage.kind] = max(peaks.get(stage.kind, Peak()), costs.memory)
        steps, scored = _steps(stage, images(stage.data))
        training, scoring = steps * costs.per_step, scored * costs.per_image
        seconds[PARTS[stage.kind]] += training
        seconds[EVALUATION if stage.kind != "probe" else PARTS["probe"]] += scoring
        weights, state = weights + costs.weights, max(state, costs.state)
        kept += costs.state if stage.keep_state else 0
        gpu_seconds += (training + scoring) * stage.resources.workers * (stage.resources.gpus_each or 0.0)
    peaks = {kind: peak for kind, peak in peaks.items() if peak.asked}
    checkpointed = {kind: peak.checkpointed for kind, peak in peaks.items()}
    by_part = {part: spent for part, spent in seconds.items() if spent}
    return Estimate(
        sum(seconds.values()), by_part, gpu_seconds / 3600, weights + kept, kept, state,
        {kind: peak.asked for kind, peak in peaks.items()}, checkpointed,
    )  # fmt: skip


def busy_note(load: float, cores: int) -> tuple[str, ...]:
    """A sentence about the estimate where the programs that want a core (`load`, a mean) are more than the cores."""
    if load <= cores:
        return ()
    return (
        f"this machine is busy (load {load:.1f} on {cores} cores in the last minute). The study may take much "
        "longer than estimated, because Ray runs training at a low priority. To avoid this, put RAY_worker_niceness=0 "
        "before the command",
    )


def has_gpu() -> bool:
    """Whether torch finds a GPU here."""
    return gpu_count() > 0


def gpu_count() -> int:
    """Count the GPUs that torch finds here."""
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _steps(stage: Stage, n: int) -> tuple[int, int]:
    """Training steps and scored images of a stage on a data set of n images."""
    split, settings = stage.data.split, stage.settings
    test = split.test if isinstance(split.test, int) else round(n * (0.5 if split.test == "official" else split.test))
    val = split.val if isinstance(split.val, int) else round(n * (0.1 if split.val == "official" else split.val))
    train = max(1, n - test - val)
    if isinstance(settings, schema.CKA):
        return 0, 2 * (val if settings.images == "val" else n)
    if isinstance(settings, schema.CAM | schema.FeatureMaps):
        return 0, val
    if isinstance(settings, schema.KNN | schema.LinearProbe):
        return 0, train + val
    if isinstance(settings, schema.Pretrain):
        seen = {"train": train, "train+val": train + val, "all": n}[settings.sees]
        per_epoch, scored = max(1, seen // settings.batch_size), val
    else:
        labelled = settings.labels if isinstance(settings.labels, int) else max(1, round(train * settings.labels))
        per_epoch = -(-labelled // settings.batch_size)
        epochs = settings.epochs or -(-(settings.steps or 0) // per_epoch)
        sizes = (settings.size, *settings.test_sizes) if stage.on_test else ()
        scored = val * validations(settings, epochs) + round(test * sum((px / settings.size) ** 2 for px in sizes))
    return settings.steps or per_epoch * (settings.epochs or 0), scored


def validations(settings: schema.Finetune, epochs: int) -> int:
    """Count the times that a fine-tuning of so many epochs scores its validation images: always at the end."""
    from pretune.trainables.finetune import validation_due

    due = [validation_due(settings, epoch) for epoch in range(epochs)]
    return sum(due) + (not any(due[-1:]))


class Costs(NamedTuple):
    """Costs of a shape of stage."""

    per_step: float  # seconds
    per_image: float  # seconds, scored
    weights: int  # bytes
    state: int  # bytes that a resumable state holds: 0 of what is not trained
    memory: Peak


def _time_steps(stage: Stage) -> Costs:
    import torch

    from pretune.trainables.memory import step_memory
    from pretune.trainables.models.table import build_encoder
    from pretune.trainables.recomputation import recompute_activations
    from pretune.trainables.sample_step import optimizer_of, sample_step

    torch.set_num_threads(stage.resources.cpus)
    settings = stage.settings
    if isinstance(settings, schema.Pretrain) and isinstance(settings.method, schema.Weights):
        return Costs(0.0, 0.0, _bytes(build_encoder(stage.model)), 0, Peak())
    asked = getattr(settings, "batch_size", 64)
    sample = sample_step(settings, stage.model, schema.slices_of(stage.data), min(asked, 64))
    optimizer = optimizer_of(settings)
    # the first step allocates and chooses kernels
    memory = step_memory(sample.whole, optimizer, sample.step, sample.batch)
    checkpointing = stage.resources.activation_checkpointing
    recompute_activations(sample.whole, checkpointing)
    per_step = _best_of(sample.step) * asked / sample.batch
    with torch.no_grad():
        per_image = _best_of(lambda: sample.scored(sample.pixels)) / sample.batch
    peak = Peak()
    if optimizer is not None:
        able = checkpointing or not getattr(settings, "compile", False)
        peak = Peak(memory.as_run(checkpointing).of(asked), memory.as_run(able).of(asked))
    return Costs(per_step, per_image, _bytes(sample.scored), _state_bytes(settings, sample.whole), peak)


def _state_bytes(settings: StageSettings, whole: nn.Module) -> int:
    """Weights, what the optimiser keeps, and the best weights so far where these are scored."""
    from pretune.trainables.memory import SLOTS

    if not isinstance(settings, schema.Pretrain | schema.Finetune):
        return 0
    trained = sum(p.numel() * p.element_size() for p in whole.parameters() if p.requires_grad)
    best = isinstance(settings, schema.Finetune) and settings.checkpoint == "best"
    return _bytes(whole) * (2 if best else 1) + SLOTS[settings.optimizer.name] * trained


def _bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())


def _best_of(work: Callable[[], object]) -> float:
    times = []
    for _ in range(CALIBRATION_STEPS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
