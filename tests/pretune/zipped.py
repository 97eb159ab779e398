"""A resumable state as tests of the store write it: like torch's, a zip file with checksums."""

from __future__ import annotations

import io
import zipfile


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), content)
    return file.getvalue()
