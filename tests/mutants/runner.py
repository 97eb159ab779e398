"""Which faults do the tests not see? `python tests/mutants/runner.py TARGET [PART OF A NAME]` lists them.

The project is copied into temporary folders; a fault is written into a copy, and a process forked from one that has
imported torch already runs the target's tests there until the first fails. The working tree is not touched.

Exit status: 0 where every fault was seen or is excused, else 1.
"""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import os
import py_compile
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from excuses import EXCUSED
from mutations import Mutant, deletions, later_comparisons, other_streams, swaps

# --- where things lie
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pretune",)  # copied, its links as folders, and imported anew by every fork
PREFIX = "pretune."  # of their names
SOURCES = "pretune/trainables"  # the folder of what is mutated
TESTS = "tests/trainables"
COPIED = (*PACKAGES, "tests", "pyproject.toml")
# ---

SECONDS = float(os.environ.get("MUTANT_SECONDS", "600"))  # a fault that keeps the tests busy for longer is seen
PASSED, USAGE, NONE_RUN = 0, 4, 5  # pytest's exit statuses


class Target(NamedTuple):
    file: str
    mutate: Callable[[str], list[Mutant]]
    tests: tuple[str, ...]  # the likeliest to see a fault come first


def faults(source: str) -> list[Mutant]:
    return deletions(source) + other_streams(source) + later_comparisons(source)


PRETRAIN = ("test_wiring_around.py", "test_wiring_pretrain.py", "test_pretrain.py")
FINETUNE = ("test_wiring_around.py", "test_wiring_finetune.py", "test_finetune.py")
LOOP = (
    "test_loop.py",
    *(f"data/streaming/test_stream.py::test_{name}" for name in (
        "an_epoch_holds_each_image_once", "orders_differ_between_epochs_and_seeds",
        "a_window_touches_few_runs_of_neighbours", "a_stream_is_told_what_the_steps_take",
    )),
    "test_distributed.py::test_workers_exchange_about_every_two_seconds_and_never_more_than_once_a_step",
)  # fmt: skip
TARGETS = {
    "pretrain": Target("pretrain.py", faults, PRETRAIN),
    "finetune": Target("finetune.py", faults, FINETUNE),
    "loop": Target("loop.py", faults, (*LOOP, *FINETUNE, *PRETRAIN[1:])),
    **{
        f"methods/{file}": Target(f"methods/{file}.py", swaps, ("test_methods_table.py", "test_table.py"))
        for file in ("barlow_twins", "byol", "conrec", "dino", "genesis", "mae", "moco", "pixelcl", "recipes",
                     "samclr", "simclr", "swav", "vicreg")
    },
}  # fmt: skip


class Verdict(NamedTuple):
    mutant: Mutant
    survived: bool
    seconds: float
    said: str  # by the tests, at their end


def main(target: str, part: str = "") -> int:
    started = time.monotonic()
    chosen = TARGETS[target]
    mutants = [m for m in chosen.mutate((ROOT / SOURCES / chosen.file).read_text()) if part in m.name]
    with tempfile.TemporaryDirectory() as folder:
        copies = [copied(Path(folder) / str(i)) for i in range(jobs())]
        warm(copies[0])
        if not part and (said := failing_anyway(chosen, copies[0])):
            print(f"the tests fail without any fault: {said}")
            return 1
        survivors = [v.mutant.name for v in judged(chosen, mutants, copies) if report(v) and v.survived]
    excused = EXCUSED.get(target, {})
    unseen = [name for name in survivors if name not in excused]
    needless = [] if part else sorted(excused.keys() - set(survivors))
    print(f"{target}: {len(mutants)} faults, {len(mutants) - len(survivors)} seen, {len(survivors) - len(unseen)} "
          f"excused, {len(unseen)} unseen; {time.monotonic() - started:.0f} s")  # fmt: skip
    for kind, names in {"unseen": unseen, "excused but seen, or no fault any more": needless}.items():
        print("".join(f"  {kind}: {name}\n" for name in names), end="")
    return 1 if unseen or needless or not mutants else 0


