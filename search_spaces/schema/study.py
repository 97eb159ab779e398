"""Study-level settings: seeds, tuning, report, resources."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pretune.search_spaces.schema.base import Settings


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class PhaseSeeds(Settings):
    """Nested seeds: `finetune` fine-tunings for each of `pretrain` pretrainings."""

    pretrain: Annotated[int, Field(gt=0, le=1000)]
    finetune: Annotated[int, Field(gt=0, le=1000)]


def _phase_seeds(value: object) -> object:
    """`3` means three replicates, each with a pretraining of its own."""
    if isinstance(value, bool | str):
        raise ValueError("should be a whole number, or {pretrain: 3, finetune: 2}")
    return {"pretrain": value, "finetune": 1} if isinstance(value, int) else value


PerPhase = Annotated[PhaseSeeds, BeforeValidator(_phase_seeds)]


class Seeds(Settings):
    """Number of replicates; search and report seeds never overlap. `hold` fixes a stream at one seed."""

    search: PerPhase = PhaseSeeds(pretrain=1, finetune=1)
    select: PerPhase | None = None  # of `tune.top_k`; default: as many as search
    report: PerPhase = PhaseSeeds(pretrain=3, finetune=1)
    hold: dict[Literal["init", "order", "augmentation", "labels"], NonNegativeInt] = {}


class TunePretrain(Settings):
    """Tuning of a pretraining's own ranges: by validation scores of cells, its pretext loss, or a probe."""

    trials: PositiveInt | None = None  # default: tune.trials
    target: str = "cells"  # cells | pretext | probe.NAME
    cells: dict[str, str | bool | int | float] = {}  # which cells score it; default: all that share it


class Racing(Settings):
    """Give configurations their search seeds a few at a time and stop what is clearly worse than the best so far."""

    first: Annotated[int, Field(ge=2)] = 2  # seeds that every configuration gets
    step: PositiveInt = 1  # seeds that contenders get between two looks
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = (
        0.05  # chance, over all looks and rivals, of stopping an equal of the best
    )


class Rungs(Settings):
    """Judge configurations after their first epochs, and train only some of them on."""

    epochs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # after which to judge
    rule: Literal["halving", "median"] = "halving"
    keep: Annotated[float, Field(gt=0, lt=1)] = 1 / 3  # halving: share of a batch that goes on (Jamieson 2016: 1/3)

    @model_validator(mode="after")
    def _rising(self) -> Rungs:
        if any(a >= b for a, b in itertools.pairwise(self.epochs)):
            raise ValueError(f"epochs must rise, received {list(self.epochs)}")
        return self


class Budget(Settings):
    """When to stop searching. `hours` and `gpu_hours` depend on the machine, and with them the table; others do not."""

    trials: PositiveInt | None = None  # configurations
    epochs: PositiveInt | None = None  # trained in all stage runs asked for
    hours: PositiveFloat | None = None  # since the start of this `pretune run`
    gpu_hours: PositiveFloat | None = None


class Budgets(Settings):
    """Budget of all searches together (trials and epochs are shared evenly among them), and of each search."""

    study: Budget = Budget()
    cell: Budget = Budget()


Sampler = Literal["grid", "random", "qmc", "tpe", "gp", "cmaes", "nsga2", "genetic"]


class Tune(Settings):
    """Search of ranges."""

    sampler: Sampler = "tpe"
    trials: Annotated[int, Field(gt=0, le=10_000)] = 20
    batch: PositiveInt = 4  # asked together and told together, so that a search does not depend on timing
    startup: NonNegativeInt = 8  # first trials drawn at random
    target: str = "val/jaccard"
    direction: Literal["maximize", "minimize"] | None = None  # default: as the table of metrics says
    also: Names = ()  # further targets, for nsga2: the Pareto front is kept, the best by `target` is confirmed
    population: Annotated[int, Field(ge=2)] = 16  # of nsga2 and genetic
    points: Annotated[int, Field(ge=2)] = 5  # of a grid over a continuous range
    seed: NonNegativeInt = 0
    top_k: PositiveInt = 1  # this many are measured again on fresh seeds, and the best of them is confirmed
    racing: Racing | None = None
    rungs: Rungs | None = None
    constraints: dict[str, float] = {}  # metric -> worst value allowed: cost/seconds at most, a score at least
    budget: Budgets = Budgets()
    warm_start: bool = False  # begin with what earlier studies left in the store
    prefer_stored: PositiveInt | None = None  # of this many suggestions take one whose pretraining is in the store
    pretrain: TunePretrain = TunePretrain()


