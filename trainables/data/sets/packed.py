"""Files that hold many images: .npz, CIFAR-10's batches, STL-10's binary files, downsampled ImageNet.

`list_*` reads labels and counts; images are opened file by file when they are decoded.
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing, Member, Pack, check_labels, class_of_value
from pretune.trainables.data.sets.catalogue import IMAGENET_TERMS, RESEARCH_ONLY, About, DataSet, Download

CIFAR_SHAPE = (3, 32, 32)  # planes, then rows
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes of a record in the binary version: the label first
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL_SHAPE = (3, 96, 96)  # planes, then columns
STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@dataclass(frozen=True)
class JoinedFiles:
    """Image files end to end: `data` (bytes,) uint8, file i from offsets[i] to offsets[i + 1]."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __getitem__(self, index: int) -> bytes:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()


@dataclass(frozen=True)
class Planes:
    """Images stored plane by plane, (N, 3, H, W), or (N, 3, W, H) if `columns`; given as (H, W, 3)."""

    data: NDArray[np.uint8]
    columns: bool = False

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(
            self.data[index].transpose(2, 1, 0) if self.columns else self.data[index].transpose(1, 2, 0)
        )


# -------------------------------------------------------------------------------------------------------- user's .npz


def list_npz(settings: schema.Npz, file: Path) -> Listing:
    """`images`, and `masks` and `labels` where the file has them. Raises DataError for shapes or types that misfit."""
    shapes = npz_shapes(file)
    n = _check_npz(file, shapes)
    labels: Sequence[int | None] = _integers(file, "labels", n) if "labels" in shapes else [None] * n
    entries = _members(file, file.stem, labels, None, masks="masks" in shapes)
    if "masks" not in shapes:
        return Listing(file.parent, tuple(entries), unpack=_unpack_npz)
    return Listing(file.parent, tuple(entries), (), settings.classes, class_of_value(settings), unpack=_unpack_npz)


