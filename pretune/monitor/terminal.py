"""View of a running study: a panel that refreshes itself on a terminal, plain lines everywhere else.

Drawing only. What is drawn is a `Snapshot`, a plain value that the engine can make at any time; nothing here knows
about Ray, the store or Optuna.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pretune.search_spaces.words import titled

_REFRESHES = 4  # per second
_MOST_RUNNING, _MOST_CELLS, _MOST_MESSAGES = 8, 12, 4
_MOST_DOTS = 6  # replicates drawn as one dot each; more are written as 7/12


# ------------------------------------------------------------------------------------------------------- the state


@dataclass(frozen=True)
class RunningStage:
    """One stage run in progress."""

    label: str
    done: float  # 0..1
    detail: str  # what it last reported, as in "loss 4.21"
    seconds: float  # since it started


@dataclass(frozen=True)
class CellStatus:
    """One cell of the result table: replicates so far, and what they came to."""

    label: str
    finished: int
    expected: int
    target: float | None  # mean of the tuning target so far
    spread: float | None  # its standard deviation over replicates


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment. Counts are of stage runs; finished, reused and failed ones do not overlap."""

    study: str
    phase: str
    running: tuple[RunningStage, ...]
    waiting: int
    finished: int  # trained to the end in this run
    reused: int  # taken from the store
    failed: int
    total: int | None  # None while a search is open: more may come
    cells: tuple[CellStatus, ...]
    elapsed: float  # seconds
    remaining: float | None  # seconds
    messages: tuple[str, ...]  # oldest first
    scale: str = ""  # of the study's scales the one that runs
    target: str = ""  # how cells compare, as in "val/jaccard, higher is better"; "" in a status of before 2026-11-28


