"""Facts of a study's data for its plan: images of each part of the split, usable pairs, and what the masks hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pretune.data.preflight import GlanceOf
from pretune.data.requirements import FactsOf, is_at_hand, without_folds
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import Replicate, in_its_fold
from pretune.search_spaces.words import counted
from pretune.trainables.data.errors import laid_over_black

if TYPE_CHECKING:
    from pretune.trainables.data.checks.requirements import Facts


@dataclass(frozen=True)
class DataFacts:
    """Facts of one data set of a study, as far as they are known."""

    name: str  # in the study
    images: int | None  # without those that are known to be of no use
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
    listed: int | None = None  # images before any is found to be of no use

    def sentences(self) -> Iterator[str]:
        """For people: counts, shares of pixels, and what is doubtful."""
        if self.images is None:
            return
        parts = f" ({self.train} train, {self.val} validation, {self.test} test)" if self.train is not None else ""
        listed = self.images if self.listed is None else self.listed
        yield f"data {self.name}: {counted(self.images, 'usable image' if self.images < listed else 'image')}{parts}"
        if not self.looked_at:
            return
        whole = self.looked_at in (self.images, listed)
        of = f"{listed:,}" if whole else f"{self.looked_at} checked"
        rest = "" if whole else f" ({listed:,} in all)"
        shares = ", ".join(f"{name} {share:.1%}" for name, share in (self.shares or {}).items())
        pairs = f"{self.usable} of {of} pairs of image and mask are usable{rest}"
        yield f"data {self.name}: {pairs}; share of pixels: {shares}"
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


def usable_facts(facts_of: FactsOf, glance_of: GlanceOf, data_root: Path | None) -> FactsOf:
    """The facts without the images that a run will exclude, where all masks are looked at; else those of `facts_of`."""
    from pretune.trainables.data.checks.contents import SAMPLE
    from pretune.trainables.data.checks.requirements import facts_of_images, facts_of_listing
    from pretune.trainables.data.sets.table import GENERATED, list_files

    @functools.cache
    def facts(data: schema.Data) -> Facts:
        seen = glance_of(data) if is_at_hand(data, data_root) else None
        if seen is not None and seen.opened is not None:
            return facts_of_images(seen.opened)
        if seen is None or data.on_error == "fail" or seen.images > SAMPLE or isinstance(data, GENERATED):
            return facts_of(data)
        listing = list_files(data, data_root)
        usable = [entry for row, entry in enumerate(listing.entries) if not seen.look(row).problems]
        return facts_of_listing(data, replace(listing, entries=usable))

    return lambda data: facts(without_folds(data))


def _facts(
    name: str, data: schema.Data, folded: schema.Data, facts_of: FactsOf, glance_of: GlanceOf, data_root: Path | None
) -> DataFacts:
    from pretune.trainables.data.checks.contents import contents
    from pretune.trainables.data.sets.table import GENERATED, list_files

    here, listed = is_at_hand(data, data_root), facts_of(data).images
    listing = list_files(data, data_root) if here and not isinstance(data, GENERATED) else None
    by_name = listing.problems if listing is not None and data.on_error == "fail" else ()
    seen = glance_of(data) if here else None
    held = None if seen is None or not seen.classes else contents(data, seen, listing)
    facts = usable_facts(facts_of, glance_of, data_root)(data)
    train, val, test = facts.sizes(folded.split)[0] or (None, None, None)
    if held is None:
        return DataFacts(name, facts.images, train, val, test, refused=by_name, listed=listed)
    refused = (*by_name, *held.problems) if data.on_error == "fail" else ()
    return DataFacts(
        name, facts.images, train, val, test, held.looked_at, held.usable, held.shares, held.absent, held.problems,
        refused, held.transparent, listed,
    )  # fmt: skip
