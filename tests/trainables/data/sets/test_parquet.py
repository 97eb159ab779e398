"""Parquet shards: read like folders, streamed nearly in their order, named without being read."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pretune.search_spaces import schema
from pretune.trainables.data import sources
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Member
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets import parquet
from pretune.trainables.data.sets.table import list_files
from pretune.trainables.data.streaming.stream import Column


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pictures(n: int) -> list[np.ndarray]:
    """Solid colours that tell the images apart."""
    return [np.full((6, 9, 3), (i, 255 - i, 7 * i % 256), np.uint8) for i in range(n)]


def shards(root: Path, n: int = 30, files: int = 3, structs: bool = False) -> Path:
    """`n` images over some files in row groups of 4; masks hold 0 or 1, labels 0 to 2."""
    root.mkdir(parents=True, exist_ok=True)
    cells = [png(pixels) for pixels in pictures(n)]
    masks = [png(np.full((6, 9), i % 2, np.uint8)) for i in range(n)]
    for k, rows in enumerate(np.array_split(np.arange(n), files)):
        table = {
            "image": [{"bytes": cells[i], "path": f"{i}.png"} if structs else cells[i] for i in rows],
            "mask": [masks[i] for i in rows],
            "label": [int(i % 3) for i in rows],
        }
        pq.write_table(pa.table(table), root / f"part-{k}.parquet", row_group_size=4)
    return root


def settings_of(root: Path | str, **changes: object) -> schema.Parquet:
    plain = {"dataset": "parquet", "root": str(root), "mask": "mask", "label": "label", "classes": ("a", "b")}
    return schema.Parquet.model_validate(plain | {"cache_size": 4} | changes)


@pytest.mark.parametrize("structs", [False, True])
@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_images_masks_and_labels_are_what_the_rows_hold(tmp_path: Path, structs: bool, source: str) -> None:
    settings = settings_of(shards(tmp_path / "d", structs=structs), source=source)
    digest, _ = sources.prepare(settings, None, tmp_path / "c")
    held = sources.open_set(settings, digest, None, tmp_path / "c")
    assert isinstance(held.images, Column) == (source == "streaming")
    assert np.array_equal(held.images[np.arange(30)][:, 2, 2], [pixels[0, 0] for pixels in pictures(30)])
    assert held.masks is not None
    assert held.labels is not None
    assert held.masks[np.array([3, 28, 29])][:, 1, 1].tolist() == [1, 0, 1]
    assert held.labels.tolist() == [i % 3 for i in range(30)]
    assert (held.names[0], held.names[29], len(held.names)) == ("part-0/0000000", "part-2/0000009", 30)


@pytest.mark.parametrize("address", ["{}", "file://{}"])
@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_the_root_may_be_one_file(tmp_path: Path, address: str, source: str) -> None:
    file = shards(tmp_path / "d") / "part-1.parquet"
    settings = settings_of(address.format(file), source=source)
    held = sources.open_set(settings, sources.prepare(settings, None, tmp_path / "c")[0], None, tmp_path / "c")
    assert (held.names[0], len(held.names)) == ("part-1/0000000", 10)
    assert held.images[np.arange(10)][:, 2, 2].tolist() == [pixels[0, 0].tolist() for pixels in pictures(30)[10:20]]


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"parquet: the folder .*gone\.parquet does not exist"):
        list_files(settings_of(tmp_path / "gone.parquet"), None)


def test_any_address_that_pyarrow_knows_is_a_root(tmp_path: Path) -> None:
    here = settings_of(shards(tmp_path / "d"), source="streaming")
    there = settings_of(f"file://{tmp_path}/d", source="streaming")
    digests = [sources.prepare(settings, None, tmp_path / "c")[0] for settings in (here, there)]
    assert digests[0] == digests[1]
    held = sources.open_set(there, digests[1], None, tmp_path / "c")
    assert held.images[17][0, 0].tolist() == [17, 238, 119]


class Ranged(SimpleHTTPRequestHandler):
    """A web server's folder, with the ranges that those people run have and Python's has not."""

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address at which `tmp_path` is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranged, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_a_folder_of_a_web_server_is_a_root(tmp_path: Path, web: str, source: str) -> None:
    here = settings_of(shards(tmp_path / "d" / "set"), source=source)
    there = settings_of(f"{web}/d", source=source)
    sets = []
    for settings in (here, there):
        digest = sources.prepare(settings, None, tmp_path / "c")[0]
        sets.append(sources.open_set(settings, digest, None, tmp_path / "c"))
    for held in sets:
        assert np.array_equal(held.images[np.arange(30)][:, 2, 2], [pixels[0, 0] for pixels in pictures(30)])
    assert [f"set/{name}" for name in sets[0].names] == list(sets[1].names)  # part-0 of another folder is another
    with pytest.raises(DataError, match=r"nothing-here cannot be listed"):
        sources.prepare(settings_of(f"{web}/nothing-here"), None, tmp_path / "c")


def test_the_rows_of_a_task_are_read_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 rows in three files of three row groups (4, 4, 2): nine reads, whatever the order of the rows."""
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, *rest: read.append(i) or whole(self, i, *rest)
    )
    listing = list_files(settings_of(shards(tmp_path / "d")), None)
    order = np.random.default_rng(0).permutation(30)
    assert isinstance(listing.unpack, parquet.Reader)
    opened = listing.unpack.only([listing.entries[int(i)] for i in order])
    for i in order:
        member = listing.entries[int(i)].image
        assert isinstance(member, Member)
        assert opened(member.file).images[member.row] == png(pictures(30)[i])
    assert sorted(read) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_digest_needs_no_image_and_sees_every_change(tmp_path: Path) -> None:
    root = shards(tmp_path / "d")
    before = content_digest(settings_of(root), None)
    (tmp_path / "d").rename(tmp_path / "e")
    root = tmp_path / "e"
    assert content_digest(settings_of(root), None) == before
    assert content_digest(settings_of(root, limit=7), None) != before
    assert content_digest(settings_of(root, limit=7, split={"seed": 1}), None) != content_digest(
        settings_of(root, limit=7), None
    )
    assert content_digest(settings_of(root, source="streaming", shuffle_window=8), None) == before
    table = pq.read_table(root / "part-1.parquet")
    cells = table["image"].to_pylist()
    cells[2] = png(np.zeros((6, 9, 3), np.uint8))
    pq.write_table(table.set_column(0, "image", [cells]), root / "part-1.parquet", row_group_size=4)
    assert content_digest(settings_of(root), None) != before


