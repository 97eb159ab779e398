"""Streaming gives what the resident copy holds, in the same order: where images come from changes no digit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data import sources
from pretune.trainables.data.checks.contents import contents, glance
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets.table import list_files
from pretune.trainables.data.splits import draw_split
from pretune.trainables.data.streaming.stream import Column
from pretune.trainables.distributed import World
from pretune.trainables.files import STATE, WEIGHTS
from pretune.trainables.loop import Epochs, IntArray, Length, RunContext, epoch_order
from pretune.trainables.pretrain import pretrain


def folder(root: Path, n: int = 20) -> Path:
    """Images of different sizes with masks, each recognisable by its first pixel."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(n):
        height, width = random.integers(6, 30, 2)
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:03d}.png")
        Image.fromarray((pixels[..., 0] % 2).astype(np.uint8)).save(root / "masks" / f"{i:03d}.png")
    return root


def settings_of(root: Path, **changes: object) -> schema.Data:
    base = {"dataset": "image-mask-folder", "root": str(root), "classes": ("a", "b"), "cache_size": 8}
    adapter: TypeAdapter[schema.Data] = TypeAdapter(schema.Data)
    return adapter.validate_python(base | changes)


def opened(settings: schema.Data, cache: Path) -> ImageSet:
    digest, choice = sources.prepare(settings, None, cache)
    found = sources.open_set(settings, digest, None, cache)
    assert isinstance(found.images, Column) == (choice.source == "streaming")
    return found


# ------------------------------------------------------------------------------------------------- the same images


