"""Rules between crops, sliding windows and the resolution of the cache: training and test see one scale."""

from __future__ import annotations

from collections.abc import Iterator

from pretune.search_spaces.document import Locations, Problem
from pretune.search_spaces.schema import Configuration, slices_of


def check_windows(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    finetune = settings.finetune
    data = None if finetune is None else settings.data.get(finetune.data)
    if finetune is None or data is None or (finetune.crops is None and finetune.evaluate is None):
        return
    keys = [key for key in ("crops", "evaluate") if getattr(finetune, key) is not None]
    asked, path, one = " and ".join(keys), ("finetune", keys[0]), len(keys) == 1
    size, cached, tiled = finetune.size, data.cache_size, data.fit == "tile"
    if slices_of(data) is not None:
        yield locations.problem(path, f"volumes are taken whole, without {asked}", "leave it out")
    elif size > cached:
        what = f"{asked}: squares of finetune.size ({size} px) do not fit into images that are cached at {cached} px"
        yield locations.problem(path, what, f"set finetune.size to {cached} or less, or cache_size to {size} or more")
    elif size == cached and not tiled:
        what = f"{asked}: without effect, as finetune.size takes the images, cached at {cached} px, whole"
        yield locations.problem(path, what, f"set finetune.size below {cached}, or data.{finetune.data}.fit: tile")
    elif size < cached and one:
        missing = "evaluate" if asked == "crops" else "crops"
        does = "test images would be shrunk" if missing == "evaluate" else "training images would be shrunk"
        what = f"{asked} keeps the resolution of the cache, and without {missing} {does} to finetune.size ({size} px)"
        fix = "{overlap: 0.5}" if missing == "evaluate" else "{foreground: 0.33}"
        yield locations.problem(path, what, f"add finetune.{missing}: {fix}")
    if finetune.evaluate is not None and finetune.test_sizes:
        what = "sliding windows score at the resolution of the cache, and test_sizes at others"
        yield locations.problem(("finetune", "test_sizes"), what, "leave one of them out")