def test_shards_on_a_disk_are_named_by_all_that_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two masks that change places leave the footer as it is: sizes, extremes and counts are the same."""
    root = shards(tmp_path / "d", n=4, files=1)
    before = content_digest(settings_of(root), None)
    path = root / "part-0.parquet"
    raw, table = path.read_bytes(), pq.read_table(path)
    one, other = table["mask"][0].as_py(), table["mask"][1].as_py()
    cells = table["mask"].to_pylist()
    cells[0], cells[1] = other, one
    pq.write_table(table.set_column(1, "mask", [cells]), path, row_group_size=4, compression="none")
    swapped = path.read_bytes()
    pq.write_table(table, path, row_group_size=4, compression="none")
    assert path.read_bytes()[-200:] == swapped[-200:]  # the footer's end, of both
    plain = content_digest(settings_of(root), None)
    path.write_bytes(swapped)
    assert content_digest(settings_of(root), None) != plain
    path.write_bytes(raw)
    assert content_digest(settings_of(root), None) == before
    monkeypatch.setattr(parquet, "HASHED", 0)  # a large set: by its footers, as docs/decisions/fingerprints.md says
    assert content_digest(settings_of(root), None) != before


def image_ten(settings: schema.Parquet, cache: Path) -> object:
    digest, _ = sources.prepare(settings, None, cache)
    return sources.open_set(settings, digest, None, cache).images[10]


def test_an_empty_cell_is_named_by_its_shard_and_row(tmp_path: Path) -> None:
    root = shards(tmp_path / "d")
    table = pq.read_table(root / "part-1.parquet")
    pq.write_table(table.set_column(0, "image", [[None, *table["image"].to_pylist()[1:]]]), root / "part-1.parquet")
    for source in ("resident", "streaming"):
        settings = settings_of(root, source=source)
        with pytest.raises(DataError, match=r"part-1.parquet\[0\]: empty file"):
            image_ten(settings, tmp_path / source)
    skipping = settings_of(root, source="streaming", on_error="skip")
    digest, _ = sources.prepare(skipping, None, tmp_path / "c")
    held = sources.open_set(skipping, digest, None, tmp_path / "c")
    assert (len(held.images), len(held.skipped), held.images[10][0, 0, 0]) == (29, 1, 11)
    assert held.labels is not None
    assert held.labels.tolist() == [i % 3 for i in range(30) if i != 10]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image": "picture"}, r"part-0.parquet has no column 'picture', only image, mask, label; set `image:`"),
        ({"image": "label"}, r"column 'label' of .* must hold the bytes of image files, it holds int64"),
        ({"label": "mask"}, r"column 'mask' of .* must hold a whole number in every row"),
        ({"classes": ()}, r"`classes:` must name their values"),
    ],
)
def test_columns_that_misfit_are_refused(tmp_path: Path, changes: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        content_digest(settings_of(shards(tmp_path / "d"), **changes), None)


@pytest.mark.parametrize("label", [-1, 100_000, 2**62])
def test_labels_that_are_no_count_are_refused(tmp_path: Path, label: int) -> None:
    """As of an .npz file: a negative one would train up to the loss, and a hash would be as many classes."""
    rows = {"image": [png(pixels) for pixels in pictures(3)], "label": [0, 1, label]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=rf"column 'label' of .*a.parquet holds {label}; image classes are counted from 0"
    ):
        list_files(settings_of(tmp_path, mask=None, classes=()), None)
    np.savez(tmp_path / "a.npz", images=np.stack(pictures(3)), labels=np.array(rows["label"]))
    with pytest.raises(DataError, match=rf"a.npz: `labels` holds {label}; image classes are counted from 0"):
        list_files(schema.Npz(dataset="npz", root=str(tmp_path / "a.npz")), None)


def test_a_cut_off_shard_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    root = shards(tmp_path / "d")
    whole = (root / "part-2.parquet").read_bytes()
    (root / "part-2.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"part-2\.parquet is not a Parquet"):
        content_digest(settings_of(root), None)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"parquet: no \*.parquet file in"):
        content_digest(settings_of(tmp_path / "none"), None)
    with pytest.raises(DataError, match=r"pyarrow cannot open this address"):
        parquet.file_system("nowhere://bucket")
