"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import os
import platform
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
scale = click.option("--scale", metavar="NAME", help="Apply one of the study's scales, e.g. small.")
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)
data = click.option("--data", type=click.Path(path_type=Path), help="Folder in which data sets are looked for.")
root = click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                     help="Holds the store, the image cache and one folder per study.")  # fmt: skip
out = click.option("--out", metavar="PATH", help="The study's own folder; s3:// or gs://: ROOT/STUDY, "
                    "copied there.  [default: ROOT/STUDY]")  # fmt: skip
store = click.option(
    "--store", metavar="PATH", help="Finished stage runs: a folder, s3://... or gs://...  [default: ROOT/store]"
)
details = click.option("--details", is_flag=True, help="Print differences, intervals, tests and effects, too.")
may_grow = click.option(
    "--may-grow", multiple=True, metavar="NxCPU=C,GPU=G",
    help="Nodes that the cluster's autoscaler may start, such as 8xCPU=8,GPU=1; repeatable. "
    "[default: the limits in the autoscaler's file on the head]",
)  # fmt: skip


def node_groups(may_grow: tuple[str, ...], address: str | None) -> tuple[Group, ...]:
    """The node groups that --may-grow names. Raises click.UsageError."""
    from pretune.cluster.autoscaling import parse

    if may_grow and not address:
        raise click.UsageError("--may-grow needs a cluster: give its --address too")
    try:
        return tuple(parse(text) for text in may_grow)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def run_options(
    study: Study,
    data: Path | None,
    root: Path,
    out: str | None,
    store: str | None,
    parallel: int | None,
    address: str | None,
) -> Options:
    """Return where a study runs and writes. Raises click.UsageError."""
    from pretune.run import Options
    from pretune.store.object_store import is_address

    if data is not None and not data.is_dir():
        on = f" on {platform.node()}, where the study would run" if os.environ.get("PRETUNE_JOB") else ""
        raise click.UsageError(f"--data {data}: there is no such folder{on}")
    for name, taken in (("store", store or root / "store"), ("cache", root / "cache")):
        if out is None or is_address(out) or is_address(taken):
            continue
        if Path(out).resolve().is_relative_to(Path(taken).resolve()):
            raise click.UsageError(f"--out {out} lies in the {name} of all studies ({taken}); choose another folder")
    return Options(
        out=root / study.name if out is None or is_address(out) else Path(out),
        results=out if out is not None and is_address(out) else None,
        store=store or root / "store",
        cache=root / "cache",
        data=data,
        parallel=parallel,
        address=address,
    )
