"""Published sets of one folder per class: Imagenette, ImageNet, Tiny ImageNet, iNaturalist 2021."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_files import SUFFIXES
from pretune.trainables.data.listing import Entry, Listing
from pretune.trainables.data.sets.catalogue import IMAGENET_TERMS, About, DataSet, Download
from pretune.trainables.data.sets.packed import list_tiny_npz
from pretune.trainables.data.sets.wnids import TINY_IMAGENET

_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"

IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip

# iNaturalist's supercategory from the taxonomy in a folder's name; the first that matches.
BY_CLASS = {
    "Insecta": "Insects", "Aves": "Birds", "Reptilia": "Reptiles", "Mammalia": "Mammals",
    "Actinopterygii": "Ray-finned Fishes", "Amphibia": "Amphibians", "Arachnida": "Arachnids",
}  # fmt: skip
BY_PHYLUM = {"Mollusca": "Mollusks"}
BY_KINGDOM = {"Plantae": "Plants", "Fungi": "Fungi", "Animalia": "Animalia"}


def list_imagenette(settings: schema.Imagenette, root: Path) -> Listing:
    """train/WNID/ and val/WNID/. Labels in the order of the WordNet ids."""
    index = {wnid: i for i, wnid in enumerate(sorted(IMAGENETTE))}
    names = tuple(IMAGENETTE[wnid] for wnid in sorted(IMAGENETTE))
    entries = [*_classed(root, "train", index, False), *_classed(root, "val", index, True)]
    return _listing(root, entries, names, ("train", "val"), index)


def list_imagenet(settings: schema.ImageNet, root: Path) -> Listing:
    """train/WNID/ and val/WNID/. Labels in the order of the WordNet ids that train/ holds, or of the subset's."""
    held = _folders(root / "train")
    wanted = sorted(TINY_IMAGENET) if settings.subset == "tiny-imagenet" else held
    missing = sorted(set(wanted) - set(held))
    if missing:
        raise DataError(f"imagenet: train/ in {root} lacks {len(missing)} classes of the subset, first {missing[0]}")
    index = {wnid: i for i, wnid in enumerate(wanted)}
    entries = [*_classed(root, "train", index, False), *_classed(root, "val", index, True)]
    return _listing(root, entries, tuple(wanted), ("train", "val"), index)


def list_tiny_imagenet(settings: schema.TinyImageNet, root: Path) -> Listing:
    """tiny-imagenet-200/ as it is unpacked, or train.npz."""
    return list_tiny_folder(root) if (root / "train").is_dir() else list_tiny_npz(root)


def list_tiny_folder(root: Path) -> Listing:
    """train/WNID/images/ and val/images/ with val_annotations.txt; the unlabelled test/ is excluded."""
    wnids = _folders(root / "train")
    index = {wnid: i for i, wnid in enumerate(wnids)}
    train = [
        Entry(f"train/{wnid}/{path.name}", path, label=index[wnid], test=False)
        for wnid in wnids
        for path in _images(root / "train" / wnid / "images")
    ]
    problems = list(_empty(root, "train", wnids, train))
    entries = [*train, *_tiny_val(root, index, problems)]
    return Listing(root, tuple(sorted(entries)), tuple(problems), label_names=tuple(wnids))


def _tiny_val(root: Path, index: Mapping[str, int], problems: list[str]) -> Iterator[Entry]:
    path = root / "val" / "val_annotations.txt"
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in index:
            problems.append(f"val/val_annotations.txt: line {number} is not FILE<tab>WNID of a class in train/")
            continue
        yield Entry(f"val/{fields[0]}", root / "val" / "images" / fields[0], label=index[fields[1]], test=True)


def list_inaturalist(settings: schema.INaturalist2021, root: Path) -> Listing:
    """NNNNN_Kingdom_Phylum_Class_Order_Family_Genus_species/ below train, train_mini or 2021_train(_mini), and val.

    Labels are the numbers in the folder names, made gapless where supercategories are excluded.
    """
    train = _first(root, ("2021_train", "train", "2021_train_mini", "train_mini"))
    if train is None:
        raise DataError(f"inaturalist2021: no train/ or train_mini/ in {root}; unpack train_mini.tar.gz there")
    kept = [name for name in _folders(root / train) if supercategory(name) not in settings.leave_out]
    index = {name: i for i, name in enumerate(kept)}
    val = _first(root, ("2021_valid", "val"))
    entries = list(_classed(root, train, index, None if val is None else False))
    if val is not None:
        entries += _classed(root, val, index, True)
    return _listing(root, entries, tuple(kept), tuple(part for part in (train, val) if part), index)


