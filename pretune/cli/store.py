"""`pretune store ls | du | gc`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pretune.cli import options
from pretune.monitor.plain import plain
from pretune.search_spaces.words import counted
from pretune.store.lookup import title_of
from pretune.store.object_store import is_address
from pretune.store.store import Entry, Store, StoreError, open_store

MARK_SECONDS = 86400.0


@click.group("store")
def store_group() -> None:
    """List and clean the store of finished stage runs."""


@store_group.command("ls")
@options.root
@options.store
def store_ls(root: Path, store: str | None) -> None:
    """List the finished stage runs."""
    print_entries(store or root / "store", root / "cache", Console())


@store_group.command("du")
@options.root
@options.store
def store_du(root: Path, store: str | None) -> None:
    """Show how much disk space each kind of stage takes in the store."""
    print_usage(store or root / "store", root / "cache", Console())


@store_group.command("gc")
@options.root
@options.store
@click.option("--unused", is_flag=True, help="Also delete finished stage runs that no study under ROOT uses.")
@click.option("--yes", is_flag=True, help="Really delete.  [default: only show what would be deleted]")
def store_gc(root: Path, store: str | None, unused: bool, yes: bool) -> None:
    """Delete unfinished attempts, and with --unused also stage runs that no study uses."""
    collect(store or root / "store", root / "cache", root, unused, yes, Console())


# --------------------------------------------------------------------------------------------- behind the commands


def print_entries(root: Path | str, cache: Path, console: Console) -> None:
    """One line per finished stage run."""
    table = Table("fingerprint", "stage", "for", "outcome", "seconds", "MB")
    for entry in opened(root, cache).entries():
        label = str(entry.about.get("label", ""))
        table.add_row(
            entry.fingerprint[:12],
            plain(title_of(entry)),
            plain(label),
            entry.outcome,
            f"{entry.seconds:.1f}",
            f"{size(entry) / 1e6:.2f}",
        )
    console.print(table)


def print_usage(root: Path | str, cache: Path, console: Console) -> None:
    """Bytes by stage, and what unfinished attempts take."""
    store, total, count = opened(root, cache), Counter[str](), Counter[str]()
    for entry in store.entries():
        title = title_of(entry)
        total[title] += size(entry)
        count[title] += 1
    for attempt in store.unfinished():
        total["unfinished"] += store.size_of(attempt)
        count["unfinished"] += 1
    table = Table("stage", "runs", "MB")
    for name in total:
        table.add_row(name, str(count[name]), f"{total[name] / 1e6:.1f}")
    table.add_row("all", str(sum(count.values())), f"{sum(total.values()) / 1e6:.1f}", style="bold")
    console.print(table)


def collect(root: Path | str, cache: Path, studies: Path, unused: bool, yes: bool, console: Console) -> None:
    """Delete unfinished attempts and, if `unused`, entries that no results.parquet below `studies` names.

    Do not run it while a study runs on this store: its attempts are unfinished too.
    """
    store = opened(root, cache)
    attempts = list(store.unfinished())
    keep = used_fingerprints(studies) if unused else set()
    entries = [entry for entry in store.entries() if unused and entry.fingerprint not in keep]
    freed = sum(map(store.size_of, attempts)) + sum(map(size, entries))
    verb = "deleted" if yes else "would delete"
    if yes:
        remove_marks([store.root, cache])
        for attempt in attempts:
            store.drop(attempt)
        for entry in entries:
            store.remove(entry.fingerprint)
    console.print(
        f"{verb} {counted(len(attempts), 'unfinished attempt')} and {counted(len(entries), 'unused stage run')}, "
        f"{freed / 1e6:.1f} MB"
    )
    if not yes and (attempts or entries):
        console.print("add --yes to delete; do not do this while a study uses this store")


def remove_marks(folders: list[Path]) -> None:
    """Delete the files by which machines know a shared folder (cluster.marked) that a killed driver left: a day old."""
    for folder in folders:
        for mark in folder.glob(".seen-*"):
            if time.time() - mark.stat().st_mtime > MARK_SECONDS:
                mark.unlink(missing_ok=True)


def used_fingerprints(studies: Path) -> set[str]:
    """Fingerprints in the results of every study folder below `studies`."""
    from pretune.analysis.load.results import read_parquet  # slow to import, and no other command here needs it

    used: set[str] = set()
    for path in studies.glob("*/results.parquet"):
        used |= set(read_parquet(path)["fingerprint"])
    return used


def opened(root: Path | str, cache: Path) -> Store:
    """The store at a path or an address, which must be there."""
    if not is_address(root) and not Path(root).is_dir():
        raise StoreError(f"there is no store at {root}; give its place with --store or --root")
    return open_store(root, cache)


def size(entry: Entry) -> int:
    return sum(int(about["size"]) for about in entry.files.values())