class Report(Settings):
    rows: Names | None = None  # factors; default: all but the last
    columns: Names | None = None  # factors; default: the last
    metrics: Names = ("test/jaccard",)
    baseline: dict[str, str | bool | int | float] = {}
    published: Names | None = None  # keys of published tables, each of a metric of its own, shown beside ours
    differs: Names | None = None  # sentences: in what the study differs from the published one; []: in nothing known
    percent: bool = False
    margin: Annotated[float, Field(gt=0)] | None = None  # smaller differences to the baseline make none


class Published(Settings):
    """A paper's table, to stand beside ours: `[row levels..., column levels..., mean]` or `[..., [mean, std]]`."""

    values: tuple[tuple[str | float | bool | tuple[float, float | None], ...], ...]
    metric: str = "test/jaccard"
    percent: bool = False
    note: str = ""


class StageResources(Settings):
    """Resources of one stage run. With several workers each trains on its share of every batch (Ray Train)."""

    cpus: PositiveInt = 1  # of each worker; also the number of threads, which changes digits: in the fingerprint
    gpus: Annotated[float, Field(ge=0)] | None = None  # default: one where there are GPUs, none where there are not
    workers: PositiveInt = 1  # processes that run the stage together; they too change digits
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None  # in place of `gpus`; the same default
    min_workers: PositiveInt | None = None  # when workers are lost, go on with as few as these; default: replace them
    batch_norm: Literal["sync", "local"] = "sync"  # statistics of the whole batch, or of each worker's share
    activation_checkpointing: bool = False  # compute activations again in the backward pass: less memory, same digits

    @property
    def gpus_each(self) -> float | None:
        """GPUs of one worker; None: the default."""
        return self.gpus if self.gpus_per_worker is None else self.gpus_per_worker

    @property
    def worker_counts(self) -> range:
        """Number of workers that may come to run the stage."""
        return range(self.min_workers or self.workers, self.workers + 1)

    @model_validator(mode="after")
    def _whole(self) -> StageResources:
        if self.gpus is not None and (self.workers > 1 or self.gpus_per_worker is not None):
            raise ValueError("with several workers, give gpus_per_worker in place of gpus")
        if (each := self.gpus_each or 0.0) > 1 and each != int(each):
            raise ValueError(f"{each} GPUs: above 1 the number must be whole, since a process shares at most one GPU")
        if (self.min_workers or 1) > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        if self.min_workers is not None and self.batch_norm == "local":
            raise ValueError("min_workers needs batch_norm: sync; with local, fewer workers train something else")
        return self


class Resources(Settings):
    pretrain: StageResources = StageResources()
    finetune: StageResources = StageResources()
    probe: StageResources = StageResources()

    @model_validator(mode="after")
    def _trained(self) -> Resources:
        if self.probe.activation_checkpointing:
            raise ValueError("probe.activation_checkpointing has no effect: probes train no network; leave it out")
        return self


TAKEN = ("store", "cache")  # folders beside those of studies: finished stage runs, decoded images


def _own_folder(name: str) -> str:
    if name.lower() in TAKEN:
        raise ValueError(f"{name} is the folder that holds the {name.lower()} of all studies; choose another name")
    return name


class Header(Settings):
    """Study-level settings."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100), AfterValidator(_own_folder)]
    question: str = ""
    seeds: Seeds = Seeds()
    tune: Tune = Tune()
    report: Report = Report()
    resources: Resources = Resources()
    published: dict[str, Published] = {}  # by key, for report.published
    retries: NonNegativeInt = 2  # how often a crashed stage is tried again
    keep_states: bool | None = None  # keep what a longer training continues from; default: where lengths vary
    checkpoint_seconds: PositiveFloat = 60.0  # between two resumable states; more where writing one takes over 3 s
