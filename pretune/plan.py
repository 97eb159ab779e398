"""Counts of `pretune plan`, from the study's own programs run with invented outcomes."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from pretune.analysis.statistics import detectable_difference
from pretune.data.backbones import check_backbones
from pretune.data.facts import DataFacts
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.search import program
from pretune.search.optuna_study import open_storage
from pretune.search.replicates import Run, stages_in
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import DigestOf, Stage, depends_on_length, replicates


@dataclass(frozen=True)
class Plan:
    """Counts of a study, and what they will cost where a calibration was asked for."""

    study: str
    cells: int
    configurations: int
    replicates: int  # of the confirm phase
    stage_runs: int
    stage_runs_without_sharing: int
    by_stage: dict[str, int]  # by title of the stage
    stored: int | None  # stage runs that the store already holds; None where it was not asked
    continuing: str  # what trainings of several lengths cost together, and why some cannot be continued
    seconds: float | None  # of work on one worker
    gpu_hours: float | None
    disk_bytes: int | None  # weights, and states that are kept
    warnings: tuple[str, ...]
    data: tuple[DataFacts, ...] = ()
    seconds_by_part: Mapping[str, float] = field(default_factory=dict)  # `seconds`, by what takes them
    kept_bytes: int = 0  # of `disk_bytes` the states from which a longer training goes on
    state_bytes: int = 0  # of the largest state, which a stage run has while it runs
    peak_bytes: Mapping[str, int] = field(default_factory=dict)  # of a training step by kind of stage, with the costs
    checkpointed_bytes: Mapping[str, int] = field(default_factory=dict)  # of it with activation checkpointing
    scale: str = ""  # of the study's scales the one that is planned


def make_plan(
    study: Study,
    digest_of: DigestOf,
    find: Callable[[str], Outcome | None] | None = None,
    searches: BaseStorage | None = None,
) -> tuple[Plan, list[Stage]]:
    """The plan without costs, and the distinct stages behind it. Raises ModelError for an unknown backbone.

    Args:
        find: what the store holds, by fingerprint.
        searches: what an earlier run of the study asked and was told; written to, so a copy.
    """
    check_backbones(study)
    run, stages = simulate(study, digest_of, find, searches)
    without = (
        sum(len(planned.stages) for planned in run.replicates if not planned.pair)
        + sum(planned.pair for planned in run.replicates) // 2
    )
    counts = Counter(stage.title for stage in stages)
    configurations = {(planned.cell.label, planned.configuration) for planned in run.replicates}
    plan = Plan(
        study=study.name,
        cells=len(study.cells),
        configurations=len(configurations),
        replicates=sum(planned.phase == "confirm" and not planned.pair for planned in run.replicates),
        stage_runs=len(stages),
        stage_runs_without_sharing=without,
        by_stage=dict(counts),
        stored=sum(find(stage.fingerprint) is not None for stage in stages) if find else None,
        continuing=continuing_sentence(stages),
        seconds=None,
        gpu_hours=None,
        disk_bytes=None,
        warnings=(*study.warnings, *at_most(study), *dict.fromkeys(run.notes), *few_seeds(study)),
        scale=study.scale,
    )
    return plan, stages


def simulate(
    study: Study,
    digest_of: DigestOf,
    find: Callable[[str], Outcome | None] | None = None,
    searches: BaseStorage | None = None,
) -> tuple[Run, list[Stage]]:
    """Run the study's programs with every stage that is not in the store finished at once; all of its stages.

    Searches go on from what was asked before, and then ask a random sampler, or the study's own where it only lays
    points out. Nobody leaves a race by invented scores: what a race saves is not known before.
    """
    tune = study.header.tune
    run = Run(study, digest_of, searches or optuna.storages.InMemoryStorage())
    run.suggest_by = tune.model_copy(update={"sampler": tune.sampler if tune.sampler in ("grid", "qmc") else "random"})
    scheduler = Scheduler(find or (lambda fingerprint: None), retries=0)
    scheduler.start(program.start(run))
    while (stage := scheduler.take()) is not None:
        scheduler.complete(stage, invented(stage, study.header))
    return run, list(stages_in(run.replicates).values())


@contextlib.contextmanager
def searches_before(out: Path) -> Iterator[BaseStorage | None]:
    """A copy of what the searches of a study's folder asked and were told; None where it has no journal."""
    journal = out / "optuna.journal"
    if not journal.exists():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copyfile(journal, Path(folder) / journal.name)
        yield open_storage(copy)