def _check_npz(file: Path, shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> int:
    if "images" not in shapes:
        raise DataError(f"npz: {file} holds {', '.join(sorted(shapes)) or 'nothing'}, but no array `images`")
    shape, dtype = shapes["images"]
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        raise DataError(f"npz: `images` in {file} must be uint8 (N, H, W, 3) or (N, H, W), it is {dtype} {shape}")
    if "masks" in shapes:
        _check_masks(file, shape, *shapes["masks"])
    return shape[0]


def _check_masks(file: Path, images: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if shape != images[:3] or dtype not in (np.uint8, np.uint16, np.bool_):
        raise DataError(f"npz: `masks` in {file} must be uint8 {images[:3]} as the images, it is {dtype} {shape}")


def _unpack_npz(file: Path) -> Pack:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Pack(arrays["images"], arrays.get("masks"))
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} is damaged ({error}); replace it") from error


def npz_shapes(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> (shape, type) of the arrays, from their headers alone. Raises DataError for something else."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not an .npz file that can be read ({error})") from error


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


def _integers(file: Path, key: str, n: int, first: int = 0) -> list[int]:
    with np.load(file, allow_pickle=False) as arrays:
        labels = arrays[key]
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{file}: `{key}` must be {n} whole numbers, it is {labels.dtype} {labels.shape}")
    check_labels(labels, f"{file}: `{key}`", first)
    return [int(label) for label in labels]


# ----------------------------------------------------------------------------------------------------------- CIFAR-10


def list_cifar10(settings: schema.CIFAR10, root: Path) -> Listing:
    """The official batches (python or binary), or train.npz with test.npz."""
    for files, labels_of, unpack in _cifar_forms(root):
        if files:
            entries = [
                entry
                for file in files
                for entry in _members(file, file.stem, labels_of(file), file.stem.startswith("test"))
            ]
            unknown = {e.label for e in entries if e.label is not None and not 0 <= e.label < len(CIFAR_CLASSES)}
            if unknown:
                raise DataError(
                    f"cifar10: {root} holds labels {sorted(unknown)[:5]}, beyond its ten classes; fetch it anew"
                )
            missing = _cifar_missing(files)
            return Listing(root, tuple(entries), missing, label_names=CIFAR_CLASSES, unpack=unpack)
    raise DataError(f"cifar10: neither batches nor train.npz in {root}")


def _cifar_missing(files: list[Path]) -> tuple[str, ...]:
    """Batches of the archive that are not there."""
    if files[0].suffix == ".npz":
        return ()
    suffix = files[0].suffix
    whole = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
    there = {file.name for file in files}
    return tuple(f"{name}: this batch is missing; fetch cifar10 anew" for name in whole if name not in there)


CifarForm = tuple[list[Path], Callable[[Path], Sequence[int]], Callable[[Path], Pack]]


def _cifar_forms(root: Path) -> tuple[CifarForm, ...]:
    named = re.compile(r"(data_batch_[1-5]|test_batch)(\.bin)?")
    batches = sorted(path for path in root.iterdir() if named.fullmatch(path.name))
    return (
        ([path for path in batches if not path.suffix], _python_labels, _unpack_python),
        ([path for path in batches if path.suffix], _binary_labels, _unpack_binary),
        ([root / name for name in ("test.npz", "train.npz") if (root / name).is_file()], _npz_labels, _unpack_npz),
    )  # fmt: skip


def _npz_labels(file: Path) -> list[int]:
    shapes = npz_shapes(file)
    if "images" not in shapes:
        raise DataError(f"cifar10: {file} holds no array `images`")
    return _integers(file, "labels", shapes["images"][0][0])


def _python_labels(file: Path) -> list[int]:
    return [int(label) for label in read_batch(file)["labels"]]


def _unpack_python(file: Path) -> Pack:
    return Pack(Planes(read_batch(file)["data"].reshape(-1, *CIFAR_SHAPE)))


def _binary_labels(file: Path) -> list[int]:
    return [int(label) for label in _records(file)[:, 0]]


def _unpack_binary(file: Path) -> Pack:
    return Pack(Planes(_records(file)[:, 1:].reshape(-1, *CIFAR_SHAPE)))


def _records(file: Path) -> NDArray[np.uint8]:
    data = np.fromfile(file, np.uint8)
    if len(data) == 0 or len(data) % CIFAR_RECORD:
        raise DataError(f"cifar10: {file} is cut off ({len(data)} bytes, not a multiple of {CIFAR_RECORD})")
    return data.reshape(-1, CIFAR_RECORD)


def read_batch(file: Path) -> dict[str, Any]:
    """A batch of CIFAR's python version: `data` (N, 3072) uint8 and `labels`. Raises DataError for anything else."""
    try:
        with file.open("rb") as stream:
            batch = _ArraysOnly(stream, encoding="latin1").load()
        data, labels = batch["data"], batch["labels"]
        if data.dtype != np.uint8 or data.shape != (len(labels), CIFAR_RECORD - 1):
            raise ValueError(f"data is {data.dtype} {data.shape} for {len(labels)} labels")
    except Exception as error:  # a damaged pickle raises almost any type
        raise DataError(f"cifar10: {file} is not a batch of the python version ({error}); fetch it again") from error
    return {"data": data, "labels": labels}


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain values; refuses every other name, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct": np.ndarray((0,)).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module.split(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes at protocol 2
            return lambda text, encoding: str(text).encode(str(encoding))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


# ------------------------------------------------------------------------------------------------------------- STL-10


def list_stl10(settings: schema.STL10, root: Path) -> Listing:
    """train_X.bin with train_y.bin and test_*, or unlabeled_X.bin. Raises DataError where counts do not fit."""
    if settings.part == "unlabelled":
        entries = _members(root / "unlabeled_X.bin", "unlabelled", [None] * _stl_count(root / "unlabeled_X.bin"), None)
        return Listing(root, tuple(entries), unpack=_unpack_stl)
    parts = [*_stl_part(root, "test", True), *_stl_part(root, "train", False)]
    return Listing(root, tuple(parts), label_names=STL_CLASSES, unpack=_unpack_stl)


def _stl_part(root: Path, part: str, test: bool) -> list[Entry]:
    path, n = root / f"{part}_X.bin", _stl_count(root / f"{part}_X.bin")
    labels = np.fromfile(root / f"{part}_y.bin", np.uint8)
    if len(labels) != n:
        raise DataError(f"stl10: {part}_y.bin holds {len(labels)} labels for {n} images of {path}; fetch it again")
    check_labels(labels, f"stl10: {part}_y.bin", first=1)
    return _members(path, part, [int(label) - 1 for label in labels], test)


def _stl_count(path: Path) -> int:
    size = path.stat().st_size if path.is_file() else 0
    if size == 0 or size % (3 * 96 * 96):
        raise DataError(f"stl10: {path} is missing or cut off ({size} bytes)")
    return size // (3 * 96 * 96)


def _unpack_stl(file: Path) -> Pack:
    data = np.memmap(file, np.uint8, "r").reshape(-1, *STL_SHAPE)
    return Pack(Planes(data, columns=True))


# ------------------------------------------------------------------------------------------- Tiny ImageNet, ImageNet64


def list_tiny_npz(root: Path) -> Listing:
    """train.npz with `jpeg`, `offsets`, `labels` and `class_names`; it has no test list."""
    file = root / "train.npz"
    with np.load(file, allow_pickle=False) as arrays:
        missing = [key for key in ("jpeg", "offsets", "labels", "class_names") if key not in arrays]
        if missing:
            raise DataError(f"tiny-imagenet: {file} holds no {', '.join(missing)}")
        n, names = len(arrays["offsets"]) - 1, tuple(str(name) for name in arrays["class_names"])
    entries = _members(file, "train", _integers(file, "labels", n), None)
    return Listing(root, tuple(entries), label_names=names, unpack=_unpack_joined)


def _unpack_joined(file: Path) -> Pack:
    with np.load(file, allow_pickle=False) as arrays:
        return Pack(JoinedFiles(arrays["jpeg"], arrays["offsets"]))


def list_imagenet64(settings: schema.ImageNet64, root: Path) -> Listing:
    """train_data_batch_1.npz to _10.npz and val_data.npz: `data` (N, 3 * 64 * 64) in planes, `labels` from 1."""
    files = [*sorted(root.glob("train_data_batch_*.npz")), *sorted(root.glob("val_data.npz"))]
    entries = [
        entry for file in files for entry in _members(file, file.stem, _from_zero(file), file.stem.startswith("val"))
    ]
    return Listing(root, tuple(sorted(entries)), unpack=_unpack_planes)


def _from_zero(file: Path) -> list[int]:
    shapes = npz_shapes(file)
    if "data" not in shapes or "labels" not in shapes:
        raise DataError(f"imagenet64: {file} holds no `data` and `labels`; fetch it again")
    return [label - 1 for label in _integers(file, "labels", shapes["data"][0][0], first=1)]


def _unpack_planes(file: Path) -> Pack:
    with np.load(file, allow_pickle=False) as arrays:
        data = arrays["data"]
    side = round((data.shape[1] / 3) ** 0.5)
    return Pack(Planes(data.reshape(-1, 3, side, side)))


# ------------------------------------------------------------------------------------------------------------- parts


def _members(
    file: Path, prefix: str, labels: Iterable[int | None], test: bool | None, masks: bool = False
) -> list[Entry]:
    """One entry for each image of a file; names sort as the images stand in it."""
    return [
        Entry(f"{prefix}/{i:07d}", Member(file, i), Member(file, i) if masks else None, label, test)
        for i, label in enumerate(labels)
    ]


PACKED_SETS = {
    "cifar10": DataSet(
        list_cifar10,
        About(
            title="CIFAR-10",
            licence=RESEARCH_ONLY,
            size="0.2 GB",
            login=False,
            layout="data_batch_1 to 5 and test_batch (python or .bin), or train.npz",
            folders=("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10"),
            markers=(("data_batch_1", "test_batch"), ("data_batch_1.bin", "test_batch.bin"), ("train.npz",)),
            get="`pretune data fetch cifar10` or torchvision.datasets.CIFAR10(root, download=True) fetches it",
            downloads=(
                Download(
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", ".."
                ),
            ),
        ),
    ),
    "stl10": DataSet(
        list_stl10,
        About(
            title="STL-10",
            licence=f"{RESEARCH_ONLY}; images from ImageNet",
            size="2.6 GB",
            login=False,
            layout="train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin",
            folders=("stl10_binary", "stl10"),
            markers=(("train_X.bin", "train_y.bin"), ("unlabeled_X.bin",)),
            get="`pretune data fetch stl10` or torchvision.datasets.STL10(root, download=True) fetches it",
            downloads=(
                Download(
                    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                    "91f7769df0f17e558f3565bffb0c7dfb",
                    "..",
                ),
            ),
        ),
    ),
    "imagenet64": DataSet(
        list_imagenet64,
        About(
            title="ImageNet downsampled to 64 px",
            licence=IMAGENET_TERMS,
            size="12 GB",
            login=True,
            layout="train_data_batch_1.npz to _10.npz and val_data.npz",
            folders=("imagenet64", "Imagenet64"),
            markers=(("train_data_batch_1.npz",),),
            get=(
                "register at https://image-net.org, download Imagenet64_train_part1_npz.zip, _part2_npz.zip and "
                "Imagenet64_val_npz.zip, and unpack them into one folder `imagenet64` below --data"
            ),
        ),
    ),
    "npz": DataSet(list_npz, "your arrays in one file: images, and masks and labels if there are any"),
}
