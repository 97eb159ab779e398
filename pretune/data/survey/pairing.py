"""Rules by which the names of images and masks pair, and folders that people put them in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretune.trainables.data.image_files import image_files
from pretune.trainables.data.sets.folders import EQUAL_STEMS, TRAIN, Names, folder_pairs, key_of, tell_apart

# What people put behind or before the name of an image to call its mask.
MASK_WORDS = (
    "mask", "masks", "gt", "seg", "segmentation", "label", "labels", "annotation", "groundtruth", "ground_truth",
    "manual", "lbl", "Mask", "GT", "Segmentation", "Label", "L",
)  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "JPEGImages")
MASK_FOLDER_WORDS = ("mask", "label", "annotation", "truth", "seg")  # in the name of any other folder of masks
MOST_FOLDERS = 20  # folders of images that are tried with each of these
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "gt", "groundtruth", "SegmentationClass")


def common_root(images: Path, masks: Path | None) -> tuple[Path, str, str]:
    """The folder above both, and both below it."""
    both = images.resolve(), (masks or images).resolve()
    root = Path(os.path.commonpath(both)) if both[0] != both[1] else both[0]
    return root, *(path.relative_to(root).as_posix() for path in both)  # type: ignore[return-value]


def folders_below(folder: Path, parts_too: bool = True) -> Iterator[tuple[Path, str, str]]:
    """images/ and masks/ (and what else people call them) below `folder`, or below its train/, val/ and test/; then
    whatever lies beside a folder that is called as masks are, and what lies in train/ alone."""
    there = {path.name for path in folder.iterdir() if path.is_dir()}
    parts = {path.name for part in folder.iterdir() if part.is_dir() for path in part.iterdir() if path.is_dir()}
    yield from ((folder, ".", mask) for mask in MASK_FOLDERS if mask in there and not there & {*IMAGE_FOLDERS})
    for held in (there, parts):
        for image in (name for name in IMAGE_FOLDERS if name in held):
            for mask in (name for name in MASK_FOLDERS if name in held):
                if (held is there) or all((part / image).is_dir() for part in folder.iterdir() if part.is_dir()):
                    yield folder, image, mask
    called = [name for name in sorted(there) if any(word in name.lower() for word in MASK_FOLDER_WORDS)]
    yield from ((folder, image, mask) for image in sorted(there - {*called})[:MOST_FOLDERS] for mask in called)
    for part in sorted(name for name in there if name.lower() in TRAIN) if parts_too else ():
        yield from folders_below(folder / part, parts_too=False)


def naming_rules(root: Path, images: str, masks: str, suffixes: frozenset[str]) -> Iterator[Names]:
    """Rules that may pair the files, the plainest first; of the words for masks those that some file has."""
    pairs = folder_pairs(root, images, masks)
    of_images = [path.stem for _, folder, _ in pairs for path in image_files(folder, suffixes).images]
    of_masks = [path.stem for _, _, folder in pairs for path in image_files(folder, suffixes).images]
    if images != masks:
        yield EQUAL_STEMS
        yield from _derived(of_images, of_masks)
    for word, joint in itertools.product(MASK_WORDS, "_-. "):
        if any(stem.endswith(f"{joint}{word}") for stem in of_masks):
            yield Names(mask=f"{{stem}}{joint}{word}")
        if any(stem.startswith(f"{word}{joint}") for stem in of_masks):
            yield Names(mask=f"{word}{joint}{{stem}}")
    if images == masks:  # a folder for each pair
        kinds = sorted(set(of_masks)) if len(set(of_masks)) < 10 else []
        yield from (Names(f"{{stem}}/{one}", f"{{stem}}/{other}") for one in kinds for other in kinds
                    if other in MASK_WORDS and one != other)  # fmt: skip


def count_pairs(root: Path, images: str, masks: str, rule: Names, suffixes: frozenset[str]) -> int:
    """Count the pairs that a rule makes, by names alone."""
    count = 0
    for _, image_folder, mask_folder in folder_pairs(root, images, masks):
        found = tell_apart(image_folder, mask_folder, rule, suffixes)
        image_keys = {key_of(image_folder, path, rule.image) for path in found[0].images}
        mask_keys = {key_of(mask_folder, path, rule.mask) for path in found[1].images}
        count += len((image_keys & mask_keys) - {None})
    return count


def _derived(images: Sequence[str], masks: Sequence[str]) -> Iterator[Names]:
    """Yield patterns from what stands around the part of the names that differs, as in 21_training and 21_manual1."""
    if len(images) < 2 or len(masks) < 2:
        return
    before = [_common_start(list(stems)) for stems in (images, masks)]
    behind = [_common_start([stem[::-1] for stem in stems])[::-1] for stems in (images, masks)]
    shared_before = _common_start([text[::-1] for text in before])[::-1].lstrip("_-. ")
    shared_behind = _common_start(behind).rstrip("_-. ")
    parts = [
        f"{text[: len(text) - len(shared_before)]}{{stem}}{end[len(shared_behind) :]}"
        for text, end in zip(before, behind, strict=True)
    ]
    if not any("{" in text or "}" in text for text in (*before, *behind)):
        yield Names(*parts)


def _common_start(texts: Sequence[str]) -> str:
    return os.path.commonprefix(list(texts))  # noqa: RUF071  # characters are meant, not parts of paths
