import io
import math
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pretune.monitor.terminal import (
    CellStatus,
    LiveMonitor,
    PlainMonitor,
    RunningStage,
    Snapshot,
    monitor,
    render,
    status_line,
)

SNAPSHOT = Snapshot(
    study="freeze-skip-labels",
    phase="confirm",
    running=(RunningStage("pretrain simclr seed=1", 0.456, "loss 4.21", 62.0),),
    waiting=8,
    finished=22,
    reused=15,
    failed=1,
    total=60,
    cells=(
        CellStatus("encoder=frozen", 2, 3, 0.7123, 0.0134),
        CellStatus("encoder=unfrozen", 1, 3, 0.5, None),
        CellStatus("encoder=none", 7, 20, None, None),
    ),
    elapsed=753.9,
    remaining=3700.0,
    messages=("finetune seed=2 diverged",),
)


def draw(snapshot, width=80, height=60):
    console = Console(width=width, height=height, record=True, file=io.StringIO(), force_terminal=True)
    console.print(render(snapshot))
    return console.export_text()


def line_with(text, word):
    (line,) = (line for line in text.splitlines() if word in line)
    return " ".join(line.strip("│ ").split())


def many_cells(count):
    """Untouched, but for 3 complete and, at the end, 2 under way."""
    finished = [3] * 3 + [0] * (count - 5) + [1] * 2
    return tuple(CellStatus(f"cell-{i}", n, 3, None, None) for i, n in enumerate(finished))


# ------------------------------------------------------------------------------------------------------- the panel


def test_the_panel_says_where_the_study_stands():
    """22 + 15 + 1 = 38 of 60 are done, 63 %."""
    text = draw(SNAPSHOT)
    assert "freeze-skip-labels · confirm" in text
    assert line_with(text, "of 60").endswith("38 of 60 63 %")
    counts = "22 finished · 15 reused · 1 failed · 8 waiting"
    assert line_with(text, "22 finished") == f"{counts} 0:12:33 · 1:01:40 left"
    assert "finetune seed=2 diverged" in text


def test_the_panel_and_the_line_of_a_log_name_the_scale():
    scaled = replace(SNAPSHOT, study="leaves", scale="first")
    assert "leaves (scale first) · confirm" in draw(scaled)
    assert status_line(scaled).startswith("leaves (scale first) confirm: 38 of 60")


def test_a_running_stage_has_its_bar_share_detail_and_time():
    line = line_with(draw(SNAPSHOT), "pretrain simclr")
    assert line.startswith("pretrain simclr seed=1 ━")
    assert line.endswith("45 % loss 4.21 0:01:02")


@pytest.mark.parametrize("width", [72, 80, 120])
def test_a_long_label_keeps_its_seed(width):
    stage = RunningStage(
        "finetune encoder=unfrozen skip=true labels=90% " + "x" * 60 + " seed=7", 0.5, "loss 4.21", 4000.0
    )
    line = line_with(draw(replace(SNAPSHOT, running=(stage,)), width), "loss 4.21")
    assert line.startswith("finetune enc")
    assert " seed=7 ━" in line


def test_cells_say_which_direction_of_their_target_is_better():
    assert "cells, by the tuning target" in draw(SNAPSHOT)
    assert "cells, by val/jaccard, higher is better" in draw(replace(SNAPSHOT, target="val/jaccard, higher is better"))


def test_cells_show_replicates_and_target_so_far():
    text = draw(SNAPSHOT)
    assert line_with(text, "encoder=frozen") == "encoder=frozen ●●○ 0.712 ± 0.013"
    assert line_with(text, "encoder=unfrozen") == "encoder=unfrozen ●○○ 0.500"
    assert line_with(text, "encoder=none") == "encoder=none 7/20"


def test_an_open_search_claims_no_total_and_no_share():
    """38 done, 1 running and 8 waiting are known of."""
    text = draw(replace(SNAPSHOT, total=None, remaining=None))
    assert line_with(text, "at least").endswith("38 of at least 47")
    assert "left" not in text


def test_many_cells_are_counted_and_those_under_way_stay():
    text = draw(replace(SNAPSHOT, cells=many_cells(200)))
    assert "… and 188 more" in text
    shown = [f"cell-{i}" for i in range(200) if f"cell-{i} " in text]
    assert shown == [f"cell-{i}" for i in [*range(10), 198, 199]]


