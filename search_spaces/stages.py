"""Stages: the unit that is scheduled, cached, retried and resumed, made of a configuration and a replicate.

What of them changes a result, and so names it, stands in `identities`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from pretune.search_spaces.identities import (
    StageInputs,
    Streams,
    finetune_identity,
    fingerprint,
    pair_identity,
    pretrain_identity,
    probe_identity,
    scores_test,
    workers_identity,
)
from pretune.search_spaces.schema import (
    CKA,
    AdamW,
    Augment,
    Configuration,
    Data,
    Finetune,
    Header,
    Model,
    Pretrain,
    Probe,
    Seeds,
    StageResources,
    Weights,
    meaning_of,
    ramps,
)
from pretune.search_spaces.words import stage_title

# Streams of one replicate that other code must not collide with start here: report seeds are 0, 1, 2, ...
FIRST_SEARCH_SEED = 1000
FIRST_SELECT_SEED = 1_000_000

Kind = Literal["pretrain", "finetune", "probe"]
Trained = TypeVar("Trained", Pretrain, Finetune)
DigestOf = Callable[[Data], str]


class Replicate(NamedTuple):
    """One seed of the study. `pretrain` and `finetune` differ only where seeds are nested."""

    seed: int
    pretrain: int
    finetune: int


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage run: everything it takes to do it, and the fingerprint of its result.

    A value that can be serialised (by pydantic, parents with it). Two stages are equal exactly if their fingerprints
    are.
    """

    kind: Kind
    name: str  # "pretrain", "pretrain.1" in a chain, "finetune", "probe:NAME"
    settings: Pretrain | Finetune | Probe
    model: Model
    data: Data
    digest: str  # of the data's content
    streams: Streams
    parent: Stage | None
    resources: StageResources
    on_test: bool  # whether the test set is measured
    fingerprint: str
    other: Stage | None = None  # the second parent, of a pairwise probe
    until: int | None = None  # stop after this many epochs of a longer training; None: train it whole
    series: str = ""  # equal for trainings of which a longer one may continue a shorter one; "" if none may
    reach: int = 0  # epochs trained, the place in the series
    keep_state: bool = False  # whether what a longer training continues from is kept
    seed_rank: int = 0  # of its report seed, from 0: lower ones run first; 0 in a search. In no fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and other.fingerprint == self.fingerprint

    @property
    def method(self) -> str:
        """The pretraining's method; "" for other stages."""
        return self.settings.method.name if isinstance(self.settings, Pretrain) else ""

    @property
    def title(self) -> str:
        """The stage's name for people."""
        return stage_title(self.name, self.method)

    @property
    def parents(self) -> tuple[Stage, ...]:
        """Stages that must be finished before: none, one, or the two of a pairwise probe."""
        return tuple(stage for stage in (self.parent, self.other) if stage is not None)

    def ancestors(self) -> list[Stage]:
        """Parents, the eldest first."""
        return [stage for parent in self.parents for stage in (*parent.ancestors(), parent)]


def stream_seed(stream: str, seed: int) -> int:
    """An unrelated 63-bit seed for each named stream of a replicate."""
    return int.from_bytes(hashlib.sha256(f"{stream}:{seed}".encode()).digest()[:8], "big") >> 1


def replicates(seeds: Seeds, phase: Literal["search", "select", "report"]) -> tuple[Replicate, ...]:
    """The replicates of a phase; nested seeds give `finetune` replicates for each of `pretrain` pretrainings."""
    nested = {"search": seeds.search, "select": seeds.select or seeds.search, "report": seeds.report}[phase]
    first = {"search": FIRST_SEARCH_SEED, "select": FIRST_SELECT_SEED, "report": 0}[phase]
    inner = nested.finetune
    return tuple(
        Replicate(first + p * inner + f, first + p, first + p * inner + f)
        for p in range(nested.pretrain)
        for f in range(inner)
    )


# ------------------------------------------------------------------------------------------ configuration -> stages


class Until(NamedTuple):
    """Train one part of a configuration, of a chain the last stage, for its first epochs only: a rung of a search."""

    part: Literal["pretrain", "finetune"]
    epochs: int


class _Drawn(NamedTuple):
    """One replicate of a configuration, of which all stages are made."""

    configuration: Configuration
    replicate: Replicate
    header: Header
    digest_of: DigestOf

    def streams(self, used: list[str], seed: int) -> Streams:
        return _streams(used, seed, self.replicate, self.header.seeds)

    def stage(
        self, kind: Kind, name: str, settings: Pretrain | Finetune | Probe, streams: Streams, resources: StageResources
    ) -> Stage:
        """A stage without parents, which `_fingerprinted` names."""
        data = self.configuration.data[settings.data]
        return Stage(
            kind=kind,
            name=name,
            settings=settings,
            model=self.configuration.model,
            data=data,
            digest=self.digest_of(data),
            streams=streams,
            parent=None,
            resources=resources,
            on_test=False,
            fingerprint="",
            seed_rank=self.replicate.seed if self.replicate.seed < FIRST_SEARCH_SEED else 0,
        )


