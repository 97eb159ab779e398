"""Facts of a study's data for its plan: images of each part of the split, usable pairs, and what the masks hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretune.data.preflight import GlanceOf
from pretune.data.requirements import FactsOf, is_at_hand
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import Replicate, in_its_fold
from pretune.search_spaces.words import counted
from pretune.trainables.data.errors import laid_over_black


@dataclass(frozen=True)
class DataFacts:
    """Facts of one data set of a study, as far as they are known."""

    name: str  # in the study
    images: int | None
    train: int | None  # of the first validation fold where there are several
    val: int | None
    test: int | None
    looked_at: int = 0  # pairs of image and mask
    usable: int = 0  # of those
    shares: dict[str, float] | None = None  # class -> share of the pixels of these masks, `ignored` last
    absent: tuple[str, ...] = ()  # classes in none of these masks
    problems: tuple[str, ...] = ()  # why pairs cannot be used
    refused: tuple[str, ...] = ()  # under `on_error: fail` these, and what names alone show: a run stops for them
    transparent: int = 0  # images of these pairs of which part is laid over black

    def sentences(self) -> Iterator[str]:
        """For people: counts, shares of pixels, and what is doubtful."""
        if self.images is None:
            return
        parts = f" ({self.train} train, {self.val} validation, {self.test} test)" if self.train is not None else ""
        yield f"data {self.name}: {counted(self.images, 'image')}{parts}"
        if not self.looked_at:
            return
        of = "all" if self.looked_at == self.images else f"{self.looked_at} of {self.images:,}"
        shares = ", ".join(f"{name} {share:.1%}" for name, share in (self.shares or {}).items())
        yield f"data {self.name}: checked {of} pairs of image and mask, {self.usable} usable; share of pixels: {shares}"
        if self.absent:
            yield f"note: data {self.name}: no checked mask contains {', '.join(self.absent)}"
        if self.problems and not self.refused:
            bad = f"{self.looked_at - self.usable} of {counted(self.looked_at, 'checked pair')}"
            yield f"note: data {self.name}: {bad} cannot be used and will be left out, for example {self.problems[0]}"
        if self.transparent:
            yield f"note: data {self.name}: of the checked images, {laid_over_black(self.transparent)}"

    def refusal(self) -> str:
        """Say why `pretune run` will stop; "" where nothing is known that stops it."""
        if not self.refused:
            return ""
        many = counted(len(self.refused), "file")
        least = "" if self.looked_at in (0, self.images) else "at least "
        example = ", for example" if least or len(self.refused) > 1 else ":"
        them = "the file" if example == ":" else "such files"
        return (
            f"data {self.name}: {least}{many} cannot be used{example} {self.refused[0]}. `pretune run` will stop. "
            f"Repair or remove {them}, or set data.{self.name}.on_error: skip (`pretune data check` lists all)"
        )


def data_facts(study: Study, facts_of: FactsOf, glance_of: GlanceOf, data_root: Path | None) -> list[DataFacts]:
    """One row for each data set; several where a factor changes it. Raises DataError where no pair can be used."""
    found: dict[tuple[str, schema.Data], DataFacts] = {}
    for cell in study.cells:
        configuration = cell.configuration()
        folded = in_its_fold(configuration, Replicate(0, 0, 0)).data
        for name, data in configuration.data.items():
            if (name, data) not in found:
                found[name, data] = _facts(name, data, folded[name], facts_of, glance_of, data_root)
    return list(found.values())


def _facts(
    name: str, data: schema.Data, folded: schema.Data, facts_of: FactsOf, glance_of: GlanceOf, data_root: Path | None
) -> DataFacts:
    from pretune.trainables.data.checks.contents import contents
    from pretune.trainables.data.sets.table import GENERATED, list_files

    facts = facts_of(data)
    sizes = facts.sizes(folded.split)[0]
    train, val, test = (None, None, None) if sizes is None else sizes
    here = is_at_hand(data, data_root)
    listing = list_files(data, data_root) if here and not isinstance(data, GENERATED) else None
    by_name = listing.problems if listing is not None and data.on_error == "fail" else ()
    seen = glance_of(data) if here else None
    if seen is None or not seen.classes:
        return DataFacts(name, facts.images, train, val, test, refused=by_name)
    held = contents(data, seen, listing)
    refused = (*by_name, *held.problems) if data.on_error == "fail" else ()
    return DataFacts(
        name, facts.images, train, val, test, held.looked_at, held.usable, held.shares, held.absent, held.problems,
        refused, held.transparent,
    )  # fmt: skip
