"""Splits: which images of a data set are for training, validation and test."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pretune.search_spaces.schema.base import Settings, Share


def _fold(value: object) -> object:
    number, _, of = value.partition("/") if isinstance(value, str) else ("", "", "")
    if value is not None and not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) >= 2):
        raise ValueError("should be one of 1/k to k/k, of at least two folds: 2/5 is the second of five")
    return value


def _part(value: object) -> object:
    """A count or a share of the images; '10%' -> 0.1."""
    if isinstance(value, str) and value.strip().endswith("%"):
        with contextlib.suppress(ValueError):
            value = float(value.strip()[:-1]) / 100
    count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not (count or (isinstance(value, float) and 0 <= value < 1)):
        raise ValueError("should be a count of images (50) or a share below 1 (0.1, 10%)")
    return value


def _official_or_part(value: object) -> object:
    if isinstance(value, str) and not value.strip().endswith("%") and value != "official":
        raise ValueError("should be official, a count of images (50) or a share below 1 (0.1, 10%)")
    return value if value == "official" else _part(value)


def _strata(value: object) -> object:
    if isinstance(value, str) and value != "pixels":
        raise ValueError("should be true, false or pixels")
    return value


def _regular(value: object) -> object:
    try:
        return re.compile(value).pattern if isinstance(value, str) else value
    except re.error as error:
        raise ValueError(f"should be a regular expression ({error})") from None


class NamePattern(Settings):
    """Groups by a part of the images' names."""

    pattern: Annotated[str, BeforeValidator(_regular)]  # regular expression, found anywhere; its first ( ) is the group


class NameColumn(Settings):
    """Groups by a column of `split.file`."""

    column: str  # whose values name the groups


def undivided(value: object) -> object:
    """`none` in place of a split leaves all images for training."""
    return {"test": 0, "val": 0} if value == "none" else value


Group = Literal["parent"] | NamePattern | NameColumn


def _by_column(group: object) -> bool:
    return isinstance(group, NameColumn) or (isinstance(group, Mapping) and "column" in group)


class Split(Settings):
    """Division into training, validation and test images.

    Test is drawn once per study with `seed`; validation again for every replicate.

    `test: official` takes the data set's own test list. A float is a fraction of all images, an int a count.
    `fold: 2/5` takes the second of five equal parts as test, in place of `test`: k-fold as a factor.
    `val_folds: 5` cuts what is not test into five parts, in place of `val`; each replicate validates on the next one,
    so that five search seeds are a five-fold cross-validation. `val_fold: 2/5` takes the second for all replicates.
    `split: none` in place of the mapping is `{test: 0, val: 0}`: a pool without labels, used whole for pretraining.
    """

    test: Annotated[Literal["official"] | PositiveInt | Share, BeforeValidator(_official_or_part)] = 0.1
    val: Annotated[Literal["official"] | NonNegativeInt | Share, BeforeValidator(_official_or_part)] = 0.1
    seed: NonNegativeInt = 0
    fold: Annotated[str | None, BeforeValidator(_fold)] = None
    stratify: Annotated[bool | Literal["pixels"], BeforeValidator(_strata)] = (
        False  # test, val and label subsets hold each image class by its share; pixels: each mask class
    )
    val_folds: Annotated[int, Field(ge=2)] | None = None  # validation goes round this many equal parts, seed by seed
    val_fold: Annotated[str | None, BeforeValidator(_fold)] = None  # one of them
    group: Group | None = (
        None  # images of one group (a patient) are in one part: parent folder, {pattern: ...} or {column: ...}
    )
    file: str | None = None  # CSV or JSON that says which image is train, val or test; relative to --data if given

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        """A file decides what is test and validation, unless folds are cut or parts are given beside it."""
        if not isinstance(values, Mapping) or values.get("file") is None or _by_column(values.get("group")):
            return values
        test = {} if values.get("fold") else {"test": "official"}
        val = {} if values.get("fold") or values.get("val_folds") or values.get("val_fold") else {"val": "official"}
        return {**test, **val, **values}

    @model_validator(mode="after")
    def _one_test(self) -> Split:
        if self.fold is not None and self.test == "official":
            raise ValueError("fold: the official test list has no folds; leave out `test: official`")
        if self.val == "official" and (self.val_folds or self.val_fold):
            raise ValueError("val_folds: the official validation list has no folds; leave out `val: official`")
        if self.file and not (self.fold or _by_column(self.group)) and "official" not in (self.test, self.val):
            raise ValueError("file: says what is test and validation, and test and val say it too; leave these out")
        if isinstance(self.group, NameColumn) and self.file is None:
            raise ValueError(f"group: the column {self.group.column} is one of split.file, which is missing")
        return self

    @model_serializer(mode="wrap")
    def _with_the_draw(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Whoever names the test set also names how it is drawn: a stage's identity asks for `test` by name."""
        chosen: dict[str, Any] = handler(self)
        drawn: dict[str, Any] = {}
        for key in ("group", "file"):
            if getattr(self, key) is None:
                chosen.pop(key, None)
        if "test" in chosen:
            group = self.group.model_dump(mode="json") if isinstance(self.group, Settings) else self.group
            drawn |= {"fold": self.fold, "stratify": self.stratify or None, "group": group}
        if "val" in chosen:
            drawn |= {"val_folds": self.val_folds, "val_fold": self.val_fold}
        return chosen | {key: value for key, value in drawn.items() if value is not None}