def supercategory(folder: str) -> str:
    """'00000_Animalia_Arthropoda_Insecta_...' -> 'Insects'. Raises DataError for another kind of name."""
    fields = folder.split("_")
    if len(fields) < 4 or fields[1] not in BY_KINGDOM:
        raise DataError(f"inaturalist2021: the folder {folder!r} is not NNNNN_Kingdom_Phylum_Class_...; unpack it anew")
    return BY_CLASS.get(fields[3]) or BY_PHYLUM.get(fields[2]) or BY_KINGDOM[fields[1]]


def _classed(root: Path, part: str, index: Mapping[str, int], test: bool | None) -> Iterator[Entry]:
    """Images of the folders that `index` names; folders that are not there (of val) hold none."""
    for folder, label in index.items():
        for path in _images(root / part / folder):
            yield Entry(f"{part}/{folder}/{path.name}", path, label=label, test=test)


def _images(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
        yield from (folder / name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if path.is_dir() else []


def _first(root: Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if (root / name).is_dir()), None)


def _empty(root: Path, part: str, folders: Iterable[str], entries: Iterable[Entry]) -> Iterator[str]:
    """A problem for each of the part's folders that is there without an image: the copy was cut off, most likely."""
    held = {entry.name.rpartition("/")[0] for entry in entries}
    for folder in folders:
        if f"{part}/{folder}" not in held and (root / part / folder).is_dir():
            yield f"{part}/{folder}: a class folder without an image; unpack the archive anew, or remove the folder"


def _listing(
    root: Path, entries: list[Entry], label_names: tuple[str, ...], parts: tuple[str, ...], index: Mapping[str, int]
) -> Listing:
    problems = tuple(problem for part in parts for problem in _empty(root, part, index, entries))
    return Listing(root, tuple(sorted(entries)), problems, label_names=label_names)


CLASSED_SETS = {
    "tiny-imagenet": DataSet(
        list_tiny_imagenet,
        About(
            title="Tiny ImageNet",
            licence=IMAGENET_TERMS,
            size="0.25 GB",
            login=False,
            layout="train/WNID/images/ and val/ with val_annotations.txt, or train.npz",
            folders=("tiny-imagenet-200", "tiny-imagenet"),
            markers=(("train", "val"), ("train.npz",)),
            get="`pretune data fetch tiny-imagenet` fetches it",
            downloads=(
                Download("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", ".."),
            ),
        ),
    ),
    "imagenette": DataSet(
        list_imagenette,
        About(
            title="Imagenette",
            licence=f"Apache-2.0 (list); {IMAGENET_TERMS}",
            size="0.34 GB (320 px)",
            login=False,
            layout="train/WNID/ and val/WNID/",
            folders=("imagenette2-320", "imagenette2-160", "imagenette2", "imagenette"),
            markers=(("train", "val"),),
            get="`pretune data fetch imagenette` or torchvision.datasets.Imagenette(root, download=True) fetches it",
            downloads=(Download(f"{_FASTAI}/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", ".."),),
        ),
    ),
    "imagenet": DataSet(
        list_imagenet,
        About(
            title="ImageNet-1k",
            licence=IMAGENET_TERMS,
            size="144 GB",
            login=True,
            layout="train/WNID/*.JPEG and val/WNID/*.JPEG",
            folders=("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
            markers=(("train", "val"),),
            get=(
                "register at https://image-net.org, download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
                "ILSVRC2012_devkit_t12.tar.gz into one folder `imagenet` below --data, and run "
                "torchvision.datasets.ImageNet(folder, split) once for each of split train and val"
            ),
        ),
    ),
    "inaturalist2021": DataSet(
        list_inaturalist,
        About(
            title="iNaturalist 2021 (mini)",
            licence="iNaturalist terms: non-commercial research",
            size="51 GB",
            login=False,
            layout="train_mini/ or train/, and val/, each with NNNNN_Kingdom_Phylum_Class_.../",
            folders=("inaturalist2021", "inat2021", "inaturalist"),
            markers=(("2021_train",), ("train",), ("2021_train_mini",), ("train_mini",)),
            get=(
                "`pretune data fetch inaturalist2021` fetches train_mini and val; the full train.tar.gz (224 GB) "
                f"stands at {_INAT}/train.tar.gz"
            ),
            downloads=(
                Download(f"{_INAT}/train_mini.tar.gz", "db6ed8330e634445efc8fec83ae81442"),
                Download(f"{_INAT}/val.tar.gz", "f6f6e0e242e3d4c9569ba56400938afc"),
            ),
        ),
    ),
}
