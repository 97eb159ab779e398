"""Images with masks: in folders, paired by the rule that pairs most of them, or with a COCO JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretune.data.survey.layouts import advice, what_it_is
from pretune.data.survey.masks import Meaning, meaning_of_masks
from pretune.data.survey.pairing import common_root, count_pairs, folders_below, naming_rules
from pretune.data.survey.samples import evenly_spread
from pretune.search_spaces import schema
from pretune.search_spaces.schema.palettes import RGB
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_files import SUFFIXES, WITH_ARRAYS
from pretune.trainables.data.listing import Listing, Member, file_of
from pretune.trainables.data.sets.coco import list_coco, read_annotations
from pretune.trainables.data.sets.folders import EQUAL_STEMS, Names, list_images_and_masks

MOST_MASKS = 300  # masks whose values are read


@dataclass(frozen=True)
class PairsSeen:
    """Images with masks."""

    root: Path
    images: str  # folder below root
    masks: str
    names: Names
    listing: Listing
    meaning: Meaning
    looked_at: int  # masks whose values were read
    annotations: str | None = None  # COCO JSON below root, in place of `masks` and `names`

    @property
    def count(self) -> int:
        return len(self.listing.entries)


def survey_pairs(
    images: Path, masks: Path | None, names: Sequence[str] | None = None, ignore: int | RGB | None = None
) -> PairsSeen:
    """Images and masks, paired by the rule that pairs most of them.

    Args:
        masks: None: looked for in the folder of the images, or in a folder beside or below them.
        names: of the classes, in the order of their values; default: background and counted ones.
        ignore: mask value or colour that is no class.

    Raises DataError where no rule pairs anything, where masks are no masks, or where none holds `ignore`.
    """
    root, image_folder, mask_folder = common_root(images, masks)
    tried = [(root, image_folder, mask_folder)] if masks else [*folders_below(images), (images, ".", ".")]
    for suffixes in (SUFFIXES, WITH_ARRAYS):
        counted = [
            (count_pairs(*place, rule, suffixes), place, rule)
            for place in tried
            for rule in naming_rules(*place, suffixes)
        ]
        if most := max((count for count, _, _ in counted), default=0):
            break
    if not most:
        what = f"no mask in {masks} has the name of an image in {images}" if masks else f"no masks found in {images}"
        raise DataError(f"{what}: {advice(images, masks)}")
    (root, image_folder, mask_folder), rule = next((place, rule) for count, place, rule in counted if count == most)
    listing = list_images_and_masks(root, image_folder, mask_folder, (), {}, names=rule, suffixes=suffixes)
    files = [file_of(entry.mask) for entry in listing.entries if entry.mask is not None]
    chosen = evenly_spread(files, MOST_MASKS)
    if suffixes != SUFFIXES and not any(file_of(entry.image).suffix.lower() == ".npy" for entry in listing.entries):
        raise DataError(f"{files[0]}: arrays are read as masks only beside images that are arrays; save masks as PNG")
    meaning = meaning_of_masks(chosen, names, ignore, all_read=len(chosen) == len(files))
    return PairsSeen(root, image_folder, mask_folder, rule, listing, meaning, len(chosen))


def survey_coco(images: Path, file: Path, names: Sequence[str] | None = None) -> PairsSeen:
    """Images with a COCO JSON file. `names`: categories to keep; default: all. Raises DataError."""
    if not _is_coco(file):
        raise DataError(f"{file} {what_it_is(file)}")
    root = Path(os.path.commonpath([images.resolve(), file.resolve().parent]))
    below = images.resolve().relative_to(root).as_posix()
    settings = schema.Coco(
        dataset="coco", root=str(root), images=below, annotations=file.resolve().relative_to(root).as_posix(),
        classes=tuple(names or ()),
    )  # fmt: skip
    listing = list_coco(settings, root)
    if not listing.entries:
        raise DataError(f"{file}: none of its images is in {images}", listing.problems)
    used = _used_categories(file, listing)
    unused = [name for name in listing.classes[1:] if name not in used] if used and names is None else []
    if unused:
        listing = list_coco(settings.model_copy(update={"classes": used}), root)
    rows = [entry.mask.row for entry in evenly_spread(listing.entries, MOST_MASKS) if isinstance(entry.mask, Member)]
    assert listing.unpack is not None
    masks = listing.unpack(file.resolve()).masks
    assert masks is not None
    counts = np.sum([np.bincount(np.asarray(masks[row]).ravel(), minlength=256) for row in rows], axis=0)
    kept = counts[: len(listing.classes)] / max(1, counts[: len(listing.classes)].sum())
    text = ", ".join(f"{name} {share:.1%}" for name, share in zip(listing.classes, kept, strict=True))
    shown = tuple(share for share in kept.tolist() if share)
    ignored = float(counts[255] / counts.sum())
    meaning = Meaning(listing.classes, shown, ignored, {}, f"share of pixels: {text}", _unused_sentence(unused))
    return PairsSeen(root, below, "", EQUAL_STEMS, listing, meaning, len(rows), str(settings.annotations))


def _used_categories(file: Path, listing: Listing) -> tuple[str, ...]:
    """Categories that objects in the listed images have."""
    read = read_annotations(file)
    images = [read.images[entry.mask.row]["id"] for entry in listing.entries if isinstance(entry.mask, Member)]
    used = {annotation["category_id"] for image in images for annotation in read.of_image.get(image, ())}
    return tuple(name for key, name in read.names.items() if key in used)


def _unused_sentence(unused: Sequence[str]) -> tuple[str, ...]:
    if not unused:
        return ()
    listed = f"{', '.join(unused[:8])}{', ...' if len(unused) > 8 else ''}"
    return (
        f"{len(unused)} of the file's categories have no object in these images and were left out: "
        f"{listed}. To add one, write it into `classes`",
    )


def coco_file_in(folder: Path) -> Path | None:
    """The one COCO JSON file in a folder, beside images."""
    found = [path for path in sorted(folder.glob("*.json")) if _is_coco(path)]
    return found[0] if len(found) == 1 else None


def _is_coco(path: Path) -> bool:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(read, dict) and {"images", "annotations", "categories"} <= set(read)