def test_many_running_stages_are_counted():
    running = tuple(RunningStage(f"stage-{i}", 0.5, "", 1.0) for i in range(64))
    text = draw(replace(SNAPSHOT, running=running))
    assert text.count("stage-") == 8
    assert "… and 56 more" in text


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("height", [16, 24, 50])
def test_the_panel_fits_the_terminal(width, height):
    running = tuple(RunningStage(f"pretrain with a long name {'x' * 80} {i}", i / 20, "loss 4.2", i) for i in range(20))
    full = replace(SNAPSHOT, running=running, cells=many_cells(200), messages=("a long message " * 20,) * 9)
    lines = draw(full, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_names_are_neither_markup_nor_terminal_commands():
    text = draw(replace(SNAPSHOT, study="[bold]a", messages=("[/red] \x1b[2J b\nc",)))
    assert "[bold]a" in text
    assert "[/red]  [2J b c" in text
    assert "\x1b" not in text


def test_an_ascii_terminal_can_show_it():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(width=80, height=40, file=file, force_terminal=True).print(render(replace(SNAPSHOT, cells=many_cells(200))))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "... and 188 more" in text
    assert "##" in text


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 30), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 100)),
    st.floats(allow_nan=True), st.one_of(st.none(), st.floats(allow_nan=True)), st.text(max_size=30),
)  # fmt: skip
def test_any_snapshot_can_be_drawn(running, cells, total, number, maybe, label):
    snapshot = Snapshot(
        study=label, phase="search", running=(RunningStage(label, number, label, number),) * running, waiting=running,
        finished=running, reused=0, failed=0, total=total, cells=(CellStatus(label, 1, cells, maybe, maybe),) * cells,
        elapsed=number, remaining=maybe, messages=(label,) * running,
    )  # fmt: skip
    assert "search" in draw(snapshot)
    assert "search: " in status_line(snapshot)


def test_status_line_by_hand():
    assert status_line(SNAPSHOT) == (
        "freeze-skip-labels confirm: 38 of 60 (22 finished, 15 reused, 1 failed); "
        "1 running, 8 waiting; 0:12:33 elapsed, about 1:01:40 left"
    )
    assert status_line(replace(SNAPSHOT, remaining=None, elapsed=math.inf)).endswith("? elapsed")


# ------------------------------------------------------------------------------------------------------ two monitors


def make_console(terminal):
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=80, height=40, _environ={"TERM": "xterm-256color"}
    )


def test_a_terminal_gets_the_panel_and_a_file_gets_lines():
    assert isinstance(monitor(lambda: SNAPSHOT, make_console(True)), LiveMonitor)
    assert isinstance(monitor(lambda: SNAPSHOT, make_console(False)), PlainMonitor)


@pytest.mark.parametrize("make", [LiveMonitor, PlainMonitor])
def test_contract_events_appear_and_a_failing_snapshot_stops_nothing(make):
    def take_snapshot():
        raise OSError("store is gone")

    console = make_console(make is LiveMonitor)
    with make(take_snapshot, console) as watching:
        watching.event("[stage] seed=1 finished")
    text = console.file.getvalue()
    assert "[stage] seed=1 finished" in text
    assert "no new status: OSError: store is gone" in text


@pytest.mark.parametrize("make", [LiveMonitor, PlainMonitor])
def test_contract_errors_of_the_study_pass_through(make):
    with (
        pytest.raises(RuntimeError, match="the study's own"),
        make(lambda: SNAPSHOT, make_console(make is LiveMonitor)),
    ):
        raise RuntimeError("the study's own")
    assert not [thread for thread in threading.enumerate() if thread.name == "pretune-monitor"]


def test_the_live_panel_refreshes_from_its_own_thread_and_ends_on_the_last_snapshot():
    phases, refreshed, console = ["early"], threading.Event(), make_console(True)

    def take_snapshot():
        if threading.current_thread() is not threading.main_thread():
            refreshed.set()
        return replace(SNAPSHOT, phase=phases[0])

    with LiveMonitor(take_snapshot, console):
        assert refreshed.wait(10)
        phases[0] = "finale"
    text = console.file.getvalue()
    assert "early" in text
    assert "finale" in text.split("early")[-1]


def test_a_later_failure_to_look_keeps_the_last_panel():
    snapshots = iter([SNAPSHOT])
    console = make_console(True)
    with LiveMonitor(lambda: next(snapshots), console):
        pass
    last = console.file.getvalue().split("╭")[-1]
    assert "38 of 60" in last
    assert "no new status: StopIteration" in last


def test_the_plain_monitor_reports_at_every_interval_and_at_the_end():
    taken, console = threading.Semaphore(0), make_console(False)

    def take_snapshot():
        taken.release()
        return SNAPSHOT

    with PlainMonitor(take_snapshot, console, interval=0.01) as watching:
        assert taken.acquire(timeout=10)
        assert taken.acquire(timeout=10)
        watching.event("finetune seed=1 finished " + "x" * 100)
    lines = console.file.getvalue().splitlines()
    assert lines.count(status_line(SNAPSHOT)) >= 3
    assert lines[-1] == status_line(SNAPSHOT)
    assert "finetune seed=1 finished " + "x" * 100 in lines  # one line however long
