"""Import path of Ray's workers: our own code first, and never the folder that the user works in.

Ray puts the driver's working folder first on every worker's path, so a `pretune.py`, `yaml.py` or `torch.py` of the
user's would be imported in place of the real one. The driver is therefore elsewhere while it starts or joins a
cluster: in a folder that holds nothing but a link to this package. What Ray starts here stays in that folder too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_folders: list[tempfile.TemporaryDirectory[str]] = []  # of the Ray that this process is connected to


def code_folder() -> Path:
    """Return the package as it is here, which also travels to clusters: all nodes run the same code.

    In a checkout three of its folders are links; whatever copies it must follow them.
    """
    return Path(__file__).resolve().parents[1]


@contextmanager
def beside_our_code() -> Iterator[None]:
    """Work in a folder with nothing but our package, until Ray has been started; `forget` removes the folder."""
    folder = tempfile.TemporaryDirectory(prefix="pretune-code-", ignore_cleanup_errors=True)
    _folders.append(folder)
    package = code_folder()
    (Path(folder.name) / package.name).symlink_to(package, target_is_directory=True)
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder.name)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def forget() -> None:
    """Remove the folder, once Ray has ended here."""
    while _folders:
        _folders.pop().cleanup()
