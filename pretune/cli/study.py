"""The command line. Verbs that call importable functions; a usage error is one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pretune.cli.data import data as data_group
from pretune.cli.grafana import monitor as monitor_command
from pretune.cli.results import COMMANDS, draw_panels, print_report
from pretune.errors import EXIT_FAILED_STAGES, EXIT_STOPPED, EXIT_USAGE
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import Study, load
from pretune.search_spaces.stages import Stage

_study = click.argument("file", type=click.Path(path_type=Path))
_scale = click.option("--scale", metavar="NAME", help="Apply one of the study's scales, e.g. small.")
_set = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
_data = click.option("--data", type=click.Path(path_type=Path), help="Folder in which data sets are looked for.")
_root = click.option("--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                     help="Holds the store, the image cache and one folder per study.")  # fmt: skip
_out = click.option("--out", metavar="PATH", help="The study's own folder; s3:// or gs://: ROOT/STUDY, "
                    "copied there.  [default: ROOT/STUDY]")  # fmt: skip
_store = click.option(
    "--store", metavar="PATH", help="Finished stage runs: a folder, s3://... or gs://...  [default: ROOT/store]"
)
_may_grow = click.option(
    "--may-grow", multiple=True, metavar="NxCPU=C,GPU=G",
    help="Machines that the cluster's autoscaler may start, such as 8xCPU=8,GPU=1; repeatable. "
    "[default: as the autoscaler's file on the head says]",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pretune")
def cli() -> None:
    """Which pretraining, and which fine-tuning of it, gives the best segmentation model, and how sure are we?

    \b
    pretune init my-study.yaml --images photos/ --masks labels/    write a starter study
    pretune plan my-study.yaml                                     what it would run, and what that costs
    pretune run my-study.yaml                                      run it; again: go on where it stopped
    pretune report runs/my-study                                   the tables and the HTML report once more
    pretune predict runs/my-study photos/ segmented/               use the best model
    """


for command in (data_group, monitor_command, *COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Entry point: errors of use become one sentence, never a traceback."""
    from pretune.analysis.load.results import ResultsError
    from pretune.dispatch.resources import ResourceError
    from pretune.errors import ClusterError, LoggerError, ModelError, SearchStorageError
    from pretune.store.object_store import ObjectError
    from pretune.store.store import StoreError
    from pretune.trainables.data.errors import DataError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8; stderr is so already
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(EXIT_STOPPED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except StudyError as error:
        count = len(error.problems)
        click.echo(f"{error}\n{count} problem{'s' * (count != 1)}; nothing was started.", err=True)
        sys.exit(EXIT_USAGE)
    except (
        DataError,
        StoreError,
        SearchStorageError,
        ResourceError,
        ResultsError,
        ModelError,
        LoggerError,
        ClusterError,
        ObjectError,
        ConnectionError,
    ) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        click.echo("stopped; run the same command to go on", err=True)
        sys.exit(EXIT_STOPPED)


# -------------------------------------------------------------------------------------------------------------- run


@cli.command()
@_study
@_scale
@_set
@_data
@_root
@_out
@_store
@click.option("--parallel", type=click.IntRange(1), help="Most stage runs at once.  [default: what the machine holds]")
@click.option("--address", help="Address of a Ray cluster.  [default: this machine]")
@_may_grow
@click.option("--search-storage", envvar="PRETUNE_SEARCH_STORAGE", metavar="URL",
              help="Database of the searches, such as sqlite:///x.db.  [default: OUT/optuna.journal]")  # fmt: skip
@click.option(
    "--dashboard",
    is_flag=True,
    help="Ray's dashboard, on this machine alone, with an actor named for every stage run: about 4 s each.",
)
@click.option("--log-to", type=click.Choice(["tensorboard", "mlflow", "wandb"]), multiple=True,
              help="Also log what stages report there; repeatable.")  # fmt: skip
def run(
    file: Path, scale: str | None, overrides: tuple[str, ...], data: Path | None, root: Path, out: str | None,
    store: str | None, parallel: int | None, address: str | None, may_grow: tuple[str, ...],
    search_storage: str | None, dashboard: bool, log_to: tuple[str, ...],
) -> None:  # fmt: skip
    """Run a study, or what is missing of it.

    \b
    pretune run study.yaml --data ~/datasets
    pretune run study.yaml --scale small --set seeds.report=2

    Exit code 0: whole. 2: the study or its data are not usable. 3: some stage runs failed, the table says which.
    130: stopped with Ctrl-C; the same command goes on.
    """
    from pretune.run import run_study
    from pretune.store.mirror import Publisher

    study = load(file, scale, overrides)
    options = replace(
        _options(study, data, root, out, store, parallel, address),
        search_storage=search_storage,
        dashboard=dashboard,
        log_to=log_to,
        may_grow=_groups(may_grow, address),
    )
    console = Console()
    for warning in study.warnings:
        console.print(f"[yellow]note:[/] {warning}", highlight=False)
    ended = run_study(study, options, console)
    if ended.exit_code in (0, EXIT_FAILED_STAGES):
        draw_panels(options.out, options.cache, options.store)
    show_end(ended, options.out, console)
    Publisher(options.out, options.results).send()
    sys.exit(ended.exit_code)


@cli.command()
@_study
@click.option("--address", required=True, help="Of the cluster's dashboard, such as http://localhost:8265.")
@_scale
@_set
@click.option("--data", metavar="PATH", help="As `pretune run` has it, on the cluster's machines.")
@click.option("--root", metavar="PATH", required=True, help="Likewise; a folder that all its machines share.")
@click.option("--out", metavar="PATH", help="Likewise.")
@click.option("--store", metavar="PATH", help="Likewise.")
@click.option("--parallel", type=click.IntRange(1), help="Most stage runs at once.  [default: what the cluster holds]")
@_may_grow
@click.option("--pip", is_flag=True, help="Install what Pretune needs on every node, where their image lacks it.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the log until the study has ended.")
def submit(
    file: Path, address: str, scale: str | None, overrides: tuple[str, ...], data: str | None, root: str,
    out: str | None, store: str | None, parallel: int | None, may_grow: tuple[str, ...], pip: bool, wait: bool,
) -> None:  # fmt: skip
    """Run a study on a cluster as a Ray job, which goes on without this machine. All paths are the cluster's.

    \b
    ssh -N -L 8265:localhost:8265 HEAD &
    pretune submit study.yaml --address http://localhost:8265 --data /shared/data --root /shared/runs
    pretune stop JOB --address http://localhost:8265

    Exit codes: those of `pretune run`; with --no-wait 0 once the job is there. Ctrl-C leaves the job running.
    """
    from pretune.cluster import jobs

    study = load(file, scale, overrides)
    given: dict[str, Any] = {
        "--scale": scale,
        "--data": data,
        "--root": root,
        "--out": out,
        "--store": store,
        "--parallel": parallel,
    }
    for option in ("--data", "--root", "--out", "--store"):  # a job's own folder is deleted with it
        if (path := given[option]) is not None and not path.startswith("/") and "://" not in path:
            raise click.UsageError(f"{option} {path}: give the whole path, as the cluster's machines see it")
    for option in ("--data", "--root"):
        if "://" in str(given[option]):
            raise click.UsageError(f"{option} names a folder that the cluster's machines see, not an address")
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    _groups(may_grow, address)
    words += [word for group in may_grow for word in ("--may-grow", group)]
    words += [word for override in overrides for word in ("--set", override)]
    jobs.check_arguments(words)
    job = jobs.submit(jobs.connect(address), address, study.name, file, words, pip)
    click.echo(f"submitted {job}")
    click.echo(f"pretune stop {job} --address {address} stops it", err=True)
    if wait:
        say = functools.partial(click.echo, nl=False)
        note = functools.partial(click.echo, err=True)
        try:
            sys.exit(jobs.follow(jobs.connect(address), address, job, say, note))
        except KeyboardInterrupt:
            click.echo(f"\n{job} goes on; ray job logs {job} --address {address} --follow shows it", err=True)


@cli.command()
@click.argument("target", metavar="JOB|OUT")
@click.option("--address", help="Of the dashboard of the cluster that runs the job.")
def stop(target: str, address: str | None) -> None:
    """Stop a study under way: what it is training is saved first, and running it again goes on there.

    \b
    pretune stop runs/quickstart                                              on this machine
    pretune stop pretune-quickstart-1a2b3c4d --address http://localhost:8265  a job, by the id that submit printed
    """
    from pretune.cluster import jobs

    click.echo(jobs.stop(target, address))


def show_end(ended: Any, folder: Path, console: Console) -> None:
    """The table, the failures, and where everything is."""
    from pretune.plan import duration

    if (folder / "results.parquet").exists():
        print_report(folder, console)
    for label, cause in ended.failed.items():
        console.print(f"[red]failed[/] {label}: {cause}", highlight=False)
    for message in ended.messages:
        console.print(f"[red]{message}[/]", highlight=False)
    for note in ended.notes:
        console.print(f"note: {note}", highlight=False)
    console.print(
        f"{ended.trained} stage runs trained, {ended.reused} reused, {duration(ended.seconds)}", highlight=False
    )
    if ended.trained and (idle := idle_share(folder)):
        console.print(idle, highlight=False)
    if ended.exit_code == EXIT_STOPPED:
        console.print("stopped; run the same command to go on")
    for name, what in (
        ("table.md", "table"),
        ("report.html", "report"),
        ("results.parquet", "results"),
        ("best", "best model"),
        ("pretune.log", "log"),
    ):
        if (folder / name).exists():
            console.print(f"{what:>10}  {folder / name}", highlight=False, soft_wrap=True)


def idle_share(folder: Path) -> str:
    """How many stage runs ran at once and how long lanes were idle; nothing where no times are known."""
    from pretune.analysis.figures.timeline import sentence, timeline
    from pretune.analysis.load.runs import load_stage_runs

    found = timeline(load_stage_runs(folder))
    return sentence(found) if found else ""


def _groups(may_grow: tuple[str, ...], address: str | None) -> tuple[Any, ...]:
    """What --may-grow says, read."""
    from pretune.cluster.autoscaling import parse

    if may_grow and not address:
        raise click.UsageError("--may-grow is about a cluster: give its --address too")
    try:
        return tuple(parse(text) for text in may_grow)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _options(
    study: Study,
    data: Path | None,
    root: Path,
    out: str | None,
    store: str | None,
    parallel: int | None,
    address: str | None,
) -> Any:
    from pretune.run import Options
    from pretune.store.object_store import is_address

    if data is not None and not data.is_dir():
        on = f" on {platform.node()}, where the study would run" if os.environ.get("PRETUNE_JOB") else ""
        raise click.UsageError(f"--data {data}: there is no such folder{on}")
    return Options(
        out=root / study.name if out is None or is_address(out) else Path(out),
        results=out if out is not None and is_address(out) else None,
        store=store or root / "store",
        cache=root / "cache",
        data=data,
        parallel=parallel,
        address=address,
    )


# ------------------------------------------------------------------------------------------------------------- plan


@cli.command()
@_study
@_scale
@_set
@_data
@_root
@_store
@click.option("--parallel", type=click.IntRange(1), help="Stage runs at once, for the estimate.  [default: CPUs]")
@click.option("--calibrate/--no-calibrate", default=True, help="Time a few steps of each kind of stage.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(
    file: Path, scale: str | None, overrides: tuple[str, ...], data: Path | None, root: Path, store: str | None,
    parallel: int | None, calibrate: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what a study would run, what it shares and what it costs. Trains nothing.

    \b
    pretune plan study.yaml --data ~/datasets
    pretune plan study.yaml --no-calibrate --json
    """
    from pretune import plan as planning
    from pretune.data import requirements
    from pretune.dispatch.dispatcher import find_in
    from pretune.search_spaces.schema import Data
    from pretune.store.store import open_store

    study = load(file, scale, overrides)
    requirements.refuse_study(study, requirements.listed(data, missing=True))
    digest_of, size_of = _contents(data, root)
    held = open_store(store or root / "store", root / "cache")
    with planning.searches_before(root / study.name) as asked:
        made, stages = planning.make_plan(study, digest_of, find_in(held), asked)
    if calibrate and size_of is not None:
        click.echo("timing a few steps of each kind of stage ...", err=True)
        sizes: Callable[[Data], int] = size_of
        missing = [stage for stage in stages if held.find(stage.fingerprint) is None]
        seconds, gpu_hours, disk = planning.calibrate(missing, sizes)
        made = dataclasses.replace(made, seconds=seconds, gpu_hours=gpu_hours, disk_bytes=disk)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(made), indent=1))
    else:
        planning.print_plan(made, parallel or os.cpu_count() or 1, Console())
        for line in _sources(stages, data, root / "cache"):
            click.echo(line)


def _sources(stages: list[Stage], data: Path | None, cache: Path) -> Iterator[str]:
    """Which data sets will be decoded once and which streamed, and which have files that a run will refuse.

    Those that are not there are left out.
    """
    from pretune.trainables.data.checks.excluded import refused_by_name
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sources import chosen

    lines: dict[str, None] = {}  # folds of one data set say the same
    for settings in dict.fromkeys(stage.data for stage in stages):
        with contextlib.suppress(DataError):  # said already
            lines[f"data {settings.dataset}: {chosen(settings, data, cache).why}"] = None
            if refused := refused_by_name(settings, data):
                lines[f"note: data {settings.dataset}: {refused}"] = None
    yield from lines


def _contents(data: Path | None, root: Path) -> tuple[Any, Any]:
    """How to name and count the content of data sets; a plan can be made without the data, by their settings."""
    from pretune.search_spaces.identities import fingerprint
    from pretune.search_spaces.schema import Data
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.resident import images

    missing: set[str] = set()

    def digest_of(settings: Data) -> str:
        try:
            return images.digest(settings, data, root / "cache" if (root / "cache").is_dir() else None)
        except DataError as error:
            if str(error) not in missing:
                missing.add(str(error))
                click.echo(f"note: planned without the data itself: {error}", err=True)
            return fingerprint(settings.model_dump(mode="json"))

    def size_of(settings: Data) -> int:
        try:
            return images.count(settings, data)
        except DataError:
            return settings.limit or 1000

    import functools

    return functools.cache(digest_of), functools.cache(size_of)


# ------------------------------------------------------------------------------------------------------------- init


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of images.")
@click.option("--masks", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of masks.")
@click.option("--classes", help="Names of the mask values 0, 1, 2, ..., separated by commas.")
def init(file: Path, images: Path | None, masks: Path | None, classes: str | None) -> None:
    """Write a commented starter study for your own folder.

    \b
    pretune init my-study.yaml --images photos/ --masks labels/ --classes background,leaf
    """
    from pretune.cli.starter import starter

    if file.exists():
        raise click.UsageError(f"{file} exists; choose another name or delete it")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(starter(file.stem, images, masks, classes), encoding="utf-8")
    assumed = [word for given, word in ((images, "--images"), (masks, "--masks"), (classes, "--classes")) if not given]
    if assumed:
        click.echo(f"{', '.join(assumed)} not given: an example stands in their place, change it first")
    click.echo(f"wrote {file}; next: pretune plan {file}")


# ------------------------------------------------------------------------------------------------------------ store


@cli.group()
def store() -> None:
    """Look at and clean the store of finished stage runs."""


@store.command("ls")
@_root
@_store
def store_ls(root: Path, store: str | None) -> None:
    """List the finished stage runs."""
    from pretune.cli.store import print_entries

    print_entries(store or root / "store", root / "cache", Console())


@store.command("du")
@_root
@_store
def store_du(root: Path, store: str | None) -> None:
    """How much disk the store takes, by stage."""
    from pretune.cli.store import print_usage

    print_usage(store or root / "store", root / "cache", Console())


@store.command("gc")
@_root
@_store
@click.option("--unused", is_flag=True, help="Also delete finished stage runs that no study under ROOT uses.")
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would go.")
def store_gc(root: Path, store: str | None, unused: bool, yes: bool) -> None:
    """Delete what killed or failed attempts left, and with --unused what no study uses any more."""
    from pretune.cli.store import collect

    collect(store or root / "store", root / "cache", root, unused, yes, Console())
