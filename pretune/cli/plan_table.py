"""A plan on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pretune.monitor.plain import plain
from pretune.plan import Plan
from pretune.search_spaces.words import counted, titled

NOUNS = {"pretrain": "pretraining", "finetune": "fine-tuning"}
ORDINALS = ("first", "second", "third", "fourth")


def print_plan(plan: Plan, parallel: int, console: Console) -> None:
    table = Table(title=Text(f"plan of {titled(plan.study, plan.scale)}"), show_header=False, title_justify="left")
    table.add_row("cells", str(plan.cells))
    table.add_row("configurations (hyperparameter settings)", str(plan.configurations))
    table.add_row("final runs (cells x seeds)", str(plan.replicates))
    table.add_row(
        "stage runs",
        f"{plan.stage_runs}   ({', '.join(counted_stages(title, n) for title, n in plan.by_stage.items())})",
    )
    table.add_row("stage runs without sharing", str(plan.stage_runs_without_sharing))
    if plan.stored is not None:
        table.add_row("already in the store", str(plan.stored))
    if plan.seconds is not None:
        table.add_row(
            "estimated time",
            f"{duration(plan.seconds / parallel)} plus start-up, with {parallel} stage runs at once on this machine",
        )
        for part, spent in plan.seconds_by_part.items():
            table.add_row(f"  {part}", duration(spent / parallel))
        table.add_row("GPU hours", f"{plan.gpu_hours or 0:.2g}")
        table.add_row("disk", disk(plan, parallel))
        for kind, peak in plan.peak_bytes.items():
            table.add_row(f"memory per step, {NOUNS.get(kind, kind)}", f"{peak / 1e9:.2g} GB (float32, estimated)")
    console.print(table)
    for facts in plan.data:
        for sentence in facts.sentences():
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if plan.continuing:
        console.print(plain(plan.continuing), highlight=False)
    for kind, peak in plan.peak_bytes.items():
        if saving := less_memory(kind, peak, plan.checkpointed_bytes.get(kind, peak)):
            console.print(saving, highlight=False, soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"[yellow]note:[/] {plain(warning)}", highlight=False)


def counted_stages(title: str, count: int) -> str:
    """'3 pretrainings (simclr)', '1 second pretraining (simclr)' of a chain, '18 fine-tunings', '2 knn probes'."""
    name, _, method = title.partition(" ")
    kind, _, rest = name.replace(":", ".").partition(".")
    if kind == "probe":
        return counted(count, f"{rest} probe")
    order = f"{ORDINALS[int(rest)]} " if rest.isdecimal() and int(rest) < len(ORDINALS) else f"{rest} " * bool(rest)
    return counted(count, f"{order}{NOUNS.get(kind, kind)}") + (f" ({method})" if method else "")


def disk(plan: Plan, parallel: int) -> str:
    """'124 MB: 100 MB of weights, 24 MB of checkpoints that stay; up to 6 MB more for checkpoints during the run'."""
    total, kept, running = (n / 1e6 for n in (plan.disk_bytes or 0, plan.kept_bytes, plan.state_bytes * parallel))
    parts = f"{total:.0f} MB: {total - kept:.0f} MB of weights, {kept:.0f} MB of checkpoints that stay" if kept else ""
    return f"{parts or f'{total:.0f} MB of weights'}; up to {running:.0f} MB more for checkpoints during the run"


def less_memory(kind: str, peak: int, checkpointed: int) -> str:
    """A sentence on activation checkpointing where it saves a tenth or more of the peak; else ""."""
    if checkpointed > 0.9 * peak:
        return ""
    needed = f"{NOUNS.get(kind, kind)} needs {checkpointed / 1e9:.2g} GB per step"
    return f"with resources.{kind}.activation_checkpointing: true, {needed}"


def duration(seconds: float) -> str:
    """'2 h 05 min', '7 min', '40 s'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
