"""Notice that Ray died under a study, and end the study with a sentence in place of waiting for it.

Ray's own driver waits: for ever after the loss of a local raylet, and 60 s after the loss of the head, at whose end its
C++ part ends the process without a word of ours. Both processes are asked here every two seconds, over the ports on
which they listen, from a thread of its own. While Ray starts on this machine its ports are not known yet, and its
processes are looked for in their place.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pretune.cluster import join, reaper
from pretune.errors import EXIT_USAGE, ClusterError

LOOK_SECONDS = 2.0  # between two looks
REFUSED_SECONDS = 3.0  # after which a process of this machine, whose port nobody listens on, is taken for dead
MENTION_SECONDS = 6.0  # after which a head that does not answer is mentioned
SILENT_SECONDS = 35.0  # for which a head may be away, or a process be stopped, before the study ends
START_SECONDS = 35.0  # after which Ray, whose start lost a process, hangs: its own wait for a node is 30 s
END_SECONDS = 15.0  # for the study to end by itself; then the process is ended. All of it stays under a minute
AGAIN = "finished work is kept; run the same command again to continue"

NODE, HEAD = "the node process of Ray (raylet)", "the head process of Ray (GCS)"
PROGRAMS = {"raylet": NODE, "gcs_server": HEAD}

Answer = Literal["answers", "silent", "refused"]


@dataclass
class Part:
    """A process of Ray's without which the study cannot go on."""

    name: str
    address: str  # HOST:PORT
    here: bool  # on this machine: nobody starts it again
    away_since: float | None = None
    mentioned: bool = False


@dataclass
class Heartbeat:
    """Asks Ray's processes whether they live.

    Args:
        address: of the cluster; None for a Ray that this process started.
        say: told once of a head that does not answer, and of the end.
    """

    address: str | None
    say: Callable[[str], None]
    lost: str = ""  # why the study ends
    parts: list[Part] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _before: Any = None  # the handler of SIGUSR2

    def begin(self) -> None:
        """Watch the Ray that this process is connected to."""
        with ended_with_ray() if self.address is None else nullcontext():
            self.parts = parts_of_ray(self.address is None)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR2, self._interrupt)
        self._thread = threading.Thread(target=self._watch, name="pretune-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more: from here on Ray may end."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._before is not None:
            signal.signal(signal.SIGUSR2, self._before)

    def look(self, now: float) -> str:
        """Say why the study cannot go on; "" where it can."""
        for part in self.parts:
            said = answer_of(part.address)
            if said == "answers":
                if part.mentioned:
                    self._tell(f"{part.name} answers again")
                part.away_since, part.mentioned = None, False
                continue
            part.away_since = part.away_since or now
            away = now - part.away_since
            if away >= (REFUSED_SECONDS if part.here and said == "refused" else SILENT_SECONDS):
                return self._sentence(part, away)
            if away >= MENTION_SECONDS and not part.mentioned:
                part.mentioned = True
                self._tell(f"{part.name} does not answer; waiting {SILENT_SECONDS:g} s for it")
        return ""

    def dead_now(self) -> str:
        """Say why the study cannot go on, where something already went wrong: no time is given."""
        dead = next((part for part in self.parts if answer_of(part.address) != "answers"), None)
        return self._sentence(dead, 0.0) if dead else ""

    def _sentence(self, part: Part, away: float) -> str:
        if self.address is None:
            return died_here(part.name)
        since = f" for {away:.0f} s" if away >= 1 else ""
        return (
            f"the study stopped: {part.name} of --address {self.address} did not answer{since}; {AGAIN} once it answers"
        )

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # a full disk under the log must not end the watching
            self.say(text)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            if lost := self.look(time.monotonic()):
                self.lost = lost
                self._tell(lost)
                if self._before is not None:
                    os.kill(os.getpid(), signal.SIGUSR2)
                else:
                    _thread.interrupt_main()
                return

    def _interrupt(self, number: int, frame: Any) -> None:
        if not self._over.is_set():
            raise KeyboardInterrupt


def parts_of_ray(local: bool) -> list[Part]:
    """The head, and the raylet by which this process speaks to the cluster."""
    import ray

    context = ray.get_runtime_context()
    mine = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())  # type: ignore[no-untyped-call]
    raylet = f"{mine['NodeManagerAddress']}:{mine['NodeManagerPort']}"
    return [Part(NODE, raylet, here=True), Part(HEAD if local else "the head", context.gcs_address, here=local)]


def died_here(name: str) -> str:
    why = "killed, or out of memory"
    return f"the study stopped: {name} died ({why}), and a Ray on one machine cannot replace it; {AGAIN}"


def died_at_start(name: str) -> str:
    why = "mostly since a busy machine did not start Ray's processes in Ray's 15 s; else killed, or out of memory"
    return f"the study stopped: {name} died while Ray started ({why}); {AGAIN}, best with less other work running"


def answer_of(address: str) -> Answer:
    """Whether the gRPC server at HOST:PORT answers; a stopped process takes connections and says nothing."""
    try:
        return "answers" if join.speaks_http2(address) else "silent"
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused"
    except OSError:
        return "silent"


def programs_below() -> dict[int, str]:
    """Ray's head and node process among the living ones below this one, by number. Only where there is /proc."""
    found = {}
    for pid in reaper.below(os.getpid()):
        with suppress(OSError):  # gone meanwhile; what has ended and was not waited for has no command
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            if name := PROGRAMS.get(os.path.basename(program.decode(errors="replace"))):
                found[pid] = name
    return found


@contextmanager
def ended_with_ray() -> Iterator[None]:
    """While Ray starts in this process: end the process with a sentence where Ray waits for ever for a dead one.

    Mostly Ray notices that its head or node process died, and raises. In parts of its C++ it does not, and nothing of
    ours can interrupt it.
    """
    over = threading.Event()

    def watch() -> None:
        seen: dict[int, str] = {}
        while not over.wait(LOOK_SECONDS):
            here = programs_below()
            gone = [name for pid, name in seen.items() if pid not in here]
            seen |= here
            if gone and not over.wait(START_SECONDS):  # else Ray has raised an exception
                reaper.end_below()
                end_process(died_at_start(gone[0]))

    thread = threading.Thread(target=watch, name="pretune-start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end_process(why: str) -> None:
    """At once, since it hangs in Ray."""
    with suppress(OSError):
        sys.stderr.write(f"\r\nerror: {why}\n")
        sys.stderr.flush()
    os._exit(EXIT_USAGE)


@contextmanager
def heartbeat(address: str | None, say: Callable[[str], None], leave: Callable[[], None]) -> Iterator[Heartbeat]:
    """Run a study inside, after which `leave` leaves Ray. Where Ray died, the study ends within a minute.

    Raises:
        ClusterError: Ray died. Where this process hangs in Ray, it is ended with the same sentence and exit code.
    """
    watch = Heartbeat(address, say)
    done = threading.Event()

    def end_at_last() -> None:
        while not watch.lost and not done.wait(LOOK_SECONDS):
            pass
        if not done.wait(END_SECONDS):
            end_process(watch.lost)

    threading.Thread(target=end_at_last, name="pretune-end", daemon=True).start()
    try:
        yield watch
    except BaseException as error:
        if not watch.lost and not isinstance(error, KeyboardInterrupt | ClusterError):
            watch.lost = watch.dead_now()
        if watch.lost:
            raise ClusterError(watch.lost) from None
        raise
    finally:
        watch.stop()
        try:
            leave()
        finally:
            done.set()