class Monitor(Protocol):
    """Shows a study from `with` to its end; `event` says at once that a stage finished or failed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def event(self, line: str) -> None: ...


# ------------------------------------------------------------------------------------------------------- the panel


def render(snapshot: Snapshot) -> RenderableType:
    """The study as a panel that fits the height it is given: what does not fit is counted ("... and 188 more")."""
    return _Screen(snapshot)


class _Room(NamedTuple):
    """Rows for each part of the panel."""

    running: int
    cells: int
    messages: int


class _Glyphs(NamedTuple):
    done: str
    open: str
    plus_minus: str
    separator: str
    more: str
    overflow: Literal["ellipsis", "crop"]


_UNICODE = _Glyphs("●", "○", "±", "·", "…", "ellipsis")
_ASCII = _Glyphs("#", ".", "+/-", "-", "...", "crop")  # a terminal that knows no more would fail on the others


@dataclass(frozen=True)
class _Screen:
    snapshot: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = _ASCII if options.ascii_only else _UNICODE
        room = _room(self.snapshot, options.height or options.max_height)
        title = _join(
            f" {glyphs.separator} ",
            Text(_plain(titled(self.snapshot.study, self.snapshot.scale)), "bold"),
            Text(_plain(self.snapshot.phase)),
        )
        parts = _parts(self.snapshot, room, glyphs, options.max_width)
        yield Panel(Group(*parts), title=title, title_align="left", border_style="cyan", padding=(0, 1))


def _parts(snapshot: Snapshot, room: _Room, glyphs: _Glyphs, width: int) -> Iterator[RenderableType]:
    yield _overall_bar(snapshot)
    yield _counts(snapshot, glyphs)
    if snapshot.running:
        yield _heading("running")
        yield _running_table(snapshot.running[: room.running], glyphs, width)
        yield from _more(len(snapshot.running) - room.running, glyphs)
    if snapshot.cells:
        yield _heading(f"cells, by {_plain(snapshot.target) or 'the tuning target'}")
        yield _cells_table(_most_telling(snapshot.cells, room.cells), glyphs)
        yield from _more(len(snapshot.cells) - room.cells, glyphs)
    if snapshot.messages:
        yield _heading("messages")
        for message in snapshot.messages[-room.messages :]:
            yield _line(message, glyphs)


def _room(snapshot: Snapshot, height: int) -> _Room:
    """Shares the rows out: borders, bars, headings and two "and more" lines take nine; cells get what is left."""
    left = max(3, height - 10)
    messages = min(_MOST_MESSAGES, max(1, left // 5), len(snapshot.messages) or 1)
    running = min(_MOST_RUNNING, max(1, (left - messages) // 2), len(snapshot.running) or 1)
    return _Room(running, min(_MOST_CELLS, max(1, left - messages - running)), messages)


def _overall_bar(snapshot: Snapshot) -> Table:
    done, known = _done(snapshot), _known(snapshot)
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    bar = ProgressBar(total=max(known, 1), completed=done, complete_style="green", finished_style="bold green")
    share = f" {math.floor(100 * done / known)} %" if snapshot.total and known else ""
    row.add_row(bar, Text(_progress(snapshot) + share, "bold"))
    return row


def _counts(snapshot: Snapshot, glyphs: _Glyphs) -> Table:
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(no_wrap=True, ratio=1, overflow="crop")
    row.add_column(no_wrap=True, justify="right")
    named = [
        Text(f"{snapshot.finished} finished", "green"),
        Text(f"{snapshot.reused} reused", "blue"),
        Text(f"{snapshot.failed} failed", "bold red" if snapshot.failed else "dim"),
        Text(f"{snapshot.waiting} waiting", "dim"),
    ]
    left = [] if snapshot.remaining is None else [Text(f"{_hours(snapshot.remaining)} left")]
    separator = f" {glyphs.separator} "
    row.add_row(_join(separator, *named), _join(separator, Text(_hours(snapshot.elapsed), "dim"), *left))
    return row


def _running_table(running: Sequence[RunningStage], glyphs: _Glyphs, width: int) -> Table:
    table, bar_width = _rows(glyphs), max(6, width // 7)
    detail_width = min(max(len(stage.detail) for stage in running), max(10, width // 4))
    table.add_column(width=bar_width)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow=glyphs.overflow, max_width=detail_width)
    table.add_column(no_wrap=True, justify="right")
    around = len("│ ") + len("  ") + len("  100 %") + len("  ") + len("  10:00:00") + len(" │")
    room = width - around - bar_width - detail_width
    for stage in running:
        done = min(1.0, max(0.0, stage.done)) if math.isfinite(stage.done) else 0.0
        bar = ProgressBar(total=1.0, completed=done, complete_style="cyan", finished_style="cyan")
        share, detail = f"{math.floor(100 * done):3d} %", Text(_plain(stage.detail), "dim")
        table.add_row(
            Text(_shorten(_plain(stage.label), room, glyphs)), bar, share, detail, Text(_hours(stage.seconds), "dim")
        )
    return table


def _shorten(label: str, room: int, glyphs: _Glyphs) -> str:
    """Cut in the middle: a label ends in its seed, which tells it from its neighbours."""
    kept = max(4, room - len(glyphs.more))
    return label if len(label) <= room else label[: kept - kept // 2] + glyphs.more + label[-(kept // 2) :]


def _cells_table(cells: Sequence[CellStatus], glyphs: _Glyphs) -> Table:
    table = _rows(glyphs)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, min_width=len("0.712 +/- 0.013"))
    for cell in cells:
        style = "" if cell.finished else "dim"
        table.add_row(Text(_plain(cell.label), style), _replicates(cell, glyphs), Text(_target(cell, glyphs), "bold"))
    return table


def _rows(glyphs: _Glyphs) -> Table:
    """A borderless table with its first column, the labels, which takes the room that the others leave."""
    table = Table.grid(expand=True, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, overflow=glyphs.overflow, ratio=1)
    return table


def _replicates(cell: CellStatus, glyphs: _Glyphs) -> Text:
    if cell.expected > _MOST_DOTS:
        return Text(f"{cell.finished}/{cell.expected}")
    finished = min(cell.finished, cell.expected)
    return Text(glyphs.done * finished, "green") + Text(glyphs.open * (cell.expected - finished), "dim")


def _target(cell: CellStatus, glyphs: _Glyphs) -> str:
    if cell.target is None:
        return ""
    spread = "" if cell.spread is None or math.isnan(cell.spread) else f" {glyphs.plus_minus} {cell.spread:.3f}"
    return f"{cell.target:.3f}{spread}"


def _most_telling(cells: tuple[CellStatus, ...], most: int) -> list[CellStatus]:
    """Cells under way first, then the latest complete ones, then untouched ones; shown in the study's order."""

    def importance(position: int) -> tuple[int, int]:
        cell = cells[position]
        if 0 < cell.finished < cell.expected:
            return 0, position
        return (1, -position) if cell.finished else (2, position)

    chosen = sorted(range(len(cells)), key=importance)[:most]
    return [cells[position] for position in sorted(chosen)]


