"""Identity of a stage: all that its result depends on, as plain data, and the fingerprint made of it.

A fingerprint covers the resolved settings that a stage depends on, the seed streams it uses, its parent's fingerprint
if something is transferred from it, the content of the data, the recipe's version and whatever changes digits; and
nothing else: no names, comments, key order, paths or hosts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pretune.search_spaces.schema import (
    CKA,
    KNN,
    KNN_EXACT_FROM,
    MODEL_FACTS,
    SINKHORN_EXACT_FROM,
    Data,
    Finetune,
    Model,
    Pretrain,
    Probe,
    StageResources,
    SwAV,
    Weights,
    meaning_of,
)

Streams = dict[str, int]

# Raise a stage's number whenever the same settings would give other digits than before.
RECIPE = {"pretrain": 2, "finetune": 2, "probe": 2}
CKA_RECIPE = 3  # of pairwise probes alone: their batches are drawn at random now


def pretrain_recipe(settings: Pretrain) -> int:
    """One higher where digits changed for some settings alone: losses stay in float32 under bfloat16 now, and a frozen
    last layer's gradient no longer counts in the norm that is clipped."""
    frozen_counted = settings.clip_norm is not None and settings.method.facts.freezes_last_layer
    method, recipe = settings.method, RECIPE["pretrain"]
    recipe += int(settings.precision == "bfloat16" or frozen_counted)
    assignments_were_zero = isinstance(method, SwAV) and method.epsilon < SINKHORN_EXACT_FROM
    return recipe + 2 * int(assignments_were_zero)


def finetune_recipe(settings: Finetune, data: Data) -> int:
    """One higher where tiles were scored as images of their own by scores that need whole ones."""
    of_images = settings.boundary_tolerance is not None or settings.threshold_scores
    return RECIPE["finetune"] + int(of_images and data.fit == "tile")


def probe_recipe(settings: Probe) -> int:
    """One higher where the votes of a kNN were inf, or all 0, in float32."""
    return RECIPE["probe"] + int(isinstance(settings, KNN) and settings.temperature < KNN_EXACT_FROM)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON form: sorted keys, no blanks, floats by their shortest exact notation."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def settings_that_reach(model: Mapping[str, Any], decoder: bool) -> dict[str, Any]:
    """The settings of a model that reach a pretraining: all where its method trains a decoder, else the encoder's.

    The one rule by which fingerprints are made and by which cells share a search. Both ResNet models have one encoder.

    Args:
        model: settings as plain data, defaults filled in.
    """
    if decoder:
        return dict(model)
    if model["name"] in ("resnet-unet", "resnet-head"):
        encoder = {"name": "resnet", "depth": model["depth"], "stem": model.get("stem", "imagenet")}
        return encoder | {key: model[key] for key in ("channels",) if key in model}
    reached_not = MODEL_FACTS[model["name"]].decoder_settings
    return {key: value for key, value in model.items() if key not in reached_not}


def encoder_of(model: Model) -> dict[str, Any]:
    """The part of a model that an encoder-only method trains: neither skips nor the rest of a decoder reach it."""
    return settings_that_reach(model.model_dump(mode="json"), decoder=False)


def trained_part(settings: Pretrain, model: Model) -> dict[str, Any]:
    """The part of a model that a pretraining depends on."""
    return settings_that_reach(model.model_dump(mode="json"), settings.method.facts.decoder)


def data_identity(data: Data, digest: str, role: str) -> dict[str, Any]:
    """Return what a stage depends on in a data set: its content, and the parts of the split that reach it."""
    roles: dict[str, set[str]] = {"train": {"test", "val", "seed"}, "train+val": {"test", "seed"}, "all": set()}
    parts = roles[role]
    identity: dict[str, Any] = {"digest": digest, "split": data.split.model_dump(mode="json", include=parts)}
    if data.split.stratify and {"fold", "val_fold"} & set(identity["split"]):
        identity["folds"] = 2  # of the rule that cuts them: the first one lost the shares of the classes
    return identity | ({} if data.shuffle_window is None else {"shuffle_window": data.shuffle_window})  # sets the order


class StageInputs(NamedTuple):
    """Inputs of a stage beside its settings and its parents."""

    model: Model
    data: Data
    digest: str  # of the data's content
    streams: Streams
    threads: int


def pretrain_identity(settings: Pretrain, inputs: StageInputs, parent: str | None) -> dict[str, Any]:
    if isinstance(settings.method, Weights):
        return weights_identity(settings.method, inputs.model)
    return {
        "recipe": ["pretrain", pretrain_recipe(settings)],
        "settings": trained_settings(settings),
        "model": trained_part(settings, inputs.model),
        "data": data_identity(inputs.data, inputs.digest, settings.sees),
        "streams": inputs.streams,
        "parent": parent,
        "threads": inputs.threads,
    }


def trained_settings(settings: Pretrain | Finetune) -> dict[str, Any]:
    """Return the resources that change digits. `compile` counts where it is on: older stage runs stay valid."""
    ignored = {"data"} if settings.compile else {"data", "compile"}
    return meaning_of(settings, settings.model_dump(mode="json", exclude=ignored, exclude_none=True))


def workers_identity(resources: StageResources) -> dict[str, Any]:
    """Several workers add up in another order; one leaves the fingerprint as it is."""
    return {} if resources.workers == 1 else {"workers": resources.workers, "batch_norm": resources.batch_norm}


def weights_identity(method: Weights, model: Model) -> dict[str, Any]:
    """Ready-made weights depend on no data and no seed; a file counts by what it holds, not by where it is."""
    source = method.source
    if not source.startswith(("torchvision:", "timm:", "package:")):
        with open(source, "rb") as file:
            source = hashlib.file_digest(file, "sha256").hexdigest()
    recipe = ["weights", RECIPE["pretrain"]]
    return {"recipe": recipe, "source": source, "inputs": method.inputs, "model": encoder_of(model)}


def finetune_identity(settings: Finetune, inputs: StageInputs, parent: str | None, on_test: bool) -> dict[str, Any]:
    body = trained_settings(settings)
    return {
        "recipe": ["finetune", finetune_recipe(settings, inputs.data)],
        "settings": body if parent else body | {"transfer": "none"},
        "model": inputs.model.model_dump(mode="json"),
        "data": data_identity(inputs.data, inputs.digest, "train"),
        "streams": inputs.streams,
        "parent": parent,
        "threads": inputs.threads,
        "on_test": on_test,
    }


def probe_identity(settings: Probe, inputs: StageInputs, parent: str) -> dict[str, Any]:
    return {
        "recipe": ["probe", probe_recipe(settings)],
        "settings": settings.model_dump(mode="json", exclude={"data"}, exclude_none=True),
        "model": encoder_of(inputs.model),
        "data": data_identity(inputs.data, inputs.digest, "train+val" if scores_test(settings) else "train"),
        "streams": inputs.streams,
        "parent": parent,
        "threads": inputs.threads,
    }


def pair_identity(
    settings: CKA, inputs: StageInputs, models: tuple[Model, Model], parents: tuple[str, str]
) -> dict[str, Any]:
    return {
        "recipe": ["probe", CKA_RECIPE],
        "settings": settings.model_dump(mode="json", exclude={"data", "between"}),
        "model": [encoder_of(model) for model in models],
        "data": data_identity(inputs.data, inputs.digest, "train" if settings.images == "val" else "all"),
        "streams": inputs.streams,
        "parent": list(parents),
        "threads": inputs.threads,
    }


def scores_test(probe: Probe) -> bool:
    """Whether a probe is scored on the test set, which the search never sees."""
    return getattr(probe, "on", None) == "test"
