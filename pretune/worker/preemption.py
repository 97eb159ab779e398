"""When a stage must leave its process, after writing its state, and how the driver asks for it.

Three reasons: SIGTERM to the process itself, Ray draining its node (a preemption notice; SIGTERM to `ray start --block`
as Kubernetes and Slurm send it), and the driver being stopped (Ctrl-C, `pretune stop`). SIGTERM to the raylet, as by
`ray stop`, is none of them: Ray kills its workers within a second. The loops know one callable, `RunContext.leaving`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ASK_SECONDS = 2.0  # between two questions to the cluster; a signal is noticed at once

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

    def leaving() -> bool:
        nonlocal last
        if _terminated.is_set():
            return True
        if time.monotonic() - last < ASK_SECONDS:
            return False
        last = time.monotonic()
        with contextlib.suppress(Exception):  # a cluster that cannot answer now is asked again
            return _is_draining() or _is_stopping()
        return False

    _busy.set()
    try:
        yield leaving
    finally:
        _busy.clear()


def _is_draining() -> bool:
    """Whether Ray was told that this node goes away."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return node in ray._private.state.state.get_draining_nodes()


def _key() -> bytes:
    import ray

    return f"pretune-stopping-{ray.get_runtime_context().get_job_id()}".encode()


def _is_stopping() -> bool:
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(_key()) is not None


def ask_stages_to_leave() -> None:
    """From the driver, to all stages of its job on all machines."""
    from ray.experimental.internal_kv import _internal_kv_put

    with contextlib.suppress(Exception):  # the cluster may be gone, which also ends the stages
        _internal_kv_put(_key(), b"1")


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop`; a second one makes Tune end at once, whatever is under way.

    Tune's own handler is for SIGUSR1 then (transport.QUIET turns off the one for SIGINT, which would give stages 10 s).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
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


def end_at_once() -> None:
    """Tune stops waiting for stages; what they did since their last state is done again."""
    os.kill(os.getpid(), signal.SIGUSR1)