def failing_anyway(target: Target, copy: Path) -> str:
    """What the tests say of the project as it is, where they fail."""
    unchanged = Mutant("nothing", (ROOT / SOURCES / target.file).read_text())
    found = next(judged(target, [unchanged], [copy]))
    return "" if found.survived else found.said


def jobs() -> int:
    return int(os.environ.get("MUTANT_JOBS", len(os.sched_getaffinity(0))))


def report(verdict: Verdict) -> bool:
    """Always true."""
    said = "NOT SEEN" if verdict.survived else "seen"
    print(f"{said:8} {verdict.seconds:5.1f} s  {verdict.mutant.name}  [{verdict.said}]", flush=True)
    return True


def copied(folder: Path) -> Path:
    """The project in `folder`, its packages compiled: an import then need not look at the sources."""
    folder.mkdir()
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    for package in PACKAGES:
        compileall.compile_dir(
            folder / package, quiet=2, force=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    return folder


def warm(folder: Path) -> None:
    """Import what the packages import, and forget the packages. Nothing is computed: threads do not survive a fork."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    for name in ("pretrain", "finetune"):
        importlib.import_module(f"{PREFIX}trainables.{name}")
    for name in ("pytest", "pytest_timeout", "hypothesis", "sklearn.metrics", "torch._dynamo"):  # as optimisers do
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    gc.freeze()  # what is here already is not gone through again by every fork


def judged(target: Target, mutants: list[Mutant], copies: list[Path]) -> Iterator[Verdict]:
    """Verdicts as they come; as many mutants at a time as there are copies."""
    free, running, waiting = list(copies), dict[int, tuple[Path, Mutant, float]](), list(reversed(mutants))
    while waiting or running:
        while waiting and free:
            copy, mutant = free.pop(), waiting.pop()
            running[start(target, mutant, copy)] = (copy, mutant, time.monotonic())
        for pid, (copy, mutant, since) in list(running.items()):
            seconds = time.monotonic() - since
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds < SECONDS:
                continue
            end(pid, ended != 0)
            del running[pid]
            free.append(copy)
            yield verdict(mutant, os.waitstatus_to_exitcode(status) if ended else None, seconds, copy)
        time.sleep(0.02)


def start(target: Target, mutant: Mutant, copy: Path) -> int:
    """A process that runs the tests on the mutant."""
    for place in TARGETS.values():  # whatever was there before
        shutil.copy(ROOT / SOURCES / place.file, copy / SOURCES / place.file)
    path = copy / SOURCES / target.file
    path.write_text(mutant.source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    if pid := os.fork():
        return pid
    try:
        os._exit(tested(target, copy))
    finally:
        os._exit(1)


def tested(target: Target, copy: Path) -> int:
    """In the forked process, with what it starts in a group of its own."""
    os.setsid()
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    sys.path[:] = [str(copy), *(place for place in sys.path if Path(place or ".").resolve() not in (ROOT, copy))]
    log = os.open(copy / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import pytest

    options = ["-x", "-q", "--no-header", "--tb=no", "--assert=plain", "-m", "not slow", "--rootdir=."]
    options += ["-p", "no:cacheprovider", "-p", "pytest_timeout"]  # the only plugin
    return int(pytest.main([*options, *(f"{TESTS}/{name}" for name in target.tests)]))


def end(pid: int, ended: bool) -> None:
    """Whatever the process started, and itself where it has not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)


def verdict(mutant: Mutant, status: int | None, seconds: float, copy: Path) -> Verdict:
    """Seen where a test fails or none can run; `status` is None for what took too long."""
    lines = (copy / "log").read_text(errors="replace").splitlines()
    if status in (USAGE, NONE_RUN) and not any("Error" in line for line in lines):
        raise RuntimeError("the tests cannot be run:\n" + "\n".join(lines[-20:]))
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    said = "too long" if status is None else (failed or lines or [""])[-1][:140]
    return Verdict(mutant, status == PASSED, seconds, said)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
