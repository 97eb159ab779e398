"""Writes docs/cli.md from the command line itself: `python docs/cli.py`. A test holds the page against it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from pretune.cli import cli

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """# Commands

Every command of `pretune`, as `pretune COMMAND --help` has it. `python docs/cli.py` writes this page: edit the help
texts, not this page. [Exit codes](exit-codes.md) are the same for all.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for path, command in commands(cli, "pretune"):
        if not isinstance(command, click.Group):
            parts += [
                f"## {path}\n",
                f"```text\n{usage(path, command)}\n```\n",
                *paragraphs(inspect.cleandoc(command.help or "")),
            ]
            parts += [f"{options(command)}\n"] if options(command) else []
    return "\n".join(parts)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below this one with its path, such as `pretune data check`."""
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], f"{path} {name}")


def usage(path: str, command: click.Command) -> str:
    # Click keeps a command's help option as the first context saw it: one without the names that `cli` sets would take
    # `-h` away from the commands of this process.
    context = click.Context(command, help_option_names=cli.context_settings["help_option_names"])
    return " ".join([path, *command.collect_usage_pieces(context)])


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text. Those that a backspace marks, as for click, keep their lines, as code."""
    for part in text.split("\n\n"):
        lines = [line for line in part.replace("\b", "").splitlines() if line.strip()]
        yield "```text\n" + "\n".join(lines) + "\n```\n" if "\b" in part else " ".join(map(str.strip, lines)) + "\n"


def options(command: click.Command) -> str:
    """Return the table of options; "" where there are none."""
    rows = [row for row in map(option, command.params) if row]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows]) if rows else ""


def option(parameter: click.Parameter) -> str:
    if not isinstance(parameter, click.Option) or parameter.hidden:
        return ""
    context = click.Context(click.Command("page"))
    names, meaning = (text.replace("|", "\\|") for text in parameter.get_help_record(context) or ("", ""))
    return f"| `{names}` | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
