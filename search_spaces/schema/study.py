"""What is about the study and not about a stage: seeds, tuning, report, resources."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
)

from search_spaces.schema.base import Settings


class PhaseSeeds(Settings):
    """Nested seeds: `finetune` fine-tunings for each of `pretrain` pretrainings."""

    pretrain: PositiveInt
    finetune: PositiveInt


def _phase_seeds(value: object) -> object:
    """`3` means three replicates, each with a pretraining of its own."""
    return {"pretrain": value, "finetune": 1} if isinstance(value, int) else value


PerPhase = Annotated[PhaseSeeds, BeforeValidator(_phase_seeds)]


class Seeds(Settings):
    """How many replicates; search and report seeds never overlap. `hold` fixes a stream at one seed."""

    search: PerPhase = PhaseSeeds(pretrain=1, finetune=1)
    report: PerPhase = PhaseSeeds(pretrain=3, finetune=1)
    hold: dict[Literal["init", "order", "augmentation", "labels"], NonNegativeInt] = {}


class TunePretrain(Settings):
    """How a pretraining's own ranges are tuned: by validation scores of cells, its pretext loss, or a probe."""

    trials: PositiveInt | None = None  # default: tune.trials
    target: str = "cells"  # cells | pretext | probe.NAME
    cells: dict[str, str | bool | int | float] = {}  # which cells score it; default: all that share it


class Tune(Settings):
    sampler: Literal["tpe", "random"] = "tpe"
    trials: PositiveInt = 20
    batch: PositiveInt = 4  # asked together and told together, so that a search does not depend on timing
    startup: NonNegativeInt = 8  # first trials drawn at random
    target: str = "val/jaccard"
    direction: Literal["maximize", "minimize"] | None = None  # default: minimize a loss, maximize all else
    seed: NonNegativeInt = 0
    pretrain: TunePretrain = TunePretrain()


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Report(Settings):
    rows: Names | None = None  # factors; default: all but the last
    columns: Names | None = None  # factors; default: the last
    metrics: Names = ("test/jaccard",)
    baseline: dict[str, str | bool | int | float] = {}
    published: str | None = None  # key of a published table, shown beside ours
    percent: bool = False


class Published(Settings):
    """A paper's table, to stand beside ours: `[row levels..., column levels..., mean]` or `[..., [mean, std]]`."""

    values: tuple[tuple[str | float | bool | tuple[float, float | None], ...], ...]
    metric: str = "test/jaccard"
    percent: bool = False
    note: str = ""


class StageResources(Settings):
    cpus: PositiveInt = 1  # also the number of threads: it changes digits, so it is part of the fingerprint
    gpus: Annotated[float, Field(ge=0)] | None = None  # default: one where there are GPUs, none where there are not


class Resources(Settings):
    pretrain: StageResources = StageResources()
    finetune: StageResources = StageResources()
    probe: StageResources = StageResources()


class Header(Settings):
    """What is about the study and not about a stage."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    question: str = ""
    seeds: Seeds = Seeds()
    tune: Tune = Tune()
    report: Report = Report()
    resources: Resources = Resources()
    published: dict[str, Published] = {}  # by key, for report.published
    retries: NonNegativeInt = 2  # how often a crashed stage is tried again
