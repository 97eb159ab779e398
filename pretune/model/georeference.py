"""Georeference of a GeoTIFF (where on earth its pixels lie), carried over to its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretune.model.predict import Mask

# Scale, tie points, matrix, and the directory of keys with its numbers and texts (GeoTIFF 1.1); not GDAL's nodata.
TAGS = (33550, 33922, 34264, 34735, 34736, 34737)

Georeference = list[tuple[int, int, int, Any, bool]]  # extra tags, as tifffile writes them


def georeference(path: Path) -> Georeference:
    """The georeference of a file; [] of one without, and where tifffile is not installed."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return []
    try:
        import tifffile
    except ImportError:
        return []
    try:
        with tifffile.TiffFile(path) as file:
            held = file.pages.first.tags
            return [(code, held[code].dtype, held[code].count, held[code].value, True) for code in TAGS if code in held]
    except Exception:  # tifffile raises almost any type; the image itself was read
        return []


def write_geotiff(path: Path, mask: Mask, where: Georeference) -> None:
    """A mask (H, W) as a GeoTIFF of 8 bits, whose values are class indices."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, mask, photometric="minisblack", compression="zlib", extratags=where, metadata=None)
