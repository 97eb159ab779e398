"""When a stage must leave its process, after writing its state, and how the driver asks for it.

Three reasons: SIGTERM to the process itself, Ray draining its node (a preemption notice; SIGTERM to `ray start --block`
as Kubernetes and Slurm send it), and the driver being stopped (Ctrl-C, `pretune stop`). SIGTERM to the raylet, as by
`ray stop`, is none of them: Ray kills its workers within a second. The loops know one callable, `RunContext.preempted`.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pretune.worker import ray_private

ASK_SECONDS = 2.0  # between two questions to the cluster; a signal is noticed at once
STOPPING = "pretune-stopping"  # an actor of this name, in the namespace of the driver's job, says that the study stops


class _Stopping:
    """Its name is the message: Ray knows it from the moment on at which it is asked for, whether it ever runs."""


_message: Any = None  # the actor, which ends with its last handle


def ask_to_stop() -> None:
    """Ask all stages of the driver's job, on all nodes, to save and end."""
    import ray

    global _message
    _message = ray.remote(_Stopping).options(name=STOPPING, get_if_exists=True, num_cpus=0).remote()


def is_stopping() -> bool:
    """Whether the driver asked the stages of its job to save and end."""
    import ray

    try:
        ray.get_actor(STOPPING)
    except ValueError:  # there is none
        return False
    return True


QUESTIONS: dict[Callable[[], bool], str] = {  # to Ray: a stage must leave where it says yes
    ray_private.is_draining: "this node is draining",
    is_stopping: "the study is being stopped",
}
_said: set[Callable[[], bool]] = set()  # questions of which it was said that Ray does not answer them
_terminated = threading.Event()
_busy = threading.Event()


def listen() -> None:
    """Hold SIGTERM back while a stage runs in this process. For the main thread, once per process."""
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: Any) -> None:
        if (_terminated.is_set() or not _busy.is_set()) and callable(before):
            before(number, frame)
        _terminated.set()

    signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def at_work() -> Iterator[Callable[[], bool]]:
    """While a stage runs: a callable that says whether it must leave."""
    last = time.monotonic()

    def preempted() -> bool:
        nonlocal last
        if _terminated.is_set():
            return True
        if time.monotonic() - last < ASK_SECONDS:
            return False
        last = time.monotonic()
        return any(map(_answered, QUESTIONS))

    _busy.set()
    try:
        yield preempted
    finally:
        _busy.clear()


def _answered(question: Callable[[], bool]) -> bool:
    """Return what Ray answers; no, where it does not. That is said once in this process, and Ray is asked again."""
    try:
        return question()
    except Exception as error:  # Ray raises bare errors while its head does not answer
        if question not in _said:
            logging.getLogger("pretune").warning("%s", _unanswered(question, error))
        _said.add(question)
        return False


def _unanswered(question: Callable[[], bool], error: Exception) -> str:
    if isinstance(error, ray_private.MissingInRayError):
        return str(error)
    return f"Ray does not answer whether {QUESTIONS[question]} ({error}); it is asked again"


def warnings_of_ray() -> list[str]:
    """Sentences on notices that Ray cannot give, for the driver to show before stages start."""
    found = []
    for question in QUESTIONS:
        try:
            question()
        except Exception as error:
            found.append(_unanswered(question, error))
    return found


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, `kill` or `pretune stop`, a closed terminal


def handled() -> list[signal.Signals]:
    """Return the signals by which a study is stopped, without those that this process ignores (`nohup`)."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The signals of `STOP_SIGNALS` call `stop`; a second one makes Tune end at once, whatever is under way.

    Tune's own handler is for SIGUSR1 then: QUIET (pretune.cluster.tune) turns off the one for SIGINT, which would give
    stages 10 s.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in handled()}
    asked = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if number == signal.SIGHUP:
            without_terminal()
        if asked:
            end_at_once()
        asked = True
        stop()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def without_terminal() -> None:
    """Print to nowhere: a write to a terminal that was closed is an error, which would end what is being saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):  # isatty says no of a terminal that was closed
            os.dup2(nowhere, number)
    os.close(nowhere)


def interrupted_by_signals() -> None:
    """Let SIGTERM and SIGHUP interrupt this process as Ctrl-C does, from start to end."""

    def on_signal(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            without_terminal()
        raise KeyboardInterrupt

    for number in handled():
        if number != signal.SIGINT:
            signal.signal(number, on_signal)


def end_at_once() -> None:
    """Tune stops waiting for stages; what they did since their last state is done again."""
    os.kill(os.getpid(), signal.SIGUSR1)