def _more(count: int, glyphs: _Glyphs) -> Iterator[Text]:
    if count > 0:
        yield Text(f"{glyphs.more} and {count} more", "dim")


def _heading(name: str) -> Text:
    return Text(name, "bold cyan")


def _line(message: str, glyphs: _Glyphs) -> Text:
    return Text(_plain(message), no_wrap=True, overflow=glyphs.overflow)


def _join(separator: str, *parts: Text) -> Text:
    return Text(separator, "dim").join(parts)


def _plain(text: str) -> str:
    """One line without control characters: a name must not be able to move the cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


# ------------------------------------------------------------------------------------------------- words and numbers


def _done(snapshot: Snapshot) -> int:
    return snapshot.finished + snapshot.reused + snapshot.failed


def _known(snapshot: Snapshot) -> int:
    so_far = _done(snapshot) + len(snapshot.running) + snapshot.waiting
    return so_far if snapshot.total is None else snapshot.total


def _progress(snapshot: Snapshot) -> str:
    at_least = "at least " if snapshot.total is None else ""
    return f"{_done(snapshot)} of {at_least}{_known(snapshot)}"


def _hours(seconds: float) -> str:
    """h:mm:ss."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def status_line(snapshot: Snapshot) -> str:
    """The whole study in one line, for logs."""
    counts = f"{snapshot.finished} finished, {snapshot.reused} reused, {snapshot.failed} failed"
    now = f"{len(snapshot.running)} running, {snapshot.waiting} waiting"
    left = "" if snapshot.remaining is None else f", about {_hours(snapshot.remaining)} left"
    time = f"{_hours(snapshot.elapsed)} elapsed{left}"
    return _plain(
        f"{titled(snapshot.study, snapshot.scale)} {snapshot.phase}: {_progress(snapshot)} ({counts}); {now}; {time}"
    )


# ------------------------------------------------------------------------------------------------------ two monitors


class LiveMonitor:
    """Redraws the panel in place from a thread of its own, and prints events above it."""

    def __init__(self, take_snapshot: Callable[[], Snapshot], console: Console) -> None:
        self._take_snapshot = take_snapshot
        self._console = console
        self._last: Snapshot | None = None
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=_REFRESHES, vertical_overflow="crop"
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, line: str) -> None:
        """Prints one line above the panel."""
        self._console.print(Text(_plain(line)))

    def _draw(self) -> RenderableType:
        """The panel now. A snapshot that cannot be taken is said so on the last one, and never stops the study."""
        try:
            self._last = self._take_snapshot()
        except Exception as error:
            problem = f"no new status: {type(error).__name__}: {error}"
            if self._last is None:
                return Text(_plain(problem))
            return render(replace(self._last, messages=(*self._last.messages, problem)))
        return render(self._last)


class PlainMonitor:
    """One line per event, and a status line at every `interval` seconds and at the end."""

    def __init__(self, take_snapshot: Callable[[], Snapshot], console: Console, interval: float = 30.0) -> None:
        self._take_snapshot = take_snapshot
        self._console = console
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, name="pretune-monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._status()

    def event(self, line: str) -> None:
        """Prints one line."""
        self._console.print(Text(_plain(line)), soft_wrap=True)

    def _report(self) -> None:
        while not self._stop.wait(self._interval):
            self._status()

    def _status(self) -> None:
        try:
            line = status_line(self._take_snapshot())
        except Exception as error:  # watching must never stop the study
            line = f"no new status: {type(error).__name__}: {error}"
        self.event(line)


def monitor(take_snapshot: Callable[[], Snapshot], console: Console) -> Monitor:
    """The panel on a terminal, plain lines in a file, a pipe, a notebook or a dumb terminal."""
    if console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter:
        return LiveMonitor(take_snapshot, console)
    return PlainMonitor(take_snapshot, console)