def stages_of(
    configuration: Configuration,
    replicate: Replicate,
    header: Header,
    digest_of: DigestOf,
    on_test: bool,
    until: Until | None = None,
) -> dict[str, Stage]:
    """The stages of one replicate by name, parents before children; `digest_of` names a data set's content."""
    configuration = in_its_fold(configuration, replicate)
    drawn = _Drawn(configuration, replicate, header, digest_of)
    short = {until.part: until.epochs} if until else {}
    chain: list[Stage] = []
    if uses_pretraining(configuration):
        chain = pretrain_chain(configuration, replicate, header, digest_of, short.get("pretrain"))
    stages = {stage.name: stage for stage in chain}
    last = chain[-1] if chain else None
    if configuration.finetune is not None:
        finetune = _finetune_stage(drawn, configuration.finetune, last, on_test, short.get("finetune"))
        stages[finetune.name] = finetune
    if last is not None:
        probes = {name: probe for name, probe in configuration.probe.items() if not isinstance(probe, CKA)}
        for name in (name for name, probe in probes.items() if on_test or not scores_test(probe)):
            stages[f"probe:{name}"] = _probe_stage(drawn, name, last)
    return stages


def uses_pretraining(configuration: Configuration) -> bool:
    """Whether any stage starts from the pretraining, or the pretraining is all there is."""
    finetune, probes = configuration.finetune, configuration.probe.values()
    probed = any(not isinstance(probe, CKA) or probe.of == "pretrain" for probe in probes)
    return finetune is None or finetune.transfer != "none" or probed


def in_its_fold(configuration: Configuration, replicate: Replicate) -> Configuration:
    """Return this replicate's part of `val_folds` validation parts: the first seed takes the first."""
    folded = {name: data for name, data in configuration.data.items() if data.split.val_folds}
    if not folded:
        return configuration
    turned = {}
    for name, data in folded.items():
        fold = f"{replicate.pretrain % (data.split.val_folds or 1) + 1}/{data.split.val_folds}"
        split = {"val_fold": fold, "val_folds": None, "val": 1 / (data.split.val_folds or 1)}
        turned[name] = data.model_copy(update={"split": data.split.model_copy(update=split)})
    return configuration.model_copy(update={"data": configuration.data | turned})


def shortened(settings: Trained, until: int | None) -> tuple[Trained, int | None]:
    """Training for the first `until` epochs: the settings of a shorter training where that is the same thing.

    One that ends within the warm-up is a part of a longer training alone.
    """
    if until is None or settings.epochs is None or until >= settings.epochs:
        return settings, None
    if depends_on_length(settings) is None and until > settings.schedule.warmup_epochs:
        return settings.model_copy(update={"epochs": until}), None
    return settings, until


def series_of(settings: Pretrain | Finetune, identity: Mapping[str, Any]) -> str:
    """Names the trainings that are one another's beginnings: those that differ in epochs alone where nothing depends
    on the total length, else the epochs of this one training. Only whole epochs are ever continued."""
    if settings.epochs is None or (isinstance(settings, Finetune) and settings.patience is not None):
        return ""
    key = dict(identity) | {"series": True}
    if depends_on_length(settings) is None:
        key["settings"] = {name: value for name, value in identity["settings"].items() if name != "epochs"}
    return fingerprint(key)


def depends_on_length(settings: Pretrain | Finetune) -> str | None:
    """Name what in a training depends on its total length, so that no longer one continues it; None if nothing."""
    if settings.schedule.name == "cosine":
        return "its cosine schedule"
    optimizer = settings.optimizer
    if isinstance(optimizer, AdamW) and optimizer.weight_decay_end not in (None, optimizer.weight_decay):
        return "its weight decay's schedule"
    if isinstance(settings, Pretrain) and ramps(settings.method):
        return f"the momentum schedule of {settings.method.name}"
    return None


def pretrain_chain(
    configuration: Configuration,
    replicate: Replicate,
    header: Header,
    digest_of: DigestOf,
    until: int | None = None,
) -> list[Stage]:
    """The pretraining stages, each starting from the one before; `method: none` leaves a stage out."""
    drawn = _Drawn(configuration, replicate, header, digest_of)
    chain: list[Stage] = []
    for settings in configuration.pretrain:
        if settings.method.name == "none":
            continue
        name = f"pretrain.{len(chain)}" if len(configuration.pretrain) > 1 else "pretrain"
        parent, short = chain[-1] if chain else None, until if settings is configuration.pretrain[-1] else None
        chain.append(_pretrain_stage(drawn, settings, name, parent, short))
    return chain


def _pretrain_stage(drawn: _Drawn, settings: Pretrain, name: str, parent: Stage | None, until: int | None) -> Stage:
    if settings.stop_after is not None:  # the same thing as a rung of a search, and the same stage
        until = min(settings.stop_after, until or settings.stop_after)
        settings = settings.model_copy(update={"stop_after": None})
    keep = bool(drawn.header.keep_states) or until is not None
    settings, until = shortened(settings, until)
    resources = drawn.header.resources.pretrain
    if isinstance(settings.method, Weights):  # read, not trained
        resources = StageResources(gpus=0)
    used = ["init", "order", "augmentation"] + (["split"] if settings.sees == "train" else [])
    streams = drawn.streams(used, drawn.replicate.pretrain)
    stage = drawn.stage("pretrain", name, settings, streams, resources)
    return _fingerprinted(replace(stage, parent=parent, until=until, keep_state=keep))


