"""Commands about a study file: run, submit, stop, plan, init."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from pretune.cli import options
from pretune.cli.results import draw_panels, print_report
from pretune.errors import EXIT_FAILED_STAGES, EXIT_STOPPED, EXIT_USAGE
from pretune.monitor.plain import plain
from pretune.search_spaces.resolve import load
from pretune.search_spaces.words import counted

if TYPE_CHECKING:
    from pretune.search_spaces.schema.palettes import RGB

MOST_LINES = 40  # stage runs without a result that the terminal names; the rest is in the log

# -------------------------------------------------------------------------------------------------------------- run


@click.command()
@options.study_file
@options.scale
@options.overrides
@options.data
@options.root
@options.out
@options.store
@click.option(
    "--parallel",
    type=click.IntRange(1),
    help="Maximum number of stage runs at once.  [default: as many as this machine can run]",
)
@click.option("--address", help="Address of a Ray cluster.  [default: this machine]")
@options.may_grow
@click.option("--search-storage", envvar="PRETUNE_SEARCH_STORAGE", metavar="URL",
              help="Database for the searches, e.g. sqlite:///x.db.  [default: OUT/optuna.journal]")  # fmt: skip
@click.option(
    "--dashboard",
    is_flag=True,
    help="Start Ray's dashboard, for this machine only. Each stage run gets a named actor, which takes about 4 s.",
)
@click.option("--log-to", type=click.Choice(["tensorboard", "mlflow", "wandb"]), multiple=True,
              help="Also log metrics to this service; repeatable.")  # fmt: skip
@options.details
def run(
    file: Path, scale: str | None, overrides: tuple[str, ...], data: Path | None, root: Path, out: str | None,
    store: str | None, parallel: int | None, address: str | None, may_grow: tuple[str, ...],
    search_storage: str | None, dashboard: bool, log_to: tuple[str, ...], details: bool,
) -> None:  # fmt: skip
    """Run a study, or continue it. STUDY is a YAML file, or the name of a study that comes with Pretune.

    \b
    pretune run quickstart
    pretune run study.yaml --data ~/datasets
    pretune run study.yaml --scale small --set seeds.report=2

    \b
    Exit code 0: complete. Diverged trials of a search are no failures.
    2: the study or its data have an error and nothing was started, or Ray died during the run.
    3: replicates or cells are missing in the table, or a stage run crashed; each is named.
    130: stopped with Ctrl-C, SIGTERM or SIGHUP.
    Run the same command again to continue. It also tries crashed stage runs again.
    """
    from pretune.run import run_study
    from pretune.store.mirror import Publisher
    from pretune.worker.preemption import interrupted_by_signals

    interrupted_by_signals()
    study = load(file, scale, overrides)
    where = dataclasses.replace(
        options.run_options(options.folder_of(study, scale, root), data, root, out, store, parallel, address),
        search_storage=search_storage,
        dashboard=dashboard,
        log_to=log_to,
        may_grow=options.node_groups(may_grow, address),
    )
    console = Console()
    for warning in study.warnings:
        console.print(f"[yellow]note:[/] {plain(warning)}", highlight=False)
    if scale is not None:
        console.print(f"results of this scale go to {plain(where.out)}", highlight=False, soft_wrap=True)
    ended = run_study(study, where, console)
    if ended.exit_code in (0, EXIT_FAILED_STAGES):
        draw_panels(where.out, where.cache, where.store)
    show_end(ended, where.out, console, details)
    Publisher(where.out, where.results).send()
    sys.exit(ended.exit_code)


@click.command()
@options.study_file
@click.option("--address", required=True, help="Dashboard address of the cluster, e.g. http://localhost:8265.")
@options.scale
@options.overrides
@click.option("--data", metavar="PATH", help="Data folder on the cluster nodes.")
@click.option("--root", metavar="PATH", required=True, help="Output folder; all nodes must share it.")
@click.option("--out", metavar="PATH", help="Folder of this study's results on the cluster.")
@click.option("--store", metavar="PATH", help="Store on the cluster, or an s3:// or gs:// address.")
@click.option(
    "--parallel",
    type=click.IntRange(1),
    help="Maximum number of stage runs at once.  [default: as many as the cluster can run]",
)
@options.may_grow
@click.option(
    "--search-storage",
    metavar="URL",
    help="Database for the searches, without a password.  [default: OUT/optuna.journal]",
)
@click.option(
    "--dashboard", is_flag=True, help="Show each stage run as a named actor in Ray's dashboard, which takes about 4 s."
)
@click.option("--log-to", type=click.Choice(["tensorboard", "mlflow", "wandb"]), multiple=True,
              help="Also log metrics to this service; repeatable.")  # fmt: skip
@options.details
@click.option(
    "--pip", is_flag=True, help="Install Pretune's dependencies on every node, if their image does not have them."
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the log until the study has ended.")
def submit(
    file: Path, address: str, scale: str | None, overrides: tuple[str, ...], data: str | None, root: str,
    out: str | None, store: str | None, parallel: int | None, may_grow: tuple[str, ...], search_storage: str | None,
    dashboard: bool, log_to: tuple[str, ...], details: bool, pip: bool, wait: bool,
) -> None:  # fmt: skip
    """Run a study on a cluster as a Ray job. It continues without this machine. All paths are on the cluster.

    \b
    ssh -N -L 8265:localhost:8265 HEAD &
    pretune submit study.yaml --address http://localhost:8265 --data /shared/data --root /shared/runs
    pretune stop JOB --address http://localhost:8265

    Exit codes: those of `pretune run`; with --no-wait 0 when the job is submitted. Ctrl-C does not stop the job.
    """
    from pretune.cluster import jobs
    from pretune.data.preflight import check_before_training
    from pretune.data.requirements import facts_before_decoding

    study = load(file, scale, overrides)
    given: dict[str, Any] = {
        "--scale": scale,
        "--data": data,
        "--root": root,
        "--out": out,
        "--store": store,
        "--parallel": parallel,
        "--search-storage": search_storage,
    }
    for option in ("--data", "--root", "--out", "--store"):  # a job's own folder is deleted with it
        if (path := given[option]) is not None and not path.startswith("/") and "://" not in path:
            raise click.UsageError(f"{option} {path}: give an absolute path on the cluster nodes")
    for option in ("--data", "--root"):
        if "://" in str(given[option]):
            raise click.UsageError(f"{option} must be a folder on the cluster nodes, not an address")
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    options.node_groups(may_grow, address)
    words += [word for group in may_grow for word in ("--may-grow", group)]
    words += ["--dashboard"] * dashboard + ["--details"] * details
    words += [word for logger in log_to for word in ("--log-to", logger)]
    words += [word for override in overrides for word in ("--set", override)]
    jobs.check_arguments(words)
    check_before_training(study, facts_before_decoding(Path(data) if data else None, missing=True))
    job = jobs.submit(jobs.connect(address), address, study.name, file, words, pip)
    click.echo(f"submitted {job}")
    click.echo(f"to stop it: pretune stop {job} --address {address}", err=True)
    if wait:
        say = functools.partial(click.echo, nl=False)
        note = functools.partial(click.echo, err=True)
        try:
            sys.exit(jobs.follow(jobs.connect(address), address, job, say, note))
        except KeyboardInterrupt:
            click.echo(f"\n{job} continues; to follow it: ray job logs {job} --address {address} --follow", err=True)


@click.command()
@click.argument("target", metavar="JOB|OUT")
@click.option("--address", help="Dashboard address of the cluster.")
def stop(target: str, address: str | None) -> None:
    """Stop a running study. It first saves its state, and running it again continues from there.

    \b
    pretune stop runs/quickstart                                              on this machine
    pretune stop pretune-quickstart-1a2b3c4d --address http://localhost:8265  a job, by the id that submit printed
    """
    from pretune.cluster import jobs

    click.echo(jobs.stop(target, address))


def show_end(ended: Any, folder: Path, console: Console, details: bool = False) -> None:
    """Print the table, the failures, and where everything is."""
    from pretune.cli.plan_table import duration

    if (folder / "results.parquet").exists():
        print_report(folder, console, details=details)
    for word, colour, runs in (("failed", "red", ended.failed), ("search", "yellow", ended.diverged)):
        for run in runs[:MOST_LINES]:
            console.print(f"[{colour}]{word}[/] {plain(run)}", highlight=False, soft_wrap=True)
        if len(runs) > MOST_LINES:
            console.print(f"... and {len(runs) - MOST_LINES} more, in {plain(folder / 'pretune.log')}", soft_wrap=True)
    if ended.diverged:
        console.print("diverged trials are no failures: the search continued without them", highlight=False)
    for message in ended.messages:
        console.print(f"[red]{plain(message)}[/]", highlight=False)
    for note in ended.notes:
        console.print(f"note: {plain(note)}", highlight=False)
    console.print(
        f"{counted(ended.trained, 'stage run')} trained, {ended.reused} reused, {duration(ended.seconds)}",
        highlight=False,
    )
    if ended.trained and (idle := idle_share(folder)):
        console.print(idle, highlight=False)
    if ended.exit_code == EXIT_STOPPED:
        later = "" if (folder / "best").exists() else ". The model for `pretune predict` is chosen at the end"
        console.print(f"stopped; run the same command to continue{later}", highlight=False)
    for name, what in (
        ("table.md", "table"),
        ("report.html", "report"),
        ("results.parquet", "results"),
        ("best", "best model"),
        ("pretune.log", "log"),
    ):
        if (folder / name).exists():
            console.print(f"{what:>10}  {plain(folder / name)}", highlight=False, soft_wrap=True)


def idle_share(folder: Path) -> str:
    """Say how many stage runs ran at once and how long lanes were idle; "" where no times are known."""
    from pretune.analysis.load.runs import load_stage_runs
    from pretune.analysis.load.timeline import sentence, timeline

    found = timeline(load_stage_runs(folder))
    return sentence(found) if found else ""


# ------------------------------------------------------------------------------------------------------------- plan


@click.command()
@options.study_file
@options.scale
@options.overrides
@options.data
@options.root
@options.store
@click.option(
    "--time", "timed", is_flag=True, help="Also run a few steps of each kind of stage, to estimate time and memory."
)
@click.option(
    "--parallel",
    type=click.IntRange(1),
    help="Number of stage runs at once, for the estimate.  [default: as many as this machine can run]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def plan(
    file: Path, scale: str | None, overrides: tuple[str, ...], data: Path | None, root: Path, store: str | None,
    timed: bool, parallel: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a study would train. Also shows what it can reuse and what its data contain. Trains nothing.

    Plan also checks that every model can be built, and looks at a sample of the masks. If it finds that
    `pretune run` would stop, it says why (exit code 2).

    \b
    pretune plan study.yaml --data ~/datasets
    pretune plan study.yaml --time          also estimate the time
    """
    from pretune.cli.plan_table import print_plan
    from pretune.cli.planning import at_once, contents_of, glances, sources_of, timed_plan
    from pretune.data.facts import data_facts, usable_facts
    from pretune.data.preflight import check_before_training, check_masks
    from pretune.data.requirements import cut_batches, facts_before_decoding
    from pretune.plan import make_plan, searches_before
    from pretune.store.index import look
    from pretune.store.lookup import find_in
    from pretune.store.store import open_store
    from pretune.trainables.data.sets.table import listings_remembered

    study = load(file, scale, overrides)
    with listings_remembered():
        facts_of = facts_before_decoding(data, missing=True)
        check_before_training(study, facts_of)
        names = {one: name for cell in study.cells for name, one in cell.configuration().data.items()}
        digest_of, size_of = contents_of(data, root, names)
        glance_of = glances(data, root / "cache", digest_of)
        check_masks(study, facts_of, glance_of)
        held = open_store(store or root / "store", root / "cache")
        with searches_before(options.folder_of(study, scale, root)) as asked:
            made, stages = make_plan(study, digest_of, find_in(held, listing=look(held)), asked)
        warnings = (*made.warnings, *cut_batches(study, usable_facts(facts_of, glance_of, data)))
        made = dataclasses.replace(made, data=tuple(data_facts(study, facts_of, glance_of, data)), warnings=warnings)
        used = {stage.data: names.get(stage.data, stage.data.dataset) for stage in stages}
        sources = list(sources_of(used, data, root / "cache"))
        if timed:
            made = timed_plan(made, [stage for stage in stages if held.find(stage.fingerprint) is None], size_of)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(made), indent=1))
    else:
        print_plan(made, parallel or at_once(timed), Console())
        for line in sources:
            click.echo(line)
    if refusals := dict.fromkeys(filter(None, (facts.refusal() for facts in made.data))):
        click.echo("\n".join(f"error: {refusal}" for refusal in refusals), err=True)
        sys.exit(EXIT_USAGE)


