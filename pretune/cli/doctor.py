"""`pretune doctor`: what this computer offers to studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pretune.cli import options
from pretune.errors import EXIT_USAGE
from pretune.monitor.plain import plain


@click.command()
@options.data
@options.root
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(data: Path | None, root: Path, as_json: bool) -> None:
    """Show what Pretune finds on this computer. Lists versions, CPUs, GPUs, memory and disk. Trains nothing.

    \b
    pretune doctor
    pretune doctor --data ~/datasets --root /scratch/runs

    Exit code 0: a study can run here. 2: it cannot; the message says what to do.
    """
    from pretune.doctor import examine, healthy

    findings = examine(root, data)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for finding in findings:
            colour = "red" if finding.stops else "yellow"
            problem = f"\n[{colour}]{plain(finding.problem)}[/]" if finding.problem else ""
            table.add_row(finding.name, plain(finding.value) + problem)
        Console(highlight=False).print(table)
    if not healthy(findings):
        sys.exit(EXIT_USAGE)
