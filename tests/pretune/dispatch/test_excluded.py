"""What `on_error: skip` leaves out of a study: counted in images, named on the screen, and all of it in the log."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict


class NoRayError(Exception):
    """Raised in place of starting Ray: all that is tested here comes before."""


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Any]:
    """34 usable pairs, 12 empty images, two masks left alone, one of them beside a GIF."""
    root = tmp_path / "photos"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(46):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "images" / f"{i:02d}.png")
        Image.fromarray(np.full((8, 8), i % 2, np.uint8)).save(root / "masks" / f"{i:02d}.png")
    for i in range(12):
        (root / "images" / f"{i:02d}.png").write_bytes(b"")
    for name in ("alone", "moving"):
        (root / "masks" / f"{name}.png").write_bytes((root / "masks" / "00.png").read_bytes())
    (root / "images" / "moving.gif").write_bytes(b"GIF89a")
    return {"dataset": "image-mask-folder", "root": str(root), "classes": ["sky", "road"], "cache_size": 8}


@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_images_are_counted_and_every_file_is_in_the_log(
    tiny: dict[str, Any], photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise NoRayError

    monkeypatch.setattr("pretune.run.start_ray", refuse)
    tiny["data"]["photos"] = photos | {"on_error": "skip", "source": source}
    text = io.StringIO()
    options = Options(tmp_path / "out", tmp_path / "store", tmp_path / "cache")
    with pytest.raises(NoRayError):
        run_study(from_dict(tiny), options, Console(file=text, width=200))
    shown = text.getvalue()
    listed = ("empty file", "a mask without", "unsupported type")
    (line,) = [line for line in shown.splitlines() if any(why in line for why in listed)]  # each run prints it
    assert "data photos: 12 of 46 images excluded (on_error: skip), for example images/11.png: empty file" in line
    assert "pretune.log" in line
    assert "note: data photos: 1 file is not read as images: 1 .gif" in shown
    log = (tmp_path / "out" / "pretune.log").read_text()
    assert [f"data photos: excluded: images/{i:02d}.png: empty file" in log for i in range(12)] == [True] * 12
    assert "excluded: masks/alone.png: a mask without an image; add images/alone.jpg or remove the mask" in log
    assert "excluded: masks/moving.png: its image images/moving.gif has an unsupported type" in log
    assert "data photos: 1 file is not read as images: 1 .gif" in log


@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_names_that_are_not_utf8_are_written_out(
    tiny: dict[str, Any], photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A bad file and two copies across the split whose names hold a byte of Latin-1; a terminal takes UTF-8 alone."""
    root = Path(photos["root"])
    for kind in ("images", "masks"):
        for path in sorted((root / kind).iterdir()):
            path.rename(path.with_name(os.fsdecode(b"caf\xe9 ") + path.name))
    for i in range(13, 46):  # one image for all, so that the split is sure to part duplicates
        one = root / "images" / os.fsdecode(b"caf\xe9 12.png")
        one.with_name(one.name.replace("12", str(i))).write_bytes(one.read_bytes())

    def refuse(*arguments: Any, **named: Any) -> None:
        raise NoRayError

    monkeypatch.setattr("pretune.run.start_ray", refuse)
    tiny["data"]["photos"] = photos | {"on_error": "skip", "source": source}
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.raises(NoRayError):
        run_study(
            from_dict(tiny),
            Options(tmp_path / "out", tmp_path / "store", tmp_path / "cache"),
            Console(file=terminal, width=200),
        )
    terminal.seek(0)
    shown, log = terminal.read(), (tmp_path / "out" / "pretune.log").read_text(encoding="utf-8")
    assert r"images/caf\udce9 11.png: empty file" in shown
    assert r"excluded: images/caf\udce9 00.png: empty file" in log
    copies = r"test images look like an image outside of the test set, for example caf\udce9 "
    assert (copies in shown) == (source == "resident")