# ------------------------------------------------------------------------------------------------------------- init


FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--unlabelled", type=FOLDER, help="Folder of images without masks. All are used for pretraining.")
@click.option("--images", type=FOLDER, help="Folder of images with masks.")
@click.option("--masks", type=click.Path(path_type=Path, exists=True),
              help="Folder of the masks, or a COCO JSON file.  [default: search in --images]")  # fmt: skip
@click.option("--classes", help="Class names in the order of the mask values, separated by commas.")
@click.option("--ignore", type=options.mask_value, metavar="VALUE",
              help="Mask value, or colour R,G,B, that is no class; excluded from losses and scores.")  # fmt: skip
@click.option("--backbone", metavar="NAME", help="A timm backbone, e.g. vit_small_patch14_dinov2.  [default: a U-Net]")
@click.option(
    "--imagenet", is_flag=True, help="Use EfficientNet-Lite0 as the encoder, and also compare its ImageNet weights."
)
def init(
    file: Path,
    unlabelled: Path | None,
    images: Path | None,
    masks: Path | None,
    classes: str | None,
    ignore: int | RGB | None,
    backbone: str | None,
    imagenet: bool,
) -> None:
    """Write a study file for your folders of images. Comments in the file explain it.

    \b
    pretune init my-study.yaml --unlabelled photos/ --images labelled/images --masks labelled/masks
    pretune init my-study.yaml --images photos/ --masks labels/ --classes background,leaf
    pip install -e '.[imagenet]'; pretune init my-study.yaml --images photos/ --masks labels/ --imagenet
    """
    from pretune.calibration import has_gpu
    from pretune.cli.starter import SCHEMA_FILE, Hardware, Pool, starter, without_partner
    from pretune.cluster.capacity import usable_cpus
    from pretune.data.backbones import IMAGENET, network_of
    from pretune.data.survey.images import survey_images
    from pretune.data.survey.pairs import coco_file_in, survey_coco, survey_pairs
    from pretune.search_spaces.json_schema import json_schema_text

    if file.exists():
        raise click.UsageError(f"{file} already exists; choose another name or delete it")
    about_masks = {"--masks": masks, "--classes": classes, "--ignore": ignore}
    if images is None and (named := [option for option, value in about_masks.items() if value is not None]):
        raise click.UsageError(f"{named[0]} also needs --images, the folder of the images")
    if imagenet and backbone is not None:
        raise click.UsageError("--imagenet and --backbone both choose the network: use only one")
    network = IMAGENET if imagenet else None if backbone is None else network_of(backbone)
    names = None if classes is None else [part.strip() for part in classes.split(",")]
    labelled = None
    if images is not None:
        annotations = masks if masks is not None and masks.is_file() else None
        annotations = coco_file_in(images) if masks is None else annotations
        if annotations and ignore is not None:
            raise click.UsageError(
                f"--ignore is a value of mask files, and {annotations} is COCO JSON: remove --ignore"
            )
        labelled = (
            survey_coco(images, annotations, names) if annotations else survey_pairs(images, masks, names, ignore)
        )
    pool = None if unlabelled is None else Pool(unlabelled, survey_images(unlabelled))
    text = starter(file.stem, labelled, pool, Hardware(has_gpu(), usable_cpus()), network)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    (file.parent / SCHEMA_FILE).write_text(json_schema_text(), encoding="utf-8")
    if labelled is not None:
        meaning = labelled.meaning
        click.echo(f"{len(meaning.classes)} classes; {meaning.why}{meaning.ignored_text}")
        for note in meaning.notes:
            click.echo(f"note: {note}")
        if alone := labelled.listing.problems:
            click.echo(f"note: left out {without_partner(alone)}")
    if pool is not None:
        click.echo(f"unlabelled: {pool.seen}")
    click.echo(f"wrote {file}")
    if labelled is None:
        click.echo(f"next: edit the placeholders in {file}, because --images was not given; then pretune plan {file}")
    else:
        _check_starter(file)
        click.echo(f"next: pretune data check {file}\nthen: pretune run {file} --scale first")


def _check_starter(file: Path) -> None:
    """Report what `pretune plan` would refuse, while the folders and class names are at hand."""
    from pretune.cli.planning import glances
    from pretune.data.facts import data_facts
    from pretune.data.preflight import check_before_training, check_masks
    from pretune.data.requirements import facts_before_decoding

    study, facts_of = load(file, None, ()), facts_before_decoding(None, missing=True)
    glance_of = glances(None, None, lambda settings: "")
    check_before_training(study, facts_of)
    for facts in data_facts(study, facts_of, glance_of, None):
        for sentence in (*facts.sentences(), *filter(None, [facts.refusal()])):
            click.echo(sentence)
    check_masks(study, facts_of, glance_of)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: print]")
def schema(out: Path | None) -> None:
    """Print the JSON Schema of study files. Editors use it to complete and check them.

    \b
    pretune schema --out pretune.schema.json
    # yaml-language-server: $schema=pretune.schema.json    as the first line of a study, which `pretune init` writes
    """
    from pretune.search_spaces.json_schema import json_schema_text

    if out is None:
        click.echo(json_schema_text(), nl=False)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json_schema_text(), encoding="utf-8")
        click.echo(f"wrote {out}")


COMMANDS = (run, submit, stop, plan, init, schema)