def invented(stage: Stage, header: schema.Header) -> Outcome:
    """A made-up outcome, a function of the fingerprint, that meets every constraint; in a race equal for all."""
    tune = header.tune
    value = int.from_bytes(hashlib.sha256(stage.fingerprint.encode()).digest()[:4], "big") / 2**32
    if tune.racing:
        value = 0.5
    metrics = dict.fromkeys((tune.target, "val/pretext_loss", "probe/accuracy", *tune.also), value) | tune.constraints
    return Outcome("finished", metrics, costs=metrics)


def continuing_sentence(stages: Sequence[Stage]) -> str:
    """'Longer trainings continue shorter ones: 200 epochs instead of 350'; "" where no lengths differ.

    The sequence is that of a plan, in which rungs and lengths are stage runs of their own.
    """
    series: dict[str, list[int]] = {}
    alike: dict[str, set[int]] = {}  # trainings that differ in their length alone, whether or not that may be shared
    blocked = ""
    for stage in stages:
        if not isinstance(stage.settings, schema.Pretrain | schema.Finetune) or not stage.reach:
            continue
        if stage.series:
            series.setdefault(stage.series, []).append(stage.reach)
        body = stage.settings.model_dump_json(exclude={"epochs"})
        lengths = alike.setdefault(
            f"{stage.name} {stage.parent and stage.parent.fingerprint} {stage.streams} {body}", set()
        )
        lengths.add(stage.settings.epochs or 0)
        if len(lengths) > 1 and (why := depends_on_length(stage.settings)) is not None:
            blocked = f"each length of {stage.name} is trained separately, because {why} depends on the length"
    shared = [reaches for reaches in series.values() if len(set(reaches)) > 1]
    if not shared:
        return blocked
    trained, apart = sum(max(reaches) for reaches in shared), sum(sum(set(reaches)) for reaches in shared)
    said = f"longer trainings continue shorter ones: {trained} epochs instead of {apart}"
    return said + (f"; {blocked}" if blocked else "")


def at_most(study: Study) -> tuple[str, ...]:
    """Say which settings may make the study smaller than planned."""
    tune = study.header.tune
    median = tune.rungs is not None and tune.rungs.rule == "median"
    ends = [
        ("tune.racing", tune.racing is not None),
        ("the median rule of tune.rungs", median),
        ("a budget in hours", any(b.hours or b.gpu_hours for b in (tune.budget.study, tune.budget.cell))),
    ]
    named = [name for name, there in ends if there]
    return (f"this is the maximum number of stage runs: {' and '.join(named)} may stop some earlier",) if named else ()


def few_seeds(study: Study) -> tuple[str, ...]:
    """Say where n is too small for the comparison that the study declares."""
    n = len({replicate.pretrain for replicate in replicates(study.header.seeds, "report")})
    if n < 2:
        return (
            "one report seed: there will be no standard deviation and no comparison; set seeds.report to 3 or more",
        )
    if not study.header.report.baseline:
        return ()
    smallest = f"{detectable_difference(n, 1.0):.1f}"
    if n >= 6:
        return ()
    return (
        f"{n} seeds can show only large differences to the baseline: above about {smallest} times their standard "
        "deviation over seeds (power 0.8). For more seeds: --set seeds.report=6",
    )
