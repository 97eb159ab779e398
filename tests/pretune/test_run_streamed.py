"""A study on a real Ray cluster whose stages stream their images with Ray Data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict


def folder(root: Path, n: int) -> Path:
    """Noise with masks of it, of different sizes."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(n):
        pixels = random.integers(0, 256, (*random.integers(20, 60, 2), 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:03d}.png")
        Image.fromarray((pixels[..., 0] % 2).astype(np.uint8)).save(root / "masks" / f"{i:03d}.png")
    return root


@pytest.mark.ray
def test_a_study_has_the_same_results_from_both_sources(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Pretraining and fine-tuning, as many stages at once as there are CPUs, so that none is left for Ray Data."""
    root, text = folder(tmp_path / "d", 40), io.StringIO()
    for source in ("streaming", "resident"):
        data = {"dataset": "image-mask-folder", "root": str(root), "classes": ["a", "b"], "cache_size": 32}
        tiny["data"] = {"scenes": data | {"split": {"test": 0.25, "val": 0.2}, "shuffle_window": 16, "source": source}}
        options = Options(tmp_path / source, tmp_path / f"{source}-store", tmp_path / f"{source}-cache")
        ended = run_study(from_dict(tiny), options, Console(file=text, width=200))
        assert (ended.exit_code, ended.trained) == (0, 6)
    assert "data scenes: 0.164 MB, decoded again in every epoch (setting `source: streaming`)" in text.getvalue()
    streamed, resident = (
        pd.read_parquet(tmp_path / source / "results.parquet").drop(columns="configuration")
        for source in ("streaming", "resident")
    )
    assert len(streamed) > 20
    # `configuration` names the settings, the source among them; the stages' fingerprints are equal
    pd.testing.assert_frame_equal(streamed, resident, check_exact=True)
    assert not list((tmp_path / "streaming-cache").glob("*/images.npy"))
