"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pretune.search_spaces.shipped import find_study

if TYPE_CHECKING:
    from pretune.cluster.autoscaling import Group
    from pretune.run import Options
    from pretune.search_spaces.resolve import Study

study_file = click.argument(
    "file",
    metavar="STUDY",
    type=click.Path(path_type=Path),
    callback=lambda context, parameter, path: find_study(path),
)
scale = click.option("--scale", metavar="NAME", help="Use the settings of one of the study's scales, e.g. small.")
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the study, e.g. finetune.epochs=5; repeatable.",
)
data = click.option("--data", type=click.Path(path_type=Path), help="Folder that contains the data sets.")
runs = click.option("--root", "runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                    help="Folder of the image cache and of the studies' outputs.")  # fmt: skip
root = click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                     help="Output folder: one folder per study, the store and the image cache.")  # fmt: skip
out = click.option(
    "--out",
    metavar="PATH",
    help="Folder of this study's results. If it is on s3:// or gs://, ROOT/STUDY is copied to it.  "
    "[default: ROOT/STUDY; with --scale ROOT/STUDY-SCALE]",
)
store = click.option(
    "--store",
    metavar="PATH",
    help="Where finished stage runs are kept: a folder, s3://... or gs://...  [default: ROOT/store]",
)
details = click.option("--details", is_flag=True, help="Also print differences, intervals, tests and effects.")
may_grow = click.option(
    "--may-grow", multiple=True, metavar="NxCPU=C,GPU=G",
    help="Nodes that the cluster's autoscaler may start, e.g. 8xCPU=8,GPU=1; repeatable. "
    "[default: limits of the autoscaler's configuration on the head node]",
)  # fmt: skip


def mask_value(text: str) -> int | tuple[int, ...]:
    """A value of masks, 0 to 255, or a colour of three such numbers. Raises click.BadParameter."""
    numbers = [int(part) if part.isascii() and part.isdigit() else -1 for part in text.split(",")]
    if len(numbers) not in (1, 3) or not all(0 <= number <= 255 for number in numbers):
        raise click.BadParameter(f"{text!r} is neither a value from 0 to 255 nor a colour such as 224,224,192")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def node_groups(may_grow: tuple[str, ...], address: str | None) -> tuple[Group, ...]:
    """The node groups that --may-grow names. Raises click.UsageError."""
    from pretune.cluster.autoscaling import parse

    if may_grow and not address:
        raise click.UsageError("--may-grow only works with a cluster: also give --address")
    try:
        return tuple(parse(text) for text in may_grow)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def folder_of(study: Study, scale: str | None, root: Path) -> Path:
    """Folder of a study's results where --out names none. A scale has its own: a test run replaces no table.

    A folder ROOT/STUDY that holds this scale, from before scales had folders, is still its folder.
    """
    from pretune.results.changes import changed_keys

    whole = root / study.name
    if scale is None:
        return whole
    own = root / f"{study.name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', scale)}"
    return whole if not (own / "study.yaml").exists() and changed_keys(study, whole) == [] else own


def run_options(
    folder: Path,
    data: Path | None,
    root: Path,
    out: str | None,
    store: str | None,
    parallel: int | None,
    address: str | None,
) -> Options:
    """Return where a study runs and writes; `folder` is that of `folder_of`. Raises click.UsageError."""
    from pretune.run import Options
    from pretune.store.object_store import is_address

    if data is not None and not data.is_dir():
        on = f" on {platform.node()}, where the study would run" if os.environ.get("PRETUNE_JOB") else ""
        raise click.UsageError(f"--data {data}: this folder does not exist{on}")
    for name, taken in (("store", store or root / "store"), ("cache", root / "cache")):
        if out is None or is_address(out) or is_address(taken):
            continue
        if Path(out).resolve().is_relative_to(Path(taken).resolve()):
            raise click.UsageError(
                f"--out {out} is inside the {name} that all studies share ({taken}); choose another folder"
            )
    return Options(
        out=folder if out is None or is_address(out) else Path(out),
        results=out if out is not None and is_address(out) else None,
        store=store or root / "store",
        cache=root / "cache",
        data=data,
        parallel=parallel,
        address=address,
    )