def changes_images(augment: Augment) -> bool:
    """Whether images are augmented at all, so that the stream of that name is used."""
    default = Augment()
    return meaning_of(augment, augment.model_dump()) != meaning_of(default, default.model_dump())


def _finetune_stage(
    drawn: _Drawn, settings: Finetune, pretrained: Stage | None, on_test: bool, until: int | None
) -> Stage:
    keep = bool(drawn.header.keep_states) or until is not None
    settings, until = shortened(settings, until)
    parent = pretrained if settings.transfer != "none" else None
    augmented = changes_images(settings.augment) or settings.crops is not None
    used = ["init", "order", "labels", "split"] + (["augmentation"] if augmented else [])
    streams = drawn.streams(used, drawn.replicate.finetune)
    stage = drawn.stage("finetune", "finetune", settings, streams, drawn.header.resources.finetune)
    return _fingerprinted(replace(stage, parent=parent, on_test=on_test, until=until, keep_state=keep))


def _probe_stage(drawn: _Drawn, name: str, parent: Stage) -> Stage:
    settings = drawn.configuration.probe[name]
    # the pretraining's own split: on its data set, a probe is scored on images that it did not see
    on_test = scores_test(settings)
    streams = drawn.streams([] if on_test else ["split"], drawn.replicate.pretrain)
    stage = drawn.stage("probe", f"probe:{name}", settings, streams, drawn.header.resources.probe)
    return _fingerprinted(replace(stage, parent=parent, on_test=on_test))


def pair_stage(
    configuration: Configuration,
    name: str,
    replicate: Replicate,
    header: Header,
    digest_of: DigestOf,
    parents: tuple[Stage, Stage],
) -> Stage:
    """The pairwise probe `name` of two encoders of one replicate. It is set by the first one's configuration."""
    settings, drawn = configuration.probe[name], _Drawn(configuration, replicate, header, digest_of)
    assert isinstance(settings, CKA)
    streams = drawn.streams(["split"] if settings.images == "val" else [], replicate.pretrain)
    stage = drawn.stage("probe", f"probe:{name}", settings, streams, header.resources.probe)
    return _fingerprinted(replace(stage, parent=parents[0], other=parents[1]))


def _fingerprinted(stage: Stage) -> Stage:
    """The stage, named by all that changes its digits: its identity, its workers and its last epoch."""
    identity = _identity_of(stage) | workers_identity(stage.resources)
    trained = stage.settings if isinstance(stage.settings, Pretrain | Finetune) else None
    return replace(
        stage,
        fingerprint=fingerprint(identity if stage.until is None else identity | {"until": stage.until}),
        series=series_of(trained, identity) if trained else "",
        reach=(stage.until or trained.epochs or 0) if trained else 0,
    )


def _identity_of(stage: Stage) -> dict[str, Any]:
    inputs = StageInputs(stage.model, stage.data, stage.digest, stage.streams, stage.resources.cpus)
    settings, parent = stage.settings, stage.parent
    if isinstance(settings, Pretrain):
        return pretrain_identity(settings, inputs, parent.fingerprint if parent else None)
    if isinstance(settings, Finetune):
        return finetune_identity(settings, inputs, parent.fingerprint if parent else None, stage.on_test)
    assert parent is not None
    if stage.other is None:
        return probe_identity(settings, inputs, parent.fingerprint)
    assert isinstance(settings, CKA)
    keys = parent.fingerprint, stage.other.fingerprint
    return pair_identity(settings, inputs, (parent.model, stage.other.model), keys)


def encoder_stage(stages: Mapping[str, Stage], of: Literal["pretrain", "finetune"]) -> Stage | None:
    """The stage whose encoder a pairwise probe compares: the last of the pretraining, or the fine-tuning."""
    return next((stage for stage in reversed(list(stages.values())) if stage.kind == of), None)


def split_seeds(replicate: Replicate, seeds: Seeds) -> tuple[int, int]:
    """Seeds by which a fine-tuning splits its images, and chooses those whose masks it uses."""
    drawn = _streams(["split", "labels"], replicate.finetune, replicate, seeds)
    return drawn["split"], drawn["labels"]


def _streams(used: list[str], seed: int, replicate: Replicate, seeds: Seeds) -> Streams:
    """`split` follows the pretraining's seed, so that no nested fine-tuning validates on what pretraining saw."""
    held: dict[str, int] = {str(name): value for name, value in seeds.hold.items()}
    owner = dict.fromkeys(used, seed) | {"split": replicate.pretrain}
    return {name: stream_seed(name, held.get("labels" if name == "split" else name, owner[name])) for name in used}
