"""The command line: verbs that call importable functions. A usage error is one sentence and exit code 2."""

from __future__ import annotations

import io
import sys

import click

from pretune.cli import results, study
from pretune.cli.data import data as data_group
from pretune.cli.doctor import doctor
from pretune.cli.grafana import monitor as monitor_command
from pretune.cli.store import store_group
from pretune.errors import EXIT_STOPPED, EXIT_USAGE
from pretune.monitor.plain import visible
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.errors import UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pretune")
def cli() -> None:
    """Measure which pretraining gives the best segmentation model for your images, and how certain this is.

    \b
    pretune init my-study.yaml --images photos/ --masks labels/    write a starter study
    pretune plan my-study.yaml                                     show what it would train
    pretune run my-study.yaml                                      run it, or continue it
    pretune report runs/my-study                                   print the tables, write the HTML report
    pretune predict runs/my-study photos/ segmented/               segment images with the best model

    \b
    Exit codes: 0 success; 2 error, the message says why; 3 partly done, some stage runs or files failed;
    130 stopped with Ctrl-C.
    """


for command in (data_group, doctor, monitor_command, store_group, *study.COMMANDS, *results.COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Entry point: errors of use become one sentence, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8; stderr escapes by itself
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except StudyError as error:
        count = len(error.problems)
        click.echo(f"{visible(error)}\n{count} problem{'s' * (count != 1)}; nothing was started.", err=True)
        sys.exit(EXIT_USAGE)
    except (UsageError, ConnectionError) as error:  # Ray's own ConnectionError, of a cluster that went away
        click.echo(f"error: {visible(error)}", err=True)
        sys.exit(EXIT_USAGE)
    except (KeyboardInterrupt, click.exceptions.Abort):  # click makes the one of the other
        click.echo("stopped; run the same command to continue", err=True)
        sys.exit(EXIT_STOPPED)