def test_both_sources_hold_the_same(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    stream, resident = (
        opened(settings_of(root, source=source), tmp_path / source) for source in ("streaming", "resident")
    )
    rows = np.array([3, 0, 19, 7])
    assert np.array_equal(stream.images[rows], resident.images[rows])
    assert stream.masks is not None
    assert resident.masks is not None
    assert np.array_equal(stream.masks[rows], resident.masks[rows])
    assert np.array_equal(stream.images[5], resident.images[5])
    assert stream.images.shape == resident.images.shape
    assert stream.masks.shape == resident.masks.shape
    assert (tuple(stream.names), stream.classes) == (resident.names, resident.classes)


def test_the_source_is_in_no_digest_and_a_stream_leaves_no_copy(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    both = [content_digest(settings_of(root, source=source), None) for source in ("streaming", "resident", "auto")]
    assert len(set(both)) == 1
    opened(settings_of(root, source="streaming"), tmp_path / "c")
    assert not (tmp_path / "c" / both[0]).exists()


def test_skipped_files_are_left_out_of_both(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    (root / "images" / "004.png").write_bytes(b"")
    (root / "masks" / "011.png").unlink()
    stream, resident = (
        opened(settings_of(root, source=source, on_error="skip"), tmp_path / source)
        for source in ("streaming", "resident")
    )
    assert tuple(stream.names) == resident.names
    assert stream.skipped == resident.skipped
    assert len(stream.skipped) == 2
    assert np.array_equal(stream.images[np.arange(18)], resident.images[:])


def test_a_bad_file_is_named_when_it_comes_and_its_names_fault_before(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    (root / "images" / "004.png").write_bytes(b"")
    stream = opened(settings_of(root, source="streaming"), tmp_path / "c")
    with pytest.raises(DataError, match=r"images/004.png: empty file \(0 bytes\)"):
        stream.images[np.array([3, 4])]
    (root / "masks" / "011.png").unlink()
    with pytest.raises(DataError, match=r"images/011.png: no mask"):
        opened(settings_of(root, source="streaming"), tmp_path / "c")


# ------------------------------------------------------------------------------------------------------ the choice


def test_auto_goes_by_the_decoded_size_against_memory(tmp_path: Path) -> None:
    """1000 images of 100 px with masks take 40 MB: resident up to half of the memory, streaming beyond."""
    settings = settings_of(tmp_path, cache_size=100)
    for memory, source in ((80_000_000, "resident"), (79_999_999, "streaming")):
        choice = sources.choose_by_size(settings, 1000, True, tmp_path, memory)
        assert choice.source == source
        assert choice.why.startswith("40 MB, ")
        assert f"`source: {source}`" in choice.why


def test_auto_streams_what_the_cache_disk_cannot_hold(tmp_path: Path) -> None:
    choice = sources.choose_by_size(
        settings_of(tmp_path, cache_size=1000), 10**9, True, tmp_path / "no" / "such", 10**18
    )
    assert choice.source == "streaming"
    assert "disk" in choice.why


def test_what_cannot_be_streamed_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    settings = schema.Npz(dataset="npz", root=str(tmp_path / "a.npz"), source="streaming")
    with pytest.raises(DataError, match="npz: `source: streaming` is not possible"):
        sources.prepare(settings, None, tmp_path / "c")
    regions = settings_of(folder(tmp_path / "d"), source="streaming", regions={"name": "slic"})
    with pytest.raises(
        DataError,
        match=r"`regions:`.*`source: resident`",
    ):
        sources.prepare(regions, None, tmp_path / "c")


# ------------------------------------------------------------------------------------------------------- the order


@given(st.integers(1, 3000), st.integers(0, 5), st.integers(0, 5), st.one_of(st.none(), st.integers(1, 4000)))
def test_an_epoch_holds_each_image_once(count: int, seed: int, epoch: int, window: int | None) -> None:
    order = epoch_order(count, seed, epoch, window)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, epoch_order(count, seed, epoch, window))


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = [epoch_order(500, seed, epoch, 64) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4


@given(st.integers(1, 40), st.integers(2, 30), st.integers(0, 9))
def test_a_window_touches_few_runs_of_neighbours(windows: int, run: int, seed: int) -> None:
    """16 runs of `run` images make a window: each window is the images of just 16 such runs."""
    window = 16 * run
    order = epoch_order(windows * window, seed, 0, window)
    for start in range(0, len(order), window):
        assert len(np.unique(order[start : start + window] // run)) == 16


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(0, 19))
def test_workers_share_every_batch(batches: int, batch: int, size: int, rest: int) -> None:
    """Also where a batch, or a last one that is not whole, does not divide: some then have a row more."""
    order = np.random.default_rng(0).permutation(batches * batch + min(rest, batch - 1))
    shares = [iter(World(rank, size).shares(order, batch)) for rank in range(size)]
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        local = [list(itertools.islice(share, len(World(rank, size).part(rows)))) for rank, share in enumerate(shares)]
        assert np.array_equal(np.concatenate(local), rows)
    assert not any(list(share) for share in shares)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 40), st.integers(0, 39), st.integers(1, 3))
def test_a_stream_is_told_what_the_steps_take(count: int, batch: int, steps: int, first: int, workers: int) -> None:
    """From any step on, with some epochs told at a time, and a last batch of an epoch that is not whole."""
    images, batch, first = np.arange(100, 100 + count), min(batch, count), min(first, steps - 1)
    per_epoch = -(-count // batch)
    told: list[int] = []

    class Told:
        streamed, shuffle_window = True, 8

        def coming(self, orders: list[IntArray], at_a_time: int) -> None:
            assert at_a_time == batch
            assert not told, "told anew before all of it was asked for"
            told.extend(int(i) for order in orders for i in order)

    with mock.patch("pretune.trainables.loop.ANNOUNCED", 3 * count):
        world = World(workers - 1, workers)
        epochs = Epochs(images, batch, 7, Length(per_epoch, steps, steps), cast(ImageSet, Told()), world)
        for step in range(first, steps):
            epoch, position = divmod(step, per_epoch)
            order = images[epoch_order(count, 7, epoch, 8)]
            found = epochs.batch(step)
            assert np.array_equal(found, order[position * batch : (position + 1) * batch])
            mine = world.part(found)
            assert told[: len(mine)] == mine.tolist()
            del told[: len(mine)]
    assert not told


# -------------------------------------------------------------------------------------------------- with Ray Data

QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # raised by Ray of itself


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[None]:
    from pretune.cluster.tune import start_ray, stop_ray

    start_ray(None, 1)
    yield
    stop_ray()


@QUIET
@pytest.mark.ray
def test_ray_data_reads_ahead_while_a_stage_holds_every_cpu(one_cpu: None, tmp_path: Path) -> None:
    """Three epochs, the last from its 37th image on and left early: the resident images in the loop's order."""
    import ray

    root = folder(tmp_path / "d", 100)
    streaming, resident = (settings_of(root, source=source) for source in ("streaming", "resident"))

    def stage() -> list[bool]:
        digest, _ = sources.prepare(streaming, None, tmp_path / "c")
        stream = sources.open_set(streaming, digest, None, tmp_path / "c")
        held = sources.open_set(resident, digest, None, tmp_path / "c")
        reader = stream.images.stream
        same = []
        for epoch, (first, last) in enumerate(((0, 100), (0, 100), (37, 69))):
            order = np.random.default_rng(epoch).permutation(100)
            stream.coming([order[first:]], 16)
            for start in range(first, last, 16):
                rows = order[start : start + 16]
                same.append(np.array_equal(stream.images[rows], held.images[rows]))
                same.append(np.array_equal(stream.masks[rows], held.masks[rows]))
            same.append(reader._at == last - first)  # all of it came from Ray Data
        stream.close()
        same.append(np.array_equal(stream.images[np.array([5, 2])], held.images[np.array([5, 2])]))
        return same

    assert all(ray.get(ray.remote(num_cpus=1)(stage).remote(), timeout=120))


@QUIET
@pytest.mark.ray
def test_epochs_told_together_come_one_after_the_other(one_cpu: None, tmp_path: Path) -> None:
    """Batches of 40 over 100 images, whose last is not whole, with the validation images asked for in between."""
    root = folder(tmp_path / "d", 120)
    stream, held = (opened(settings_of(root, source=source), tmp_path / "c") for source in ("streaming", "resident"))
    assert isinstance(stream.images, Column)
    assert stream.masks is not None
    assert held.masks is not None
    orders = [np.random.default_rng(epoch).permutation(100) for epoch in range(3)]
    stream.coming(orders, 40)
    for order in orders:
        for start in (0, 40, 80):
            rows = order[start : start + 40]
            assert np.array_equal(stream.images[rows], held.images[rows])
            assert np.array_equal(stream.masks[rows], held.masks[rows])
        assert np.array_equal(stream.images[np.arange(100, 120)], held.images[np.arange(100, 120)])
    assert stream.images.stream._at == 300  # all of the epochs came from Ray Data
    stream.close()


@QUIET
@pytest.mark.ray
def test_ray_data_names_a_bad_file(one_cpu: None, tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    (root / "images" / "004.png").write_bytes(b"")
    stream = opened(settings_of(root, source="streaming"), tmp_path / "c")
    stream.coming([np.arange(20)], 5)
    with pytest.raises(DataError, match=r"images/004.png: empty file \(0 bytes\)"):
        stream.images[np.arange(5)]
    stream.close()


class KilledError(BaseException):
    pass


@QUIET
@pytest.mark.ray
def test_an_interrupted_epoch_goes_on_at_the_right_image(one_cpu: None, tmp_path: Path) -> None:
    """30 training images in batches of 4, 7 steps an epoch: cut after step 10, the end is that of the resident run."""
    torch.set_num_threads(1)
    root, changes = folder(tmp_path / "d", 40), {"shuffle_window": 16, "cache_size": 16}
    stream, held = (
        opened(settings_of(root, source=source, **changes), tmp_path / source) for source in ("streaming", "resident")
    )
    chosen = schema.Pretrain.model_validate(
        {"data": "d", "method": {"name": "simclr", "hidden": 8, "dim": 4}, "views": {"size": 8}, "batch_size": 4}
        | {"steps": 17}
    )
    streams = {"init": 1, "order": 2, "augmentation": 3}
    split = draw_split(40, schema.Split(test=6, val=4), 0, None)

    def run(data: ImageSet, name: str, resume: Path | None = None) -> bytes:
        (tmp_path / name).mkdir()
        context = RunContext(tmp_path / name, torch.device("cpu"), resume=resume, checkpoint_seconds=0.0)
        pretrain(chosen, schema.UNet(widths=(4, 8)), data, split, streams, context)
        return (tmp_path / name / WEIGHTS).read_bytes()

    real, saves = checkpoints.save_state, iter(range(1, 100))

    def save(state: dict[str, Any], out: Path) -> None:
        real(state, out)
        if next(saves) == 10:
            raise KilledError

    with mock.patch.object(checkpoints, "save_state", save), pytest.raises(KilledError):
        run(stream, "cut")
    assert run(stream, "last", tmp_path / "cut" / STATE) == run(held, "whole")
    stream.close()


@pytest.mark.parametrize("fit", ["squash", "tile"])
@pytest.mark.parametrize("source", ["streaming", "resident"])
def test_transparent_images_are_told_from_both_sources_and_once_each(tmp_path: Path, source: str, fit: str) -> None:
    root = folder(tmp_path / "d", 6)
    for kind, mode in (("images", "RGBA"), ("masks", "L")):
        Image.new(mode, (30, 20), (9, 9, 9, 100) if mode == "RGBA" else 0).save(root / kind / "003.png")
    settings = settings_of(root, source=source, fit=fit, cache_size=10)
    assert opened(settings, tmp_path / "cache").transparent == ("003",)
    listing, seen = list_files(settings, None), glance(settings, None, None, "")
    assert seen is not None
    assert contents(settings, seen, listing).transparent == 1
    assert len(listing.entries) > 6 if fit == "tile" else len(listing.entries) == 6
